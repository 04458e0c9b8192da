"""Accuracy of a model on pictures with classes."""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import DataError
from ..factory import check_pooled, class_names, transforms
from ..files.atomic import write_atomically
from ..layers import evaluating, finite, nonfinite_error
from .ahead import default_workers
from .class_folders import composed
from .data import Pictures
from .inference import BATCH, answered
from .inputs import Preprocessing, check_channels, held_batches, is_held_as_input

if TYPE_CHECKING:
    from accelerate import Accelerator

TTA = ("none", "flip")


@dataclass(frozen=True)
class Metrics:
    """The result of an evaluation. Accuracies in per cent."""

    count: int
    top1: float
    top5: float
    loss: float  # mean cross-entropy, in nats
    classes: list[str]
    per_class: dict[str, float]  # of those that there are pictures of
    confusion: list[list[int]]  # [true class][predicted class]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write them as JSON."""
        write_atomically(Path(path), (json.dumps(dataclasses.asdict(self), indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Metrics":
        """Read what `save` wrote; in files of mnv3 0.1.0, the classes are named in `per_class` alone.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It cannot be read, or has something else in it.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            per_class = {str(name): float(accuracy) for name, accuracy in values["per_class"].items()}
            metrics = cls(
                count=int(values["count"]),
                top1=float(values["top1"]),
                top5=float(values["top5"]),
                loss=float(values["loss"]),
                classes=[str(name) for name in values.get("classes", per_class)],
                per_class=per_class,
                confusion=[[int(count) for count in row] for row in values["confusion"]],
            )
            if problem := metrics._problem():
                raise ValueError(problem)
        except FileNotFoundError:
            raise
        except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
            raise ValueError(f"{path}: cannot be read as metrics of `mnv3 eval`: {error!r}") from None
        return metrics

    def _problem(self) -> str | None:
        """What does not fit together."""
        if not all(0 <= accuracy <= 100 for accuracy in (self.top1, self.top5, *self.per_class.values())):
            return "an accuracy is no percentage"
        if not math.isfinite(self.loss):
            return "the loss is not finite"
        if [len(row) for row in self.confusion] != [len(self.classes)] * len(self.classes):
            return "confusion has not a row and a column for each class"
        if min(map(min, self.confusion), default=0) < 0 or sum(map(sum, self.confusion)) != self.count:
            return "confusion does not add up to count"
        if unknown := set(self.per_class) - set(self.classes):
            return f"per_class has {min(unknown)!r}, which is not in classes"
        return None


def evaluate(
    model: nn.Module,
    pictures: Pictures,
    *,
    batch_size: int = 256,
    tta: str = "none",
    workers: int | None = None,
    accelerator: "Accelerator | None" = None,
) -> Metrics:
    """Evaluate in the model's precision, with the preprocessing of its weights; its modes are left as they were.

    Args:
        model: A classifier with its `pretrained_cfg`, on any device.
        pictures: See `mnv3.data.load`.
        batch_size: Pictures per forward pass; of files at most 16 on the CPU.
        tta: 'flip' averages the probabilities of each picture and its mirror image.
        workers: Threads that read, and compute (see `mnv3.predict`), where the pictures are not held in memory.
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
    compute = partial(_logits, tta=tta)
    confusion = torch.zeros(classes, classes, dtype=torch.long)
    sums = torch.zeros(3, dtype=torch.float64)  # loss, pictures with their class in the top 5, those without an answer
    with evaluating(model):
        for batch, logits in _in_batches(model, pictures, mine, compute, batch_size=batch_size, workers=workers):
            y, logits = labels[batch], logits.float().cpu()
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
    model: nn.Module, pictures: Pictures, *, batch_size: int = 256, workers: int | None = None
) -> tuple[list[str], Tensor, Tensor]:
    """The probability of every class for every picture; arguments and errors are those of `evaluate`.

    Returns:
        Names of the classes in the model's order, labels (N,) and probabilities (N, classes) of the pictures in theirs.
    """
    names, labels = _in_order_of(model, pictures)
    everything = range(len(pictures))
    with evaluating(model):
        answers = _in_batches(model, pictures, everything, _logits, batch_size=batch_size, workers=workers)
        probs = [finite(logits.float()).softmax(1).cpu() for _, logits in answers]
    return names, labels, torch.cat(probs)


def _in_batches(
    model: nn.Module,
    pictures: Pictures,
    indices: Sequence[int],
    compute: Callable[[nn.Module, Tensor], Tensor],
    *,
    batch_size: int,
    workers: int | None,
) -> Iterator[tuple[list[int], Tensor]]:
    """Indices of pictures in batches, and what `compute` makes of the model and the pictures (B, 3, H, W)."""
    cfg, parameter = model.pretrained_cfg, next(model.parameters())
    if is_held_as_input(pictures, cfg):
        batches = [list(indices[start : start + batch_size]) for start in range(0, len(indices), batch_size)]
        for batch, x in zip(batches, held_batches(pictures, cfg, batches), strict=True):
            yield batch, compute(model, x.to(parameter))
        return
    preprocessing = Preprocessing(transforms(model))

    def answer(network: nn.Module, batch: list[tuple[int, Tensor]]) -> Tensor:
        with torch.inference_mode():
            return compute(network, preprocessing.batch([x for _, x in batch]).to(parameter))

    def load(index: int) -> Tensor:
        return preprocessing.picture(pictures.picture(index))

    workers = default_workers() if workers is None else max(workers, 1)
    batch_size = min(batch_size, BATCH) if parameter.device.type == "cpu" else batch_size
    for batch, logits in answered(model, indices, load, answer, batch_size=batch_size, workers=workers):
        yield [index for index, _ in batch], logits


def _in_order_of(model: nn.Module, pictures: Pictures) -> tuple[list[str], Tensor]:
    """Class names and labels (N,) in the model's order, which need not be that of the folders."""
    check_pooled(model)
    check_channels(model, source="these are RGB")
    known, given = [composed(name) for name in class_names(model) or ()], pictures.classes
    if model.num_classes != len(given):
        raise DataError(
            f"the model has {model.num_classes} classes and the pictures {len(given)}: {', '.join(given[:5])}"
        )
    if known and known != given and sorted(known) == sorted(given):
        return known, torch.tensor([known.index(name) for name in given])[pictures.labels]
    return given, pictures.labels


def _logits(model: nn.Module, x: Tensor, tta: str = "none") -> Tensor:
    """Logits (B, classes); with 'flip', log probabilities of the mean of both views, up to a constant."""
    logits = model(x)
    if tta == "flip":
        return torch.stack([logits, model(x.flip(3))]).float().log_softmax(-1).logsumexp(0)
    return logits
