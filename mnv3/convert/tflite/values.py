"""Tensors of a TFLite graph as functions of one number, of the output of a layer, a pool, a gate or a sum.

Converters write one network in many ways: h-swish as an operator, or as x * relu6(x + 3) / 6; a bias with the 3 of a
hard sigmoid in it; quantised files of TOCO without their ReLUs, as a zero point of 0 cuts off the same. So nothing here
goes by names: every elementwise operator acts on a curve, the values over `GRID` of what has been done to a layer's
output so far, and tflite.py asks which function the curve is.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .file import Tensor

GRID = np.linspace(-12, 12, 769)  # steps of 1/32, with the corners of relu, relu6 and both hard functions on it
STRAIGHT = (0, 1, 2, 3)  # axes in TFLite's order, NHWC


@dataclass(eq=False)
class Node:
    """Something that is no function of one number: 'input', 'layer', 'pool', 'gate' (map * vector) or 'sum'."""

    kind: str
    sources: list["Value"]
    dims: tuple[int, ...]  # of a map NHWC, of the input as the file has it; (C,) for a vector of a pooled map
    affine: tuple[Any, Any] = (1.0, 0.0)  # gain and shift, scalars or by channel, of the file's input or layer

    def then(self, gain: Any, shift: Any) -> "Node":
        """The same with gain * x + shift after it."""
        return replace(self, affine=(self.affine[0] * gain, self.affine[1] * gain + shift))


@dataclass(eq=False)
class Layer(Node):
    """A convolution, or a linear layer as one of 1x1."""

    weight: np.ndarray = field(default=None)  # (O, I / groups, k, k), and
    bias: np.ndarray = field(default=None)  # (O,), before `affine`
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    pads: tuple[int, int, int, int] | None = None  # top, bottom, left, right; None for TensorFlow's SAME
    stored: Tensor | None = None  # the weight in the file
    output: int = -1  # the tensor that the file's operator writes, which is
    fused: int = 0  # this activation of the schema of

    def folded(self) -> tuple[np.ndarray, np.ndarray]:
        """Weight and bias with `affine` in them."""
        gain, shift = self.affine
        return self.weight * np.reshape(gain, (-1, 1, 1, 1)), self.bias * gain + shift


@dataclass(eq=False)
class Value:
    """A tensor of the graph: `curve` of a node's output.

    `clamped` is the curve with the activations that quantised ranges imply, and `implied` says which one the node's
    own output has: 'RELU' or None.
    """

    node: Node
    curve: np.ndarray = field(default_factory=lambda: GRID)
    clamped: np.ndarray = field(default_factory=lambda: GRID)
    axes: tuple[int, ...] = STRAIGHT
    pads: tuple[tuple[int, int], ...] | None = None  # zeros put around it, before and after, by axis
    implied: str | None = None

    @property
    def is_vector(self) -> bool:
        return len(self.node.dims) == 1

    @property
    def plain(self) -> bool:
        """Whether it is the node's output itself."""
        return np.array_equal(self.curve, GRID)

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> "Value":
        return replace(self, curve=function(self.curve), clamped=function(self.clamped), implied=None)


def same(a: Value, b: Value) -> bool:
    """Whether two values are one."""
    return a.node is b.node and a.pads == b.pads and np.allclose(a.curve, b.curve)


FUSED: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # schema: ActivationFunctionType
    0: lambda x: x,
    1: lambda x: np.maximum(x, 0),
    2: lambda x: np.clip(x, -1, 1),
    3: lambda x: np.clip(x, 0, 6),
}
UNARY = {
    "RELU": FUSED[1],
    "RELU_N1_TO_1": FUSED[2],
    "RELU6": FUSED[3],
    "RELU_0_TO_1": lambda x: np.clip(x, 0, 1),
    "HARD_SWISH": lambda x: x * np.clip(x + 3, 0, 6) / 6,
}
BINARY = {
    "ADD": np.add,
    "SUB": np.subtract,
    "MUL": np.multiply,
    "DIV": np.divide,
    "MINIMUM": np.minimum,
    "MAXIMUM": np.maximum,
}
