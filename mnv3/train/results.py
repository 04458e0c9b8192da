"""What a finished training says: its log, its tests, its model's answers."""

import csv
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..factory import load_checkpoint
from ..files.saving import CONFIG_FILE
from ..pictures import data
from ..pictures.evaluate import probabilities
from .recipe import Recipe, load
from .run_folder import LOG_FILE, RECIPE_FILE, TEST_FILE

logger = logging.getLogger(__name__)
PARTS = ("curves", "confusion", "calibration", "mistakes")


NEED = {"confusion": "test", "calibration": "pictures", "mistakes": "pictures"}


@dataclass(frozen=True)
class Answers:
    """What the run's model says of its test pictures."""

    pictures: data.Pictures
    names: list[str]
    labels: Tensor  # (N,)
    probs: Tensor  # (N, classes)


@dataclass(frozen=True)
class Results:
    """What is known of a run."""

    folder: Path
    recipe: Recipe
    history: list[dict[str, Any]]  # the lines of its log
    model: nn.Module | None = None
    test: dict[str, Any] | None = None  # test.json
    answers: Answers | None = None

    @property
    def classes(self) -> list[str]:
        """Names in the order of the confusion matrix."""
        return list(self.test.get("classes") or self.test["per_class"])


def read(
    folder: str | os.PathLike, *, what: Sequence[str] = PARTS, data: str | None = None, data_dir: str | None = None
) -> Results:
    """What some parts of a run's picture need; errors as for `run`."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    if not (folder / RECIPE_FILE).is_file():
        raise ValueError(f"{folder} is no run's folder: it has no {RECIPE_FILE}, which `mnv3 finetune` writes")
    recipe, history = load(folder / RECIPE_FILE), _history(folder / LOG_FILE)
    needs = {NEED[name] for name in what if name in NEED}
    if not needs:
        return Results(folder, recipe, history)
    if not (folder / CONFIG_FILE).is_file():
        raise ValueError(
            f"{folder} is not finished ({len(history)} of {recipe.epochs} epochs): go on with "
            "`mnv3 finetune --resume`, or look at its curves alone (--what curves)"
        )
    test = _test(folder / TEST_FILE)
    model = load_checkpoint(folder)
    answers = _answers(folder, recipe, test, model, data, data_dir) if "pictures" in needs else None
    return Results(folder, recipe, history, model, test, answers)


def _history(file: Path) -> list[dict[str, Any]]:
    try:
        with open(file, encoding="utf-8", newline="") as opened:
            lines = list(csv.DictReader(opened))
        found = [{key: text if key == "weights" else float(text) for key, text in line.items()} for line in lines]
        if not {"epoch", "lr", "train_loss"} <= found[0].keys():
            raise KeyError("epoch, lr or train_loss")
    except FileNotFoundError:
        raise ValueError(f"{file.parent} has no {LOG_FILE}: no epoch is done yet") from None
    except (ValueError, TypeError, LookupError, csv.Error) as error:
        raise ValueError(f"{file}: not the log of a training ({error})") from None
    return found


def _test(file: Path) -> dict[str, Any]:
    try:
        test = json.loads(file.read_text(encoding="utf-8"))
        shape, classes = np.array(test["confusion"], dtype=int).shape, test.get("classes") or test["per_class"]
        if shape != (len(classes), len(classes)) or not set(test["per_class"]) <= set(classes):
            raise KeyError("confusion")
        return test | {"top1": float(test["top1"]), "per_class": dict(test["per_class"])}
    except FileNotFoundError:
        raise ValueError(
            f"{file.parent} has no {TEST_FILE}: there were no test pictures; look at its curves alone (--what curves)"
        ) from None
    except (ValueError, TypeError, LookupError, RecursionError):
        raise ValueError(f"{file}: not what `mnv3 finetune` writes") from None


def _answers(
    folder: Path, recipe: Recipe, test: dict[str, Any], model: nn.Module, place: str | None, data_dir: str | None
) -> Answers:
    try:
        pictures = data.load(place or recipe.data, "test", data_dir=data_dir or recipe.data_dir)
    except data.DataError as error:
        raise ValueError(
            f"the test pictures of {folder} are gone ({error}): say where they are (--data, --data-dir), or leave out "
            "what needs them (--what curves,confusion)"
        ) from None
    names, labels, probs = probabilities(model, pictures, workers=recipe.workers)
    top1 = 100 * (probs.argmax(1) == labels).float().mean().item()
    if abs(top1 - test["top1"]) > 0.05 + 100 / len(labels):
        logger.warning("%s: %.2f %% on these pictures, but %s has %.2f %%", folder, top1, TEST_FILE, test["top1"])
    return Answers(pictures, names, labels, probs)
