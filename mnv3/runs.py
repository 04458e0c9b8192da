"""The folder of a training: its recipe, log and checkpoints, from which it goes on exactly, and its result.

recipe.yaml          the recipe, all keys given
log.csv              a line for each epoch
tensorboard/         the same for TensorBoard
checkpoints/last-N/  weights, their average, optimiser and progress after N updates; the newest alone is kept
checkpoints/best.safetensors  the weights that were best on the validation pictures
config.json, model.safetensors, golden.safetensors   in the end: a weights folder (see `files.save`)
test.json, confusion.png, curves.png                 in the end
"""

import csv
import io
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import WeightsError
from .files import plain_tensors, read_checkpoint, write_atomically
from .recipe import Recipe, load

RECIPE_FILE, LOG_FILE, TEST_FILE = "recipe.yaml", "log.csv", "test.json"
# What may differ between the parts of one training.
MACHINE_KEYS = ("data_dir", "download", "workers")


class Run:
    """A run's folder. Nothing is ever half-written in it under a final name."""

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        self.checkpoints = self.folder / "checkpoints"
        self.best = self.checkpoints / "best.safetensors"

    def check(self, recipe: Recipe, *, resume: bool) -> None:
        """Raise unless this training may start here, or go on.

        Raises:
            FileExistsError: The folder has something in it, and it is not to be resumed.
            ValueError: It is another recipe's.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise FileExistsError(f"{self.folder} is a file: choose another folder (--out)")
        if not self.folder.is_dir() or not any(self.folder.iterdir()):
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

    def start(self, recipe: Recipe) -> None:
        """Make the folder and note the recipe."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        if not (self.folder / RECIPE_FILE).exists():
            write_atomically(self.folder / RECIPE_FILE, recipe.to_yaml().encode())

    def last(self) -> Path | None:
        """The newest whole checkpoint."""
        return max(self.checkpoints.glob("last-*"), default=None, key=lambda path: int(path.name[5:]))

    def save(self, updates: int, weights: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        """Write a checkpoint beside the one before, then remove that.

        Args:
            updates: How many updates it comes after.
            weights: State dicts by the names of their files.
            state: What else goes on: tensors and plain values.
        """
        from safetensors.torch import save_file

        final = self.checkpoints / f"last-{updates}"
        if final.exists():
            return
        draft = self.checkpoints / f".draft-{updates}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        for name, state_dict in weights.items():
            save_file(plain_tensors(state_dict), draft / f"{name}.safetensors")
        torch.save(state, draft / "state.pt")
        for file in draft.iterdir():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
        draft.replace(final)
        for old in [*self.checkpoints.glob("last-*"), *self.checkpoints.glob(".draft-*")]:
            if old != final:
                shutil.rmtree(old)

    def read(self, checkpoint: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """What `save` wrote; weights by name, and the state.

        Raises:
            WeightsError: It is damaged.
        """
        weights = {file.stem: read_checkpoint(file) for file in checkpoint.glob("*.safetensors")}
        try:
            state = torch.load(checkpoint / "state.pt", map_location="cpu", weights_only=True)
        except Exception as error:  # torch, pickle and zipfile each have their own
            raise WeightsError(f"{checkpoint / 'state.pt'}: cannot be read: remove {checkpoint}") from error
        return weights, state

    def write_log(self, history: list[dict[str, Any]]) -> None:
        """log.csv, whole, so that an epoch that is done again is not in it twice."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        write_atomically(self.folder / LOG_FILE, text.getvalue().encode())
