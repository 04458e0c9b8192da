"""Latency of models in runtimes, side by side: `mnv3 bench`.

Every cell of a table (a model in a runtime, with a number of threads and a batch) has a process of its own; see
`deploy.processes`.
"""

import copy
import datetime
import functools
import hashlib
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from . import loading
from .deploy import processor, runtime
from .deploy.exporter import check_size, deployable, describe
from .deploy.fastest import CANDIDATES, optimize
from .deploy.formats import FORMATS
from .deploy.packages import quiet, require
from .deploy.processes import Job, Run, measure
from .deploy.processor import Limit
from .deploy.seal import read_unchecked
from .deploy.writers import Graph
from .deploy.writing import exporter_errors
from .errors import names
from .text import markdown_table

IN_TORCH = ("eager", "fused", "onednn", "compile", "optimize")
OURS_ONLY = ("fused", "onednn", "optimize")  # of the runtimes
RUNTIMES = (*IN_TORCH, *(name for name in FORMATS if name != "coreml"))


@dataclass(frozen=True)
class Case:
    """What to measure: one cell of the table."""

    model: str
    runtime: str
    threads: int
    batch: int
    size: int
    file: str | None  # exported


@dataclass(frozen=True)
class Cell:
    """What was measured of a case."""

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
    limit: Limit  # with as many threads

    @property
    def share(self) -> float | None:
        """What it reaches of the limit in float32; None for an exported file, which can be in 8 bits."""
        return self.macs and 2e-9 * self.macs * self.images_per_s / self.limit.float32


