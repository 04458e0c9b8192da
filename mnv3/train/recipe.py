"""Recipes: a YAML file, or the name of one in the package, read into a frozen and strictly typed `Recipe`.

One flat level of keys: what each means, its allowed values and its default stand in one line of `Recipe`.
"""

import dataclasses
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from ..errors import choices
from . import recipe_yaml
from .recipe_values import Field, Range, briefly

FOLDER = Path(__file__).resolve().parent / "recipes"
MAX_SIZE = 4096  # pixels along a side: MobileNetV3 is made for 224, and activations grow with the square
MAX_BATCH_BYTES = 4 * 2**30  # of the pixels of a batch in float32; the activations take many times as much


Count = Annotated[int, Range(lambda x: x >= 1, "expected at least 1")]
CountOrZero = Annotated[int, Range(lambda x: x >= 0, "expected at least 0")]
Positive = Annotated[float, Range(lambda x: x > 0, "expected a number above 0")]
NotNegative = Annotated[float, Range(lambda x: x >= 0, "expected a number of at least 0")]
Fraction = Annotated[float, Range(lambda x: 0 <= x < 1, "expected a number from 0 up to but not including 1")]
Share = Annotated[float, Range(lambda x: 0 <= x <= 1, "expected a number from 0 to 1")]
OF_PYTORCH = "expected PyTorch's, the share of the new batch (0.1); TensorFlow's 0.99 is 0.01 here"
Momentum = Annotated[Positive, Range(lambda x: x <= 0.5, OF_PYTORCH)]
AT_MOST = f"expected at most {MAX_SIZE} pixels"
Side = Annotated[Count, Range(lambda x: x <= MAX_SIZE, AT_MOST)]
Sides = Annotated[tuple[int, ...], Range(lambda x: max(x, default=0) <= MAX_SIZE, AT_MOST)]
Rgb = Annotated[tuple[float, ...], Range(lambda x: len(x) == 3, "expected three numbers, for pixels from 0 to 1")]
PositiveRgb = Annotated[Rgb, Range(lambda x: min(x) > 0, "expected three numbers above 0")]
TWO_SHARES = "expected the least and the largest share, as in [0.35, 1.0]"
Shares = Annotated[tuple[float, ...], Range(lambda x: len(x) == 2 and 0 < x[0] <= x[1] <= 1, TWO_SHARES)]
Cycles = Annotated[Count, Range(lambda x: x <= 10, "expected at most 10")]


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
    drop_rate: Fraction = 0.0  # dropout before the classifier
    drop_path: Fraction = 0.0  # stochastic depth of the last block
    bn_eps: Positive | None = None  # in training; None: that of the published weights it starts from, else 1e-5
    freeze_bn: bool = False  # batch norms keep the statistics that they start with
    bn_momentum: Momentum = 0.1  # PyTorch's: the share of the new batch

    # The pictures
    data: str = "cifar10"  # cifar10, cifar100, or a folder with train/<class>/* and val/ or test/
    data_dir: str = "data"  # where torchvision's cifar-10-batches-py lies
    download: bool = False  # let torchvision download it
    val_fraction: Fraction = 0.0  # of the training pictures, held out where there is no val/
    balance: bool = False  # draw every class equally often
    workers: CountOrZero = 2  # processes that read large pictures

    # What is done to them
    size: Side = 32  # of the model's input
    sizes: Sides = ()  # progressive resizing: sizes of equal shares of a cycle, the last is `size`
    mean: Rgb | None = None  # None: of the weights it starts from
    std: PositiveRgb | None = None
    crop: CountOrZero = 4  # small pictures: random shift by up to this many of their pixels
    scale: Shares = (0.35, 1.0)  # large pictures: share of the area that a random crop takes
    flip: bool = True  # left-right, every second one
    augment: Literal["none", "trivial", "rand"] = "none"  # TrivialAugment, RandAugment
    erase: Share = 0.0  # probability of random erasing
    mixup: NotNegative = 0.0  # alpha
    cutmix: NotNegative = 0.0  # alpha
    mix_prob: Share = 1.0  # probability of a batch to have one of the two
    mix_off_epochs: CountOrZero = 0  # the last so many epochs have neither

    # The optimiser
    optimizer: str = "sgd"  # any of timm's: sgd, adamw, muon, lamb, ...
    lr: Positive = 0.1  # at batch_size
    momentum: NotNegative = 0.9
    weight_decay: NotNegative = 5e-4  # not on biases and norms
    layer_decay: Positive | None = None  # the learning rate of a layer over that of the next
    schedule: Literal["cosine", "onecycle", "constant"] = "cosine"
    cycles: Cycles = 1  # cosine: restarts (Loshchilov & Hutter 2017), each with half the rate and twice the epochs
    warmup_epochs: NotNegative = 0.0  # update k of its n has k/n of the way from min_lr to lr
    min_lr: NotNegative = 0.0
    epochs: Count = 10  # of all cycles
    batch_size: Count = 128  # of one step, shared out among `processes`; of one process where torchrun starts them
    accumulate: Count = 1  # steps that share an update
    clip: Positive | None = None  # largest norm of the gradient, or AGC's factor
    clip_mode: Literal["norm", "agc"] = "norm"
    label_smoothing: Fraction = 0.0
    ema: Fraction = 0.0  # decay of the average of the weights, warmed up; 0 for none
    freeze_epochs: CountOrZero = 0  # the classifier alone learns so long

    # A teacher
    teacher: str | None = None  # a name of timm's or ours (with weights), or a weights folder
    teacher_weight: Share = 0.5  # share of its loss
    temperature: Positive = 1.0

    # The machine
    processes: Count | Literal["auto"] = 1  # side by side, that share batch_size out; auto: as processes.suitable says
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"  # no: float32
    compile: bool = False
    channels_last: bool = True
    deterministic: bool = False
    seed: CountOrZero = 0

    def __post_init__(self) -> None:
        _check(self)

    @property
    def share(self) -> int:
        """Pictures of one step of one process."""
        return self.batch_size if self.processes == "auto" else self.batch_size // self.processes

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


