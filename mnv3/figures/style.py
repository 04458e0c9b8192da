"""How every figure looks, and how it becomes a file.

Figures are matplotlib's own objects without pyplot: they need no display and leave no state behind.
"""

import io
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import choices
from ..files.atomic import write_atomically
from ..text import drawable, well_formed
from . import fonts

ENDINGS = (".png", ".svg")
WIDTH = 8.3  # inches; at 100 pixels an inch as wide as a README
NARROW = 4.2  # of a figure that is to be read on a phone
DPI = 150
# Okabe and Ito's colours, which people who see fewer of them can tell apart; on black the brighter ones first.
BLUE, ORANGE, GREEN, RED, SKY, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7"
LIGHT = {"ink": "#1f2328", "paper": "#ffffff", "cycle": (BLUE, ORANGE, GREEN, RED, SKY, PURPLE)}
DARK = {"ink": "#e6e6e6", "paper": "#16191d", "cycle": (SKY, ORANGE, GREEN, PURPLE, RED, BLUE)}
Draw = Callable[[Any], Any]  # onto a part of a figure; what it returns is called when all has its place
Row = tuple[float, Sequence[Draw]]  # its height in inches, and what is side by side in it


@contextmanager
def page(path: str | os.PathLike | None, *, dark: bool = False, extra: str = "viz") -> Iterator[None]:
    """Within it, figures get our style, on white or black; a `path` that cannot be written is refused.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: Another ending than `ENDINGS`.
        OSError: There is no such folder, or it cannot be written to.
    """
    if path is not None:
        check(path, ENDINGS)
    try:
        import matplotlib.figure
    except ImportError:
        raise ImportError(f"figures need matplotlib: pip install 'mnv3[{extra}]'") from None
    look = DARK if dark else LIGHT
    ink = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), look["ink"])
    paper = dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), look["paper"])
    sizes = {"font.size": 9, "axes.titlesize": 10, "axes.labelsize": 9, "legend.fontsize": 8}
    rest = {
        "axes.prop_cycle": matplotlib.cycler(color=look["cycle"]),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.titlelocation": "left",
        "grid.alpha": 0.3,
        "legend.frameon": False,
        "text.parse_math": False,  # a class may have a dollar in its name
        "svg.hashsalt": "mnv3",  # the same figure is the same file
    }
    with matplotlib.rc_context({"font.family": [fonts.OWN]} | ink | paper | sizes | rest):
        yield


def check(path: str | os.PathLike, endings: Sequence[str]) -> None:
    """Raise what `page` says for a file that cannot be written."""
    path = Path(path)
    if path.suffix.lower() not in endings:
        raise ValueError(f"{path}: unknown ending {path.suffix!r}. {choices(path.suffix, endings)}")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path}: {'is a folder' if path.is_dir() else 'there is no such folder to write to'}")
    try:
        with tempfile.TemporaryFile(dir=path.absolute().parent):  # before what takes long
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def colours() -> list[str]:
    """Those of the page, as hexadecimal numbers."""
    import matplotlib

    return matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]


def ink() -> str:
    """The colour of text on the page."""
    import matplotlib

    return matplotlib.rcParams["text.color"]


def paper() -> str:
    """The colour of the page."""
    import matplotlib

    return matplotlib.rcParams["figure.facecolor"]


def short(name: str, length: int = 28) -> str:
    """A class's name, cut off where it is long, without what no font has."""
    name = drawable(name)
    return name if len(name) <= length else f"{name[: length - 1]}…"


def sheet(
    rows: Sequence[Row],
    *,
    width: float = WIDTH,
    title: str | None = None,
    ratios: Sequence[float] | None = None,
) -> Any:
    """A figure of rows, each of a height in inches and with parts beside each other (`ratios` of their widths)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = [height for height, _ in rows]
    figure = Figure(figsize=(width, sum(heights) + 0.35 * bool(title)), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(drawable(title), fontsize=11, x=0.01, ha="left")
    late = []
    lines = figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0]
    for line, (_, parts) in zip(lines, rows, strict=True):
        places = line.subfigures(1, len(parts), squeeze=False, width_ratios=ratios)[0]
        late += [draw(place) for place, draw in zip(places, parts, strict=True)]
    if any(late):
        fonts.fit(figure)
        figure.draw_without_rendering()
    for finish_part in filter(None, late):
        finish_part()
    return figure


def canvas(place: Any) -> Any:
    """An axis over all of a part for drawing by hand, in inches from the upper left corner."""
    axis = place.add_axes((0, 0, 1, 1))
    width, height = inches(place)
    axis.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    axis.axis("off")
    return axis


def inches(place: Any) -> tuple[float, float]:
    """Width and height of a part of a figure."""
    return tuple(pixels / place.figure.dpi for pixels in place.bbox.size)


def finish(figure: Any, path: str | os.PathLike | None) -> Any:
    """The figure, laid out in the style of its page, and written to `path` if there is one."""
    fonts.fit(figure)
    figure.draw_without_rendering()  # ticks are made late, and would take the style of whoever draws the figure then
    figure.set_layout_engine("none")  # once is enough, and takes half of the time
    if path is not None:
        kind = Path(path).suffix.lower().lstrip(".")
        write_atomically(
            Path(path), image(figure, kind, **({"pil_kwargs": {"optimize": True}} if kind == "png" else {}))
        )
    return figure


def image(figure: Any, kind: str = "png", **options: Any) -> bytes:
    """The content of a 'png' or 'svg' file; `options` are those of matplotlib's savefig."""
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else None, **options)
    return well_formed(content.getvalue()) if kind == "svg" else content.getvalue()
