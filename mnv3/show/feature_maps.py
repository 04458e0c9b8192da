"""What a network makes of a picture: the maps after every stage, and which channels squeeze-and-excite opens."""

import os
from functools import partial
from textwrap import wrap
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor, nn

from ..arch import Tap, taps
from ..figures import style
from ..hooks import watching
from ..layers import SqueezeExcite, evaluating
from ..model import MobileNetV3
from .inputs import input_and_view, inspectable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

WHAT = ("maps", "gates")
EXPLANATION = (
    "What the network sees, and its maps after every stage: the mean of all channels, then those that differ most "
    "from place to place. Every map has its own scale, from its least value (dark) to its largest."
)


class Activations(NamedTuple):
    """What a network computes for a picture."""

    view: np.ndarray  # the picture, uint8 (H, W, 3)
    stages: list[tuple[Tap, Tensor]]  # feature maps (C, H, W) where the resolution changes, shallow to deep
    gates: dict[str, Tensor]  # of squeeze-and-excite, by block: a factor from 0 to 1 for each channel, (C,)


def features(
    picture: str | os.PathLike[str] | Image.Image,
    model: nn.Module,
    *,
    what: str | None = None,
    path: str | os.PathLike[str] | None = None,
    dark: bool = False,
) -> "Figure":
    """Draw the feature maps of every stage, and the gates of every squeeze-and-excite.

    Args:
        picture: A file, or a PIL picture.
        model: One of mnv3's, on any device; evaluated with its own preprocessing.
        what: 'maps' or 'gates'; None for both, of which a network without squeeze-and-excite has no gates.
        path: A PNG or SVG to write.
        dark: On black.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        PictureError: The picture cannot be read.
        ValueError: There are no gates, or the model, `what` or the ending of `path` cannot be.
    """
    if what not in (None, *WHAT):
        raise ValueError(f"what={what!r}: expected {' or '.join(WHAT)}")
    style.check(path)
    model = inspectable(model)
    if what == "gates" and not any(row.se for row in model.arch.rows):
        raise ValueError(f"{model.pretrained_cfg['architecture']} has no squeeze-and-excite here: no gates to show")
    activations = compute_activations(picture, model)
    rows = []
    if what != "gates":
        rows.append(maps_row(activations))
    if what != "maps" and activations.gates:
        rows.append(gates_row(activations))
    return style.figure(rows, path=path, dark=dark)


def compute_activations(picture: str | os.PathLike[str] | Image.Image, model: MobileNetV3) -> Activations:
    """Run a network on a picture (a file, or a PIL picture).

    Raises:
        PictureError: The picture cannot be read.
    """
    x, view = input_and_view(picture, model)
    named = {name: module for name, module in model.named_modules() if isinstance(module, SqueezeExcite)}
    with (
        evaluating(model),
        watching([se.gate for se in named.values()], lambda _, gate: gate.flatten().float().cpu()) as gates,
    ):
        maps = model.forward_intermediates(x, intermediates_only=True)
    stages = [(tap, stage[0].float().cpu()) for tap, stage in zip(taps(model.arch), maps, strict=True)]
    return Activations(view, stages, {name.removesuffix(".se"): gates[se.gate] for name, se in named.items()})


def most_varied(maps: Tensor, count: int) -> list[int]:
    """The `count` channels of (C, H, W) whose values differ most from position to position, in this order."""
    return maps.flatten(1).std(1, correction=0).topk(min(count, len(maps))).indices.tolist()


def maps_row(activations: Activations, width: float = style.WIDTH) -> style.Row:
    """The picture and a line of maps for each stage, for a figure of this width in inches."""
    columns = 9 if width > style.NARROW else 5
    heights = [1.75, *[width / columns + 0.32] * len(activations.stages)]
    return style.Row(sum(heights), [partial(_draw_maps, activations=activations, columns=columns, heights=heights)])


def _draw_maps(subfigure: "SubFigure", activations: Activations, columns: int, heights: list[float]) -> None:
    """Draw the mean of all channels of each stage, and the channels that vary most."""
    width, _ = style.size_in_inches(subfigure)
    top, *lines = subfigure.subfigures(len(heights), 1, height_ratios=heights)
    left, right = top.subfigures(1, 2, width_ratios=(1.7, width - 1.7))
    _show(left.subplots(), activations.view)
    right.text(0.02, 0.5, "\n".join(wrap(EXPLANATION, 52 if columns > 5 else 30)), va="center", linespacing=1.5)
    for line, (tap, maps) in zip(lines, activations.stages, strict=True):
        shape = "{} channels of {} × {}".format(*maps.shape)
        line.suptitle(f"{tap.module}: {shape}, stride {tap.reduction}", x=0.01, ha="left", size=9)
        axes = line.subplots(1, columns)
        _show(axes[0], maps.mean(0), "mean")
        chosen = most_varied(maps, columns - 1)
        for axis, channel in zip(axes[1:], chosen, strict=False):
            _show(axis, maps[channel], str(channel))
        for axis in axes[1 + len(chosen) :]:
            axis.axis("off")


def _show(axis: "Axes", picture: np.ndarray | Tensor, title: str | None = None) -> None:
    axis.imshow(np.asarray(picture), cmap="viridis", interpolation="nearest")
    axis.axis("off")
    if title:
        axis.set_title(title, size=7, loc="center", pad=2)


def gates_row(activations: Activations) -> style.Row:
    """A line for each block with squeeze-and-excite, of which there is at least one."""
    return style.Row(1.1 + 0.55 * len(activations.gates), [partial(_draw_gates, gates=activations.gates)])


def _draw_gates(subfigure: "SubFigure", gates: dict[str, Tensor]) -> None:
    """Draw the gate of every channel of each block, and how many channels have which gate."""
    import matplotlib

    wide = style.size_in_inches(subfigure)[0] > style.NARROW
    title = "squeeze-and-excite: the factor of every channel, and how many channels have it"
    subfigure.suptitle("\n".join(wrap(title, 90 if wide else 50)), x=0.01, ha="left", size=9)
    axes = subfigure.subplots(len(gates), 2, width_ratios=(3, 1) if wide else (3, 2), squeeze=False)
    edges = np.linspace(0, 1, 21)
    middles = (edges[1:] + edges[:-1]) / 2
    shades = matplotlib.colormaps["cividis"]
    for (strip, bars), (name, gate) in zip(axes, gates.items(), strict=True):
        image = strip.imshow(gate[None].numpy(), aspect="auto", cmap=shades, vmin=0, vmax=1, interpolation="nearest")
        opened, shut = (100 * share.float().mean().item() for share in (gate > 0.5, gate == 0))
        channels = f"{name}: {len(gate)} channels," if wide else f"{name} ({len(gate)}):"
        strip.set_title(f"{channels} {opened:.0f} % above ½, {shut:.0f} % shut", size=8 if wide else 7, pad=2)
        strip.set(yticks=[], xticks=[])
        counts, _ = np.histogram(gate.numpy(), bins=edges)
        bars.bar(middles, counts, 0.05, color=shades(middles))
        bars.set(xlim=(0, 1), yticks=[counts.max()], xticks=[0, 0.5, 1])
        bars.set_ylabel("channels", size=6)
        bars.tick_params(labelsize=7, labelbottom=name == list(gates)[-1])
    bars.set_xlabel("gate (0 shut, 1 open)", size=8)
    strip.set_xlabel("channel", size=8)
    subfigure.colorbar(image, ax=axes[:, 0], location="bottom", label="gate", shrink=0.6, aspect=40, pad=0.02)
