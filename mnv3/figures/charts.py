"""Pictures that other commands write beside their results; see `mnv3.show` for all others."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files.atomic import write_atomically
from . import panels, style


def curves(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Loss, accuracy and learning rate over the epochs of a training (lines of its log.csv), as a PNG or SVG."""
    _draw(path, [(3.0, panels.curve_parts(history))])


def bars(rows: Sequence[tuple[str, dict[str, float]]], label: str, path: Path) -> None:
    """A group of horizontal bars for each row (its name, and values by name), as a PNG or SVG."""
    _draw(path, [(1.2 + 0.4 * len(rows), [lambda place: panels.bars(place.subplots(), rows, label)])])


def confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str], path: Path) -> None:
    """A confusion matrix [true][predicted] in per cent of each true class, as a PNG or SVG."""

    def draw(place: Any) -> None:
        image = panels.confusion(place.subplots(), matrix, classes)
        place.colorbar(image, label="% of the true class", shrink=0.8)

    _draw(path, [(6.5, [draw])])


def _draw(path: Path, rows: list[style.Row]) -> None:
    with style.page(None, extra="finetune"):
        kind = "svg" if path.suffix.lower() == ".svg" else "png"
        write_atomically(path, style.image(style.finish(style.sheet(rows), None), kind))
