"""What was measured, as a file in benchmarks/results/: `tables.py` makes the tables of the documents of it."""

import datetime
import json
import statistics
import sys
from collections.abc import Sequence
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

from mnv3.deploy import processor

RESULTS = Path(__file__).resolve().parent / "results"


def write(file: Path, packages: Sequence[str], *, versions: dict[str, str] | None = None, **data: Any) -> None:
    """Write a record: the command, date, machine and versions, and what was measured.

    Args:
        file: Where to.
        packages: Those whose versions matter.
        versions: Of what is no Python package.
        data: What was measured; of lists, every entry gets a line.
    """
    about = {
        "command": command(sys.argv),
        "date": datetime.date.today().isoformat(),
        "machine": processor.name(),
        "versions": {name: metadata.version(name) for name in packages} | (versions or {}),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(as_text(about | data), encoding="utf-8")


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of the ratio, turn by turn."""
    low, middle, high = statistics.quantiles([a / b for a, b in zip(ours, theirs, strict=True)])
    return {"median": middle, "q1": low, "q3": high}


def ratio_as_text(of: dict[str, float]) -> str:
    """What `ratio` gave, for a table."""
    return f"{of['median']:.2f} ({of['q1']:.2f} - {of['q3']:.2f})"


def command(words: list[str]) -> str:
    """The script's call as others can give it: paths by their last name, and not where the record went to."""
    shown = [f"python benchmarks/{Path(words[0]).name}"]
    for before, word in pairwise(words):
        if "--json" not in (before, word):
            shown.append(Path(word).name if "/" in word and Path(word).exists() else word)
    return " ".join(shown)


def as_text(record: dict[str, Any]) -> str:
    """JSON with a line for each key, and for each entry of a list."""

    def value(content: Any) -> str:
        if isinstance(content, list) and content and isinstance(content[0], dict):
            return "[\n  " + ",\n  ".join(json.dumps(entry, ensure_ascii=False) for entry in content) + "\n ]"
        return json.dumps(content, ensure_ascii=False)

    return "{\n " + ",\n ".join(f'"{key}": {value(content)}' for key, content in record.items()) + "\n}\n"
