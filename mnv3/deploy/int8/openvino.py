"""int8 for OpenVINO, by NNCF."""

import math
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .prepare import Layer, check_layers, prepare, write_plain


def write_openvino(model: nn.Module, file: Path, batches: list[Tensor]) -> list[str]:
    """Fake quantisation before every convolution and the linear layer, per channel in depthwise ones; any batch."""
    import nncf
    import onnx
    import openvino as ov
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    model, floats = prepare(model, batches, outputs=False)
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.onnx"
        write_plain(model, batches, plain)
        network = ov.convert_model(plain)
        nodes = [node for node in onnx.load(plain).graph.node if node.op_type in ("Conv", "Gemm")]
        modules = {node.name: node.input[1].split(".weight")[0] for node in nodes}
        operators = [op.get_friendly_name() for op, _ in _layers(network)]
        ignored = [name for name in operators if modules[name.removesuffix("/WithoutBiases")] in floats]
        network = nncf.quantize(
            network,
            nncf.Dataset([x.numpy() for x in batches]),
            preset=nncf.QuantizationPreset.MIXED,  # activations have zero points
            subset_size=len(batches),
            # beside the layers nothing gains from 8 bits
            ignored_scope=nncf.IgnoredScope(names=ignored, types=["Add", "Multiply", "ReduceMean"], validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                # Half of the range for weights: oneDNN's kernels saturate on x86 without VNNI.
                overflow_fix=nncf.OverflowFix.ENABLE,
                batchwise_statistics=True,
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
            ),
        )
        ov.save_model(network, file, compress_to_fp16=False)
    return floats


def _layers(network: Any) -> list[tuple[Any, Any]]:
    """The layers, and what their weights are stored in."""
    layers = []
    for op in network.get_ordered_ops():
        if op.get_type_name() in ("Convolution", "GroupConvolution", "MatMul"):
            weight = op.input_value(1).get_node()
            while weight.get_type_name() != "Constant":
                weight = weight.input_value(0).get_node()
            layers.append((op, weight))
    return layers


def check_openvino(file: Path) -> list[str]:
    """ValueError unless the layers' weights are stored with 8 bits, and their inputs are quantised."""
    import openvino as ov

    layers = []
    for op, weight in _layers(ov.Core().read_model(file)):
        data = op.input_value(0).get_node()
        while data.get_type_name() in ("Reshape", "Squeeze", "Transpose", "Pad"):
            data = data.input_value(0).get_node()
        stored = weight.get_element_type().get_type_name()
        eight_bits = stored in ("i8", "u8") and data.get_type_name() == "FakeQuantize"
        layers.append(Layer(op.get_friendly_name(), math.prod(weight.shape), eight_bits))
    return check_layers(file, layers)
