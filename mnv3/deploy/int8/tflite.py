"""int8 for LiteRT."""

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..writers import convert_tflite
from .prepare import Layer, check_layers, layers_with_weights, prepare

LAYERS = {3: "CONV_2D", 4: "DEPTHWISE_CONV_2D", 9: "FULLY_CONNECTED"}  # builtin operators of the schema
INT8 = 9  # a tensor's type in the schema


def write_tflite(model: nn.Module, file: Path, batches: list[Tensor]) -> list[str]:
    """8 bits in the convolutions and the linear layer alone; one picture at a time, and as (1, H, W, C)."""
    from ai_edge_quantizer import qtyping, quantizer

    model, floats = prepare(model, batches)
    weights = [layer.weight for name, layer in layers_with_weights(model).items() if name in floats]
    pictures = [{"args_0": x[None].numpy()} for x in torch.cat(list(batches)).permute(0, 2, 3, 1).contiguous()]
    convert_tflite(model, batches[0][:1], file)
    tool = quantizer.Quantizer(str(file))
    for kind in LAYERS.values():
        tool.add_static_config(".*", qtyping.TFLOperationName[kind], activation_num_bits=8, weight_num_bits=8)
    for kind, scope, array, _ in _layers(file):
        if any(_same(array, weight) for weight in weights):
            name = qtyping.TFLOperationName[kind]
            tool.update_quantization_recipe(f"^{re.escape(scope)}", name, algorithm_key="no_quantize")
    ranges = tool.calibrate({"serving_default": pictures}, num_threads=1)
    tool.quantize(ranges).export_model(str(file), overwrite=True)
    _shorten(file)
    return floats


def _same(array: Any, weight: Tensor) -> bool:
    """Whether a weight of LiteRT's, (out, H, W, in) or (1, H, W, channels), is this one."""
    order = (1, 2, 3, 0) if weight.dim() == 4 and weight.shape[1] == 1 else (0, 2, 3, 1)
    ours = weight.permute(order) if weight.dim() == 4 else weight
    return array.shape == tuple(ours.shape) and bool(abs(array - ours.numpy()).max() < 1e-6)


def _layers(file: Path) -> list[tuple[str, str, Any, list[Any]]]:
    """The layers: kind, name, weights as an array, and the tensors (input, weights, output)."""
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils as flatbuffer

    network = flatbuffer.read_model(str(file))
    tensors, layers = network.subgraphs[0].tensors, []
    for op in network.subgraphs[0].operators:
        kind = LAYERS.get(network.operatorCodes[op.opcodeIndex].builtinCode)
        if kind:
            read = [tensors[i] for i in (*op.inputs[:2], op.outputs[0])]
            array = flatbuffer.get_tensor_data(read[1], network.buffers)
            layers.append((kind, flatbuffer.get_op_scope(op, tensors), array, read))
    return layers


def _shorten(file: Path) -> None:
    """Number the tensors: their names, a path in the model for each, take several per cent of an 8-bit file."""
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils as flatbuffer

    network = flatbuffer.read_model(str(file))
    for graph in network.subgraphs:
        for i, tensor in enumerate(graph.tensors):
            tensor.name = str(i).encode()
    flatbuffer.write_model(network, str(file))


def check_tflite(file: Path) -> list[str]:
    """ValueError unless the layers read and give 8 bits, and their weights are stored so."""
    layers = [
        Layer(f"{kind} {scope}", math.prod(tensors[1].shape), all(tensor.type == INT8 for tensor in tensors))
        for kind, scope, _, tensors in _layers(file)
    ]
    return check_layers(file, layers)
