"""Figures of a training and its tests: curves, confusion, classes, calibration, and the worst mistakes."""

import math
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..figures import charts, style
from ..pictures import data
from ..train.results import PARTS, Answers, Results, read
from .calibration import calibration, draw_counts, draw_reliability

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure


def run(
    folder: str | os.PathLike[str],
    *,
    what: Sequence[str] = PARTS,
    data: str | None = None,
    data_dir: str | None = None,
    path: str | os.PathLike[str] | None = None,
    dark: bool = False,
) -> "Figure":
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
    style.check(path)
    results = read(folder, what=what, data=data, data_dir=data_dir)
    rows = [ROWS[name](results) for name in PARTS if name in what]
    return style.figure(rows, title=summary(results), path=path, dark=dark)


def summary(results: Results) -> str:
    """The run in one line."""
    recipe, test = results.recipe, results.test
    words = [recipe.model, Path(recipe.data).name, f"{len(results.history)} epochs"]
    if test:
        words.append(f"top-1 {test.top1:.2f} % of {test.count} test pictures")
    return ", ".join(words)


def curves_row(results: Results) -> style.Row:
    """Loss, learning rate and accuracy over the epochs."""
    return style.Row(2.6, charts.curve_panels(results.history))


def confusion_row(results: Results) -> style.Row:
    """The confusion matrix, and the accuracy of every class."""
    shown = {"matrix": results.test.confusion, "classes": results.test.classes}
    matrix = partial(charts.draw_confusion, **shown, location="bottom", aspect=40)
    return style.Row(4.9, [matrix, partial(charts.draw_class_accuracies, **shown)])


def calibration_row(results: Results) -> style.Row:
    """Whether the model is right as often as it says."""
    measured = calibration(results.answers.probs, results.answers.labels)
    return style.Row(3.2, [partial(draw, calibration=measured) for draw in (draw_reliability, draw_counts)])


class Mistake(NamedTuple):
    """A wrong answer."""

    index: int  # of the picture
    label: int
    answer: int
    prob: float  # of the answer


def worst_mistakes(answers: Answers, count: int) -> list[Mistake]:
    """The wrong answers that the model is surest of, `count` at most."""
    probs, predicted = answers.probs.max(1)
    wrong = (predicted != answers.labels).nonzero().flatten()
    wrong = wrong[probs[wrong].argsort(descending=True, stable=True)][:count]
    return [Mistake(i, answers.labels[i].item(), predicted[i].item(), probs[i].item()) for i in wrong.tolist()]


def mistakes_row(results: Results, width: float = style.WIDTH) -> style.Row:
    """The worst mistakes, for a figure of this width in inches."""
    columns, count = (6, 18) if width > style.NARROW else (3, 12)
    answers, mistakes = results.answers, worst_mistakes(results.answers, count)
    lines = math.ceil(len(mistakes) / columns)

    def draw(subfigure: "SubFigure") -> None:
        subfigure.suptitle("the mistakes that it is surest of: true class → answer", x=0.01, ha="left", size=9)
        axes = subfigure.subplots(lines, columns, squeeze=False).flatten()
        for axis in axes:
            axis.axis("off")
        for axis, mistake in zip(axes, mistakes, strict=False):
            axis.imshow(thumbnail(answers.pictures, mistake.index))
            label, answer = (style.short(answers.names[i], 16) for i in (mistake.label, mistake.answer))
            axis.set_title(f"{label} →\n{answer} {100 * mistake.prob:.0f} %", size=8, loc="center", pad=3)

    def draw_none(subfigure: "SubFigure") -> None:
        subfigure.text(0.01, 0.5, "no mistakes: every test picture is classified right", va="center")

    return style.Row(0.4 + lines * (width / columns + 0.4), [draw]) if mistakes else style.Row(0.5, [draw_none])


def thumbnail(pictures: data.Pictures, index: int, side: int = 160) -> np.ndarray:
    """A picture of a data set, uint8 (H, W, 3), scaled down to `side` pixels where it is read from a file."""
    picture = pictures.picture(index)
    if not pictures.held:
        picture.thumbnail((side, side))
    return np.asarray(picture)


ROWS = {
    "curves": curves_row,
    "confusion": confusion_row,
    "calibration": calibration_row,
    "mistakes": mistakes_row,
}
