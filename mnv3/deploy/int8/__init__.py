"""Static int8 files, one recipe per runtime: weights and activations of 8 bits, ranges from calibration pictures."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from .onnx import check_onnx, write_onnx
from .openvino import check_openvino, write_openvino
from .pt2e import check_executorch, check_pt2, write_executorch, write_pt2
from .tflite import check_tflite, write_tflite

# (model as `deployable` gives it, file, batches (B, C, H, W) to calibrate on) to the names of its layers left in float
WRITERS: dict[str, Callable[[nn.Module, Path, list[Tensor]], list[str]]] = {
    "onnx": write_onnx,
    "openvino": write_openvino,
    "executorch": write_executorch,
    "tflite": write_tflite,
    "pt2": write_pt2,
}
# ValueError unless the file computes with 8 bits, else the layers that it has in float, under its own names
CHECKS: dict[str, Callable[[Path], list[str]]] = {
    "onnx": check_onnx,
    "openvino": check_openvino,
    "executorch": check_executorch,
    "tflite": check_tflite,
    "pt2": check_pt2,
}
