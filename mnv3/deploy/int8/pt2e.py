"""int8 by PyTorch's quantisation of exported graphs (torchao's pt2e): ExecuTorch's XNNPACK, and Inductor on x86."""

import json
import math
import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...hooks import watching
from ...layers import Conv2dSame
from ..writers import save_program
from .prepare import Layer, check_layers, clip, prepare


def _quantised(model: nn.Module, batches: list[Tensor], quantizer: Any) -> torch.export.ExportedProgram:
    """Observe the exported graph on the batches, then a program for one picture."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    pair = batches[0].new_zeros(2, *batches[0].shape[1:])
    with torch.no_grad():
        exported = torch.export.export(model, (pair,), dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
        graph = prepare_pt2e(exported.module(check_guards=False), quantizer)
        for x in batches:
            graph(x)
        graph = convert_pt2e(graph)
        used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
        for name in [name for name, _ in graph.named_parameters() if name not in used]:  # the float weights
            owner, _, last = name.rpartition(".")
            delattr(graph.get_submodule(owner), last)
        return torch.export.export(graph, (pair[:1],))


def write_executorch(model: nn.Module, file: Path, batches: list[Tensor]) -> list[str]:
    """All in XNNPACK, with zero points, per-channel weights, and ranges of least squared error; one picture a time."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
    from executorch.exir import to_edge_transform_and_lower

    model, floats = prepare(model, batches)
    clip(model)
    config = xnnpack.get_symmetric_quantization_config(is_per_channel=True)

    def becomes_8_bits(node: torch.fx.Node) -> bool:
        modules = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
        return not set(modules) & set(floats)

    quantizer = xnnpack.XNNPACKQuantizer().set_global(config)
    quantizer.set_filter_function(becomes_8_bits)
    program = to_edge_transform_and_lower(_quantised(model, batches, quantizer), partitioner=[XnnpackPartitioner()])
    file.write_bytes(program.to_executorch().buffer)
    return floats


def check_executorch(file: Path) -> list[str]:
    """ValueError unless XNNPACK has the layers, and computes them with 8 bits."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    program = deserialize_pte_binary(file.read_bytes()).program
    layers = []
    for part in program.execution_plan[0].delegates:
        graph = _xnnpack_graph(program.backend_delegate_data[part.processed.index].data)
        values = {}
        for value in graph["xvalues"]:
            tensor = value["xvalue_union"]
            tensor = tensor.get("tensor_value", tensor)
            values[tensor.get("id_out", 0)] = tensor
        for node in graph["xnodes"]:
            if node["xnode_union_type"] in ("XNNConv2d", "XNNDepthwiseConv2d", "XNNFullyConnected"):
                ids = [node["xnode_union"].get(key, 0) for key in ("input1_id", "filter_id", "output_id")]
                kinds = [values[i].get("datatype") for i in ids]
                eight_bits = kinds == ["xnn_datatype_qint8", "xnn_datatype_qcint8", "xnn_datatype_qint8"]
                layers.append(Layer(node["xnode_union_type"], math.prod(values[ids[1]]["dims"]), eight_bits))
    return check_layers(file, layers)


def _xnnpack_graph(data: bytes) -> dict[str, Any]:
    """What ExecuTorch hands over to XNNPACK, as JSON by its own schema."""
    from importlib import resources

    from executorch.backends.xnnpack import serialization
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    header = XNNHeader.from_bytes(bytes(data[: XNNHeader.EXPECTED_LENGTH]))
    with tempfile.TemporaryDirectory() as name:
        schema, binary = Path(name) / "schema.fbs", Path(name) / "graph.bin"
        schema.write_bytes(resources.files(serialization).joinpath("schema.fbs").read_bytes())
        binary.write_bytes(data[header.flatbuffer_offset :][: header.flatbuffer_size])
        _flatc_decompile(name, str(schema), str(binary), ["--raw-binary"])
        text = binary.with_suffix(".json").read_text()
    return json.loads(re.sub(r": -?(inf|nan)\b", ": null", text))


def write_pt2(model: nn.Module, file: Path, batches: list[Tensor]) -> list[str]:
    """torch.export's archive with quantised operators, which Inductor turns into oneDNN's; one picture at a time."""
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    model, floats = prepare(model, batches, outputs=False)
    # 7 bits for activations: without VNNI the kernels saturate
    config = x86.get_default_x86_inductor_quantization_config(reduce_range=True)
    quantizer = x86.X86InductorQuantizer().set_global(config)
    padded = _plain_convolutions(model, batches[0][:1])
    for name in floats:
        quantizer.set_module_name_qconfig(f"{name}.1" if name in padded else name, None)
    program = _quantised(model, batches, quantizer)
    for node in program.graph.nodes:
        for key in ("stack_trace", "nn_module_stack", "from_node", "torch_fn", "source_fn_stack"):
            node.meta.pop(key, None)  # where it came from: a fifth of the file
    save_program(program, file)
    _compress(file)
    return floats


def _plain_convolutions(model: nn.Module, picture: Tensor) -> set[str]:
    """Only nn.Conv2d itself: X86InductorQuantizer looks for modules of just that type, not for convolutions.

    Returns:
        The names of those that have become a padding and a convolution.
    """
    same = {name: m for name, m in model.named_modules() if isinstance(m, Conv2dSame)}
    with torch.no_grad(), watching(same.values(), lambda x, _: x.shape[-2:]) as sides:
        model(picture)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.__class__ = nn.Conv2d
    for name, conv in same.items():
        height, width = sides[conv]
        kernel = conv.kernel_size[0]
        zeros = nn.ZeroPad2d((*_same_padding(width, kernel), *_same_padding(height, kernel)))
        model.set_submodule(name, nn.Sequential(zeros, conv))
    return set(same)


def _same_padding(side: int, kernel: int) -> tuple[int, int]:
    """How many zeros TensorFlow's 'SAME' has before and after a side of so many pixels, at a stride of 2."""
    after = kernel // 2
    before = after if side % 2 else after - 1
    return before, after


def _compress(file: Path) -> None:
    """Deflate the archive's JSON, a sixth of an 8-bit model's file; PyTorch's reader takes either."""
    with zipfile.ZipFile(file) as archive:
        entries = [(info, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(file, "w") as archive:
        for info, content in entries:
            small = info.filename.endswith(".json")
            archive.writestr(info.filename, content, zipfile.ZIP_DEFLATED if small else zipfile.ZIP_STORED)


def check_pt2(file: Path) -> list[str]:
    """ValueError unless the layers read 8-bit weights and 8-bit inputs."""
    from torch.ao.quantization.fx import _decomposed  # noqa: F401  it registers the operators

    layers = []
    for node in torch.export.load(file).graph.nodes:
        if node.op == "call_function" and node.target in (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default):
            data, weight = node.args[:2]
            while data.target == torch.ops.aten.pad.default:
                data = data.args[0]
            eight_bits = (
                "dequantize" in str(data.target)
                and "dequantize" in str(weight.target)
                and weight.args[0].meta["val"].dtype == torch.int8
            )
            layers.append(Layer(node.name, weight.meta["val"].numel(), eight_bits))
    return check_layers(file, layers)
