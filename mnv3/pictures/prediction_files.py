"""Predictions in a file: JSON lines, CSV or Parquet, which appears whole; what is written until then goes on later.

While a prediction runs, its lines are in FILE.partial (of several processes: FILE.partial-0-of-2 and so on), each a
JSON object, the first of them what the run was asked for. In the end they become FILE.
"""

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import islice, zip_longest
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from ..errors import DataError
from ..files.atomic import new_file
from .predict import Prediction

COLUMNS = ("index", "label", "prob")  # of each of the most likely classes
ROWS = 10_000  # of Parquet that are held at a time


def as_record(prediction: Prediction) -> dict[str, Any]:
    """A prediction as plain values: `file`, and `topk` or, of a file that cannot be read, `error`."""
    record: dict[str, Any] = {"file": str(prediction.file)}
    return record | ({"error": prediction.error} if prediction.error else {"topk": prediction.topk})


class PredictionFile:
    """One process's share of the predictions that become a file; a context.

    Args:
        file: Where: .jsonl, .csv or .parquet.
        settings: What the predictions depend on (model, topk ...); a run that goes on must have the same.
        resume: Go on with what an earlier run left.
        exist_ok: Replace `file`.
        rank, world: Which of how many processes this is; it has every `world`-th picture from the `rank`-th on.

    Raises:
        ValueError: The ending is none of these, there is nothing to go on with, or it is of other settings.
        FileExistsError: `file` is there, or the lines of a run that did not end are.
        ImportError: Parquet needs pyarrow.
    """

    def __init__(
        self,
        file: str | os.PathLike[str],
        settings: dict[str, Any],
        *,
        resume: bool = False,
        exist_ok: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.file, self.world = Path(file), world
        if self.file.suffix.lower() not in WRITERS:
            raise ValueError(f"{file}: expected a name that ends in {', '.join(WRITERS)}")
        if self.file.suffix.lower() == ".parquet":
            _pyarrow()
        if not self.file.parent.is_dir():
            raise ValueError(f"{self.file.parent}: no such folder")
        if self.file.exists() and not exist_ok:
            raise FileExistsError(f"{self.file} exists: choose another name, or replace it with --force")
        self.partial = self._partial(rank)
        if self.partial.exists() and not resume:
            raise FileExistsError(
                f"{self.partial} is of a run that did not end: go on with --resume, or remove it to start again"
            )
        if resume and not self.partial.exists():
            raise ValueError(f"nothing to resume: there is no {self.partial}")
        self.settings = json.loads(json.dumps(settings))
        self._done = self._whole_lines() if resume else 0
        self._lines: IO[str] | None = None

    def _partial(self, rank: int) -> Path:
        share = "" if self.world == 1 else f"-{rank}-of-{self.world}"
        return self.file.with_name(f"{self.file.name}.partial{share}")

    def _whole_lines(self) -> int:
        """Cut off what was not written to its end; returns how many predictions are there."""
        count, end = -1, 0  # the first line has the settings
        with open(self.partial, "rb+") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                if count < 0:
                    self._check_settings(line)
                count, end = count + 1, end + len(line)
            lines.truncate(end)
        if count < 0:
            self.partial.unlink()
        return max(count, 0)

    def _check_settings(self, line: bytes) -> None:
        try:
            before = dict(json.loads(line)["settings"])
        except (ValueError, LookupError, TypeError, RecursionError):
            raise ValueError(f"{self.partial} is not of `mnv3 predict --out`: remove it to start again") from None
        for key in before | self.settings:
            if before.get(key) != self.settings.get(key):
                raise ValueError(
                    f"{self.partial} was begun with {key} {before.get(key)!r}, not {self.settings.get(key)!r}: go on "
                    "with the same, or remove it to start again"
                )

    def remaining(self, files: Iterable[Path]) -> Iterator[Path]:
        """Those of this process's files that have no prediction yet.

        Raises:
            DataError: The files that have one are not the first of these.
        """
        files = iter(files)
        if self._done:
            with open(self.partial, encoding="utf-8") as lines:
                next(lines)
                for number, (line, file) in enumerate(zip_longest(lines, islice(files, self._done)), 1):
                    before = json.loads(line)["file"]
                    if file is None or before != str(file):
                        now = f"it is {file}" if file else "there is none"
                        raise DataError(
                            f"{self.partial} has {before} as picture {number}, now {now}: the pictures have changed; "
                            "remove it to start again"
                        )
        yield from files

    def __enter__(self) -> "PredictionFile":
        self._lines = open(self.partial, "a", encoding="utf-8")
        if not self._done and not self._lines.tell():
            self._write({"settings": self.settings})
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._lines:
            self._lines.close()

    def add(self, prediction: Prediction) -> None:
        """Write a prediction down; after a crash it is there."""
        self._write(as_record(prediction))

    def _write(self, record: dict[str, Any]) -> None:
        self._lines.write(json.dumps(record) + "\n")
        self._lines.flush()

    def finish(self) -> int:
        """Make the file of the lines of all processes, when all have written theirs; returns how many it has."""
        partials = [self._partial(rank) for rank in range(self.world)]
        with new_file(self.file) as draft:
            count = WRITERS[self.file.suffix.lower()](_in_order(partials), draft, self.settings["topk"])
        for partial in partials:
            partial.unlink()
        return count


def _in_order(partials: list[Path]) -> Iterator[dict[str, Any]]:
    """The records of all processes in the order of the pictures."""
    with ExitStack() as stack:
        shares = [stack.enter_context(open(partial, encoding="utf-8")) for partial in partials]
        for share in shares:
            next(share)
        for row in zip_longest(*shares):
            yield from (json.loads(line) for line in row if line is not None)


def _write_jsonl(records: Iterator[dict[str, Any]], file: Path, topk: int) -> int:
    count = 0
    with open(file, "w", encoding="utf-8") as lines:
        for record in records:
            lines.write(json.dumps(record) + "\n")
            count += 1
    return count


def _write_csv(records: Iterator[dict[str, Any]], file: Path, topk: int) -> int:
    columns = [f"{name}{rank}" for rank in range(1, topk + 1) for name in COLUMNS]
    count = 0
    with open(file, "w", encoding="utf-8", errors="surrogateescape", newline="") as rows:
        writer = csv.writer(rows)
        writer.writerow(["file", *columns, "error"])
        for record in records:
            cells = [entry[name] for entry in record.get("topk", ()) for name in COLUMNS]
            cells += [""] * (len(columns) - len(cells))
            writer.writerow([record["file"], *cells, record.get("error", "")])
            count += 1
    return count


def _write_parquet(records: Iterator[dict[str, Any]], file: Path, topk: int) -> int:
    arrow, parquet = _pyarrow()
    types = {"index": arrow.int32(), "label": arrow.string(), "prob": arrow.float32()}
    lists = {name: arrow.list_(types[name]) for name in COLUMNS}
    schema = arrow.schema({"file": arrow.string(), **lists, "error": arrow.string()}.items())
    count = 0
    with parquet.ParquetWriter(file, schema) as writer:
        while rows := list(islice(records, ROWS)):
            columns = {name: [[entry[name] for entry in row.get("topk", ())] for row in rows] for name in COLUMNS}
            columns["file"] = [row["file"].encode(errors="backslashreplace").decode() for row in rows]
            columns["error"] = [row.get("error") for row in rows]
            writer.write_table(arrow.table(columns, schema))
            count += len(rows)
    return count


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ImportError("Parquet needs pyarrow: pip install pyarrow, or write .jsonl or .csv") from None
    return pyarrow, pyarrow.parquet


Writer = Callable[[Iterator[dict[str, Any]], Path, int], int]
WRITERS: dict[str, Writer] = {".jsonl": _write_jsonl, ".csv": _write_csv, ".parquet": _write_parquet}
