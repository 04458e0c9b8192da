"""Recipes: a YAML file, or the name of one in the package, read into a frozen and strictly typed `Recipe`.

One flat level of keys, each documented at its field below. What a recipe leaves out has the default given there.
"""

import dataclasses
import math
import os
import re
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import choices
from . import recipe_yaml

FOLDER = Path(__file__).resolve().parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a training, but for the machine. Lengths of time are in epochs, sizes in pixels."""

    # The model
    model: str  # a name of `mnv3 list`, with a tag for its published weights
    pretrained: bool = False  # start from published weights
    checkpoint: str | None = None  # start from this weights folder, or this file
    use_se: bool = True
    use_hs: bool = True
    se_order: str = "act-se"  # of mnv3.arch.SE_ORDERS
    drop_rate: float = 0.0  # dropout before the classifier
    drop_path: float = 0.0  # stochastic depth of the last block
    bn_eps: float | None = None  # in training; None: that of the published weights it starts from, else 1e-5
    freeze_bn: bool = False  # batch norms keep the statistics that they start with
    bn_momentum: float = 0.1  # PyTorch's: the share of the new batch

    # The pictures
    data: str = "cifar10"  # cifar10, cifar100, or a folder with train/<class>/* and val/ or test/
    data_dir: str = "data"  # where torchvision's cifar-10-batches-py lies
    download: bool = False  # let torchvision download it
    val_fraction: float = 0.0  # of the training pictures, held out where there is no val/
    balance: bool = False  # draw every class equally often
    workers: int = 2  # processes that read large pictures

    # What is done to them
    size: int = 32  # of the model's input
    sizes: tuple[int, ...] = ()  # progressive resizing: sizes of equal shares of a cycle, the last is `size`
    mean: tuple[float, ...] | None = None  # None: of the weights it starts from
    std: tuple[float, ...] | None = None
    crop: int = 4  # small pictures: random shift by up to this many of their pixels
    scale: tuple[float, ...] = (0.35, 1.0)  # large pictures: share of the area that a random crop takes
    flip: bool = True  # left-right, every second one
    augment: str = "none"  # none, trivial (TrivialAugment), rand (RandAugment)
    erase: float = 0.0  # probability of random erasing
    mixup: float = 0.0  # alpha
    cutmix: float = 0.0  # alpha

    # The optimiser
    optimizer: str = "sgd"  # any of timm's: sgd, adamw, muon, lamb, ...
    lr: float = 0.1  # at batch_size
    momentum: float = 0.9
    weight_decay: float = 5e-4  # not on biases and norms
    layer_decay: float | None = None  # the learning rate of a layer over that of the next
    schedule: str = "cosine"  # cosine, onecycle, constant
    cycles: int = 1  # cosine: restarts (Loshchilov & Hutter 2017), each with half the rate and twice the epochs
    warmup_epochs: float = 0.0  # update k of its n has k/n of the way from min_lr to lr
    min_lr: float = 0.0
    epochs: int = 10  # of all cycles
    batch_size: int = 128  # of one step of one process
    accumulate: int = 1  # steps that share an update
    clip: float | None = None  # largest norm of the gradient, or AGC's factor
    clip_mode: str = "norm"  # norm, agc
    label_smoothing: float = 0.0
    ema: float = 0.0  # decay of the average of the weights, warmed up; 0 for none
    freeze_epochs: int = 0  # the classifier alone learns so long

    # A teacher
    teacher: str | None = None  # a name of timm's or ours (with weights), or a weights folder
    teacher_weight: float = 0.5  # share of its loss
    temperature: float = 1.0

    # The machine
    precision: str = "auto"  # auto, no (float32), bf16, fp16
    compile: bool = False
    channels_last: bool = True
    deterministic: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self)

    def cycle(self, epoch: int) -> tuple[int, int]:
        """The first epoch of the cycle that `epoch` (from 0) lies in, and how many it has."""
        start, length = 0, self.epochs // (2**self.cycles - 1)
        while epoch >= start + length:
            start, length = start + length, 2 * length
        return start, length

    def to_yaml(self) -> str:
        """As a recipe file, all keys given."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}
        return recipe_yaml.dump(values)


