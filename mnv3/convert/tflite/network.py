"""TFLite files of MobileNetV3, float or quantised, as models of ours: the same function to rounding.

The graph is read from the logits back to the picture, by what it computes (tflite_layers.py), into the rows of the
table and the weights of its layers. Weights of 8 bits become the real numbers that they stand for. TFLite has folded
batch norm into weights and biases: ours becomes (mean 0, variance 1 - eps, weight 1) with the bias.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...arch import Arch, Bneck
from ...catalog import HALF
from ...errors import WeightsError
from ...layers import BN_EPS
from ..foreign import Foreign, named
from .file import TYPES, Graph, Tensor, read_graph
from .operators import recognise
from .values import GRID, UNARY, Layer, Node, Value, same

CURVES = {"RE": UNARY["RELU"](GRID), "HS": UNARY["HARD_SWISH"](GRID)}
CLOSE = 0.01  # of a curve; constants of 8 bits are that exact, and the functions differ by more


@dataclass
class Found:
    """A MobileNetV3 in a graph."""

    table: Arch
    pad_type: str
    se_order: str
    layers: dict[str, Layer]  # by our names: 'stem', 'blocks.0.expand', 'blocks.0.se.squeeze', 'head' ...
    input: Node
    softmax: bool
    graph: Graph


def read(path: str | os.PathLike) -> Foreign:
    """The model in a TFLite file: a float32, float16 or quantised (uint8, int8) classifier of one picture.

    Raises:
        WeightsError: The file is damaged or not a MobileNetV3; the message says where the graph departs from one.
        ImportError: The schema package is missing.
    """
    path = Path(path)
    return foreign_of(path, find(path))


def foreign_of(path: Path, found: Found) -> Foreign:
    """What was found in a file, as `reading.read` returns it."""
    arch, options = named(found.table, found.pad_type)
    options |= {"num_classes": len(found.layers["classifier"].bias), "in_chans": found.layers["stem"].weight.shape[1]}
    if found.se_order != "act-se":
        options["se_order"] = found.se_order
    return Foreign(arch, options, state_dict(found), _config(path, found), _note(found))


def find(path: Path) -> Found:
    """The MobileNetV3 in a TFLite file; errors as for `read`."""
    graph = read_graph(path)
    try:
        return _Parser(graph).found()
    except WeightsError as error:
        raise WeightsError(f"{path}: not a MobileNetV3 that mnv3 can read: {error}") from None


@dataclass
class _Block:
    row: Bneck
    parts: dict[str, Layer]  # by name within the block
    input: Value
    se_order: str | None = None


class _Parser:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.output, self.softmax = recognise(graph)

    def found(self) -> Found:
        classifier, value = self._conv(self.output, "the classifier", act=False)
        head, value = self._conv(value, "the head, before the classifier")
        if value.node.kind != "pool" or not _is(value, GRID):
            raise WeightsError(f"the head's input is a {_kind(value)}, not the pooled map")
        last, value = self._conv(value.node.sources[0], "the last convolution, before the pool")
        tail = {"last": last[0], "head": head[0], "classifier": classifier[0]}
        blocks: list[_Block] = []
        while not _is_stem(value):
            blocks.append(self._block(value))
            value = blocks[-1].input
        stem, value = self._conv(value, "the stem", kernel=3)
        if not _is(value, GRID):
            raise WeightsError("the picture goes through a function before the stem")
        blocks.reverse()
        acts = {stem[1], last[1], head[1]}
        if len(acts) > 1:
            raise WeightsError("the stem, the last convolution and the head have two activations")
        layers = {"stem": stem[0]}
        for i, block in enumerate(blocks):
            layers |= {f"blocks.{i}.{name}": layer for name, layer in block.parts.items()}
        layers |= tail
        widths = {"stem": len(stem[0].bias), "last": len(last[0].bias), "head": len(head[0].bias)}
        try:
            rows = tuple(block.row for block in blocks)
            table = Arch(**widths, rows=rows, stem_stride=stem[0].stride, act=stem[1])
        except ValueError as error:
            raise WeightsError(str(error)) from None
        orders = {block.se_order for block in blocks} - {None} or {"act-se"}
        if len(orders) > 1:
            raise WeightsError("squeeze-and-excite stands before the activation in some blocks and after it in others")
        return Found(table, _pad_type(layers), orders.pop(), layers, value.node, self.softmax, self.graph)

    def _conv(
        self, value: Value, what: str, *, kernel: int | None = 1, act: bool = True, depthwise: bool = False
    ) -> tuple[tuple[Layer, str | None], Value]:
        """A convolution with its activation ('RE', 'HS', or None where there must be none), and what it reads."""
        layer = value.node
        if not isinstance(layer, Layer):
            raise WeightsError(f"{what} is a {_kind(value)}, not a convolution")
        size = layer.weight.shape[2]
        if (kernel and size != kernel) or (layer.groups > 1) != depthwise:
            kind = "depthwise" if layer.groups > 1 else "full"
            raise WeightsError(f"{what} is a {kind} convolution of {size}x{size} over {layer.weight.shape[1]} channels")
        if layer.groups > 1 and not layer.groups == len(layer.bias):
            raise WeightsError(f"{what} has {layer.groups} groups for {len(layer.bias)} channels")
        steps = (layer.stride, layer.dilation)
        if (
            1 not in steps
            or (steps != (1, 1) and not depthwise and kernel == 1)
            or (kernel == 3 and layer.dilation > 1)
        ):
            raise WeightsError(f"{what} has stride {layer.stride} and dilation {layer.dilation}")
        return (layer, _activation(value, what, act)), layer.sources[0]

    def _block(self, value: Value) -> _Block:
        if value.node.kind != "sum":
            block = self._branch(value)
            if block.row.stride == 1 and block.input.node.dims[-1] == block.row.out:
                raise WeightsError(f"a block of {block.row.out} channels has no shortcut")
            return block
        if not _is(value, GRID):
            raise WeightsError("there is an activation after a shortcut's sum")
        for branch, shortcut in (value.node.sources, value.node.sources[::-1]):
            if isinstance(branch.node, Layer) and branch.node.groups == 1 and _is(branch, GRID):
                block = self._branch(branch)
                if same(block.input, shortcut) and block.row.stride == 1:
                    return block
        raise WeightsError("a sum is not that of a block's output and its input")

    def _branch(self, value: Value) -> _Block:
        """expand, depthwise, squeeze-and-excite, project."""
        (project, _), value = self._conv(value, "a block's projection", act=False)
        parts, se_order, act, height = {}, None, None, 1.0
        if value.node.kind == "gate":
            gated, gate = value.node.sources
            height = _slope(value)
            se_order = "act-se" if height else "se-act"
            act = None if height else _activation(value, "a block's depthwise part", True)
            parts = self._squeeze_excite(gated, gate, height or 1.0)
            value = gated
        before = f"the input of a projection to {len(project.bias)} channels"
        (depthwise, inner), value = self._conv(value, before, kernel=None, act=act is None, depthwise=True)
        act = act or inner
        expand = value.node
        if isinstance(expand, Layer) and expand.weight.shape[2] == 1 and expand.groups == 1 and not _is_linear(value):
            (expand, first), value = self._conv(value, "an expansion")
            if first != act:
                raise WeightsError(f"a block of {len(depthwise.bias)} channels has two activations, {first} and {act}")
            if len(expand.bias) == expand.weight.shape[1]:
                raise WeightsError(f"a block expands {len(expand.bias)} channels to as many: ours have no such layer")
            parts = {"expand": expand} | parts
        parts |= {"depthwise": depthwise, "project": project}
        exp, kernel = len(depthwise.bias), depthwise.weight.shape[2]
        try:
            row = Bneck(kernel, exp, len(project.bias), se_order is not None, act, depthwise.stride, depthwise.dilation)
        except ValueError as error:
            raise WeightsError(str(error)) from None
        if se_order and len(parts["se.squeeze"].bias) != row.squeeze:
            raise WeightsError(
                f"squeeze-and-excite of {exp} channels has {len(parts['se.squeeze'].bias)} in the middle, ours a "
                f"quarter rounded to a multiple of 8, {row.squeeze}, as the paper's authors do"
            )
        return _Block(row, parts, value, se_order)

    def _squeeze_excite(self, gated: Value, gate: Value, height: float) -> dict[str, Layer]:
        gain, shift = _hard_sigmoid(gate, height)
        (excite, _), value = self._conv(gate, "the gate of a squeeze-and-excite", act=None)
        if (gain, shift) != (1.0, 0.0):
            excite = excite.then(gain, shift)
        (squeeze, act), value = self._conv(value, "the squeeze of a squeeze-and-excite")
        if act != "RE":
            raise WeightsError(f"a squeeze-and-excite has {act} in the middle, not ReLU")
        if value.node.kind != "pool" or not _is(value, GRID) or not same(value.node.sources[0], gated):
            raise WeightsError("a squeeze-and-excite does not read the map that it scales")
        return {"se.squeeze": squeeze, "se.excite": excite}


def _is(value: Value, curve: np.ndarray) -> bool:
    return bool(np.abs(value.curve - curve).max() < CLOSE)


def _is_linear(value: Value) -> bool:
    return _is(value, GRID) and value.implied is None


def _is_stem(value: Value) -> bool:
    return isinstance(value.node, Layer) and value.node.sources[0].node.kind == "input"


def _kind(value: Value) -> str:
    return {"gate": "product of a map and a vector", "pool": "pooled map", "input": "picture"}.get(
        value.node.kind, value.node.kind
    )


def _activation(value: Value, what: str, wanted: bool | None) -> str | None:
    """'RE' or 'HS' where one is `wanted`, None where none is; of any kind where `wanted` is None."""
    if wanted is None or (not wanted and _is(value, GRID)):
        return None
    if wanted and _is(value, GRID) and value.implied:
        return "RE"
    act = next((name for name, curve in CURVES.items() if _is(value, curve)), None)
    if wanted and act:
        return act
    given = act or ("no activation" if _is(value, GRID) else "another function")
    expected = "ReLU or h-swish" if wanted else "no activation"
    raise WeightsError(f"{what} has {given}; expected {expected}")


def _slope(value: Value) -> float | None:
    """The factor of a value that is a multiple of its node's output."""
    slope = float(value.curve[-1] / GRID[-1])
    return slope if slope > 0 and np.allclose(value.curve, slope * GRID) else None


