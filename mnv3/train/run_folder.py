"""The folder of a training: its recipe, log and checkpoints, from which it goes on exactly, and its result.

recipe.yaml          the recipe, all keys given
data.json            the classes and which pictures there are (see `inventory`)
log.csv              a line for each epoch
tensorboard/         the same for TensorBoard
checkpoints/last-N/  weights, their average, optimiser and progress after N updates; the newest alone is kept
checkpoints/best.safetensors  the weights that were best on the validation pictures
config.json, model.safetensors, golden.safetensors   in the end: a weights folder (see `files.save`)
test.json, confusion.png, curves.png                 in the end
.lock                while a training is at it (see `folder_lock`)
"""

import csv
import hashlib
import io
import json
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as as_bytes
from torch import Tensor

from ..errors import TrainingStopped, WeightsError
from ..files.atomic import is_draft, new_folder, remove_dead_drafts, write_atomically
from ..files.checkpoint import digest, read_checkpoint
from ..files.saving import plain_tensors
from .folder_lock import LOCK_FILE
from .inventory import difference
from .recipe import Recipe, load

logger = logging.getLogger(__name__)
RECIPE_FILE, DATA_FILE, LOG_FILE, TEST_FILE = "recipe.yaml", "data.json", "log.csv", "test.json"
OLD_DRAFT = re.compile(
    r"\.draft-\d+|\.((recipe\.yaml|log\.csv|test\.json|config\.json|(best|model|golden)\.safetensors)"
    r"|(curves|confusion)\.png)\.\d+"
)
# What may differ between the parts of one training.
MACHINE_KEYS = ("data_dir", "download", "workers")
# Of a checkpoint's state, which 0.1.0 wrote too.
STATE_KEYS = {"epoch": int, "update": int, "history": list, "sums": dict, "skipped": int, "world": int}
STATE_KEYS |= {"optimizer": dict, "scheduler": dict, "scaler": dict}


