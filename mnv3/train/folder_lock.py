"""One process at a time in a folder. The system frees the lock of a process that was killed."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..files import locks

logger = logging.getLogger(__name__)
LOCK_FILE = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other process that asks for the same out of a folder while it lasts.

    The folder is made, and taken away again if nothing was written into it.

    Args:
        folder: Which.

    Raises:
        FileExistsError: Another process has it, or it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: choose another folder (--out)")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = _acquire(folder / LOCK_FILE)
    try:
        yield
    finally:
        if lock is not None:
            (folder / LOCK_FILE).unlink(missing_ok=True)
            locks.release(lock)
        with suppress(OSError):
            for path in made:
                path.rmdir()


def _acquire(file: Path) -> int | None:
    """Lock a file that says which process has it; None, with a warning, where that cannot be."""
    while True:
        try:
            lock = locks.acquire(file, create=True)
        except FileNotFoundError:  # the process before has just removed it
            continue
        except BlockingIOError:
            owner = _owner(file) or "another process"
            raise FileExistsError(
                f"{file.parent} is in use by {owner}: wait until it ends, or choose another folder (--out)"
            ) from None
        except locks.NoLocksError as error:
            file.unlink(missing_ok=True)
            logger.warning("%s cannot be locked (%s): start no second training in it", file.parent, error.strerror)
            return None
        break
    if lock is not None:
        with suppress(OSError):  # a full disk
            os.ftruncate(lock, 0)
            os.write(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return lock


def _owner(file: Path) -> str:
    try:
        return file.read_bytes()[:500].decode(errors="replace").strip()
    except OSError:
        return ""
