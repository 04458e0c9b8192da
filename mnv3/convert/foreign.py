"""Models from outside PyTorch: which reader a file is for, and what a reader returns."""

import importlib
import os
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..arch import VARIANTS, Arch, as_arch, scale
from ..errors import WeightsError

NAMES = {".tflite": "a TFLite file", ".h5": "an HDF5 file of Keras", ".keras": "a Keras archive"}


class Foreign(NamedTuple):
    """A model out of another framework's file, in our terms.

    `create_model(arch, **options)` builds it, and loads `state_dict` strictly.
    """

    arch: str  # a registered name
    options: dict[str, Any]  # create_model's: num_classes, and width, in_chans, arch ... where they differ
    state_dict: dict[str, Tensor]  # our keys
    config: dict[str, Any]  # entries of pretrained_cfg that the file says: mean, std, input_size ...
    note: str  # what was found, in one line

    @property
    def table(self) -> Arch:
        """The network that `arch` and `options` name."""
        if "arch" in self.options:
            return as_arch(self.options["arch"])
        variant = VARIANTS[self.arch]
        return scale(variant.table, self.options.get("width", variant.width))


def named(table: Arch, pad_type: str) -> tuple[str, dict[str, Any]]:
    """The registered name for a table, and the arguments that make it this table where it is none of ours."""
    alike = sorted(VARIANTS.items(), key=lambda item: item[1].pad_type != pad_type)
    for name, variant in alike:
        padding = {} if variant.pad_type == pad_type else {"pad_type": pad_type}
        if variant.arch == table:
            return name, padding
    for name, variant in alike:
        padding = {} if variant.pad_type == pad_type else {"pad_type": pad_type}
        for width in (hundredths / 100 for hundredths in range(5, 401, 5)):
            if variant.width == 1 and scale(variant.table, width) == table:
                return name, padding | {"width": width}
    nearest = "mnv3_large" if len(table.rows) > 12 else "mnv3_small"
    return f"{nearest}_tf" if pad_type else nearest, {"arch": table.to_dict(), "width": 1.0}


def read(path: str | os.PathLike, **options: Any) -> Foreign | None:
    """The model in a TFLite, Keras or TF-Slim file, or None if a file is none of these. Content decides, not the name.

    Args:
        path: A flatbuffer of TFLite; Keras' `.weights.h5`, `.h5` or `.keras`; the `.index` of a TensorFlow checkpoint.
        options: For the reader.

    Raises:
        WeightsError: The file is damaged, or holds another network.
        ImportError: A package that reads it is missing.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind is None:
        return None
    reader = importlib.import_module(f".{kind}", __package__)  # they import this module for what they return
    return reader.read(path, **options)


def kind_of(path: Path) -> str | None:
    """'tflite', 'keras' or 'slim': whose file it is; None for a folder and for files of PyTorch.

    Raises:
        WeightsError: It has the name of one of these and other contents, or cannot be read.
    """
    if not path.is_file():
        return None
    try:
        with open(path, "rb") as file:
            head = file.read(8)
        if head[4:] == b"TFL3":
            return "tflite"
        if head == b"\x89HDF\r\n\x1a\n":
            return "keras"
        if head[:2] == b"PK" and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if "config.json" in archive.namelist():
                    return "keras"
    except Exception as error:  # zipfile has ValueError, struct.error, NotImplementedError ... for damage
        raise WeightsError(f"{path}: cannot be read: {error}") from None
    if path.suffix in NAMES:
        raise WeightsError(f"{path}: by its name {NAMES[path.suffix]}, but it is not one, {path.stat().st_size} bytes")
    return "slim" if path.suffix == ".index" else None
