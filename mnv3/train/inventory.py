"""Which pictures a training learns from, in short, so that it goes on with no others.

Of each class of 'train' and 'val' the number of pictures and a digest: of the files' names below the split's folder, or
of the pixels where they are held in memory. The test pictures may change: they are looked at once, in the end.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..pictures.data import Pictures

SPLITS = ("train", "val")
HELD = {True: "held in memory (small ones, all of one size)", False: "read file by file"}


def inventory(pictures: Mapping[str, Pictures]) -> dict[str, Any]:
    """The pictures of a training, as plain values for JSON.

    Args:
        pictures: By split, see splits.py.
    """
    splits = {split: _split(pictures[split]) for split in SPLITS if split in pictures}
    return {"classes": list(pictures["train"].classes), **splits}


def _split(pictures: Pictures) -> dict[str, Any]:
    labels, classes = pictures.labels, {}
    names = [] if pictures.held else _relative(pictures.source)
    for label, name in enumerate(pictures.classes):
        mine = (labels == label).nonzero().flatten()
        content = _pixels(pictures.source[mine]) if pictures.held else b"\0".join(names[i] for i in mine.tolist())
        classes[name] = [len(mine), hashlib.sha256(content).hexdigest()[:32]]
    return {"held": pictures.held, "pictures": classes}


def _pixels(source: Tensor) -> bytes:
    return repr(tuple(source.shape)).encode() + source.contiguous().numpy().tobytes()


def _relative(files: list[Path]) -> list[bytes]:
    """Names below the folder that all files lie in, which is the split's, wherever it is."""
    names = [file.as_posix() for file in files]
    folder = os.path.commonpath([min(names), max(names)])
    return [os.fsencode(name[len(folder) :]) for name in names]


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first difference of two inventories in words, or None.

    Args:
        before: As `inventory` gave it, perhaps through JSON.
        now: The same of today.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: `before` is no inventory.
    """
    if gone := [name for name in before["classes"] if name not in now["classes"]]:
        new = [name for name in now["classes"] if name not in before["classes"]]
        return f"class {gone[0]} is gone{f', class {new[0]} is new' if new else ''}"
    if new := [name for name in now["classes"] if name not in before["classes"]]:
        return f"class {new[0]} is new"
    if before["classes"] != list(now["classes"]):
        return "the order of the classes has changed"
    for split in SPLITS:
        if (split in before) != (split in now):
            return f"there {'were' if split in before else 'were no'} {split} pictures"
        if split in now and (change := _split_difference(before[split], now[split])):
            return f"{split}: {change}"
    return None


def _split_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    for name, (count, digest) in now["pictures"].items():
        old_count, old_digest = before["pictures"][name]
        if count != old_count:
            return f"class {name} had {old_count} pictures and has {count}"
        if before["held"] == now["held"] and digest != old_digest:
            return f"class {name} has other pictures ({'pixels' if now['held'] else 'names of files'} differ)"
    if before["held"] != now["held"]:
        return f"the pictures were {HELD[before['held']]} and are {HELD[now['held']]}"
    return None
