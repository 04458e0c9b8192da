"""Data sets as folders <split>/<class>/*: finds splits and classes, and says what is wrong with a folder."""

import logging
import os
import unicodedata
from collections import Counter
from pathlib import Path

from ..errors import DataError
from .folders import has_pictures, is_hidden, list_pictures, summary, warn_passed_over
from .formats import suffixes

logger = logging.getLogger(__name__)
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
NAMES = [name for names in SPLITS.values() for name in names]


def find_split(data: Path, split: str) -> Path:
    """The folder of a split in a data set.

    Args:
        data: The folder of the data set.
        split: 'train', 'val' (which may be called valid or validation) or 'test'.

    Raises:
        DataError: There is none, or there are several; the message says what to do.
    """
    if folder := _split_folder(data, split):
        return folder
    raise DataError(
        f"{data}: expected a folder {split} in it, with a folder of pictures for each class{_hint(data, split)}"
    )


def _split_folder(data: Path, split: str) -> Path | None:
    folders = [data / name for name in _names(split) if (data / name).is_dir()]
    if len({path.resolve() for path in folders}) > 1:
        names = " and ".join(path.name for path in folders)
        raise DataError(f"{data}: {names} are both read as {split}: put their pictures into one, or rename the other")
    return folders[0] if folders else None


def _names(split: str) -> tuple[str, ...]:
    return SPLITS.get(split, (split,))


def _hint(data: Path, split: str) -> str:
    """Where a missing split may be: under a name in capitals, one folder below, or one above."""
    folders = _subfolders(data)
    for path in folders:
        if path.name.lower() in _names(split):
            return f". {path.name} is there: rename it to {path.name.lower()}"
    inner = [path for path in folders if _split_folder(path, split)]
    if len(inner) == 1:
        return f". There is one in {inner[0]}: give that"
    if data.name in _names(split):
        return f". If this is it, give {data.parent}"
    return ""


def splits_beside_train(data: Path) -> list[str]:
    """Which of 'val' and 'test' a data set has; a log line names folders of pictures that are no split."""
    folders = {split: path for split in SPLITS if (path := _split_folder(data, split))}
    read = {path.resolve() for path in folders.values()}
    unread = [path for path in _subfolders(data) if path.resolve() not in read and path.name not in NAMES]
    unread = [path.name for path in unread if has_pictures(path) and not _holds_runs(path)]
    if unread and os.environ.get("RANK", "0") == "0":  # the first of several processes says it
        known = ", ".join(" or ".join(names) for names in SPLITS.values())
        logger.warning("%s: not read: %s (only %s are)", data, ", ".join(unread), known)
    return [split for split in folders if split != "train"]


def _holds_runs(folder: Path) -> bool:
    """Whether `mnv3 finetune` wrote this folder, or folders in it: their pictures are figures."""
    return any(folder.glob("recipe.yaml")) or any(folder.glob("*/recipe.yaml"))


def read_classes(folder: Path) -> tuple[list[str], list[list[Path]]]:
    """The classes of a split and their pictures.

    Args:
        folder: Of the split.

    Returns:
        Names of classes in order, in Unicode's composed form (NFC), as macOS writes them otherwise; and files of each.

    Raises:
        DataError: There are no classes, one is empty, or the folder has splits where classes should be.
    """
    by_class: dict[str, list[Path]] = {}
    passed_over: dict[str, Counter[str]] = {}
    for path in _subfolders(folder):
        name = composed(path.name)
        files, others = list_pictures(path)
        by_class[name] = by_class.get(name, []) + files
        passed_over[name] = passed_over.get(name, Counter()) + others
    names = sorted(by_class)
    if not names:
        raise DataError(f"{folder}: expected a folder of pictures for each class")
    if empty := [name for name in names if not by_class[name]]:
        why = summary(sum((passed_over[name] for name in empty), Counter()))
        why = f" (passed over {why})" if why else ""
        raise DataError(f"{folder}: no pictures in class {', '.join(empty[:5])}{why}: add some or remove the folder")
    if all(name in NAMES and not _count_pictures(folder / name) for name in names):
        raise DataError(
            f"{folder}: has {', '.join(names)} in the place of classes, one folder too many: {_way_up(folder, names)}"
        )
    loose = Counter({"pictures in no class's folder": _count_pictures(folder)})
    warn_passed_over(folder, +sum(passed_over.values(), loose))
    return names, [by_class[name] for name in names]


def _way_up(folder: Path, names: list[str]) -> str:
    """What to do about splits that lie one folder too deep."""
    beside = [name for name in NAMES if name != folder.name and (folder.parent / name).is_dir()]
    if "train" in names and not beside:
        return f"give {folder} as the data"
    return f"move what is in {', '.join(str(folder / name) for name in names)} up into {folder}"


def check_classes(data: Path, classes: list[str]) -> None:
    """Refuse a data set for training that has a single class.

    Args:
        data: The folder of the data set.
        classes: Of its split 'train'.

    Raises:
        DataError: There is one class; if it holds folders of pictures, the message proposes these.
    """
    if len(classes) > 1:
        return
    train = find_split(data, "train")
    (only,) = (path for path in _subfolders(train) if composed(path.name) == classes[0])
    inner = [path.name for path in _subfolders(only) if has_pictures(path)]
    message = f"{train}: has one class, {classes[0]}, and training needs two or more"
    if len(inner) > 1:
        more = " ..." if len(inner) > 5 else ""
        message += f". If {', '.join(inner[:5])}{more} are the classes, move them from {only} up into {train}"
    raise DataError(message)


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC), in which names of classes are compared."""
    return unicodedata.normalize("NFC", name)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))


def _count_pictures(folder: Path) -> int:
    """How many pictures lie in a folder itself, not below it."""
    endings = suffixes()
    files = (path for path in folder.iterdir() if path.suffix.lower() in endings and not is_hidden(path.name))
    return sum(path.is_file() for path in files)
