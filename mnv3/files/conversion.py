"""State dicts from elsewhere, exactly in our keys, or refused.

They may have any layout of layouts.py, wrapped in any way of wrappers.py. Only names and shapes of tensors change, with
one exception: batch norm's eps is not in a state dict and differs by source. We keep 1e-5 everywhere and add the
difference to the running variance, which leaves (x - mean) / sqrt(var + eps) as it was.
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..arch import VARIANTS, Arch
from ..errors import WeightsError
from ..layers import BN_EPS
from .layouts import Layout, layout_of, se_orders
from .tensors import check_values, shown
from .wrappers import unwrap

logger = logging.getLogger(__name__)


def convert_state_dict(
    checkpoint: Mapping[str, Any],
    model: nn.Module,
    *,
    use_ema: bool | None = None,
    bn_eps: float | None = None,
    drop_background: bool = False,
) -> dict[str, Tensor]:
    """A checkpoint of any known layout as a state dict of `model`, with the same outputs to rounding.

    A classifier of another number of classes than the model's is left out, with a notice; so is one for a model
    without classifier. A stem for another number of channels is returned as it is, for timm's loader to adapt.

    Args:
        checkpoint: A state dict, or a checkpoint that contains one.
        model: The MobileNetV3 that it is for.
        use_ema: See `unwrap`.
        bn_eps: Eps of the batch norms that the weights were trained with, where it is not their layout's own
            (timm 1e-5, and 1e-3 for its `tf_` models; torchvision 1e-3; d-li14 1e-5).
        drop_background: Take a classifier with one class more than the model for TensorFlow's, whose class 0 is
            'background', and drop that row.

    Raises:
        WeightsError: It does not fit; the message names the layout, the arch asked for and the first mismatches. Or a
            tensor cannot be a weight: not dense, not floating-point, not finite, or of a negative variance.
        ValueError: `bn_eps` is not above 0 and at most 1.
    """
    if bn_eps is not None:
        check_eps(bn_eps)
    state_dict = unwrap(checkpoint, use_ema=use_ema)
    layout = layout_of(state_dict)
    converted = _to_our_keys(state_dict, layout)
    if any(".se." in key for key in converted):
        _check_se_order(state_dict, layout, model)
    _drop_foreign_classifier(converted, model, drop_background=drop_background)
    _check_fit(converted, model, layout)
    eps = layout.eps(model) if bn_eps is None else bn_eps
    check_values(converted, eps=eps)
    for key in [key for key in converted if key.endswith("running_var")] if eps != BN_EPS else []:
        dtype = torch.promote_types(converted[key].dtype, torch.float32)
        converted[key] = (converted[key].double() + (eps - BN_EPS)).to(dtype)
    return converted


def check_eps(bn_eps: float) -> None:
    """Raise ValueError for what cannot be the eps of a batch norm."""
    if not 0 < bn_eps <= 1:  # nor is it NaN
        raise ValueError(f"bn_eps={bn_eps!r}: expected a number above 0 and at most 1, such as 1e-5 or 1e-3")


def _check_se_order(state_dict: dict[str, Tensor], layout: Layout, model: nn.Module) -> None:
    if layout.name == "mnv3":
        return  # our own keys are the same in every order; config.json says which
    orders = se_orders(state_dict) if layout.name == "d-li14" else ["act-se"]
    if model.se_order not in orders:
        order = f"se_order={orders[-1]!r}" if orders else "an order that differs from block to block"
        raise WeightsError(
            f"the file has its squeeze-and-excite in {order}, the model in se_order={model.se_order!r}: "
            "the weights would load and give other outputs; build the model with the file's order"
        )


def _to_our_keys(state_dict: dict[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    names = layout.rename(state_dict)
    converted = {}
    for key, value in state_dict.items():
        module, _, leaf = key.rpartition(".")
        ours = names.get(module, f"{module} of the file")
        if leaf == "weight" and ours.endswith((".squeeze", ".excite", "head")) and value.ndim == 2:
            value = value[:, :, None, None]  # a linear layer there, a 1x1 convolution here
        converted[f"{ours}.{leaf}"] = value
    for key in [key for key in converted if key.endswith("running_mean")]:
        # a counter that no output depends on; half-precision exports turn it into a float
        counter = key.replace("running_mean", "num_batches_tracked")
        converted[counter] = converted.get(counter, torch.zeros(())).long()
    return converted


def _drop_foreign_classifier(converted: dict[str, Tensor], model: nn.Module, *, drop_background: bool) -> None:
    """Remove a classifier of other classes than the model's, or only its class 0."""
    weight = converted.get("classifier.weight")
    classes = 0 if weight is None else len(weight) if weight.ndim == 2 else None
    if classes in (model.num_classes, None):
        return
    if classes == 0:
        logger.warning("classifier left at its initial values: the file has none; all else is loaded")
        return
    if drop_background:
        if classes != model.num_classes + 1:
            raise WeightsError(
                f"drop_background=True, but the file has {classes} classes, the model {model.num_classes}"
            )
        logger.warning("dropped class 0, the background class, of the file's %d classes", classes)
        for key in ("classifier.weight", "classifier.bias"):
            if key in converted:
                converted[key] = converted[key][1:]
        return
    if (classes, model.num_classes) == (1001, 1000):
        raise WeightsError(
            "the classifier has 1001 classes, one more than the model: TensorFlow's has a background class in front; "
            "pass drop_background=True to drop it, or num_classes=1001 to keep it"
        )
    if model.num_classes:
        logger.warning(
            "classifier left at its initial values: the file has %d classes, the model %d; all else is loaded",
            classes,
            model.num_classes,
        )
    converted.pop("classifier.weight")
    converted.pop("classifier.bias", None)


