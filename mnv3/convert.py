"""State dicts from elsewhere, exactly in our keys, or refused.

A layout is recognised by its keys: our own, timm's `mobilenetv3_*` and `tf_mobilenetv3_*`, torchvision's, and the ports
in d-li14's style (https://github.com/d-li14/mobilenetv3.pytorch); each may be wrapped as trainers wrap them. Only names
and shapes of tensors change, with one exception: batch norm's eps is not in a state dict and differs by source. We keep
1e-5 everywhere and add the difference to the running variance, which leaves (x - mean) / sqrt(var + eps) as it was.
"""

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .arch import SE_ORDERS, VARIANTS, Arch, se_before_act
from .errors import WeightsError
from .layers import BN_EPS
from .text import terminal

logger = logging.getLogger(__name__)

EMA_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
PLAIN_KEYS = ("state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.", "model.", "ema_model.")
BN_EPS_TF = 1e-3  # TensorFlow's and torchvision's


def unwrap(checkpoint: Mapping[str, Any], *, use_ema: bool | None = None) -> dict[str, Tensor]:
    """The state dict inside a checkpoint: out of its wrapper, without the prefixes of parallel and compiled modules.

    Args:
        checkpoint: What was read from a file.
        use_ema: Which weights, where a checkpoint has an averaged copy: True for the average or an error, False for
            the raw ones, None for the average if there is one (as timm does).

    Raises:
        WeightsError: There is no state dict inside, or no averaged one and `use_ema` is True.
    """
    found_ema = False
    while not _is_state_dict(checkpoint):
        keys = (EMA_KEYS if use_ema is not False else ()) + PLAIN_KEYS
        key = next((k for k in keys if isinstance(checkpoint.get(k), Mapping) and checkpoint[k]), None)
        if key is None:
            raise WeightsError(
                f"no state dict in the checkpoint: it has {some(checkpoint)}; expected tensors, or one of "
                f"{', '.join(keys)}"
            )
        found_ema = found_ema or key in EMA_KEYS
        checkpoint = checkpoint[key]
    if use_ema and not found_ema:
        raise WeightsError(f"use_ema=True, but the checkpoint has none of {', '.join(EMA_KEYS)}")
    state_dict = {k: v for k, v in checkpoint.items() if k != "n_averaged"}  # torch's AveragedModel counts there
    while prefix := next((p for p in PREFIXES if state_dict and all(k.startswith(p) for k in state_dict)), None):
        state_dict = {k.removeprefix(prefix): v for k, v in state_dict.items()}
    return state_dict


def _is_state_dict(checkpoint: Any) -> bool:
    return bool(checkpoint) and all(isinstance(value, Tensor) for value in checkpoint.values())


def some(keys: Any, limit: int = 4) -> str:
    """The first of them, for a message."""
    keys = [terminal(key) for key in keys]
    return ", ".join(keys[:limit]) + (f" and {len(keys) - limit} more" if len(keys) > limit else "") or "nothing"


class Layout(NamedTuple):
    """How one source names its tensors."""

    name: str
    keys: tuple[str, str]  # present in every file of it, and in no other
    eps: Callable[[nn.Module], float]
    rename: Callable[[dict[str, Tensor]], dict[str, str]]  # their module names -> ours

    def stem(self, state_dict: Mapping[str, Tensor]) -> Tensor:
        """The weight of the first convolution, (stem, in_chans, 3, 3)."""
        return state_dict[self.keys[0]]


def _modules(state_dict: Mapping[str, Tensor], pattern: str) -> list[tuple[int, ...]]:
    """The distinct indices that `pattern` finds in the keys, in order."""
    matches = (re.match(pattern, key) for key in state_dict)
    return sorted({tuple(int(group) for group in match.groups()) for match in matches if match})


def _rename_ours(state_dict: dict[str, Tensor]) -> dict[str, str]:
    return {key.rpartition(".")[0]: key.rpartition(".")[0] for key in state_dict}


def _rename_timm(state_dict: dict[str, Tensor]) -> dict[str, str]:
    names = {"conv_stem": "stem.conv", "bn1": "stem.norm", "conv_head": "head", "classifier": "classifier"}
    stages = _modules(state_dict, r"blocks\.(\d+)\.(\d+)\.")
    for i, (stage, index) in enumerate(stages):
        theirs = f"blocks.{stage}.{index}"
        if f"{theirs}.conv.weight" in state_dict:
            names |= {f"{theirs}.conv": "last.conv", f"{theirs}.bn1": "last.norm"}
            continue
        expands = f"{theirs}.conv_pwl.weight" in state_dict
        parts = {"conv_pw": "expand", "conv_dw": "depthwise", "conv_pwl": "project"}
        if not expands:
            parts = {"conv_dw": "depthwise", "conv_pw": "project"}
        for k, (conv, ours) in enumerate(parts.items(), start=1):
            names |= {f"{theirs}.{conv}": f"blocks.{i}.{ours}.conv", f"{theirs}.bn{k}": f"blocks.{i}.{ours}.norm"}
        names |= {
            f"{theirs}.se.conv_reduce": f"blocks.{i}.se.squeeze",
            f"{theirs}.se.conv_expand": f"blocks.{i}.se.excite",
        }
    return names


