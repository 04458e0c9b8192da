"""Every table of figures of the documents, made of its record in benchmarks/results/ or of the package: `make tables`.

    python benchmarks/tables.py [--check] [--root FOLDER]

In a document, a table stands between two comments, which readers do not see; so may a figure in a sentence:

    <!-- table: NAME -->
    ...
    <!-- end -->

Nothing is measured here. --check writes nothing, and fails where a document has something else than its record gives.
"""

import argparse
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import rendered
import rendered_speed

ROOT = Path(__file__).resolve().parent.parent
PLACE = re.compile(r"<!-- table: (?P<name>\S+) -->(?P<content>.*?)<!-- end -->", re.DOTALL)
FIGURES = re.compile(r"^ *\|[ :|-]*-:[ :|-]*\|$", re.MULTILINE)  # the rule below the heading of a table of numbers
Table = Callable[[Path], str]

TABLES: dict[str, Table] = {
    "models": rendered.models,
    "models.zh": partial(rendered.models, chinese=True),
    "weights": rendered.weights,
    "formats": rendered.formats,
    "export": rendered.export,
    "int8_cifar": rendered.int8_cifar,
    "int8_imagenet": rendered.int8_imagenet,
    "latency": rendered_speed.latency,
    "summary": rendered_speed.summary,
    "summary.zh": partial(rendered_speed.summary, chinese=True),
    "int8_speed": rendered_speed.int8_speed,
    "eager": rendered.eager,
    "browser": rendered.browser,
    "cifar10": rendered.cifar10,
    "cifar10_by_source": rendered.cifar10_by_source,
    "cifar10_by_source.zh": partial(rendered.cifar10_by_source, chinese=True),
    "cifar10_trials": rendered.cifar10_trials,
    "ablation": rendered.ablation,
    "training": rendered.training,
    "training_profile": rendered.training_profile,
    "gain": partial(rendered.training_gain, over="float32", between="to"),
    "gain.zh": partial(rendered.training_gain, over="float32", between="到"),
    "mixed_gain": partial(rendered.training_gain, over="bfloat16", between="to"),
    "mixed_gain.zh": partial(rendered.training_gain, over="bfloat16", between="到"),
    "predict": rendered.predict,
    "import_tflite": rendered.import_tflite,
}


def documents(root: Path) -> list[Path]:
    """Those that may have tables."""
    return [root / "README.md", root / "README.zh-CN.md", *sorted((root / "docs").glob("*.md"))]


def rewritten(text: str, results: Path) -> tuple[str, list[str]]:
    """A document with its tables made anew, and the names of those that were others.

    Args:
        text: The document.
        results: The folder of records.

    Raises:
        ValueError: A table that nobody makes, or figures in a table that is not made.
    """
    parted = []

    def fill(place: re.Match[str]) -> str:
        name, content = place["name"], place["content"]
        if name not in TABLES:
            raise ValueError(f"table {name!r} is unknown: expected one of {', '.join(TABLES)}")
        made = TABLES[name](results)
        if "\n" in content:  # on lines of its own, as far in as its first comment
            indent = place.string[place.string.rfind("\n", 0, place.start()) + 1 : place.start()]
            lines = [indent + line if line else "" for line in made.splitlines()]
            made = "\n".join(("", *lines, indent))
        if made != content:
            parted.append(name)
        return f"<!-- table: {name} -->{made}<!-- end -->"

    by_hand = FIGURES.search(PLACE.sub("", text))
    if by_hand:
        line = text[: text.index(by_hand[0])].count("\n")
        raise ValueError(f"line {line}: a table of figures outside of <!-- table: NAME --> and <!-- end -->")
    return PLACE.sub(fill, text), parted


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail where something would change")
    parser.add_argument("--root", type=Path, default=ROOT, metavar="FOLDER", help="the repository (this one)")
    args = parser.parse_args()
    wrong = False
    for path in documents(args.root):
        text = path.read_text(encoding="utf-8")
        try:
            made, parted = rewritten(text, args.root / "benchmarks" / "results")
        except (ValueError, OSError) as error:
            print(f"{path.relative_to(args.root)}: {error}", file=sys.stderr)
            wrong = True
            continue
        for name in parted:
            told = "is not what its record gives: `make tables`" if args.check else "made anew"
            print(f"{path.relative_to(args.root)}: table {name} {told}", file=sys.stderr if args.check else sys.stdout)
        if args.check:
            wrong |= bool(parted)
        elif made != text:
            path.write_text(made, encoding="utf-8")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