def bench(
    models: Sequence[str],
    *,
    runtimes: Sequence[str] = ("eager", "fused", "onnx"),
    threads: Sequence[int] = (1,),
    batches: Sequence[int] = (1,),
    size: int = 224,
    seconds: float = 3.0,
    files: Path | None = None,
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
        files: A folder to leave the exports in. Those of an earlier call are taken from it, as they were written then.

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
                require(name, write=True)
    cells, macs = [], {name: count_macs(name, size) for name in models}
    with tempfile.TemporaryDirectory() as temporary:
        folder = files or Path(temporary)
        cases = [case for batch in batches for model in models for case in _cases(model, runtimes, batch, size, folder)]
        limits = {count: processor.measure_limit(count, seconds=min(seconds, 1)) for count in threads}
        for batch in batches:
            for count in threads:
                table = [replace(case, threads=count) for case in cases if case.batch == batch]
                cells += _measure(table, seconds, macs, limits[count])
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
    cases = []
    for name in runtimes:
        if (name in OURS_ONLY and not _is_ours(model)) or (batch > 1 and name in FORMATS and not FORMATS[name].batches):
            continue
        file = None
        if name in FORMATS:
            stem = hashlib.sha256(f"{model} {batch} {size}".encode()).hexdigest()[:16]
            file = folder / name / f"{stem}{FORMATS[name].suffix}"  # two formats have a .bin
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(dir=file.parent) as draft:
                    _write(model, name, batch, size, Path(draft) / file.name)
                    for part in sorted(Path(draft).iterdir(), key=lambda part: part.suffix == file.suffix):
                        part.replace(file.parent / part.name)  # the file itself last: what is there is whole
        cases.append(Case(model, name, 1, batch, size, file and str(file)))
    return cases


def _is_ours(name: str) -> bool:
    return loading.kind_of(name) not in loading.LIBRARIES


def build(name: str) -> nn.Module:
    """A model in eval mode by its name, as `bench` takes it.

    Raises:
        ValueError: There is none of this name.
    """
    model = loading.resolve(name, pretrained=False).eval()
    return model if _is_ours(name) else _without_zero_branches(model)


def _without_zero_branches(model: nn.Module) -> nn.Module:
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
    graph = Graph(
        model=deployable(model) if ours else copy.deepcopy(model),
        example=torch.zeros(batch, 3, size, size),
        dynamic=(),
        half=False,
        metadata=metadata,
    )
    with quiet(), exporter_errors(f"{name} to {to}"):
        FORMATS[to].write(graph, file)


def count_macs(name: str, size: int) -> int | None:
    """Multiply-adds of the convolutions and linear layers, for one picture; None for an exported file."""
    from torch.utils.flop_counter import FlopCounterMode

    if runtime.format_of(Path(name)):
        return None
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        build(name)(torch.zeros(1, 3, size, size))
    return counter.get_total_flops() // 2


def _measure(cases: Sequence[Case], seconds: float, macs: Mapping[str, int | None], limit: Limit) -> list[Cell]:
    """Measure the cases of one table, and sum up."""
    jobs = [Job(f"{case.model} in {case.runtime}", case.threads, functools.partial(_prepare, case)) for case in cases]
    first: dict[str, float] = {}
    cells = []
    for case, measured in zip(cases, measure(jobs, seconds), strict=True):
        times = measured.milliseconds
        q1, median, q3 = statistics.quantiles(times) if len(times) > 1 else times * 3
        cells.append(
            Cell(
                model=case.model,
                runtime=case.runtime,
                threads=case.threads,
                batch=case.batch,
                size=case.size,
                ms=median,
                q1=q1,
                q3=q3,
                ratio=median / first.setdefault(case.model, median),
                images_per_s=1e3 * case.batch / median,
                load_s=measured.load_s,
                memory_mb=measured.memory_mb,
                file_mb=_megabytes(Path(case.file)) if case.file else None,
                macs=macs[case.model],
                choice=measured.choice,
                limit=limit,
            )
        )
    return cells


def _megabytes(file: Path) -> float:
    """Size of a file, with its .bin where it has one."""
    return sum(path.stat().st_size for path in (file, file.with_suffix(".bin")) if path.exists()) / 1e6


def _prepare(case: Case) -> tuple[Callable[[], Run], torch.Tensor]:
    """In a process of its own: what loads a case, and a batch for it."""
    x = torch.randn(case.batch, 3, case.size, case.size, generator=torch.Generator().manual_seed(0))
    model = build(case.model) if case.file is None else None
    return functools.partial(_load, case, model, x), x


def _load(case: Case, model: nn.Module | None, x: torch.Tensor) -> Run:
    if case.file == case.model:
        return runtime.load(case.file, threads=case.threads).run
    if case.file:
        return runtime.OPENERS[case.runtime](read_unchecked(Path(case.file)), case.threads)[0]
    if case.runtime == "optimize":
        return optimize(model, batch=case.batch, size=case.size)
    if case.runtime == "compile":
        return torch.compile(model, dynamic=False)
    return CANDIDATES[case.runtime](model, x)


def machine() -> str:
    """What the figures were measured on."""
    return f"{processor.name()}, torch {torch.__version__}"


def markdown(cells: Sequence[Cell]) -> str:
    """A table for each number of threads and batch: ms, ratio to the row's first runtime, share of the limit."""
    parts = [f"{machine()}; {cells[0].size} px; median ms (ratio to the first column; share of the matrix rate)\n"]
    for threads, batch in dict.fromkeys((cell.threads, cell.batch) for cell in cells):
        table = [cell for cell in cells if (cell.threads, cell.batch) == (threads, batch)]
        columns = list(dict.fromkeys(cell.runtime for cell in table))
        parts.append(f"{threads} thread{'s' * (threads > 1)}, batch {batch}; matrix rate: {table[0].limit}:\n")
        rows = [("model", "MACs / M", *columns)]
        for name in dict.fromkeys(cell.model for cell in table):
            row = {cell.runtime: cell for cell in table if cell.model == name}
            numbers = [_figures(row[column]) if column in row else "-" for column in columns]
            macs = next(iter(row.values())).macs
            rows.append((name, f"{macs / 1e6:.1f}" if macs else "-", *numbers))
        parts.append(markdown_table(rows, "<>" + ">" * len(columns)) + "\n")
    return "\n".join(parts)


def _figures(cell: Cell) -> str:
    share = f"; {100 * cell.share:.0f} %" if cell.share else ""
    return f"{cell.ms:.2f} ({cell.ratio:.2f}{share})"


def as_json(cells: Sequence[Cell]) -> str:
    """All that was measured, with date, machine and versions."""
    record = {
        "date": datetime.date.today().isoformat(),
        "machine": processor.name(),
        "versions": processor.versions(),
        "cells": [asdict(cell) for cell in cells],
    }
    return json.dumps(record, indent=1) + "\n"
