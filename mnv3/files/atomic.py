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

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

DRAFT = ".draft"
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux: fcntl.h, fs.h


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all, even if the machine stops."""
    with new_file(path) as draft:
        draft.write_bytes(content)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file to write, which appears under its name at the end of the block, or not at all.

    Args:
        path: Its name; a file that is there is replaced.
    """
    with _draft_of(path) as folder:
        draft = folder / path.name
        yield draft
        _sync(draft)
        draft.replace(path)
        _sync(path.parent)


@contextmanager
def new_folder(folder: Path, *, names: Collection[str], needs: str, exist_ok: bool = False) -> Iterator[Path]:
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
    _remove_dead(folder)
    _check_replaceable(folder, names, needs, exist_ok=exist_ok)
    with _draft_of(folder) as draft:
        new = draft / "new"
        new.mkdir()
        yield new
        for path in (*new.rglob("*"), new):
            _sync(path)
        if folder.exists() and not _exchange(new, folder):
            folder.replace(draft / "old")
        if new.exists() and not folder.exists():
            new.replace(folder)  # where a process is killed before this, `_remove_dead` does it
        _sync(folder.parent)


def _check_replaceable(folder: Path, names: Collection[str], needs: str, *, exist_ok: bool) -> None:
    if not folder.exists():
        return
    if not exist_ok:
        raise FileExistsError(f"{folder} exists: choose another folder, or replace it (exist_ok=True, --force)")
    if not folder.is_dir():
        raise FileExistsError(f"{folder} is not only a weights folder and is not replaced: it is a file")
    found = list(folder.iterdir())
    if others := sorted(f.name for f in found if f.name not in names or f.is_symlink() or not f.is_file()):
        raise FileExistsError(f"{folder} is not only a weights folder and is not replaced: it has {', '.join(others)}")
    if found and not (folder / needs).is_file():
        raise FileExistsError(f"{folder} is no weights folder and is not replaced: it has no {needs}")


@contextmanager
def _draft_of(path: Path) -> Iterator[Path]:
    """A locked folder beside `path`, gone at the end; those that dead processes left are removed first."""
    _remove_dead(path)
    while True:
        draft = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=DRAFT, dir=path.parent))
        with suppress(FileNotFoundError):  # another process took it for a dead one's before it was locked
            lock = _lock(draft)
            break
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _remove_dead(path: Path) -> None:
    """Remove the drafts of `path` that no living process holds; one that lacks only its name gets it."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}{re.escape(DRAFT)}")
    drafts = [entry for entry in path.parent.iterdir() if ours.fullmatch(entry.name) and entry.is_dir()]
    for draft in drafts:
        try:
            lock = _lock(draft)
        except FileNotFoundError:  # held, or gone
            continue
        if lock is None:
            continue
        if (draft / "old").exists() and (draft / "new").exists() and not path.exists():
            (draft / "new").replace(path)
        shutil.rmtree(draft, ignore_errors=True)
        os.close(lock)


def _lock(folder: Path) -> int | None:
    """The descriptor that holds a folder's lock, which ends with the process; None where there are no such locks.

    Raises:
        FileNotFoundError: Another process holds it, or has removed the folder.
    """
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder.stat()
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, (BlockingIOError, FileNotFoundError)):
            raise FileNotFoundError(folder) from None
        return None
    return descriptor


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders swap their names at once, if the system can."""
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
