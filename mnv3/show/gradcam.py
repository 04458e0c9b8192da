"""Which part of a picture speaks for a class: Grad-CAM."""

import os
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..errors import choices
from ..factory import class_names
from ..figures import style
from ..layers import evaluating
from ..model import MobileNetV3
from .inputs import input_and_view, inspectable

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure


class Explanation(NamedTuple):
    """What a model says of a picture, and where it sees it."""

    view: np.ndarray  # the picture, uint8 (H, W, 3)
    heat: Tensor  # (h, w): what each position of the last map adds to the logit; below 0 it speaks against the class
    index: int  # the class that the map is of
    names: list[str]  # of all classes
    probs: Tensor  # (classes,)
    size: tuple[int, int]  # of the model's input: height and width in pixels


def why(
    picture: str | os.PathLike[str] | Image.Image,
    model: nn.Module,
    *,
    class_: int | str | None = None,
    path: str | os.PathLike[str] | None = None,
    dark: bool = False,
) -> "Figure":
    """Draw where a model sees a class in a picture, and its five most likely classes.

    Args:
        picture: A file, or a PIL picture.
        model: One of mnv3's, with a classifier; evaluated with its own preprocessing.
        class_: Index or name; by default the most likely one.
        path: A PNG or SVG to write.
        dark: On black.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        PictureError: The picture cannot be read.
        ValueError: No such class, or the model or the ending of `path` cannot be.
        ImportError: captum is missing.
    """
    style.check(path)
    explanation = explain(picture, model, class_=class_)
    panels = [partial(draw, explanation=explanation) for draw in (draw_heat_map, draw_top_classes)]
    return style.figure([style.Row(3.3, panels)], ratios=(2, 1), path=path, dark=dark)


def explain(
    picture: str | os.PathLike[str] | Image.Image, model: nn.Module, *, class_: int | str | None = None
) -> Explanation:
    """Grad-CAM (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391) of the last map before the pool.

    As the pool is an average, the gradient is the same at every position, and the map is what each position adds to the
    logit to first order, its sign kept. Arguments and errors are those of `why`.
    """
    model = inspectable(model)
    if not model.num_classes:
        raise ValueError("the model has no classifier (num_classes=0): nothing to explain")
    names = class_names(model) or [f"class {i}" for i in range(model.num_classes)]
    index = None if class_ is None else class_index(names, class_)
    x, view = input_and_view(picture, model)
    heat, logits = grad_cam(model, x, index)
    probs = logits[0].float().softmax(0).cpu()
    index = probs.argmax().item() if index is None else index
    return Explanation(view, heat[0], index, names, probs, tuple(x.shape[2:]))


def grad_cam(model: MobileNetV3, x: Tensor, index: int | None = None) -> tuple[Tensor, Tensor]:
    """Grad-CAM, the sign kept.

    Args:
        model: One of ours, with a classifier.
        x: Preprocessed pictures (B, 3, H, W).
        index: The class; None for the most likely one of each picture.

    Returns:
        The maps (B, h, w), in float32 on the CPU, and the logits (B, classes).

    Raises:
        ImportError: captum is missing.
    """
    try:
        from captum.attr import LayerGradCam
    except ImportError:
        raise ImportError("heat maps need captum: pip install 'mnv3[viz]'") from None
    with evaluating(model), torch.inference_mode(False), torch.enable_grad():
        with torch.no_grad():
            logits = model(x)
        target = logits.argmax(1) if index is None else index
        heat = LayerGradCam(model, model.last).attribute(x, target=target)
    return heat[:, 0].detach().float().cpu(), logits


def class_index(names: list[str], given: int | str) -> int:
    """The index of a class.

    Args:
        names: Of all classes.
        given: Its index, or its name in any case.

    Raises:
        ValueError: There is no such class.
    """
    if isinstance(given, str) and given in names:
        return names.index(given)
    text = str(given)
    if text.isascii() and text.isdigit():
        if int(text) < len(names):
            return int(text)
        raise ValueError(f"class {text}: the model has classes 0 to {len(names) - 1}")
    lower = [name.lower() for name in names]
    if text.lower() in lower:
        return lower.index(text.lower())
    raise ValueError(f"no class {text!r}. {choices(text, names, limit=10)}")


def draw_heat_map(subfigure: "SubFigure", explanation: Explanation) -> None:
    """Draw what the model sees of the picture, and the map over it; what speaks against the class is not coloured."""
    left, right = subfigure.subplots(1, 2)
    left.imshow(explanation.view)
    height, width = explanation.size
    left.set_title(f"seen at {width} × {height} px", size=9)
    grey = (explanation.view @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    right.imshow(grey, cmap="gray", vmin=0, vmax=255)
    heat = _enlarged(explanation.heat, explanation.view.shape[:2])
    most = max(heat.max().item(), 1e-12)
    share = (heat / most).numpy()
    image = right.imshow(share, cmap="inferno", vmin=0, vmax=1, alpha=0.1 + 0.55 * share)
    right.set_title(f"speaks for {style.short(explanation.names[explanation.index], 20)}", size=9)
    for axis in (left, right):
        axis.axis("off")
    bar = subfigure.colorbar(image, ax=(left, right), location="bottom", ticks=[0, 0.5, 1], aspect=50, shrink=0.8)
    bar.set_label(f"what a place adds to the logit / its largest ({most:.2g})", size=8)
    bar.ax.tick_params(labelsize=7)


def _enlarged(heat: Tensor, size: tuple[int, int]) -> Tensor:
    """What is above 0 of a map (h, w), interpolated to another size (H, W)."""
    positive = heat.clamp(min=0)[None, None]
    return F.interpolate(positive, size=size, mode="bicubic", align_corners=False)[0, 0].clamp(min=0)


def draw_top_classes(subfigure: "SubFigure", explanation: Explanation) -> None:
    """Draw the five most likely classes, and the one that the map is of."""
    blue, orange, *_ = style.colours()
    top = explanation.probs.topk(min(5, len(explanation.probs))).indices.tolist()
    top += [explanation.index] if explanation.index not in top else []
    axis = subfigure.subplots()
    values = (100 * explanation.probs[top]).tolist()
    axis.barh(range(len(top)), values, 0.5, color=[orange if i == explanation.index else blue for i in top])
    for line, (i, value) in enumerate(zip(top, values, strict=True)):
        axis.text(0, line - 0.42, style.short(explanation.names[i]), size=8, va="center")
        axis.text(value + 2, line, f"{value:.1f} %", size=8, va="center")
    axis.set(xlim=(0, 128), ylim=(len(top) - 0.5, -0.8), yticks=[], xticks=range(0, 101, 25), xlabel="probability / %")
    axis.spines.left.set_visible(False)
