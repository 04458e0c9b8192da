"""What config.json and the arguments of a training may say: which entries, of which values, up to which sizes.

Both are input like any other. A network and a transform are built from them, so that there are limits on what they can
ask for; they are far above any MobileNetV3.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

from ..arch import VARIANTS, Arch, as_arch, count_params, scale
from ..errors import WeightsError, choices
from ..model import MobileNetV3

MAX_SIZE = 2048  # pixels along a side of what the model reads
MAX_RESIZED = 4096  # pixels along the shorter side before the crop
MAX_PARAMS = 1 << 27
MAX_ROWS = 500  # of a table
MAX_CHANNELS = 1 << 16
MAX_KERNEL = 31
MAX_DILATION = 64
MAX_CLASSES = 1 << 20
MAX_IN_CHANS = 1024
MAX_TEXT = 100_000  # characters

# Of timm's PretrainedCfg: where weights are.
SOURCES = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
CROP_MODES = ("center", "squash", "border")


class Kind(NamedTuple):
    """What a value has to be, and in words."""

    fits: Callable[[Any], bool]
    words: str


def _number(low: float, high: float) -> Kind:
    def fits(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high

    return Kind(fits, f"a number from {low:g} to {high:g}")


def _whole(low: int, high: int) -> Kind:
    number = _number(low, high)
    return Kind(lambda value: isinstance(value, int) and number.fits(value), f"a whole number from {low} to {high}")


def _list_of(kind: Kind, *lengths: int) -> Kind:
    def fits(value: Any) -> bool:
        return isinstance(value, (list, tuple)) and len(value) in lengths and all(map(kind.fits, value))

    return Kind(fits, f"a list of {' or '.join(map(str, lengths))}, each {kind.words}")


def _one_of(*allowed: str) -> Kind:
    return Kind(lambda value: isinstance(value, str) and value in allowed, f"one of {', '.join(allowed)}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT


def _are_texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_is_text, value))


def _is_text_by_text(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_text(v) for pair in value.items() for v in pair)


SIDE = _whole(1, MAX_SIZE)
SIZE = Kind(
    lambda value: (
        isinstance(value, (list, tuple))
        and len(value) == 3
        and _whole(1, MAX_IN_CHANS).fits(value[0])
        and all(map(SIDE.fits, value[1:]))
    ),
    f"a list of channels, height and width, up to {MAX_IN_CHANS} channels and {MAX_SIZE} pixels",
)
MEAN = _list_of(_number(-1e6, 1e6), *range(1, MAX_IN_CHANS + 1))._replace(words="a list of a number for each channel")
STD = _list_of(_number(1e-6, 1e6), *range(1, MAX_IN_CHANS + 1))._replace(
    words="a list of a number above 0 for each channel"
)
CROP = _number(0.01, 10)
TEXT = Kind(_is_text, "a text")
TEXTS = Kind(lambda value: _is_text(value) or _are_texts(value), "a text or a list of texts")
NAMES = Kind(lambda value: _are_texts(value) or _is_text_by_text(value), "a list of names, or a name for each index")
BOOLEAN = Kind(lambda value: isinstance(value, bool), "true or false")
SCALAR = Kind(
    lambda value: isinstance(value, (bool, str)) or _number(-1e9, 1e9).fits(value), "a text, a number, true or false"
)

CFG = {
    "architecture": TEXT,
    "tag": TEXT,
    "input_size": SIZE,
    "test_input_size": SIZE,
    "min_input_size": SIZE,
    "fixed_input_size": BOOLEAN,
    "interpolation": _one_of(*INTERPOLATIONS),
    "crop_pct": CROP,
    "test_crop_pct": CROP,
    "crop_mode": _one_of(*CROP_MODES),
    "mean": MEAN,
    "std": STD,
    "num_classes": _whole(0, MAX_CLASSES),
    "label_offset": _whole(0, 1),
    "label_names": NAMES,
    "label_descriptions": Kind(_is_text_by_text, "a text for each name"),
    "pool_size": _list_of(SIDE, 2),
    "test_pool_size": _list_of(SIDE, 2),
    "first_conv": TEXTS,
    "classifier": TEXTS,
    "license": TEXT,
    "description": TEXT,
    "origin_url": TEXT,
    "paper_name": TEXT,
    "paper_ids": TEXTS,
    "notes": TEXTS,
}
ARGS = {
    "arch": Kind(lambda value: isinstance(value, (str, dict)), "a name or a table"),
    "width": _number(0.01, 64),
    "use_se": BOOLEAN,
    "use_hs": BOOLEAN,
    "num_classes": CFG["num_classes"],
    "in_chans": _whole(1, MAX_IN_CHANS),
}


@cache
def _model_args() -> tuple[str, ...]:
    """The arguments of a model that a folder may say; where and as what it is built is the caller's."""
    return tuple(name for name in inspect.signature(MobileNetV3).parameters if name not in ("device", "dtype"))


