"""A model, its preprocessing and its class names, by name or from files."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import timm
from timm.models._hub import load_model_config_from_path
from torch import nn

from . import files
from .arch import VARIANTS
from .catalog import CATALOG, split_name
from .errors import WeightsError, choices


def create_model(name: str, *, pretrained: bool | str = False, **kwargs: Any) -> nn.Module:
    """`timm.create_model` for this family's names.

    Args:
        name: 'arch' or 'arch.tag', such as 'mnv3_small' or 'mnv3_large.ra_in1k'.
        pretrained: True for the tag in `name` or the default one, a tag, or False for random weights.
        kwargs: Arguments of `mnv3.MobileNetV3`, and timm's (features_only, pretrained_cfg_overlay, ...).

    Raises:
        ValueError: An unknown name or tag, or a value that is not allowed.
        WeightsError: The weights cannot be had or do not fit.
    """
    arch, tag = split_name(name)
    if isinstance(pretrained, str):
        if tag not in (None, pretrained):
            raise ValueError(f"two tags given: {name!r} and pretrained={pretrained!r}")
        tag, pretrained = pretrained, True
    return timm.create_model(f"{arch}.{tag}" if tag else arch, pretrained=pretrained, **kwargs)


def load_checkpoint(path: str | os.PathLike, *, model: str | None = None, **kwargs: Any) -> nn.Module:
    """A model with the weights of a folder or file.

    Args:
        path: A weights folder (config.json and model.safetensors, ours or timm's for this family), or one file of
            any layout that `convert_state_dict` knows.
        model: 'arch', needed for a file; for a folder its config.json says it. 'arch.tag' takes the preprocessing of
            that tag.
        kwargs: As for `create_model`; by default the model has as many classes as the file.

    Raises:
        ValueError: `model` is missing or unknown.
        WeightsError: The weights are damaged or do not fit.
    """
    path = Path(path)
    if path.is_dir():
        arch = check_architecture(path, split_name(model)[0] if model else None)
        cfg, _, model_args = load_model_config_from_path(path)
        return timm.create_model(arch, pretrained=True, pretrained_cfg=_our_cfg(cfg, arch), **(model_args | kwargs))
    if not model:
        raise ValueError(f"a single file does not say which model it is for: give one. {choices('', VARIANTS)}")
    if "num_classes" not in kwargs:
        kwargs["num_classes"] = files.read_family(path).num_classes
    return create_model(model, pretrained=True, pretrained_cfg_overlay={"file": str(path)}, **kwargs)


def check_architecture(folder: str | os.PathLike, expected: str | None = None) -> str:
    """Our name for the model of a weights folder, whose config.json may have timm's.

    Raises:
        ValueError: It is not the `expected` one.
        WeightsError: It is a model of another family.
    """
    name = files.read_config(folder)["architecture"]
    timm_names = {record.repo.removeprefix("timm/").partition(".")[0]: record.arch for record in CATALOG if record.repo}
    arch = timm_names.get(name, name)
    if arch not in VARIANTS:
        raise WeightsError(f"{folder} holds {name!r}. {choices(name, [*VARIANTS, *timm_names])}")
    if expected not in (None, arch):
        raise ValueError(f"{folder} holds {arch}, not {expected}")
    return arch


def _our_cfg(cfg: dict[str, Any], arch: str) -> dict[str, Any]:
    """timm's configuration of a folder with our names of the layers that it points at."""
    return cfg | {"architecture": arch, "first_conv": "stem.conv", "classifier": "classifier"}


def transforms(model: nn.Module | str, *, use_test_size: bool = False, **kwargs: Any) -> Callable:
    """The preprocessing that belongs to a model's weights: PIL picture to float tensor (C, H, W).

    Args:
        model: A model, or a name whose checkpoint says it.
        use_test_size: Take the larger size that some checkpoints recommend for evaluation.
        kwargs: For `timm.data.create_transform`, `is_training=True` for instance.
    """
    if isinstance(model, str):
        arch, tag = split_name(model)
        source = {"pretrained_cfg": timm.models.get_pretrained_cfg(f"{arch}.{tag}" if tag else arch).to_dict()}
    else:
        source = {"model": model}
    config = timm.data.resolve_data_config(**source, use_test_size=use_test_size)
    return timm.data.create_transform(**(config | kwargs))


def class_names(model: nn.Module) -> list[str] | None:
    """A name for each of a model's classes, or None where nothing says them (after reset_classifier, for instance)."""
    cfg = model.pretrained_cfg
    if names := cfg.get("label_names"):
        names = list(names)
    elif model.num_classes == cfg.get("num_classes"):
        names = _known_names(model.num_classes)
    return names if names and len(names) == model.num_classes else None


@cache
def _known_names(num_classes: int) -> list[str] | None:
    if num_classes == 1000:
        from torchvision.models import MobileNet_V3_Small_Weights

        return MobileNet_V3_Small_Weights.IMAGENET1K_V1.meta["categories"]
    if num_classes == 11221:
        info = timm.data.ImageNetInfo("imagenet21k-miil")
        return [info.index_to_description(i) for i in range(num_classes)]
    return None
