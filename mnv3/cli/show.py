"""The commands `mnv3 show ...` and `mnv3 report`."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import DEFAULT_MODEL, MODEL_HELP, Command, positive

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch.nn import Module


def add_commands(command: Command) -> None:
    """Add these commands to the command line's parser."""
    show = command(
        "show", run_show, "Draw a network, what it sees in a picture, a run, or a comparison, as PNG or SVG."
    )
    views = show.add_subparsers(dest="view", required=True, metavar="WHAT")

    def view(name: str, draw: Callable[[argparse.Namespace], Path], help: str, file: str) -> argparse.ArgumentParser:
        sub = views.add_parser(name, help=help, description=help)
        sub.set_defaults(draw=draw)
        sub.add_argument("-o", "--out", metavar="FILE", type=Path, help=f"a .png or .svg to write ({file})")
        sub.add_argument("--dark", action="store_true", help="on black")
        # The command has it too, and its value is not to be lost.
        sub.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of a failure"
        )
        return sub

    sub = view("arch", draw_arch, "Draw the table of a network, what every row costs, and its blocks.", "ARCH.png")
    sub.add_argument("model", metavar="ARCH[.TAG]|FOLDER|FILE", help="a name of `mnv3 list`, or weights")
    _add_arch(sub)
    sub.add_argument("--size", type=positive, metavar="PX", help="pixels along a side (those that it is for)")
    sub.add_argument(
        "--block", type=int, metavar="N", help="draw this block, from 0 (a whole one, and one that halves)"
    )

    sub = view(
        "features",
        draw_features,
        "Draw the feature maps and squeeze-and-excite gates for a picture.",
        "PICTURE.features.png",
    )
    _add_picture(sub)
    sub.add_argument("--what", choices=("maps", "gates"), help="one of the two (both)")

    sub = view("why", draw_why, "Draw where a model sees a class in a picture (Grad-CAM).", "PICTURE.why.png")
    _add_picture(sub)
    sub.add_argument("--class", dest="class_", metavar="C", help="name or index (the most likely one)")

    sub = view("run", draw_run, "Draw a training and its tests.", "RUN.png")
    _add_run(sub)
    sub.add_argument(
        "--what",
        default="curves,confusion,calibration,mistakes",
        metavar="A,B,...",
        help="curves, confusion, calibration, mistakes (all)",
    )

    sub = view("compare", draw_compare, "Draw accuracy against MACs and latency, and an ablation.", "compare.png")
    sub.add_argument("models", nargs="+", metavar="MODEL", help=COMPARED)
    sub.add_argument("--bench", metavar="FILE", type=Path, help="latencies of `mnv3 bench --json` (measured now)")
    sub.add_argument("--no-latency", dest="latency", action="store_false", help="against MACs alone")
    sub.add_argument("--runtime", default="eager", metavar="R", help="of `mnv3 bench` (eager)")
    sub.add_argument("--seconds", type=positive, default=1, metavar="S", help="of measuring each (1)")

    sub = command("report", run_report, "Write all about a run into one HTML file.")
    _add_run(sub)
    sub.add_argument("-o", "--out", metavar="FILE", type=Path, help="a .html to write (RUN/report.html)")
    sub.add_argument(
        "--compare", nargs="+", default=[], metavar="MODEL", help="to compare with, as in `mnv3 show compare`"
    )
    sub.add_argument("--bench", metavar="FILE", type=Path, help="latencies of `mnv3 bench --json`")


COMPARED = (
    "a name of `mnv3 list --pretrained`, torchvision/NAME, NAME=TOP1 or NAME=FILE (of `mnv3 eval --json`) with a name "
    "that `mnv3 bench` takes, a run's folder, a folder of `mnv3 ablate`, or a .json file of published figures"
)


def _add_picture(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("picture", metavar="PICTURE", help="a picture file")
    sub.add_argument("--model", default=DEFAULT_MODEL, metavar="MODEL", help=f"{MODEL_HELP} ({DEFAULT_MODEL})")
    _add_arch(sub)


def _add_arch(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--arch", metavar="ARCH", help="the model, for a single file of weights")


def _add_run(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("folder", metavar="RUN", type=Path, help="a folder that `mnv3 finetune` wrote")
    sub.add_argument("--data", metavar="DATA", help="where the test pictures are now (where the recipe says)")
    sub.add_argument("--data-dir", metavar="FOLDER", help="where torchvision's CIFAR lies now")


def run_show(args: argparse.Namespace) -> int:
    """`mnv3 show WHAT`."""
    file = args.draw(args)
    print(f"wrote {file}")
    return 0


def draw_arch(args: argparse.Namespace) -> Path:
    """`mnv3 show arch`."""
    from .. import loading, show

    stored = loading.kind_of(args.model) in loading.STORED
    model = loading.resolve(args.model, arch=args.arch) if stored else args.model
    file = args.out or Path(f"{Path(args.model).name}.png")
    show.arch(model, size=args.size, block=args.block, path=file, dark=args.dark)
    return file


def draw_features(args: argparse.Namespace) -> Path:
    """`mnv3 show features`."""
    from .. import show

    file = args.out or Path(f"{Path(args.picture).stem}.features.png")
    show.features(*_picture_and_model(args, file), what=args.what, path=file, dark=args.dark)
    return file


def draw_why(args: argparse.Namespace) -> Path:
    """`mnv3 show why`."""
    from .. import show

    file = args.out or Path(f"{Path(args.picture).stem}.why.png")
    show.why(*_picture_and_model(args, file), class_=args.class_, path=file, dark=args.dark)
    return file


def _picture_and_model(args: argparse.Namespace, file: Path) -> tuple["Image", "Module"]:
    """What is drawn into a file; weights may have to be fetched, so all else is looked at first."""
    from ..figures import style
    from ..loading import resolve
    from ..pictures import images

    style.check(file)
    return images.load(args.picture), resolve(args.model, arch=args.arch)


def draw_run(args: argparse.Namespace) -> Path:
    """`mnv3 show run`."""
    from .. import show

    file = args.out or Path(f"{args.folder.resolve().name}.png")
    options = {"data": args.data, "data_dir": args.data_dir}
    show.run(args.folder, what=args.what.split(","), **options, path=file, dark=args.dark)
    return file


def draw_compare(args: argparse.Namespace) -> Path:
    """`mnv3 show compare`."""
    from .. import show

    file = args.out or Path("compare.png")
    options = {name: getattr(args, name) for name in ("bench", "latency", "runtime", "seconds")}
    show.compare(args.models, **options, path=file, dark=args.dark)
    return file


def run_report(args: argparse.Namespace) -> int:
    """`mnv3 report RUN`."""
    from .. import show

    options = {"compare": args.compare, "bench": args.bench, "data": args.data, "data_dir": args.data_dir}
    print(f"wrote {show.report(args.folder, args.out, **options)}")
    return 0
