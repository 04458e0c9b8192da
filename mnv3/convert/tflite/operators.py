"""A TFLite graph followed operator by operator, as the feature maps of features.py.

There is a method for each of the few operators that a MobileNetV3 consists of, in all the ways that converters use it.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ...errors import WeightsError
from .features import BINARY, FUSED_ACTIVATIONS, NHWC, UNARY, FeatureMap, Function, Layer, Node
from .file import Graph, Operator, Tensor

LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
ARITHMETIC = ("ADD", "SUB", "MUL", "DIV")  # may have a fused activation
MAX_SIDE = 4096  # pixels of a picture
MAX_PAD = 64


def trace(graph: Graph) -> tuple[FeatureMap, bool]:
    """Follow a graph from its input to its output.

    Returns:
        The output, before the softmax if there is one; and whether there is one.

    Raises:
        WeightsError: There is an operator, or a use of one, that no MobileNetV3 needs.
    """
    with np.errstate(all="ignore"):  # a curve may go anywhere: then it is none of ours
        return _Tracer(graph).run()


class _Tracer:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        entry = graph.tensors[graph.input]
        if len(entry.shape) != 4 or min(entry.shape) < 1 or max(entry.shape) > MAX_SIDE or entry.stored is not None:
            raise WeightsError(f"the input is {entry.shape}, no batch of pictures of up to {MAX_SIDE} pixels a side")
        self.maps = {graph.input: FeatureMap(Node("input", [], entry.shape))}
        self.constants: dict[int, tuple[np.ndarray, Tensor]] = {}  # computed ones, with what they were stored as
        self.has_softmax = False
        # how many more weights layers may have: one for a byte of the file, as each is for one layer
        self.weights_left = sum(t.stored.nbytes for t in graph.tensors.values() if t.stored is not None)

    def run(self) -> tuple[FeatureMap, bool]:
        for op in self.graph.operators:
            index = op.outputs[0]
            if all(i == -1 or self._is_constant(i) for i in op.inputs):
                self.constants[index] = self._computed_constant(op)
            else:
                self.maps[index] = self._with_implied_activation(self._computed_map(op), op)
        if self.graph.output not in self.maps:
            raise WeightsError("the output does not depend on the input")
        return self.maps[self.graph.output], self.has_softmax

    def _computed_map(self, op: Operator) -> FeatureMap:
        if op.kind in UNARY:
            return self._map(op, 0).apply(UNARY[op.kind])
        if op.kind in BINARY:
            result = self._binary(op)
            fused = op.options.get("FusedActivationFunction") if op.kind in ARITHMETIC else None
            return result.apply(self._fused_activation(op, fused)) if fused else result
        visit = getattr(self, f"_visit_{op.kind.lower()}", None)
        if visit is None:
            raise WeightsError(f"{op} is nothing that a MobileNetV3 consists of")
        return visit(op)

    def _with_implied_activation(self, result: FeatureMap, op: Operator) -> FeatureMap:
        """TOCO leaves out an activation where the range of a quantised output does the same."""
        limits = self.graph.tensors[op.outputs[0]].range
        if limits is None or limits[0] != 0 or op.kind not in (*BINARY, *LAYERS):
            return result
        if op.kind in LAYERS:
            return replace(result, implied_relu=True)
        top = next((top for top in (1, 6) if abs(limits[1] / top - 1) < 0.01), np.inf)
        return replace(result, clamped=np.clip(result.clamped, 0, top))

    # --- what operators read

    def _map(self, op: Operator, slot: int) -> FeatureMap:
        """The feature map that is an operator's input number `slot`."""
        index = op.inputs[slot] if slot < len(op.inputs) else -1
        if index not in self.maps:
            raise WeightsError(f"{op} reads tensor {index}, which nothing has written yet")
        if self.has_softmax and op.kind not in ("DEQUANTIZE", "QUANTIZE", "RESHAPE", "SQUEEZE", "CAST"):
            raise WeightsError(f"{op} comes after a softmax: no classifier that mnv3 knows")
        if self.maps[index].pads and op.kind not in ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE"):
            raise WeightsError(f"{op} reads a padded map; only convolutions do in a MobileNetV3")
        return self.maps[index]

    def _is_constant(self, index: int) -> bool:
        return index in self.constants or (index >= 0 and self.graph.tensors[index].stored is not None)

    def _constant(self, op: Operator, slot: int, *, plain: bool = False) -> np.ndarray:
        """The real values of an operator's constant input; with `plain` the numbers as they are stored."""
        index = op.inputs[slot] if slot < len(op.inputs) else -1
        if index in self.constants:
            return self.constants[index][0]
        if index < 0 or index in self.maps:
            raise WeightsError(f"{op}: its input {slot} should be a constant")
        return self._stored(index).values(plain=plain)

    def _integers(self, op: Operator, slot: int) -> list[int]:
        """The axes, or their order, that are an operator's constant input."""
        return self._constant(op, slot, plain=True).reshape(-1).astype(int).tolist()

    def _stored(self, index: int) -> Tensor:
        """A constant as the file has it, before operators such as DEQUANTIZE."""
        if index in self.constants:
            return self.constants[index][1]
        tensor = self.graph.tensors[index]
        if tensor.sparse:
            raise WeightsError(f"tensor {tensor.name!r} is sparse; mnv3 reads dense ones")
        return tensor

    def _computed_constant(self, op: Operator) -> tuple[np.ndarray, Tensor]:
        if not op.inputs or op.kind not in ("DEQUANTIZE", "QUANTIZE", "RESHAPE", "TRANSPOSE", "CAST"):
            raise WeightsError(f"{op} computes with constants alone: mnv3 knows no MobileNetV3 with it")
        values, stored = self._constant(op, 0), self._stored(op.inputs[0])
        try:
            if op.kind == "RESHAPE":
                values = values.reshape(self.graph.tensors[op.outputs[0]].shape)
            elif op.kind == "TRANSPOSE":
                values = values.transpose(self._integers(op, 1))
        except ValueError as error:
            raise WeightsError(f"{op}: {error}") from None
        return values, stored

    def _fused_activation(self, op: Operator, number: int) -> Function:
        if number not in FUSED_ACTIVATIONS:
            raise WeightsError(f"{op} has activation {number} of the schema: not MobileNetV3's")
        return FUSED_ACTIVATIONS[number]

    # --- layers

    def _visit_conv_2d(self, op: Operator) -> FeatureMap:
        weight = self._constant(op, 1)
        if weight.ndim != 4:
            raise WeightsError(f"{op} has weights of {weight.shape}")
        return self._layer(op, weight.transpose(0, 3, 1, 2))

    def _visit_depthwise_conv_2d(self, op: Operator) -> FeatureMap:
        weight = self._constant(op, 1)
        if weight.ndim != 4 or weight.shape[0] != 1:
            raise WeightsError(f"{op} has weights of {weight.shape}")
        return self._layer(op, weight.transpose(3, 0, 1, 2), groups=weight.shape[3])

    def _visit_fully_connected(self, op: Operator) -> FeatureMap:
        weight = self._constant(op, 1)
        if weight.ndim != 2 or not self._map(op, 0).is_vector:
            raise WeightsError(f"{op} has weights of {weight.shape}, and is not on a pooled map")
        return self._layer(op, weight[:, :, None, None])

    def _layer(self, op: Operator, weight: np.ndarray, groups: int = 1) -> FeatureMap:
        """A layer with its fused activation; weight (O, I / groups, k, k)."""
        source, out = self._map(op, 0), len(weight)
        has_bias = len(op.inputs) > 2 and op.inputs[2] != -1
        bias = self._constant(op, 2).reshape(-1) if has_bias else np.zeros(out)
        stride = self._equal(op, op.options.get("StrideH", 1), op.options.get("StrideW", 1))
        dilation = self._equal(op, op.options.get("DilationHFactor", 1), op.options.get("DilationWFactor", 1))
        kernel = self._equal(op, *weight.shape[2:])
        if len(bias) != out or kernel % 2 == 0 or stride < 1 or dilation < 1:
            raise WeightsError(f"{op} has {len(bias)} biases, kernel {kernel}, stride {stride}: not MobileNetV3's")
        if source.is_vector:
            if (source.node.dims[0], kernel, stride, groups) != (weight.shape[1], 1, 1, 1):
                raise WeightsError(f"{op} on a vector of {source.node.dims[0]} has weights of {weight.shape}")
            dims, pads = (out,), (0, 0, 0, 0)
        else:
            if source.node.kind != "input" and source.axes != NHWC:
                raise WeightsError(f"{op} reads a map in another order than NHWC")
            groups = self._groups(op, source, weight, groups)
            sides, pads = self._sides_and_pads(op, source, dilation * (kernel - 1) + 1, stride)
            dims = (1, *sides, out)
        fused = op.options.get("FusedActivationFunction", 0)
        activation = self._fused_activation(op, fused)
        self.weights_left -= weight.size
        if self.weights_left < 0:
            raise WeightsError(f"{op}: many layers share their weights: not MobileNetV3's")
        geometry = {"stride": stride, "dilation": dilation, "groups": groups, "pads": pads}
        in_file = {"stored": self._stored(op.inputs[1]), "output": op.outputs[0], "fused": fused}
        layer = Layer("layer", [source], dims, weight=weight, bias=bias, **geometry, **in_file)
        return FeatureMap(layer).apply(activation)

    def _equal(self, op: Operator, high: int, wide: int) -> int:
        """An option or a size that has to be the same for height and width."""
        if high != wide:
            raise WeightsError(f"{op} is of {high} x {wide}: MobileNetV3's are square")
        return high

    def _groups(self, op: Operator, source: FeatureMap, weight: np.ndarray, groups: int) -> int:
        """How many groups a convolution has: CONV_2D does not say it, but for the shape of its weights."""
        channels, read = source.node.dims[source.axes[3]], weight.shape[1]
        if channels == groups * read:
            return groups
        if read and channels % read == 0 and groups == 1:
            return channels // read
        raise WeightsError(f"{op} reads {channels} channels with weights of {weight.shape}")

    def _sides_and_pads(
        self, op: Operator, source: FeatureMap, window: int, stride: int
    ) -> tuple[list[int], tuple[int, int, int, int] | None]:
        """Height and width of what a convolution gives, and its pads as in `Layer`; `window` is the dilated kernel."""
        _, *sides, _ = (source.node.dims[axis] for axis in source.axes)
        batch, (top, bottom), (left, right), channel = source.pads or ((0, 0),) * 4
        same = op.options.get("Padding") == 0
        if any(batch + channel) or (source.pads and same):
            raise WeightsError(f"{op} reads a map padded by {source.pads}: not MobileNetV3's")
        if same:
            pads, sides = None, [-(-side // stride) for side in sides]
        else:
            pads, padded = (top, bottom, left, right), (sides[0] + top + bottom, sides[1] + left + right)
            sides = [(side - window) // stride + 1 for side in padded]
        if min(sides) < 1:
            raise WeightsError(f"{op} leaves a map of {sides} pixels")
        return sides, pads

    def _visit_pad(self, op: Operator) -> FeatureMap:
        source, pads = self._map(op, 0), self._constant(op, 1, plain=True)
        if len(op.inputs) > 2 and np.any(self._constant(op, 2) != 0):
            raise WeightsError(f"{op} pads with other numbers than zero")
        if pads.shape != (4, 2) or pads.min() < 0 or pads.max() > MAX_PAD or source.is_vector:
            raise WeightsError(f"{op} pads by {pads.tolist()[:4]}: not MobileNetV3's")
        return replace(source, pads=tuple((int(before), int(after)) for before, after in pads))

    _visit_padv2 = _visit_pad

    # --- pools

    def _visit_average_pool_2d(self, op: Operator) -> FeatureMap:
        source = self._map(op, 0)
        window = (op.options.get("FilterHeight"), op.options.get("FilterWidth"))
        whole = (1, 1) if source.is_vector else source.node.dims[1:3]
        if window != whole or source.axes != NHWC or (op.options.get("Padding") == 0 and whole != (1, 1)):
            raise WeightsError(f"{op} averages {window} of {whole} pixels: MobileNetV3 averages whole maps")
        return source if source.is_vector else self._pool(source)

    def _visit_mean(self, op: Operator) -> FeatureMap:
        source, axes = self._map(op, 0), self._integers(op, 1)
        if source.is_vector:
            shape = self.graph.tensors[op.inputs[0]].shape
            if any(not -len(shape) <= axis < len(shape) or shape[axis] != 1 for axis in axes):
                raise WeightsError(f"{op} averages a vector's channels")
            return source
        if any(not -4 <= axis < 4 for axis in axes) or {source.axes[axis] for axis in axes} != {1, 2}:
            raise WeightsError(f"{op} averages over axes {axes}: MobileNetV3 averages height and width")
        return self._pool(source)

    def _visit_sum(self, op: Operator) -> FeatureMap:
        source, pooled = self._map(op, 0), self._visit_mean(op)
        pixels = 1 if source.is_vector else source.node.dims[1] * source.node.dims[2]
        return pooled.apply(lambda x: x * pixels)

    def _pool(self, source: FeatureMap) -> FeatureMap:
        if source.node.kind == "input":
            raise WeightsError("the input is averaged: not MobileNetV3's")
        return FeatureMap(Node("pool", [source], source.node.dims[3:]))

    # --- what leaves the numbers as they are

    def _visit_reshape(self, op: Operator) -> FeatureMap:
        source, shape = self._map(op, 0), self.graph.tensors[op.outputs[0]].shape
        if not source.is_vector and shape[1:] != tuple(source.node.dims[axis] for axis in source.axes)[1:]:
            raise WeightsError(f"{op} gives a map another shape, {shape}: not MobileNetV3's")
        return source

    _visit_squeeze = _visit_expand_dims = _visit_reshape

    def _visit_transpose(self, op: Operator) -> FeatureMap:
        source, order = self._map(op, 0), self._integers(op, 1)
        if source.is_vector:
            return source
        if sorted(order) != [0, 1, 2, 3] or order[0] != 0:
            raise WeightsError(f"{op} puts the axes in order {order}")
        pads = source.pads and tuple(source.pads[axis] for axis in order)
        return replace(source, axes=tuple(source.axes[axis] for axis in order), pads=pads)

    def _visit_cast(self, op: Operator) -> FeatureMap:
        return self._map(op, 0)

    _visit_quantize = _visit_dequantize = _visit_cast

    def _visit_softmax(self, op: Operator) -> FeatureMap:
        source = self._map(op, 0)
        self.has_softmax = True
        return source

    # --- two inputs

    def _binary(self, op: Operator) -> FeatureMap:
        function = BINARY[op.kind]
        if len(op.inputs) != 2:
            raise WeightsError(f"{op} has {len(op.inputs)} inputs")
        if self._is_constant(op.inputs[0]):
            constant, source = self._constant(op, 0), self._map(op, 1)
            return self._with_constant(op, source, lambda x, c: function(c, x), constant, linear=op.kind != "DIV")
        if self._is_constant(op.inputs[1]):
            constant, source = self._constant(op, 1), self._map(op, 0)
            return self._with_constant(op, source, function, constant, linear=True)
        a, b = self._map(op, 0), self._map(op, 1)
        if a.node is b.node and a.axes == b.axes:
            curves = {"curve": function(a.curve, b.curve), "clamped": function(a.clamped, b.clamped)}
            return replace(a, **curves, implied_relu=False)
        if op.kind == "MUL" and a.is_vector != b.is_vector:
            scaled, gate = (b, a) if a.is_vector else (a, b)
            return FeatureMap(Node("gate", [scaled, gate], scaled.node.dims), axes=scaled.axes)
        if op.kind == "ADD" and not a.is_vector and a.axes == b.axes and a.node.dims == b.node.dims:
            return FeatureMap(Node("sum", [a, b], a.node.dims), axes=a.axes)
        raise WeightsError(f"{op} of two different maps or vectors: not MobileNetV3's")

    def _with_constant(
        self,
        op: Operator,
        source: FeatureMap,
        function: Callable[[np.ndarray | float, np.ndarray | float], np.ndarray | float],
        constant: np.ndarray,
        *,
        linear: bool,
    ) -> FeatureMap:
        """function(source, constant): of the node's affine part if it can be, else of the curve."""
        node, constant = source.node, constant.astype(np.float64)
        linear = linear and op.kind in ARITHMETIC
        if linear and source.is_node and max(constant.shape, default=1) == constant.size:  # a scalar, or by channel
            shift = function(0.0, constant)
            gain = function(1.0, constant) - shift
            by_channel = isinstance(node, Layer) and 1 < constant.size == len(node.bias)
            if (node.kind == "input" or by_channel) and np.isfinite(gain).all() and (gain != 0).all():
                return replace(source, node=node.scaled(np.squeeze(gain), np.squeeze(shift)))
        if constant.size == 1 and node.kind != "input" and (op.kind != "DIV" or (linear and constant.item())):
            return source.apply(lambda x: function(x, constant.item()))
        raise WeightsError(f"{op} with a constant of {constant.shape}: not MobileNetV3's")