FIELDS = typing.get_type_hints(Recipe)
OTHER_NAMES = {  # what other trainers call our keys
    "model": "arch architecture net network backbone model_name",
    "checkpoint": "initial_checkpoint weights resume_from init_from",
    "drop_rate": "dropout drop",
    "drop_path": "drop_path_rate stochastic_depth",
    "bn_momentum": "bn_mom batch_norm_momentum",
    "data": "dataset dataset_dir data_path root train_dir",
    "val_fraction": "val_split validation_split",
    "workers": "num_workers n_workers dataloader_num_workers",
    "size": "img_size image_size imgsz input_size resolution crop_size train_crop_size",
    "scale": "crop_scale",
    "flip": "hflip fliplr horizontal_flip",
    "augment": "aa auto_augment autoaugment augmentation",
    "erase": "reprob random_erase random_erasing",
    "mixup": "mixup_alpha",
    "cutmix": "cutmix_alpha",
    "optimizer": "opt optim optimiser",
    "lr": "learning_rate learningrate lr0 base_lr max_lr eta",
    "weight_decay": "wd decay l2 weightdecay",
    "layer_decay": "llrd layerwise_lr_decay",
    "schedule": "sched scheduler lr_scheduler lr_scheduler_type lr_schedule",
    "warmup_epochs": "warmup num_warmup_epochs lr_warmup_epochs",
    "min_lr": "lr_min eta_min final_lr",
    "epochs": "num_epochs n_epochs max_epochs num_train_epochs epoch nb_epochs",
    "batch_size": "bs batch per_device_train_batch_size train_batch_size",
    "accumulate": "gradient_accumulation_steps grad_accum_steps accumulate_grad_batches accum_iter",
    "clip": "clip_grad grad_clip max_grad_norm gradient_clip_val clip_grad_norm",
    "label_smoothing": "smoothing label_smoothing_factor",
    "ema": "model_ema ema_decay model_ema_decay",
    "teacher": "teacher_model kd_model_name",
    "temperature": "kd_temperature tau",
    "precision": "amp fp16 bf16 half mixed_precision amp_dtype dtype",
    "compile": "torchcompile torch_compile",
    "seed": "random_seed manual_seed random_state",
}
ONE_OF = {
    "schedule": ("cosine", "onecycle", "constant"),
    "augment": ("none", "trivial", "rand"),
    "clip_mode": ("norm", "agc"),
    "precision": ("auto", "no", "bf16", "fp16"),
}
AT_LEAST = {"epochs": 1, "cycles": 1, "batch_size": 1, "accumulate": 1, "size": 1}
AT_LEAST |= {"workers": 0, "crop": 0, "freeze_epochs": 0, "seed": 0}
FRACTIONS = ("drop_rate", "drop_path", "val_fraction", "label_smoothing", "ema")  # 0 <= x < 1
SHARES = ("erase", "teacher_weight")  # 0 <= x <= 1
NOT_NEGATIVE = ("mixup", "cutmix", "momentum", "weight_decay", "warmup_epochs", "min_lr")
PLAIN_NUMBER = {
    int: re.compile(r"[-+]?(0|[1-9]\d{0,17})", re.ASCII),
    float: re.compile(r"[-+]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][-+]?\d+)?", re.ASCII),
}
MAX_SIZE = 4096  # pixels along a side: MobileNetV3 is made for 224, and activations grow with the square
MAX_BATCH_BYTES = 4 * 2**30  # of the pixels of a batch in float32; the activations take many times as much
POSITIVE = ("lr", "clip", "temperature", "layer_decay", "bn_momentum", "bn_eps")


