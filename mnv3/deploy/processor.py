"""The processor that figures are measured on: its name, what is installed, and how fast it can be at all."""

import importlib.metadata
import os
import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .timing import call_times

SIDE = 1024  # of the matrices: larger than what a layer multiplies, and still in the caches
INSTRUCTIONS = {"avx512_vnni": "VNNI", "avx_vnni": "VNNI", "amx_int8": "AMX"}  # for 8 bits, in /proc/cpuinfo
PACKAGES = ("torch", "timm", "torchvision", "onnxruntime", "openvino", "executorch", "ai-edge-litert", "ncnn")


@dataclass(frozen=True)
class Limit:
    """How fast it multiplies matrices, in 10^9 additions and multiplications a second."""

    float32: float
    int8: float | None  # None where this PyTorch has no oneDNN with 8 bits

    def __str__(self) -> str:
        int8 = f", {self.int8:,.0f} GOP/s in 8 bits" if self.int8 else ""
        return f"{self.float32:,.0f} GFLOP/s in float32{int8}"


def measure_limit(threads: int, *, seconds: float = 1.0) -> Limit:
    """Multiply square matrices: by `torch.mm`, and in 8 bits by oneDNN, which uses VNNI and AMX where there are any.

    Args:
        threads: How many to use.
        seconds: For how long in each type; the median counts.
    """
    before = torch.get_num_threads()
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(SIDE, SIDE, generator=generator) for _ in range(2))
    try:
        torch.set_num_threads(threads)
        return Limit(_rate(lambda x: torch.mm(x, b), a, seconds), _int8_rate(a, b, seconds))
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def _int8_rate(a: Tensor, b: Tensor, seconds: float) -> float | None:
    onednn = torch.ops.onednn
    if not (torch.backends.mkldnn.is_available() and hasattr(onednn, "qlinear_pointwise")):
        return None
    x, weight = (30 * a + 128).clamp(0, 255).to(torch.uint8), (30 * b).clamp(-127, 127).to(torch.int8)
    packed = onednn.qlinear_prepack(weight, [SIDE, SIDE])
    scales, zeros = torch.full((SIDE,), 0.01), torch.zeros(SIDE, dtype=torch.long)
    after = (None, 1.0, 128, torch.uint8, "none", [], "")  # no bias; the result's scale, zero and type; no function
    return _rate(lambda x: onednn.qlinear_pointwise(x, 0.01, 128, packed, scales, zeros, *after), x, seconds)


def _rate(multiply: Callable[[Tensor], object], x: Tensor, seconds: float) -> float:
    return 2e-6 * SIDE**3 / statistics.median(call_times(multiply, x, seconds=seconds))


def name() -> str:
    """Its model, cores, and instructions for vectors and for 8 bits."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    has = dict.fromkeys(name for flag, name in INSTRUCTIONS.items() if flag in flags)
    features = ", ".join((torch.backends.cpu.get_cpu_capability(), *has))
    return f"{model or platform.machine()}, {os.cpu_count()} cores, {features}"


def versions() -> dict[str, str]:
    """Of the installed packages that have to do with speed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
