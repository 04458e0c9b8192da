"""Feature maps of a TFLite graph as elementwise functions of what a layer, a pool, a gate or a sum gives.

Converters write one network in many ways: h-swish as an operator, or as x * relu6(x + 3) / 6; a bias with the 3 of a
hard sigmoid in it; quantised files of TOCO without their ReLUs, as a zero point of 0 cuts off the same. So nothing here
goes by names: every elementwise operator acts on a curve, which is the function so far over the points of `GRID`, and
activations.py says which activation a curve is.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from .file import Tensor

Function = Callable[[np.ndarray], np.ndarray]

GRID = np.linspace(-12, 12, 769)  # steps of 1/32, with the corners of relu, relu6 and both hard functions on it
NHWC = (0, 1, 2, 3)  # the order of axes in which TFLite computes

FUSED_ACTIVATIONS: dict[int, Function] = {  # by number in the schema: ActivationFunctionType
    0: lambda x: x,
    1: lambda x: np.maximum(x, 0),
    2: lambda x: np.clip(x, -1, 1),
    3: lambda x: np.clip(x, 0, 6),
}
UNARY: dict[str, Function] = {
    "RELU": FUSED_ACTIVATIONS[1],
    "RELU_N1_TO_1": FUSED_ACTIVATIONS[2],
    "RELU6": FUSED_ACTIVATIONS[3],
    "RELU_0_TO_1": lambda x: np.clip(x, 0, 1),
    "HARD_SWISH": lambda x: x * np.clip(x + 3, 0, 6) / 6,
}
BINARY: dict[str, np.ufunc] = {
    "ADD": np.add,
    "SUB": np.subtract,
    "MUL": np.multiply,
    "DIV": np.divide,
    "MINIMUM": np.minimum,
    "MAXIMUM": np.maximum,
}


@dataclass(eq=False)
class Node:
    """What is no elementwise function: 'input', 'layer', 'pool', 'gate' (map * vector) or 'sum'."""

    kind: str
    sources: list["FeatureMap"]
    dims: tuple[int, ...]  # (N, H, W, C) of a map, of the input in the file's own order; (C,) of a pooled vector
    affine: tuple[np.ndarray | float, np.ndarray | float] = (1.0, 0.0)  # gain and shift, scalars or (C,)

    def scaled(self, gain: np.ndarray | float, shift: np.ndarray | float) -> "Node":
        """This node with gain * x + shift after it, scalars or (C,)."""
        return replace(self, affine=(self.affine[0] * gain, self.affine[1] * gain + shift))


@dataclass(eq=False, kw_only=True)
class Layer(Node):
    """A convolution, or a linear layer as one of 1x1; weight and bias are those before `affine`."""

    weight: np.ndarray  # (O, I / groups, k, k)
    bias: np.ndarray  # (O,)
    stride: int
    dilation: int
    groups: int
    pads: tuple[int, int, int, int] | None  # top, bottom, left, right; None for TensorFlow's SAME
    stored: Tensor  # the weight in the file
    output: int  # the tensor that the file's operator writes, after
    fused: int  # this activation of the schema

    def folded(self) -> tuple[np.ndarray, np.ndarray]:
        """Weight and bias with `affine` in them."""
        gain, shift = self.affine
        return self.weight * np.reshape(gain, (-1, 1, 1, 1)), self.bias * gain + shift


@dataclass(eq=False)
class FeatureMap:
    """A computed tensor of the graph: an elementwise function of a node's output."""

    node: Node
    curve: np.ndarray = field(default_factory=lambda: GRID)  # the function at the points of GRID
    clamped: np.ndarray = field(default_factory=lambda: GRID)  # the same with what ranges of quantised tensors cut off
    axes: tuple[int, ...] = NHWC  # which axis stands where
    pads: tuple[tuple[int, int], ...] | None = None  # zeros put around it, before and after, by axis
    implied_relu: bool = False  # whether the range of the node's own output cuts off at 0

    @property
    def is_vector(self) -> bool:
        """Whether it has been averaged over height and width."""
        return len(self.node.dims) == 1

    @property
    def is_node(self) -> bool:
        """Whether it is the node's output itself."""
        return np.array_equal(self.curve, GRID)

    def apply(self, function: Function) -> "FeatureMap":
        """The map after an elementwise function."""
        return replace(self, curve=function(self.curve), clamped=function(self.clamped), implied_relu=False)

    def same_as(self, other: "FeatureMap") -> bool:
        """Whether two maps are one."""
        return self.node is other.node and self.pads == other.pads and np.allclose(self.curve, other.curve)