FIELDS = {key: Field.of(hint) for key, hint in typing.get_type_hints(Recipe, include_extras=True).items()}
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
    "mix_prob": "mixup_prob",
    "mix_off_epochs": "mixup_off_epoch",
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
    "processes": "num_processes nproc nproc_per_node world_size n_procs",
    "precision": "amp fp16 bf16 half mixed_precision amp_dtype dtype",
    "compile": "torchcompile torch_compile",
    "seed": "random_seed manual_seed random_state",
}


def _check(recipe: Recipe) -> None:
    """Raise ValueError for the first value out of its range."""

    def fail(name: str, expected: str) -> None:
        raise ValueError(f"{name}: {getattr(recipe, name)!r} is not allowed: {expected}")

    for name, field in FIELDS.items():
        try:
            field.check(getattr(recipe, name))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    if recipe.sizes and (recipe.sizes[-1] != recipe.size or min(recipe.sizes) < 1):
        fail("sizes", f"expected sizes of at least 1 pixel that end with size ({recipe.size})")
    largest = max(recipe.size, *recipe.sizes, 1)
    if recipe.batch_size > (most := MAX_BATCH_BYTES // (4 * 3 * largest**2)):
        fail("batch_size", f"expected at most {most} pictures of {largest} pixels (accumulate makes larger updates)")
    if recipe.cycles > 1 and recipe.schedule != "cosine":
        fail("cycles", f"schedule: {recipe.schedule} has no restarts")
    if recipe.epochs % (parts := 2**recipe.cycles - 1):
        fail("cycles", f"expected epochs ({recipe.epochs}) to be a multiple of {parts} (1 + 2 + ...)")
    if recipe.warmup_epochs >= (first := recipe.cycle(0)[1]) and recipe.warmup_epochs:
        fail("warmup_epochs", f"expected fewer than epochs ({first}{' of the first cycle' * (recipe.cycles > 1)})")
    if recipe.processes != "auto" and recipe.batch_size % recipe.processes:
        fail("processes", f"batch_size ({recipe.batch_size}) cannot be shared out among them: expected a divisor of it")
    if recipe.processes not in ("auto", 1) and (recipe.mixup or recipe.cutmix) and recipe.share % 2:
        fail("processes", f"each gets {recipe.share} pictures, an odd number, and mixup joins them in pairs")
    if recipe.mix_off_epochs >= recipe.epochs:
        fail("mix_off_epochs", f"expected fewer than epochs ({recipe.epochs})")
    if recipe.pretrained and recipe.checkpoint:
        raise ValueError("pretrained and checkpoint both say where to start: give one")


def names() -> list[str]:
    """Names of the recipes in the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find(name: str | os.PathLike[str]) -> Path:
    """The file of a recipe: one that exists, or one of the package by name.

    Raises:
        ValueError: There is none; the message lists the package's.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    if str(name) in names():
        return FOLDER / f"{name}.yaml"
    raise ValueError(f"no recipe {str(name)!r}: no such .yaml file, none of the package. {choices(str(name), names())}")


def load(name: str | os.PathLike[str], **overrides: Any) -> Recipe:
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
        raise ValueError(f"{path}: expected lines of `key: value`, found {briefly(values)}")
    return make(values, overrides, source=str(path))


def make(values: Mapping[str, Any], overrides: Mapping[str, Any] | None = None, *, source: str = "recipe") -> Recipe:
    """A recipe from plain values.

    Args:
        values: By key.
        overrides: Values in place of these.
        source: What an error calls `values`.

    Raises:
        ValueError: As for `load`.
    """
    overrides = overrides or {}
    fields = {key: _typed(key, value, source) for key, value in values.items()}
    fields |= {key: _typed(key, value, "override") for key, value in overrides.items()}
    if "model" not in fields:
        raise ValueError(f"{source}: model is missing")
    if "size" in overrides and "sizes" not in overrides:
        fields.pop("sizes", None)  # they would not end with it
    try:
        return Recipe(**fields)
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
    if key not in FIELDS:
        raise ValueError(f"{source}: unknown key {key!r}. {_advice(str(key))}")
    try:
        return FIELDS[key].convert(value)
    except ValueError as error:
        raise ValueError(f"{source}: {key}: {error}") from None


def _advice(key: str) -> str:
    """Which keys there are; first the one that goes by another name elsewhere, or a near miss."""
    plain = key.lower().replace("-", "_")
    ours = next((name for name, others in OTHER_NAMES.items() if plain in others.split()), None)
    near = f"Did you mean {ours!r}? " if ours else ""
    return near + choices("" if ours else key, FIELDS, limit=60)
