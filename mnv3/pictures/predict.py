"""Classify picture files with a model."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..factory import check_pooled, class_names, transforms
from ..layers import evaluating, finite
from . import images
from .inputs import Transform, check_channels


class Prediction(NamedTuple):
    """The most likely classes of one file, or why there are none."""

    file: Path
    topk: list[dict[str, Any]]  # index, label (None where there are no names), prob; the most likely first
    error: str | None = None


def predict(
    model: nn.Module,
    files: str | os.PathLike | Iterable[str | os.PathLike],
    *,
    topk: int = 5,
    batch_size: int = 32,
) -> Iterator[Prediction]:
    """The most likely classes of every picture, in order; files that cannot be read have an `error` and no classes.

    Args:
        model: A classifier with its `pretrained_cfg`, on any device; it is put into eval mode while it runs.
        files: Files, and folders of pictures; or a single one.
        topk: How many classes.
        batch_size: Pictures per forward pass.

    Raises:
        ValueError: `topk` or `batch_size` is below 1, or the model has no classifier, no pooling, or takes neither RGB
            nor grey.
        WeightsError: While it runs, if the model gives NaN or infinity.
    """
    for name, value in (("topk", topk), ("batch_size", batch_size)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: expected a whole number of at least 1")
    if not model.num_classes:
        raise ValueError("the model has no classifier (num_classes=0): nothing to predict")
    check_pooled(model)
    check_channels(model, grey=True, source="files are read as RGB or grey")
    return _predict(model, images.find(files), min(topk, model.num_classes), batch_size)


def _predict(model: nn.Module, files: Iterator[Path], topk: int, batch_size: int) -> Iterator[Prediction]:
    names, transform = class_names(model), transforms(model)
    with ThreadPoolExecutor(max_workers=2) as pool:  # Pillow decodes outside the interpreter lock
        while batch := list(islice(files, batch_size)):
            inputs = list(pool.map(lambda path: _load(path, transform), batch))
            readable = [x for x in inputs if isinstance(x, Tensor)]
            results = iter(_classify(model, torch.stack(readable), topk) if readable else ())
            for path, x in zip(batch, inputs, strict=True):
                if isinstance(x, Tensor):
                    classes = [{"index": i, "label": names and names[i], "prob": p} for p, i in next(results)]
                    yield Prediction(path, classes)
                else:
                    yield Prediction(path, [], error=x)


def _load(path: Path, transform: Transform) -> Tensor | str:
    """The model's input (C, H, W) of a file, or why it cannot be read."""
    try:
        return transform(images.load(path))
    except images.PictureError as error:
        return str(error)


def _classify(model: nn.Module, x: Tensor, topk: int) -> list[list[tuple[float, int]]]:
    """Probability and index of the `topk` classes of each picture of (B, C, H, W)."""
    parameter = next(model.parameters())
    with evaluating(model):
        probs, indices = finite(model(x.to(parameter)).float()).softmax(1).topk(topk)
    return [list(zip(p, i, strict=True)) for p, i in zip(probs.tolist(), indices.tolist(), strict=True)]
