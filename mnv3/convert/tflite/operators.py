"""What the operators of a TFLite graph compute, as values of tflite_values.py: each operator of the few that a
MobileNetV3 consists of, in all the ways that converters use them.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ...errors import WeightsError
from .file import Graph, Operator, Tensor
from .values import BINARY, FUSED, STRAIGHT, UNARY, Layer, Node, Value

LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
MAX_SIDE = 4096  # pixels of a picture


def recognise(graph: Graph) -> tuple[Value, bool]:
    """The output of a graph as a value, before the softmax if there is one; and whether there is one.

    Raises:
        WeightsError: There is an operator, or a use of one, that no MobileNetV3 needs.
    """
    with np.errstate(all="ignore"):  # a curve may go anywhere: then it is none of ours
        return _Recogniser(graph).run()


class _Recogniser:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        entry = graph.tensors[graph.input]
        if len(entry.shape) != 4 or min(entry.shape) < 1 or max(entry.shape) > MAX_SIDE or entry.stored is not None:
            raise WeightsError(f"the input is {entry.shape}, no batch of pictures of up to {MAX_SIDE} pixels a side")
        self.values = {graph.input: Value(Node("input", [], entry.shape))}
        self.constants: dict[int, tuple[np.ndarray, Tensor]] = {}  # with what they were stored as
        self.softmax: int | None = None
        # numbers in the weights of layers: a byte of the file is one at most, and of one layer
        self.room = sum(t.stored.nbytes for t in graph.tensors.values() if t.stored is not None)

    def run(self) -> tuple[Value, bool]:
        for op in self.graph.operators:
            index = op.outputs[0]
            if all(i == -1 or self._is_constant(i) for i in op.inputs):
                self.constants[index] = self._constant_of(op)
                continue
            handler = getattr(self, f"_{op.kind.lower()}", None)
            if op.kind in UNARY:
                value = self._value(op, 0).map(UNARY[op.kind])
            elif op.kind in BINARY:
                value = self._binary(op)
            elif handler is None or not op.kind.isupper():
                raise WeightsError(f"{op} is nothing that a MobileNetV3 consists of")
            else:
                value = handler(op)
            if op.kind in ("ADD", "SUB", "MUL", "DIV") and (fused := op.options.get("FusedActivationFunction")):
                value = value.map(self._activation(op, fused))
            self.values[index] = self._with_implied(value, op)
        if self.graph.output not in self.values:
            raise WeightsError("the output does not depend on the input")
        return self.values[self.graph.output], self.softmax is not None

    def _with_implied(self, value: Value, op: Operator) -> Value:
        """TOCO leaves out an activation where the range of a quantised output does the same."""
        limits = self.graph.tensors[op.outputs[0]].range
        if limits is None or limits[0] != 0 or op.kind not in (*BINARY, *LAYERS):
            return value
        if op.kind not in BINARY:
            return replace(value, implied="RELU")
        top = next((top for top in (1, 6) if abs(limits[1] / top - 1) < 0.01), np.inf)
        return replace(value, clamped=np.clip(value.clamped, 0, top))

    # --- what operators read

    def _value(self, op: Operator, place: int) -> Value:
        index = op.inputs[place] if place < len(op.inputs) else -1
        if index not in self.values:
            raise WeightsError(f"{op} reads tensor {index}, which nothing has written yet")
        if self.softmax is not None and op.kind not in ("DEQUANTIZE", "QUANTIZE", "RESHAPE", "SQUEEZE", "CAST"):
            raise WeightsError(f"{op} comes after a softmax: no classifier that mnv3 knows")
        if self.values[index].pads and op.kind not in ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE"):
            raise WeightsError(f"{op} reads a padded map; only convolutions do in a MobileNetV3")
        return self.values[index]

    def _is_constant(self, index: int) -> bool:
        return index in self.constants or (index >= 0 and self.graph.tensors[index].stored is not None)

    def _constant(self, op: Operator, place: int, *, plain: bool = False) -> np.ndarray:
        index = op.inputs[place] if place < len(op.inputs) else -1
        if index in self.constants:
            return self.constants[index][0]
        if index < 0 or index in self.values:
            raise WeightsError(f"{op}: its input {place} should be a constant")
        return self._tensor(index).values(plain=plain)

    def _tensor(self, index: int) -> Tensor:
        tensor = self.graph.tensors[index]
        if tensor.sparse:
            raise WeightsError(f"tensor {tensor.name!r} is sparse; mnv3 reads dense ones")
        return tensor

    def _constant_of(self, op: Operator) -> tuple[np.ndarray, Tensor]:
        if not op.inputs or op.kind not in ("DEQUANTIZE", "QUANTIZE", "RESHAPE", "TRANSPOSE", "CAST"):
            raise WeightsError(f"{op} computes with constants alone: mnv3 knows no MobileNetV3 with it")
        index = op.inputs[0]
        if index in self.constants:
            values, stored = self.constants[index]
        else:
            stored = self._tensor(index)
            values = stored.values()
        try:
            if op.kind == "RESHAPE":
                values = values.reshape(self.graph.tensors[op.outputs[0]].shape)
            elif op.kind == "TRANSPOSE":
                values = values.transpose(self._constant(op, 1, plain=True).astype(int).tolist())
        except ValueError as error:
            raise WeightsError(f"{op}: {error}") from None
        return values, stored

    def _activation(self, op: Operator, number: int) -> Callable[[np.ndarray], np.ndarray]:
        if number not in FUSED:
            raise WeightsError(f"{op} has activation {number} of the schema: not MobileNetV3's")
        return FUSED[number]

    # --- layers

    def _conv_2d(self, op: Operator) -> Value:
        weight = self._constant(op, 1)
        if weight.ndim != 4:
            raise WeightsError(f"{op} has weights of {weight.shape}")
        return self._layer(op, weight.transpose(0, 3, 1, 2))

    def _depthwise_conv_2d(self, op: Operator) -> Value:
        weight = self._constant(op, 1)
        if weight.ndim != 4 or weight.shape[0] != 1:
            raise WeightsError(f"{op} has weights of {weight.shape}")
        return self._layer(op, weight.transpose(3, 0, 1, 2), groups=weight.shape[3])

    def _fully_connected(self, op: Operator) -> Value:
        weight = self._constant(op, 1)
        if weight.ndim != 2 or not self._value(op, 0).is_vector:
            raise WeightsError(f"{op} has weights of {weight.shape}, and is not on a pooled map")
        return self._layer(op, weight[:, :, None, None])

    def _layer(self, op: Operator, weight: np.ndarray, groups: int = 1) -> Value:
        source, out = self._value(op, 0), len(weight)
        bias = self._constant(op, 2).reshape(-1) if len(op.inputs) > 2 and op.inputs[2] != -1 else np.zeros(out)
        stride, dilation = (
            self._one(op, *(op.options.get(f"{name}{side}", 1) for side in sides))
            for name, sides in (("Stride", "HW"), ("Dilation", ("HFactor", "WFactor")))
        )
        kernel = self._one(op, *weight.shape[2:])
        if len(bias) != out or kernel % 2 == 0 or stride < 1 or dilation < 1:
            raise WeightsError(f"{op} has {len(bias)} biases, kernel {kernel}, stride {stride}: not MobileNetV3's")
        around = source.pads or ((0, 0),) * 4
        dims, pads = (out,), (*around[1], *around[2])
        if source.is_vector:
            if (source.node.dims[0], kernel, stride, groups) != (weight.shape[1], 1, 1, 1):
                raise WeightsError(f"{op} on a vector of {source.node.dims[0]} has weights of {weight.shape}")
        else:
            if source.node.kind != "input" and source.axes != STRAIGHT:
                raise WeightsError(f"{op} reads a map in another order than NHWC")
            _, *sides, channels = (source.node.dims[axis] for axis in source.axes)
            if channels == groups * weight.shape[1]:
                pass
            elif weight.shape[1] and channels % weight.shape[1] == 0 and groups == 1:
                groups = channels // weight.shape[1]
            else:
                raise WeightsError(f"{op} reads {channels} channels with weights of {weight.shape}")
            if any(around[0] + around[3]) or (source.pads and op.options.get("Padding") == 0):
                raise WeightsError(f"{op} reads a map padded by {around}: not MobileNetV3's")
            if op.options.get("Padding") == 0:  # SAME
                pads, sides = None, [-(-side // stride) for side in sides]
            else:
                room = (pads[0] + pads[1], pads[2] + pads[3])
                sides = [(s + r - dilation * (kernel - 1) - 1) // stride + 1 for s, r in zip(sides, room, strict=True)]
            if min(sides) < 1:
                raise WeightsError(f"{op} leaves a map of {sides} pixels")
            dims = (1, *sides, out)
        fused = op.options.get("FusedActivationFunction", 0)
        act = self._activation(op, fused)
        stored = self.constants[op.inputs[1]][1] if op.inputs[1] in self.constants else self._tensor(op.inputs[1])
        self.room -= weight.size
        if self.room < 0:
            raise WeightsError(f"{op}: many layers share their weights: not MobileNetV3's")
        node = Layer("layer", [source], dims, (1.0, 0.0), weight, bias, stride, dilation, groups, pads, stored)
        return Value(replace(node, output=op.outputs[0], fused=fused)).map(act)

    def _one(self, op: Operator, high: int, wide: int) -> int:
        if high != wide:
            raise WeightsError(f"{op} is of {high} x {wide}: MobileNetV3's are square")
        return high

    def _pad(self, op: Operator) -> Value:
        source, pads = self._value(op, 0), self._constant(op, 1, plain=True)
        if len(op.inputs) > 2 and np.any(self._constant(op, 2) != 0):
            raise WeightsError(f"{op} pads with other numbers than zero")
        if pads.shape != (4, 2) or pads.min() < 0 or pads.max() > 64 or source.is_vector:
            raise WeightsError(f"{op} pads by {pads.tolist()[:4]}: not MobileNetV3's")
        return replace(source, pads=tuple((int(before), int(after)) for before, after in pads))

    _padv2 = _pad

    # --- pools

    def _average_pool_2d(self, op: Operator) -> Value:
        source = self._value(op, 0)
        filters = (op.options.get("FilterHeight"), op.options.get("FilterWidth"))
        whole = (1, 1) if source.is_vector else source.node.dims[1:3]
        if filters != whole or source.axes != STRAIGHT or (op.options.get("Padding") == 0 and whole != (1, 1)):
            raise WeightsError(f"{op} averages {filters} of {whole} pixels: MobileNetV3 averages whole maps")
        return source if source.is_vector else self._pool(source)

    def _mean(self, op: Operator) -> Value:
        source, axes = self._value(op, 0), self._constant(op, 1, plain=True).reshape(-1).astype(int).tolist()
        if source.is_vector:
            shape = self.graph.tensors[op.inputs[0]].shape
            if any(not -len(shape) <= axis < len(shape) or shape[axis] != 1 for axis in axes):
                raise WeightsError(f"{op} averages a vector's channels")
            return source
        if any(not -4 <= axis < 4 for axis in axes) or {source.axes[axis] for axis in axes} != {1, 2}:
            raise WeightsError(f"{op} averages over axes {axes}: MobileNetV3 averages height and width")
        return self._pool(source)

    def _sum(self, op: Operator) -> Value:
        source, pooled = self._value(op, 0), self._mean(op)
        pixels = 1 if source.is_vector else source.node.dims[1] * source.node.dims[2]
        return pooled.map(lambda x: x * pixels)

    def _pool(self, source: Value) -> Value:
        if source.node.kind == "input":
            raise WeightsError("the input is averaged: not MobileNetV3's")
        return Value(Node("pool", [source], source.node.dims[3:]))

    # --- what leaves the numbers as they are

    def _reshape(self, op: Operator) -> Value:
        source, shape = self._value(op, 0), self.graph.tensors[op.outputs[0]].shape
        if not source.is_vector and shape[1:] != tuple(source.node.dims[axis] for axis in source.axes)[1:]:
            raise WeightsError(f"{op} gives a map another shape, {shape}: not MobileNetV3's")
        return source

    _squeeze = _expand_dims = _reshape

    def _transpose(self, op: Operator) -> Value:
        source, order = self._value(op, 0), self._constant(op, 1, plain=True).astype(int).tolist()
        if source.is_vector:
            return source
        if sorted(order) != [0, 1, 2, 3] or order[0] != 0:
            raise WeightsError(f"{op} puts the axes in order {order}")
        pads = source.pads and tuple(source.pads[axis] for axis in order)
        return replace(source, axes=tuple(source.axes[axis] for axis in order), pads=pads)

    def _quantize(self, op: Operator) -> Value:
        return self._value(op, 0)

    _dequantize = _cast = _quantize

    def _softmax(self, op: Operator) -> Value:
        value = self._value(op, 0)
        self.softmax = op.position
        return value

    # --- two inputs

    def _binary(self, op: Operator) -> Value:
        function = BINARY[op.kind]
        if len(op.inputs) != 2:
            raise WeightsError(f"{op} has {len(op.inputs)} inputs")
        for place in (0, 1):
            if self._is_constant(op.inputs[place]):
                constant, value = self._constant(op, place), self._value(op, 1 - place)
                return self._with_constant(
                    op, value, (lambda x, c: function(c, x)) if place == 0 else function, constant
                )
        a, b = self._value(op, 0), self._value(op, 1)
        if a.node is b.node and a.axes == b.axes:
            return replace(a, curve=function(a.curve, b.curve), clamped=function(a.clamped, b.clamped), implied=None)
        if op.kind == "MUL" and a.is_vector != b.is_vector:
            picture, gate = (b, a) if a.is_vector else (a, b)
            return replace(Value(Node("gate", [picture, gate], picture.node.dims)), axes=picture.axes)
        if op.kind == "ADD" and not a.is_vector and a.axes == b.axes and a.node.dims == b.node.dims:
            return replace(Value(Node("sum", [a, b], a.node.dims)), axes=a.axes)
        raise WeightsError(f"{op} of two different maps or vectors: not MobileNetV3's")

    def _with_constant(self, op: Operator, value: Value, function: Callable, constant: np.ndarray) -> Value:
        constant = constant.astype(np.float64)
        shift = function(0.0, constant)
        gain = function(1.0, constant) - shift
        linear = op.kind in ("ADD", "SUB", "MUL") or (op.kind == "DIV" and function is np.divide)
        by_channel = linear and value.plain and np.isfinite(gain).all() and (gain != 0).all()
        by_channel = by_channel and max(constant.shape, default=1) == constant.size  # wherever the channels stand
        if by_channel and (
            value.node.kind == "input" or (isinstance(value.node, Layer) and 1 < constant.size == len(value.node.bias))
        ):
            return replace(value, node=value.node.then(np.squeeze(gain), np.squeeze(shift)))
        if constant.size == 1 and value.node.kind != "input" and (op.kind != "DIV" or (linear and constant.item())):
            return value.map(lambda x: function(x, constant.item()))
        raise WeightsError(f"{op} with a constant of {constant.shape}: not MobileNetV3's")