def _check_fit(converted: dict[str, Tensor], model: nn.Module, layout: Layout) -> None:
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    shapes = {key: tuple(value.shape) for key, value in converted.items()}
    if shapes.get("stem.conv.weight", ())[2:] == expected["stem.conv.weight"][2:]:
        shapes["stem.conv.weight"] = (shapes["stem.conv.weight"][0], *expected["stem.conv.weight"][1:])
    if "classifier.weight" not in converted:  # left out above, on purpose
        expected = {key: shape for key, shape in expected.items() if not key.startswith("classifier.")}
    missing = [f"{key} missing" for key in expected if key not in shapes]
    unexpected = [f"{shown(key)} not in the model" for key in shapes if key not in expected]
    differ = [
        f"{key}: file {shapes[key]}, model {shape}"
        for key, shape in expected.items()
        if key in shapes and shapes[key] != shape
    ]
    problems = differ + missing + unexpected
    if not problems:
        return
    hint = _fitting_variant(converted, model.arch)
    if differ and all(".se." in problem for problem in differ) and not missing + unexpected:
        hint = _squeeze_widths(shapes, expected) or hint
    raise WeightsError(
        f"{layout.name} weights do not fit {_describe(model)}: {len(problems)} of {len(expected)} tensors are wrong "
        f"({'; '.join(problems[:3])}). {hint}"
    )


def _squeeze_widths(shapes: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> str:
    """The end of a message about a file of which only squeeze-and-excite does not fit."""
    weights = (key for key in shapes if key.endswith("se.squeeze.weight") and shapes[key] != expected[key])
    width, channels = next(((shapes[key] + (0, 0))[:2] for key in weights), (0, 0))
    if not channels:
        return ""
    return (
        f"Only the squeeze-and-excite widths differ: the file has {width} for {channels} channels, the model rounds a "
        "quarter to a multiple of 8, as the paper's authors do"
    )


def _describe(model: nn.Module) -> str:
    name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture") or type(model).__name__
    return f"{name} (stem {model.arch.stem}, last {model.arch.last}, {len(model.arch.rows)} blocks)"


def _fitting_variant(converted: dict[str, Tensor], asked: Arch) -> str:
    """Which other registered names the shapes would fit, as the end of a message."""

    def widths(arch: Arch) -> list[tuple[int, int, bool]]:
        return [(row.exp, row.out, row.se) for row in arch.rows]

    rows = []
    while (depthwise := converted.get(f"blocks.{len(rows)}.depthwise.conv.weight")) is not None:
        project = converted.get(f"blocks.{len(rows)}.project.conv.weight", depthwise)
        rows.append((*depthwise.shape[:1], *project.shape[:1], f"blocks.{len(rows)}.se.squeeze.weight" in converted))
    if rows == widths(asked):
        return "Its blocks are those of the model"
    names = [name for name, variant in VARIANTS.items() if widths(variant.arch) == rows]
    return f"The file fits {' or '.join(names)}" if names else "The file fits no registered arch: see arch= and width="
