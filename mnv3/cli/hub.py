"""The commands `mnv3 push`, `pull`, `verify` and `card`."""

import argparse
import sys
from pathlib import Path

from ..errors import WeightsError, one_line
from ..text import terminal
from .arguments import Command


def add_commands(command: Command) -> None:
    """Add these commands to the command line's parser."""
    sub = command("push", run_push, "Publish weights folders of the catalog on the Hugging Face Hub.")
    sub.add_argument("folders", nargs="*", metavar="FOLDER", type=Path, help="weights/ARCH.TAG")
    sub.add_argument("--all", action="store_true", help="all that ship with mnv3")
    sub.add_argument(
        "--repo", metavar="NAMESPACE/NAME", help="where to (in MNV3_NAMESPACE, or the catalog's namespace)"
    )
    sub.add_argument("--private", action="store_true", help="make a new repository private")
    sub.add_argument("--revision", metavar="BRANCH", help="a branch, made if it does not exist (main)")
    sub.add_argument("--dry-run", action="store_true", help="check and compare, change nothing")

    sub = command("pull", run_pull, "Fetch a weights folder, verified.")
    sub.add_argument("source", metavar="NAMESPACE/NAME|ARCH.TAG", help="a repository, or a name of `mnv3 list`")
    sub.add_argument("out", nargs="?", metavar="OUT", type=Path, help="the folder to write (NAME)")
    sub.add_argument("--revision", metavar="REV", help="a branch, tag or commit")
    sub.add_argument("--force", action="store_true", help="replace OUT if it is a weights folder")

    sub = command("verify", run_verify, "Hold weights against the catalog: hash, strict load, golden logits.")
    sub.add_argument(
        "sources",
        nargs="*",
        metavar="FOLDER|NAMESPACE/NAME[@REV]|ARCH.TAG",
        help="folders, repositories, names of `mnv3 list` (all that ship with mnv3)",
    )

    sub = command("card", run_card, "Write model cards from the catalog.")
    sub.add_argument(
        "folders",
        nargs="*",
        metavar="FOLDER",
        type=Path,
        help="weights/ARCH.TAG (all that ship with mnv3, and the page on them)",
    )


def _shipped() -> list[Path]:
    """The weights folders that ship with this copy of mnv3."""
    from ..files import fetch
    from ..hub import cards

    folders = [folder for weights in fetch.LOCAL_WEIGHTS for _, folder in cards.shipped(weights)]
    if not folders:
        raise WeightsError(f"no weights ship with this copy of mnv3, in {fetch.LOCAL_WEIGHTS[-1]}: name folders")
    here = Path.cwd()
    return [folder.relative_to(here) if folder.is_relative_to(here) else folder for folder in folders]


def _quiet_bars() -> None:
    """No progress bars of the Hub's client into a file or a pipe."""
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()


def run_push(args: argparse.Namespace) -> int:
    """`mnv3 push FOLDER ...`."""
    from ..hub.publish import push

    if bool(args.folders) == args.all:
        raise ValueError("give folders to push, or --all")
    _quiet_bars()
    folders = args.folders or _shipped()
    if args.repo and len(folders) > 1:
        raise ValueError(f"--repo {args.repo} is for one folder, and there are {len(folders)}: set MNV3_NAMESPACE")
    for folder in folders:
        done = push(folder, repo=args.repo, private=args.private, revision=args.revision, dry_run=args.dry_run)
        print(terminal(done), flush=True)
    return 0


def run_pull(args: argparse.Namespace) -> int:
    """`mnv3 pull SOURCE [OUT]`."""
    from ..hub.publish import pull

    _quiet_bars()
    folder = pull(args.source, args.out, revision=args.revision, exist_ok=args.force)
    print(terminal(f"wrote {folder}: try `mnv3 predict --checkpoint {folder} PICTURE`"))
    return 0


def run_verify(args: argparse.Namespace) -> int:
    """`mnv3 verify [SOURCE ...]`."""
    from ..hub.verify import verify

    _quiet_bars()
    status = 0
    for source in args.sources or _shipped():
        try:
            print(terminal(verify(source)), flush=True)
        except (WeightsError, ValueError, OSError) as error:
            status = 1
            print(one_line(error), file=sys.stderr)
    return status


def run_card(args: argparse.Namespace) -> int:
    """`mnv3 card [FOLDER ...]`."""
    from ..files.atomic import write_atomically
    from ..hub import cards
    from ..hub.verify import record_of

    pages = {folder / cards.CARD_FILE: cards.card(record_of(folder), folder) for folder in args.folders or _shipped()}
    if not args.folders:
        weights = next(iter(pages)).parent.parent
        pages[weights / cards.CARD_FILE] = cards.index(weights)
    for file, text in pages.items():
        write_atomically(file, text.encode())
        print(terminal(f"wrote {file}"))
    return 0
