"""The speeds of README and docs/deploy.md measured, and written to benchmarks/results/: `make measure`.

    python benchmarks/speed.py --files FOLDER --pictures FOLDER [--prepare] [--quick]

Exports and 8-bit files are written into --files once, which takes a quarter of an hour; --prepare ends after that. To
measure them takes eight minutes, in which the machine should do nothing else. --quick is a rehearsal: small pictures,
short turns, records in a temporary folder.
"""

import argparse
import statistics
import tempfile
from dataclasses import asdict
from pathlib import Path

import record

from mnv3 import bench, deploy, loading

MODELS = ("timm/mobilenetv3_small_100", "mnv3_small", "timm/mobilenetv3_large_100", "mnv3_large", "resnet50")
RUNTIMES = ("eager", "fused", "onednn", "optimize", "onnx", "openvino", "executorch", "tflite")
PACKAGES = ("torch", "timm", "onnxruntime", "openvino", "executorch", "ai-edge-litert")
INT8 = "mnv3_small_tf.uint8_in1k"  # has Google's weights, and ships with mnv3
INT8_RUNTIMES = ("onnx", "openvino", "executorch", "tflite")


def latency(files: Path, *, quick: bool) -> list[bench.Cell]:
    """One picture on one thread and on two; 32 pictures on two, which is what one does for throughput.

    Args:
        files: The folder of exports.
        quick: Small pictures and short turns.
    """
    options = {"size": 64 if quick else 224, "seconds": 0.3 if quick else 1.2, "files": files}
    cells = bench.bench(MODELS, runtimes=RUNTIMES, threads=(1, 2), batches=(1,), **options)
    return cells if quick else cells + bench.bench(MODELS, runtimes=RUNTIMES, threads=(2,), batches=(32,), **options)


def write_exports(files: Path, *, quick: bool) -> None:
    """What `latency` would write itself, before anything is measured."""
    for batch in (1,) if quick else (1, 32):
        for model in MODELS:
            bench._cases(model, RUNTIMES, batch, 64 if quick else 224, files)


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


def int8_speed(files: dict[Path, tuple[str, int]], *, quick: bool) -> list[dict]:
    """Cells of 8-bit files and of those in float32, with their bits."""
    macs = bench.count_macs(INT8.partition(".")[0], 224)
    cells = bench.bench([str(file) for file in files], threads=(1, 2), seconds=0.3 if quick else 1.2)
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
    files = int8_files(args.files / "int8", args.pictures)
    write_exports(args.files, quick=args.quick)
    if args.prepare:
        return
    results = Path(tempfile.mkdtemp()) if args.quick else record.RESULTS
    for name, cells in (
        ("latency", [asdict(cell) for cell in latency(args.files, quick=args.quick)]),
        ("int8_speed", int8_speed(files, quick=args.quick)),
    ):
        record.write(results / f"{name}.json", PACKAGES, note=spread(cells), cells=cells)
        print(results / f"{name}.json", flush=True)


if __name__ == "__main__":
    main()
