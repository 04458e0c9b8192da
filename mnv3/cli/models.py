"""The commands `mnv3 list`, `info` and `predict`."""

import argparse
import json
import logging
import sys
from typing import TYPE_CHECKING

from .. import arch, catalog
from ..errors import one_line
from ..text import terminal
from .arguments import DEFAULT_MODEL, MODEL_HELP, Command, add_ema, columns, positive

if TYPE_CHECKING:
    from ..pictures.predict import Prediction


def add_commands(command: Command) -> None:
    """Add these commands to the command line's parser."""
    sub = command("list", list_models, "List the models and their published weights.")
    sub.add_argument("--pretrained", action="store_true", help="only names with weights, as arch.tag")
    sub.add_argument("--json", action="store_true", help="one JSON object a line")
    sub.add_argument("--markdown", action="store_true", help="a table for README.md")

    sub = command("info", info, "Show a model's table: blocks, channels, parameters, MACs, weights.")
    sub.epilog = "Columns as in the paper: exp size, #out, SE, NL (RE: ReLU, HS: h-swish), s: stride."
    sub.add_argument("arch", metavar="ARCH[.TAG]", help="a name of `mnv3 list`")
    sub.add_argument("--size", type=positive, metavar="PX", help="pixels along a side, for the MACs")

    sub = command("predict", predict, "Classify pictures.")
    sub.add_argument("files", nargs="+", metavar="FILE|FOLDER", help="pictures, or folders of them")
    sub.add_argument(
        "--model",
        metavar="MODEL",
        help=f"{MODEL_HELP}, or an exported file ({DEFAULT_MODEL})",
    )
    sub.add_argument(
        "--checkpoint",
        metavar="FILE|FOLDER",
        help="your own weights, where a file that does not say its model needs --model too, or an exported file",
    )
    add_ema(sub)
    sub.add_argument("--topk", type=positive, default=5, metavar="K", help="classes per picture (5)")
    sub.add_argument("--batch-size", type=positive, default=32, metavar="N", help="pictures at a time (32)")
    sub.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps ... (cpu)")
    sub.add_argument("--json", action="store_true", help="one JSON object a picture and line")


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
        from ..hub.cards import table

        print(table(rows, "<>>>>><<"))
    else:
        print("\n".join(columns((row[:-1] for row in rows), "<>>>>><")))
    return 0


def info(args: argparse.Namespace) -> int:
    """`mnv3 info ARCH`."""
    name, tag = catalog.split_name(args.arch)
    variant = arch.VARIANTS[name]
    table, size = variant.arch, args.size or variant.size
    num_classes = catalog.find(name, tag).num_classes if tag else variant.num_classes
    print(f"{name}: width {variant.width:g}, {'TensorFlow' if variant.pad_type else 'symmetric'} padding, {size} px\n")
    operators = {
        "stem": ("conv2d, 3x3", "-", "-", table.act, table.stem_stride),
        "last": ("conv2d, 1x1", "-", "-", table.act, 1),
        "head": ("pool, conv2d, 1x1", "-", "-", table.act, "-"),
        "classifier": ("linear", "-", "-", "-", "-"),
    }
    for i, row in enumerate(table.rows):
        operator = f"bneck, {row.kernel}x{row.kernel}"
        operators[f"blocks.{i}"] = (operator, row.exp, "SE" if row.se else "-", row.act, row.stride)
    rows = [("part", "input", "operator", "exp", "out", "SE", "NL", "s", "params", "MACs")]
    channels = 3
    costs = list(arch.costs(table, size=size, num_classes=num_classes))
    for cost in costs:
        operator, exp, se, act, stride = operators[cost.part]
        shape, numbers = f"{cost.size}^2 x {channels}", (f"{cost.params:,}", f"{cost.macs:,}")
        rows.append((cost.part, shape, operator, exp, cost.channels, se, act, stride, *numbers))
        channels = cost.channels
    total = (f"{sum(c.params for c in costs):,}", f"{sum(c.macs for c in costs):,}")
    rows.append(("total", "", "", "", "", "", "", "", *total))
    print("\n".join(columns(rows, "<><>><<>>>")))
    features = (f"{tap.module} ({tap.channels} channels, stride {tap.reduction})" for tap in arch.taps(table))
    print("\nfeatures:", ", ".join(features))
    records = catalog.checkpoints(name)
    print("weights:" if records else "weights: none published")
    rows = [(r.name, f"top-1 {r.top1} %" if r.top1 else "", r.repo or r.url, r.license) for r in records]
    for line in columns(rows, "<<<<"):
        print(f"  {line}")
    return 0


def predict(args: argparse.Namespace) -> int:
    """`mnv3 predict`."""
    import torch
    from tqdm import tqdm

    from .. import loading
    from ..pictures import images
    from ..pictures.predict import predict as predict_files

    files = list(images.find(args.files))  # first what needs no download
    if not files:
        raise ValueError(f"no pictures in {', '.join(args.files)}")
    name, arch_name = (args.checkpoint, args.model) if args.checkpoint else (args.model or DEFAULT_MODEL, None)
    kind = loading.kind_of(name)
    if args.checkpoint and kind not in loading.STORED:
        raise ValueError(f"--checkpoint {name}: no such file or folder")
    if kind == "exported" and (arch_name or args.device != "cpu"):
        raise ValueError(f"{name}: an exported file says which model it is, and runs on the CPU")
    if kind == "mnv3" and not catalog.checkpoints(base := catalog.split_name(name)[0]):
        raise ValueError(f"no weights are published for {base} (see `mnv3 list`): give your own with --checkpoint")
    model = loading.resolve(name, arch=arch_name, use_ema=args.use_ema)
    if not (args.checkpoint or args.model):
        logging.getLogger("mnv3").warning("no --model: %s, the ten classes of CIFAR-10", DEFAULT_MODEL)
    try:
        device = torch.device(args.device)
        if device.type == "meta":
            raise RuntimeError("it holds no values, so nothing can be computed on it")
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {args.device}: {str(error).splitlines()[0]}") from error
    errors = 0
    predictions = predict_files(model, files, topk=args.topk, batch_size=args.batch_size)
    # On a terminal the results themselves show the progress; without one on stderr (None), tqdm shows nothing.
    disable = True if len(files) == 1 or sys.stdout.isatty() else None
    with tqdm(predictions, total=len(files), unit=" pictures", disable=disable, leave=False) as bar:
        for prediction in bar:
            if prediction.error:
                errors += 1
                bar.write(one_line(prediction.error), file=sys.stderr)
            elif args.json:
                print(json.dumps({"file": str(prediction.file), "topk": prediction.topk}), flush=True)
            else:
                print(_readable(prediction, name_file=len(files) > 1), flush=True)
    return 1 if errors else 0


def _readable(prediction: "Prediction", *, name_file: bool) -> str:
    """The classes of a picture, a line each, below the file's name if it is wanted."""
    lines = [terminal(prediction.file)] if name_file else []
    for entry in prediction.topk:
        label = entry["label"] or f"class {entry['index']}"
        lines.append(f"{100 * entry['prob']:6.2f} %  {terminal(label)}")
    return "\n".join(lines)
