"""Classify picture files with a model."""

import math
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..factory import check_pooled, class_names, transforms
from ..layers import evaluating, finite
from . import images
from .ahead import default_workers
from .inference import BATCH, answered
from .inputs import Preprocessing, check_channels

SPARE = 1.25  # times the pixels of the resized picture, along a side, that a JPEG is decoded with at least


class Prediction(NamedTuple):
    """The most likely classes of one file, or why there are none."""

    file: Path
    topk: list[dict[str, Any]]  # index, label (None where there are no names), prob; the most likely first
    error: str | None = None


def predict(
    model: nn.Module,
    files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    topk: int = 5,
    batch_size: int = BATCH,
    workers: int | None = None,
    exact: bool = False,
    whole_batches: bool = False,
) -> Iterator[Prediction]:
    """The most likely classes of every picture, in order; files that cannot be read have an `error` and no classes.

    Args:
        model: A classifier with its `pretrained_cfg`, on any device; it is put into eval mode while it runs.
        files: Files, and folders of pictures; or a single one.
        topk: How many classes.
        batch_size: Pictures per forward pass; the next ones are read meanwhile.
        workers: Threads that read, resize and, for a MobileNetV3 in float32 on the CPU, compute; by default as many as
            processors, at most 16.
        exact: Decode all pixels of every JPEG. By default one that is much larger than what the model takes is decoded
            at 1/2, 1/4 or 1/8 of its size (see `mnv3.images.load`).
        whole_batches: Fill up batches that have fewer pictures (the last one, and where a file cannot be read), so that
            no bit of a probability depends on which pictures come together.

    Raises:
        ValueError: `topk`, `batch_size` or `workers` is below 1, or the model has no classifier, no pooling, or takes
            neither RGB nor grey.
        WeightsError: While it runs, if the model gives NaN or infinity.
    """
    workers = default_workers() if workers is None else workers
    for name, value in (("topk", topk), ("batch_size", batch_size), ("workers", workers)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: expected a whole number of at least 1")
    if not model.num_classes:
        raise ValueError("the model has no classifier (num_classes=0): nothing to predict")
    check_pooled(model)
    check_channels(model, grey=True, source="files are read as RGB or grey")
    topk, fill = min(topk, model.num_classes), batch_size if whole_batches else 0
    return _predict(model, files, topk, batch_size, workers=workers, exact=exact, fill=fill)


def _predict(
    model: nn.Module, files: Iterable[Any], topk: int, batch_size: int, *, workers: int, exact: bool, fill: int
) -> Iterator[Prediction]:
    names, preprocessing = class_names(model), Preprocessing(transforms(model))
    load = partial(_load, preprocessing=preprocessing, at_least=None if exact else _pixels(model.pretrained_cfg))

    def classes(network: nn.Module, batch: list[tuple[Path, Tensor | str]]) -> list[list[tuple[float, int]]]:
        readable = [x for _, x in batch if isinstance(x, Tensor)]
        return _classify(network, preprocessing.batch(readable), topk, fill) if readable else []

    for batch, found in answered(model, images.find(files), load, classes, batch_size=batch_size, workers=workers):
        results = iter(found)
        for path, x in batch:
            if isinstance(x, Tensor):
                yield Prediction(path, [{"index": i, "label": names and names[i], "prob": p} for p, i in next(results)])
            else:
                yield Prediction(path, [], error=x)


def _pixels(cfg: dict[str, Any]) -> int:
    """Along the shorter side of a picture: as many as its resizing needs to be nearly that of the whole picture."""
    return math.ceil(SPARE * max(cfg["input_size"][1:]) / (cfg.get("crop_pct") or 1))


def _load(path: Path, preprocessing: Preprocessing, at_least: int | None) -> Tensor | str:
    """What the preprocessing makes of a file, or why it cannot be read."""
    try:
        return preprocessing.picture(images.load(path, at_least=at_least))
    except images.PictureError as error:
        return str(error)


def _classify(model: nn.Module, x: Tensor, topk: int, fill: int) -> list[list[tuple[float, int]]]:
    """Probability and index of the `topk` classes of each picture of (B, C, H, W), in a batch of at least `fill`."""
    parameter, count = next(model.parameters()), len(x)
    if count < fill:
        x = torch.cat([x, x[-1:].expand(fill - count, -1, -1, -1)])
    with evaluating(model):
        logits = model(x.to(parameter)).float()[:count]
        probs, indices = finite(logits).softmax(1).topk(topk)
    return [list(zip(p, i, strict=True)) for p, i in zip(probs.tolist(), indices.tolist(), strict=True)]
