"""Locks of files and folders, which the system frees when their process ends, however it ends."""

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: there are none
    fcntl = None

_held: set[int] = set()  # descriptors


class NoLocksError(OSError):
    """This file system has no locks."""


def _close_in_child() -> None:
    """A child that outlives a killed process for some seconds must not keep its locks."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def acquire(path: Path, *, create: bool = False) -> int | None:
    """Lock a file or a folder for this process.

    Args:
        path: Which.
        create: Make the file if it is not there, and open it for writing.

    Returns:
        The open descriptor that holds the lock, for `release`; None where there are no locks.

    Raises:
        BlockingIOError: Another process, or another call in this one, has it.
        FileNotFoundError: It is not there, or was removed just now.
        NoLocksError: The file system cannot.
        OSError: It cannot be opened.
    """
    if fcntl is None:
        return None
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT if create else os.O_RDONLY, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise FileNotFoundError(path)  # another one has its name now
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, (BlockingIOError, FileNotFoundError)):
            raise
        raise NoLocksError(error.errno, error.strerror) from None
    _held.add(descriptor)
    return descriptor


def release(descriptor: int | None) -> None:
    """Give back what `acquire` returned; a forked child, which has no locks, may call it too."""
    if descriptor in _held:
        _held.discard(descriptor)
        os.close(descriptor)
