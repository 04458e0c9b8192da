"""What several commands share: arguments."""

import argparse
from collections.abc import Callable
from pathlib import Path

from ..catalog import split_name

Command = Callable[..., argparse.ArgumentParser]
DEFAULT_MODEL = "mnv3_small_tf.uint8_in1k"  # its weights ship with mnv3
MODEL_HELP = "a name of `mnv3 list --pretrained`, hf-hub:NAMESPACE/NAME, or weights"


def add_ema(parser: argparse.ArgumentParser) -> None:
    """Add --ema and --no-ema, as `use_ema`: None where neither is given."""
    help = "averaged weights, or not (if there are any)"
    parser.add_argument("--ema", dest="use_ema", action=argparse.BooleanOptionalAction, help=help)


def check_model(name: str) -> None:
    """Raise ValueError for a model's name that nothing has, before torch is imported."""
    if ":" not in name and not Path(name).exists():
        split_name(name)


def positive(text: str) -> int:
    """The type of an argument that is a whole number of at least 1."""
    value = int(text) if text.isascii() and text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return value
