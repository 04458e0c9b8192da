"""A file being written for another runtime: whole or not at all, and one line where the disk or the exporter fails."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ExportError
from ..files.atomic import new_file

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, the user's share of it, the size of one file


@contextmanager
def new_export(file: Path, *, room: int) -> Iterator[Path]:
    """`files.atomic.new_file`, in a folder that is made, which says so where there is no space left.

    Args:
        file: The name that the draft gets at the end of the block, with what is beside it.
        room: About how many bytes will be written; only to tell whether it failed for want of them.

    Raises:
        OSError: No space left, whatever the writer said of it.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with new_file(file) as draft:
            try:
                yield draft
            except Exception as error:
                if not _is_full(draft.parent, room):
                    raise
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
    except OSError as error:
        if error.errno not in FULL:
            raise
        reason = f"no space left in {file.parent}, or in {tempfile.gettempdir()} on the way: nothing was written"
        advice = f"make room for {room / 1e6:.1f} MB, or choose another folder"
        raise OSError(errno.ENOSPC, f"{reason}; {advice}", str(file)) from error


def _is_full(folder: Path, room: int) -> bool:
    """Whether the disk is. Libraries in C++ tell it each in its own way, or not at all.

    Args:
        folder: With what was written, which is removed.
        room: Bytes that ought to have been.
    """
    if not _has_room(folder, 1 << 16):  # what was written fills the disk
        return True
    shutil.rmtree(folder, ignore_errors=True)
    return not _has_room(folder.parent, room)  # or was removed by the one who wrote it


def _has_room(folder: Path, size: int) -> bool:
    """Whether a file of so many bytes can be written there."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(os.urandom(size))
    except OSError as error:
        return error.errno not in FULL
    return True


@contextmanager
def exporter_errors(what: str) -> Iterator[None]:
    """Turn whatever an exporter raises in the block into an ExportError of one line about `what`."""
    try:
        yield
    except (OSError, ExportError):
        raise
    except Exception as error:  # every exporter has its own
        reason = next(iter(str(error).strip().splitlines()), "no reason given")
        raise ExportError(f"{what}: the exporter failed: {type(error).__name__}: {reason[:300]}") from error


def size_of(folder: Path) -> int:
    """Bytes of all its files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
