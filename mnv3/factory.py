"""A model, its preprocessing and its class names, by name or from files."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import timm
from PIL import Image
from torch import Tensor, nn

from . import timm_models  # noqa: F401 (registers the names)
from .arch import VARIANTS
from .catalog import CATALOG, TIMM_NAMES, arch_named, split_name
from .errors import WeightsError, choices
from .files import fetch, saving, trained
from .files.checkpoint import FamilyWeights
from .files.folder import parse, read_config, read_config_file, weights_in

PREFIXES = {"hf-hub": "hf-hub", "hf_hub": "hf-hub", "local-dir": "local-dir"}  # as timm takes them before a colon


def create_model(name: str, *, pretrained: bool | str = False, **kwargs: Any) -> nn.Module:
    """`timm.create_model` for this family's names.

    Args:
        name: 'arch' or 'arch.tag', such as 'mnv3_small' or 'mnv3_large.ra_in1k'; or 'hf-hub:NAMESPACE/NAME',
            'hf-hub:NAMESPACE/NAME@REVISION' or 'local-dir:FOLDER', of a repository or folder of this family, ours or
            timm's.
        pretrained: True for the tag in `name` or the default one, a tag, or False for random weights.
        kwargs: Arguments of `mnv3.MobileNetV3`, and timm's (features_only, pretrained_cfg_overlay, ...).

    Raises:
        ValueError: An unknown name or tag, or a value that is not allowed.
        WeightsError: The weights cannot be had or do not fit.
    """
    if has_source(name):
        return _from_source(name, pretrained=pretrained, **kwargs)
    arch, tag = split_name(name)
    if isinstance(pretrained, str):
        if tag not in (None, pretrained):
            raise ValueError(f"two tags given: {name!r} and pretrained={pretrained!r}")
        tag, pretrained = pretrained, True
    return timm.create_model(f"{arch}.{tag}" if tag else arch, pretrained=pretrained, **kwargs)


def has_source(name: str) -> bool:
    """Whether a name is one of a repository or folder, as timm writes it: hf-hub:..., local-dir:..."""
    return name.partition(":")[0] in PREFIXES


def _from_source(name: str, **kwargs: Any) -> nn.Module:
    """The model of a repository or folder, by the configuration in it."""
    prefix, _, location = name.partition(":")
    if PREFIXES[prefix] == "local-dir":
        config = read_config(location)
    else:
        repo, _, revision = location.partition("@")
        options = {"revision": revision or None, "cache_dir": kwargs.get("cache_dir")}
        file = fetch.fetch_hub(repo, saving.CONFIG_FILE, **options)
        config = read_config_file(file)
        if re.fullmatch("[0-9a-f]{40}", file.parent.name):  # the weights of the same commit
            location = f"{repo}@{file.parent.name}"
    arch = _arch_of(config, location)
    cfg, args = parse(config, PREFIXES[prefix], location)
    with _naming(location):
        return timm.create_model(arch, pretrained_cfg=cfg, pretrained_model_args=args, **(args | kwargs))


def load_checkpoint(
    path: str | os.PathLike[str], *, model: str | None = None, use_ema: bool | None = None, **kwargs: Any
) -> nn.Module:
    """A model with the weights of a folder or file.

    A checkpoint of timm's train.py says by itself which model it is, and is loaded as it was trained: the arguments of
    the model, the eps of its batch norms, the preprocessing.

    Args:
        path: A weights folder (config.json and weights, ours or timm's for this family), or one file of any layout
            that `convert_state_dict` knows; or 'hf-hub:NAMESPACE/NAME' or 'local-dir:FOLDER', see `create_model`.
        model: 'arch', needed for a file that does not say it; for a folder its config.json says it. 'arch.tag' says
            that the file has the weights of that tag: their preprocessing, and the names of their classes unless the
            file is of another training. See `class_names`.
        use_ema: Which weights, where a file has an averaged copy: True for the average or an error, False for the raw
            ones, None for the average if there is one.
        kwargs: As for `create_model`; by default the model has as many classes and input channels as the file.

    Raises:
        ValueError: `model` is missing, unknown, or another than the folder or file says.
        WeightsError: The weights are damaged or do not fit.
    """
    if has_source(str(path)):
        if use_ema is not None:
            raise ValueError(f"use_ema is for files and folders: give the folder or file of {path}")
        return create_model(str(path), pretrained=True, **kwargs)
    return read_saved_model(path, model=model, use_ema=use_ema).build(**kwargs)


@contextmanager
def _naming(location: str | os.PathLike[str]) -> Iterator[None]:
    """Let errors of weights say whose they are."""
    try:
        yield
    except WeightsError as error:
        raise WeightsError(str(error) if str(location) in str(error) else f"{location}: {error}") from error


class SavedModel(NamedTuple):
    """The weights of a folder or file, and what is known of their model.

    Attributes:
        path: The folder or file.
        name: `arch`, or `arch.tag`.
        weights: As they are in the file.
        cfg: Entries for timm's PretrainedCfg; of a folder, all of it.
        model_args: The arguments that it was built with.
        bn_eps: Of the batch norms that it was trained with, if not their layout's own.
    """

    path: Path
    name: str
    weights: FamilyWeights
    cfg: dict[str, Any]
    model_args: dict[str, Any]
    bn_eps: float | None

    def build(self, **kwargs: Any) -> nn.Module:
        """The model with these weights; `kwargs` and errors as for `load_checkpoint`."""
        weights = trained.at_usual_eps(self.weights, self.name.partition(".")[0], self.bn_eps)
        overlay: dict[str, Any] = {"state_dict": weights}
        if self.path.is_dir():
            described = {"pretrained_cfg": self.cfg, "pretrained_model_args": self.model_args}
        else:
            overlay |= self.cfg
            described = {"num_classes": self.weights.num_classes}
        overlay |= kwargs.pop("pretrained_cfg_overlay", None) or {}
        options = described | self.model_args | kwargs
        with _naming(self.path):
            return create_model(self.name, pretrained=True, pretrained_cfg_overlay=overlay, **options)


def read_saved_model(
    path: str | os.PathLike[str], *, model: str | None = None, use_ema: bool | None = None
) -> SavedModel:
    """Read what `load_checkpoint` makes a model of; arguments and errors are the same."""
    path = Path(path)
    arch, tag = split_name(model) if model else (None, None)
    if path.is_dir():
        arch = check_architecture(path, arch)
        cfg, args = parse(read_config(path), "local-dir", str(path))
        weights, training = trained.read(weights_in(path), use_ema=use_ema)
        return SavedModel(path, arch, weights, cfg, args, training.bn_eps)
    weights, training = trained.read(path, use_ema=use_ema)
    if not (arch or training.arch):
        advice = f"give its name (model, --model, --arch). {choices('', VARIANTS)}"
        raise ValueError(f"{path}: a single file does not say which model it is for: {advice}")
    if arch and training.arch not in (None, arch):
        raise ValueError(f"{path} is a checkpoint of {training.arch}, not {arch}")
    name = model if tag or not training.arch else training.name
    cfg = {"file": str(path)} | (trained.UNKNOWN if training.own or not tag else {}) | training.cfg
    return SavedModel(path, name, weights, cfg, dict(training.model_args), training.bn_eps)


def check_architecture(folder: str | os.PathLike[str], expected: str | None = None) -> str:
    """Our name for the model of a weights folder, whose config.json may have timm's.

    Raises:
        ValueError: It is not the `expected` one.
        WeightsError: It is a model of another family.
    """
    arch = _arch_of(read_config(folder), folder)
    if expected not in (None, arch):
        raise ValueError(f"{folder} holds {arch}, not {expected}")
    return arch


def _arch_of(config: dict[str, Any], location: str | os.PathLike[str]) -> str:
    name = config["architecture"]
    arch = arch_named(name)
    if arch is None:
        raise WeightsError(f"{location} holds {name!r:.80}. {choices(name[:80], [*VARIANTS, *TIMM_NAMES])}")
    return arch


def transforms(
    model: nn.Module | str, *, use_test_size: bool = False, **kwargs: Any
) -> Callable[[Image.Image], Tensor]:
    """The preprocessing that belongs to a model's weights: PIL picture to float tensor (C, H, W).

    For a model of one channel, pictures become grey, and a mean and std for three channels are averaged, as timm does.

    Args:
        model: A model, or a name whose checkpoint says it.
        use_test_size: Take the larger size that some checkpoints recommend for evaluation.
        kwargs: For `timm.data.create_transform`, `is_training=True` for instance.

    Raises:
        ValueError: The model takes other pictures than grey and RGB.
    """
    if isinstance(model, str):
        arch, tag = split_name(model)
        source = {"pretrained_cfg": timm.models.get_pretrained_cfg(f"{arch}.{tag}" if tag else arch).to_dict()}
    else:
        source = {"model": model}
    config = timm.data.resolve_data_config(**source, use_test_size=use_test_size)
    channels = getattr(model, "in_chans", config["input_size"][0])
    if channels not in (1, 3):
        raise ValueError(f"the model takes pictures of {channels} channels: there is preprocessing for RGB and grey")
    config |= {name: _for_channels(config[name], channels) for name in ("mean", "std")}
    config["input_size"] = (channels, *config["input_size"][1:])
    transform = timm.data.create_transform(**(config | kwargs))
    return transform if channels == 3 else Grey(transform)


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


class Grey:
    """A transform behind the change of a picture to grey."""

    def __init__(self, transform: Callable[[Image.Image], Tensor]) -> None:
        self.transform = transform

    def __call__(self, picture: Image.Image) -> Tensor:
        return self.transform(picture.convert("L"))


def class_names(model: nn.Module) -> list[str] | None:
    """A name for each of a model's classes, or None where nothing says them.

    Names come with the weights: from the `label_names` of a folder, a catalog entry or a training by mnv3; or as those
    of published weights (ImageNet's, CIFAR-10's), where the folder or `arch.tag` says that they are these. A file of
    weights that is given as `arch` alone has none, nor has the checkpoint of a training by others, a model with random
    weights, or one with another number of classes, whatever is usual for its number of classes.
    """
    cfg = model.pretrained_cfg
    names = cfg.get("label_names") or _published_names(cfg.get("architecture"), cfg.get("tag"))
    return list(names) if names and len(names) == model.num_classes else None


def _published_names(arch: str | None, tag: str | None) -> list[str] | None:
    """The names of the classes of published weights."""
    arch = arch_named(arch or "")
    if arch is None or not tag:
        return None
    for record in CATALOG:
        if (record.arch, record.tag) == (arch, tag):
            return list(record.label_names or ()) or _shared_names(record.num_classes)
    return None


def check_pooled(model: nn.Module) -> None:
    """Raise ValueError for a model with global_pool='', which gives maps of logits (B, classes, H, W)."""
    pool = getattr(model, "global_pool", None)
    if getattr(pool, "pool_type", pool) == "":
        raise ValueError("the model has global_pool='' and gives a map for each class: load it with global_pool='avg'")


@cache
def _shared_names(num_classes: int) -> list[str] | None:
    """Those that all published weights for so many classes share."""
    if num_classes == 1000:
        from torchvision.models import MobileNet_V3_Small_Weights

        return MobileNet_V3_Small_Weights.IMAGENET1K_V1.meta["categories"]
    if num_classes == 11221:
        info = timm.data.ImageNetInfo("imagenet21k-miil")
        return [info.index_to_description(i) for i in range(num_classes)]
    return None
