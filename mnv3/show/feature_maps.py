"""What a network makes of a picture: the maps after every stage, and which channels squeeze-and-excite opens."""

import os
from functools import partial
from textwrap import wrap
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor, nn

from ..arch import Tap, taps
from ..figures import style
from ..layers import SqueezeExcite, evaluating
from ..model import MobileNetV3
from . import inputs

PARTS = ("maps", "gates")
TEXT = (
    "What the network sees, and its maps after every stage: the mean of all channels, then those that differ most "
    "from place to place. Every map has its own scale, from its least value (dark) to its largest."
)


class Looked(NamedTuple):
    """What is found in a network that looks at a picture."""

    view: np.ndarray  # the picture, uint8 (H, W, 3)
    stages: list[tuple[Tap, Tensor]]  # maps (C, H, W) where the resolution changes, shallow to deep
    gates: dict[str, Tensor]  # by name of the block, a factor from 0 to 1 for each of its channels (C,)


def features(
    picture: str | os.PathLike | Image.Image,
    model: nn.Module,
    *,
    what: str | None = None,
    path: str | os.PathLike | None = None,
    dark: bool = False,
) -> Any:
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
    if what not in (None, *PARTS):
        raise ValueError(f"what={what!r}: expected {' or '.join(PARTS)}")
    with style.page(path, dark=dark):
        model = inputs.of(model)
        if what == "gates":
            check_gates(model)
        looked = look(picture, model)
        rows = []
        if what != "gates":
            rows.append((maps_height(looked, style.WIDTH), [partial(draw_maps, looked=looked)]))
        if what != "maps" and looked.gates:
            rows.append((gates_height(looked), [partial(draw_gates, looked=looked)]))
        return style.finish(style.sheet(rows), path)


def check_gates(model: MobileNetV3) -> None:
    """Raise ValueError for a network without squeeze-and-excite."""
    if not any(row.se for row in model.arch.rows):
        raise ValueError(f"{model.pretrained_cfg['architecture']} has no squeeze-and-excite here: no gates to show")


def look(picture: str | os.PathLike | Image.Image, model: MobileNetV3) -> Looked:
    """Run the network on a picture, and keep what `Looked` says."""
    x, view = inputs.picture(picture, model)
    gates: dict[str, Tensor] = {}

    def keep(name: str, _: nn.Module, __: Any, gate: Tensor) -> None:
        gates[name] = gate.flatten().float().cpu()

    hooks = [
        module.gate.register_forward_hook(partial(keep, name.removesuffix(".se")))
        for name, module in model.named_modules()
        if isinstance(module, SqueezeExcite)
    ]
    try:
        with evaluating(model):
            maps = model.forward_intermediates(x, intermediates_only=True)
    finally:
        for hook in hooks:
            hook.remove()
    stages = [(tap, stage[0].float().cpu()) for tap, stage in zip(taps(model.arch), maps, strict=True)]
    return Looked(view, stages, gates)


def strongest(maps: Tensor, count: int) -> list[int]:
    """The channels of (C, H, W) whose values differ most from place to place, the strongest first."""
    return maps.flatten(1).std(1, correction=0).topk(min(count, len(maps))).indices.tolist()


def _columns(width: float) -> int:
    return 9 if width > 6 else 5


def maps_height(looked: Looked, width: float) -> float:
    """Inches that `draw_maps` needs."""
    return 1.75 + len(looked.stages) * (width / _columns(width) + 0.32)


def draw_maps(place: Any, looked: Looked) -> None:
    """A row for each stage: the mean of all channels, and the strongest of them."""
    width = style.inches(place)[0]
    columns = _columns(width)
    heights = [1.75, *[width / columns + 0.32] * len(looked.stages)]
    top, *rest = place.subfigures(len(heights), 1, height_ratios=heights)
    left, right = top.subfigures(1, 2, width_ratios=(1.7, width - 1.7))
    _show(left.subplots(), looked.view)
    right.text(0.02, 0.5, "\n".join(wrap(TEXT, 52 if columns > 5 else 30)), va="center", linespacing=1.5)
    for line, (tap, maps) in zip(rest, looked.stages, strict=True):
        shape = "{} channels of {} × {}".format(*maps.shape)
        line.suptitle(f"{tap.module}: {shape}, stride {tap.reduction}", x=0.01, ha="left", size=9)
        axes = line.subplots(1, columns)
        _show(axes[0], maps.mean(0), "mean")
        chosen = strongest(maps, columns - 1)
        for axis, channel in zip(axes[1:], chosen, strict=False):
            _show(axis, maps[channel], str(channel))
        for axis in axes[1 + len(chosen) :]:
            axis.axis("off")


def _show(axis: Any, picture: Any, title: str | None = None) -> None:
    axis.imshow(np.asarray(picture), cmap="viridis", interpolation="nearest")
    axis.axis("off")
    if title:
        axis.set_title(title, size=7, loc="center", pad=2)


def gates_height(looked: Looked) -> float:
    """Inches that `draw_gates` needs."""
    return 1.1 + 0.55 * len(looked.gates)


def draw_gates(place: Any, looked: Looked) -> None:
    """A row for each block: the gate of every channel, and how many channels have which."""
    import matplotlib

    wide = style.inches(place)[0] > 6
    title = "squeeze-and-excite: the factor of every channel, and how many channels have it"
    place.suptitle("\n".join(wrap(title, 90 if wide else 50)), x=0.01, ha="left", size=9)
    axes = place.subplots(len(looked.gates), 2, width_ratios=(3, 1) if wide else (3, 2), squeeze=False)
    edges = np.linspace(0, 1, 21)
    middles = (edges[1:] + edges[:-1]) / 2
    shades = matplotlib.colormaps["cividis"]
    for (strip, bars), (name, gate) in zip(axes, looked.gates.items(), strict=True):
        image = strip.imshow(gate[None].numpy(), aspect="auto", cmap=shades, vmin=0, vmax=1, interpolation="nearest")
        opened, shut = (100 * share.float().mean().item() for share in (gate > 0.5, gate == 0))
        channels = f"{name}: {len(gate)} channels," if wide else f"{name} ({len(gate)}):"
        strip.set_title(f"{channels} {opened:.0f} % above ½, {shut:.0f} % shut", size=8 if wide else 7, pad=2)
        strip.set(yticks=[], xticks=[])
        counts, _ = np.histogram(gate.numpy(), bins=edges)
        bars.bar(middles, counts, 0.05, color=shades(middles))
        bars.set(xlim=(0, 1), yticks=[counts.max()], xticks=[0, 0.5, 1])
        bars.set_ylabel("channels", size=6)
        bars.tick_params(labelsize=7, labelbottom=name == list(looked.gates)[-1])
    bars.set_xlabel("gate (0 shut, 1 open)", size=8)
    strip.set_xlabel("channel", size=8)
    place.colorbar(image, ax=axes[:, 0], location="bottom", label="gate", shrink=0.6, aspect=40, pad=0.02)
