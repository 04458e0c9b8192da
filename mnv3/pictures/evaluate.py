"""Accuracy of a model on pictures with classes."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..factory import check_pooled, class_names, transforms
from ..files.atomic import write_atomically
from ..layers import evaluating, finite, nonfinite_error
from .class_folders import composed
from .data import DataError, EvalPictures, Pictures, files_loader

TTA = ("none", "flip")


@dataclass(frozen=True)
class Metrics:
    """What an evaluation found. Accuracies in per cent."""

    count: int
    top1: float
    top5: float
    loss: float  # mean cross-entropy, in nats
    classes: list[str]
    per_class: dict[str, float]  # of those that there are pictures of
    confusion: list[list[int]]  # [true class][predicted class]

    def save(self, path: str | Path) -> None:
        """Write them as JSON."""
        write_atomically(Path(path), (json.dumps(dataclasses.asdict(self), indent=1) + "\n").encode())


def evaluate(
    model: nn.Module,
    pictures: Pictures,
    *,
    batch_size: int = 256,
    tta: str = "none",
    workers: int = 2,
    accelerator: Any = None,
) -> Metrics:
    """Evaluate in the model's precision, with the preprocessing of its weights; its modes are left as they were.

    Args:
        model: A classifier with its `pretrained_cfg`, on any device.
        pictures: See `mnv3.data.load`.
        batch_size: Pictures per forward pass.
        tta: 'flip' averages the probabilities of each picture and its mirror image.
        workers: Processes that read pictures that are not held in memory.
        accelerator: Shares the pictures out to its processes; each gets the metrics of all.

    Raises:
        DataError: The pictures do not have the model's number of classes or channels, or one cannot be read.
        ValueError: An unknown `tta`, or a model without pooling.
        WeightsError: The model gives NaN or infinity.
    """
    if tta not in TTA:
        raise ValueError(f"tta={tta!r}: expected one of {', '.join(TTA)}")
    names, labels = _in_order_of(model, pictures)
    classes = len(names)
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    mine = range(rank, len(pictures), world)
    batches = [list(mine[start : start + batch_size]) for start in range(0, len(mine), batch_size)]
    parameter = next(model.parameters())
    confusion = torch.zeros(classes, classes, dtype=torch.long)
    sums = torch.zeros(3, dtype=torch.float64)  # loss, pictures with their class in the top 5, those without an answer
    with evaluating(model):
        for batch, x in zip(batches, _inputs(model, pictures, batches, workers), strict=True):
            y = labels[batch]
            logits = _logits(model, x.to(parameter), tta).float().cpu()
            sums[0] += F.cross_entropy(logits.double(), y, reduction="sum")
            sums[1] += (logits.topk(min(5, classes)).indices == y[:, None]).sum()
            sums[2] += (~logits.isfinite()).any(1).sum()  # an error of all processes, below: others would wait for one
            confusion += torch.bincount(y * classes + logits.argmax(1), minlength=classes**2).view_as(confusion)
    if world > 1:
        confusion, sums = (accelerator.reduce(t.to(accelerator.device)).cpu() for t in (confusion, sums))
    if wrong := int(sums[2]):
        raise nonfinite_error(wrong, len(pictures))
    hits, counts = confusion.diag().tolist(), confusion.sum(1).tolist()
    per_class = {name: 100 * hit / count for name, hit, count in zip(names, hits, counts, strict=True) if count}
    loss, top5 = (sums[:2] / len(pictures)).tolist()
    loss = round(loss, 6)  # beyond lies the rounding of float32 logits, which depends on the batches
    top1 = 100 * sum(hits) / len(pictures)
    return Metrics(len(pictures), top1, 100 * top5, loss, names, per_class, confusion.tolist())


def probabilities(
    model: nn.Module, pictures: Pictures, *, batch_size: int = 256, workers: int = 2
) -> tuple[list[str], Tensor, Tensor]:
    """What the model says of every picture: class names, labels (N,) and probabilities (N, classes), in their order.

    Args, errors and preprocessing are those of `evaluate`.
    """
    names, labels = _in_order_of(model, pictures)
    batches = [batch.tolist() for batch in torch.arange(len(pictures)).split(batch_size)]
    parameter = next(model.parameters())
    with evaluating(model):
        batches = _inputs(model, pictures, batches, workers)
        found = [finite(model(x.to(parameter)).float()).softmax(1).cpu() for x in batches]
    return names, labels, torch.cat(found)


def _in_order_of(model: nn.Module, pictures: Pictures) -> tuple[list[str], Tensor]:
    """Class names and labels (N,) in the model's order, which need not be that of the folders."""
    check_pooled(model)
    known, given = [composed(name) for name in class_names(model) or ()], pictures.classes
    if (channels := getattr(model, "in_chans", 3)) != 3:
        raise DataError(f"the model takes pictures of in_chans={channels}: these are RGB")
    if model.num_classes != len(given):
        raise DataError(
            f"the model has {model.num_classes} classes and the pictures {len(given)}: {', '.join(given[:5])}"
        )
    if known and known != given and sorted(known) == sorted(given):
        return known, torch.tensor([known.index(name) for name in given])[pictures.labels]
    return given, pictures.labels


def _inputs(model: nn.Module, pictures: Pictures, batches: list[list[int]], workers: int) -> Iterator[Tensor]:
    cfg = model.pretrained_cfg
    if pictures.held and pictures.source.shape[1:] == cfg["input_size"] and cfg["crop_pct"] == 1:
        mean, std = (torch.tensor(cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
        for batch in batches:  # what the transform below would do, to whole batches
            yield (pictures.source[batch] / 255 - mean) / std
    else:
        yield from files_loader(EvalPictures(pictures, transforms(model)), batches, workers)


def _logits(model: nn.Module, x: Tensor, tta: str) -> Tensor:
    logits = model(x)
    if tta == "flip":
        return torch.stack([logits, model(x.flip(3))]).float().log_softmax(-1).logsumexp(0)  # up to a constant
    return logits
