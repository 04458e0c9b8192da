"""The models of a comparison: what each is called, how accurate it is and on what, what it costs."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .. import bench as benchmark, catalog, loading
from ..arch import VARIANTS, count_macs
from ..pictures.evaluate import Metrics
from ..train.recipe import load
from ..train.run_folder import RECIPE_FILE, TEST_FILE

IMAGENET, CIFAR = "ImageNet-1k val", {"cifar10": "CIFAR-10 test", "cifar100": "CIFAR-100 test"}
LIBRARIES = ("mnv3", "timm", "torchvision", "published")  # the last: figures of others, from a file
NUMBER = re.compile(r"\d+(\.\d+)?")


@dataclass(frozen=True)
class Point:
    """A model of a comparison."""

    name: str
    source: str  # its name for `mnv3 bench`, where weights do not matter
    library: str  # of `LIBRARIES`
    top1: float  # per cent
    data: str | None  # what that was measured on; None where nothing says it
    size: int  # pixels along a side of its pictures
    macs: int
    ms: float | None = None  # of one picture


def _names_accuracy(given: str) -> bool:
    """Whether it is NAME=TOP1 or NAME=FILE, and not a file or folder with such a name."""
    return "=" in given and not Path(given).exists()


def points_of(given: str) -> list[Point]:
    """What one argument of `compare` stands for: the models of a file of published figures, or one model."""
    return published(given) if given.endswith(".json") and not _names_accuracy(given) else [point(given)]


def point(given: str) -> Point:
    """A model as `compare` takes it, without its latency.

    Raises:
        ValueError: It is none, or nothing says its accuracy.
    """
    name, text = given, ""
    if _names_accuracy(given):
        name, _, text = given.rpartition("=")
    accuracy = _accuracy(text) if text else None
    library = loading.kind_of(name)
    if library in ("weights", "repository"):
        return _stored(name, accuracy)
    if library == "mnv3":
        return _ours(name, accuracy)
    macs, short = benchmark.count_macs(name, 224), name.rpartition("/")[2]  # or says which names there are
    if macs is None:
        raise ValueError(f"{name}: the MACs of an exported file cannot be counted: give the model that it was made of")
    if accuracy is None and (library == "timm" or (accuracy := _torchvision_top1(short)) is None):
        raise ValueError(f"{name}: nothing here says its top-1: give it, as in {name}=71.5")
    return Point(short, f"{library}/{short}", library, accuracy, None if text else IMAGENET, 224, macs)


def published(file: str) -> list[Point]:
    """Accuracies that others have published, from a file such as benchmarks/cifar10_published.json.

    Args:
        file: JSON: `data`, what they were measured on, `size` in pixels, and `models`, each with `name`, `top1` in per
            cent, `macs` (null where nobody states them: it is left out here) and `source`.

    Raises:
        ValueError: There is no such file, or it says something else.
    """
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        data, size = str(content["data"]), int(content["size"])
        models = [(str(m["name"]), float(m["top1"]), m["macs"]) for m in content["models"] if m["source"]]
        points = [Point(name, name, "published", top1, data, size, int(macs)) for name, top1, macs in models if macs]
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file") from None
    except (ValueError, TypeError, LookupError, RecursionError, AttributeError) as error:
        raise ValueError(f"{file}: not a file of published figures (data, size, models): {error!r}") from None
    if odd := [p.name for p in points if not (0 <= p.top1 <= 100 and p.macs > 0)]:
        raise ValueError(f"{file}: {odd[0]}: expected a top-1 from 0 to 100 per cent and MACs above 0")
    return points


def _stored(name: str, accuracy: float | None) -> Point:
    """A run, or weights whose accuracy is given."""
    folder, model, data = Path(name), loading.resolve(name), None
    if accuracy is None:
        if not all((folder / name).is_file() for name in (TEST_FILE, RECIPE_FILE)):
            raise ValueError(f"{folder}: no {TEST_FILE} of a run in it: give its top-1, as in {folder}=71.5")
        accuracy, pictures = _accuracy(str(folder / TEST_FILE)), load(folder / RECIPE_FILE).data
        data = CIFAR.get(pictures, f"{Path(pictures).name} test")
    size = model.pretrained_cfg["input_size"][-1]
    macs = count_macs(model.arch, size=size, in_chans=model.in_chans, num_classes=model.num_classes)
    return Point(folder.resolve().name, str(folder), "mnv3", accuracy, data, size, macs)


def _ours(name: str, accuracy: float | None) -> Point:
    arch, tag = catalog.split_name(name)
    variant = VARIANTS[arch]
    record = catalog.find(arch, tag) if tag or accuracy is None else None  # or says that there are no weights
    size, classes = (record.input_size[-1], record.num_classes) if record else (variant.size, variant.num_classes)
    top1, data = (record.top1, record.data) if accuracy is None else (accuracy, None)
    if top1 is None:
        raise ValueError(f"{name}: no top-1 is published: give it, as in {name}=71.5")
    macs = count_macs(variant.arch, size=size, num_classes=classes)
    return Point(record.name if record else name, arch, "mnv3", top1, data, size, macs)


def _accuracy(text: str) -> float:
    """Top-1 in per cent from a number or a file of `mnv3 eval --json`."""
    if NUMBER.fullmatch(text):
        if float(text) > 100:
            raise ValueError(f"{text}: expected a top-1 from 0 to 100 per cent")
        return float(text)
    try:
        return Metrics.load(text).top1
    except FileNotFoundError:
        raise ValueError(f"{text}: no such file, and no number: expected a top-1 in per cent") from None
    except ValueError:
        raise ValueError(f"{text}: no top-1 in it: expected what `mnv3 eval --json` writes") from None


def _torchvision_top1(name: str) -> float | None:
    """The top-1 that torchvision states of the default weights of one of its models."""
    import torchvision

    weights = torchvision.models.get_model_weights(name)
    metrics = weights.DEFAULT.meta["_metrics"].get("ImageNet-1K", {}) if len(weights) else {}
    return metrics.get("acc@1")


def check_data(points: Sequence[Point]) -> None:
    """Raise ValueError for accuracies on different pictures, which say nothing side by side."""
    known = {point.data: point.name for point in points if point.data}
    if len(known) > 1:
        listed = ", ".join(f"{name} on {data}" for data, name in known.items())
        raise ValueError(f"accuracies on different pictures: {listed}; to compare them all the same, give NAME=TOP1")


def read_bench(points: Sequence[Point], file: Path, runtime: str) -> list[Point]:
    """Points with their latency from a file of `mnv3 bench --json`.

    Args:
        points: Models, which the file may call by any of their names.
        file: What was measured.
        runtime: Which of its runtimes, with one thread and one picture.

    Raises:
        ValueError: It is no such file, or lacks a model.
    """
    try:
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        measured = {
            cell["model"]: float(cell["ms"])
            for cell in cells
            if (cell["runtime"], cell["threads"], cell["batch"]) == (runtime, 1, 1)
        }
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file") from None
    except (ValueError, TypeError, LookupError, RecursionError):
        raise ValueError(f"{file}: not what `mnv3 bench --json` writes") from None
    spellings = [(p.source, p.name, p.source.rpartition("/")[2]) for p in points]
    times = [next((measured[name] for name in names if name in measured), None) for names in spellings]
    if missing := [p.name for p, ms in zip(points, times, strict=True) if ms is None]:
        raise ValueError(f"{file} has no {', '.join(missing)} in {runtime} with 1 thread and batch 1")
    return [replace(p, ms=ms) for p, ms in zip(points, times, strict=True)]


def measure(points: Sequence[Point], runtime: str, seconds: float) -> list[Point]:
    """Points with their latency, measured here by `mnv3 bench`, models with pictures of one size in turn.

    Args:
        points: Models.
        runtime: Which of the benchmark's, with one thread and one picture.
        seconds: How long to measure each.
    """
    times: dict[str, float] = {}
    for size in {p.size for p in points}:
        names = list(dict.fromkeys(p.source for p in points if p.size == size))
        for cell in benchmark.bench(names, runtimes=[runtime], size=size, seconds=seconds):
            times[cell.model] = cell.ms
    return [replace(p, ms=times[p.source]) for p in points]
