"""What an exported file says of itself, checked once where it is read."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import WeightsError
from .formats import FORMATS

LARGEST = 2**28  # numbers in a batch: 1 GiB as float32
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos", "random")  # timm's


def check_metadata(file: Path, to: str, text: str | None) -> dict[str, Any]:
    """The metadata of `file`, a file of the format `to`.

    Raises:
        WeightsError: It has none, or something in them is missing or is not what mnv3 writes.
    """
    try:
        metadata = json.loads(text or "")
        if not isinstance(metadata, dict) or metadata.get("format") not in FORMATS:
            raise ValueError
    except (ValueError, TypeError, RecursionError):
        raise WeightsError(f"{file}: it does not say what it takes and gives: not written by mnv3?") from None
    if metadata["format"] != to:
        raise WeightsError(f"{file}: it says that it is of the format {metadata['format']}, not {to}")
    for name, (expected, fits) in FIELDS.items():
        if name not in metadata:
            raise WeightsError(f"{file}: it does not say its {name}: not written by mnv3?")
        if not fits(metadata[name]):
            raise _wrong(file, name, metadata[name], expected)
    channels = metadata["input_size"][0]
    for name, count in (("mean", channels), ("std", channels), ("label_names", metadata["num_classes"])):
        if metadata[name] is not None and len(metadata[name]) != count:
            raise _wrong(file, name, metadata[name], f"{count} of them")
    if math.prod(metadata["input_size"]) * metadata["batch"] > LARGEST:
        raise _wrong(file, "input_size", metadata["input_size"], f"a batch of at most {LARGEST} numbers")
    return metadata


def _wrong(file: Path, name: str, value: Any, expected: str) -> WeightsError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
    return WeightsError(f"{file}: it says {name}={shown}, expected {expected}: not written by mnv3?")


def _whole(least: int, most: int) -> tuple[str, Callable[[Any], bool]]:
    fits = lambda value: type(value) is int and least <= value <= most  # noqa: E731  True is an int, too
    return f"a whole number from {least} to {most}", fits


def _one_of(*allowed: str) -> tuple[str, Callable[[Any], bool]]:
    return f"one of {', '.join(allowed)}", lambda value: isinstance(value, str) and value in allowed


def _list_of(expected: str, fits: Callable[[Any], bool]) -> tuple[str, Callable[[Any], bool]]:
    return expected, lambda value: isinstance(value, list) and all(map(fits, value))


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e6  # which NaN is not


FLAG = ("true or false", lambda value: isinstance(value, bool))
SIDE = _whole(1, 2**14)[1]

# name: what it has to be, in words and as a test
FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "num_classes": _whole(1, 10**6),
    "input_size": (
        f"channels, height and width from 1 to {2**14}",
        lambda value: isinstance(value, list) and len(value) == 3 and all(map(SIDE, value)),
    ),
    "input_type": _one_of("float32", "uint8"),
    "batch": _whole(1, 2**16),
    "dynamic": _list_of("a list of batch and size, or of neither", lambda value: value in ("batch", "size")),
    "normalize": FLAG,
    "softmax": FLAG,
    "mean": _list_of("a list of numbers", _number),
    "std": _list_of("a list of numbers above 0", lambda value: _number(value) and value > 0),
    "interpolation": _one_of(*INTERPOLATIONS),
    "crop_pct": ("a number from 0.1 to 1", lambda value: _number(value) and 0.1 <= value <= 1),
    "crop_mode": _one_of("center", "border", "squash"),
    "label_names": (
        "null or a list of names",
        lambda value: value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value)),
    ),
}