def _hard_sigmoid(value: Value, height: float) -> tuple[float, float]:
    """Gain and shift with which height * curve(x) is hard_sigmoid(gain * x + shift), 1 and 0 where it is itself."""
    for curve in (height * value.curve, height * value.clamped):
        inside = (curve > 0.02) & (curve < 0.98)
        if inside.sum() < 2:
            continue
        slope, level = np.polyfit(GRID[inside], curve[inside], 1)
        if np.abs(np.clip(slope * GRID + level, 0, 1) - curve).max() < CLOSE:
            gain, shift = 6 * slope, 6 * level - 3
            gain = 1.0 if abs(gain - 1) < 1e-3 else gain
            nearest = round(shift)
            return float(gain), float(nearest if abs(shift - nearest) < 3e-3 else shift)
    raise WeightsError("the gate of a squeeze-and-excite is no hard sigmoid")


def _pad_type(layers: dict[str, Layer]) -> str:
    """'same' or '', by the layers of stride 2; at stride 1 both are the same."""
    fitting = {"same", ""}
    for name, layer in layers.items():
        if len(layer.dims) == 1:
            continue
        half = layer.weight.shape[2] // 2 * layer.dilation
        even = (half, half)
        if layer.pads is None:
            fitting -= {""} if layer.stride > 1 else set()
            continue
        source = layer.sources[0]
        sides = [source.node.dims[axis] for axis in source.axes][1:3]
        found = (layer.pads[:2], layer.pads[2:])
        ours = {
            "": (even, even),
            "same": tuple((half - 1 + side % 2, half) if layer.stride > 1 and half else even for side in sides),
        }
        fitting = {kind for kind in fitting if ours[kind] == found}
        if not fitting:
            raise WeightsError(f"{name} pads by {layer.pads}: neither TensorFlow's padding nor the symmetric one")
    if not fitting:
        raise WeightsError("some layers have TensorFlow's padding and others the symmetric one")
    return "" if "" in fitting else "same"


