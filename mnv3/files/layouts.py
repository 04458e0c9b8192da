"""The names that others give to the tensors of MobileNetV3: our own, timm's, torchvision's, d-li14's.

A layout is recognised by its keys and turned into ours by names alone: ours, timm's `mobilenetv3_*` and
`tf_mobilenetv3_*`, torchvision's, and the ports in d-li14's style (https://github.com/d-li14/mobilenetv3.pytorch).
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..arch import SE_ORDERS, se_before_act
from ..errors import WeightsError
from ..layers import BN_EPS
from .tensors import shown

BN_EPS_TF = 1e-3  # TensorFlow's and torchvision's
PARTS = ("expand", "depthwise", "project")  # the convolutions of a block; the first may be missing


class Layout(NamedTuple):
    """How one source names its tensors."""

    name: str
    keys: tuple[str, str]  # present in every file of it, and in no other
    eps: Callable[[nn.Module], float]
    rename: Callable[[dict[str, Tensor]], dict[str, str]]  # their module names -> ours

    def fits(self, keys: Mapping[str, Tensor], prefix: str = "") -> bool:
        """Whether a network of this layout lies under a prefix."""
        return all(f"{prefix}{key}" in keys for key in self.keys)

    def in_chans(self, state_dict: Mapping[str, Tensor]) -> int:
        """The channels of the pictures that the first convolution reads.

        Raises:
            WeightsError: Its weight is not of the shape (stem, channels, 3, 3).
        """
        shape = tuple(state_dict[self.keys[0]].shape)
        if len(shape) != 4:
            raise WeightsError(f"{self.keys[0]} is of shape {shape}: expected (stem, channels, 3, 3)")
        return shape[1]

    def num_classes(self, state_dict: Mapping[str, Tensor]) -> int:
        """The classes of the classifier; 0 if there is none.

        Raises:
            WeightsError: Its weight is not of the shape (classes, channels).
        """
        names = self.rename(state_dict)
        theirs = next((name for name, ours in names.items() if ours == "classifier"), "")
        weight = state_dict.get(f"{theirs}.weight")
        if weight is None:
            return 0
        if weight.ndim != 2:
            raise WeightsError(f"{theirs}.weight is of shape {tuple(weight.shape)}: expected (classes, channels)")
        return len(weight)


def listed(keys: Iterable[Any], limit: int = 4) -> str:
    """The first keys and how many more there are, for a message; 'nothing' for none."""
    keys = [shown(key) if isinstance(key, str) else f"a key of type {type(key).__name__}" for key in keys]
    return ", ".join(keys[:limit]) + (f" and {len(keys) - limit} more" if len(keys) > limit else "") or "nothing"


def _modules(state_dict: Mapping[str, Tensor], pattern: str) -> list[tuple[int, ...]]:
    """The distinct indices that `pattern` finds in the keys, in order; INDEX in it is one of them."""
    pattern = pattern.replace("INDEX", r"(\d{1,4})")
    matches = (re.match(pattern, key) for key in state_dict)
    return sorted({tuple(int(group) for group in match.groups()) for match in matches if match})


def _parts(block: str, convs: list[int]) -> dict[int, str]:
    """Our names of a block's convolutions.

    Raises:
        WeightsError: There are not two or three of them.
    """
    if len(convs) not in (2, 3):
        raise WeightsError(f"{block} has {len(convs)} convolutions: a block of MobileNetV3 has two or three")
    return dict(zip(convs, PARTS[-len(convs) :], strict=True))


def _rename_ours(state_dict: dict[str, Tensor]) -> dict[str, str]:
    return {key.rpartition(".")[0]: key.rpartition(".")[0] for key in state_dict}


def _rename_timm(state_dict: dict[str, Tensor]) -> dict[str, str]:
    names = {"conv_stem": "stem.conv", "bn1": "stem.norm", "conv_head": "head", "classifier": "classifier"}
    stages = _modules(state_dict, r"blocks\.INDEX\.INDEX\.")
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
    *blocks, last = (number for (number,) in _modules(state_dict, r"features\.INDEX\."))
    names = {"features.0.0": "stem.conv", "features.0.1": "stem.norm", "classifier.0": "head"}
    names |= {f"features.{last}.0": "last.conv", f"features.{last}.1": "last.norm", "classifier.3": "classifier"}
    for number in blocks[1:]:
        theirs, ours = f"features.{number}.block", f"blocks.{number - 1}"
        convs = [j for (j,) in _modules(state_dict, rf"{re.escape(theirs)}\.INDEX\.0\.")]
        for j, part in _parts(theirs, convs).items():
            names |= {f"{theirs}.{j}.0": f"{ours}.{part}.conv", f"{theirs}.{j}.1": f"{ours}.{part}.norm"}
        se = f"{theirs}.{convs[-1] - 1}"  # where a block has one, it is the part before the projection
        names |= {f"{se}.fc1": f"{ours}.se.squeeze", f"{se}.fc2": f"{ours}.se.excite"}
    return names


def _rename_d_li14(state_dict: dict[str, Tensor]) -> dict[str, str]:
    if "classifier.2.weight" in state_dict:
        raise WeightsError(
            "this is a checkpoint of the first d-li14 ports, which have an h-swish after the pool (and their linear "
            "layers at classifier.0 and .2): another network than the paper's, so it cannot be loaded"
        )
    names = {"features.0.0": "stem.conv", "features.0.1": "stem.norm", "conv.0": "last.conv", "conv.1": "last.norm"}
    names |= {"classifier.0": "head", "classifier.3": "classifier"}
    for (number,) in _modules(state_dict, r"features\.INDEX\.conv\."):
        theirs, ours = f"features.{number}.conv", f"blocks.{number - 1}"
        parts = _modules(state_dict, rf"{re.escape(theirs)}\.INDEX\.")
        convs = [j for (j,) in parts if _is_conv(state_dict, theirs, j)]
        for j, part in _parts(theirs, convs).items():
            names |= {f"{theirs}.{j}": f"{ours}.{part}.conv", f"{theirs}.{j + 1}": f"{ours}.{part}.norm"}
        for (j,) in _modules(state_dict, rf"{re.escape(theirs)}\.INDEX\.fc\."):
            names |= {f"{theirs}.{j}.fc.0": f"{ours}.se.squeeze", f"{theirs}.{j}.fc.2": f"{ours}.se.excite"}
    return names


def _is_conv(state_dict: Mapping[str, Tensor], block: str, index: int) -> bool:
    weight = state_dict.get(f"{block}.{index}.weight")
    return weight is not None and weight.ndim == 4


def se_orders(state_dict: dict[str, Tensor]) -> list[str]:
    """The `se_order` values that fit a d-li14-style file: an SE right after a norm stands before the activation."""
    fitting = list(SE_ORDERS)
    for number, se in _modules(state_dict, r"features\.INDEX\.conv\.INDEX\.fc\.0\."):
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
        if layout.fits(state_dict):
            return layout
    names = ", ".join(layout.name for layout in LAYOUTS)
    raise WeightsError(f"not a MobileNetV3 that mnv3 knows: keys {listed(state_dict)}; known layouts: {names}")


def prefixes(keys: Mapping[str, Tensor]) -> list[str]:
    """The prefixes under which a network of a known layout lies, with all its parts."""
    under = {}
    for key in keys:
        for layout in LAYOUTS:
            if key.endswith(layout.keys[0]):
                prefix = key.removesuffix(layout.keys[0])
                if (not prefix or prefix.endswith(".")) and layout.fits(keys, prefix):
                    under[prefix] = True
    return list(under)
