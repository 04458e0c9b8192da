"""How a model becomes a file of each format of `mnv3 export`; formats.py has the table."""

import copy
import io
import json
import tempfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import SqueezeExcite

# The lowest opset that PyTorch's exporter writes without a conversion; HardSwish has been an operator since 14.
ONNX_OPSET = 18
METADATA = "mnv3"  # the key, or the end of a file's name, under which formats hold what exporter.py knows of the model


@dataclass(frozen=True, kw_only=True)
class Graph:
    """What is to be written."""

    model: nn.Module  # in eval mode on the CPU, batch norm folded, nothing in place
    example: Tensor  # (B, C, H, W), of the type that the file will take
    dynamic: tuple[str, ...]  # of 'batch', 'size'
    half: bool  # weights as float16
    metadata: dict[str, Any]

    def dynamic_axes(self) -> dict[int, str]:
        """The axes of the input that may be another in every call, and their names."""
        names = {"batch": {0: "batch"}, "size": {2: "height", 3: "width"}}
        return {axis: name for key in self.dynamic for axis, name in names[key].items()}

    def program(self) -> torch.export.ExportedProgram:
        """The model as torch.export has it. A dynamic dimension must not be 1 in the example, which would fix it."""
        least = self.metadata["stride"] + 1  # pixels; fewer give a 1x1 map, which torch.export would fix
        axes = self.dynamic_axes()
        dims = {axis: torch.export.Dim(name, min=least if axis else None) for axis, name in axes.items()}
        example = self.example.new_zeros(2 if 0 in axes else len(self.example), *self.example.shape[1:])
        with torch.no_grad():
            return torch.export.export(self.model, (example,), dynamic_shapes={"x": dims} if dims else None)


def write_pt2(graph: Graph, file: Path) -> None:
    """Write torch.export's archive."""
    save_program(graph.program(), file, extra_files={METADATA: json.dumps(graph.metadata)})


def save_program(program: torch.export.ExportedProgram, file: Path, **options: Any) -> None:
    """Write torch.export's archive; by way of memory, as PyTorch's own writer ends the process where a disk is full."""
    program.example_inputs = None  # it would be stored
    archive = io.BytesIO()
    torch.export.save(program, archive, **options)
    file.write_bytes(archive.getbuffer())


def write_torchscript(graph: Graph, file: Path) -> None:
    """Write a trace, which takes any batch and size, with its weights as constants."""
    with torch.no_grad():
        traced = torch.jit.freeze(torch.jit.trace(graph.model, graph.example))
    _save_script(traced, file, _extra_files={METADATA: json.dumps(graph.metadata)})


def _save_script(script: torch.jit.ScriptModule, file: Path, **options: Any) -> None:
    archive = io.BytesIO()  # as in `save_program`
    torch.jit.save(script, archive, **options)
    file.write_bytes(archive.getbuffer())


def write_onnx(graph: Graph, file: Path) -> None:
    """Write one ONNX file, with HardSwish as an operator, which runtimes have kernels for."""
    import onnx

    program = replace(graph, model=clipped_gates(graph.model)).program()
    model = torch.onnx.export(
        program,
        input_names=["input"],
        output_names=["output"],
        dynamic_shapes={"x": graph.dynamic_axes()},  # for their names alone
        dynamo=True,
        external_data=False,
        opset_version=ONNX_OPSET,
        verbose=False,
    ).model_proto
    for part in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info):
        del part.metadata_props[:]  # the exporter's notes, with paths of this machine
    lowest_versions(model)
    if graph.half:
        _halve(model)
    onnx.helper.set_model_props(model, {METADATA: json.dumps(graph.metadata)})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, file)


def clipped_gates(model: nn.Module) -> nn.Module:
    """A copy whose gates of squeeze-and-excite are a convolution and a clip to 0..1, equal to rounding.

    OpenCV takes x * hard_sigmoid(gate) for h-swish, x * hard_sigmoid(x), without a word. With the 1/6 and the 1/2 in
    the convolution there are no more operators than before, and runtimes fuse the clip into it.
    """
    model = copy.deepcopy(model)
    with torch.no_grad():
        for block in (module for module in model.modules() if isinstance(module, SqueezeExcite)):
            block.excite.weight.div_(6)
            block.excite.bias.div_(6).add_(0.5)
            block.gate = nn.Hardtanh(0.0, 1.0)
    return model


def lowest_versions(model: Any) -> None:
    """Have an ONNX model name the operator sets that it uses and the lowest IR version for them: others are refused."""
    import onnx

    used = {node.domain for node in model.graph.node}
    opsets = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    model.ir_version = onnx.helper.find_min_ir_version_for(opsets)


