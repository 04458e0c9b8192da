"""The `mnv3` command. A failure is one line on stderr and a non-zero status; --debug shows the traceback."""

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence

from ..errors import ExportError, PublishError, TrainingStopped, WeightsError, one_line
from ..text import Notice
from ..version import __version__
from . import convert, demo, deploy, hub, models, predict, show, train


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 1 for a failure, 2 for wrong usage, 130 for Ctrl-C."""
    parser = _parser()
    args = parser.parse_args(argv)
    _set_up_output(args.debug)
    try:
        status = args.run(args)
        print(end="", flush=True)
        return status
    except BrokenPipeError:  # `mnv3 list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if args.debug:
            raise
        print(one_line(_reason(error)), file=sys.stderr)
        return 130 if getattr(error, "interrupted", False) else 1


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    expected = (ValueError, WeightsError, ExportError, PublishError, TrainingStopped, OSError, ImportError)
    return str(error) if isinstance(error, expected) and str(error) else f"{type(error).__name__}: {error}"


def _set_up_output(debug: bool) -> None:
    """Our notices to stderr; of the Hub client's, which repeat every retry, only errors; no libraries' warnings."""
    handler = logging.StreamHandler()
    handler.setFormatter(Notice())
    logging.getLogger("mnv3").handlers = [handler]
    if not debug:
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        warnings.simplefilter("ignore")
    if getattr(sys.stdout, "errors", None) == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may be of any bytes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mnv3", description="MobileNetV3: models, weights, predictions and training.")
    parser.add_argument("--version", action="version", version=f"mnv3 {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, parents=[common], help=help, description=help)
        sub.set_defaults(run=run)
        return sub

    for group in (models, predict, convert, train, deploy, demo, hub, show):
        group.add_commands(command)
    return parser
