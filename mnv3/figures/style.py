"""How every figure looks, and how it becomes a file.

A figure is rows of panels, each of which draws on a `matplotlib.figure.SubFigure` of its own. Figures are made without
pyplot: they need no display and leave no state behind.
"""

import io
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import choices
from ..files.atomic import write_atomically
from ..text import drawable, well_formed
from . import fonts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

ENDINGS = (".png", ".svg")
WIDTH = 8.3  # inches; at 100 pixels an inch as wide as a README
NARROW = 4.2  # of a figure that is to be read on a phone
DPI = 150
# Okabe and Ito's colours, which people who see fewer of them can tell apart; on black the brighter ones first.
BLUE, ORANGE, GREEN, RED, SKY, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7"
LIGHT = {"ink": "#1f2328", "paper": "#ffffff", "cycle": (BLUE, ORANGE, GREEN, RED, SKY, PURPLE)}
DARK = {"ink": "#e6e6e6", "paper": "#16191d", "cycle": (SKY, ORANGE, GREEN, PURPLE, RED, BLUE)}
Panel = Callable[["SubFigure"], Callable[[], None] | None]  # what it returns is called when the layout is known


class Row(NamedTuple):
    """Panels side by side."""

    height: float  # inches
    panels: Sequence[Panel]


def check(path: str | os.PathLike[str] | None, endings: Sequence[str] = ENDINGS) -> None:
    """Refuse what cannot be drawn or written, before anything that takes long.

    Args:
        path: The file to write, if any.
        endings: What its name may end in.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: Another ending.
        OSError: There is no such folder, or it cannot be written to.
    """
    if path is not None:
        path = Path(path)
        if path.suffix.lower() not in endings:
            raise ValueError(f"{path}: unknown ending {path.suffix!r}. {choices(path.suffix, endings)}")
        if path.is_dir() or not path.absolute().parent.is_dir():
            problem = "is a folder" if path.is_dir() else "there is no such folder to write to"
            raise FileNotFoundError(f"{path}: {problem}")
        try:
            with tempfile.TemporaryFile(dir=path.absolute().parent):
                pass
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None
    _check_matplotlib("viz")


def figure(
    rows: Sequence[Row],
    *,
    path: str | os.PathLike[str] | None = None,
    dark: bool = False,
    title: str | None = None,
    ratios: Sequence[float] | None = None,
    extra: str = "viz",
) -> "Figure":
    """Draw a figure in our style.

    Args:
        rows: From top to bottom.
        path: A file to write, SVG if it ends so, else PNG.
        dark: On black.
        title: Above all rows.
        ratios: Widths of the panels of each row, relative to each other.
        extra: Of setup.cfg, to install where matplotlib is missing.

    Raises:
        ImportError: matplotlib is missing.
        OSError: The file cannot be written.
    """
    _check_matplotlib(extra)
    with _style(dark):
        figure = _drawn(rows, WIDTH, title, ratios)
        if path is not None:
            kind = "svg" if Path(path).suffix.lower() == ".svg" else "png"
            write_atomically(Path(path), _encoded(figure, kind, optimize=True))
    return figure


def png(rows: Sequence[Row], *, width: float, dark: bool) -> bytes:
    """The PNG file of a figure in our style, `width` inches wide."""
    with _style(dark):
        return _encoded(_drawn(rows, width), "png")


def _check_matplotlib(extra: str) -> None:
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise ImportError(f"figures need matplotlib: pip install 'mnv3[{extra}]'") from None


@contextmanager
def _style(dark: bool) -> Iterator[None]:
    """Our settings of matplotlib for all that is drawn and encoded inside of the block."""
    import matplotlib

    theme = DARK if dark else LIGHT
    ink = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    paper = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    settings = {
        **dict.fromkeys(ink, theme["ink"]),
        **dict.fromkeys(paper, theme["paper"]),
        "font.family": [fonts.OWN],
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.labelsize": 9,
        "legend.fontsize": 8,
        "axes.prop_cycle": matplotlib.cycler(color=theme["cycle"]),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.titlelocation": "left",
        "grid.alpha": 0.3,
        "legend.frameon": False,
        "text.parse_math": False,  # a class may have a dollar in its name
        "svg.hashsalt": "mnv3",  # the same figure is the same file
    }
    with matplotlib.rc_context(settings):
        yield


def _drawn(
    rows: Sequence[Row], width: float, title: str | None = None, ratios: Sequence[float] | None = None
) -> "Figure":
    """A figure with a subfigure for each row, and in it one for each panel."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = [row.height for row in rows]
    figure = Figure(figsize=(width, sum(heights) + 0.35 * bool(title)), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(drawable(title), fontsize=11, x=0.01, ha="left")
    after_layout = []
    lines = figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0]
    for line, row in zip(lines, rows, strict=True):
        subfigures = line.subfigures(1, len(row.panels), squeeze=False, width_ratios=ratios)[0]
        after_layout += [draw(subfigure) for subfigure, draw in zip(subfigures, row.panels, strict=True)]
    if any(after_layout):
        fonts.fit(figure)
        figure.draw_without_rendering()
    for draw in filter(None, after_layout):
        draw()
    fonts.fit(figure)
    figure.draw_without_rendering()  # ticks are made late, and would take the style of whoever draws the figure then
    figure.set_layout_engine("none")  # once is enough, and takes half of the time
    return figure


def _encoded(figure: "Figure", kind: str, *, optimize: bool = False) -> bytes:
    """The content of a 'png' file, slower and smaller with `optimize`, or of an 'svg' file."""
    content = io.BytesIO()
    if kind == "svg":
        figure.savefig(content, format="svg", dpi=DPI, metadata={"Date": None})
        return well_formed(content.getvalue())
    figure.savefig(content, format="png", dpi=DPI, pil_kwargs={"optimize": optimize})
    return content.getvalue()


def colours() -> list[str]:
    """The colours of the figure that is being drawn, as hexadecimal numbers."""
    import matplotlib

    return matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]


def ink() -> str:
    """The colour of text in the figure that is being drawn."""
    import matplotlib

    return matplotlib.rcParams["text.color"]


def paper() -> str:
    """The background of the figure that is being drawn."""
    import matplotlib

    return matplotlib.rcParams["figure.facecolor"]


def short(name: str, length: int = 28) -> str:
    """A class's name, cut off where it is long, without what no font has."""
    name = drawable(name)
    return name if len(name) <= length else f"{name[: length - 1]}…"


def axis_in_inches(subfigure: "SubFigure") -> "Axes":
    """An axis over all of a subfigure for drawing by hand, in inches from the upper left corner."""
    axis = subfigure.add_axes((0, 0, 1, 1))
    width, height = size_in_inches(subfigure)
    axis.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    axis.axis("off")
    return axis


def size_in_inches(subfigure: "SubFigure") -> tuple[float, float]:
    """Width and height of a subfigure."""
    return tuple(pixels / subfigure.figure.dpi for pixels in subfigure.bbox.size)
