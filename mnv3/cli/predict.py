"""The command `mnv3 predict`: the most likely classes of pictures, on the screen or into a file."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import catalog
from ..errors import one_line
from ..text import terminal
from .arguments import DEFAULT_MODEL, MODEL_HELP, Command, add_ema, check_model, positive

if TYPE_CHECKING:
    from torch import nn

    from ..pictures.predict import Prediction

COUNTED = 100_000  # files that are listed before the first is read, so that the progress bar knows how many there are


def add_commands(command: Command) -> None:
    """Add the command to the command line's parser."""
    sub = command("predict", predict, "Classify pictures.")
    pictures = sub.add_mutually_exclusive_group(required=True)
    pictures.add_argument("files", nargs="*", default=[], metavar="FILE|FOLDER", help="pictures, or folders of them")
    pictures.add_argument("--files-from", metavar="FILE", help="a list of them, one a line (-: standard input)")
    sub.add_argument("--model", metavar="MODEL", help=f"{MODEL_HELP}, or an exported file ({DEFAULT_MODEL})")
    sub.add_argument(
        "--checkpoint",
        metavar="FILE|FOLDER",
        help="your own weights, where a file that does not say its model needs --model too, or an exported file",
    )
    add_ema(sub)
    sub.add_argument("--topk", type=positive, default=5, metavar="K", help="classes per picture (5)")
    sub.add_argument("--batch-size", type=positive, default=16, metavar="N", help="pictures at a time (16)")
    sub.add_argument("--workers", type=positive, metavar="N", help="threads that read and compute (one a processor)")
    sub.add_argument("--exact", action="store_true", help="decode large JPEGs whole, not at a half or less")
    sub.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps ... (cpu)")
    sub.add_argument("--json", action="store_true", help="one JSON object a picture and line")
    sub.add_argument("--out", metavar="FILE", type=Path, help="write a .jsonl, .csv or .parquet in place of the screen")
    sub.add_argument("--resume", action="store_true", help="go on with an --out that was stopped")
    sub.add_argument("--force", action="store_true", help="replace --out if it is there")


def predict(args: argparse.Namespace) -> int:
    """`mnv3 predict`."""
    if not args.out and (args.resume or args.force):
        raise ValueError("--resume and --force are for --out FILE")
    rank, world = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    if world > 1 and not args.out:
        raise ValueError(f"{world} processes need one file to write to: --out FILE")
    if args.model:
        check_model(args.model)
    files, count = _files(args)  # first what needs no download
    mine = islice(files, rank, None, world)
    errors = 0
    if args.out:
        from ..pictures.prediction_files import PredictionFile

        options = {"resume": args.resume, "exist_ok": args.force, "rank": rank, "world": world}
        with PredictionFile(args.out, _settings(args), **options) as output:
            for prediction in _predictions(args, output.remaining(mine), count=None, silent=rank > 0):
                output.add(prediction)
                errors += bool(prediction.error)
        if _last_of(world):
            print(terminal(f"wrote {args.out}: {output.finish()} pictures"))
        return 1 if errors else 0
    for prediction in _predictions(args, mine, count=count, silent=count == 1 or sys.stdout.isatty()):
        errors += bool(prediction.error)
        if not prediction.error:
            print(_as_json(prediction) if args.json else _readable(prediction, name_file=count != 1), flush=True)
    return 1 if errors else 0


def _files(args: argparse.Namespace) -> tuple[Iterator[Path], int | None]:
    """The pictures, and how many they are if that is soon told."""
    from ..pictures import images

    files = images.find(_listed(args.files_from) if args.files_from else args.files)
    first = list(islice(files, COUNTED))
    if not first:
        raise ValueError(f"no pictures in {args.files_from or ', '.join(args.files)}")
    return chain(first, files), len(first) if len(first) < COUNTED else None


def _listed(source: str) -> Iterator[str]:
    """The lines of a list of files, or of standard input for '-'."""
    with nullcontext(sys.stdin) if source == "-" else open(source, encoding="utf-8", errors="surrogateescape") as lines:
        yield from filter(None, (line.rstrip("\r\n") for line in lines))


def _predictions(
    args: argparse.Namespace, files: Iterable[Path], *, count: int | None, silent: bool
) -> Iterator["Prediction"]:
    """Those of the files, with a bar on a terminal, and each error as a line on stderr."""
    from tqdm import tqdm

    from ..pictures.predict import predict as predict_files

    options = {"topk": args.topk, "batch_size": args.batch_size, "workers": args.workers, "exact": args.exact}
    options["whole_batches"] = bool(args.out)  # in a file no bit depends on where a run was stopped or shared out
    predictions = predict_files(_model(args), files, **options)
    # On a terminal the results themselves show the progress; without one on stderr (None), tqdm shows nothing.
    with tqdm(predictions, total=count, unit=" pictures", disable=silent or None, leave=False) as bar:
        for prediction in bar:
            if prediction.error:
                bar.write(one_line(prediction.error), file=sys.stderr)
            yield prediction


def _model(args: argparse.Namespace) -> "nn.Module":
    import torch

    from .. import loading

    name, arch = (args.checkpoint, args.model) if args.checkpoint else (args.model or DEFAULT_MODEL, None)
    kind = loading.kind_of(name)
    if args.checkpoint and kind not in loading.STORED:
        raise ValueError(f"--checkpoint {name}: no such file or folder")
    if kind == "exported" and (arch or args.device != "cpu"):
        raise ValueError(f"{name}: an exported file says which model it is, and runs on the CPU")
    if kind == "mnv3" and not catalog.checkpoints(base := catalog.split_name(name)[0]):
        raise ValueError(f"no weights are published for {base} (see `mnv3 list`): give your own with --checkpoint")
    model = loading.resolve(name, arch=arch, use_ema=args.use_ema)
    if not (args.checkpoint or args.model):
        logging.getLogger("mnv3").warning("no --model: %s answers", DEFAULT_MODEL)
    try:
        device = torch.device(args.device)
        if device.type == "meta":
            raise RuntimeError("it holds no values, so nothing can be computed on it")
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {args.device}: {str(error).splitlines()[0]}") from error


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """What the predictions depend on."""
    return {name: getattr(args, name) for name in ("model", "checkpoint", "use_ema", "topk", "exact", "batch_size")}


def _last_of(world: int) -> bool:
    """Whether this process is to finish the file, when all are done."""
    if world == 1:
        return True
    from ..train.processes import leave_together, process_group

    process_group()
    return leave_together()


def _as_json(prediction: "Prediction") -> str:
    from ..pictures.prediction_files import as_record

    return json.dumps(as_record(prediction))


def _readable(prediction: "Prediction", *, name_file: bool) -> str:
    """The classes of a picture, a line each, below the file's name if it is wanted."""
    lines = [terminal(prediction.file)] if name_file else []
    for entry in prediction.topk:
        label = entry["label"] or f"class {entry['index']}"
        lines.append(f"{100 * entry['prob']:6.2f} %  {terminal(label)}")
    return "\n".join(lines)
