"""A TFLite graph matched to the network's table, from the logits back to the picture, by what its operators compute.

Running the file on pictures would prove less: ReLU6 gives what ReLU gives where no value is above 6, and in Google's
small model of 8 bits one block is 29 % away from what its own weights give, another 28 % with a wrong order of layers.
"""

from dataclasses import dataclass
from pathlib import Path

from ...arch import Arch, Bneck
from ...errors import WeightsError
from .activations import activation, hard_sigmoid, is_linear, slope
from .features import FeatureMap, Layer, Node
from .file import Graph, read_graph
from .operators import trace

KINDS = {"gate": "product of a map and a vector", "pool": "pooled map", "input": "picture"}


@dataclass
class Network:
    """A MobileNetV3 in a TFLite graph."""

    table: Arch
    pad_type: str
    se_order: str
    layers: dict[str, Layer]  # by our names: 'stem', 'blocks.0.expand', 'blocks.0.se.squeeze', 'head' ...
    input: Node
    has_softmax: bool
    graph: Graph


@dataclass
class _Block:
    row: Bneck
    layers: dict[str, Layer]  # by name within the block
    input: FeatureMap
    se_order: str | None = None


def read_network(path: Path) -> Network:
    """The MobileNetV3 in a TFLite file.

    Raises:
        WeightsError: The file is damaged or not a MobileNetV3; the message says where the graph departs from one.
        ImportError: The schema package is missing.
    """
    graph = read_graph(path)
    try:
        return _network(graph)
    except WeightsError as error:
        raise WeightsError(f"{path}: not a MobileNetV3 that mnv3 can read: {error}") from None


def _network(graph: Graph) -> Network:
    output, has_softmax = trace(graph)
    classifier = _linear_layer(output, "the classifier")
    head, head_act = _activated_layer(classifier.sources[0], "the head, before the classifier")
    pooled = head.sources[0]
    if pooled.node.kind != "pool" or not is_linear(pooled):
        raise WeightsError(f"the head's input is a {_kind(pooled)}, not the pooled map")
    last, last_act = _activated_layer(pooled.node.sources[0], "the last convolution, before the pool")
    blocks, features = [], last.sources[0]
    while not _is_stem(features):
        blocks.insert(0, _block(features))
        features = blocks[0].input
    stem, act = _activated_layer(features, "the stem", kernel=3)
    picture = stem.sources[0]
    if not is_linear(picture):
        raise WeightsError("the picture goes through a function before the stem")
    if not act == last_act == head_act:
        raise WeightsError("the stem, the last convolution and the head have two activations")
    layers = {"stem": stem}
    for i, block in enumerate(blocks):
        layers |= {f"blocks.{i}.{name}": layer for name, layer in block.layers.items()}
    layers |= {"last": last, "head": head, "classifier": classifier}
    widths = {name: len(layers[name].bias) for name in ("stem", "last", "head")}
    try:
        table = Arch(**widths, rows=tuple(block.row for block in blocks), stem_stride=stem.stride, act=act)
    except ValueError as error:
        raise WeightsError(str(error)) from None
    se_order = _se_order(blocks)
    return Network(table, _pad_type(layers), se_order, layers, picture.node, has_softmax, graph)


def _layer(features: FeatureMap, what: str, *, kernel: int = 1, depthwise: bool = False) -> Layer:
    """The layer that gives a feature map: a depthwise convolution, or a full one with a kernel of this size."""
    layer = features.node
    if not isinstance(layer, Layer):
        raise WeightsError(f"{what} is a {_kind(features)}, not a convolution")
    size, channels = layer.weight.shape[2], len(layer.bias)
    if (layer.groups > 1) != depthwise or not (depthwise or size == kernel):
        kind = "depthwise" if layer.groups > 1 else "full"
        raise WeightsError(f"{what} is a {kind} convolution of {size}x{size} over {layer.weight.shape[1]} channels")
    if layer.groups not in (1, channels):
        raise WeightsError(f"{what} has {layer.groups} groups for {channels} channels")
    may_stride, may_dilate = depthwise or kernel == 3, depthwise and layer.stride == 1
    if (layer.stride > 1 and not may_stride) or (layer.dilation > 1 and not may_dilate):
        raise WeightsError(f"{what} has stride {layer.stride} and dilation {layer.dilation}")
    return layer


def _linear_layer(features: FeatureMap, what: str, *, depthwise: bool = False) -> Layer:
    """A layer without an activation."""
    layer = _layer(features, what, depthwise=depthwise)
    if not is_linear(features):
        raise WeightsError(f"{what} has {activation(features) or 'another function'}; expected no activation")
    return layer


def _activated_layer(features: FeatureMap, what: str, *, kernel: int = 1, depthwise: bool = False) -> tuple[Layer, str]:
    """A layer and the activation after it."""
    layer = _layer(features, what, kernel=kernel, depthwise=depthwise)
    return layer, _activation(features, what)


def _activation(features: FeatureMap, what: str) -> str:
    """'RE' or 'HS'."""
    act = activation(features)
    if act is None:
        given = "no activation" if is_linear(features) else "another function"
        raise WeightsError(f"{what} has {given}; expected ReLU or h-swish")
    return act


def _kind(features: FeatureMap) -> str:
    return KINDS.get(features.node.kind, features.node.kind)


def _is_stem(features: FeatureMap) -> bool:
    return isinstance(features.node, Layer) and features.node.sources[0].node.kind == "input"


