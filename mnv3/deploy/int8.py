"""Static int8 files for each runtime: weights and activations of 8 bits, ranges from calibration pictures.

Three things make MobileNetV3 lose its accuracy, and `prepare` removes them for every runtime alike: maps whose channels
differ a hundredfold in range, where ReLU lets them be evened out (`_equalise`); the one or two layers where it does
not (h-swish has a scale of its own), which stay in float; and channels next to dead, whose bias, in steps of a tiny
weight scale, overflows 32 bits (`_raise_weights`).
"""

import copy
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import Bottleneck, ConvNormAct, SqueezeExcite, evaluating
from .formats import Graph, write_onnx

SENSITIVE = 22.0  # dB of signal to noise at the logits below which a convolution's activations are not quantised
FLOAT_SHARE = 0.03  # of the weights at most may stay in float: 4 bytes in place of 1 leave the file below 30 %
FLOAT_LAYERS = 6


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}


@torch.no_grad()
def _equalise(model: nn.Module, pictures: Tensor) -> None:
    """Scale the channels before each ReLU to one range, and the weights that read them back: the same function.

    Per-channel weight scales make it free in front of a depthwise convolution; a projection sums over the channels, so
    it takes half of the difference (the square root).
    """
    blocks = [m for m in model.modules() if isinstance(m, Bottleneck)]
    peaks: dict[nn.Module, Tensor] = {}
    pairs = []
    for block in blocks:
        last = block.act if isinstance(block.depthwise.act, nn.Identity) else block.depthwise.act
        if isinstance(block.expand, ConvNormAct):
            pairs.append((block.expand, block.expand.act, [block.depthwise.conv], 1.0))
        squeeze = [block.se.squeeze] if not isinstance(block.se, nn.Identity) else []
        pairs.append((block.depthwise, last, [block.project.conv, *squeeze], 0.5))
    pairs = [pair for pair in pairs if isinstance(pair[1], nn.ReLU)]
    hooks = [
        act.register_forward_hook(lambda act, _, out: peaks.__setitem__(act, out.amax((0, 2, 3))))
        for _, act, _, _ in pairs
    ]
    model(pictures)
    for hook in hooks:
        hook.remove()
    for source, act, readers, power in pairs:
        scale = (peaks[act] / peaks[act].max().clamp(min=1e-30)) ** power
        scale = torch.where(scale > 1e-4, scale, 1.0)  # a dead channel has no range to even out
        source.conv.weight.div_(scale[:, None, None, None])
        source.conv.bias.div_(scale)
        for reader in readers:
            depthwise = reader.groups > 1
            reader.weight.mul_(scale[:, None, None, None] if depthwise else scale[None, :, None, None])


@torch.no_grad()
def _raise_weights(model: nn.Module, pictures: Tensor) -> None:
    """Give every output channel one weight of at least 1e-4 of its bias (1e-6 of the layer's peak) over the input's.

    It changes an output by less than that share, and bounds bias / (input scale * weight scale) by 255 * 127 * 1e4,
    which 32 bits hold; it also leaves no channel of zeros, whose scale would be 0. LiteRT folds the 3 of the hard
    sigmoid into the bias before it: with gates that hardly move (weights of 1e-5) that alone overflowed.
    """
    gates = {m.excite for m in model.modules() if isinstance(m, SqueezeExcite)}
    peaks: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    layers = _layers(model).values()
    hooks = [
        m.register_forward_hook(lambda m, x, out: peaks.__setitem__(m, (x[0].abs().max(), out.abs().max())))
        for m in layers
    ]
    model(pictures)
    for hook in hooks:
        hook.remove()
    for layer in layers:
        inputs, outputs = (peak.clamp(min=1e-6) for peak in peaks[layer])
        rows = layer.weight.data.flatten(1)
        bias = layer.bias.abs() if layer.bias is not None else torch.zeros(len(rows))
        least = 1e-4 * torch.maximum(bias + (3 if layer in gates else 0), 0.01 * outputs) / inputs
        weight, place = rows.abs().max(1)
        low = weight < least
        rows[low, place[low]] = least[low]
        layer.weight.data.copy_(rows.view_as(layer.weight))