def _rename_torchvision(state_dict: dict[str, Tensor]) -> dict[str, str]:
    last = _modules(state_dict, r"features\.(\d+)\.")[-1][0]
    names = {"features.0.0": "stem.conv", "features.0.1": "stem.norm", "classifier.0": "head"}
    names |= {f"features.{last}.0": "last.conv", f"features.{last}.1": "last.norm", "classifier.3": "classifier"}
    for i in range(last - 1):
        theirs = f"features.{i + 1}.block"
        parts = [j for (j,) in _modules(state_dict, rf"{re.escape(theirs)}\.(\d+)\.0\.")]
        for j, ours in zip(parts, ("expand", "depthwise", "project")[3 - len(parts) :], strict=True):
            names |= {
                f"{theirs}.{j}.0": f"blocks.{i}.{ours}.conv",
                f"{theirs}.{j}.1": f"blocks.{i}.{ours}.norm",
            }
        se = f"{theirs}.{parts[-1] - 1}"  # where a block has one, it is the part before the projection
        names |= {f"{se}.fc1": f"blocks.{i}.se.squeeze", f"{se}.fc2": f"blocks.{i}.se.excite"}
    return names


def _rename_d_li14(state_dict: dict[str, Tensor]) -> dict[str, str]:
    if "classifier.2.weight" in state_dict:
        raise WeightsError(
            "this is a checkpoint of the first d-li14 ports, which have an h-swish after the pool (and their linear "
            "layers at classifier.0 and .2): another network than the paper's, so it cannot be loaded"
        )
    names = {"features.0.0": "stem.conv", "features.0.1": "stem.norm", "conv.0": "last.conv", "conv.1": "last.norm"}
    names |= {"classifier.0": "head", "classifier.3": "classifier"}
    for (number,) in _modules(state_dict, r"features\.(\d+)\.conv\."):
        theirs, ours = f"features.{number}.conv", f"blocks.{number - 1}"
        parts = _modules(state_dict, rf"{re.escape(theirs)}\.(\d+)\.")
        convs = [j for (j,) in parts if _is_conv(state_dict, theirs, j)]
        for j, part in zip(convs, ("expand", "depthwise", "project")[3 - len(convs) :], strict=True):
            names |= {f"{theirs}.{j}": f"{ours}.{part}.conv", f"{theirs}.{j + 1}": f"{ours}.{part}.norm"}
        for (j,) in _modules(state_dict, rf"{re.escape(theirs)}\.(\d+)\.fc\."):
            names |= {f"{theirs}.{j}.fc.0": f"{ours}.se.squeeze", f"{theirs}.{j}.fc.2": f"{ours}.se.excite"}
    return names


def _is_conv(state_dict: Mapping[str, Tensor], block: str, index: int) -> bool:
    weight = state_dict.get(f"{block}.{index}.weight")
    return weight is not None and weight.ndim == 4


def _se_orders(state_dict: dict[str, Tensor]) -> list[str]:
    """The `se_order` values that fit a d-li14-style file: an SE right after a norm stands before the activation."""
    fitting = list(SE_ORDERS)
    for number, se in _modules(state_dict, r"features\.(\d+)\.conv\.(\d+)\.fc\.0\."):
        block = f"features.{number}.conv"
        se_first = f"{block}.{se - 1}.running_var" in state_dict
        expands = sum(_is_conv(state_dict, block, j) for j in range(se)) == 2
        fitting = [order for order in fitting if se_before_act(order, expands=expands) == se_first]
    return fitting


LAYOUTS = (
    Layout("mnv3", ("stem.conv.weight", "head.weight"), lambda model: BN_EPS, _rename_ours),
    Layout(
        "timm",
        ("conv_stem.weight", "blocks.0.0.conv_dw.weight"),
        # timm builds tf_* models with TensorFlow's eps, and only those have 'same' padding
        lambda model: BN_EPS_TF if model.pad_type == "same" else BN_EPS,
        _rename_timm,
    ),
    Layout(
        "torchvision",
        ("features.0.0.weight", "features.1.block.0.0.weight"),
        lambda model: BN_EPS_TF,
        _rename_torchvision,
    ),
    Layout("d-li14", ("features.0.0.weight", "features.1.conv.0.weight"), lambda model: BN_EPS, _rename_d_li14),
)


