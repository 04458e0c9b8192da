"""The commands `mnv3 list` and `info`."""

import argparse
import json
from typing import TYPE_CHECKING

from .. import arch, catalog
from ..table import table_rows
from ..text import aligned_columns, markdown_table
from .arguments import Command, positive

if TYPE_CHECKING:
    pass


def add_commands(command: Command) -> None:
    """Add these commands to the command line's parser."""
    sub = command("list", list_models, "List the models and their published weights.")
    sub.add_argument("--pretrained", action="store_true", help="only names with weights, as arch.tag")
    sub.add_argument("--json", action="store_true", help="one JSON object a line")
    sub.add_argument("--markdown", action="store_true", help="a table in Markdown")

    sub = command("info", info, "Show a model's table: blocks, channels, parameters, MACs, weights.")
    sub.epilog = "Columns as in the paper: exp size, #out, SE, NL (RE: ReLU, HS: h-swish), s: stride."
    sub.add_argument("arch", metavar="ARCH[.TAG]", help="a name of `mnv3 list`")
    sub.add_argument("--size", type=positive, metavar="PX", help="pixels along a side, for the MACs")


def list_models(args: argparse.Namespace) -> int:
    """`mnv3 list`."""
    entries = []
    for name, variant in arch.VARIANTS.items():
        for record in catalog.checkpoints(name) or [None]:
            if record is None and args.pretrained:
                continue
            classes = record.num_classes if record else variant.num_classes
            size = record.input_size[-1] if record else variant.size
            entries.append(
                {
                    "name": record.name if record else name,
                    "arch": name,
                    "tag": record.tag if record else None,
                    "params": arch.count_params(variant.arch, num_classes=classes),
                    "macs": arch.count_macs(variant.arch, size=size, num_classes=classes),
                    "size": size,
                    "num_classes": classes,
                    "top1": record.top1 if record else None,
                    "source": (record.repo or record.url) if record else None,
                    "license": record.license if record else None,
                }
            )
    if args.json:
        for entry in entries:
            print(json.dumps(entry))
        return 0
    rows = [("name", "params/M", "MACs/M", "px", "classes", "top-1/%", "weights", "licence")]
    for e in entries:
        numbers = (f"{e['params'] / 1e6:.2f}", f"{e['macs'] / 1e6:.1f}", e["size"], e["num_classes"])
        top1 = f"{e['top1']:.3f}" if e["top1"] else "-"
        rows.append((e["name"], *numbers, top1, e["source"] or "-", e["license"] or "-"))
    if args.markdown:
        print(markdown_table(rows, "<>>>>><<"))
    else:
        print("\n".join(aligned_columns((row[:-1] for row in rows), "<>>>>><")))
    return 0


def info(args: argparse.Namespace) -> int:
    """`mnv3 info ARCH`."""
    name, tag = catalog.split_name(args.arch)
    variant = arch.VARIANTS[name]
    table, size = variant.arch, args.size or variant.size
    num_classes = catalog.find(name, tag).num_classes if tag else variant.num_classes
    print(f"{name}: width {variant.width:g}, {'TensorFlow' if variant.pad_type else 'symmetric'} padding, {size} px\n")
    rows = [("part", "input", "operator", "exp", "out", "SE", "NL", "s", "params", "MACs")]
    costs = []
    for row in table_rows(table, size=size, num_classes=num_classes):
        cost, operator = row.cost, f"{row.operator}, {row.kernel}x{row.kernel}" if row.kernel else row.operator
        columns = (operator, row.exp or "-", cost.channels, "SE" if row.se else "-", row.act or "-", row.stride or "-")
        rows.append((cost.part, f"{cost.size}^2 x {row.in_chans}", *columns, f"{cost.params:,}", f"{cost.macs:,}"))
        costs.append(cost)
    total = (f"{sum(c.params for c in costs):,}", f"{sum(c.macs for c in costs):,}")
    rows.append(("total", "", "", "", "", "", "", "", *total))
    print("\n".join(aligned_columns(rows, "<><>><<>>>")))
    features = (f"{tap.module} ({tap.channels} channels, stride {tap.reduction})" for tap in arch.taps(table))
    print("\nfeatures:", ", ".join(features))
    records = catalog.checkpoints(name)
    print("weights:" if records else "weights: none published")
    rows = [(r.name, f"top-1 {r.top1} %" if r.top1 else "", r.repo or r.url, r.license) for r in records]
    for line in aligned_columns(rows, "<<<<"):
        print(f"  {line}")
    return 0
