"""Latency of models in runtimes, side by side: `mnv3 bench`.

Every cell of a table (a model in a runtime, with a number of threads and a batch) has a process of its own, as two
runtimes in one disturb each other's threads. They take turns, one running while the others wait for their word, so that
a change of the machine's speed meets all of them.
"""

import copy
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import loading
from .deploy import runtime
from .deploy.drafts import failed
from .deploy.exporter import check_size, deployable, describe
from .deploy.fastest import CANDIDATES, optimize
from .deploy.formats import FORMATS, Graph
from .deploy.runtime import quiet
from .deploy.seal import unchecked
from .deploy.timing import repeat
from .errors import ExportError, names
from .text import markdown_table

IN_TORCH = ("eager", "fused", "onednn", "compile", "optimize")
OURS_ONLY = ("fused", "onednn", "optimize")  # of the runtimes
RUNTIMES = (*IN_TORCH, *(name for name in FORMATS if name != "coreml"))
TURN = 0.3  # seconds at a time


@dataclass(frozen=True)
class Case:
    """One cell."""

    model: str
    runtime: str
    threads: int
    batch: int
    size: int
    file: str | None  # exported


@dataclass(frozen=True)
class Cell:
    """What was measured of it."""

    model: str
    runtime: str
    threads: int
    batch: int
    size: int
    ms: float  # median time of a batch
    q1: float  # quartiles of it
    q3: float
    ratio: float  # of `ms` to that of the first runtime of the same row
    images_per_s: float
    load_s: float  # from files, or from a model in memory, to the first result
    memory_mb: float  # what that and running it added to the process at its peak
    file_mb: float | None
    macs: int | None  # of one picture
    choice: str | None  # what `optimize` took


def bench(
    models: Sequence[str],
    *,
    runtimes: Sequence[str] = ("eager", "fused", "onnx"),
    threads: Sequence[int] = (1,),
    batches: Sequence[int] = (1,),
    size: int = 224,
    seconds: float = 3.0,
) -> list[Cell]:
    """Measure every model in every runtime.

    Args:
        models: Names of this package, of timm ('timm/resnet50') or torchvision ('torchvision/resnet50'), with random
            weights but for 'arch.tag'; weights folders; exported files, which have a runtime of their own.
        runtimes: Of `RUNTIMES`. What only this package's models can do is left out of the others' rows.
        threads: Numbers of threads.
        batches: Numbers of pictures at a time.
        size: Side of the pictures, in pixels.
        seconds: How long each cell is measured in all.

    Raises:
        ValueError: An unknown model or runtime, or a file that takes other batches or sizes.
        ImportError: A runtime is not installed.
        ExportError: A model cannot be had in a runtime.
    """
    for batch in batches:
        check_size(size, batch)
    for name in names("runtimes", runtimes, RUNTIMES):
        if name in FORMATS:
            with quiet():
                runtime.require(name, write=True)
    cells, macs = [], {name: count_macs(name, size) for name in models}
    with tempfile.TemporaryDirectory() as folder:
        for batch in batches:
            cases = [case for model in models for case in _cases(model, runtimes, batch, size, Path(folder))]
            for count in threads:
                cells += _measure([replace(case, threads=count) for case in cases], seconds, macs)
    return cells


def _cases(model: str, runtimes: Sequence[str], batch: int, size: int, folder: Path) -> list[Case]:
    """What to run of one model; exported files are written here, once for all numbers of threads."""
    if loading.kind_of(model) == "exported":
        meta = runtime.load(model).metadata
        if "size" not in meta["dynamic"] and meta["input_size"][-1] != size:
            raise ValueError(f"{model} takes pictures of {meta['input_size'][-1]} px: give --size")
        if "batch" not in meta["dynamic"] and meta["batch"] != batch:
            raise ValueError(f"{model} takes {meta['batch']} pictures at a time, not {batch}")
        return [Case(model, runtime.format_of(Path(model)), 1, batch, size, model)]
    found = []
    for name in runtimes:
        if (name in OURS_ONLY and not _is_ours(model)) or (batch > 1 and name in FORMATS and not FORMATS[name].batches):
            continue
        file = None
        if name in FORMATS:
            file = folder / f"{len(list(folder.iterdir()))}-{batch}{FORMATS[name].suffix}"
            _write(model, name, batch, size, file)
        found.append(Case(model, name, 1, batch, size, file and str(file)))
    return found


def _is_ours(name: str) -> bool:
    return loading.kind_of(name) not in loading.LIBRARIES


def build(name: str) -> nn.Module:
    """A model in eval mode by its name, as `bench` takes it.

    Raises:
        ValueError: There is none of this name.
    """
    model = loading.resolve(name, pretrained=False).eval()
    return model if _is_ours(name) else _alive(model)


