"""Open damaged files one after the other, in a process of its own, and say of each how it went.

    python worker.py KIND FOLDER...

A FOLDER has files or folders 0, 1, 2 ... each with a damaged copy, and `whole` with the copy that is not. A JSON line
for each case goes into its file `results`: `outcome` is 'refused' (one line of ours), 'same' (the answers of the whole
copy), 'other' (finite answers, but others), or a fault: 'raw' (an exception that is none of ours, or of several lines),
'nan', 'acted' (it started a process, opened a socket or wrote a file). `seconds` and `megabytes` say what it took.
"""

import json
import logging
import os
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch

import mnv3
from mnv3.errors import ExportError, PublishError, TrainingStopped, WeightsError

OURS = (ValueError, WeightsError, ExportError, PublishError, TrainingStopped, FileExistsError, ImportError)
ARCH = "mnv3_small_050"
acts: list[str] = []


def watch(event: str, args: tuple) -> None:
    """Note what a file of weights must never do."""
    if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect"):
        acts.append(f"{event} {args[:1]}")
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        target = os.fsdecode(args[0]) if not isinstance(args[0], int) else "/dev/null"
        if "/mnv3-tests-" not in target and not target.startswith(("/dev/null", "/tmp/", os.environ["TMPDIR"])):
            acts.append(f"writes {target}")


def logits(model: torch.nn.Module) -> torch.Tensor:
    """What a model says of fixed pictures."""
    size = model.pretrained_cfg["input_size"]
    if not (len(size) == 3 and size[0] <= 64 and max(size[1:]) <= 1024):
        raise AssertionError(f"a model for pictures of {size} came through")
    x = torch.rand(1, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return model.eval()(x).float()


def open_weights(path: Path) -> torch.Tensor:
    """A single file."""
    return logits(mnv3.load_checkpoint(path, model=ARCH))


def open_folder(path: Path) -> torch.Tensor:
    """A weights folder, as predict takes it: with its preprocessing and names."""
    from PIL import Image

    model = mnv3.load_checkpoint(path)
    mnv3.transforms(model)(Image.new("RGB", (40, 40)))
    mnv3.factory.class_names(model)
    return logits(model)


def open_foreign(path: Path) -> torch.Tensor:
    """What `mnv3 convert` reads of other frameworks."""
    from mnv3.convert import reading

    file = next(path.glob("*.index")) if path.is_dir() else path
    found = reading.read(file)
    if found is None:  # it does not look like one of theirs any more
        return open_weights(file)
    model = mnv3.create_model(found.arch, **found.options)
    model.load_state_dict(mnv3.convert_state_dict(found.state_dict, model))
    return logits(model)


def open_exported(path: Path) -> torch.Tensor:
    """An exported file: a folder with it and what belongs to it."""
    endings = {".pt2", ".torchscript", ".onnx", ".xml", ".pte", ".tflite", ".param"}
    return logits(mnv3.deploy.load(next(file for file in sorted(path.iterdir()) if file.suffix in endings)))


def open_recipe(path: Path) -> torch.Tensor:
    """A recipe has no answers: its values, as a number."""
    return torch.tensor(float(hash(mnv3.recipe.load(path)) % 2**20))


def open_picture(path: Path) -> torch.Tensor:
    """A picture's pixels."""
    import numpy as np

    return torch.from_numpy(np.asarray(mnv3.images.load(path)).copy()).float()


def open_run(path: Path) -> torch.Tensor:
    """A training that goes on, and what it ends with."""
    folder = mnv3.finetune(path / "recipe.yaml", out=path, resume=True)
    return logits(mnv3.load_checkpoint(folder))


OPENERS = {name.removeprefix("open_"): value for name, value in list(globals().items()) if name.startswith("open_")}


def peak() -> int:
    """Most memory since `reset_peak`, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def reset_peak() -> int:
    """Start again with `peak`; returns what is in use, in MB."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def attempt(opener: Any, path: Path, expected: torch.Tensor | None) -> dict[str, Any]:
    """How one case went."""
    before, start = reset_peak(), time.monotonic()
    acts.clear()
    try:
        answers = opener(path)
    except OURS as error:
        outcome = {"outcome": "refused" if "\n" not in str(error).strip() and str(error) else "raw"}
        outcome |= {"said": f"{type(error).__name__}: {error}"}
    except BaseException as error:
        outcome = {
            "outcome": "raw",
            "said": f"{type(error).__name__}: {error}",
            "trace": traceback.format_exc()[-1500:],
        }
    else:
        if not answers.isfinite().all():
            outcome = {"outcome": "nan"}
        elif expected is None or (answers.shape == expected.shape and torch.allclose(answers, expected, atol=1e-5)):
            outcome = {"outcome": "same"}
        else:
            outcome = {"outcome": "other"}
        if expected is None:
            outcome["answers"] = answers
    if acts:
        outcome = {"outcome": "acted", "said": "; ".join(acts)}
    return outcome | {"seconds": round(time.monotonic() - start, 2), "megabytes": peak() - before}


def main(kind: str, *folders: Path) -> None:
    """Open all of them; results go to files, as libraries print to stdout."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    opener = OPENERS[kind]
    whole = [attempt(opener, next(folder.glob("whole*")), None) for folder in folders]  # which imports the libraries
    sys.addaudithook(watch)
    for folder, first in zip(folders, whole, strict=True):
        expected = first.pop("answers", None)
        names = sorted((path for path in folder.iterdir() if path.stem.isdigit()), key=lambda path: int(path.stem))
        with open(os.open(folder / "results", os.O_WRONLY | os.O_CREAT | os.O_APPEND), "w") as results:
            print(json.dumps({"case": "whole"} | first), file=results, flush=True)
            for path in names:
                print(json.dumps({"case": path.name, "outcome": "died"}), file=results, flush=True)
                print(json.dumps({"case": path.name} | attempt(opener, path, expected)), file=results, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
