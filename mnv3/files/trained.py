"""What the checkpoint of a training says beside its weights: timm's train.py, torchvision's and PyTorch's examples."""

import argparse
import os
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

from torch import Tensor

from ..arch import VARIANTS
from ..catalog import TORCHVISION_NAMES, arch_named, find
from ..errors import WeightsError
from .checkpoint import FamilyWeights, family_of, read_checkpoint
from .layouts import layout_of
from .schema import check_args, check_cfg

# Of weights whose origin nothing says: not that of the published ones for the same model, nor their classes' names.
UNKNOWN = dict.fromkeys(("tag", "license", "origin_url", "label_names", "label_descriptions"))
OF_TRAINING = ("optimizer", "optimizer_states", "epoch")  # keys that no published file has
PLAIN = (str, int, float, list, tuple, dict)
ONLY_TRAINING = ("drop_rate", "drop_path_rate", "drop_block_rate", "bn_momentum", "bn_eps", "pretrained")


class TrainingArgs(NamedTuple):
    """What a checkpoint says of its model and its training.

    Attributes:
        arch: Our name, if it is one of ours, of timm's or torchvision's.
        tag: Of the published weights whose preprocessing it started from.
        model_args: Of the model.
        cfg: The preprocessing, in timm's names, where it was another than that of the model.
        bn_eps: Of the batch norms, where it was another than that of the model.
        own: Whether the file is of a training, so that its classes are not those of published weights.
    """

    arch: str | None = None
    tag: str | None = None
    model_args: Mapping[str, Any] = {}
    cfg: Mapping[str, Any] = {}
    bn_eps: float | None = None
    own: bool = False

    @property
    def name(self) -> str | None:
        """`arch.tag`, or `arch`."""
        return f"{self.arch}.{self.tag}" if self.tag else self.arch


def training_args_of(checkpoint: Mapping[str, Any]) -> TrainingArgs:
    """What a checkpoint says beside its weights; fields of what it does not say are empty.

    Raises:
        WeightsError: It was trained with something that no model of ours has, or says what cannot be.
    """
    args = checkpoint.get("args")
    args = vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, dict) else {}
    args = {name: value for name, value in args.items() if isinstance(value, PLAIN)}
    name = next((name for name in (checkpoint.get("arch"), args.get("model")) if isinstance(name, str)), None)
    if name is None:
        return TrainingArgs(own=bool(args) or any(key in checkpoint for key in OF_TRAINING))
    arch = arch_named(name) or TORCHVISION_NAMES.get(name)
    if arch is None:
        return TrainingArgs(own=True)
    return TrainingArgs(arch, _known_tag(arch, name), _model_args(args), _preprocessing(args), _bn_eps(args), own=True)


def _known_tag(arch: str, name: str) -> str | None:
    tag = name.partition(".")[2]
    try:
        return tag and find(arch, tag).tag
    except ValueError:
        return None


def _model_args(args: Mapping[str, Any]) -> dict[str, Any]:
    given = args.get("model_kwargs") or {}
    if not isinstance(given, dict):
        raise WeightsError(f"args.model_kwargs: expected names with values, found {type(given).__name__}")
    model_args = {name: value for name, value in given.items() if name not in ONLY_TRAINING}
    if args.get("gp"):
        model_args["global_pool"] = args["gp"]
    check_args(model_args, "args.model_kwargs")
    return model_args


def _preprocessing(args: Mapping[str, Any]) -> dict[str, Any]:
    """What timm's train.py was told; its defaults are those of the model's configuration."""
    cfg = {name: args[name] for name in ("interpolation", "crop_pct", "crop_mode", "mean", "std") if args.get(name)}
    channels = args.get("in_chans") or 3
    if args.get("input_size"):
        cfg["input_size"] = args["input_size"]
    elif args.get("img_size"):
        cfg["input_size"] = (channels, args["img_size"], args["img_size"])
    if cfg.get("input_size"):
        cfg |= dict.fromkeys(("test_input_size", "pool_size"))
    if cfg.get("crop_pct"):
        cfg["test_crop_pct"] = None
    check_cfg(cfg, "args")
    return cfg


def _bn_eps(args: Mapping[str, Any]) -> float | None:
    given = args.get("model_kwargs")
    eps = args.get("bn_eps") or (given.get("bn_eps") if isinstance(given, dict) else None)
    if eps is None:
        return None
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise WeightsError(f"args.bn_eps {eps!r:.40}: expected a number above 0 and below 1")
    return eps


def read(file: str | os.PathLike[str], *, use_ema: bool | None = None) -> tuple[FamilyWeights, TrainingArgs]:
    """The weights of a file, and what it says beside them.

    Args:
        file: What a trainer or torch.save wrote, or safetensors.
        use_ema: Which weights, as for `wrappers.unwrap`.

    Raises:
        WeightsError: As for `read_checkpoint`, `family_of` and `training_args_of`; the message names the file.
    """
    checkpoint = read_checkpoint(file)
    try:
        return family_of(checkpoint, use_ema=use_ema), training_args_of(checkpoint)
    except WeightsError as error:
        raise WeightsError(f"{file}: {error}") from error


def at_usual_eps(weights: FamilyWeights, arch: str, eps: float | None) -> dict[str, Tensor]:
    """A state dict whose model computes with its layout's own eps what it computed with that of its training.

    Args:
        weights: In any layout.
        arch: The registered name of their model.
        eps: Of the batch norms that they were trained with; None for the layout's own.
    """
    state_dict = weights.state_dict
    usual = layout_of(state_dict).eps(SimpleNamespace(pad_type=VARIANTS[arch].pad_type))
    if eps in (None, usual):
        return state_dict
    return {
        key: value.double() + (eps - usual) if key.endswith("running_var") else value
        for key, value in state_dict.items()
    }
