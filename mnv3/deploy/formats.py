"""The formats of `mnv3 export`: what each can do, which packages it needs, and what writes it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import writers
from .writers import Graph


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format's properties."""

    suffix: str
    write: Callable[[Graph, Path], None]
    runtime: tuple[str, ...] = ()  # modules to import to run it,
    writers: tuple[str, ...] = ()  # besides those to write it,
    int8_writers: tuple[str, ...] = ()  # and besides those for its 8-bit form
    extra: str = "deploy"  # of setup.cfg, which has them
    dynamic: tuple[str, ...] = ()  # what may be dynamic in it
    half: bool = False  # whether it can have float16 weights
    batches: bool = True  # whether it can take more than one picture at a time
    takes_bytes: bool = True
    own_metadata: bool = True  # whether it has a place for what it is, else that is in a JSON file beside it
    copies: int = 1  # of the weights that lie on the disk while it is written
    layout: str = "NCHW"
    tolerance: float = 1e-4  # largest difference of logits, as a share of the largest logit
    half_tolerance: float = 1e-2


FORMATS = {
    "pt2": Format(suffix=".pt2", write=writers.write_pt2, int8_writers=("torchao",), dynamic=("batch", "size")),
    "torchscript": Format(suffix=".torchscript", write=writers.write_torchscript, dynamic=("batch", "size")),
    "onnx": Format(
        suffix=".onnx",
        write=writers.write_onnx,
        runtime=("onnxruntime",),
        writers=("onnx", "onnxscript"),
        dynamic=("batch", "size"),
        half=True,
    ),
    "openvino": Format(
        suffix=".xml",
        write=writers.write_openvino,
        runtime=("openvino",),
        writers=("onnx", "onnxscript"),
        int8_writers=("nncf",),
        dynamic=("batch", "size"),
        half=True,
        copies=2,
    ),
    "executorch": Format(
        suffix=".pte",
        write=writers.write_executorch,
        runtime=("executorch",),
        int8_writers=("torchao",),
        extra="executorch",
        own_metadata=False,
    ),
    "tflite": Format(
        suffix=".tflite",
        write=writers.write_tflite,
        runtime=("ai_edge_litert",),
        writers=("litert_torch", "ai_edge_quantizer"),
        extra="litert",
        half=True,
        layout="NHWC",
        own_metadata=False,
    ),
    "ncnn": Format(
        suffix=".param",
        write=writers.write_ncnn,
        runtime=("ncnn",),
        writers=("pnnx",),
        extra="ncnn",
        half=True,
        batches=False,
        takes_bytes=False,
        own_metadata=False,
        copies=5,
    ),
    "coreml": Format(
        suffix=".mlpackage",
        write=writers.write_coreml,
        writers=("coremltools",),
        extra="coreml",
        half=True,
        takes_bytes=False,
    ),
}
