"""Whether an exported file gives what the model gives, on pictures."""

import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ExportError
from ..factory import transforms
from ..layers import evaluating
from ..pictures import images
from ..pictures.inputs import check_channels, load_batch
from . import runtime

PICTURES = 16  # to check by, drawn here or taken of those given


def inputs(model: nn.Module, size: int, pictures: Any, *, normalize: bool = False, count: int = PICTURES) -> Tensor:
    """Pictures to check by (N, C, size, size): preprocessed ones, or the bytes that `normalize` puts into a graph.

    Raises:
        ValueError: None of the files is a picture that can be read.
    """
    if pictures is None:
        return _normalized(_drawn(count, model.in_chans, size), model, normalize)
    check_channels(model)
    transform = transforms(model, input_size=(model.in_chans, size, size), mean=(0, 0, 0), std=(1, 1, 1))
    chosen = images.spread(list(images.find(pictures)), count)
    if not chosen:
        raise ValueError(f"no pictures in {pictures}")
    return _normalized(load_batch(chosen, transform), model, normalize)


def _normalized(x: Tensor, model: nn.Module, raw: bool) -> Tensor:
    """From numbers from 0 to 1."""
    if raw:
        return (x * 255).round().to(torch.uint8)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in mean_std(model))
    return (x - mean) / std


def mean_std(model: nn.Module) -> tuple[list[float], list[float]]:
    """One number for each of the model's channels; where its weights' are of others, the mean of those."""
    known = (list(model.pretrained_cfg[name]) for name in ("mean", "std"))
    mean, std = (v if len(v) == model.in_chans else [sum(v) / len(v)] * model.in_chans for v in known)
    return mean, std


def _drawn(count: int, channels: int, size: int) -> Tensor:
    """Coloured clouds: noise with as much in every octave, as photographs have."""
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(count, channels, size, size)
    cells = 1
    while cells <= size:
        noise = torch.randn(count, channels, cells, cells, generator=generator)
        x += F.interpolate(noise, size=(size, size), mode="bilinear", align_corners=False)
        cells *= 2
    return (x / x.std() * 0.25 + 0.5).clamp(0, 1)


def compare(
    model: nn.Module, file: Path, x: Tensor, metadata: dict[str, Any], tolerance: float
) -> tuple[float, float, float]:
    """Largest difference, largest logit, agreement in per cent; raises ExportError above the tolerance."""
    model = copy.deepcopy(model).cpu().float()  # as it was exported: bfloat16 would give other logits
    with runtime.quiet():
        exported = runtime.load(file)
        tries = [x]
        if "batch" in metadata["dynamic"] or metadata["batch"] > 1:
            tries.append(x[:3])
        if "size" in metadata["dynamic"]:  # where a padding for one size would show
            side = x.shape[-1]
            tries += [
                x[:2, :, :, : side - 1],
                F.pad(x[:2], (0, 5, 0, 2)),
                x[:1, :, 1:, : max(side // 2, model.stride + 1)],
            ]
        results = [(_reference(model, batch, metadata), _outputs(exported, batch)) for batch in tries]
    difference = max((ours - theirs).abs().max().item() for ours, theirs in results)
    largest = max(ours.abs().max().item() for ours, _ in results)
    same = torch.cat([ours.argmax(1) == theirs.argmax(1) for ours, theirs in results])
    if not difference <= tolerance * max(largest, 1.0):  # also if it is not a number
        raise ExportError(
            f"the {metadata['format']} file gives other logits than the model, by up to {difference:.2g} where "
            f"{tolerance * max(largest, 1.0):.2g} is allowed: nothing was written"
        )
    return difference, largest, 100 * same.float().mean().item()


def _reference(model: nn.Module, x: Tensor, metadata: dict[str, Any]) -> Tensor:
    """The model's own logits, or what is left of them after a softmax."""
    if metadata["normalize"]:
        x = _normalized(x / 255, model, False)
    with evaluating(model):
        logits = model(x)
    return logits.log_softmax(1) if metadata["softmax"] else logits


def _outputs(exported: runtime.Exported, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return exported(x.float())