def _block(output: FeatureMap) -> _Block:
    """The block that ends with a map: the shortcut's sum, or a projection where there is no shortcut."""
    if output.node.kind != "sum":
        block = _branch(output)
        if block.row.stride == 1 and block.input.node.dims[-1] == block.row.out:
            raise WeightsError(f"a block of {block.row.out} channels has no shortcut")
        return block
    if not is_linear(output):
        raise WeightsError("there is an activation after a shortcut's sum")
    for branch, shortcut in (output.node.sources, output.node.sources[::-1]):
        if isinstance(branch.node, Layer) and branch.node.groups == 1 and is_linear(branch):
            block = _branch(branch)
            if block.input.same_as(shortcut) and block.row.stride == 1:
                return block
    raise WeightsError("a sum is not that of a block's output and its input")


def _branch(output: FeatureMap) -> _Block:
    """A block without its shortcut: expand, depthwise, squeeze-and-excite, project."""
    project = _linear_layer(output, "a block's projection")
    features, act, se_order, layers = project.sources[0], None, None, {}
    if features.node.kind == "gate":
        gated, gate = features.node.sources
        height = slope(features)
        se_order = "se-act" if height is None else "act-se"
        act = _activation(features, "a block's depthwise part") if height is None else None
        layers = _squeeze_excite(gated, gate, height or 1.0)
        features = gated
    what = f"the input of a projection to {len(project.bias)} channels"
    if act is None:
        depthwise, act = _activated_layer(features, what, depthwise=True)
    else:
        depthwise = _linear_layer(features, what, depthwise=True)
    features = depthwise.sources[0]
    if _is_expansion(features):
        expand = _expansion(features, act, channels=len(depthwise.bias))
        layers, features = {"expand": expand} | layers, expand.sources[0]
    layers |= {"depthwise": depthwise, "project": project}
    return _Block(_row(layers, act), layers, features, se_order)


def _is_expansion(features: FeatureMap) -> bool:
    """Whether the layer before a depthwise one is of the same block: the block before ends without an activation."""
    layer = features.node
    is_pointwise = isinstance(layer, Layer) and layer.weight.shape[2] == 1 and layer.groups == 1
    return is_pointwise and (features.implied_relu or not is_linear(features))


def _expansion(features: FeatureMap, act: str, channels: int) -> Layer:
    """The layer that expands, in a block of this activation and so many expanded channels."""
    expand, expand_act = _activated_layer(features, "an expansion")
    if expand_act != act:
        raise WeightsError(f"a block of {channels} channels has two activations, {expand_act} and {act}")
    if len(expand.bias) == expand.weight.shape[1]:
        raise WeightsError(f"a block expands {len(expand.bias)} channels to as many: ours have no such layer")
    return expand


def _squeeze_excite(gated: FeatureMap, gate: FeatureMap, height: float) -> dict[str, Layer]:
    """The two layers; `height` is the factor after the product of map and gate."""
    gain, shift = hard_sigmoid(gate, height)
    excite = _layer(gate, "the gate of a squeeze-and-excite")
    squeezed = excite.sources[0]
    if (gain, shift) != (1.0, 0.0):
        excite = excite.scaled(gain, shift)
    squeeze, act = _activated_layer(squeezed, "the squeeze of a squeeze-and-excite")
    if act != "RE":
        raise WeightsError(f"a squeeze-and-excite has {act} in the middle, not ReLU")
    pooled = squeeze.sources[0]
    if pooled.node.kind != "pool" or not is_linear(pooled) or not pooled.node.sources[0].same_as(gated):
        raise WeightsError("a squeeze-and-excite does not read the map that it scales")
    return {"se.squeeze": squeeze, "se.excite": excite}


def _row(layers: dict[str, Layer], act: str) -> Bneck:
    """The row of the table for a block's layers."""
    depthwise, squeeze = layers["depthwise"], layers.get("se.squeeze")
    exp, kernel = len(depthwise.bias), depthwise.weight.shape[2]
    out, has_se = len(layers["project"].bias), squeeze is not None
    try:
        row = Bneck(kernel, exp, out, has_se, act, depthwise.stride, depthwise.dilation)
    except ValueError as error:
        raise WeightsError(str(error)) from None
    if has_se and len(squeeze.bias) != row.squeeze:
        raise WeightsError(
            f"squeeze-and-excite of {exp} channels has {len(squeeze.bias)} in the middle, ours a "
            f"quarter rounded to a multiple of 8, {row.squeeze}, as the paper's authors do"
        )
    return row


def _se_order(blocks: list[_Block]) -> str:
    orders = {block.se_order for block in blocks} - {None}
    if len(orders) > 1:
        raise WeightsError("squeeze-and-excite stands before the activation in some blocks and after it in others")
    return orders.pop() if orders else "act-se"


def _pad_type(layers: dict[str, Layer]) -> str:
    """'same' or '', by the layers of stride 2; at stride 1 both are the same."""
    possible = {"same", ""}
    for name, layer in layers.items():
        if len(layer.dims) > 1:
            possible &= _possible_pad_types(layer)
            if not possible and layer.pads is not None:
                raise WeightsError(f"{name} pads by {layer.pads}: neither TensorFlow's padding nor the symmetric one")
    if not possible:
        raise WeightsError("some layers have TensorFlow's padding and others the symmetric one")
    return "" if "" in possible else "same"


def _possible_pad_types(layer: Layer) -> set[str]:
    """The pad types with which a convolution on a map is padded as it is."""
    if layer.pads is None:
        return {"same"} if layer.stride > 1 else {"same", ""}
    half = layer.weight.shape[2] // 2 * layer.dilation
    symmetric = (half, half, half, half)
    picture = layer.sources[0]
    height, width = (picture.node.dims[axis] for axis in picture.axes[1:3])
    as_tensorflow = (half - 1 + height % 2, half, half - 1 + width % 2, half)
    same = as_tensorflow if layer.stride > 1 and half else symmetric
    return {kind for kind, pads in (("", symmetric), ("same", same)) if pads == layer.pads}
