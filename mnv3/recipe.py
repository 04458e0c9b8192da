"""Recipes: a YAML file, or the name of one in the package, read into a frozen and strictly typed `Recipe`.

One flat level of keys, each documented at its field below. What a recipe leaves out has the default given there.
"""

import dataclasses
import math
import os
import re
import reprlib
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import choices

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
    warmup_epochs: float = 0.0
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
        yaml = _yaml()

        class Dumper(yaml.SafeDumper):
            """Writes text that `_loader` would take for a number in quotation marks."""

        Dumper.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+.0123456789"))
        return yaml.dump(values, Dumper=Dumper, sort_keys=False)


FIELDS = typing.get_type_hints(Recipe)
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
POSITIVE = ("lr", "clip", "temperature", "layer_decay", "bn_momentum", "bn_eps")
NUMBER = re.compile(r"[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$|[-+]?\.\d+[eE][-+]?\d+$")  # also those YAML 1.1 calls text

BRIEFLY = reprlib.Repr()  # for messages: a few aliases can stand for more values than memory holds
BRIEFLY.maxlevel = 2


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
    yaml = _yaml()
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.load(file, _loader())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        raise ValueError(f"{path}{f', line {mark.line + 1}' if mark else ''}: {_problem(error)}") from None
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
    yaml = _yaml()
    try:
        return key.strip(), yaml.load(value, _loader())
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"--set {text}: {_problem(error)}") from None


def _problem(error: Exception) -> str:
    """What a parser says, in one line."""
    return str(getattr(error, "problem", None) or error).partition("\n")[0]


def _typed(key: Any, value: Any, source: str) -> Any:
    """`value` as the type of the field `key`; numbers may be written without a point, lists become tuples."""
    if key not in FIELDS:
        raise ValueError(f"{source}: unknown key {key!r}. {choices(str(key), FIELDS, limit=60)}")
    kind = FIELDS[key]
    allowed = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    for one in allowed:
        if one is type(None) and value is None:
            return None
        if typing.get_origin(one) is tuple:
            item = typing.get_args(one)[0]
            if isinstance(value, (list, tuple)) and all(_fits(v, item) for v in value):
                return tuple(item(v) for v in value)
        elif _fits(value, one):
            return one(value)
    raise ValueError(f"{source}: {key}: expected {' or '.join(map(_type_name, allowed))}, got {_called(value)}")


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
    return f"{BRIEFLY.repr(value)} ({type(value).__name__})" if value is not None else "nothing"


def _yaml() -> types.ModuleType:
    try:
        import yaml
    except ImportError:
        raise ImportError("recipes need PyYAML: pip install 'mnv3[finetune]'") from None
    return yaml


def _loader() -> type:
    """PyYAML's safe loader (no tag can make an object), but 1e-3 is a number and a repeated key an error.

    Of its words for booleans only true and false are left; `no` is text, as in `precision: no`.
    """
    yaml = _yaml()

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {  # noqa: RUF012
            first: [(tag, pattern) for tag, pattern in resolvers if first in "tTfF" or not tag.endswith(":bool")]
            for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def construct_object(self, node, deep=False):
            try:
                return super().construct_object(node, deep)
            except (ValueError, LookupError, AttributeError):  # a date 2001-13-45, or !!int of a word
                kind = node.tag.rpartition(":")[2]
                problem = f"{BRIEFLY.repr(node.value)} is no valid {kind} (quotation marks make it text)"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None

        def construct_mapping(self, node, deep=False):
            seen = []
            for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"key {key.value!r} is given twice", problem_mark=key.start_mark)
                seen.append(key.value)
            return super().construct_mapping(node, deep)

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+.0123456789"))
    return Loader
