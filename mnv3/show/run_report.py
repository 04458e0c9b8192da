"""A run in one HTML file: no script, no link to anything, readable on a phone and in the dark.

What the page looks like is in templates/report.html.
"""

import base64
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..catalog import CATALOG
from ..factory import load_checkpoint
from ..figures import style
from ..files.atomic import write_atomically
from ..files.saving import CONFIG_FILE
from ..text import printable
from ..train.results import PARTS, Results, read
from ..train.run_folder import RECIPE_FILE
from ..version import __version__
from .calibration import calibration
from .comparison import ablation_row, collect, point_rows
from .feature_maps import compute_activations, gates_row, maps_row
from .gradcam import draw_heat_map, draw_top_classes, explain
from .network import BARS, COLUMNS, NOTES, Network, block_height, blocks_to_draw, cells, draw_block, network_of
from .points import point
from .training import calibration_row, confusion_row, curves_row, mistakes_row, worst_mistakes

if TYPE_CHECKING:
    from jinja2 import Environment

ENDINGS = (".html", ".htm")
EXPLAINED = 2  # right answers, and as many mistakes


def template_environment() -> "Environment":
    """Jinja's, which escapes values and replaces characters that are not printable."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("mnv3.show"),
        autoescape=True,
        finalize=lambda value: value if hasattr(value, "__html__") else printable(value),
        undefined=StrictUndefined,
        trim_blocks=True,
    )


class Picture(NamedTuple):
    """A figure of the page, of which a browser takes one of two: PNG in base64."""

    light: str
    dark: str
    alt: str
    caption: str | None = None


class Section(NamedTuple):
    """A part of the page, from top to bottom; the first row of a table is its heading."""

    title: str
    id: str
    table: Sequence[Sequence[object]] = ()
    note: str = ""
    figures: Sequence[Picture] = ()
    summary: str = ""  # of what can be unfolded
    folded_table: Sequence[Sequence[object]] = ()
    folded_text: str = ""


def report(
    folder: str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    compare: Sequence[str] = (),
    bench: str | os.PathLike[str] | None = None,
    data: str | None = None,
    data_dir: str | None = None,
) -> Path:
    """Write all that can be shown of a run into one file.

    Args:
        folder: The run's; sections that need test pictures are left out where it has none, which the report then says.
        path: The HTML file; by default report.html in the folder.
        compare: Models to compare it with (see `mnv3.show.compare`); by default this package's for the same pictures.
        bench: Latencies for that, from `mnv3 bench --json`.
        data, data_dir: Where the test pictures lie now, if not where the recipe says.

    Returns:
        The file.

    Raises:
        ValueError: It is no run's folder, it is not finished, or what shall be compared cannot be.
        ImportError: matplotlib or captum is missing.
    """
    folder = Path(folder)
    path = Path(path or folder / "report.html")
    if folder.is_dir():  # what is wrong with the run comes first
        style.check(path, ENDINGS)
    results, missing = _read(folder, data, data_dir)
    network = network_of(results.model, results.recipe.size)
    comparison = _comparison(results, compare, bench) if results.test else []
    sections = [Section("Training", "training", figures=_figures([curves_row(results)], "curves of the training"))]
    if results.test:
        sections.append(_test(results))
    if results.answers:
        figures = _figures([mistakes_row(results, style.NARROW)], "the worst mistakes")
        sections.append(Section("Mistakes", "mistakes", figures=figures))
    sections.append(_network(network))
    if results.answers:
        sections.append(_what_it_sees(results))
    if comparison:
        figures = _figures(comparison, "accuracy against cost", min_height=3.6)
        sections.append(Section("Comparison", "comparison", figures=figures))
    sections.append(Section("Recipe", "recipe", summary=RECIPE_FILE, folded_text=results.recipe.to_yaml()))
    page = template_environment().get_template("report.html")
    content = page.render(
        title=f"{results.recipe.model} on {Path(results.recipe.data).name}",
        facts=_facts(results, network),
        missing=missing,
        sections=sections,
        version=__version__,
        folder=results.folder,
    )
    write_atomically(path, content.encode())
    return path


def _read(folder: Path, data: str | None, data_dir: str | None) -> tuple[Results, str | None]:
    """As much of the run as can be read, and if that is not all, why."""
    results = read(folder, what=["curves"])
    if not (folder / CONFIG_FILE).is_file():
        return read(folder), None  # which says that it is not finished
    reason = None
    for what in (PARTS, ["curves", "confusion"]):
        try:
            return read(folder, what=what, data=data, data_dir=data_dir), reason
        except ValueError as error:
            reason = reason or str(error).partition(": say where")[0].partition("; look at")[0]
    return Results(folder, results.recipe, results.history, load_checkpoint(folder)), reason


def _facts(results: Results, network: Network) -> dict[str, str]:
    """The numbers at the top."""
    costs, test = [row.cost for row in network.rows], results.test
    facts = {}
    if test:
        facts |= {"top-1": f"{test.top1:.2f} %", "top-5": f"{test.top5:.2f} %", "test pictures": f"{test.count:,}"}
    if results.answers:
        ece = calibration(results.answers.probs, results.answers.labels).ece
        facts["calibration error (ECE)"] = f"{100 * ece:.1f} %"
    facts["parameters"] = f"{sum(cost.params for cost in costs) / 1e6:.2f} M"
    facts[f"MACs at {network.size} px"] = f"{sum(cost.macs for cost in costs) / 1e6:.1f} M"
    return facts | {"epochs": str(len(results.history)), "classes": str(network.num_classes)}


def _picture(rows: Sequence[style.Row], alt: str, caption: str | None = None) -> Picture:
    """Draw a figure on white and on black, as wide as a phone."""
    files = (style.png(rows, width=style.NARROW, dark=dark) for dark in (False, True))
    light, dark = (base64.b64encode(content).decode() for content in files)
    return Picture(light, dark, alt, caption)


def _figures(rows: Sequence[style.Row], alt: str, min_height: float = 0) -> list[Picture]:
    """Every panel as a figure of its own, of at least `min_height` inches."""
    return [_picture([style.Row(max(row.height, min_height), [draw])], alt) for row in rows for draw in row.panels]


def _test(results: Results) -> Section:
    """Confusion matrix, accuracy of every class, and calibration."""
    rows = [confusion_row(results)]
    if results.answers:
        rows.append(calibration_row(results))
    counts = dict(zip(results.test.classes, map(sum, results.test.confusion), strict=True))
    table = [("class", "pictures", "top-1 / %")]
    table += [(name, counts[name], f"{top1:.2f}") for name, top1 in results.test.per_class.items()]
    figures = _figures(rows, "confusion matrix, classes and calibration on the test pictures")
    return Section("Test pictures", "test", figures=figures, summary="by class", folded_table=table)


def _network(network: Network) -> Section:
    """The network's table, and its blocks."""
    headings = dict(zip(COLUMNS, COLUMNS, strict=True))
    headings |= {name: heading.replace("\n", " ") for name, (heading, *_) in BARS.items()}
    table = [list(headings.values()), *([cells(row)[name] for name in headings] for row in network.rows)]
    figures = []
    for i in blocks_to_draw(network.arch):
        row = style.Row(block_height(network, i), [partial(draw_block, network=network, number=i)])
        figures.append(_picture([row], f"block {i} of the network"))
    return Section("Network", "network", table=table, note=NOTES[0], figures=figures)


