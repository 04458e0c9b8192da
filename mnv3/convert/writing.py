"""Our weights back as a state dict that timm or torchvision load strictly and compute the same with.

Names are `layouts.LAYOUTS` read backwards: their own model, built without weights, says which keys and shapes there
have to be. Batch norms get the eps that their models have, and the variance that makes up for it.
"""

import os
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..arch import dilate, reduce_tail, scale, scale_torchvision
from ..errors import choices
from ..files.atomic import write_atomically
from ..files.layouts import LAYOUTS
from ..files.saving import plain_tensors
from ..layers import NORMS, check_own_weights, full_state_dict
from ..model import MobileNetV3
from .tensorflow import TABLES

TARGETS = ("timm", "torchvision")
LOAD_WITH = "load with"  # of a file's metadata


class Target(NamedTuple):
    """Their model: `timm.create_model(name, **options)` or `torchvision.models.<name>(**options)`."""

    to: str
    name: str
    options: dict[str, Any]

    def build(self, **kwargs: Any) -> nn.Module:
        """Their model with initial weights.

        Args:
            kwargs: For `timm.create_model`, `device` for instance.
        """
        if self.to == "timm":
            import timm

            return timm.create_model(self.name, **self.options, **kwargs)
        import torchvision

        with torch.device(kwargs.get("device", "cpu")):
            return getattr(torchvision.models, self.name)(**self.options)

    def __str__(self) -> str:
        call = ", ".join(f"{key}={value!r}" for key, value in self.options.items())
        if self.to == "timm":
            return f"timm.create_model({', '.join(filter(None, [repr(self.name), call]))})"
        return f"torchvision.models.{self.name}({call})"


def target(model: nn.Module, to: str) -> Target:
    """The model of timm or torchvision that computes what `model` computes.

    Raises:
        ValueError: `to` is neither, or they have no such model.
    """
    if to not in TARGETS:
        raise ValueError(f"to={to!r}. {choices(str(to), TARGETS)}")
    if not isinstance(model, MobileNetV3):
        raise ValueError(f"{to} cannot take this {type(model).__name__}: only a whole mnv3.MobileNetV3, before fuse()")
    if model.se_order != "act-se":
        raise ValueError(f"{to} has squeeze-and-excite in the paper's order alone; the model has {model.se_order!r}")
    theirs = next(_timm(model) if to == "timm" else _torchvision(model), None)
    if theirs is None:
        raise ValueError(f"{to} has no model like this {_describe(model)}")
    return theirs


def _describe(model: MobileNetV3) -> str:
    name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture", "MobileNetV3")
    padding = "TensorFlow's" if model.pad_type == "same" else "symmetric"
    return (
        f"{name}: {padding} padding, {len(model.arch.rows)} blocks, {model.arch.stem} channels of the stem to "
        f"{model.arch.head} of the head, total stride {model.stride}, {model.num_classes} classes, "
        f"{model.in_chans} input channels, pooling {model.global_pool.pool_type!r}"
    )


def _timm(model: MobileNetV3) -> Iterator[Target]:
    import timm

    changed = {"num_classes": (model.num_classes, 1000), "in_chans": (model.in_chans, 3)}
    changed["global_pool"] = (model.global_pool.pool_type, "avg")
    options = {key: value for key, (value, default) in changed.items() if value != default}
    padding = "tf_" if model.pad_type else ""
    for table, width in product(TABLES, (1.0, 0.75, 0.5)):
        name = f"{padding}mobilenetv3_{table}_{round(100 * width):03d}"
        if scale(TABLES[table], width) == model.arch and timm.is_model(name):
            yield Target("timm", name, options)


def _torchvision(model: MobileNetV3) -> Iterator[Target]:
    if model.pad_type or model.in_chans != 3 or not model.num_classes or model.global_pool.pool_type != "avg":
        return
    classes = {"num_classes": model.num_classes} if model.num_classes != 1000 else {}
    widths = [1.0, *(percent / 100 for percent in range(5, 401, 5))]
    for size, reduced, dilated, width in product(("small", "large"), (False, True), (False, True), widths):
        table = reduce_tail(TABLES[size]) if reduced else TABLES[size]
        if scale_torchvision(dilate(table) if dilated else table, width) == model.arch:
            options = {"width_mult": width} if width != 1 else {}
            options |= {"reduced_tail": True} if reduced else {}
            options |= {"dilated": True} if dilated else {}
            yield Target("torchvision", f"mobilenet_v3_{size}", options | classes)


def export_state_dict(model: nn.Module, to: str) -> dict[str, Tensor]:
    """The weights of a model for `target(model, to).build()`, which loads them strictly and gives the same outputs.

    Args:
        model: A MobileNetV3 of ours; it is not changed.
        to: 'timm' or 'torchvision'.

    Raises:
        ValueError: They have no such model, or it has a larger eps than some variance leaves room for.
    """
    check_own_weights(model)
    theirs = target(model, to).build(device="meta")
    wanted = theirs.state_dict()
    layout = next(layout for layout in LAYOUTS if layout.name == to)
    names = layout.rename(wanted)
    ours = full_state_dict(model)
    eps = {name: module.eps for name, module in model.named_modules() if isinstance(module, NORMS)}
    their_eps = next(module.eps for module in theirs.modules() if isinstance(module, nn.BatchNorm2d))
    exported, short = {}, 0
    for key, like in wanted.items():
        module, _, leaf = key.rpartition(".")
        value = ours.get(f"{names[module]}.{leaf}")
        if value is None or value.numel() != like.numel():
            raise ValueError(f"the model was changed since it was made: {names[module]} differs; export before fuse()")
        value = value.detach().cpu()
        if leaf == "running_var":
            shifted = value.double() + (eps[names[module]] - their_eps)
            # What came from there with a variance of 0 is back within a rounding of it.
            short += int((shifted < -1e-6 * their_eps).sum())
            value = shifted.clamp(min=0).to(value.dtype)
        exported[key] = value.reshape(like.shape).clone()
    if short:
        raise ValueError(
            f"{short} channels have a variance below {their_eps:g}, the eps of {to}'s batch norms, which leaves none "
            "for them: train with that eps (mnv3.set_bn_eps), or export to a runtime with mnv3 export"
        )
    return exported


def write(model: nn.Module, to: str, path: str | os.PathLike[str], *, exist_ok: bool = False) -> Target:
    """`export_state_dict` as a safetensors file, which appears whole or not at all; its metadata says what loads it.

    Args:
        model, to: As for `export_state_dict`.
        path: A name that ends in .safetensors.
        exist_ok: Replace a file that is there.

    Raises:
        ValueError: As for `export_state_dict`, or the name ends otherwise.
        FileExistsError: There is something at `path`.
    """
    from safetensors.torch import save

    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: weights for {to} are one file: give a name that ends in .safetensors")
    if path.exists() and not exist_ok:
        raise FileExistsError(f"{path} exists: choose another file, or replace it (exist_ok=True, --force)")
    if path.is_symlink() or (path.exists() and not _is_ours(path)):
        raise FileExistsError(f"{path} is not replaced: it is no file of weights that `mnv3 convert --to` wrote")
    theirs = target(model, to)
    tensors = plain_tensors(export_state_dict(model, to))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save(tensors, metadata={"format": "pt", LOAD_WITH: str(theirs)}))
    return theirs


def _is_ours(path: Path) -> bool:
    """Whether a file is one that `write` wrote."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return LOAD_WITH in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False
