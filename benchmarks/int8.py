"""What 8 bits cost in accuracy, by model and runtime: `mnv3 quantize`, measured on pictures with classes.

    python benchmarks/int8.py --cifar FOLDER [--models ARCH.TAG ...] [--formats onnx ...]

FOLDER holds CIFAR-10 as train/<class>/* and test/<class>/*: calibrated on 400 of the former, measured on the latter.
"""

import argparse
import tempfile
from pathlib import Path

import mnv3
from mnv3.bench import machine
from mnv3.deploy import FORMATS, int8, quantize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--models", nargs="+", default=["mnv3_small_cifar.cifar10"], metavar="ARCH.TAG")
    parser.add_argument("--formats", nargs="+", default=list(int8.WRITERS), choices=int8.WRITERS, metavar="FORMAT")
    args = parser.parse_args()
    test = mnv3.data.load(str(args.cifar), "test")
    print(f"{machine()}; {len(test):,} test pictures\n")
    print("| model | runtime | float32 top-1 | 8-bit top-1 | agrees with float32 | file of float32's |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            model = mnv3.create_model(name, pretrained=True).eval()
            for to in args.formats:
                file = Path(folder) / f"{name}{FORMATS[to].suffix}"
                report = quantize(model, file, to=to, calibrate=args.cifar / "train", evaluate=test, force=True)
                numbers = f"{report.float_top1:.2f} | {report.top1:.2f} | {report.agreement:.1f} %"
                share = 100 * report.bytes / report.float_bytes
                print(f"| {name} | {to} | {numbers} | {share:.0f} % |", flush=True)


if __name__ == "__main__":
    main()
