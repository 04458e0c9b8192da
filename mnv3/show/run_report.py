"""A run in one HTML file: no script, no link to anything, readable on a phone and in the dark."""

import base64
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..arch import costs
from ..catalog import CATALOG
from ..factory import load_checkpoint
from ..figures import style
from ..files.atomic import write_atomically
from ..files.saving import CONFIG_FILE
from ..text import html
from ..train.results import PARTS, Results, read
from ..train.run_folder import RECIPE_FILE
from ..version import __version__
from .calibration import calibration
from .comparison import ablation_row, collect, rows_of
from .feature_maps import draw_gates, draw_maps, gates_height, look, maps_height
from .gradcam import draw_heat, draw_top, explain
from .network import BARS, COLUMNS, NOTES, block_height, draw_block, lines, shown
from .points import point
from .training import calibration_rows, confusion_rows, curve_rows, mistake_rows, picture, worst

ENDINGS = (".html", ".htm")
EXPLAINED = 2  # right answers, and as many mistakes

STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --paper: #ffffff; --faint: #8884; --mark: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --paper: #16191d; --mark: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin-top: 2.5rem;
  border-bottom: 1px solid var(--faint); }
nav a { color: var(--mark); margin-right: 1rem; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .8rem; margin: 1rem 0; }
dt { font-size: .85rem; opacity: .8; } dd { margin: 0; font-size: 1.2rem; font-weight: 600; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem;
  align-items: start; }
figure { margin: 0; max-width: 36rem; } img { width: 100%; height: auto; display: block; }
figcaption { font-size: .85rem; opacity: .8; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; white-space: nowrap; }
th, td { padding: .15rem .6rem; text-align: right; border-bottom: 1px solid var(--faint); }
td:nth-child(-n+3), th:nth-child(-n+3) { text-align: left; }
td:first-child, th:first-child { position: sticky; left: 0; background: var(--paper); }
pre { overflow-x: auto; font-size: .8rem; } summary { cursor: pointer; }
"""


def report(
    folder: str | os.PathLike,
    path: str | os.PathLike | None = None,
    *,
    compare: Sequence[str] = (),
    bench: str | os.PathLike | None = None,
    data: str | None = None,
    data_dir: str | None = None,
) -> Path:
    """Write all that can be shown of a run into one file.

    Args:
        folder: The run's; parts that need test pictures are left out where it has none, which the report then says.
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
    compared = _compared(results, compare, bench) if results.test else []
    sections = [
        ("Training", "training", _figures(curve_rows(results), "curves of the training")),
        ("Network", "network", _network(results)),
    ]
    if results.test:
        sections.insert(1, ("Test pictures", "test", _tested(results)))
    if results.answers:
        sections.insert(
            2, ("Mistakes", "mistakes", _figures(mistake_rows(results, style.NARROW), "the worst mistakes"))
        )
        sections.append(("What it sees", "sees", _seen(results)))
    if compared:
        sections.append(("Comparison", "comparison", _figures(compared, "accuracy against cost", 3.6)))
    sections.append(("Recipe", "recipe", _recipe(results)))
    write_atomically(path, _html(results, missing, [(t, i, "\n".join(parts)) for t, i, parts in sections]).encode())
    return path


def _read(folder: Path, data: str | None, data_dir: str | None) -> tuple[Results, str | None]:
    """All that there is of the run, and why that is not all."""
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


