"""The commands `mnv3 list`, `info` and `predict`."""

import argparse
import json
import logging
import sys
from pathlib import Path

from .. import arch, catalog
from ..errors import one_line
from ..table import table_rows
from ..text import aligned_columns, markdown_table, terminal
from .arguments import DEFAULT_MODEL, Command, positive


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
        metavar="ARCH[.TAG]",
        help="a name of `mnv3 list --pretrained`, without a tag the first of the model; or hf-hub:NAMESPACE/NAME, "
        f"local-dir:FOLDER ({DEFAULT_MODEL})",
    )
    sub.add_argument(
        "--checkpoint",
        metavar="FILE|FOLDER",
        help="your own weights, where a file that does not say its model needs --model too, or an exported file",
    )
    sub.add_argument("--ema", action=argparse.BooleanOptionalAction, help="averaged weights, or not (if there are any)")
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


def predict(args: argparse.Namespace) -> int:
    """`mnv3 predict`."""
    import torch
    from tqdm import tqdm

    from ..deploy import runtime
    from ..factory import create_model, has_source, load_checkpoint
    from ..pictures import images
    from ..pictures.predict import predict as predict_files

    files = list(images.find(args.files))  # first what needs no download
    if not files:
        raise ValueError(f"no pictures in {', '.join(args.files)}")
    if args.ema is not None and not args.checkpoint:
        raise ValueError("--ema and --no-ema are for the weights of --checkpoint")
    if args.checkpoint:
        if not has_source(args.checkpoint) and not Path(args.checkpoint).exists():
            raise ValueError(f"--checkpoint {args.checkpoint}: no such file or folder")
        exported = runtime.format_of(Path(args.checkpoint))
        if exported and (args.model or args.device != "cpu"):
            raise ValueError(f"{args.checkpoint}: an exported file says which model it is, and runs on the CPU")
        if exported and args.ema is not None:
            raise ValueError(f"{args.checkpoint}: an exported file has no averaged weights beside its own")
        options = {"model": args.model, "use_ema": args.ema}
        model = runtime.load(args.checkpoint) if exported else load_checkpoint(args.checkpoint, **options)
    elif args.model:
        name = None if has_source(args.model) else catalog.split_name(args.model)[0]
        if name and not catalog.checkpoints(name):
            raise ValueError(f"no weights are published for {name} (see `mnv3 list`): give your own with --checkpoint")
        model = create_model(args.model, pretrained=True)
    else:
        logging.getLogger("mnv3").warning("no --model: %s, the ten classes of CIFAR-10", DEFAULT_MODEL)
        model = create_model(DEFAULT_MODEL, pretrained=True)
    try:
        device = torch.device(args.device)
        if device.type == "meta":
            raise RuntimeError("it holds no values, so nothing can be computed on it")
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {args.device}: {str(error).splitlines()[0]}") from error
    failed = 0
    predictions = predict_files(model, files, topk=args.topk, batch_size=args.batch_size)
    # On a terminal the results themselves show the progress; without one on stderr (None), tqdm shows nothing.
    disable = True if len(files) == 1 or sys.stdout.isatty() else None
    with tqdm(predictions, total=len(files), unit=" pictures", disable=disable, leave=False) as bar:
        for prediction in bar:
            if prediction.error:
                failed += 1
                bar.write(one_line(prediction.error), file=sys.stderr)
            elif args.json:
                print(json.dumps({"file": str(prediction.file), "topk": prediction.topk}), flush=True)
            else:
                print(_readable(prediction, len(files) > 1), flush=True)
    return 1 if failed else 0


def _readable(prediction, name_file: bool) -> str:
    lines = [terminal(prediction.file)] if name_file else []
    for entry in prediction.topk:
        label = entry["label"] or f"class {entry['index']}"
        lines.append(f"{100 * entry['prob']:6.2f} %  {terminal(label)}")
    return "\n".join(lines)
