"""Files of other frameworks: which framework wrote one, and the model in it."""

import importlib
import os
import zipfile
from pathlib import Path

from ..errors import WeightsError
from .foreign import Foreign

NAMES = {".tflite": "a TFLite file", ".h5": "an HDF5 file of Keras", ".keras": "a Keras archive"}
READERS = {"tflite": ".tflite.network", "keras": ".keras", "slim": ".slim"}


def read(path: str | os.PathLike[str], *, use_ema: bool | None = None) -> Foreign | None:
    """The model in a TFLite, Keras or TF-Slim file, or None if a file is none of these. Content decides, not the name.

    Args:
        path: A flatbuffer of TFLite; Keras' `.weights.h5`, `.h5` or `.keras`; the `.index` of a TensorFlow checkpoint.
        use_ema: Which weights of a TensorFlow checkpoint: True for the averages over the training or an error, False
            for the last ones, None for the averages if there are any.

    Raises:
        WeightsError: The file is damaged, or holds another network.
        ImportError: A package that reads it is missing.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind is None:
        return None
    reader = importlib.import_module(READERS[kind], __package__)  # each has a library of its own
    return reader.read(path, **({"use_ema": use_ema} if kind == "slim" else {}))


def kind_of(path: Path) -> str | None:
    """Which framework wrote a file: 'tflite', 'keras' or 'slim'; None for a folder and for files of PyTorch.

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
