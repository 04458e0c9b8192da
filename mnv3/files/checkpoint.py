"""Files of tensors: check, read.

Any file is checked against its own format, in bounded time and memory, before a library makes tensors of it, and
nothing in it is ever executed.
"""

import argparse
import hashlib
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..errors import WeightsError
from .archives import as_archive, check_legacy, read_records
from .layouts import layout_of
from .tensors import MAX_TENSORS
from .wrappers import unwrap

MAX_HEADER = 4_000_000  # bytes, of a safetensors file; that of MobileNetV3-Large has 30,000
MAX_CLASSES = 100_000  # with a head of 1280 channels, half a gigabyte
MAX_CHANNELS = 10_000  # of a picture


def digest(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    state = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def damage(path: Path, sha256: str | None = None) -> str | None:
    """What is wrong with a file of weights, or None.

    Args:
        path: The file.
        sha256: The digest that it should have, or the beginning of it.
    """
    try:
        size, head = path.stat().st_size, _head(path)
        if sha256 and not (actual := digest(path)).startswith(sha256):
            return f"expected sha256 {sha256[:12]}, found {actual[:12]} in {size} bytes{_looks_like(head)}"
        _checked(path, head, size)
    except OSError as error:
        return f"cannot be read: {error}"
    except WeightsError as error:
        return str(error)
    return None


def _checked(path: Path, head: bytes, size: int) -> dict[str, bytes] | None:
    """The members of a zip archive of torch.save; None for safetensors, and for what torch.save wrote before zip.

    Raises:
        WeightsError: It is damaged, or none of these.
    """
    if _is_safetensors(head):
        _check_safetensors(path, head, size)
    elif path.suffix == ".safetensors":
        raise WeightsError(f"not a safetensors file, {size} bytes{_looks_like(head)}")
    elif zipfile.is_zipfile(path):
        try:
            return read_records(path)
        except WeightsError as error:
            raise WeightsError(f"{error}, {size} bytes") from error
    elif head[:1] != b"\x80":
        raise WeightsError(f"not a whole file of weights, {size} bytes{_looks_like(head)}")
    return None


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(64)


def _is_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{"  # after the length of the header comes its JSON


def _looks_like(head: bytes) -> str:
    if not head:
        return "; it is empty"
    for start, meaning in (
        (b"<", "a web page: is there a login page, a proxy or a wrong URL in between?"),
        (b"version https://git-lfs", "a Git LFS pointer in place of the file: run `git lfs pull`"),
        (b"PK", "a zip archive, as torch.save writes it"),
        (b"\x80", "a pickle"),
    ):
        if head.lstrip().startswith(start):
            return f"; it starts as {meaning}"
    return ""


def _check_safetensors(path: Path, head: bytes, size: int) -> None:
    """Let the library check the header against the size; it reads no tensor for that."""
    from safetensors import SafetensorError, safe_open

    length = int.from_bytes(head[:8], "little")
    if length > min(size, MAX_HEADER):
        expected = f"expected at most {MAX_HEADER:,}"
        raise WeightsError(f"cut off or damaged, {size} bytes: its header would take {length}, {expected}")
    try:
        with safe_open(path, "pt") as file:
            count = len(file.keys())
    except SafetensorError as error:
        raise WeightsError(f"cut off or damaged, {size} bytes: {_first_line(error)}") from error
    if count > MAX_TENSORS:
        raise WeightsError(f"{count:,} tensors, {size} bytes: expected at most {MAX_TENSORS:,}")


def _first_line(error: Exception) -> str:
    return " ".join(str(error).strip().split("\n")[0].split())[:300]


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a file of tensors to the CPU: safetensors, or what torch.save wrote, without running any code in it.

    Args:
        path: The file.

    Returns:
        All that is in it: tensors by name, or what a trainer keeps beside them too ('epoch', 'args' and so on).

    Raises:
        WeightsError: The file is missing, damaged, asks for more time or memory than a file of weights does, or holds
            other things than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no file of weights at {path}")
    try:
        size, head = path.stat().st_size, _head(path)
        records = _checked(path, head, size)
    except (OSError, WeightsError) as error:
        problem = f"cannot be read: {error}" if isinstance(error, OSError) else error
        raise WeightsError(f"{path}: {problem}") from error
    try:
        checkpoint = _load(path, head, records)
    except WeightsError as error:
        raise WeightsError(f"{path}: cannot be read as weights, {size} bytes: {error}") from error
    except Exception as error:  # torch, pickle, zipfile and safetensors each have their own
        unsafe = "weights_only" in str(error).lower() and head[:2] in (b"PK", b"\x80\x02")
        advice = "it holds more than tensors, which could run code: save its state_dict alone"
        raise WeightsError(
            f"{path}: cannot be read as weights, {size} bytes{_looks_like(head)}: "
            f"{advice if unsafe else _first_line(error)}"
        ) from error
    if not isinstance(checkpoint, Mapping):
        raise WeightsError(f"{path}: expected a state dict, found a {type(checkpoint).__name__}")
    return dict(checkpoint)


def _load(path: Path, head: bytes, records: dict[str, bytes] | None) -> Any:
    if _is_safetensors(head):
        from safetensors.torch import load_file

        return load_file(path)
    if records is None:
        check_legacy(path)
    # timm's and torchvision's trainers keep their arguments beside the weights
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path if records is None else as_archive(records), map_location="cpu", weights_only=True)


class FamilyWeights(NamedTuple):
    """What a checkpoint for one of our models holds."""

    state_dict: dict[str, torch.Tensor]
    num_classes: int
    in_chans: int


def family_of(checkpoint: Mapping[str, Any], *, use_ema: bool | None = None) -> FamilyWeights:
    """A checkpoint in any layout that `convert_state_dict` knows, out of its wrapper.

    Args:
        checkpoint: What `read_checkpoint` gave.
        use_ema: Which weights, as for `wrappers.unwrap`.

    Raises:
        WeightsError: It holds no weights, those of another network, or more classes or channels than we build.
    """
    state_dict = unwrap(checkpoint, use_ema=use_ema)
    layout = layout_of(state_dict)
    weights = FamilyWeights(state_dict, layout.num_classes(state_dict), layout.in_chans(state_dict))
    if weights.num_classes > MAX_CLASSES or weights.in_chans > MAX_CHANNELS:
        raise WeightsError(
            f"{weights.num_classes:,} classes and {weights.in_chans:,} channels: expected at most {MAX_CLASSES:,} and "
            f"{MAX_CHANNELS:,}"
        )
    return weights
