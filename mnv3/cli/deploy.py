"""The commands `mnv3 export`, `quantize` and `bench`."""

import argparse
from pathlib import Path
from typing import Any

from .arguments import MODEL_HELP, Command, check_model, positive


def add_commands(command: Command) -> None:
    """Add these commands to the command line's parser."""
    sub = command(
        "export", run_export, "Write a model for another runtime, after a check that it gives the same there."
    )
    _add_model_and_file(sub, "pt2, torchscript, onnx, openvino, executorch, tflite, ncnn or coreml", "ARCH")
    sub.add_argument("--batch", type=positive, default=1, metavar="N", help="pictures at a time (1)")
    sub.add_argument("--dynamic", default="", metavar="batch,size", help="what may differ from call to call")
    sub.add_argument("--normalize", action="store_true", help="take bytes: put mean and std into the graph")
    sub.add_argument("--softmax", action="store_true", help="give probabilities")
    sub.add_argument("--half", action="store_true", help="store the weights as float16")
    sub.add_argument("--pictures", nargs="+", metavar="FILE|FOLDER", help="to check by (some are drawn)")
    sub.add_argument("--force", action="store_true", help="replace the file if it is there")

    sub = command("quantize", run_quantize, "Write a model with 8-bit integers, if it keeps its accuracy.")
    _add_model_and_file(sub, "onnx, openvino, executorch, tflite or pt2", "ARCH.int8")
    sub.add_argument(
        "--calibrate", required=True, nargs="+", metavar="FILE|FOLDER", help="pictures like those that it will see"
    )
    sub.add_argument("--evaluate", metavar="DATA", help="to measure on: cifar10, cifar100, or a folder SPLIT/<class>/*")
    sub.add_argument("--split", default="test", choices=("test", "val", "train"), help="which pictures of it (test)")
    sub.add_argument("--data-dir", default="data", metavar="FOLDER", help="where torchvision's CIFAR lies (data)")
    sub.add_argument("--max-drop", type=float, default=1.0, metavar="POINTS", help="of top-1 that may be lost (1.0)")
    sub.add_argument("--force", action="store_true", help="write it whatever it loses, and replace the file")

    sub = command("bench", run_bench, "Measure models in runtimes side by side.")
    sub.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        default=["mnv3_small", "mnv3_large", "resnet50"],
        help="of mnv3, timm or torchvision ('timm/NAME', 'torchvision/NAME'), weights folders, exported files "
        "(mnv3_small mnv3_large resnet50)",
    )
    sub.add_argument(
        "--runtimes",
        default="eager,fused,onednn",
        metavar="A,B,...",
        help="eager, fused, onednn, compile, optimize, and the formats of `mnv3 export` (eager,fused,onednn)",
    )
    sub.add_argument("--threads", default="1", metavar="N,...", help="numbers of threads (1)")
    sub.add_argument("--batch", default="1", metavar="N,...", help="numbers of pictures at a time (1)")
    sub.add_argument("--size", type=positive, default=224, metavar="PX", help="pixels along a side (224)")
    sub.add_argument("--seconds", type=positive, default=3, metavar="S", help="of measuring each (3)")
    sub.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    sub.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables")
    sub.add_argument("--png", type=Path, metavar="FILE", help="write a picture of the latencies")


def _add_model_and_file(sub: argparse.ArgumentParser, formats: str, name: str) -> None:
    """What `_model_and_file` reads, and the size."""
    sub.add_argument("model", metavar="ARCH[.TAG]|FOLDER|FILE", help=MODEL_HELP)
    sub.add_argument("--to", required=True, metavar="FORMAT", help=formats)
    out = f"where to write ({name} and the format's ending)"
    sub.add_argument("-o", "--out", metavar="FILE", type=Path, help=out)
    sub.add_argument("--arch", metavar="ARCH", help="the model, for a single file of weights")
    sub.add_argument("--size", type=positive, metavar="PX", help="pixels along a side (those of the weights)")


def _model_and_file(args: argparse.Namespace, ending: str = "") -> tuple[Any, Path]:
    """The model, and where to write it: by default its name, `ending`, and the format's own."""
    from ..deploy.exporter import format_named
    from ..loading import resolve

    suffix = format_named(args.to).suffix  # before the model is loaded
    model = resolve(args.model, arch=args.arch)
    return model, args.out or Path(f"{model.pretrained_cfg.get('architecture')}{ending}{suffix}")


def run_export(args: argparse.Namespace) -> int:
    """`mnv3 export MODEL --to FORMAT`."""
    check_model(args.model)
    from ..deploy.exporter import export

    report = export(
        *_model_and_file(args),
        to=args.to,
        size=args.size,
        batch=args.batch,
        dynamic=[name for name in args.dynamic.split(",") if name],
        normalize=args.normalize,
        softmax=args.softmax,
        half=args.half,
        pictures=args.pictures,
        exist_ok=args.force,
    )
    print(report)
    return 0


def run_quantize(args: argparse.Namespace) -> int:
    """`mnv3 quantize MODEL --to FORMAT --calibrate FOLDER`."""
    check_model(args.model)
    from ..deploy.int8.quantizer import quantize
    from ..pictures import data

    report = quantize(
        *_model_and_file(args, ".int8"),
        to=args.to,
        calibrate=args.calibrate,
        evaluate=args.evaluate and data.load(args.evaluate, args.split, data_dir=args.data_dir),
        size=args.size,
        max_drop=args.max_drop,
        force=args.force,
    )
    print(report)
    return 0


def run_bench(args: argparse.Namespace) -> int:
    """`mnv3 bench [MODEL ...]`."""
    from .. import bench
    from ..figures import charts
    from ..files.atomic import write_atomically

    cells = bench.bench(
        args.models,
        runtimes=args.runtimes.split(","),
        threads=_numbers("--threads", args.threads),
        batches=_numbers("--batch", args.batch),
        size=args.size,
        seconds=args.seconds,
    )
    print(bench.markdown(cells), end="")
    if args.json:
        write_atomically(args.json, bench.as_json(cells).encode())
    if args.markdown:
        write_atomically(args.markdown, bench.markdown(cells).encode())
    if args.png:
        rows: dict[str, dict[str, float]] = {}
        for cell in cells:
            label = f"{cell.model}, {cell.threads} threads, batch {cell.batch}"
            rows.setdefault(label, {})[cell.runtime] = cell.ms / cell.batch
        charts.bars(list(rows.items()), "ms for each picture", args.png)
    return 0


def _numbers(option: str, text: str) -> list[int]:
    numbers = [int(part) if part.isascii() and part.isdigit() else 0 for part in text.split(",")]
    if min(numbers) < 1:
        raise ValueError(f"{option} {text}: expected whole numbers of at least 1, such as 1,2")
    return numbers
