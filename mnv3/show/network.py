"""The table of a network, and one of its blocks, as the paper draws them."""

import os
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from ..arch import VARIANTS, Arch, Bneck, se_before_act
from ..catalog import find, split_name
from ..figures import style
from ..files.saving import unwrapped
from ..model import MobileNetV3
from ..table import TableRow, table_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

ACTIVATIONS = {"RE": "ReLU", "HS": "h-swish"}
COLUMNS = {  # inches from the left, and which end of the text lies there
    "part": (1.0, "left"),
    "input": (1.72, "left"),
    "operator": (2.62, "left"),
    "exp": (4.18, "right"),
    "out": (4.62, "right"),
    "SE": (4.84, "center"),
    "NL": (5.13, "center"),
    "s": (5.4, "center"),
}
BARS = {  # costs of a row: their heading, unit and format, and where their bars start, in inches from the left
    "params": ("parameters\n/ k", 1e3, "{:,.1f}", 5.62),
    "macs": ("MACs\n/ M", 1e6, "{:,.2f}", 6.52),
    "activations": ("activations\n/ kB", 1e3 / 4, "{:,.1f}", 7.42),
}
BAR, LINE = 0.84, 0.215  # inches: the longest bar, and a line of the table
NOTES = (
    "exp, out: channels inside and after; SE: squeeze-and-excite; NL: RE ReLU, HS h-swish; s: stride, d: dilation.",
    "Activations: what convolutions and linear layers write for one picture, in float32. Bars: share of the largest.",
)
BOX, STEP = 0.36, 0.62  # inches: the height of a layer's box in the picture of a block, and from one to the next


class Network(NamedTuple):
    """A network, and what pictures and classes it is for."""

    name: str
    arch: Arch
    size: int  # pixels along a side of a picture
    num_classes: int
    in_chans: int = 3
    se_order: str = "act-se"

    @property
    def rows(self) -> list[TableRow]:
        """The rows of its table, from the stem to the classifier."""
        return list(table_rows(self.arch, size=self.size, in_chans=self.in_chans, num_classes=self.num_classes))


def arch(
    model: str | Arch | nn.Module,
    *,
    size: int | None = None,
    block: int | None = None,
    path: str | os.PathLike[str] | None = None,
    dark: bool = False,
) -> "Figure":
    """Draw the network as the paper does: its table with what every row costs, and a bottleneck.

    Args:
        model: A name of `mnv3 list`, a table, or a model.
        size: Pixels along a side of a picture; by default those that the model is for.
        block: Which row to draw (from 0); by default the first with all that the network has.
        path: A PNG or SVG to write.
        dark: On black.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: An unknown name, a row that the table does not have, or another ending.
    """
    style.check(path)
    network = network_of(model, size)
    numbers = blocks_to_draw(network.arch, block)
    rows = network.rows
    panels = [partial(draw_block, network=network, number=i) for i in numbers]
    if len(panels) == 1:
        panels.append(lambda subfigure: None)  # leaves the right half of the figure empty
    height = max(block_height(network, i) for i in numbers)
    params, macs, activations = (sum(getattr(row.cost, name) for row in rows) for name in BARS)
    title = (
        f"{network.name}: {params / 1e6:.2f} M parameters, {macs / 1e6:.1f} M MACs, "
        f"{4 * activations / 1e6:.2f} MB of activations at {network.size} × {network.size} px"
    )
    table = style.Row(LINE * (len(rows) + 5.4), [partial(draw_table, network=network)])
    return style.figure([table, style.Row(height, panels)], title=title, path=path, dark=dark)


def network_of(model: str | Arch | nn.Module, size: int | None = None) -> Network:
    """What `arch` draws of a model; arguments and errors are those of `arch`."""
    if size is not None and (not isinstance(size, int) or size < 1):
        raise ValueError(f"size={size!r}: expected a whole number of at least 1 pixel")
    if isinstance(model, Arch):
        return Network("a table", model, size or 224, 1000)
    if isinstance(model, nn.Module):
        model = unwrapped(model)
        if not isinstance(model, MobileNetV3):
            raise ValueError(f"{type(model).__name__} is not one of mnv3's models, and has no table")
        cfg = model.pretrained_cfg
        size = size or cfg["input_size"][-1]
        return Network(cfg["architecture"], model.arch, size, model.num_classes, model.in_chans, model.se_order)
    name, tag = split_name(model)
    variant = VARIANTS[name]
    num_classes = find(name, tag).num_classes if tag else variant.num_classes
    return Network(model, variant.arch, size or variant.size, num_classes)


class BlockParts(NamedTuple):
    """What a bottleneck has beside the depthwise and the last convolution."""

    expansion: bool
    squeeze_excite: bool
    shortcut: bool


