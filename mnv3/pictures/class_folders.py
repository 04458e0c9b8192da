"""Data sets as folders <split>/<class>/*: where each split and class lies, and what people's folders have instead."""

import logging
import os
import unicodedata
from collections import Counter
from pathlib import Path

from ..errors import DataError
from .folders import has_pictures, is_hidden, look, reasons, say
from .formats import suffixes

logger = logging.getLogger(__name__)
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
NAMES = [name for names in SPLITS.values() for name in names]


def _names(split: str) -> tuple[str, ...]:
    return SPLITS.get(split, (split,))


def find(data: Path, split: str) -> Path:
    """The folder of a split in a data set.

    Raises:
        DataError: There is none, or there are several; the message says what to do.
    """
    if found := _there(data, split):
        return found
    raise DataError(
        f"{data}: expected a folder {split} in it, with a folder of pictures for each class"
        f"{_where_it_may_be(data, split)}"
    )


def _there(data: Path, split: str) -> Path | None:
    found = [data / name for name in _names(split) if (data / name).is_dir()]
    if len({path.resolve() for path in found}) > 1:
        names = " and ".join(path.name for path in found)
        raise DataError(f"{data}: {names} are both read as {split}: put their pictures into one, or rename the other")
    return found[0] if found else None


def _where_it_may_be(data: Path, split: str) -> str:
    folders = _folders(data)
    for path in folders:
        if path.name.lower() in _names(split):
            return f". {path.name} is there: rename it to {path.name.lower()}"
    inner = [path for path in folders if _there(path, split)]
    if len(inner) == 1:
        return f". There is one in {inner[0]}: give that"
    if data.name in _names(split):
        return f". If this is it, give {data.parent}"
    return ""


def others(data: Path) -> list[str]:
    """The splits of a data set beside train; a log line names folders of pictures that are none of them."""
    found = {split: path for split in SPLITS if (path := _there(data, split))}
    read = {path.resolve() for path in found.values()}
    unread = [path for path in _folders(data) if path.resolve() not in read and path.name not in NAMES]
    unread = [path.name for path in unread if has_pictures(path) and not _is_of_runs(path)]
    if unread and os.environ.get("RANK", "0") == "0":  # the first of several processes says it
        known = ", ".join(" or ".join(names) for names in SPLITS.values())
        logger.warning("%s: not read: %s (only %s are)", data, ", ".join(unread), known)
    return [split for split in found if split != "train"]


def _is_of_runs(folder: Path) -> bool:
    """Whether it is what `mnv3 finetune` writes, with its figures."""
    return any(folder.glob("recipe.yaml")) or any(folder.glob("*/recipe.yaml"))


def read(folder: Path) -> tuple[list[str], list[list[Path]]]:
    """The classes of a split in order of their names, and the pictures of each.

    Names are in Unicode's composed form (NFC): one that macOS has written otherwise is the same class.

    Raises:
        DataError: There are no classes, one is empty, or what stands in their place is another split.
    """
    found: dict[str, list[Path]] = {}
    passed_over: dict[str, Counter[str]] = {}
    for path in _folders(folder):
        name = composed(path.name)
        files, others = look(path)
        found[name] = found.get(name, []) + files
        passed_over[name] = passed_over.get(name, Counter()) + others
    names = sorted(found)
    if not names:
        raise DataError(f"{folder}: expected a folder of pictures for each class")
    if empty := [name for name in names if not found[name]]:
        why = reasons(sum((passed_over[name] for name in empty), Counter()))
        why = f" (passed over {why})" if why else ""
        raise DataError(f"{folder}: no pictures in class {', '.join(empty[:5])}{why}: add some or remove the folder")
    if all(name in NAMES and not _directly_in(folder / name) for name in names):
        raise DataError(
            f"{folder}: has {', '.join(names)} in the place of classes, one folder too many: {_one_less(folder, names)}"
        )
    loose = Counter({"pictures in no class's folder": _directly_in(folder)})
    say(folder, +sum(passed_over.values(), loose))
    return names, [found[name] for name in names]


def _one_less(folder: Path, names: list[str]) -> str:
    beside = [name for name in NAMES if name != folder.name and (folder.parent / name).is_dir()]
    if "train" in names and not beside:
        return f"give {folder} as the data"
    return f"move what is in {', '.join(str(folder / name) for name in names)} up into {folder}"


def check_training(data: Path, classes: list[str]) -> None:
    """Refuse a data set with nothing to tell apart.

    Raises:
        DataError: There is one class; if it holds folders of pictures, the message proposes these.
    """
    if len(classes) > 1:
        return
    train = find(data, "train")
    (only,) = (path for path in _folders(train) if composed(path.name) == classes[0])
    inner = [path.name for path in _folders(only) if has_pictures(path)]
    message = f"{train}: has one class, {classes[0]}, and training needs two or more"
    if len(inner) > 1:
        more = " ..." if len(inner) > 5 else ""
        message += f". If {', '.join(inner[:5])}{more} are the classes, move them from {only} up into {train}"
    raise DataError(message)


def composed(name: str) -> str:
    """A name in the Unicode form that all are compared in."""
    return unicodedata.normalize("NFC", name)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))


def _directly_in(folder: Path) -> int:
    """How many pictures lie in a folder itself."""
    endings = suffixes()
    files = (path for path in folder.iterdir() if path.suffix.lower() in endings and not is_hidden(path.name))
    return sum(path.is_file() for path in files)