def layout_of(state_dict: Mapping[str, Tensor]) -> Layout:
    """The layout whose keys the state dict has.

    Raises:
        WeightsError: It has those of none.
    """
    for layout in LAYOUTS:
        if all(key in state_dict for key in layout.keys):
            return layout
    names = ", ".join(layout.name for layout in LAYOUTS)
    raise WeightsError(f"not a MobileNetV3 that mnv3 knows: keys {some(state_dict)}; known layouts: {names}")


def num_classes_of(checkpoint: Mapping[str, Any]) -> int:
    """How many classes a checkpoint's classifier has; 0 if it has no classifier."""
    state_dict = unwrap(checkpoint)
    names = layout_of(state_dict).rename(state_dict)
    theirs = next((name for name, ours in names.items() if ours == "classifier"), "")
    weight = state_dict.get(f"{theirs}.weight")
    return 0 if weight is None else len(weight)


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
        WeightsError: It does not fit. The message names the layout, the arch asked for and the first mismatches.
    """
    state_dict = unwrap(checkpoint, use_ema=use_ema)
    layout = layout_of(state_dict)
    converted = _to_our_keys(state_dict, layout)
    if any(".se." in key for key in converted):
        _check_se_order(state_dict, layout, model)
    _drop_foreign_classifier(converted, model, drop_background)
    _check_fit(converted, model, layout)
    eps = layout.eps(model) if bn_eps is None else bn_eps
    for key in [key for key in converted if key.endswith("running_var")] if eps != BN_EPS else []:
        dtype = torch.promote_types(converted[key].dtype, torch.float32)
        converted[key] = (converted[key].double() + (eps - BN_EPS)).to(dtype)
    return converted


def _check_se_order(state_dict: dict[str, Tensor], layout: Layout, model: nn.Module) -> None:
    if layout.name == "mnv3":
        return  # our own keys are the same in every order; config.json says which
    orders = _se_orders(state_dict) if layout.name == "d-li14" else ["act-se"]
    if model.se_order not in orders:
        found = f"se_order={orders[-1]!r}" if orders else "an order that differs from block to block"
        raise WeightsError(
            f"the file has its squeeze-and-excite in {found}, the model in se_order={model.se_order!r}: "
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


def _drop_foreign_classifier(converted: dict[str, Tensor], model: nn.Module, drop_background: bool) -> None:
    weight = converted.get("classifier.weight")
    classes = 0 if weight is None else len(weight)
    if classes == model.num_classes:
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
    del converted["classifier.weight"], converted["classifier.bias"]


def _check_fit(converted: dict[str, Tensor], model: nn.Module, layout: Layout) -> None:
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in converted.items()}
    if found.get("stem.conv.weight", ())[2:] == expected["stem.conv.weight"][2:]:
        found["stem.conv.weight"] = (found["stem.conv.weight"][0], *expected["stem.conv.weight"][1:])
    if "classifier.weight" not in converted:  # left out above, on purpose
        expected = {key: shape for key, shape in expected.items() if not key.startswith("classifier.")}
    missing = [f"{key} missing" for key in expected if key not in found]
    unexpected = [f"{key} not in the model" for key in found if key not in expected]
    differ = [
        f"{key}: file {found[key]}, model {shape}"
        for key, shape in expected.items()
        if key in found and found[key] != shape
    ]
    problems = differ + missing + unexpected
    if not problems:
        return
    hint = _fitting_variant(converted, model.arch)
    if differ and all(".se." in problem for problem in differ) and not missing + unexpected:
        squeeze = next(key for key in found if key.endswith("se.squeeze.weight") and found[key] != expected[key])
        hint = (
            f"Only the squeeze-and-excite widths differ: the file has {found[squeeze][0]} for {found[squeeze][1]} "
            "channels, the model rounds a quarter to a multiple of 8, as the paper's authors do"
        )
    raise WeightsError(
        f"{layout.name} weights do not fit {_describe(model)}: {len(problems)} of {len(expected)} tensors are wrong "
        f"({'; '.join(problems[:3])}). {hint}"
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
        rows.append((len(depthwise), len(project), f"blocks.{len(rows)}.se.squeeze.weight" in converted))
    if rows == widths(asked):
        return "Its blocks are those of the model"
    names = [name for name, variant in VARIANTS.items() if widths(variant.arch) == rows]
    return f"The file fits {' or '.join(names)}" if names else "The file fits no registered arch: see arch= and width="