class Run:
    """A run's folder. Nothing is ever half-written in it under a final name."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.checkpoints = self.folder / "checkpoints"
        self.best = self.checkpoints / "best.safetensors"

    def check(self, recipe: Recipe, *, resume: bool) -> None:
        """Raise unless this training may start here, or go on.

        Raises:
            FileExistsError: The folder has something in it, and it is not to be resumed.
            ValueError: It is another recipe's.
        """
        if not self.folder.is_dir() or not any(map(self._counts, self.folder.iterdir())):
            return
        recipe_file = self.folder / RECIPE_FILE
        if not resume or not recipe_file.is_file():
            go_on = "go on with --resume, or " if recipe_file.is_file() else ""
            raise FileExistsError(f"{self.folder} is not empty: {go_on}choose another folder (--out)")
        before = load(recipe_file)
        for key in Recipe.__dataclass_fields__:
            old, new = getattr(before, key), getattr(recipe, key)
            if old != new and key not in MACHINE_KEYS:
                raise ValueError(f"{self.folder} was started with {key}: {old}, not {new}: it cannot be resumed so")

    def _counts(self, path: Path) -> bool:
        """Whether this is more than a training leaves that was killed before it had written its recipe."""
        if path == self.checkpoints:
            return not path.is_dir() or any(map(self._counts, path.iterdir()))
        return path.name != LOCK_FILE and not is_draft(path) and not _is_old_draft(path)

    def check_pictures(self, inventory: Mapping[str, Any]) -> None:
        """Raise if the run has learnt from other pictures.

        Args:
            inventory: Of the pictures that it is to go on with, see inventory.py.

        Raises:
            ValueError: It has; the message names the first difference.
            WeightsError: data.json is damaged.
        """
        file = self.folder / DATA_FILE
        if not (last := self.last()):
            return
        if not file.is_file():
            logger.warning(
                "%s does not say which pictures it was trained on, as from mnv3 0.1.0: unchecked", self.folder
            )
            return
        try:
            change = difference(json.loads(file.read_text(encoding="utf-8")), inventory)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise WeightsError(f"{file}: cannot be read: remove it to go on without a look at the pictures") from error
        if change:
            weights = [self.best, last / "ema.safetensors", last / "model.safetensors"]
            start = next(path for path in weights if path.is_file() or path == weights[-1])
            advice = f"put the pictures back, or start anew from its weights (--set checkpoint={start}, another --out)"
            raise ValueError(f"{self.folder} was trained on other pictures: {change}: {advice}")

    def start(self, recipe: Recipe, inventory: Mapping[str, Any]) -> None:
        """Make the folder, note the recipe and the pictures, and remove what a killed process left half-written."""
        with self.writing(self.folder / RECIPE_FILE) as file:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                write_atomically(file, recipe.to_yaml().encode())
        with self.writing(self.folder / DATA_FILE) as file:
            if not (file.exists() and self.last()):
                write_atomically(file, json.dumps(inventory).encode())
        with self.writing(self.checkpoints):
            self.checkpoints.mkdir(exist_ok=True)
        for folder in (self.folder, self.checkpoints):
            remove_dead_drafts(folder)
            for draft in filter(_is_old_draft, list(folder.iterdir())):
                _remove(draft)

    @contextmanager
    def writing(self, path: Path) -> Iterator[Path]:
        """Write a file in this block, which gets its path; an error of the system stops the training in one line.

        Raises:
            TrainingStopped: The disk is full, for instance; what was written before stays.
        """
        try:
            yield path
        except OSError as error:
            advice = "make room or allow it, then go on with --resume"
            raise TrainingStopped(f"{path} cannot be written: {error.strerror or error}: {advice}") from error

    def last(self) -> Path | None:
        """The newest checkpoint."""
        checkpoints = [path for path in self.checkpoints.glob("last-*") if path.name[5:].isdecimal()]
        return max(checkpoints, default=None, key=lambda path: int(path.name[5:]))

    def save(self, updates: int, weights: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        """Write a checkpoint beside the one before, then remove that.

        Args:
            updates: How many updates it comes after.
            weights: State dicts by the names of their files.
            state: What else goes on: tensors and plain values.

        Raises:
            TrainingStopped: The disk is full, for instance; the checkpoint before stays.
        """
        final = self.checkpoints / f"last-{updates}"
        if final.exists():
            return
        contents = {f"{name}.safetensors": as_bytes(plain_tensors(tensors)) for name, tensors in weights.items()}
        sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        plain = io.BytesIO()
        torch.save(state | {"sha256": sha256}, plain)
        with self.writing(final), new_folder(final.absolute()) as draft:
            for name, content in (contents | {"state.pt": plain.getvalue()}).items():
                (draft / name).write_bytes(content)
        for old in self.checkpoints.glob("last-*"):
            if old != final:
                _remove(old)

    def read(
        self, checkpoint: Path, *, world: int, updates: int, has_val: bool
    ) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Read what `save` wrote: state dicts by the names of their files, and the state.

        Args:
            checkpoint: One of the run's.
            world: Number of processes of the training that is to go on.
            updates: In an epoch of it.
            has_val: Whether it has validation pictures.

        Raises:
            WeightsError: It is damaged, or something is missing.
            ValueError: It is of another number of processes, or of other pictures.
        """
        file, advice = checkpoint / "state.pt", f"put it back, or remove {checkpoint} to start again"
        try:
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()  # torch.load does not look at the sums
            state = None if damaged else torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch, pickle and zipfile each have their own
            raise WeightsError(f"{file}: cannot be read: {advice}") from error
        if not isinstance(state, dict):
            raise WeightsError(f"{file}: is damaged: {advice}")
        if odd := [key for key, kind in STATE_KEYS.items() if type(state.get(key)) is not kind]:
            raise WeightsError(f"{file}: {odd[0]} is missing or of another type: {advice}")
        for name, expected in state.pop("sha256", {}).items():
            if not (checkpoint / name).is_file() or digest(checkpoint / name) != expected:
                raise WeightsError(f"{checkpoint / name}: is missing or damaged: {advice}")
        if state["world"] != world:
            raise ValueError(f"{self.folder} was trained by {state['world']} processes, not {world}: resume so")
        if checkpoint.name != f"last-{state['epoch'] * updates + state['update']}":
            counts = f"epoch {state['epoch']}, update {state['update']} of {updates}"
            raise ValueError(f"{checkpoint} does not come after {counts}: the pictures have changed, or it is damaged")
        if state["history"] and has_val and not self.best.is_file():
            raise WeightsError(
                f"{self.best} is missing, the best weights so far: put it back, or start anew from those of "
                f"{checkpoint} (checkpoint=, another --out)"
            )
        return {path.stem: read_checkpoint(path) for path in checkpoint.glob("*.safetensors")}, state

    def write_log(self, history: list[dict[str, Any]]) -> None:
        """Write log.csv whole, so that an epoch that is done again is not in it twice."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        with self.writing(self.folder / LOG_FILE) as file:
            write_atomically(file, text.getvalue().encode())


def _is_old_draft(path: Path) -> bool:
    """Whether this is a draft as mnv3 0.1.0 named them, and nothing of the user's."""
    return OLD_DRAFT.fullmatch(path.name) is not None


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
