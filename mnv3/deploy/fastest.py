"""The fastest way to run a model in this process, found by trying."""

import copy
import statistics
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import onednn
from ..errors import ExportError, names
from ..folding import fuse
from ..layers import check_own_weights, evaluating
from . import runtime
from .exporter import export, picture_size
from .formats import FORMATS
from .timing import interleaved

TOLERANCE = 1e-4  # of the largest logit


@dataclass(frozen=True)
class Choice:
    """What `optimize` found; give it to `optimize` to have the same again without measuring."""

    candidate: str
    shape: tuple[int, int, int, int]  # of the batch that it is for
    threads: int
    milliseconds: dict[str, float]  # median time of a batch, by candidate; those that could not be had are missing


class Optimized(nn.Module):
    """A model for inference: float32 pictures (B, C, H, W) on the CPU to logits (B, num_classes).

    `choice` says what runs pictures of its shape; others go through the fused model.
    """

    def __init__(self, model: nn.Module, fast: Callable[[Tensor], Tensor], choice: Choice) -> None:
        super().__init__()
        self.fused, self._fast, self.choice = fuse(model), fast, choice
        self.num_classes, self.in_chans, self.pretrained_cfg = model.num_classes, model.in_chans, model.pretrained_cfg
        self.eval()

    def train(self, mode: bool = True) -> "Optimized":
        """Only evaluation."""
        return super().train(False)

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return self._fast(x) if tuple(x.shape) == self.choice.shape else self.fused(x)


def optimize(
    model: nn.Module,
    *,
    batch: int = 1,
    size: int | None = None,
    candidates: Iterable[str] | None = None,
    choice: Choice | None = None,
) -> Optimized:
    """The fastest form of `model` for float32 inference on this CPU with as many threads as PyTorch has now.

    Each candidate is built, checked against the model's logits (to 1e-4 of the largest) and timed in turn with the
    others. Runtimes that are not installed are left out.

    Args:
        model: A model of this package, in eval mode on the CPU.
        batch: Pictures at a time.
        size: Side of the pictures, in pixels; by default that of the weights.
        candidates: Of `CANDIDATES`; by default all but 'compile', which takes a minute.
        choice: What an earlier call found, on a machine like this one.

    Raises:
        ValueError: The model is in training mode or not in float32 on the CPU, or a candidate is unknown.
        ImportError: The choice's runtime is not installed.
    """
    check_own_weights(model)
    parameter = next(model.parameters())
    if model.training or parameter.device.type != "cpu" or parameter.dtype != torch.float32:
        raise ValueError("optimize() needs a float32 model on the CPU in eval mode: model.cpu().float().eval()")
    default = [name for name in CANDIDATES if name != "compile"]
    tried = default if candidates is None else names("candidates", candidates, CANDIDATES)
    if choice:
        return Optimized(model, CANDIDATES[choice.candidate](model, torch.zeros(choice.shape)), choice)
    size = picture_size(model, size, batch)
    x = torch.randn(batch, model.in_chans, size, size, generator=torch.Generator().manual_seed(0))
    with evaluating(model):
        expected = model(x)
    built = {}
    for name in tried:
        try:
            run = CANDIDATES[name](model, x)
        except (ImportError, ExportError):
            if candidates is not None:
                raise
            continue
        with torch.inference_mode():
            difference = (run(x) - expected).abs().max()
        if difference <= TOLERANCE * expected.abs().max().clamp(min=1):
            built[name] = run
    medians = {name: statistics.median(times) for name, times in interleaved(built, x).items()}
    best = min(medians, key=medians.__getitem__)
    milliseconds = {name: round(median, 3) for name, median in medians.items()}
    return Optimized(model, built[best], Choice(best, tuple(x.shape), torch.get_num_threads(), milliseconds))


def _eager(model: nn.Module, x: Tensor) -> nn.Module:
    return copy.deepcopy(model)  # whatever becomes of the model


def _fused(model: nn.Module, x: Tensor) -> nn.Module:
    return fuse(model)


def _onednn(model: nn.Module, x: Tensor) -> nn.Module:
    if not onednn.available():
        raise ImportError("this PyTorch has no oneDNN")
    return onednn.pack(model, x)


def _compile(model: nn.Module, x: Tensor) -> Any:
    return torch.compile(fuse(model), dynamic=False, options={"freezing": True})


def _exported(to: str) -> Callable[[nn.Module, Tensor], Callable[[Tensor], Tensor]]:
    def build(model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"model{FORMATS[to].suffix}"
            export(model, file, to=to, batch=len(x), size=x.shape[-1])
            return runtime.load(file).run

    return build


CANDIDATES = {
    "eager": _eager,
    "fused": _fused,
    "onednn": _onednn,
    "compile": _compile,
    "onnx": _exported("onnx"),
    "openvino": _exported("openvino"),
    "tflite": _exported("tflite"),
}
