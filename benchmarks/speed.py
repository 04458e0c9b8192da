"""The speeds of README and docs/deploy.md measured, and written to benchmarks/results/: `make measure`.

    python benchmarks/speed.py --files FOLDER --pictures FOLDER [--prepare] [--quick]

Exports and 8-bit files are written into --files once, which takes a quarter of an hour; --prepare ends after that. To
measure them takes eight minutes, in which the machine should do nothing else. --quick is a rehearsal: small pictures,
short turns, records in a temporary folder.
"""

import argparse
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import record

from mnv3 import bench, deploy, loading

MODELS = ("timm/mobilenetv3_small_100", "mnv3_small", "timm/mobilenetv3_large_100", "mnv3_large", "resnet50")
PACKAGES = ("torch", "timm", "onnxruntime", "openvino", "executorch", "ai-edge-litert")
INT8 = "mnv3_small_tf.uint8_in1k"  # has Google's weights, and ships with mnv3
INT8_RUNTIMES = ("onnx", "openvino", "executorch", "tflite")


@dataclass(frozen=True)
class Plan:
    """What to measure of one network after the other."""

    runtimes: tuple[str, ...] = ("eager", "fused", "onednn", "optimize", "onnx", "openvino", "executorch", "tflite")
    size: int = 224
    seconds: float = 1.2
    groups: tuple[tuple[tuple[int, ...], int], ...] = (((1, 2), 1), ((2,), 32))  # threads and batch: a user, throughput


QUICK = Plan(runtimes=Plan.runtimes[:-2], size=64, seconds=0.3, groups=(((1,), 1),))


def write_exports(plan: Plan, files: Path) -> None:
    """What `latency` would write itself, before anything is measured."""
    for _, batch in plan.groups:
        for model in MODELS:
            bench._cases(model, plan.runtimes, batch, plan.size, files)


def latency(plan: Plan, files: Path) -> list[dict]:
    """Cells of every model in every runtime.

    Args:
        plan: What to measure.
        files: The folder of exports.
    """
    options = {"runtimes": plan.runtimes, "size": plan.size, "seconds": plan.seconds, "files": files}
    groups = (bench.bench(MODELS, threads=threads, batches=(batch,), **options) for threads, batch in plan.groups)
    return [asdict(cell) for cells in groups for cell in cells]


def int8_files(folder: Path, pictures: Path) -> dict[Path, tuple[str, int]]:
    """The network in float32 and in 8 bits in every runtime that has both: runtime and bits by file.

    Args:
        folder: Where they are, or where to write them.
        pictures: To calibrate on.
    """
    found = {}
    model = loading.resolve(INT8).eval()
    for name in INT8_RUNTIMES:
        for bits, write in ((32, _export), (8, _quantize)):
            file = folder / f"{bits}" / f"{name}{deploy.FORMATS[name].suffix}"
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                write(model, file, name, pictures)
            found[file] = (name, bits)
    return found


def _export(model: bench.nn.Module, file: Path, to: str, pictures: Path) -> None:
    deploy.export(model, file, to=to)


def _quantize(model: bench.nn.Module, file: Path, to: str, pictures: Path) -> None:
    deploy.quantize(model, file, to=to, calibrate=pictures)


def int8_speed(plan: Plan, files: dict[Path, tuple[str, int]]) -> list[dict]:
    """Cells of the files of `int8_files`, with their bits."""
    macs = bench.count_macs(INT8.partition(".")[0], 224)
    cells = bench.bench([str(file) for file in files], threads=plan.groups[0][0], seconds=plan.seconds)
    named = [asdict(cell) | {"model": INT8, "macs": macs, "bits": files[Path(cell.model)][1]} for cell in cells]
    return [{key: value for key, value in cell.items() if key != "ratio"} for cell in named]


def spread(cells: list[dict]) -> str:
    """How far the quartiles of the cells' times lie apart, in words."""
    apart = sorted(100 * (cell["q3"] - cell["q1"]) / cell["ms"] for cell in cells)
    half = statistics.median(apart)
    return f"one run; the quartiles lie {half:.0f} % apart or less in half of the cells, {apart[-1]:.0f} % at most"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=Path, required=True, metavar="FOLDER", help="exports, written if missing")
    parser.add_argument("--pictures", type=Path, required=True, metavar="FOLDER", help="to calibrate 8 bits on")
    parser.add_argument("--prepare", action="store_true", help="write the files alone")
    parser.add_argument("--quick", action="store_true", help="a rehearsal; its records go to a temporary folder")
    args = parser.parse_args()
    plan = QUICK if args.quick else Plan()
    files = int8_files(args.files / "int8", args.pictures)
    write_exports(plan, args.files)
    if args.prepare:
        return
    results = Path(tempfile.mkdtemp()) if args.quick else record.RESULTS
    for name, cells in (("latency", latency(plan, args.files)), ("int8_speed", int8_speed(plan, files))):
        record.write(results / f"{name}.json", PACKAGES, note=spread(cells), cells=cells)
        print(results / f"{name}.json", flush=True)


if __name__ == "__main__":
    main()
