"""int8 for ONNX Runtime."""

import math
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..writers import lowest_versions
from .prepare import Layer, check_layers, clip, prepare, write_plain

LAYERS = ("Conv", "Gemm", "MatMul")


def write_onnx(model: nn.Module, file: Path, batches: list[Tensor]) -> list[str]:
    """QDQ around every convolution and the linear layer; any batch.

    Activations and weights are unsigned: ONNX Runtime's kernels for signed weights saturate on x86 without VNNI.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Pictures(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            x = next(self.left, None)
            return None if x is None else {"input": x.numpy()}

    model, floats = prepare(model, batches)
    clip(model)
    with tempfile.TemporaryDirectory() as folder:
        plain, ready = Path(folder) / "plain.onnx", Path(folder) / "ready.onnx"
        write_plain(model, batches, plain)
        quant_pre_process(plain, ready, skip_symbolic_shape=True)
        nodes = [node for node in onnx.load(ready).graph.node if node.op_type in LAYERS]
        quantize_static(
            ready,
            file,
            Pictures(),
            # Relu and Clip, so that they become part of the range of the layer before them; no more gains from 8 bits
            op_types_to_quantize=["Conv", "Gemm", "Relu", "Clip"],
            nodes_to_exclude=[node.name for node in nodes if node.input[1].split(".weight")[0] in floats],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QUInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"WeightSymmetric": True},  # one zero point for all channels, as QLinearConv needs
        )
    model = onnx.load(file)
    lowest_versions(model)
    onnx.save(model, file)
    return floats


def check_onnx(file: Path) -> list[str]:
    """ValueError unless the layers compute with 8 bits: quantised input, output and stored weights."""
    import onnx

    graph = onnx.load(file).graph
    made = {name: node for node in graph.node for name in node.output}
    stored = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[str]] = {}  # the operators that read a tensor
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    layers = []
    for node in (node for node in graph.node if node.op_type in LAYERS):
        data, weight = made.get(node.input[0]), made.get(node.input[1])
        dequantised = all(n is not None and n.op_type == "DequantizeLinear" for n in (data, weight))
        tensor = stored.get(weight.input[0] if dequantised else node.input[1])
        eight_bits = (
            dequantised
            and tensor is not None
            and tensor.data_type in (onnx.TensorProto.UINT8, onnx.TensorProto.INT8)
            and readers.get(node.output[0]) in (["QuantizeLinear"], ["Relu"], ["Clip"])
        )
        layers.append(Layer(node.name, math.prod(tensor.dims) if tensor is not None else 0, eight_bits))
    return check_layers(file, layers)
