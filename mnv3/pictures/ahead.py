"""Work in threads, some items ahead of who asks for the results."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

S = TypeVar("S")
T = TypeVar("T")
MAX_WORKERS = 16


def read_ahead(items: Iterable[S], work: Callable[[S], T], *, pool: Executor, ahead: int) -> Iterator[tuple[S, T]]:
    """Each item and what `work` makes of it, in their order.

    Args:
        items: As many as there are; they are asked for one by one.
        work: Called in the pool's threads.
        pool: Threads.
        ahead: Items that are worked on, or done, before they are asked for: what bounds the memory.
    """
    waiting: deque[tuple[S, Future[T]]] = deque()
    for item in items:
        waiting.append((item, pool.submit(work, item)))
        if len(waiting) > ahead:
            done, result = waiting.popleft()
            yield done, result.result()
    while waiting:
        done, result = waiting.popleft()
        yield done, result.result()


@contextmanager
def single_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads in which PyTorch computes with one thread each; what they have not begun at the end is left.

    So as many are at work as the processor can run. The OpenMP threads of one network wait by spinning, and would take
    turns with those that decode pictures.
    """
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # the initializer has also set that of threads to come


def processors() -> int:
    """Of the machine's, those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers() -> int:
    """One for each processor, or for this process's share of them where torchrun started several; at most 16."""
    return max(1, min(processors() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), MAX_WORKERS))
