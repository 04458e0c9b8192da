"""Accuracy of the weights that ship with mnv3 on all of CIFAR-10's test pictures, as the README states it.

    python benchmarks/cifar10.py --data DATA [--data-dir FOLDER] [--download] [--json FILE]

DATA is cifar10, as torchvision lays it out in --data-dir, or a folder test/<class>/*.png. Prints a Markdown table:
top-1 of one view, and averaged with the mirror image, in per cent; parameters and MACs at 32 px by arithmetic.
"""

import argparse
from pathlib import Path

import record

import mnv3
from mnv3.arch import count_macs, count_params
from mnv3.catalog import CATALOG


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--download", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured")
    args = parser.parse_args()
    pictures = mnv3.data.load(args.data, "test", data_dir=args.data_dir, download=args.download)
    print("| weights | top-1 / % | with its mirror image | parameters / M | MACs / M |")
    print("| --- | ---: | ---: | ---: | ---: |")
    rows = []
    for name in (checkpoint.name for checkpoint in CATALOG if checkpoint.tag == "cifar10"):
        model = mnv3.create_model(name, pretrained=True)
        one, two = (mnv3.evaluate(model, pictures, tta=tta).top1 for tta in ("none", "flip"))
        params, macs = count_params(model.arch, num_classes=10), count_macs(model.arch, size=32, num_classes=10)
        rows.append({"model": name, "top1": one, "flip": two})
        print(f"| {name} | {one:.2f} | {two:.2f} | {params / 1e6:.2f} | {macs / 1e6:.1f} |", flush=True)
    if args.json:
        rows.sort(key=lambda row: row["top1"])
        record.write(args.json, ("torch", "timm"), pictures=len(pictures), rows=rows)


if __name__ == "__main__":
    main()
