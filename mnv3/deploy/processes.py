"""Callables measured in processes of their own, as two runtimes in one disturb each other's threads.

They take turns, one running while the others wait for their word, so that a change of the machine's speed meets all.
"""

import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ExportError
from .packages import quiet
from .timing import call_times

TURN = 0.3  # seconds at a time
Run = Callable[[Tensor], object]


@dataclass(frozen=True)
class Job:
    """What one process measures."""

    name: str  # for messages
    threads: int
    prepare: Callable[[], tuple[Callable[[], Run], Tensor]]  # picklable; gives what loads, and a batch (B, C, H, W)


@dataclass(frozen=True)
class Measured:
    """What it measured."""

    load_s: float  # from what was prepared to the first result
    memory_mb: float  # what loading and running added to the process at its peak
    milliseconds: list[float]  # of every call
    choice: str | None  # the candidate that an `Optimized` model took


def measure(jobs: Sequence[Job], seconds: float) -> list[Measured]:
    """Start a process for each job, let them take turns, and end them.

    Args:
        jobs: What to measure.
        seconds: How long each runs in all, at least one turn.

    Raises:
        ExportError: A process failed or died; the message names its job.
    """
    context = multiprocessing.get_context("spawn")
    workers, loaded = [], []
    try:
        for job in jobs:  # one after the other: how long each takes to load is measured, and `optimize` measures then
            pipe, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, job), daemon=True)
            with _omp_threads(job.threads):
                process.start()
            theirs.close()
            workers.append((process, pipe))
            loaded.append(_answer(job, pipe))
        times: list[list[float]] = [[] for _ in jobs]
        for _ in range(max(1, round(seconds / TURN))):
            for job, (_, pipe), calls in zip(jobs, workers, times, strict=True):
                pipe.send(min(TURN, seconds))
                calls += _answer(job, pipe)
        memory = []
        for job, (_, pipe) in zip(jobs, workers, strict=True):
            pipe.send(None)
            memory.append(_answer(job, pipe))
    finally:
        for process, _ in workers:
            process.kill()
            process.join()
    return [
        Measured(load_s, memory_mb, calls, choice)
        for (load_s, choice), memory_mb, calls in zip(loaded, memory, times, strict=True)
    ]


@contextmanager
def _omp_threads(count: int) -> Iterator[None]:
    """Have processes started in the block use so many threads; some runtimes read nothing else."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(count)
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


def _answer(job: Job, pipe: Connection) -> object:
    try:
        answer = pipe.recv()
    except EOFError:
        raise ExportError(f"{job.name}: its process died") from None
    if isinstance(answer, str):
        raise ExportError(f"{job.name}: {answer}")
    return answer


def _work(pipe: Connection, job: Job) -> None:
    """A job's process: load, say so, then run for as long as each message says."""
    try:
        with quiet():
            torch.set_num_threads(job.threads)
            load, x = job.prepare()
            before = _memory_mb(reset=True)
            start = time.perf_counter()
            run = load()
            with torch.inference_mode():
                run(x)
            load_s = time.perf_counter() - start
            call_times(run, x, seconds=TURN)
        choice = getattr(run, "choice", None)
        pipe.send((load_s, choice and choice.candidate))
        while seconds := pipe.recv():
            pipe.send(call_times(run, x, seconds=seconds))
        pipe.send(_memory_mb() - before)
    except Exception as error:  # goes on as the parent's
        pipe.send(f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}")


def _memory_mb(*, reset: bool = False) -> float:
    """This process's peak of resident memory since the last reset, which only Linux can do."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1e3
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (1e6 if sys.platform == "darwin" else 1e3)