def _fake_quantise(x: Tensor) -> Tensor:
    scale = ((x.max().clamp(min=0) - x.min().clamp(max=0)) / 255).clamp(min=1e-12)
    return (x / scale).round() * scale


def sensitive(model: nn.Module, pictures: Tensor) -> list[str]:
    """Names of the few layers whose activations 8 bits per tensor cannot hold, measured one layer at a time."""
    expected = model(pictures)
    rectified = {m.conv for m in model.modules() if isinstance(m, ConvNormAct) and isinstance(m.act, nn.ReLU)}
    found = []
    for name, layer in _layers(model).items():
        hooks = [
            layer.register_forward_pre_hook(lambda _, x: (_fake_quantise(x[0]),)),
            # ReLU becomes part of the layer, and what it cuts off needs no range
            layer.register_forward_hook(lambda m, _, out: _fake_quantise(out.relu() if m in rectified else out)),
        ]
        noise = (model(pictures) - expected).square().mean().clamp(min=1e-30)
        for hook in hooks:
            hook.remove()
        found.append((10 * math.log10((expected.var() / noise).item()), name, layer.weight.numel()))
    room = FLOAT_SHARE * sum(size for _, _, size in found)
    names = []
    for decibels, name, size in sorted(found):
        if decibels < SENSITIVE and size <= room and len(names) < FLOAT_LAYERS:
            names.append(name)
            room -= size
    return names


def prepare(model: nn.Module, batches: list[Tensor]) -> tuple[nn.Module, list[str]]:
    """A copy of `model` that quantises well, of equal outputs to 1e-4, and the names of layers to leave in float."""
    if not batches:
        raise ValueError("int8 needs calibration pictures: got no batch")
    pictures = batches[0][: 64 if batches[0].shape[-1] > 64 else 256]
    model = copy.deepcopy(model)
    with evaluating(model), torch.inference_mode(False), torch.no_grad():
        _equalise(model, pictures)
        _raise_weights(model, pictures)
        return model, sensitive(model, pictures)


def onnx(model: nn.Module, file: Path, batches: list[Tensor]) -> None:
    """QDQ around every convolution and the linear layer; any batch.

    Activations and weights are unsigned: ONNX Runtime's kernels for signed weights saturate on x86 without VNNI.
    """
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Pictures(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            x = next(self.left, None)
            return None if x is None else {"input": x.numpy()}

    model, floats = prepare(model, batches)
    with tempfile.TemporaryDirectory() as folder:
        plain, ready = Path(folder) / "plain.onnx", Path(folder) / "ready.onnx"
        write_onnx(Graph(model, batches[0][:1], ("batch",), False, {"stride": 1}), plain)
        quant_pre_process(plain, ready, skip_symbolic_shape=True)
        quantize_static(
            ready,
            file,
            Pictures(),
            op_types_to_quantize=["Conv", "Gemm"],  # what lies between gains nothing from 8 bits
            nodes_to_exclude=[
                node.name for node, weight in _onnx_layers(ready) if weight.split(".weight")[0] in floats
            ],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QUInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"WeightSymmetric": True},  # one zero point for all channels, as QLinearConv needs
        )


def _onnx_layers(file: Path) -> list[tuple[Any, str]]:
    import onnx

    nodes = onnx.load(file, load_external_data=False).graph.node
    return [(node, node.input[1]) for node in nodes if node.op_type in ("Conv", "Gemm", "MatMul")]


