"""Write a model for another runtime, and prove on pictures that it gives the same there."""

import copy
import hashlib
import importlib.metadata
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import choices, names
from ..factory import class_names
from ..files.saving import plain_tensors, unwrapped
from ..folding import fuse
from ..layers import check_own_weights, full_state_dict
from ..model import MobileNetV3
from ..version import __version__
from .formats import FORMATS, Format
from .packages import quiet, require
from .parity import PICTURES, compare, inputs, mean_std
from .seal import files_of, is_ours, seal
from .writers import Graph
from .writing import exporter_errors, new_export, size_of

DYNAMIC = ("batch", "size")
MAX_SIDE = 4096  # of a picture, in pixels
MAX_PIXELS = 1 << 26  # of all pictures at a time: 0.8 GB of float32 with 3 channels, and several times that on the way
MAX_BATCH = 4096


@dataclass(frozen=True)
class Report:
    """What was written, and how far it is from the model."""

    file: Path
    format: str
    bytes: int  # of all its files
    pictures: int
    difference: float | None  # largest, of the logits; None where the format cannot be run here
    largest: float  # logit of the model
    agreement: float | None  # per cent of the pictures whose most likely class is the same

    def __str__(self) -> str:
        size = f"{self.file}: {self.bytes / 1e6:.2f} MB"
        if self.difference is None:
            return f"{size}, not run: {self.format} runs only on a Mac or an iPhone"
        return (
            f"{size}; on {self.pictures} pictures the logits differ by at most {self.difference:.1e} "
            f"(of {self.largest:.3g}), top-1 agrees on {self.agreement:.4g} %"
        )


def export(
    model: nn.Module,
    file: str | os.PathLike[str],
    *,
    to: str,
    size: int | None = None,
    batch: int = 1,
    dynamic: Iterable[str] = (),
    normalize: bool = False,
    softmax: bool = False,
    half: bool = False,
    pictures: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | None = None,
    exist_ok: bool = False,
) -> Report:
    """Write `model` as a file of another runtime. It appears only after it ran there and gave the model's logits.

    Batch norm is folded, dropout is off. The classes, the preprocessing, the SHA-256 of the weights and the versions
    of what wrote it are in the file, or in FILE.json where its format has no place for them.

    Args:
        model: A model of this package, on any device; it stays as it is.
        file: Where; its ending is the format's.
        to: One of `FORMATS`.
        size: Side of the pictures, in pixels; by default that of the weights.
        batch: Pictures at a time, unless that is dynamic.
        dynamic: 'batch', 'size' or both: what may be another in every call.
        normalize: Put the mean and the standard deviation into the graph, which then takes bytes (uint8, 0 to 255;
            ncnn and Core ML take them as float32).
        softmax: Give probabilities in place of logits.
        half: Store the weights as float16, which halves the file; float32 is what they are computed in, unless the
            runtime (ncnn, Core ML) does otherwise.
        pictures: Files or folders of pictures to check by; by default some are drawn.
        exist_ok: Replace what is there.

    Raises:
        ValueError: The format cannot do this, or the model cannot take this size.
        ImportError: The format's packages are missing; the message says how to get them.
        FileExistsError: `file` exists, and `exist_ok` is False.
        ExportError: The exporter failed, or its file gives other logits.
        OSError: The file cannot be written; where there is no space left, the message says so.
    """
    entry, file, dynamic = format_named(to), Path(file), names("dynamic", dynamic, DYNAMIC)
    model = unwrapped(model)
    check_model(model, to, entry, file)
    size = picture_size(model, size, batch)
    _check_options(to, entry, batch, dynamic, half=half)
    check_new(file, exist_ok=exist_ok)
    with quiet():
        require(to, write=True)
    options = {"normalize": normalize, "softmax": softmax}
    metadata = describe(model, to=to, size=size, batch=batch, dynamic=dynamic, half=half, **options)
    example = torch.zeros(batch, *metadata["input_size"], dtype=getattr(torch, metadata["input_type"]))
    graph = Graph(model=deployable(model, **options), example=example, dynamic=dynamic, half=half, metadata=metadata)
    x = inputs(model, size, pictures, normalize=normalize, count=affordable(PICTURES, size))
    with new_export(file, room=entry.copies * weight_bytes(model)) as draft:
        with quiet(), exporter_errors(to):
            entry.write(graph, draft)
            seal(draft)
        size_in_bytes = size_of(draft.parent)
        tolerance = entry.half_tolerance if half else entry.tolerance
        with exporter_errors(to):
            result = (None, 0.0, None) if to == "coreml" else compare(model, draft, x, metadata, tolerance)
    return Report(file, to, size_in_bytes, len(x), *result)


