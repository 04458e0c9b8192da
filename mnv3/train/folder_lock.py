"""One process at a time in a folder. The system frees the lock of a process that was killed."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: there is no lock
    fcntl = None

logger = logging.getLogger(__name__)
LOCK_FILE = ".lock"
_held: set[int] = set()  # descriptors


def _let_go() -> None:
    """In a child: workers that outlive a killed training for some seconds must not keep its lock."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


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
    descriptor = _acquire(folder / LOCK_FILE)
    try:
        yield
    finally:
        if descriptor is not None:
            (folder / LOCK_FILE).unlink(missing_ok=True)
            _held.discard(descriptor)
            os.close(descriptor)
        with suppress(OSError):
            for path in made:
                path.rmdir()


def _acquire(file: Path) -> int | None:
    if fcntl is None:
        return None
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), file.stat()):
                break
        except FileNotFoundError:
            pass
        except BlockingIOError:
            owner = os.read(descriptor, 500).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise FileExistsError(
                f"{file.parent} is in use by {owner}: wait until it ends, or choose another folder (--out)"
            ) from None
        except OSError as error:
            os.close(descriptor)
            file.unlink(missing_ok=True)
            logger.warning("%s cannot be locked (%s): start no second training in it", file.parent, error.strerror)
            return None
        os.close(descriptor)  # the process before has just removed this file
    _held.add(descriptor)
    with suppress(OSError):  # a full disk
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return descriptor