def _block_parts(table: Arch, number: int) -> BlockParts:
    row, in_chans = table.rows[number], table.inputs[number]
    return BlockParts(row.exp != in_chans, row.se, row.stride == 1 and in_chans == row.out)


def blocks_to_draw(table: Arch, block: int | None = None) -> list[int]:
    """Numbers of rows: the one asked for, or the first with most parts and the first that halves the map.

    Raises:
        ValueError: There is no row `block`.
    """
    if block is None:
        numbers = range(len(table.rows))
        richest = max(numbers, key=lambda i: sum(_block_parts(table, i)))
        halving = [i for i in numbers if table.rows[i].step > 1 and _block_parts(table, i).expansion]
        return list(dict.fromkeys([richest, *halving[:1]]))
    if not isinstance(block, int) or not 0 <= block < len(table.rows):
        raise ValueError(f"block={block!r}: expected a row from 0 to {len(table.rows) - 1}")
    return [block]


def cells(row: TableRow) -> dict[str, str]:
    """The texts of a row of the table by column, of `COLUMNS` and of `BARS`."""
    cost, kernel = row.cost, f" {row.kernel}×{row.kernel}" if row.kernel else ""
    texts = (
        cost.part,
        f"{cost.size}² × {row.in_chans}",
        row.operator.replace("conv2d", "conv") + kernel,
        str(row.exp or "-"),
        str(cost.channels),
        "✓" if row.se else "-",
        row.act or "-",
        str(row.stride or "-") if row.dilation == 1 else f"d{row.dilation}",
    )
    costs = {name: form.format(getattr(cost, name) / unit) for name, (_, unit, form, _) in BARS.items()}
    return dict(zip(COLUMNS, texts, strict=True)) | costs


def draw_table(subfigure: "SubFigure", network: Network) -> None:
    """Draw the table: a funnel of the resolutions, the paper's columns, and bars of what every row costs."""
    from matplotlib import colormaps

    axis, rows = style.axis_in_inches(subfigure), network.rows
    top = 1.7 * LINE
    for column, (x, align) in COLUMNS.items():
        axis.text(x, top - 0.04, column, ha=align, va="bottom", weight="bold", size=8)
    axis.text(0.5, top - 0.04, "resolution", ha="center", va="bottom", weight="bold", size=8)
    for label, _, _, x in BARS.values():
        axis.text(x + BAR, top - 0.04, label, ha="right", va="bottom", weight="bold", size=8, linespacing=0.95)
    axis.plot((0.08, style.WIDTH - 0.04), (top, top), color=style.ink(), lw=0.8)
    sizes = sorted({row.cost.size for row in rows}, reverse=True)
    largest = {name: max(getattr(row.cost, name) for row in rows) for name in BARS}
    shades = colormaps["cividis"]
    for i, row in enumerate(rows):
        y, cost, texts = top + (i + 0.5) * LINE, row.cost, cells(row)
        width = 0.8 * max(cost.size / sizes[0], 0.03)
        colour = shades(0.15 + 0.8 * sizes.index(cost.size) / len(sizes))
        axis.barh(y, width, 0.8 * LINE, 0.5 - width / 2, color=colour)
        for column, (x, align) in COLUMNS.items():
            axis.text(x, y, texts[column], ha=align, va="center", size=8)
        for colour, (name, (_, _, _, x)) in zip(style.colours(), BARS.items(), strict=False):
            axis.barh(y, BAR * getattr(cost, name) / largest[name], 0.8 * LINE, x, color=colour, alpha=0.35)
            axis.text(x + BAR, y, texts[name], ha="right", va="center", size=8)
    y = top + len(rows) * LINE
    axis.plot((0.08, style.WIDTH - 0.04), (y, y), color=style.ink(), lw=0.8)
    axis.text(COLUMNS["part"][0], y + 0.6 * LINE, "total", va="center", weight="bold", size=8)
    for name, (_, unit, form, x) in BARS.items():
        total = form.format(sum(getattr(row.cost, name) for row in rows) / unit)
        axis.text(x + BAR, y + 0.6 * LINE, total, ha="right", va="center", weight="bold", size=8)
    for i, line in enumerate(NOTES):
        axis.text(0.1, y + (1.7 + 0.85 * i) * LINE, line, size=7.5, va="center")


def block_height(network: Network, number: int) -> float:
    """Height of the picture of block `number`, in inches."""
    expands, se, shortcut = _block_parts(network.arch, number)
    se_first = se and se_before_act(network.se_order, expands=expands)
    return 1.15 + STEP * (2 + expands) + 1.26 * se + 0.38 * se_first + 0.44 * shortcut