def deployable(model: nn.Module, *, normalize: bool = False, softmax: bool = False) -> nn.Module:
    """A float32 copy on the CPU as exporters want it: in eval mode, batch norm folded, nothing in place.

    Args:
        model: A model of this package.
        normalize: Put the mean and the standard deviation before it; then it takes numbers from 0 to 255.
        softmax: Put a softmax behind it.
    """
    fused = fuse(copy.deepcopy(model).cpu().float().eval())
    for module in fused.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    # torch.export stores the whole tensor that a parameter is a view of; some exporters refuse channels_last
    for parameter in fused.parameters():
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
        parameter.requires_grad_(False)
    return EndToEnd(fused, normalize=normalize, softmax=softmax).eval() if normalize or softmax else fused


class EndToEnd(nn.Module):
    """A model with the normalisation before it or the softmax after it."""

    def __init__(self, model: nn.Module, *, normalize: bool, softmax: bool) -> None:
        super().__init__()
        self.model, self.normalize, self.softmax = model, normalize, softmax
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in mean_std(model))
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -mean / std)

    def forward(self, x: Tensor) -> Tensor:
        if self.normalize:
            x = x.float() * self.scale + self.shift
        x = self.model(x)
        return x.softmax(1) if self.softmax else x


def describe(
    model: nn.Module,
    *,
    to: str,
    size: int,
    batch: int = 1,
    dynamic: tuple[str, ...] = (),
    normalize: bool = False,
    softmax: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """What a file says of itself: all that is needed to use it, and where it came from.

    Args:
        model: The model, before batch norm is folded.
        to: One of `FORMATS`.
        size: Side of the pictures, in pixels.
        batch: Pictures at a time, unless that is dynamic.
        dynamic: 'batch', 'size' or both.
        normalize: Whether the normalisation is in the graph.
        softmax: Whether the softmax is.
        more: Further entries.
    """
    from safetensors.torch import save as as_bytes

    cfg = model.pretrained_cfg
    packages = ("torch", "timm", *FORMATS[to].runtime, *FORMATS[to].writers)
    return {
        "format": to,
        "architecture": cfg["architecture"],
        "tag": cfg.get("tag"),
        "source": cfg.get("hf_hub_id") or cfg.get("url") or Path(cfg.get("file") or "").name or None,
        "license": cfg.get("license"),
        "sha256": hashlib.sha256(as_bytes(plain_tensors(full_state_dict(model)))).hexdigest(),  # as mnv3.save writes
        "num_classes": model.num_classes,
        "label_names": class_names(model),
        "input_size": [model.in_chans, size, size],
        "input_type": "uint8" if normalize and FORMATS[to].takes_bytes else "float32",
        "layout": FORMATS[to].layout,
        "stride": model.stride,
        "batch": batch,
        "dynamic": list(dynamic),
        "normalize": normalize,
        "softmax": softmax,
        **dict(zip(("mean", "std"), mean_std(model), strict=True)),
        **{key: cfg[key] for key in ("interpolation", "crop_pct", "crop_mode")},
        **more,
        "versions": {"mnv3": __version__} | {name: _version(name) for name in packages},
    }


def _version(module: str) -> str:
    """The version of the package that has a module."""
    try:
        return importlib.metadata.version(module)
    except importlib.metadata.PackageNotFoundError:  # onnxruntime-gpu has onnxruntime
        packages = importlib.metadata.packages_distributions()  # reads all of them, for half a second
        return importlib.metadata.version(packages.get(module, [module])[0])


def check_new(file: Path, *, exist_ok: bool) -> None:
    """Raise unless `file`, and what goes with it, may be written: beside it only what mnv3 wrote is replaced."""
    if os.path.lexists(file) and not exist_ok:
        raise FileExistsError(f"{file} exists: choose another name, or replace it (exist_ok=True, --force)")
    package = file.suffix == ".mlpackage" and (file / "Manifest.json").is_file()
    if file.is_symlink() or (file.exists() and not file.is_file() and not package):
        what = "link" if file.is_symlink() else "folder" if file.is_dir() else "device"
        raise FileExistsError(f"{file} is a {what}: choose another name")
    for path in files_of(file)[1:]:
        if path.is_symlink() or (path.exists() and not (exist_ok and path.is_file() and is_ours(file))):
            raise FileExistsError(f"{path} exists and belongs to another file: choose another name, or remove it")


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters in float32."""
    return sum(4 * parameter.numel() for parameter in model.parameters())


def format_named(to: str) -> Format:
    """The properties of a format; ValueError for an unknown one."""
    if to not in FORMATS:
        raise ValueError(f"unknown format {to!r}. {choices(to, FORMATS)}")
    return FORMATS[to]


def picture_size(model: nn.Module, size: int | None, batch: int = 1) -> int:
    """Side of the pictures in pixels: `size`, or that of the model's weights.

    Raises:
        ValueError: It is none, or so many pictures at a time are too large.
    """
    size = model.pretrained_cfg["input_size"][-1] if size is None else size
    check_size(size, batch)
    return size


def check_size(size: int, batch: int = 1) -> None:
    """Raise ValueError unless pictures of this side, and so many at a time, can be computed with."""
    if not isinstance(size, int) or not 1 <= size <= MAX_SIDE:
        raise ValueError(f"size={size!r}: expected a whole number of pixels from 1 to {MAX_SIDE}")
    if not isinstance(batch, int) or not 1 <= batch <= affordable(MAX_BATCH, size):
        at = f"{affordable(MAX_BATCH, size)} pictures of {size} px"
        raise ValueError(f"batch={batch!r}: expected a whole number from 1 to {at}")


def affordable(count: int, size: int) -> int:
    """How many of `count` pictures of this side to hold in memory at a time."""
    return max(1, min(count, MAX_PIXELS // size**2))


def check_model(model: nn.Module, to: str, entry: Format, file: Path) -> None:
    """Raise ValueError unless this model can become this file."""
    if not isinstance(model, MobileNetV3) or not hasattr(model, "pretrained_cfg"):
        raise ValueError(f"this {type(model).__name__} is none of mnv3.create_model(name, ...): it cannot be written")
    check_own_weights(model)
    if not model.num_classes:
        raise ValueError("the model has no classifier (num_classes=0): there are no logits to compare")
    if file.suffix.lower() != entry.suffix:
        raise ValueError(f"{file}: a file for {to} ends in {entry.suffix}")


def _check_options(to: str, entry: Format, batch: int, dynamic: tuple[str, ...], *, half: bool) -> None:
    """Raise ValueError where the format cannot do what is asked."""
    if missing := sorted(set(dynamic) - set(entry.dynamic)):
        able = [name for name, other in FORMATS.items() if set(dynamic) <= set(other.dynamic)]
        raise ValueError(f"{to} has no dynamic {' or '.join(missing)}: {', '.join(able)} have")
    if half and not entry.half:
        able = [name for name, other in FORMATS.items() if other.half]
        raise ValueError(f"{to} has no float16 weights: {', '.join(able)} have")
    if batch > 1 and not entry.batches:
        raise ValueError(f"{to} takes one picture at a time, not {batch}")