def state_dict(found: Found) -> dict[str, torch.Tensor]:
    """The weights under our keys."""
    tensors = {}
    for name, layer in found.layers.items():
        weight, bias = (torch.tensor(values).float() for values in layer.folded())
        if not (weight.isfinite().all() and bias.isfinite().all()):
            raise WeightsError(f"{name} has weights that float32 does not hold: damaged scales?")
        if name == "classifier":
            weight = weight.flatten(1)
        if name in ("classifier", "head") or ".se." in name:
            tensors |= {f"{name}.weight": weight, f"{name}.bias": bias}
            continue
        tensors |= {
            f"{name}.conv.weight": weight,
            f"{name}.norm.weight": torch.ones_like(bias),
            f"{name}.norm.bias": bias,
            f"{name}.norm.running_mean": torch.zeros_like(bias),
            f"{name}.norm.running_var": torch.full_like(bias, 1 - BN_EPS),
            f"{name}.norm.num_batches_tracked": torch.zeros((), dtype=torch.long),
        }
    return tensors


def _config(path: Path, found: Found) -> dict[str, Any]:
    """Preprocessing: of what mnv3 wrote beside the file, else of what the graph does with bytes, else TensorFlow's."""
    stem = found.layers["stem"]
    channels, source = stem.weight.shape[1], stem.sources[0]
    height, width = (found.input.dims[axis] for axis in source.axes[1:3])
    side = max(height, width)
    config = {"input_size": (channels, height, width), "pool_size": (-(-side // found.table.stride),) * 2}
    config |= {"mean": HALF[:1] * channels, "std": HALF[:1] * channels, "interpolation": "bilinear", "crop_pct": 0.875}
    scaling = _scaling(found.graph.tensors[found.graph.input], found.input, channels)
    if scaling is not None:  # gain * byte + shift = (byte / 255 - mean) / std
        gain, shift = scaling
        if not (np.all(gain > 1e-5) and np.all(gain < 10) and np.all(np.abs(shift) < 1e3)):
            raise WeightsError(f"{path}: it makes {gain} * byte + {shift} of pictures: damaged?")
        config |= {"std": tuple((1 / (255 * gain)).tolist()), "mean": tuple((-shift / (255 * gain)).tolist())}
    return config | _beside(path)


def _scaling(entry: Tensor, input: Node, channels: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Gain and shift (channels,) from a byte of a picture to what the stem reads, where the file says them."""
    if not {np.size(v) for v in input.affine} <= {1, channels}:
        raise WeightsError(f"pictures of {channels} channels are normalised with {input.affine[0]}")
    gain, shift = (np.broadcast_to(np.asarray(v, float), channels) for v in input.affine)
    if entry.type in ("UINT8", "INT8"):
        scale = 1.0 if entry.scale is None else entry.scale[0]
        zero = 0.0 if entry.zero_point is None else entry.zero_point[0]
        low = -128 if entry.type == "INT8" else 0  # what a byte of 0 is given as
        return gain * scale, gain * (low - zero) * scale + shift
    if np.all(gain == 1) and np.all(shift == 0):
        return None
    return (gain / 255 if np.all(gain > 0.1) else gain), shift  # of numbers up to 1, or up to 255


def _beside(path: Path) -> dict[str, Any]:
    from ...deploy.seal import read

    try:
        said = json.loads(read(path).text)
        keys = ("mean", "std", "interpolation", "crop_pct", "crop_mode", "label_names")
        return {key: tuple(v) if key in ("mean", "std") else v for key in keys if (v := said.get(key)) is not None}
    except (OSError, WeightsError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _note(found: Found) -> str:
    kinds = {}
    for layer in found.layers.values():
        stored = layer.stored
        per = "" if stored.scale is None or stored.type not in TYPES or not stored.quantised else " per tensor"
        kinds[stored.type.lower() + (" per channel" if per and stored.scale.size > 1 else per)] = None
    classes = len(found.layers["classifier"].bias)
    return f"TFLite, {' and '.join(kinds)}, {classes} classes" + (", without its softmax" if found.softmax else "")