def _halve(model: Any) -> None:
    """Store an ONNX model's weights as float16; runtimes turn them back into float32 when they load it."""
    import onnx
    from onnx import numpy_helper

    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
            name, half = tensor.name, numpy_helper.to_array(tensor).astype("float16")
            tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
            casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def write_openvino(graph: Graph, file: Path) -> None:
    """Write OpenVINO's .xml and .bin; by way of ONNX, which keeps what dynamic sizes need."""
    import openvino

    through = file.with_suffix(".onnx")
    write_onnx(replace(graph, half=False), through)
    model = openvino.Core().read_model(through)  # convert_model would report to Intel, by way of Google Analytics
    model.set_rt_info(json.dumps(graph.metadata), METADATA)
    openvino.save_model(model, file, compress_to_fp16=graph.half)  # True by default
    through.unlink()


def write_executorch(graph: Graph, file: Path) -> None:
    """Write a program for ExecuTorch, all of it in XNNPACK."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = to_edge_transform_and_lower(graph.program(), partitioner=[XnnpackPartitioner()]).to_executorch()
    file.write_bytes(program.buffer)
    attach(file, graph.metadata)


def write_tflite(graph: Graph, file: Path) -> None:
    """Write LiteRT's file, whose input is (B, H, W, C), as tools for Android expect."""
    convert_tflite(graph.model, graph.example, file)
    if graph.half:
        _halve_tflite(file)
    attach(file, graph.metadata)


def convert_tflite(model: nn.Module, example: Tensor, file: Path) -> None:
    """Write LiteRT's file alone, for an example (B, C, H, W)."""
    import litert_torch

    last = litert_torch.to_channel_last_io(model, args=[0]).eval()
    network = litert_torch.convert(last, (example.permute(0, 2, 3, 1).contiguous(),))
    file.write_bytes(network.model_content())  # its own writer ends the process where a disk is full


def _halve_tflite(file: Path) -> None:
    from ai_edge_quantizer import qtyping, quantizer

    half = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
    config = qtyping.OpQuantizationConfig(
        weight_tensor_config=half, compute_precision=qtyping.ComputePrecision.FLOAT, explicit_dequantize=True
    )
    tool = quantizer.Quantizer(str(file))
    tool.update_quantization_recipe(
        regex=".*",
        operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
        op_config=config,
        algorithm_key="float_casting",
    )
    tool.quantize().export_model(str(file), overwrite=True)


def write_coreml(graph: Graph, file: Path) -> None:
    """Write Core ML's package, which only a Mac or an iPhone runs."""
    import coremltools

    precision = coremltools.precision.FLOAT16 if graph.half else coremltools.precision.FLOAT32  # the former by default
    model = coremltools.convert(
        graph.program().run_decompositions({}),
        minimum_deployment_target=coremltools.target.iOS16,
        compute_precision=precision,
    )
    model.user_defined_metadata[METADATA] = json.dumps(graph.metadata)
    model.save(str(file))


def write_ncnn(graph: Graph, file: Path) -> None:
    """Write ncnn's .param and .bin, by pnnx."""
    import pnnx

    with tempfile.TemporaryDirectory(dir=file.parent) as work:
        _save_script(torch.jit.trace(graph.model, graph.example, check_trace=False), Path(work, "m.pt"))
        pnnx.convert(f"{work}/m.pt", (graph.example,), fp16=graph.half)
        Path(work, "m.ncnn.param").rename(file)
        Path(work, "m.ncnn.bin").rename(file.with_suffix(".bin"))
    attach(file, graph.metadata)


def attach(file: Path, metadata: dict[str, Any]) -> None:
    """Give a file that is there its metadata."""
    to, text = metadata["format"], json.dumps(metadata)
    if to == "onnx":
        import onnx

        model = onnx.load(file)
        onnx.helper.set_model_props(model, {METADATA: text})
        onnx.save(model, file)
    elif to == "openvino":
        import openvino

        model = openvino.Core().read_model(file)
        model.set_rt_info(text, METADATA)
        again = file.with_name(f"again-{file.name}")
        openvino.save_model(model, again, compress_to_fp16=False)
        del model  # it reads the .bin as it goes
        for suffix in (".bin", ".xml"):
            again.with_suffix(suffix).replace(file.with_suffix(suffix))
        # its indentation is half of the .xml, and a tenth of an 8-bit model
        lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
        file.write_text("\n".join(lines), encoding="utf-8")
    elif to == "pt2":
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr(f"{archive.namelist()[0].partition('/')[0]}/extra/{METADATA}", text)
    else:
        beside(file).write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")


def beside(file: Path) -> Path:
    """The JSON file with the metadata of `file`; `seal` adds the digests."""
    return file.with_name(f"{file.name}.json")
