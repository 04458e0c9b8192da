"""Folders of pictures: which files in them are pictures, through links and subfolders, and which were passed over."""

import logging
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from .formats import missing_package, suffixes

logger = logging.getLogger(__name__)
NOT_MEANT = ("__MACOSX", "Thumbs.db", "desktop.ini")  # what systems leave beside pictures, as hidden files
ENDINGS_SHOWN = 5


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's: hidden ones, and what systems leave (thumbnails, '._cat.jpg')."""
    return name.startswith(".") or name in NOT_MEANT


def find(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> Iterator[Path]:
    """Every file that is named, and every picture (by its ending) in the folders that are, in order of their names.

    Links are followed. Hidden files and folders are left out unless they are named. Of all other files that are passed
    over, a log line for each folder says how many there are, and why.
    """
    for path in map(Path, [paths] if isinstance(paths, (str, os.PathLike)) else paths):
        if path.is_dir():
            passed_over: Counter[str] = Counter()
            yield from _walk(path, passed_over)
            warn_passed_over(path, passed_over)
        else:
            yield path


def list_pictures(folder: Path) -> tuple[list[Path], Counter[str]]:
    """The pictures in a folder and all below it, and how many others there are by reason, or by ending."""
    passed_over: Counter[str] = Counter()
    return list(_walk(folder, passed_over)), passed_over


def has_pictures(folder: Path) -> bool:
    """Whether a folder has a picture in it, or anywhere below."""
    return next(_walk(folder, Counter()), None) is not None


def _walk(folder: Path, passed_over: Counter[str]) -> Iterator[Path]:
    """The pictures of a folder in order of their paths; each folder is read once, however many links lead to it."""
    endings = suffixes()
    above = [parent.stat() for parent in (folder.resolve(), *folder.resolve().parents)]
    visited = {(info.st_dev, info.st_ino) for info in above}  # a link to one of them is a circle
    todo = [_entries(folder, passed_over)]
    while todo:
        if (path := next(todo[-1], None)) is None:
            todo.pop()
            continue
        try:
            info = path.stat()
        except OSError as error:
            passed_over["broken links" if path.is_symlink() else _closed(error)] += 1
            continue
        if stat.S_ISDIR(info.st_mode):
            if (identity := (info.st_dev, info.st_ino)) in visited:
                passed_over["links to folders that are read already"] += 1
                continue
            visited.add(identity)
            todo.append(_entries(path, passed_over))
        elif not stat.S_ISREG(info.st_mode):
            passed_over["FIFOs and devices"] += 1
        elif (ending := path.suffix.lower()) in endings:
            yield path
        else:
            passed_over[ending] += 1


def _entries(folder: Path, passed_over: Counter[str]) -> Iterator[Path]:
    """What is in a folder, by name, less what is hidden."""
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 (a Path takes ten times the memory of a name)
    except OSError as error:
        passed_over[_closed(error)] += 1
        return
    yield from (folder / name for name in names if not is_hidden(name))


def warn_passed_over(folder: Path, passed_over: Counter[str]) -> None:
    """Log which files of a folder were passed over, if any were; only the first of several processes does."""
    if passed_over and os.environ.get("RANK", "0") == "0":
        logger.warning("%s: passed over: %s", folder, summary(passed_over))


def summary(passed_over: Counter[str]) -> str:
    """How many files were passed over, for each reason."""
    parts, plain = [], Counter()
    for reason, count in passed_over.most_common():
        if reason and reason[0] != ".":  # no ending
            parts.append(f"{reason}: {count}")
        elif package := missing_package(reason):
            parts.append(f"{reason}: {count} ({package})")
        else:
            plain[reason] += count
    if plain:
        shown = [f"{count} {ending or 'without one'}" for ending, count in plain.most_common(ENDINGS_SHOWN)]
        more = " ..." if len(plain) > ENDINGS_SHOWN else ""
        parts.append(f"without a picture's ending: {plain.total()} ({', '.join(shown)}{more})")
    return "; ".join(parts)


def _closed(error: OSError) -> str:
    return f"not to be opened ({error.strerror})"


def spread(files: Sequence[Path], count: int) -> list[Path]:
    """At most `count` of the files, from all along the list, as folders are classes."""
    step = max(len(files) / count, 1)
    return [files[int(i * step)] for i in range(min(count, len(files)))]
