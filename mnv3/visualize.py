"""Pictures of trainings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def curves(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Loss, accuracy and learning rate over the epochs of a training (lines of its log.csv), as a PNG."""
    epochs = [line["epoch"] for line in history]
    panels = [("cross-entropy / nats", ["train_loss", "val_loss"]), ("learning rate", ["lr"])]
    if "val_top1" in history[0]:
        panels.append(("validation top-1 / %", ["val_top1"]))
    figure, axes = _figure(len(panels), width=4)
    for axis, (label, keys) in zip(axes, panels, strict=True):
        for key in (key for key in keys if key in history[0]):
            name = {"train_loss": "training", "val_loss": "validation"}.get(key)
            axis.plot(epochs, [line[key] for line in history], marker="." if len(epochs) < 30 else None, label=name)
        axis.set(xlabel="epoch", ylabel=label)
        axis.grid(alpha=0.3)
    axes[0].legend()
    _write(figure, path)


def bars(rows: Sequence[tuple[str, dict[str, float]]], label: str, path: Path) -> None:
    """A group of horizontal bars for each row (its name, and values by name), as a PNG."""
    figure, (axis,) = _figure(1, width=8)
    names = list(dict.fromkeys(name for _, values in rows for name in values))
    height = 0.8 / len(names)
    for i, name in enumerate(names):
        places = [place + i * height for place, (_, values) in enumerate(rows) if name in values]
        axis.barh(places, [values[name] for _, values in rows if name in values], height, label=name)
    axis.set_yticks([place + 0.4 - height / 2 for place in range(len(rows))], [name for name, _ in rows])
    axis.invert_yaxis()
    axis.set(xlabel=label)
    axis.grid(axis="x", alpha=0.3)
    axis.legend(fontsize=8)
    _write(figure, path)


def confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str], path: Path) -> None:
    """A confusion matrix [true][predicted] in per cent of each true class, as a PNG."""
    counts = np.array(matrix, dtype=float)
    percent = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, (axis,) = _figure(1, width=max(4, min(12, 2 + 0.5 * len(classes))), square=True)
    image = axis.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    axis.set(xlabel="predicted class", ylabel="true class")
    if len(classes) <= 30:
        axis.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
        axis.set_yticks(range(len(classes)), classes)
    if len(classes) <= 12:
        for (row, column), value in np.ndenumerate(percent):
            colour = "white" if value > 50 else "black"
            axis.text(column, row, f"{value:.1f}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, label="% of the true class", shrink=0.8)
    _write(figure, path)


def _figure(panels: int, *, width: float, square: bool = False) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure  # not pyplot: it needs no display and keeps no global state
    except ImportError:
        raise ImportError("figures need matplotlib: pip install 'mnv3[finetune]'") from None
    figure = Figure(figsize=(width * panels, width if square else 3.2), layout="constrained")
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def _write(figure: Any, path: Path) -> None:
    draft = path.with_name(f".{path.name}")
    figure.savefig(draft, format="png", dpi=120)
    draft.replace(path)
