"""Accuracy against cost for several models, and what an ablation found."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..figures import style
from ..text import drawable
from .points import LIBRARIES, Point, check_data, measure, points_of, read_bench

ABLATION_FILE = "ablation.json"
MARKERS = dict(zip(LIBRARIES, "osD^", strict=True))
BESIDE = 8  # models whose names have room in two pictures side by side


def compare(
    models: Sequence[str],
    *,
    bench: str | os.PathLike | None = None,
    latency: bool = True,
    runtime: str = "eager",
    seconds: float = 1.0,
    path: str | os.PathLike | None = None,
    dark: bool = False,
) -> Any:
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
    with style.page(path, dark=dark):
        points, tables = collect(models, bench=bench, latency=latency, runtime=runtime, seconds=seconds)
        return style.finish(style.sheet([*rows_of(points), *map(ablation_row, tables)]), path)


def collect(
    models: Sequence[str],
    *,
    bench: str | os.PathLike | None = None,
    latency: bool = True,
    runtime: str = "eager",
    seconds: float = 1.0,
) -> tuple[list[Point], list[list[dict[str, Any]]]]:
    """The points and ablations that `compare` draws; arguments and errors are its own."""
    tables = [read_ablation(file) for name in models if (file := _ablation_file(name))]
    points = [p for name in models if not _ablation_file(name) for p in points_of(name)]
    if not points and not tables:
        raise ValueError("nothing to compare: give models, runs or a folder of `mnv3 ablate`")
    check_data(points)
    if latency and (figures := [p.name for p in points if p.library == "published"]):
        raise ValueError(
            f"{figures[0]}: a published figure has no latency to measure: compare MACs alone (--no-latency)"
        )
    if latency and points:
        points = read_bench(points, Path(bench), runtime) if bench else measure(points, runtime, seconds)
    return points, tables


def rows_of(points: Sequence[Point]) -> list[style.Row]:
    """Top-1 against MACs, and against latency where it is known."""
    if not points:
        return []
    parts = [partial(draw_points, points=points, key="macs")]
    if all(p.ms for p in points):
        parts.append(partial(draw_points, points=points, key="ms"))
    return [(4.0, parts)] if len(points) <= BESIDE else [(4.5, [part]) for part in parts]


def draw_points(place: Any, points: Sequence[Point], key: str) -> Callable[[], None]:
    """Every model as a point; returns what gives them their names when the axis has its place."""

    def cost(p: Point) -> float:
        return p.macs / 1e6 if key == "macs" else p.ms

    axis = place.subplots()
    for library, colour in zip(LIBRARIES, style.colours(), strict=False):
        mine = [p for p in points if p.library == library]
        if mine:
            places = [cost(p) for p in mine], [p.top1 for p in mine]
            axis.scatter(*places, 36, color=colour, marker=MARKERS[library], label=library, zorder=3)
    label = {"macs": f"MACs / M at {points[0].size} px", "ms": "latency of one picture / ms, 1 thread"}[key]
    label = "MACs / M" if key == "macs" and len({p.size for p in points}) > 1 else label
    data = next((p.data for p in points if p.data), None)
    costs = [cost(p) for p in points]
    axis.set(
        xscale="log" if max(costs) > 4 * min(costs) else "linear",
        xlabel=label,
        ylabel=f"top-1 / %{f' ({data})' if data else ''}",
    )
    axis.margins(0.18, 0.12)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    axis.tick_params(axis="x", which="both", labelsize=8)
    axis.grid(which="both")
    if len({p.library for p in points}) > 1:
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)
    return partial(_label, axis, [(cost(p), p.top1, drawable(p.name)) for p in points])


def _label(axis: Any, texts: Sequence[tuple[float, float, str]]) -> None:
    """A name beside every point, where it hides neither a point nor another name."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    renderer = axis.get_figure(root=True).canvas.get_renderer()
    dots = axis.transData.transform([(x, y) for x, y, _ in texts])
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in dots]
    frame = axis.get_window_extent(renderer)
    sides = [(8, 0, "left"), (-8, 0, "right"), (0, 9, "center"), (0, -9, "center")]
    far = ((dx, dy) for dx in (8, 30, 60, 100) for dy in (0, 11, -11, 22, -22, 33, -33, 44, -44))
    sides += [(sign * dx, dy, side) for dx, dy in far for sign, side in ((1, "left"), (-1, "right"))]
    for x, y, name in sorted(texts, key=lambda text: -text[1]):
        for dx, dy, side in sides:
            line = {"arrowstyle": "-", "lw": 0.5, "color": style.ink(), "shrinkA": 0, "shrinkB": 3}
            options = {"ha": side, "va": "center", "size": 7, "arrowprops": line if math.hypot(dx, dy) > 12 else None}
            note = axis.annotate(name, (x, y), (dx, dy), textcoords="offset points", **options)
            note.update_positions(renderer)
            box = Text.get_window_extent(note, renderer)  # without the line to its point
            inside = frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                break
            note.remove()
        else:
            note = axis.annotate(name, (x, y), (8, 0), textcoords="offset points", va="center", size=7)
            box = note.get_window_extent(renderer)
        taken.append(box)


