"""TensorFlow's variables of MobileNetV3, by Slim's and both Keras' names, as one of our models.

Their axes are HWIO, and (H, W, C, 1) in depthwise convolutions; their batch norms have an eps of 1e-3; strided
convolutions pad as 'SAME' does; pixels go in from -1 to 1. Which model it is follows from the shapes: the kernels and
squeeze-and-excites of the blocks say which table, the channels how wide.
Sources of the names: https://github.com/tensorflow/models/tree/master/research/slim/nets/mobilenet and
https://github.com/keras-team/keras/blob/master/keras/src/applications/mobilenet_v3.py
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..arch import LARGE, SMALL, Arch, minimal, round8
from ..errors import WeightsError
from ..files.conversion import convert_state_dict
from ..files.layouts import BN_EPS_TF
from ..model import MobileNetV3
from .foreign import Foreign, named

TABLES = {"small": SMALL, "large": LARGE, "small_minimal": minimal(SMALL), "large_minimal": minimal(LARGE)}
MODULES = {
    "conv": "stem.conv",
    "conv_bn": "stem.norm",
    "conv_1": "last.conv",
    "conv_1_bn": "last.norm",
    "conv_2": "head",
    "logits": "classifier",
    "logits_conv2d_1c_1x1": "classifier",  # Slim's
}
BLOCK = re.compile(r"expanded_conv(?:_(\d{1,3}))?_(expand|depthwise|project|squeeze_excite_conv(?:_1)?)(_bn)?")
SQUEEZE_EXCITE = {"squeeze_excite_conv": "se.squeeze", "squeeze_excite_conv_1": "se.excite"}
LEAVES = {
    **dict.fromkeys(("weights", "depthwise_weights", "kernel", "depthwise_kernel", "gamma"), "weight"),
    **dict.fromkeys(("biases", "bias", "beta"), "bias"),
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def our_key(name: str) -> str | None:
    """Our key of a variable, or None if MobileNetV3 has no such.

    Args:
        name: Its layer and its own name, as in 'expanded_conv_1/expand/BatchNorm/gamma' (Slim, Keras 2) or
            'expanded_conv_1_expand_bn/gamma' (Keras 3).
    """
    layer, _, leaf = name.rpartition("/")
    layer = layer.lower().replace("/", "_").replace("batchnorm", "bn")
    module = MODULES.get(layer)
    if match := BLOCK.fullmatch(layer):
        index, part, norm = match.groups()
        part = SQUEEZE_EXCITE.get(part) or f"{part}.{'norm' if norm else 'conv'}"
        module = f"blocks.{int(index or 0)}.{part}"
    return f"{module}.{LEAVES[leaf]}" if module and leaf in LEAVES else None


def foreign(arrays: Mapping[str, np.ndarray], *, source: str, bn_eps: float = BN_EPS_TF, **config: Any) -> Foreign:
    """A model of ours with TensorFlow's arrays.

    Args:
        arrays: Our keys; TensorFlow's axes.
        source: What they are, as the beginning of the note.
        bn_eps: Eps of all batch norms.
        config: Entries of pretrained_cfg beside mean and std.

    Raises:
        WeightsError: They are not those of a MobileNetV3.
    """
    tensors = {key: _our_axes(key, array) for key, array in arrays.items()}
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise WeightsError(f"{key} has values that are not finite numbers")
    arch = recognise({key: tuple(tensor.shape) for key, tensor in tensors.items()})
    name, options = named(arch, "same")
    notes = [f"{source}{' of another width' if options else ''}"]
    classes, in_chans = len(tensors.get("classifier.weight", ())), tensors["stem.conv.weight"].shape[1]
    notes.append(f"{classes} classes" if classes else "no classifier")
    options |= {"num_classes": classes}
    if "head.weight" not in tensors:
        tensors |= _new_head(arch)
        notes.append("no head, as include_top=False leaves it: a new, untrained one is in its place")
    if in_chans != 3:
        options["in_chans"] = in_chans
        config.setdefault("input_size", (in_chans, 224, 224))
    model = MobileNetV3(arch, num_classes=classes, in_chans=in_chans, pad_type="same", device="meta")
    return Foreign(
        arch=name,
        options=options,
        state_dict=convert_state_dict(tensors, model, bn_eps=bn_eps),
        config={"mean": (0.5,) * in_chans, "std": (0.5,) * in_chans} | config,
        note=", ".join(notes),
    )


def _our_axes(key: str, array: np.ndarray) -> Tensor:
    """Float32, or float64 if it was, with the axes that PyTorch has."""
    wanted = 4 if key.endswith("weight") and ".norm." not in key else 1
    if array.ndim != wanted or 0 in array.shape:
        raise WeightsError(f"{key}: expected {wanted} axes of at least 1, found {array.shape}")
    tensor = torch.from_numpy(array.astype(np.float64 if array.dtype.itemsize == 8 else np.float32))
    if key == "classifier.weight":
        return tensor.permute(3, 2, 0, 1).flatten(1).contiguous()
    if wanted == 4:
        tensor = tensor.permute((2, 3, 0, 1) if ".depthwise." in key else (3, 2, 0, 1))
    return tensor.contiguous()


def recognise(shapes: Mapping[str, tuple[int, ...]]) -> Arch:
    """The one of `TABLES` whose blocks these are, with the channels that the shapes have.

    Args:
        shapes: Our keys and shapes; head and classifier may be missing.

    Raises:
        WeightsError: Blocks, kernels, squeeze-and-excites or expansions are those of no MobileNetV3.
    """
    blocks = []
    while (depthwise := shapes.get(f"blocks.{len(blocks)}.depthwise.conv.weight")) is not None:
        blocks.append((depthwise[-1], f"blocks.{len(blocks)}.se.squeeze.weight" in shapes))
    table = next((t for t in TABLES.values() if [(row.kernel, row.se) for row in t.rows] == blocks), None)
    if table is None:
        kernels = " ".join(f"{kernel}{'+SE' if se else ''}" for kernel, se in blocks[:20])
        raise WeightsError(
            f"not a MobileNetV3: {len(blocks)} blocks (kernels {kernels or 'none'}); MobileNetV3 has 11 (Small) or 15 "
            "(Large), with the kernels and squeeze-and-excites of its tables or, minimalistic, 3x3 without"
        )
    stem, last, head = (_channels(shapes, f"{module}.weight") for module in ("stem.conv", "last.conv", "head"))
    rows, cin = [], stem
    for i, (row, row_in) in enumerate(zip(table.rows, table.inputs, strict=True)):
        exp = shapes[f"blocks.{i}.depthwise.conv.weight"][0]
        expected = round8(cin * row.exp / row_in)
        if exp != expected:
            raise WeightsError(f"block {i} expands {cin} channels to {exp}; MobileNetV3, to {expected}")
        rows.append(replace(row, exp=exp, out=_channels(shapes, f"blocks.{i}.project.conv.weight")))
        cin = rows[-1].out
    if not head:
        head = table.head if last <= table.last else round8(table.head * last / table.last)
    return replace(table, stem=stem, rows=tuple(rows), last=last, head=head)


def _channels(shapes: Mapping[str, tuple[int, ...]], key: str) -> int:
    """Output channels; 0 for a missing head."""
    if key not in shapes and key != "head.weight":
        raise WeightsError(f"not a whole MobileNetV3: {key} is missing")
    return shapes.get(key, (0,))[0]


def _new_head(arch: Arch) -> dict[str, Tensor]:
    """The head as `MobileNetV3` initialises it, the same in every run."""
    weight = torch.empty(arch.head, arch.last, 1, 1)
    torch.nn.init.normal_(weight, std=math.sqrt(2 / arch.head), generator=torch.Generator().manual_seed(0))
    return {"head.weight": weight, "head.bias": torch.zeros(arch.head)}
