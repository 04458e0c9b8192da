"""`mnv3 convert`: a checkpoint from elsewhere becomes a weights folder; with --to, weights for elsewhere."""

import argparse
import logging
from pathlib import Path
from typing import Any

from .. import arch, catalog
from ..text import terminal
from .arguments import Command


def add_commands(command: Command) -> None:
    """Add the command to the parser of cli.py."""
    sub = command("convert", convert, "Turn a foreign checkpoint into a weights folder.")
    sub.add_argument(
        "source",
        metavar="IN",
        type=Path,
        help="file or folder with weights of timm, torchvision, d-li14's ports or mnv3; or a file of TFLite, Keras "
        "(.weights.h5, .h5, .keras) or TF-Slim (.index); with --to, a name of `mnv3 list --pretrained` too",
    )
    sub.add_argument("out", metavar="OUT", type=Path, help="the folder to write; with --to, the .safetensors file")
    sub.add_argument(
        "--to",
        choices=("timm", "torchvision"),
        help="write weights that this package loads strictly, for its own model",
    )
    sub.add_argument(
        "--arch",
        metavar="ARCH[.TAG]",
        help="the model that it is for; TAG says that a file has these weights, with their preprocessing and names of "
        "classes. Files of TFLite, Keras and TF-Slim and checkpoints of timm's train.py say it themselves",
    )
    sub.add_argument("--se-order", choices=arch.SE_ORDERS, help="squeeze-and-excite after the activation or before it")
    sub.add_argument("--bn-eps", type=_eps, metavar="EPS", help="of the batch norms, if not the layout's own")
    sub.add_argument("--drop-background", action="store_true", help="drop class 0 of TensorFlow's 1001")
    sub.add_argument("--ema", action=argparse.BooleanOptionalAction, help="averaged weights, or not (if there are any)")
    sub.add_argument(
        "--calibrate",
        metavar="FOLDER",
        type=Path,
        help="of a quantised TFLite file: correct every layer's mean on some of these pictures (64), which need no "
        "labels",
    )
    sub.add_argument("--force", action="store_true", help="replace OUT if it is a weights folder or, with --to, a file")


def _eps(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:  # true of no NaN
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number between 0 and 1, such as 1e-5")
    return value


def convert(args: argparse.Namespace) -> int:
    """`mnv3 convert IN OUT [--arch A]`."""
    from ..convert import reading
    from ..files import checkpoint, saving

    if args.arch:
        catalog.split_name(args.arch)
    if args.out.exists() and not args.force:
        other = "file" if args.to else "folder"
        raise FileExistsError(f"{args.out} exists: choose another {other}, or replace it with --force")
    kind = reading.kind_of(args.source)
    if args.calibrate and kind != "tflite":
        raise ValueError(f"--calibrate is for quantised TFLite files: {args.source} is none")
    if args.to:
        return _export(args, kind)
    model = _foreign(args, kind) if kind else _checkpoint(args)
    folder = saving.save(model, args.out, exist_ok=args.force)
    name = args.arch or model.pretrained_cfg["architecture"]
    sha256 = checkpoint.digest(folder / saving.WEIGHTS_FILE)
    print(terminal(f"wrote {folder}: {name}, {model.num_classes} classes, sha256 {sha256}"))
    return 0


def _export(args: argparse.Namespace, kind: str | None) -> int:
    """`mnv3 convert IN OUT.safetensors --to timm|torchvision`."""
    from ..convert import writing
    from ..factory import create_model, load_checkpoint
    from ..files import checkpoint

    if kind:
        model = _foreign(args, kind)
    elif not args.source.exists():
        model = create_model(str(args.source), pretrained=True)
    elif args.source.is_dir():
        model = load_checkpoint(args.source, model=args.arch)
    else:
        model = _checkpoint(args)
    target = writing.write(model, args.to, args.out, exist_ok=args.force)
    print(terminal(f"wrote {args.out}: for {target}, sha256 {checkpoint.digest(args.out)}"))
    return 0


def _checkpoint(args: argparse.Namespace) -> Any:
    """The model of a PyTorch checkpoint."""
    from ..factory import create_model, read_source
    from ..files.conversion import convert_state_dict

    found = read_source(args.source, model=args.arch, use_ema=args.ema)
    classes = max(found.weights.num_classes - args.drop_background, 0)
    build = found.model_args | {"num_classes": classes, "in_chans": found.weights.in_chans}
    if args.se_order:
        build["se_order"] = args.se_order
    ours = ("architecture", "source", "file")
    cfg = {key: value for key, value in found.cfg.items() if key not in ours}
    model = create_model(found.name, pretrained_cfg_overlay=cfg, **build)
    eps = found.bn_eps if args.bn_eps is None else args.bn_eps
    options = {"bn_eps": eps, "drop_background": args.drop_background}
    model.load_state_dict(convert_state_dict(found.weights.state_dict, model, **options))
    return model


def _foreign(args: argparse.Namespace, kind: str) -> Any:
    """The model of another framework's file, which says which it is."""
    from ..convert import reading
    from ..factory import create_model
    from ..files.conversion import convert_state_dict

    for option, value in (("--se-order", args.se_order), ("--bn-eps", args.bn_eps)):
        if value is not None:
            raise ValueError(f"{option} is for checkpoints that do not say it: {args.source} does")
    options = {} if args.ema is None else {"use_ema": args.ema}
    if options and kind != "slim":
        raise ValueError(f"--ema and --no-ema are for checkpoints with averaged weights: {args.source} has none")
    if args.calibrate:
        from ..convert.tflite.calibrate import calibrated

        found = calibrated(args.source, args.calibrate)
    else:
        found = reading.read(args.source, **options)
    name, tag = catalog.split_name(args.arch or found.arch)
    other = {key: value for key, value in found.options.items() if key in ("width", "pad_type", "arch")}
    if args.arch and (name != found.arch or other):
        table = "".join(f" with {key}={value!r:.40}" for key, value in other.items())
        raise ValueError(f"{args.source} holds {found.arch}{table}, not {name}: leave --arch out to take it as it is")
    print(terminal(f"{args.source}: {found.arch}; {found.note}"))
    classes = found.options.get("num_classes", arch.VARIANTS[name].num_classes)
    if classes == 1001 and not args.drop_background:
        logging.getLogger("mnv3").warning("class 0 of 1001 is TensorFlow's background: --drop-background drops it")
    build = found.options | {"num_classes": max(classes - args.drop_background, 0)}
    cfg = {} if tag else found.config
    model = create_model(args.arch or name, pretrained_cfg_overlay=cfg, **build)
    model.load_state_dict(convert_state_dict(found.state_dict, model, drop_background=args.drop_background))
    return model