def _alive(model: nn.Module) -> nn.Module:
    """Ones in norms that start at zero: the branches that they end give nothing, and some runtimes leave them out."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and name.endswith("weight") and not parameter.any():
            nn.init.ones_(parameter)
    return model


def _write(name: str, to: str, batch: int, size: int, file: Path) -> None:
    """Export for speed alone: ours as `mnv3 export` does, others as they are."""
    model = build(name)
    ours = _is_ours(name)
    metadata = describe(model, to=to, size=size, batch=batch) if ours else {"format": to, "stride": 32}
    example = torch.zeros(batch, 3, size, size)
    graph = Graph(deployable(model) if ours else copy.deepcopy(model), example, (), False, metadata)
    with quiet(), failed(f"{name} to {to}"):
        FORMATS[to].write(graph, file)


def count_macs(name: str, size: int) -> int | None:
    """Multiply-adds of the convolutions and linear layers, for one picture; None for an exported file."""
    from torch.utils.flop_counter import FlopCounterMode

    if runtime.format_of(Path(name)):
        return None
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        build(name)(torch.zeros(1, 3, size, size))
    return counter.get_total_flops() // 2


def _measure(cases: Sequence[Case], seconds: float, macs: dict[str, int | None]) -> list[Cell]:
    """Start the processes of one table, let them take turns, and sum up."""
    context = multiprocessing.get_context("spawn")
    before = os.environ.get("OMP_NUM_THREADS")
    workers, ready = [], []
    try:
        for case in cases:  # one after the other: how long each takes to load is measured, and `optimize` measures then
            os.environ["OMP_NUM_THREADS"] = str(case.threads)  # some runtimes read nothing else
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, case), daemon=True)
            process.start()
            theirs.close()
            workers.append((process, ours))
            ready.append(_answer(case, ours))
        times: list[list[float]] = [[] for _ in cases]
        for _ in range(max(1, round(seconds / TURN))):
            for case, (_, pipe), found in zip(cases, workers, times, strict=True):
                pipe.send(TURN)
                found += _answer(case, pipe)
        for case, (_, pipe), state in zip(cases, workers, ready, strict=True):
            pipe.send(None)
            state["memory_mb"] = _answer(case, pipe)
    finally:
        for process, _ in workers:
            process.kill()
            process.join()
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before
    first: dict[str, float] = {}
    cells = []
    for case, state, found in zip(cases, ready, times, strict=True):
        q1, median, q3 = statistics.quantiles(found) if len(found) > 1 else found * 3
        cells.append(
            Cell(
                **{key: value for key, value in asdict(case).items() if key != "file"},
                ms=median,
                q1=q1,
                q3=q3,
                ratio=median / first.setdefault(case.model, median),
                images_per_s=1e3 * case.batch / median,
                file_mb=_megabytes(Path(case.file)) if case.file else None,
                macs=macs[case.model],
                **state,
            )
        )
    return cells


def _answer(case: Case, pipe: Any) -> Any:
    try:
        answer = pipe.recv()
    except EOFError:
        raise ExportError(f"{case.model} in {case.runtime}: its process died") from None
    if isinstance(answer, str):
        raise ExportError(f"{case.model} in {case.runtime}: {answer}")
    return answer


def _megabytes(file: Path) -> float:
    """With its .bin, where it has one."""
    return sum(path.stat().st_size for path in (file, file.with_suffix(".bin")) if path.exists()) / 1e6


def _work(pipe: Any, case: Case) -> None:
    """One cell's process: load, say so, then run for as long as each message says."""
    try:
        with quiet():
            torch.set_num_threads(case.threads)
            x = torch.randn(case.batch, 3, case.size, case.size, generator=torch.Generator().manual_seed(0))
            model = build(case.model) if case.file is None else None
            before = _memory_mb(reset=True)
            start = time.perf_counter()
            run, choice = _runner(case, model, x)
            with torch.inference_mode():
                run(x)
            state = {"load_s": time.perf_counter() - start, "choice": choice}
            repeat(run, x, seconds=TURN)
        pipe.send(state)
        while seconds := pipe.recv():
            pipe.send(repeat(run, x, seconds=seconds))
        pipe.send(_memory_mb() - before)
    except Exception as error:  # goes on as the parent's
        pipe.send(f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}")


def _runner(case: Case, model: nn.Module | None, x: torch.Tensor) -> tuple[Any, str | None]:
    if case.file == case.model:
        return runtime.load(case.file, threads=case.threads).run, None
    if case.file:
        return runtime.OPENERS[case.runtime](unchecked(Path(case.file)), case.threads)[0], None
    if case.runtime == "optimize":
        fast = optimize(model, batch=case.batch, size=case.size)
        return fast, fast.choice.candidate
    if case.runtime == "compile":
        return torch.compile(model, dynamic=False), None
    return CANDIDATES[case.runtime](model, x), None


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


def machine() -> str:
    """What the figures were measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{name or platform.machine()}, {os.cpu_count()} cores, {capability}, torch {torch.__version__}"


def markdown(cells: Sequence[Cell]) -> str:
    """A table for each number of threads and batch: milliseconds, and the ratio to the row's first runtime."""
    parts = [f"{machine()}; {cells[0].size} px; median ms (ratio to the first column)\n"]
    for threads, batch in dict.fromkeys((cell.threads, cell.batch) for cell in cells):
        table = [cell for cell in cells if (cell.threads, cell.batch) == (threads, batch)]
        columns = list(dict.fromkeys(cell.runtime for cell in table))
        parts.append(f"{threads} thread{'s' * (threads > 1)}, batch {batch}:\n")
        rows = [("model", "MACs / M", *columns)]
        for name in dict.fromkeys(cell.model for cell in table):
            row = {cell.runtime: cell for cell in table if cell.model == name}
            numbers = [f"{c.ms:.2f} ({c.ratio:.2f})" if (c := row.get(column)) else "-" for column in columns]
            macs = next(iter(row.values())).macs
            rows.append((name, f"{macs / 1e6:.1f}" if macs else "-", *numbers))
        parts.append(markdown_table(rows, "<>" + ">" * len(columns)) + "\n")
    return "\n".join(parts)


def as_json(cells: Sequence[Cell]) -> str:
    """All that was measured, with the machine."""
    return json.dumps({"machine": machine(), "cells": [asdict(cell) for cell in cells]}, indent=1) + "\n"