def _ablation_file(name: str) -> Path | None:
    path = Path(name)
    if path.is_dir():
        path = path / ABLATION_FILE
    return path if path.name == ABLATION_FILE and path.is_file() else None


def read_ablation(file: Path) -> list[dict[str, Any]]:
    """The rows of `mnv3 ablate`."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        for row in rows:
            row |= {"top1": [float(value) for value in row["top1"]], "mean": float(row["mean"])}
            row["sd"] = None if row["sd"] is None else float(row["sd"])
            row["variant"], row["latency_ms"], row["macs"]
        return rows or [][0]
    except (ValueError, TypeError, LookupError, RecursionError, AttributeError):
        raise ValueError(f"{file}: not what `mnv3 ablate` writes") from None


VARIANTS_IN_WORDS = {
    "none": "neither",
    "se": "squeeze-and-excite",
    "hs": "h-swish",
    "both": "both (the paper's)",
    "se-first": "both, SE before\nthe activation",
}


def ablation_row(rows: Sequence[Mapping[str, Any]]) -> style.Row:
    """Top-1 of every variant, each seed a point and the standard deviation a bar; and its latency."""

    def accuracy(place: Any) -> None:
        axis = place.subplots()
        blue, orange, *_ = style.colours()
        for line, row in enumerate(rows):
            axis.barh(line, row["mean"], 0.6, color=blue, alpha=0.6)
            spread = row["sd"] or 0
            axis.errorbar(row["mean"], line, xerr=spread, color=style.ink(), capsize=3, lw=1.2)
            axis.plot(row["top1"], [line] * len(row["top1"]), "o", ms=4, color=orange, mec=style.ink(), mew=0.5)
        axis.set_yticks(range(len(rows)), names)
        values = [value for row in rows for value in row["top1"]]
        room = max(2 * (max(values) - min(values)), 1)
        axis.set(xlim=(max(0, min(values) - room), min(100, max(values) + room / 2)), ylim=(len(rows) - 0.5, -0.5))
        seeds = len(rows[0]["top1"])
        axis.set(xlabel=f"top-1 / % (mean ± s.d.; {seeds} seed{'s' * (seeds > 1)} as points)")
        axis.set_title("ablation (the axis does not start at 0)" if axis.get_xlim()[0] else "ablation", size=9)
        axis.grid(axis="x")

    def latency(place: Any) -> None:
        axis = place.subplots()
        values = [row["latency_ms"] for row in rows]
        axis.barh(range(len(rows)), values, 0.6, color=style.colours()[2], alpha=0.6)
        for line, value in enumerate(values):
            axis.text(0.03 * max(values), line, f"{value:.2f}", va="center", size=8)
        axis.set(ylim=(len(rows) - 0.5, -0.5), xlabel="latency of one picture / ms")
        axis.set_yticks(range(len(rows)), names)
        axis.grid(axis="x")

    names = [VARIANTS_IN_WORDS.get(row["variant"], row["variant"]) for row in rows]
    return (1.2 + 0.4 * len(rows), [accuracy, latency])
