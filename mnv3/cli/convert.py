"""`mnv3 convert`: a checkpoint from elsewhere becomes a weights folder; with --to, weights for elsewhere."""

import argparse
from pathlib import Path

from .. import arch
from ..text import terminal
from .arguments import Command, add_ema


def add_commands(command: Command) -> None:
    """Add the command to the command line's parser."""
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
    add_ema(sub)
    sub.add_argument(
        "--calibrate",
        metavar="FOLDER",
        type=Path,
        help="of a quantised TFLite file: correct every layer's mean on some of these pictures (64), which need no "
        "labels",
    )
    sub.add_argument("--half", action="store_true", help="store the weights as float16, in a folder of half the size")
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
    """`mnv3 convert IN OUT [--arch A] [--to timm|torchvision]`."""
    from .. import loading
    from ..convert import writing
    from ..files import checkpoint, saving

    if args.out.exists() and not args.force:
        other = "file" if args.to else "folder"
        raise FileExistsError(f"{args.out} exists: choose another {other}, or replace it with --force")
    if args.to and args.half:
        raise ValueError("--half is for weights folders, not for --to")
    if args.to and not args.source.exists():
        model = loading.resolve(str(args.source))
    else:
        options = ("arch", "se_order", "bn_eps", "drop_background", "use_ema", "calibrate")
        model = loading.load(args.source, verbose=True, **{name: getattr(args, name) for name in options})
    if args.to:
        out = file = args.out
        what = f"for {writing.write(model, args.to, out, exist_ok=args.force)}"
    else:
        out = saving.save(model, args.out, half=args.half, exist_ok=args.force)
        file = out / saving.WEIGHTS_FILE
        what = f"{args.arch or model.pretrained_cfg['architecture']}, {model.num_classes} classes"
    print(terminal(f"wrote {out}: {what}, sha256 {checkpoint.digest(file)}"))
    return 0
