"""Accuracy against cost for several models, and the results of an ablation."""

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..figures import style
from ..text import drawable
from .points import LIBRARIES, Point, check_data, measure, points_of, read_bench

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

ABLATION_FILE = "ablation.json"
MARKERS = dict(zip(LIBRARIES, "osD^", strict=True))
MAX_SIDE_BY_SIDE = 8  # models whose names have room in two panels side by side
VARIANTS_IN_WORDS = {
    "none": "neither",
    "se": "squeeze-and-excite",
    "hs": "h-swish",
    "both": "both (the paper's)",
    "se-first": "both, SE before\nthe activation",
}


class VariantResult(NamedTuple):
    """A variant of an ablation."""

    variant: str
    top1: list[float]  # per cent, of each seed
    mean: float
    sd: float  # 0 for a single seed
    latency_ms: float  # of one picture


def compare(
    models: Sequence[str],
    *,
    bench: str | os.PathLike[str] | None = None,
    latency: bool = True,
    runtime: str = "eager",
    seconds: float = 1.0,
    path: str | os.PathLike[str] | None = None,
    dark: bool = False,
) -> "Figure":
    """Draw accuracy against MACs and against latency; and an ablation, mean and standard deviation over its seeds.

    Args:
        models: Each one of: a name of `mnv3 list --pretrained`; 'torchvision/NAME', whose accuracy torchvision states;
            any name that `mnv3 bench` takes followed by '=' and its top-1 in per cent or a file of `mnv3 eval --json`;
            a run's folder; a folder or file of `mnv3 ablate`; and a .json file of published figures (`published`).
        bench: Latencies from a file of `mnv3 bench --json` (one thread, one picture); else they are measured now.
        latency: With False, against MACs alone.
        runtime: Which of `mnv3 bench`.
        seconds: How long each model is measured.
        path: A PNG or SVG to write.
        dark: On black.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: Unknown models, no accuracy of one, accuracies on different pictures, or a file that says nothing.
    """
    style.check(path)
    points, ablations = collect(models, bench=bench, latency=latency, runtime=runtime, seconds=seconds)
    return style.figure([*point_rows(points), *map(ablation_row, ablations)], path=path, dark=dark)


def collect(
    models: Sequence[str],
    *,
    bench: str | os.PathLike[str] | None = None,
    latency: bool = True,
    runtime: str = "eager",
    seconds: float = 1.0,
) -> tuple[list[Point], list[list[VariantResult]]]:
    """The points and ablations that `compare` draws; arguments and errors are those of `compare`."""
    points, ablations = [], []
    for name in models:
        if file := _ablation_file(name):
            ablations.append(read_ablation(file))
        else:
            points += points_of(name)
    if not points and not ablations:
        raise ValueError("nothing to compare: give models, runs or a folder of `mnv3 ablate`")
    check_data(points)
    if latency and (figures := [p.name for p in points if p.library == "published"]):
        raise ValueError(
            f"{figures[0]}: a published figure has no latency to measure: compare MACs alone (--no-latency)"
        )
    if latency and points:
        points = read_bench(points, Path(bench), runtime) if bench else measure(points, runtime, seconds)
    return points, ablations


def point_rows(points: Sequence[Point]) -> list[style.Row]:
    """Top-1 against MACs, and against latency where it is known."""
    if not points:
        return []
    sizes = {point.size for point in points}
    macs_label = "MACs / M" if len(sizes) > 1 else f"MACs / M at {points[0].size} px"
    macs, times = [point.macs / 1e6 for point in points], [point.ms for point in points]
    panels = [partial(draw_points, points=points, costs=macs, label=macs_label)]
    if all(times):
        label = "latency of one picture / ms, 1 thread"
        panels.append(partial(draw_points, points=points, costs=times, label=label))
    if len(points) <= MAX_SIDE_BY_SIDE:
        return [style.Row(4.0, panels)]
    return [style.Row(4.5, [panel]) for panel in panels]


def draw_points(
    subfigure: "SubFigure", points: Sequence[Point], costs: Sequence[float], label: str
) -> Callable[[], None]:
    """Draw the top-1 of every model over its cost.

    Args:
        subfigure: Where.
        points: The models.
        costs: Of each.
        label: What the costs are, and their unit.

    Returns:
        A function that writes the names beside the points, to be called when the layout is known.
    """
    axis = subfigure.subplots()
    libraries = [point.library for point in points]
    for library, colour in zip(LIBRARIES, style.colours(), strict=False):
        if library in libraries:
            theirs = [(cost, p.top1) for p, cost in zip(points, costs, strict=True) if p.library == library]
            axis.scatter(*zip(*theirs, strict=True), 36, color=colour, marker=MARKERS[library], label=library, zorder=3)
    data = next((f" ({point.data})" for point in points if point.data), "")
    axis.set(xscale="log" if max(costs) > 4 * min(costs) else "linear", xlabel=label, ylabel=f"top-1 / %{data}")
    axis.margins(0.18, 0.12)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    axis.tick_params(axis="x", which="both", labelsize=8)
    axis.grid(which="both")
    if len(set(libraries)) > 1:
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)
    named = [(cost, p.top1, drawable(p.name)) for p, cost in zip(points, costs, strict=True)]
    return partial(_write_names, axis, named)


