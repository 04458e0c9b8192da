"""A training and what it led to: curves, confusion, classes, calibration, and the worst mistakes."""

import logging
import math
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..figures import panels, style
from ..pictures import data
from ..train.results import PARTS, Answers, Results, read
from . import calibration

logger = logging.getLogger(__name__)
MISTAKES = 18


def run(
    folder: str | os.PathLike,
    *,
    what: Sequence[str] = PARTS,
    data: str | None = None,
    data_dir: str | None = None,
    path: str | os.PathLike | None = None,
    dark: bool = False,
) -> Any:
    """Draw a run that `mnv3 finetune` wrote.

    Args:
        folder: The run's.
        what: Of `PARTS`. Curves need its log alone, the confusion matrix and classes its test.json; for the other two
            its model is evaluated again on its test pictures.
        data, data_dir: Where these lie now, if not where the recipe says.
        path: A PNG or SVG to write.
        dark: On black.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: It is no run's folder, is not finished, has no test pictures, or they are gone; the message says
            which parts can be drawn without.
        WeightsError: Its weights are damaged.
    """
    if not what or (unknown := [name for name in what if name not in PARTS]):
        raise ValueError(f"what={', '.join(unknown) if what else 'nothing'}: expected some of {', '.join(PARTS)}")
    with style.page(path, dark=dark):
        results = read(folder, what=what, data=data, data_dir=data_dir)
        rows = [row for name in PARTS if name in what for row in DRAWN[name](results)]
        return style.finish(style.sheet(rows, title=summary(results)), path)


def summary(results: Results) -> str:
    """The run in one line."""
    recipe, test = results.recipe, results.test
    words = [recipe.model, Path(recipe.data).name, f"{len(results.history)} epochs"]
    if test:
        words.append(f"top-1 {test.top1:.2f} % of {test.count} test pictures")
    return ", ".join(words)


def curve_rows(results: Results) -> list[style.Row]:
    """Loss, learning rate and accuracy, side by side."""
    return [(2.6, panels.curve_parts(results.history))]


def confusion_rows(results: Results) -> list[style.Row]:
    """The confusion matrix, and every class."""

    def matrix(place: Any) -> None:
        image = panels.confusion(place.subplots(), results.test.confusion, results.test.classes)
        place.colorbar(image, label="% of the true class", location="bottom", shrink=0.8, aspect=40)

    def classes(place: Any) -> None:
        axis = place.subplots()
        drawn, there = panels.by_class(axis, results.test.confusion, results.test.classes), len(results.test.per_class)
        axis.set_title(f"the worst {drawn} of {there} classes" if drawn < there else "by class", size=9)

    return [(4.9, [matrix, classes])]


def calibration_rows(results: Results) -> list[style.Row]:
    """Whether the model is right as often as it says."""
    found = calibration.calibration(results.answers.probs, results.answers.labels)
    return [(3.2, [partial(draw, found=found) for draw in (calibration.draw_reliability, calibration.draw_counts)])]


def worst(answers: Answers, count: int = MISTAKES) -> list[tuple[int, int, int, float]]:
    """Wrong answers that the model is surest of: picture, true class, answer, its probability."""
    sure, answer = answers.probs.max(1)
    wrong = (answer != answers.labels).nonzero().flatten()
    wrong = wrong[sure[wrong].argsort(descending=True, stable=True)][:count]
    return [(i, answers.labels[i].item(), answer[i].item(), sure[i].item()) for i in wrong.tolist()]


def mistake_rows(results: Results, width: float = style.WIDTH) -> list[style.Row]:
    """A sheet of the worst mistakes, for a figure of this width in inches."""
    columns, count = (6, MISTAKES) if width > style.NARROW else (3, 12)
    found = worst(results.answers, count)

    def draw(place: Any) -> None:
        place.suptitle("the mistakes that it is surest of: true class → answer", x=0.01, ha="left", size=9)
        axes = place.subplots(lines, columns, squeeze=False).flatten()
        for axis in axes:
            axis.axis("off")
        for axis, (i, label, answer, sure) in zip(axes, found, strict=False):
            axis.imshow(thumbnail(results.answers.pictures, i))
            names = [style.short(results.answers.names[k], 16) for k in (label, answer)]
            axis.set_title(f"{names[0]} →\n{names[1]} {100 * sure:.0f} %", size=8, loc="center", pad=3)

    def nothing(place: Any) -> None:
        place.text(0.01, 0.5, "no mistakes: every test picture is classified right", va="center")

    lines = math.ceil(len(found) / columns)
    return [(0.4 + lines * (width / columns + 0.4), [draw])] if found else [(0.5, [nothing])]


def thumbnail(pictures: data.Pictures, index: int, side: int = 160) -> np.ndarray:
    """A picture of a data set, uint8 (H, W, 3), not larger than it is to be shown."""
    found = pictures.picture(index)
    if not pictures.held:
        found.thumbnail((side, side))
    return np.asarray(found)


DRAWN = {
    "curves": curve_rows,
    "confusion": confusion_rows,
    "calibration": calibration_rows,
    "mistakes": mistake_rows,
}
