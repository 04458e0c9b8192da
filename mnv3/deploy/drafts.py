"""A file being written: beside its place until it is whole, and one line where there is no room for it."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ExportError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, the user's share of it, the size of one file


@contextmanager
def draft(file: Path, *, room: int) -> Iterator[Path]:
    """A path of the same name in a folder beside it; what is there in the end takes its place under its own name.

    Args:
        file: Where.
        room: Bytes that it will have, about; only to tell whether it failed for want of them.

    Raises:
        OSError: No space left, whatever the writer said of it.
    """
    folder = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{file.name}.", dir=file.parent))
        yield folder / file.name
        for path in sorted(folder.iterdir(), key=lambda path: path.name == file.name):  # the one that is opened: last
            target = file.parent / path.name
            if target.is_dir():
                target.replace(folder / f"old {path.name}")
            path.replace(target)
    except Exception as error:
        if not _for_want_of_space(error, folder, room):
            raise
        reason = f"no space left in {file.parent}, or in {tempfile.gettempdir()} on the way: nothing was written"
        advice = f"make room for {room / 1e6:.1f} MB, or choose another folder"
        raise OSError(errno.ENOSPC, f"{reason}; {advice}", str(file)) from error
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _for_want_of_space(error: Exception, folder: Path | None, room: int) -> bool:
    """Whether that is why writing into `folder` failed. Libraries in C++ tell it each in its own way, or not at all."""
    if getattr(error, "errno", None) in FULL:
        return True
    if folder is None:
        return False
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
def failed(what: str) -> Iterator[None]:
    """ExportError in place of whatever an exporter raises."""
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
