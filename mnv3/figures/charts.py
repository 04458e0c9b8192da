"""Charts of a training, an evaluation and a benchmark, as files that commands write and as panels of other figures."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import style

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

MAX_NAMED = 30  # classes that can be named along an axis
MAX_LARGE = 12  # classes that have room for a larger script, and for numbers in the cells of a matrix
CURVES = {  # columns of log.csv by the label of their axis
    "cross-entropy / nats": ("train_loss", "val_loss"),
    "learning rate": ("lr",),
    "validation top-1 / %": ("val_top1",),
}
CURVE_NAMES = {"train_loss": "training", "val_loss": "validation"}


def curves(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write loss, learning rate and accuracy over the epochs of a training (lines of its log.csv) as PNG or SVG."""
    style.figure([style.Row(3.0, curve_panels(history))], path=path, extra="finetune")


def confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str], path: Path) -> None:
    """Write a confusion matrix [true][predicted] as PNG or SVG."""
    draw = partial(draw_confusion, matrix=matrix, classes=classes)
    style.figure([style.Row(6.5, [draw])], path=path, extra="finetune")


def bars(rows: Sequence[tuple[str, Mapping[str, float]]], label: str, path: Path) -> None:
    """Write a group of horizontal bars for each row (its name, and values by name) as PNG or SVG."""
    draw = partial(draw_bars, rows=rows, label=label)
    style.figure([style.Row(1.2 + 0.4 * len(rows), [draw])], path=path, extra="finetune")


def curve_panels(history: Sequence[Mapping[str, Any]]) -> list[style.Panel]:
    """A panel for each of `CURVES` that a training's log has."""
    columns = {label: [key for key in keys if key in history[0]] for label, keys in CURVES.items()}
    return [partial(draw_curve, history=history, keys=keys, label=label) for label, keys in columns.items() if keys]


def draw_curve(subfigure: "SubFigure", history: Sequence[Mapping[str, Any]], keys: Sequence[str], label: str) -> None:
    """Draw columns of a training's log over its epochs."""
    axis = subfigure.subplots()
    epochs = [line["epoch"] for line in history]
    for key in keys:
        marker = "." if len(epochs) < 30 else None
        axis.plot(epochs, [line[key] for line in history], marker=marker, label=CURVE_NAMES.get(key))
    axis.set(xlabel="epoch", ylabel=label)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid()
    if keys[0] in CURVE_NAMES:
        axis.legend()


def draw_confusion(
    subfigure: "SubFigure",
    matrix: Sequence[Sequence[int]],
    classes: Sequence[str],
    **colour_bar: Any,
) -> None:
    """Draw a confusion matrix [true][predicted] in per cent of each true class, and its colour bar.

    Args:
        subfigure: Where.
        matrix: Counts, (classes, classes).
        classes: Names.
        colour_bar: Options of matplotlib's `colorbar`.
    """
    axis = subfigure.subplots()
    counts = np.array(matrix, dtype=float)
    percent = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axis.imshow(percent, cmap="cividis", vmin=0, vmax=100)
    axis.set(xlabel="predicted class", ylabel="true class")
    axis.spines[:].set_visible(False)
    if len(classes) <= MAX_NAMED:
        size, names = _script(classes), [style.short(name, 20) for name in classes]
        axis.set_xticks(range(len(classes)), names, rotation=90, size=size)
        axis.set_yticks(range(len(classes)), names, size=size)
    if len(classes) <= MAX_LARGE:
        for (row, column), value in np.ndenumerate(percent):
            colour = "black" if value > 50 else "white"
            text = f"{value:.0f}" if value >= 0.5 or row == column else ""
            axis.text(column, row, text, ha="center", va="center", color=colour, size=7)
    subfigure.colorbar(image, label="% of the true class", **({"shrink": 0.8} | colour_bar))


def draw_class_accuracies(subfigure: "SubFigure", matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
    """Draw the accuracy of every class that has pictures with its 95 % interval, the lowest first, as many as fit."""
    axis = subfigure.subplots()
    tested = [(row[i], sum(row), name) for i, (row, name) in enumerate(zip(matrix, classes, strict=True)) if sum(row)]
    worst = sorted(tested, key=lambda entry: entry[0] / entry[1])[:MAX_NAMED]
    for line, (hits, count, _) in enumerate(worst):
        low, high = wilson_interval(hits, count)
        share = hits / count
        axis.barh(line, 100 * share, 0.65, color=style.colours()[0])
        axis.errorbar(100 * share, line, xerr=[[100 * (share - low)], [100 * (high - share)]], color=style.ink(), lw=1)
        axis.text(2, line, f"{100 * share:.1f}", va="center", size=7, color=style.paper(), weight="bold")
    axis.set_yticks(range(len(worst)), [style.short(name, 20) for _, _, name in worst], size=_script(worst))
    axis.set(xlim=(0, 100), ylim=(len(worst) - 0.4, -0.6), xlabel="top-1 / %, with its 95 % interval")
    title = f"the worst {len(worst)} of {len(tested)} classes" if len(worst) < len(tested) else "by class"
    axis.set_title(title, size=9)
    axis.grid(axis="x")


def _script(classes: Sequence[object]) -> int:
    """The size of the classes' names, in points."""
    return 8 if len(classes) <= MAX_LARGE else 6


def wilson_interval(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Ends of the confidence interval of a share (Wilson 1927); 1.96 standard deviations to either side are 95 %."""
    share, weight = hits / count, z * z / count
    middle, half = share + weight / 2, z * math.sqrt(share * (1 - share) / count + weight / (4 * count))
    low, high = ((middle + sign * half) / (1 + weight) for sign in (-1, 1))
    return min(max(low, 0.0), share), max(min(high, 1.0), share)  # beyond lies rounding


def draw_bars(subfigure: "SubFigure", rows: Sequence[tuple[str, Mapping[str, float]]], label: str) -> None:
    """Draw a group of horizontal bars for each row: its name, and values by name."""
    axis = subfigure.subplots()
    names = list(dict.fromkeys(name for _, values in rows for name in values))
    height = 0.8 / len(names)
    for i, name in enumerate(names):
        bottoms = [row + i * height for row, (_, values) in enumerate(rows) if name in values]
        axis.barh(bottoms, [values[name] for _, values in rows if name in values], height, label=name)
    axis.set_yticks([row + 0.4 - height / 2 for row in range(len(rows))], [name for name, _ in rows])
    axis.invert_yaxis()
    axis.set(xlabel=label)
    axis.grid(axis="x")
    axis.legend()
