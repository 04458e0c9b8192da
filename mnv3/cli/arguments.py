"""What several commands share: arguments, models by name."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

Command = Callable[..., argparse.ArgumentParser]
DEFAULT_MODEL = "mnv3_small_cifar.cifar10"  # its weights ship with mnv3
MODEL_HELP = "a name of `mnv3 list --pretrained`, hf-hub:NAMESPACE/NAME, or weights"


def model_of(name: str, arch: str | None = None, *, use_ema: bool | None = None) -> Any:
    """The model that a command names: its own weights from files, an exported file, or published weights."""
    from ..deploy import runtime
    from ..factory import create_model, load_checkpoint

    path = Path(name)
    exported = path.exists() and runtime.format_of(path)
    if use_ema is not None and (exported or not path.exists()):
        raise ValueError(f"--ema and --no-ema are for files and folders of weights, not {name}")
    if exported:
        return runtime.load(path)
    return load_checkpoint(path, model=arch, use_ema=use_ema) if path.exists() else create_model(name, pretrained=True)


def positive(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return value
