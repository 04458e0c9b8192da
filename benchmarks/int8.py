"""What 8 bits cost, by model and runtime: `mnv3 quantize`, measured.

    python benchmarks/int8.py [--cifar FOLDER [--models ARCH.TAG ...]] [--pictures FOLDER --weights FOLDER ...]
                              [--formats onnx ...] [--json FILE]

Accuracy: --cifar holds CIFAR-10 as train/<class>/* and test/<class>/*: calibrated on 400 of the former, measured on the
latter. Agreement with float32: --pictures are those that models of --weights were made for: calibrated on 200 of them,
compared on the others, of which they know nothing. A record (--json) has one or the other.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import record
import torch
from torch import nn

import mnv3
from mnv3.bench import machine
from mnv3.deploy import FORMATS, int8, load, quantize

PACKAGES = ("torch", "onnxruntime", "openvino", "nncf", "executorch", "ai-edge-litert", "torchao")
CALIBRATE = 200  # of --pictures


def accuracy(models: list[str], cifar: Path, formats: list[str], folder: Path) -> dict[str, Any]:
    """Print a row for each model and format; returns what was measured."""
    test = mnv3.data.load(str(cifar), "test")
    print(f"{len(test):,} test pictures\n")
    print("| model | runtime | float32 top-1 | 8-bit top-1 | file of float32's |")
    print("| --- | --- | ---: | ---: | ---: |")
    rows = []
    for name in models:
        model = mnv3.create_model(name, pretrained=True).eval()
        for to in formats:
            file = folder / f"{name}{FORMATS[to].suffix}"
            report = quantize(model, file, to=to, calibrate=cifar / "train", evaluate=test, force=True)
            share = 100 * report.bytes / report.float_bytes
            row = {"model": name, "runtime": to, "float_top1": report.float_top1, "top1": report.top1, "share": share}
            rows.append(row)
            print(f"| {name} | {to} | {report.float_top1:.2f} | {report.top1:.2f} | {share:.0f} % |", flush=True)
    return {"pictures": len(test), "rows": rows}


def agreement(weights: list[Path], pictures: Path, formats: list[str], folder: Path) -> dict[str, Any]:
    """Print a row for each weights folder and format; returns what was measured."""
    files = list(mnv3.images.find(pictures))
    known = set(mnv3.images.spread(files, CALIBRATE))
    new = [file for file in files if file not in known]
    print(f"\n{len(new):,} pictures, others than the {len(known)} to calibrate on\n")
    print("| weights | runtime | top-1 agrees with float32 | file of float32's |")
    print("| --- | --- | ---: | ---: |")
    rows = []
    for path in weights:
        model = mnv3.load_checkpoint(path).eval()
        transform = mnv3.transforms(model)
        batches = torch.stack([transform(mnv3.images.load(file)) for file in new]).split(20)
        expected = likeliest(model, batches)
        for to in formats:
            file = folder / f"{path.name}{FORMATS[to].suffix}"
            report = quantize(model, file, to=to, calibrate=sorted(known), force=True)
            same = 100 * (likeliest(load(file), batches) == expected).float().mean().item()
            share = 100 * report.bytes / report.float_bytes
            rows.append({"model": path.name, "runtime": to, "agreement": same, "share": share})
            print(f"| {path.name} | {to} | {same:.1f} % | {share:.0f} % |", flush=True)
    return {"pictures": len(new), "calibrated_on": len(known), "rows": rows}


@torch.inference_mode()
def likeliest(model: nn.Module, batches: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The most likely class of each picture."""
    return torch.cat([model(x).argmax(1) for x in batches])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar", type=Path, metavar="FOLDER")
    parser.add_argument("--models", nargs="+", default=["mnv3_small_cifar.cifar10", "mnv3_large_cifar.cifar10"])
    parser.add_argument("--pictures", type=Path, metavar="FOLDER")
    parser.add_argument("--weights", type=Path, nargs="+", default=[], metavar="FOLDER")
    parser.add_argument("--formats", nargs="+", default=list(int8.WRITERS), choices=int8.WRITERS, metavar="FORMAT")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured")
    args = parser.parse_args()
    if args.json and args.cifar and args.pictures:
        parser.error("--json FILE takes either --cifar or --pictures")
    print(f"{machine()}; ", end="")
    with tempfile.TemporaryDirectory() as folder:
        if args.cifar:
            measured = accuracy(args.models, args.cifar, args.formats, Path(folder))
        if args.pictures and args.weights:
            measured = agreement(args.weights, args.pictures, args.formats, Path(folder))
    if args.json:
        record.write(args.json, PACKAGES, **measured)


if __name__ == "__main__":
    main()
