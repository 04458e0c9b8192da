"""A small network, and the file of each format that `mnv3 export` and `mnv3 quantize` make of it, written once a session.

Who changes a network or a file works on a copy.
"""

import functools
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import needs, with_distinct_logits

import mnv3
from mnv3.deploy import FORMATS, Report, export

NAMES = [f"kind {i}" for i in range(10)]
# every kind of block: without expansion and with, with squeeze-and-excite and without, with a residual, both activations
ARCH = mnv3.Arch(
    stem=8,
    rows=(
        mnv3.Bneck(3, 8, 8, True, "RE", 1),
        mnv3.Bneck(3, 24, 16, False, "RE", 2),
        mnv3.Bneck(5, 32, 16, True, "HS", 1),
        mnv3.Bneck(5, 48, 24, True, "HS", 2),
    ),
    last=64,
    head=1024,
    stem_stride=1,
)
_FOLDER = tempfile.TemporaryDirectory(prefix="mnv3-exports-")


def folder(name: str) -> Path:
    """A new empty folder for the session."""
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=_FOLDER.name))


@functools.cache
def weights() -> Path:
    """A weights folder of the network."""
    return mnv3.save(with_distinct_logits("mnv3_small_cifar", arch=ARCH), folder("weights") / "net", label_names=NAMES)


@functools.cache
def net() -> mnv3.MobileNetV3:
    """The network itself, of 10 classes for pictures of 32 px."""
    return mnv3.load_checkpoint(weights()).eval()


@functools.cache
def exported(to: str, *, whole: bool = False) -> tuple[Path, Report]:
    """The file of a format, alone in its folder, and the report on it.

    Args:
        to: The format.
        whole: With normalisation, softmax and float16 weights; otherwise with all that can be dynamic, or a batch of 2.
    """
    needs(to)
    entry = FORMATS[to]
    options = {"dynamic": entry.dynamic, "batch": 1 if entry.dynamic or not entry.batches else 2}
    if whole:
        options = {"normalize": True, "softmax": True, "half": entry.half}
    file = folder(to) / f"net{entry.suffix}"
    return file, export(net(), file, to=to, **options)
