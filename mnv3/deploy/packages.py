"""Optional packages: asked for by name, kept quiet."""

import importlib
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .formats import FORMATS


def require(name: str, *, write: bool = False, int8: bool = False) -> None:
    """Import the packages that a format needs.

    Args:
        name: The format.
        write: Also those that write it, and not only those that run it.
        int8: Also those that write its 8-bit form.

    Raises:
        ImportError: One is missing; the message has the command that helps.
    """
    entry = FORMATS[name]
    for module in entry.runtime + (entry.writers if write or int8 else ()) + (entry.int8_writers if int8 else ()):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ImportError(f"{name} needs {module} ({error}): pip install 'mnv3[{entry.extra}]'") from None


_lock, _quiet_now = threading.Lock(), []


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what libraries in C++ and their helpers print off the terminal, and what they report from going home.

    OpenVINO's converter and NNCF tell a statistics service of every use, but not where CI=true. Both are of the whole
    process, so of several threads the first changes them and the last changes them back.
    """
    with _lock:
        undo = _quiet_now[0] if _quiet_now else _silence()
        _quiet_now.append(undo)
    try:
        yield
    finally:
        with _lock:
            _quiet_now.pop()
            if not _quiet_now:
                undo()


def _silence() -> Callable[[], None]:
    """Start to be quiet; returns what ends it."""
    ci, streams = os.environ.get("CI"), (sys.stdout, sys.stderr)
    for stream in streams:
        stream.flush()
    saved = [os.dup(number) for number in (1, 2)]
    with tempfile.TemporaryFile() as sink:
        for number in (1, 2):
            os.dup2(sink.fileno(), number)
    os.environ["CI"] = "true"

    def undo() -> None:
        for stream in streams:
            stream.flush()
        for number, before in zip((1, 2), saved, strict=True):
            os.dup2(before, number)
            os.close(before)
        os.environ.pop("CI", None)
        os.environ.update({"CI": ci} if ci is not None else {})

    return undo
