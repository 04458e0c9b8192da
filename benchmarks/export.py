"""Every format of `mnv3 export`: size of the file, largest difference of the logits, time to export.

    python benchmarks/export.py [--weights FOLDER ...] [--pictures FOLDER] [--formats onnx ...]
                                [--json FILE]

Models: the two of CIFAR-10 that ship, mnv3_small and mnv3_large with random weights, and weights folders given with it.
Formats that can have it are exported with a dynamic batch and size, and compared at other sizes too.
"""

import argparse
import tempfile
import time
from pathlib import Path

import record
import torch
from torch import nn

import mnv3
from mnv3.bench import machine
from mnv3.deploy import FORMATS, export

PACKAGES = ("torch", "onnxruntime", "openvino", "executorch", "ai-edge-litert", "ncnn")


def random_weights(name: str) -> nn.Module:
    """A model whose batch norms do something and whose logits differ."""
    torch.manual_seed(0)
    model = mnv3.create_model(name).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    nn.init.normal_(model.classifier.weight, std=1.0)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, nargs="+", default=[], metavar="FOLDER")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="to compare on, for the weights that are given")
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS, metavar="FORMAT")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured")
    args = parser.parse_args()
    ours = ("mnv3_small_cifar.cifar10", "mnv3_large_cifar.cifar10")
    models = {name: (mnv3.create_model(name, pretrained=True).eval(), None) for name in ours}
    models |= {name: (random_weights(name), None) for name in ("mnv3_small", "mnv3_large")}
    models |= {folder.name: (mnv3.load_checkpoint(folder).eval(), args.pictures) for folder in args.weights}
    print(f"{machine()}\n\n| model | format | MB | largest difference | of logits up to | top-1 agrees | seconds |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (model, pictures) in models.items():
            for to in args.formats:
                start, entry = time.perf_counter(), FORMATS[to]
                file = Path(folder) / to / f"{name}{entry.suffix}"  # two formats have a .bin
                report = export(model, file, to=to, dynamic=entry.dynamic, pictures=pictures)
                taken = time.perf_counter() - start
                found = ("not run here", "-", "-")
                row = {"model": name, "format": to, "megabytes": report.bytes / 1e6, "seconds": taken}
                rows.append(row | {key: getattr(report, key) for key in ("difference", "largest", "agreement")})
                if report.difference is not None:
                    found = (f"{report.difference:.1e}", f"{report.largest:.3g}", f"{report.agreement:.4g} %")
                print(f"| {name} | {to} | {report.bytes / 1e6:.2f} | {' | '.join(found)} | {taken:.0f} |", flush=True)
    if args.json:
        record.write(args.json, PACKAGES, rows=rows)


if __name__ == "__main__":
    main()
