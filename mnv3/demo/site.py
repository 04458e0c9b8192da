"""A folder that any web server can serve: a page, the network, and what runs it in the browser."""

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import PIL
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from torch import nn

from ..deploy import runtime as runtimes
from ..deploy.exporter import export
from ..files.atomic import new_folder
from ..text import drawable
from ..version import __version__
from . import runtime_files
from .runtime_files import PageFile, page_file

TEMPLATES = Path(__file__).parent / "templates"
PAGE, NETWORK, TEXTS = "index.html", "model.onnx", "texts.json"
COPIED = ("demo.css", "demo.js", "resize.js")
NAMES = frozenset({PAGE, NETWORK, *COPIED, *runtime_files.NAMES})  # of all files that such a folder may have
FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")  # of resize.js


def write(
    model: nn.Module | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    runtime: str | os.PathLike[str] | None = None,
    webgpu: bool = False,
    half: bool = False,
    exist_ok: bool = False,
) -> Path:
    """Write a page that classifies pictures in the browser, whole or not at all.

    Args:
        model: A model of this package, or an ONNX file of `mnv3 export` or `mnv3 quantize`.
        folder: Where to write index.html and what it loads.
        runtime: The dist folder of the npm package onnxruntime-web, whose files are copied: then the page asks no other
            server for anything. By default it loads them, by version and digest, from the CDN jsdelivr.
        webgpu: Offer to compute on the graphics processor, which takes another 27 MB of the runtime.
        half: Store the weights as float16, which halves the download; they are computed with in float32.
        exist_ok: Replace such a folder.

    Returns:
        The folder, absolute.

    Raises:
        ValueError: The model cannot be a page, or `runtime` is no such folder.
        FileExistsError: `folder` may not be replaced.
        ImportError: What writes ONNX files is missing; the message says how to get it.
        WeightsError: The ONNX file is not what mnv3 wrote.
        ExportError: The ONNX file gives other logits than the model.
    """
    folder = Path(folder).absolute()
    devices = ["wasm", "webgpu"] if webgpu else ["wasm"]
    dist = None if runtime is None else runtime_files.dist_folder(runtime, devices)
    _check_new(folder, exist_ok=exist_ok)
    with new_folder(folder, names=NAMES, needs=PAGE, exist_ok=True) as draft:
        metadata = _write_network(model, draft / NETWORK, half=half)
        if dist:
            files = runtime_files.copy(dist, draft, devices)
        else:
            files = {device: runtime_files.PUBLISHED[device] for device in devices}
        for name in COPIED:
            (draft / name).write_bytes((TEMPLATES / name).read_bytes())
        network = page_file(NETWORK, (draft / NETWORK).read_bytes())
        version = runtime_files.version_of(dist) if dist else runtime_files.VERSION
        page = render(metadata, network, files, runtime_version=version)
        (draft / PAGE).write_text(page, encoding="utf-8")
    return folder


def _check_new(folder: Path, *, exist_ok: bool) -> None:
    """Raise FileExistsError where there is something that is no page of mnv3's, or that shall stay."""
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise FileExistsError(f"{folder} is a file or link: choose another folder")
    files = list(folder.iterdir())
    if others := sorted(file.name for file in files if file.name not in NAMES or file.is_symlink()):
        raise FileExistsError(f"{folder} is no page of mnv3 and is not replaced: it has {', '.join(others[:5])}")
    if files and not (folder / PAGE).is_file():
        raise FileExistsError(f"{folder} is no page of mnv3 and is not replaced: it has no {PAGE}")
    if files and not exist_ok:
        raise FileExistsError(f"{folder} exists: choose another folder, or replace it (exist_ok=True, --force)")