class Offset(NamedTuple):
    """Where a name stands from its point."""

    dx: float  # typographic points
    dy: float
    align: str  # which end of the name is there


def _offsets() -> Iterator[Offset]:
    """Where to try to write a name, the best first."""
    yield from (Offset(8, 0, "left"), Offset(-8, 0, "right"), Offset(0, 9, "center"), Offset(0, -9, "center"))
    for dx in (8, 30, 60, 100):
        for dy in (0, 11, -11, 22, -22, 33, -33, 44, -44):
            yield from (Offset(dx, dy, "left"), Offset(-dx, dy, "right"))


def _write_names(axis: "Axes", named: Sequence[tuple[float, float, str]]) -> None:
    """Write a name beside every point (x, y, name), where it hides neither a point nor another name if possible."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    renderer = axis.get_figure(root=True).canvas.get_renderer()
    frame = axis.get_window_extent(renderer)
    dots = axis.transData.transform([(x, y) for x, y, _ in named])
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in dots]

    def write(x: float, y: float, name: str, offset: Offset) -> tuple[Text, Bbox]:
        """The annotation, and the box of its text alone, without the line to its point."""
        far = math.hypot(offset.dx, offset.dy) > 12
        line = {"arrowstyle": "-", "lw": 0.5, "color": style.ink(), "shrinkA": 0, "shrinkB": 3}
        options = {"ha": offset.align, "va": "center", "size": 7, "arrowprops": line if far else None}
        note = axis.annotate(name, (x, y), (offset.dx, offset.dy), textcoords="offset points", **options)
        note.update_positions(renderer)
        return note, Text.get_window_extent(note, renderer)

    def is_free(box: Bbox) -> bool:
        inside = frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1
        return inside and not any(box.overlaps(other) for other in taken)

    for x, y, name in sorted(named, key=lambda point: -point[1]):
        for offset in _offsets():
            note, box = write(x, y, name, offset)
            if is_free(box):
                break
            note.remove()
        else:
            _, box = write(x, y, name, Offset(8, 0, "left"))
        taken.append(box)


def _ablation_file(name: str) -> Path | None:
    path = Path(name)
    if path.is_dir():
        path = path / ABLATION_FILE
    return path if path.name == ABLATION_FILE and path.is_file() else None


def read_ablation(file: Path) -> list[VariantResult]:
    """The variants in a file of `mnv3 ablate`.

    Raises:
        ValueError: It is no such file.
    """
    try:
        results = [
            VariantResult(
                str(row["variant"]),
                [float(value) for value in row["top1"]],
                float(row["mean"]),
                float(row["sd"] or 0),
                float(row["latency_ms"]),
            )
            for row in json.loads(file.read_text(encoding="utf-8"))
        ]
    except (ValueError, TypeError, LookupError, RecursionError):
        results = []
    if not results:
        raise ValueError(f"{file}: not what `mnv3 ablate` writes")
    return results


def ablation_row(results: Sequence[VariantResult]) -> style.Row:
    """Top-1 of every variant, each seed a point and the standard deviation a bar; and its latency."""

    def draw_accuracy(subfigure: "SubFigure") -> None:
        axis = subfigure.subplots()
        blue, orange, *_ = style.colours()
        for line, result in enumerate(results):
            axis.barh(line, result.mean, 0.6, color=blue, alpha=0.6)
            axis.errorbar(result.mean, line, xerr=result.sd, color=style.ink(), capsize=3, lw=1.2)
            axis.plot(result.top1, [line] * len(result.top1), "o", ms=4, color=orange, mec=style.ink(), mew=0.5)
        axis.set_yticks(range(len(results)), names)
        values = [value for result in results for value in result.top1]
        room = max(2 * (max(values) - min(values)), 1)
        axis.set(xlim=(max(0, min(values) - room), min(100, max(values) + room / 2)), ylim=(len(results) - 0.5, -0.5))
        seeds = len(results[0].top1)
        axis.set(xlabel=f"top-1 / % (mean ± s.d.; {seeds} seed{'s' * (seeds > 1)} as points)")
        axis.set_title("ablation (the axis does not start at 0)" if axis.get_xlim()[0] else "ablation", size=9)
        axis.grid(axis="x")

    def draw_latency(subfigure: "SubFigure") -> None:
        axis = subfigure.subplots()
        values = [result.latency_ms for result in results]
        axis.barh(range(len(results)), values, 0.6, color=style.colours()[2], alpha=0.6)
        for line, value in enumerate(values):
            axis.text(0.03 * max(values), line, f"{value:.2f}", va="center", size=8)
        axis.set(ylim=(len(results) - 0.5, -0.5), xlabel="latency of one picture / ms")
        axis.set_yticks(range(len(results)), names)
        axis.grid(axis="x")

    names = [VARIANTS_IN_WORDS.get(result.variant, result.variant) for result in results]
    return style.Row(1.2 + 0.4 * len(results), [draw_accuracy, draw_latency])