def check_onnx(file: Path) -> None:
    """ValueError unless the layers compute with 8 bits: quantised input, output and stored weights."""
    import onnx

    graph = onnx.load(file).graph
    made = {name: node for node in graph.node for name in node.output}
    stored = {tensor.name: tensor for tensor in graph.initializer}
    read: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            read.setdefault(name, []).append(node.op_type)
    layers = []
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            data, weight = made.get(node.input[0]), made.get(node.input[1])
            dequantised = all(n is not None and n.op_type == "DequantizeLinear" for n in (data, weight))
            tensor = stored.get(weight.input[0] if dequantised else node.input[1])
            eight = dequantised and tensor is not None and tensor.data_type in (2, 3)  # UINT8, INT8
            eight = eight and read.get(node.output[0]) in (["QuantizeLinear"], ["Relu"])
            layers.append((node.name, math.prod(tensor.dims) if tensor is not None else 0, eight))
    _judge(file, layers)


def _judge(file: Path, layers: list[tuple[str, int, bool]]) -> None:
    """ValueError unless (name, weights, whether of 8 bits) are those of an 8-bit model with its few layers in float."""
    floats = [name for name, _, eight in layers if not eight]
    share = sum(size for _, size, eight in layers if not eight) / max(sum(size for _, size, _ in layers), 1)
    if not layers or len(floats) > FLOAT_LAYERS or share > FLOAT_SHARE:
        raise ValueError(
            f"{file}: not an 8-bit model: {len(floats)} of {len(layers)} layers compute in float, with "
            f"{100 * share:.1f} % of the weights: {', '.join(floats[:3])}"
        )


def openvino(model: nn.Module, file: Path, batches: list[Tensor]) -> None:
    """Fake quantisation before every convolution and the linear layer, per channel in depthwise ones; any batch."""
    import nncf
    import openvino as ov

    model, floats = prepare(model, batches)
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.onnx"
        write_onnx(Graph(model, batches[0][:1], ("batch",), False, {"stride": 1}), plain)
        network = ov.convert_model(plain)
        ignored = [op.get_friendly_name() for op, weight in _openvino_layers(network) if _stem(weight) in floats]
        network = nncf.quantize(
            network,
            nncf.Dataset([x.numpy() for x in batches]),
            preset=nncf.QuantizationPreset.MIXED,  # activations have zero points
            subset_size=len(batches),
            ignored_scope=nncf.IgnoredScope(names=ignored),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                # Half of the range for weights: oneDNN's kernels saturate on x86 without VNNI.
                overflow_fix=nncf.OverflowFix.ENABLE,
                batchwise_statistics=True,
            ),
        )
        ov.save_model(network, file, compress_to_fp16=False)
    compact(file)


def compact(file: Path) -> None:
    """Take the indentation out of an .xml, which is half of it (a tenth of an 8-bit model); saving brings it back."""
    file.write_text("".join(line.strip() + "\n" for line in file.read_text(encoding="utf-8").splitlines()), "utf-8")


def _stem(weight: Any) -> str:
    return weight.get_friendly_name().split(".weight")[0]


def _openvino_layers(network: Any) -> list[tuple[Any, Any]]:
    """The layers, and what their weights are stored in."""
    found = []
    for op in network.get_ordered_ops():
        if op.get_type_name() in ("Convolution", "GroupConvolution", "MatMul"):
            weight = op.input_value(1).get_node()
            while weight.get_type_name() != "Constant":
                weight = weight.input_value(0).get_node()
            found.append((op, weight))
    return found


def check_openvino(file: Path) -> None:
    """ValueError unless the layers' weights are stored with 8 bits, and their inputs are quantised."""
    import openvino as ov

    network = ov.Core().read_model(file)
    layers = []
    for op, weight in _openvino_layers(network):
        data = op.input_value(0).get_node()
        while data.get_type_name() in ("Reshape", "Squeeze", "Transpose", "Pad"):
            data = data.input_value(0).get_node()
        eight = weight.get_element_type().get_type_name() in ("i8", "u8") and data.get_type_name() == "FakeQuantize"
        layers.append((op.get_friendly_name(), math.prod(weight.shape), eight))
    _judge(file, layers)


WRITERS: dict[str, Callable[[nn.Module, Path, list[Tensor]], None]] = {"onnx": onnx, "openvino": openvino}
CHECKS: dict[str, Callable[[Path], None]] = {"onnx": check_onnx, "openvino": check_openvino}