def draw_block(subfigure: "SubFigure", network: Network, number: int) -> None:
    """Draw a bottleneck: narrow, wide and narrow again, with its squeeze-and-excite and its shortcut."""
    table, cost = network.arch, network.rows[1 + number].cost
    row, cin = table.rows[number], table.inputs[number]
    expands, se, shortcut = _block_parts(table, number)
    se_first = se and se_before_act(network.se_order, expands=expands)
    axis = style.axis_in_inches(subfigure)
    blue, orange, green, *_ = style.colours()
    x, act = 1.75, ACTIVATIONS[row.act]
    before, inside, after = (1.15 + (n / row.exp) ** 0.5 for n in (cin, row.exp, row.out))
    axis.text(0.1, 0.12, f"blocks.{number}", weight="bold", va="center")
    axis.text(x, 0.4, f"{cin} × {cost.size} × {cost.size}", ha="center", va="center", size=8)
    pen = _Pen(axis, x, 0.52)
    start = pen.y
    if expands:
        pen.box(before, inside, f"1×1, {cin} → {row.exp}, {act}", blue)
    kind = f"depthwise {row.kernel}×{row.kernel}" + (f", stride {row.step}" if row.step > 1 else "")
    kind += f", dilation {row.dilation}" if row.dilation > 1 else ""
    between = ",\n" if row.step > 1 or row.dilation > 1 else ", "
    pen.box(inside, inside, kind if se_first else f"{kind}{between}{act}", orange)
    if se:
        pen.squeeze_excite(row, green)
    if se_first:
        pen.arrow((x, pen.y), (x, pen.y + 0.22))
        axis.text(x, pen.y + 0.31, act, ha="center", va="center", size=8)
        pen.y += 0.38
    pen.box(inside, after, f"1×1, {row.exp} → {row.out}, linear", blue)
    if shortcut:
        pen.arrow((x, pen.y), (x, pen.y + 0.2))
        pen.circle(pen.y + 0.32, "+")
        pen.arrow((x, start + 0.04), (0.35, start + 0.04), (0.35, pen.y - 0.12), (x - 0.12, pen.y - 0.12))
    pen.arrow((x, pen.y), (x, pen.y + 0.22))
    axis.text(x, pen.y + 0.32, f"{row.out} × {cost.out_size} × {cost.out_size}", ha="center", va="center", size=8)


class _Pen:
    """Draws a block from top to bottom along x; y is where it has come to."""

    def __init__(self, axis: "Axes", x: float, y: float) -> None:
        self.axis, self.x, self.y = axis, x, y

    def arrow(self, *points: tuple[float, float]) -> None:
        if len(points) > 2:
            self.axis.plot(*zip(*points[:-1], strict=True), color=style.ink(), lw=1)
        shape = {"arrowstyle": "-|>", "color": style.ink(), "lw": 1, "shrinkA": 0, "shrinkB": 0}
        self.axis.annotate("", points[-1], points[-2], arrowprops=shape)

    def box(self, top: float, bottom: float, text: str, colour: str) -> None:
        x, y = self.x, self.y + STEP - BOX
        self.arrow((x, self.y), (x, y))
        corners = ((x - top / 2, y), (x + top / 2, y), (x + bottom / 2, y + BOX), (x - bottom / 2, y + BOX))
        self.axis.fill(*zip(*corners, strict=True), facecolor=colour + "40", edgecolor=colour, lw=1.2)
        self.axis.text(x, y + BOX / 2, text, ha="center", va="center", size=7.5)
        self.y = y + BOX

    def circle(self, y: float, sign: str) -> None:
        self.axis.plot(self.x, y, "o", ms=15, mfc=self.axis.get_facecolor(), mec=style.ink(), mew=1)
        self.axis.text(self.x, y, sign, ha="center", va="center_baseline", size=11)
        self.y = y + 0.12

    def squeeze_excite(self, row: Bneck, colour: str) -> None:
        """The side branch: pool, squeeze, excite, and back as a factor of every channel."""
        x, right, top, down = self.x, self.x + 1.75, self.y + 0.14, 0.37
        frame = {"boxstyle": "round,pad=0.3", "fc": colour + "40", "ec": colour, "lw": 1.2}
        for i, text in enumerate(("pool", f"{row.exp} → {row.squeeze}, ReLU", f"{row.squeeze} → {row.exp}, hard σ")):
            self.axis.text(right, top + down * i, text, ha="center", va="center", size=7.5, bbox=frame)
            if i:
                self.arrow((right, top + down * (i - 1) + 0.11), (right, top + down * i - 0.12))
        end = top + 3 * down
        self.arrow((x, top), (right - 0.22, top))
        self.arrow((x, self.y), (x, end - 0.12))
        self.arrow((right, end - down + 0.12), (right, end), (x + 0.12, end))
        self.circle(end, "×")
