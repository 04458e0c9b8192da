"""What a training and an evaluation look like: one axis each."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from . import style

SHOWN = 30  # classes that can be named along an axis
NAMES = {"train_loss": "training", "val_loss": "validation"}


def curve(axis: Any, history: Sequence[Mapping[str, Any]], keys: Sequence[str], label: str) -> None:
    """Columns of a training's log over its epochs, those that it has."""
    epochs = [line["epoch"] for line in history]
    for key in (key for key in keys if key in history[0]):
        marker = "." if len(epochs) < 30 else None
        axis.plot(epochs, [line[key] for line in history], marker=marker, label=NAMES.get(key))
    axis.set(xlabel="epoch", ylabel=label)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid()
    if len(keys) > 1:
        axis.legend()


def curves(history: Sequence[Mapping[str, Any]]) -> list[tuple[Sequence[str], str]]:
    """Keys and labels of the curves that a log has."""
    found = [(("train_loss", "val_loss"), "cross-entropy / nats"), (("lr",), "learning rate")]
    return [*found, (("val_top1",), "validation top-1 / %")] if "val_top1" in history[0] else found


def curve_parts(history: Sequence[Mapping[str, Any]]) -> list[style.Draw]:
    """What draws the curves that a log has, each onto a part of a figure."""

    def draw(place: Any, keys: Sequence[str], label: str) -> None:
        curve(place.subplots(), history, keys, label)

    return [partial(draw, keys=keys, label=label) for keys, label in curves(history)]


def confusion(axis: Any, matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> Any:
    """A confusion matrix [true][predicted] in per cent of each true class; returns what a colour bar is made of."""
    counts = np.array(matrix, dtype=float)
    percent = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axis.imshow(percent, cmap="cividis", vmin=0, vmax=100)
    axis.set(xlabel="predicted class", ylabel="true class")
    axis.spines[:].set_visible(False)
    if len(classes) <= SHOWN:
        size, classes = 8 if len(classes) <= 12 else 6, [style.short(name, 20) for name in classes]
        axis.set_xticks(range(len(classes)), classes, rotation=90, size=size)
        axis.set_yticks(range(len(classes)), classes, size=size)
    if len(classes) <= 12:
        for (row, column), value in np.ndenumerate(percent):
            colour = "black" if value > 50 else "white"
            text = f"{value:.0f}" if value >= 0.5 or row == column else ""
            axis.text(column, row, text, ha="center", va="center", color=colour, size=7)
    return image


def by_class(axis: Any, matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> int:
    """Accuracy of every class with its 95 % interval, the least first; returns how many are drawn (the worst)."""
    counts = np.array(matrix)
    found = [(row[i], row.sum(), name) for i, (row, name) in enumerate(zip(counts, classes, strict=True)) if row.sum()]
    found = sorted(found, key=lambda entry: entry[0] / entry[1])[:SHOWN]
    for line, (hits, count, _) in enumerate(found):
        low, high = wilson(hits, count)
        share = hits / count
        axis.barh(line, 100 * share, 0.65, color=style.colours()[0])
        axis.errorbar(100 * share, line, xerr=[[100 * (share - low)], [100 * (high - share)]], color=style.ink(), lw=1)
        axis.text(2, line, f"{100 * share:.1f}", va="center", size=7, color=style.paper(), weight="bold")
    axis.set_yticks(
        range(len(found)), [style.short(name, 20) for _, _, name in found], size=8 if len(found) <= 12 else 6
    )
    axis.set(xlim=(0, 100), ylim=(len(found) - 0.4, -0.6), xlabel="top-1 / %, with its 95 % interval")
    axis.grid(axis="x")
    return len(found)


def wilson(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share (Wilson 1927)."""
    share, weight = hits / count, z * z / count
    middle, half = share + weight / 2, z * math.sqrt(share * (1 - share) / count + weight / (4 * count))
    low, high = ((middle + sign * half) / (1 + weight) for sign in (-1, 1))
    return min(max(low, 0.0), share), max(min(high, 1.0), share)  # beyond lies rounding


def bars(axis: Any, rows: Sequence[tuple[str, Mapping[str, float]]], label: str) -> None:
    """A group of horizontal bars for each row: its name, and values by name."""
    names = list(dict.fromkeys(name for _, values in rows for name in values))
    height = 0.8 / len(names)
    for i, name in enumerate(names):
        places = [place + i * height for place, (_, values) in enumerate(rows) if name in values]
        axis.barh(places, [values[name] for _, values in rows if name in values], height, label=name)
    axis.set_yticks([place + 0.4 - height / 2 for place in range(len(rows))], [name for name, _ in rows])
    axis.invert_yaxis()
    axis.set(xlabel=label)
    axis.grid(axis="x")
    axis.legend()