def _check(recipe: Recipe) -> None:
    """Raise ValueError for the first value out of its range."""

    def fail(name: str, allowed: str) -> None:
        raise ValueError(f"{name}: {getattr(recipe, name)!r} is not allowed: {allowed}")

    for name, allowed in ONE_OF.items():
        if (value := getattr(recipe, name)) not in allowed:
            raise ValueError(f"{name}: {value!r} is not allowed. {choices(value, allowed)}")
    for name in FIELDS:
        value = getattr(recipe, name)
        numbers = value if isinstance(value, tuple) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            fail(name, "expected a finite number")
        if name in AT_LEAST and value < AT_LEAST[name]:
            fail(name, f"expected at least {AT_LEAST[name]}")
        if name in FRACTIONS and not 0 <= value < 1:
            fail(name, "expected a number from 0 up to but not including 1")
        if name in SHARES and not 0 <= value <= 1:
            fail(name, "expected a number from 0 to 1")
        if name in NOT_NEGATIVE and value < 0:
            fail(name, "expected a number of at least 0")
        if name in POSITIVE and value is not None and value <= 0:
            fail(name, "expected a number above 0")
    if recipe.bn_momentum > 0.5:
        fail("bn_momentum", "expected PyTorch's, the share of the new batch (0.1); TensorFlow's 0.99 is 0.01 here")
    if recipe.sizes and (recipe.sizes[-1] != recipe.size or min(recipe.sizes) < 1):
        fail("sizes", f"expected sizes of at least 1 pixel that end with size ({recipe.size})")
    largest = max(recipe.size, *recipe.sizes, 1)
    if largest > MAX_SIZE:
        fail("sizes" if recipe.sizes else "size", f"expected at most {MAX_SIZE} pixels")
    if recipe.batch_size > (most := MAX_BATCH_BYTES // (4 * 3 * largest**2)):
        fail("batch_size", f"expected at most {most} pictures of {largest} pixels (accumulate makes larger updates)")
    for name in ("mean", "std"):
        if (value := getattr(recipe, name)) is not None and len(value) != 3:
            fail(name, "expected three numbers, for pixels from 0 to 1")
    if recipe.std and min(recipe.std) <= 0:
        fail("std", "expected three numbers above 0")
    if not (len(recipe.scale) == 2 and 0 < recipe.scale[0] <= recipe.scale[1] <= 1):
        fail("scale", "expected the least and the largest share, as in [0.35, 1.0]")
    if recipe.cycles > 1 and recipe.schedule != "cosine":
        fail("cycles", f"schedule: {recipe.schedule} has no restarts")
    if recipe.cycles > 10:
        fail("cycles", "expected at most 10")
    if recipe.epochs % (parts := 2**recipe.cycles - 1):
        fail("cycles", f"expected epochs ({recipe.epochs}) to be a multiple of {parts} (1 + 2 + ...)")
    if recipe.warmup_epochs >= (first := recipe.cycle(0)[1]) and recipe.warmup_epochs:
        fail("warmup_epochs", f"expected fewer than epochs ({first}{' of the first cycle' * (recipe.cycles > 1)})")
    if recipe.pretrained and recipe.checkpoint:
        raise ValueError("pretrained and checkpoint both say where to start: give one")


def names() -> list[str]:
    """Names of the recipes in the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find(name: str | os.PathLike) -> Path:
    """The file of a recipe: one that exists, or one of the package by name.

    Raises:
        ValueError: There is none; the message lists the package's.
    """
    path, ours = Path(name), FOLDER / f"{name}.yaml"
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    if str(name) in names():
        return ours
    raise ValueError(f"no recipe {str(name)!r}: no such .yaml file, none of the package. {choices(str(name), names())}")


def load(name: str | os.PathLike, **overrides: Any) -> Recipe:
    """A recipe by file or by its name in the package.

    Args:
        name: The file or name.
        overrides: Values in place of the file's.

    Raises:
        ValueError: No such recipe, not YAML, an unknown or repeated key, a wrong type, or a value out of range; the
            message names file and key.
    """
    path = find(name)
    with open(path, encoding="utf-8") as file:
        values = recipe_yaml.load(file, str(path))
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected lines of `key: value`, found {_called(values)}")
    return make(values, overrides, source=str(path))


def make(values: Mapping[str, Any], overrides: Mapping[str, Any] | None = None, *, source: str = "recipe") -> Recipe:
    """A recipe from plain values; see `load` for what is refused."""
    found = {key: _typed(key, value, source) for key, value in values.items()}
    found |= {key: _typed(key, value, "override") for key, value in (overrides or {}).items()}
    if "model" not in found:
        raise ValueError(f"{source}: model is missing")
    if "size" in (overrides or {}) and "sizes" not in (overrides or {}):
        found.pop("sizes", None)  # they would not end with it
    try:
        return Recipe(**found)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def parse_override(text: str) -> tuple[str, Any]:
    """`key=value` as written on a command line, its value read as in a recipe.

    Raises:
        ValueError: It is not of this form.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"--set {text}: expected key=value, such as lr=0.05 or sizes=[16,32]")
    return key.strip(), recipe_yaml.load(value, f"--set {text}", lines=False)


def _typed(key: Any, value: Any, source: str) -> Any:
    """`value` as the type of the field `key`; numbers may be written without a point, lists become tuples."""
    if key not in FIELDS:
        raise ValueError(f"{source}: unknown key {key!r}. {_advice(str(key))}")
    kind = FIELDS[key]
    allowed = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    for one in allowed:
        if one is type(None) and value is None:
            return None
        if typing.get_origin(one) is tuple:
            item = typing.get_args(one)[0]
            if isinstance(value, (list, tuple)) and all(_fits(v, item) for v in value):
                return tuple(item(v) for v in value)
        elif _fits(number := _unquoted(value, one), one):
            return one(number)
    raise ValueError(f"{source}: {key}: expected {' or '.join(map(_type_name, allowed))}, got {_called(value)}")


def _advice(key: str) -> str:
    """Which keys there are; first the one that goes by another name elsewhere, or a near miss."""
    plain = key.lower().replace("-", "_")
    ours = next((name for name, others in OTHER_NAMES.items() if plain in others.split()), None)
    near = f"Did you mean {ours!r}? " if ours else ""
    return near + choices("" if ours else key, FIELDS, limit=60)


def _unquoted(value: Any, kind: type) -> Any:
    """The number that is meant by one in quotation marks, where a number is wanted."""
    if kind in (int, float) and isinstance(value, str) and PLAIN_NUMBER[kind].fullmatch(value):
        return kind(value)
    return value


def _fits(value: Any, kind: type) -> bool:
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is float and isinstance(value, int):
        return abs(value) <= sys.float_info.max
    return isinstance(value, kind)


def _type_name(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return f"a list of {_type_name(typing.get_args(kind)[0])}s".replace("list of a ", "list of ")
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(kind, "null")


def _called(value: Any) -> str:
    return f"{recipe_yaml.BRIEFLY.repr(value)} ({type(value).__name__})" if value is not None else "nothing"
