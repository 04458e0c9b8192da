"""Work on files in threads, some files ahead of who asks for the results."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def read_ahead(
    files: Iterable[Path], read: Callable[[Path], T], *, workers: int, ahead: int
) -> Iterator[tuple[Path, T]]:
    """Each file and what `read` makes of it, in their order.

    Args:
        files: As many as there are; they are asked for one by one.
        read: Called in threads. Pillow decodes and resizes outside the interpreter's lock.
        workers: Threads.
        ahead: Files that are read, or being read, before they are asked for: what bounds the memory.
    """
    waiting: deque[tuple[Path, Future[T]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for file in files:
                waiting.append((file, pool.submit(read, file)))
                if len(waiting) > ahead:
                    done, result = waiting.popleft()
                    yield done, result.result()
            while waiting:
                done, result = waiting.popleft()
                yield done, result.result()
        finally:  # whoever asked may have stopped
            for _, result in waiting:
                result.cancel()
