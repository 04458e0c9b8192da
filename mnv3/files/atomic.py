"""Files and folders that appear whole under their names or not at all, even if a process is killed or the power goes.

A draft lies in a folder `.NAME.xxxxxxxx.draft` beside what it becomes, locked by its process for as long as that lives:
so whoever writes the same name next can tell the drafts of the dead, and removes them. All is on the disk before it
gets its name.
"""

import ctypes
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from . import locks

DRAFT = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}\.draft")
OLD = ".old"  # a folder in a draft, for the folder that it replaces
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux: fcntl.h, fs.h


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all, even if the machine stops.

    Raises:
        OSError: It cannot be written; the error names `path`, not the draft.
    """
    try:
        with new_file(path) as draft:
            draft.write_bytes(content)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file to write, which appears under its name at the end of the block, or not at all.

    Whatever else is written beside the draft appears beside the file, before it.

    Args:
        path: Its name; what is there is replaced.
    """
    folder, lock = _make_draft(path)
    draft = folder / path.name
    try:
        yield draft
        for written in folder.rglob("*"):
            _sync(written)
        others = [written for written in folder.iterdir() if written != draft]
        for written in (*others, draft):
            _rename(written, path.parent / written.name)
        _sync(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        locks.release(lock)


@contextmanager
def new_folder(folder: Path, *, names: Collection[str] = (), needs: str = "", exist_ok: bool = False) -> Iterator[Path]:
    """A folder to write into, which appears under its name at the end of the block, or not at all.

    Args:
        folder: Its name, absolute.
        names: The files that a folder which is replaced may have.
        needs: The one that it must have, unless it is empty.
        exist_ok: Replace one that is there.

    Raises:
        FileExistsError: It may not be replaced.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_dead_drafts(folder.parent, folder.name)
    _check_replaceable(folder, names, needs, exist_ok=exist_ok)
    with new_file(folder) as draft:
        draft.mkdir()
        yield draft


def _check_replaceable(folder: Path, names: Collection[str], needs: str, *, exist_ok: bool) -> None:
    if not folder.exists():
        return
    if not exist_ok:
        raise FileExistsError(f"{folder} exists: choose another folder, or replace it (exist_ok=True, --force)")
    if not folder.is_dir():
        raise FileExistsError(f"{folder} is not only a weights folder and is not replaced: it is a file")
    files = list(folder.iterdir())
    if others := sorted(f.name for f in files if f.name not in names or f.is_symlink() or not f.is_file()):
        raise FileExistsError(f"{folder} is not only a weights folder and is not replaced: it has {', '.join(others)}")
    if files and not (folder / needs).is_file():
        raise FileExistsError(f"{folder} is no weights folder and is not replaced: it has no {needs}")


def is_draft(path: Path) -> bool:
    """Whether this is what is being written, or was when its process was killed."""
    return DRAFT.fullmatch(path.name) is not None and path.is_dir()


def remove_dead_drafts(folder: Path, name: str | None = None) -> None:
    """Remove the drafts in a folder that no living process holds; one that lacks only its name gets it.

    Args:
        folder: Where they lie.
        name: Of what they were to become; by default of anything.
    """
    for draft in filter(is_draft, list(folder.iterdir())):
        final = folder / DRAFT.fullmatch(draft.name)["name"]
        if name not in (None, final.name):
            continue
        try:
            lock = locks.acquire(draft)
        except OSError:  # held, gone, or no one can tell
            continue
        if lock is None:
            continue
        if (draft / OLD / final.name).exists() and (draft / final.name).exists() and not final.exists():
            (draft / final.name).replace(final)  # killed between the two renames of `_rename`
        shutil.rmtree(draft, ignore_errors=True)
        locks.release(lock)


def _make_draft(path: Path) -> tuple[Path, int | None]:
    """A new folder beside `path`, locked where there are locks; the drafts of dead processes are removed first."""
    remove_dead_drafts(path.parent, path.name)
    while True:
        draft = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".draft", dir=path.parent))
        try:
            return draft, locks.acquire(draft)
        except (BlockingIOError, FileNotFoundError):  # another process took it for a dead one's before it was locked
            continue
        except locks.NoLocksError:
            return draft, None


def _rename(draft: Path, path: Path) -> None:
    """Give a draft its name. A folder is replaced by a folder alone: at once if the system can, else by way of OLD."""
    if draft.is_dir() and path.is_dir():
        if _exchange(draft, path):
            return
        (draft.parent / OLD).mkdir(exist_ok=True)
        path.replace(draft.parent / OLD / path.name)
    draft.replace(path)


def _exchange(one: Path, other: Path) -> bool:
    """Let two files or folders swap their names at once, if the system can."""
    try:
        swap = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):  # not Linux, or an old one
        return False
    return swap(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk; not all systems do so for folders."""
    if path.is_dir():
        with suppress(OSError):
            _fsync(os.open(path, os.O_RDONLY))
    else:
        _fsync(os.open(path, os.O_RDWR))


def _fsync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
