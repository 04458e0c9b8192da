"""The command `mnv3 demo`."""

import argparse
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

from .arguments import MODEL_HELP, Command, positive

PORT = 8000


def add_commands(command: Command) -> None:
    """Add this command to the command line's parser."""
    sub = command("demo", run_demo, "Write a web page that classifies pictures in the browser, and sends none of them.")
    sub.add_argument("model", metavar="ARCH[.TAG]|FOLDER|FILE", help=f"{MODEL_HELP}; or an ONNX file of `mnv3 export`")
    out = "the folder to write (site; with --serve alone, one that is gone at the end)"
    sub.add_argument("-o", "--out", metavar="FOLDER", type=Path, help=out)
    sub.add_argument(
        "--runtime",
        metavar="FOLDER",
        help="dist of the npm package onnxruntime-web, to be copied; without, the page loads it from jsdelivr",
    )
    sub.add_argument("--webgpu", action="store_true", help="offer to compute on the graphics processor, too")
    sub.add_argument("--half", action="store_true", help="store the weights as float16")
    sub.add_argument("--arch", metavar="ARCH", help="the model, for a single file of weights")
    sub.add_argument("--force", action="store_true", help="replace the folder if it is such a page")
    sub.add_argument("--serve", action="store_true", help="serve the page on this machine until Ctrl-C")
    sub.add_argument("--port", type=positive, metavar="N", help=f"for --serve ({PORT})")


def run_demo(args: argparse.Namespace) -> int:
    """`mnv3 demo MODEL`."""
    from ..demo import server, site
    from ..loading import resolve

    if args.port and not args.serve:
        raise ValueError("--port is for --serve")
    with ExitStack() as stack:
        folder = args.out or Path("site")
        if args.serve and not args.out:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mnv3-demo-"))) / "site"
        # the port first: to find that it is taken after a minute of work would be late
        running = stack.enter_context(server.server(folder, args.port or PORT)) if args.serve else None
        file = Path(args.model)
        model = file if file.suffix.lower() == ".onnx" and file.is_file() else resolve(args.model, arch=args.arch)
        folder = site.write(
            model, folder, runtime=args.runtime, webgpu=args.webgpu, half=args.half, exist_ok=args.force
        )
        if args.out or not running:
            size = sum(file.stat().st_size for file in folder.iterdir())
            print(f"wrote {folder}: {size / 1e6:.1f} MB")
        if running:
            print(f"{server.url_of(running)} (Ctrl-C ends it)", flush=True)
            with suppress(KeyboardInterrupt):
                running.serve_forever()
    return 0
