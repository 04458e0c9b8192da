"""The `mnv3` command. A failure is one line on stderr and a non-zero status; --debug shows the traceback."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from . import __version__, arch, catalog


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 1 for a failure, 2 for wrong usage, 130 for Ctrl-C."""
    parser = _parser()
    args = parser.parse_args(argv)
    _set_up_logging(args.debug)
    try:
        status = args.run(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `mnv3 list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if args.debug:
            raise
        print(f"mnv3: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 1


def _set_up_logging(debug: bool) -> None:
    """Our notices to stderr; of the Hub client's, which repeat every retry, only errors."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("mnv3: %(message)s"))
    logging.getLogger("mnv3").handlers = [handler]
    if not debug:
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mnv3", description="MobileNetV3: models, weights and predictions.")
    parser.add_argument("--version", action="version", version=f"mnv3 {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, parents=[common], help=help, description=help)
        sub.set_defaults(run=run)
        return sub

    sub = command("list", list_models, "List the models and their published weights.")
    sub.add_argument("--pretrained", action="store_true", help="only names with weights, as arch.tag")
    sub.add_argument("--json", action="store_true", help="one JSON object a line")

    sub = command("info", info, "Show a model's table: blocks, channels, parameters, MACs, weights.")
    sub.add_argument("arch", metavar="ARCH", help="a name of `mnv3 list`")
    sub.add_argument("--size", type=_positive, help="pixels along a side, for the MACs")

    sub = command("predict", predict, "Classify pictures.")
    sub.add_argument("files", nargs="+", metavar="FILE|FOLDER", help="pictures, or folders of them")
    sub.add_argument("--model", metavar="ARCH[.TAG]", help="a name of `mnv3 list --pretrained`")
    sub.add_argument("--checkpoint", metavar="FILE|FOLDER", help="own weights; a single file needs --model too")
    sub.add_argument("--topk", type=_positive, default=5, metavar="K", help="how many classes (5)")
    sub.add_argument("--batch-size", type=_positive, default=32, metavar="N", help="pictures at a time (32)")
    sub.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps ... (cpu)")
    sub.add_argument("--json", action="store_true", help="one JSON object a line")

    sub = command("convert", convert, "Turn a foreign checkpoint into a weights folder.")
    sub.add_argument(
        "source", metavar="IN", type=Path, help="file or folder in a layout of timm, torchvision, d-li14, mnv3"
    )
    sub.add_argument("out", metavar="OUT", type=Path, help="the folder to write")
    sub.add_argument("--arch", required=True, metavar="ARCH", help="the model that it is for")
    sub.add_argument("--se-order", choices=arch.SE_ORDERS, default="act-se", help="where SE stands (act-se)")
    sub.add_argument("--bn-eps", type=float, help="eps of the batch norms, if not the layout's own")
    sub.add_argument("--drop-background", action="store_true", help="drop class 0 of TensorFlow's 1001")
    sub.add_argument("--ema", action=argparse.BooleanOptionalAction, help="averaged weights, or not (if there are any)")
    sub.add_argument("--force", action="store_true", help="replace OUT")
    return parser


def _positive(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return value


def _table(rows: Iterable[Sequence[object]], align: str) -> Iterator[str]:
    """Rows as columns, each '<' or '>' aligned."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{cell:{a}{w}}" for cell, a, w in zip(row, align, widths, strict=True)).rstrip()


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
    rows = [("name", "params/M", "MACs/M", "px", "classes", "top-1/%", "weights")]
    for e in entries:
        numbers = (f"{e['params'] / 1e6:.2f}", f"{e['macs'] / 1e6:.1f}", e["size"], e["num_classes"])
        rows.append((e["name"], *numbers, e["top1"] or "-", e["source"] or "-"))
    print("\n".join(_table(rows, "<>>>>><")))
    return 0


def info(args: argparse.Namespace) -> int:
    """`mnv3 info ARCH`."""
    name, _ = catalog.split_name(args.arch)
    variant = arch.VARIANTS[name]
    table, size = variant.arch, args.size or variant.size
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
    costs = list(arch.costs(table, size=size, num_classes=variant.num_classes))
    for cost in costs:
        operator, exp, se, act, stride = operators[cost.part]
        shape, numbers = f"{cost.size}^2 x {channels}", (f"{cost.params:,}", f"{cost.macs:,}")
        rows.append((cost.part, shape, operator, exp, cost.channels, se, act, stride, *numbers))
        channels = cost.channels
    total = (f"{sum(c.params for c in costs):,}", f"{sum(c.macs for c in costs):,}")
    rows.append(("total", "", "", "", "", "", "", "", *total))
    print("\n".join(_table(rows, "<><>><<>>>")))
    features = (f"{tap.module} ({tap.channels} channels, stride {tap.reduction})" for tap in arch.taps(table))
    print("\nfeatures:", ", ".join(features))
    records = catalog.checkpoints(name)
    print("weights:" if records else "weights: none published")
    rows = [(r.name, f"top-1 {r.top1} %" if r.top1 else "", r.repo or r.url, r.license) for r in records]
    for line in _table(rows, "<<<<"):
        print(f"  {line}")
    return 0


def predict(args: argparse.Namespace) -> int:
    """`mnv3 predict`."""
    import torch
    from tqdm import tqdm

    from . import images
    from .factory import create_model, load_checkpoint
    from .predict import predict as predict_files

    if args.checkpoint:
        model = load_checkpoint(args.checkpoint, model=args.model)
    elif args.model:
        model = create_model(args.model, pretrained=True)
    else:
        raise ValueError("which model? Give --model (see `mnv3 list --pretrained`) or --checkpoint")
    try:
        model.to(torch.device(args.device))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {args.device}: {str(error).splitlines()[0]}") from error
    files = list(images.find(args.files))
    if not files:
        raise ValueError(f"no pictures in {', '.join(args.files)}")
    failed = 0
    predictions = predict_files(model, files, topk=args.topk, batch_size=args.batch_size)
    with tqdm(predictions, total=len(files), unit="picture", disable=None if len(files) > 1 else True) as bar:
        for prediction in bar:
            if prediction.error:
                failed += 1
                bar.write(f"mnv3: {prediction.error}", file=sys.stderr)
            elif args.json:
                bar.write(json.dumps({"file": str(prediction.file), "topk": prediction.topk}), file=sys.stdout)
            else:
                bar.write(_readable(prediction, len(files) > 1), file=sys.stdout)
    return 1 if failed else 0


def _readable(prediction, name_file: bool) -> str:
    lines = [f"{prediction.file}"] if name_file else []
    for entry in prediction.topk:
        label = entry["label"] or f"class {entry['index']}"
        lines.append(f"{100 * entry['prob']:6.2f} %  {label}")
    return "\n".join(lines)


def convert(args: argparse.Namespace) -> int:
    """`mnv3 convert IN OUT --arch A`."""
    from . import files
    from .convert import convert_state_dict, num_classes_of
    from .factory import check_architecture, create_model

    name, _ = catalog.split_name(args.arch)
    source = args.source
    if source.is_dir():
        check_architecture(source, name)  # padding and eps are not in the tensors
        source = files.weights_in(source)
    if args.out.exists() and not args.force:
        raise FileExistsError(f"{args.out} exists: choose another folder, or replace it with --force")
    checkpoint = files.read_checkpoint(source)
    classes = num_classes_of(checkpoint) - args.drop_background
    model = create_model(args.arch, num_classes=classes, se_order=args.se_order)
    options = {"use_ema": args.ema, "bn_eps": args.bn_eps, "drop_background": args.drop_background}
    model.load_state_dict(convert_state_dict(checkpoint, model, **options))
    folder = files.save(model, args.out, exist_ok=args.force)
    print(f"wrote {folder}: {args.arch}, {classes} classes, sha256 {files.digest(folder / files.WEIGHTS_FILE)}")
    return 0