def _write_network(model: nn.Module | str | os.PathLike[str], file: Path, *, half: bool) -> dict[str, Any]:
    """Write the ONNX file; returns what it says of itself."""
    if isinstance(model, nn.Module):
        if isinstance(model, runtimes.Exported):
            raise ValueError(
                f"a page runs ONNX files, and this one is {model.metadata['format']}: give the weights, or "
                "what `mnv3 export --to onnx` writes of them"
            )
        _check_channels(model.in_chans)
        export(model, file, to="onnx", normalize=True, softmax=True, half=half)
        return runtimes.load(file).metadata
    source = Path(model)
    if source.suffix.lower() != ".onnx":
        raise ValueError(f"{source}: expected a model, or an ONNX file of `mnv3 export`")
    if half:
        raise ValueError(f"{source} is written already: --half is for weights")
    metadata = runtimes.load(source).metadata
    _check_channels(metadata["input_size"][0])
    file.write_bytes(source.read_bytes())
    return metadata


def _check_channels(channels: int) -> None:
    if channels not in (1, 3):
        raise ValueError(f"the model takes pictures of {channels} channels: a page gives it RGB or grey")


def render(
    metadata: dict[str, Any],
    network: PageFile,
    runtime: dict[str, dict[str, PageFile]],
    *,
    runtime_version: str | None = None,
) -> str:
    """The page.

    Args:
        metadata: What the ONNX file says of itself.
        network: That file.
        runtime: What runs it, by device and part.
        runtime_version: Of ONNX Runtime Web, to be shown.

    Raises:
        ValueError: The page cannot resize as the weights need it.
    """
    size = metadata["input_size"][-1]
    texts = json.loads((TEMPLATES / TEXTS).read_text(encoding="utf-8"))
    name = ".".join(str(metadata[key]) for key in ("architecture", "tag") if metadata.get(key)) or "mnv3"
    facts = [
        f"{size} × {size} px",
        *([str(metadata["license"])] if metadata.get("license") else []),
        f"mnv3 {__version__}",
        f"ONNX Runtime Web {runtime_version or ''}".strip(),
    ]
    labels = metadata["label_names"]
    model = {
        "classes": metadata["num_classes"],
        "labels": labels and [drawable(label) for label in labels],
        "input": preprocessing(metadata),
        "softmax": not metadata["softmax"],
        "network": dataclasses.asdict(network),
        "runtime": {
            device: {part: dataclasses.asdict(file) for part, file in files.items()}
            for device, files in runtime.items()
        },
    }
    remote = any("://" in file.url for files in runtime.values() for file in files.values())
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(PAGE).render(
        name=drawable(name),
        facts=[drawable(fact) for fact in facts],
        model=model,
        texts=texts["en"],
        all_texts=texts,
        sources=f"'self' {runtime_files.CDN}" if remote else "'self'",
    )


def preprocessing(metadata: dict[str, Any]) -> dict[str, Any]:
    """What resize.js and demo.js have to do to a picture, as `mnv3.transforms` does it in Python.

    Args:
        metadata: What the ONNX file says of itself.

    Returns:
        Under `scaled` the side, in pixels, that the picture is brought to before its middle is cut out.

    Raises:
        ValueError: The interpolation is none of Pillow's, or pictures are not square.
    """
    channels, size, width = metadata["input_size"]
    if metadata["interpolation"] not in FILTERS:
        raise ValueError(f"the weights say interpolation={metadata['interpolation']!r}: one of {', '.join(FILTERS)}")
    if size != width:
        raise ValueError(f"the network takes pictures of {width} x {size} pixels: a page needs square ones")
    mean, std = metadata["mean"], metadata["std"]
    border = metadata["crop_mode"] == "border"
    return {
        "size": size,
        "channels": channels,
        "batch": 1 if "batch" in metadata["dynamic"] else metadata["batch"],
        "scaled": math.floor(size / metadata["crop_pct"]),
        "mode": metadata["crop_mode"],
        "interpolation": metadata["interpolation"],
        "fill": [round(255 * value) for value in mean] if border else [0] * channels,
        "columns_first": int(PIL.__version__.partition(".")[0]) >= 13,  # see resize.js
        "normalize": None if metadata["normalize"] else {"mean": mean, "std": std},
    }