def _what_it_sees(results: Results) -> Section:
    """Feature maps and gates of one test picture, and explanations of right and wrong answers."""
    answers = results.answers
    probs, predicted = answers.probs.max(1)
    right = (probs * (predicted == answers.labels)).argsort(descending=True, stable=True)[:EXPLAINED].tolist()
    wrong = [mistake.index for mistake in worst_mistakes(answers, EXPLAINED)]
    activations = compute_activations(answers.pictures.picture(right[0]), results.model)
    figures = [_picture([maps_row(activations, style.NARROW)], "feature maps of every stage")]
    if activations.gates:
        figures.append(_picture([gates_row(activations)], "gates of squeeze-and-excite"))
    for i in right + wrong:
        explanation = explain(answers.pictures.picture(i), results.model)
        panels = [partial(draw, explanation=explanation) for draw in (draw_heat_map, draw_top_classes)]
        rows = [style.Row(height, [panel]) for height, panel in zip((2.9, 2.2), panels, strict=True)]
        figures.append(_picture(rows, "what speaks for the answer", f"true class: {answers.names[answers.labels[i]]}"))
    return Section("What it sees", "sees", figures=figures)


def _comparison(results: Results, compare: Sequence[str], bench: str | os.PathLike[str] | None) -> list[style.Row]:
    """The run beside other models."""
    data = point(str(results.folder)).data
    ours = [record.name for record in CATALOG if record.data == data and record.top1]
    models = compare or [name for name in ours if name != results.folder.resolve().name]
    if not models:
        return []
    points, ablations = collect([str(results.folder), *models], bench=bench, latency=bench is not None)
    return [*point_rows(points), *map(ablation_row, ablations)]