def _html(results: Results, missing: str | None, sections: Sequence[tuple[str, str, str]]) -> str:
    title = html(f"{results.recipe.model} on {Path(results.recipe.data).name}")
    facts = ((html(name), html(value)) for name, value in _facts(results).items())
    facts = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    links = "".join(f'<a href="#{i}">{name}</a> ' for name, i, _ in sections)
    note = f"<p><strong>Not all could be drawn:</strong> {html(missing)}.</p>" if missing else ""
    body = "".join(f'<section id="{i}"><h2>{name}</h2>\n{part}\n</section>\n' for name, i, part in sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{title}</h1>
<dl>{facts}</dl>
<nav>{links}</nav>
{note}
{body}
<p><small>mnv3 {__version__}, of {html(str(results.folder))}</small></p>
</body>
</html>
"""


def _facts(results: Results) -> dict[str, str]:
    """The numbers at the top."""
    table, test = list(_costs(results)), results.test or {}
    facts = {}
    if test:
        facts |= {"top-1": f"{test['top1']:.2f} %"}
        facts |= {"top-5": f"{test['top5']:.2f} %"} if "top5" in test else {}
        facts |= {"test pictures": f"{sum(map(sum, test['confusion'])):,}"}
    if results.answers:
        found = calibration(results.answers.probs, results.answers.labels)
        facts |= {"calibration error (ECE)": f"{100 * found.ece:.1f} %"}
    facts |= {"parameters": f"{sum(cost.params for cost in table) / 1e6:.2f} M"}
    facts |= {f"MACs at {results.recipe.size} px": f"{sum(cost.macs for cost in table) / 1e6:.1f} M"}
    return facts | {"epochs": str(len(results.history)), "classes": str(results.model.num_classes)}


def _costs(results: Results) -> Any:
    model = results.model
    return costs(model.arch, size=results.recipe.size, in_chans=model.in_chans, num_classes=model.num_classes)


def _pictured(make: Callable[[], Any], alt: str, caption: str | None = None) -> str:
    """A figure on white and on black, of which a browser takes one."""
    sources = []
    for dark in (False, True):
        with style.page(None, dark=dark):
            content = style.image(style.finish(make(), None))
        sources.append("data:image/png;base64," + base64.b64encode(content).decode())
    note = f"<figcaption>{html(caption)}</figcaption>" if caption else ""
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{sources[1]}">'
        f'<img alt="{html(alt)}" src="{sources[0]}"></picture>{note}</figure>'
    )


def _figures(rows: Sequence[style.Row], alt: str, stretch: float = 1.0) -> Iterator[str]:
    """Every part of some rows as a figure of its own."""
    yield '<div class="grid">'
    for height, parts in rows:
        for draw in parts:
            yield _pictured(partial(style.sheet, [(max(height, stretch), [draw])], width=style.NARROW), alt)
    yield "</div>"


def _tested(results: Results) -> Iterator[str]:
    rows = confusion_rows(results) + (calibration_rows(results) if results.answers else [])
    yield from _figures(rows, "confusion matrix, classes and calibration on the test pictures")
    counts = dict(zip(results.classes, map(sum, results.test["confusion"]), strict=True))
    lines = ((html(name), counts[name], share) for name, share in results.test["per_class"].items())
    yield "<details><summary>by class</summary><table><tr><th>class</th><th>pictures</th><th>top-1 / %</th></tr>"
    yield "".join(f"<tr><td>{name}</td><td>{count}</td><td>{share:.2f}</td></tr>" for name, count, share in lines)
    yield "</table></details>"


def _recipe(results: Results) -> Iterator[str]:
    yield f"<details><summary>{RECIPE_FILE}</summary><pre>{html(results.recipe.to_yaml())}</pre></details>"


def _network(results: Results) -> Iterator[str]:
    """Its table as one of HTML, and its blocks."""
    table, rows = results.model.arch, list(_costs(results))
    heads = dict(zip(COLUMNS, COLUMNS, strict=True))
    heads |= {name: label.replace("\n", " ") for name, (label, *_) in BARS.items()}
    yield '<div class="wide"><table><thead><tr>'
    yield "".join(f"<th>{html(head)}</th>" for head in heads.values())
    yield "</tr></thead><tbody>"
    for line in lines(table, rows, results.model.in_chans):
        yield "<tr>" + "".join(f"<td>{html(line[name])}</td>" for name in heads) + "</tr>"
    yield "</tbody></table></div>"
    yield "".join(f"<p><small>{html(note)}</small></p>" for note in NOTES[:1])
    yield '<div class="grid">'
    for i in shown(table):
        draw = partial(draw_block, table=table, number=i, rows=rows, se_order=results.model.se_order)
        height = block_height(table, i, results.model.se_order)
        yield _pictured(partial(style.sheet, [(height, [draw])], width=style.NARROW), f"block {i} of the network")
    yield "</div>"


def _seen(results: Results) -> Iterator[str]:
    """Feature maps and gates of one test picture, and reasons for right and wrong answers."""
    answers = results.answers
    sure = answers.probs.max(1).values * (answers.probs.argmax(1) == answers.labels)
    right = sure.argsort(descending=True, stable=True)[:EXPLAINED].tolist()
    looked = look(picture(answers.pictures, right[0]), results.model)
    yield '<div class="grid">'
    height = maps_height(looked, style.NARROW)
    rows = [(height, [partial(draw_maps, looked=looked)])]
    yield _pictured(partial(style.sheet, rows, width=style.NARROW), "feature maps of every stage")
    if looked.gates:
        rows = [(gates_height(looked), [partial(draw_gates, looked=looked)])]
        yield _pictured(partial(style.sheet, rows, width=style.NARROW), "gates of squeeze-and-excite")
    for i in [*right, *(i for i, *_ in worst(answers, EXPLAINED))]:
        reason = explain(picture(answers.pictures, i), results.model)
        rows = [(2.9, [partial(draw_heat, reason=reason)]), (2.2, [partial(draw_top, reason=reason)])]
        caption = f"true class: {answers.names[answers.labels[i]]}"
        yield _pictured(partial(style.sheet, rows, width=style.NARROW), "what speaks for the answer", caption)
    yield "</div>"


def _compared(results: Results, compare: Sequence[str], bench: str | os.PathLike | None) -> list[style.Row]:
    """The run beside other models."""
    mine = point(str(results.folder)).data
    same = [record.name for record in CATALOG if record.data == mine and record.top1]
    models = compare or [name for name in same if name != results.folder.resolve().name]
    if not models:
        return []
    points, tables = collect([str(results.folder), *models], bench=bench, latency=bench is not None)
    return [*rows_of(points), *map(ablation_row, tables)]
