"""Whether an exported file gives what the model gives, on pictures."""

import copy
import os
from collections.abc import Iterable
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
from .packages import quiet
from .runtime import Exported, load

PICTURES = 16  # to check by, drawn here or taken of those given


def inputs(
    model: nn.Module,
    size: int,
    pictures: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | None,
    *,
    normalize: bool = False,
    count: int = PICTURES,
) -> Tensor:
    """Pictures to check by.

    Args:
        model: The model whose preprocessing they get.
        size: Their side, in pixels.
        pictures: Files or folders to take them from; None for drawn ones.
        normalize: Whether the normalisation is in the file to be checked, which then takes bytes.
        count: How many at most.

    Returns:
        A batch (N, C, size, size): float32, or uint8 with `normalize`.

    Raises:
        ValueError: None of the files is a picture that can be read.
    """
    if pictures is None:
        return _prepared(_drawn(count, model.in_chans, size), model, as_bytes=normalize)
    check_channels(model)
    transform = transforms(model, input_size=(model.in_chans, size, size), mean=(0, 0, 0), std=(1, 1, 1))
    chosen = images.spread(list(images.find(pictures)), count)
    if not chosen:
        raise ValueError(f"no pictures in {pictures}")
    return _prepared(load_batch(chosen, transform), model, as_bytes=normalize)


def _prepared(x: Tensor, model: nn.Module, *, as_bytes: bool = False) -> Tensor:
    """Pictures of numbers from 0 to 1, normalised for the model, or as bytes."""
    if as_bytes:
        return (x * 255).round().to(torch.uint8)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in mean_std(model))
    return (x - mean) / std


def mean_std(model: nn.Module) -> tuple[list[float], list[float]]:
    """Mean and standard deviation for each of the model's channels; its weights' average where those have others."""
    given = (list(model.pretrained_cfg[name]) for name in ("mean", "std"))
    mean, std = (v if len(v) == model.in_chans else [sum(v) / len(v)] * model.in_chans for v in given)
    return mean, std


def _drawn(count: int, channels: int, size: int) -> Tensor:
    """Coloured clouds (N, C, size, size): noise with as much in every octave, as photographs have."""
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
    """Run an exported file and compare it with its model.

    Args:
        model: The model.
        file: The file.
        x: Pictures (N, C, H, W) as the file takes them.
        metadata: The file's.
        tolerance: Largest difference of logits, as a share of the largest logit.

    Returns:
        The largest difference of logits, the largest logit, and on how many per cent of the pictures top-1 agrees.

    Raises:
        ExportError: The difference is above the tolerance.
    """
    model = copy.deepcopy(model).cpu().float()  # as it was exported: bfloat16 would give other logits
    with quiet():
        exported = load(file)
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
        x = _prepared(x / 255, model)
    with evaluating(model):
        logits = model(x)
    return logits.log_softmax(1) if metadata["softmax"] else logits


def _outputs(exported: Exported, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return exported(x.float())