def check_cfg(cfg: Any, where: str) -> None:
    """Raise WeightsError unless these are entries of timm's PretrainedCfg as they can be; see `SOURCES` for the rest.

    Args:
        cfg: The entries.
        where: What to call them in the message.
    """
    _check_keys(cfg, (*CFG, *SOURCES), where)
    for name, value in cfg.items():
        if name in CFG and value is not None:
            _check(CFG[name], value, f"{where}: {name}")
    size = cfg.get("input_size") or (3, 224, 224)
    for sides, crop in ((size, "crop_pct"), (cfg.get("test_input_size") or size, "test_crop_pct")):
        if (pct := cfg.get(crop)) and max(sides[1:]) / pct > MAX_RESIZED:
            raise WeightsError(
                f"{where}: {crop} {pct} of {max(sides[1:])} pixels has pictures resized to "
                f"{max(sides[1:]) / pct:.0f} pixels; at most {MAX_RESIZED}"
            )


def check_args(args: Any, where: str) -> None:
    """Raise WeightsError unless these are arguments of a model, of values that they can have.

    Args:
        args: `model_args` of a config.json, or of a training.
        where: What to call them in the message.
    """
    _check_keys(args, _model_args(), where)
    for name, value in args.items():
        _check(ARGS.get(name, SCALAR), value, f"{where}: {name}")


def check_model(arch: str, cfg: Mapping[str, Any], args: Mapping[str, Any], where: str) -> None:
    """Raise WeightsError unless the checked arguments build a model of `arch`, of no more than MAX_PARAMS.

    Args:
        arch: A registered name.
        cfg: Checked entries of timm's PretrainedCfg.
        args: Checked arguments.
        where: What to call the arguments in the message.
    """
    variant = VARIANTS[arch]
    in_chans = args.get("in_chans") or (cfg.get("input_size") or (3,))[0]
    num_classes = args.get("num_classes", cfg.get("num_classes") or 0)
    try:
        table = scale(_table(args.get("arch", variant.table)), args.get("width", variant.width))
        if (params := count_params(table, in_chans=in_chans, num_classes=num_classes)) > MAX_PARAMS:
            raise ValueError(f"a network of {params:,} parameters; at most {MAX_PARAMS:,}")
        defaults = {"arch": variant.table, "width": variant.width, "pad_type": variant.pad_type}
        MobileNetV3(**(defaults | dict(args) | {"device": "meta"}))
    except (ValueError, TypeError, RuntimeError, LookupError, AssertionError) as error:
        raise WeightsError(f"{where}: {str(error)[:300]}") from None


def _table(arch: Arch | str | dict[str, Any]) -> Arch:
    """A table, of sizes from which a network can be built."""
    rows = arch.get("rows") if isinstance(arch, dict) else ()
    if isinstance(rows, (list, tuple)) and len(rows) > MAX_ROWS:
        raise ValueError(f"arch rows: {len(rows)}; at most {MAX_ROWS}")
    table = as_arch(arch)
    sizes = {
        "channels": ([table.stem, table.last, table.head, *(max(r.exp, r.out) for r in table.rows)], MAX_CHANNELS),
        "kernel": ([row.kernel for row in table.rows], MAX_KERNEL),
        "dilation": ([row.dilation for row in table.rows], MAX_DILATION),
    }
    for name, (values, most) in sizes.items():
        if max(values) > most:
            raise ValueError(f"arch {name}: {max(values)!s:.20}; at most {most}")
    return table


def _check_keys(entries: Any, known: tuple[str, ...], where: str) -> None:
    if not isinstance(entries, Mapping):
        raise WeightsError(f"{where}: expected names with values, found {type(entries).__name__}")
    for name in entries:
        if name not in known:
            raise WeightsError(f"{where}: unknown {name!r:.60}. {choices(str(name)[:60], known, limit=40)}")


def _check(kind: Kind, value: Any, where: str) -> None:
    if not kind.fits(value):
        raise WeightsError(f"{where} {' '.join(repr(value).split()):.60}: expected {kind.words}")
