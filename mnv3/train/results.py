"""The results of a training: written into its folder, and read again with the model's answers to the test pictures."""

import csv
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from ..errors import DataError
from ..factory import load_checkpoint
from ..figures import charts
from ..files.atomic import write_atomically
from ..files.saving import CONFIG_FILE, weights_files
from ..pictures import data
from ..pictures.evaluate import Metrics, probabilities
from .recipe import Recipe, load
from .run_folder import LOG_FILE, RECIPE_FILE, TEST_FILE, Run

logger = logging.getLogger(__name__)
PARTS = ("curves", "confusion", "calibration", "mistakes")  # of a run's picture, see `mnv3.show.run`
NEED_TEST = {"confusion", "calibration", "mistakes"}  # test.json and the model
NEED_ANSWERS = {"calibration", "mistakes"}  # the model's answers to the test pictures


@dataclass(frozen=True)
class Answers:
    """The answers of a run's model to its test pictures."""

    pictures: data.Pictures
    names: list[str]  # of the classes
    labels: Tensor  # (N,)
    probs: Tensor  # (N, classes)


@dataclass(frozen=True)
class Results:
    """The records of a run; what was not asked for is None."""

    folder: Path
    recipe: Recipe
    history: list[dict[str, float | str]]  # the lines of its log
    model: nn.Module | None = None
    test: Metrics | None = None
    answers: Answers | None = None


def write(
    files: Run,
    model: nn.Module,
    classes: Sequence[str],
    history: Sequence[dict[str, float | str]],
    metrics: Metrics | None,
) -> None:
    """Write a weights folder, curves, and what the test gave into a run's folder.

    Args:
        files: The run's folder.
        model: The trained model.
        classes: Names of its classes.
        history: The lines of log.csv.
        metrics: Of the test pictures, if there are any.

    Raises:
        TrainingStopped: The disk is full, for instance.
    """
    for name, content in weights_files(model, label_names=classes).items():
        with files.writing(files.folder / name) as file:
            write_atomically(file, content)
    with files.writing(files.folder / "curves.png") as file:
        charts.curves(history, file)
    if metrics:
        with files.writing(files.folder / "confusion.png") as file:
            charts.confusion(metrics.confusion, metrics.classes, file)
        with files.writing(files.folder / TEST_FILE) as file:
            metrics.save(file)
        logger.info("test top-1 %.2f %%, top-5 %.2f %%, loss %.4f", metrics.top1, metrics.top5, metrics.loss)


def read(
    folder: str | os.PathLike[str], *, what: Sequence[str] = PARTS, data: str | None = None, data_dir: str | None = None
) -> Results:
    """Read as much of a run's folder as some parts of its picture need.

    Args:
        folder: The run's.
        what: Of `PARTS`.
        data, data_dir: Where the test pictures lie now, if not where the recipe says.

    Raises:
        ValueError: It is no run's folder, is not finished, has no test pictures, or they are gone; the message says
            which parts can be drawn without.
        WeightsError: Its weights are damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    if not (folder / RECIPE_FILE).is_file():
        raise ValueError(f"{folder} is no run's folder: it has no {RECIPE_FILE}, which `mnv3 finetune` writes")
    recipe, history = load(folder / RECIPE_FILE), _history(folder / LOG_FILE)
    if NEED_TEST.isdisjoint(what):
        return Results(folder, recipe, history)
    if not (folder / CONFIG_FILE).is_file():
        raise ValueError(
            f"{folder} is not finished ({len(history)} of {recipe.epochs} epochs): go on with "
            "`mnv3 finetune --resume`, or look at its curves alone (--what curves)"
        )
    results = Results(folder, recipe, history, test=_test(folder / TEST_FILE), model=load_checkpoint(folder))
    if NEED_ANSWERS.isdisjoint(what):
        return results
    return replace(results, answers=_answers(results, data or recipe.data, data_dir or recipe.data_dir))


def _history(file: Path) -> list[dict[str, float | str]]:
    try:
        with open(file, encoding="utf-8", newline="") as log:
            rows = list(csv.DictReader(log))
        lines = [{key: text if key == "weights" else float(text) for key, text in row.items()} for row in rows]
        if not {"epoch", "lr", "train_loss"} <= lines[0].keys():
            raise KeyError("epoch, lr or train_loss")
    except FileNotFoundError:
        raise ValueError(f"{file.parent} has no {LOG_FILE}: no epoch is done yet") from None
    except (ValueError, TypeError, LookupError, csv.Error) as error:
        raise ValueError(f"{file}: not the log of a training ({error})") from None
    return lines


def _test(file: Path) -> Metrics:
    try:
        return Metrics.load(file)
    except FileNotFoundError:
        raise ValueError(
            f"{file.parent} has no {TEST_FILE}: there were no test pictures; look at its curves alone (--what curves)"
        ) from None
    except ValueError:
        raise ValueError(f"{file}: not what `mnv3 finetune` writes") from None


def _answers(results: Results, where: str, data_dir: str) -> Answers:
    """Evaluate the model again; a log line says so if it is right more or less often than in test.json."""
    try:
        pictures = data.load(where, "test", data_dir=data_dir)
    except DataError as error:
        raise ValueError(
            f"the test pictures of {results.folder} are gone ({error}): say where they are (--data, --data-dir), or "
            "leave out what needs them (--what curves,confusion)"
        ) from None
    names, labels, probs = probabilities(results.model, pictures, workers=results.recipe.workers)
    top1, before = 100 * (probs.argmax(1) == labels).float().mean().item(), results.test.top1
    if abs(top1 - before) > 0.05 + 100 / len(labels):
        logger.warning("%s: %.2f %% on these pictures, but %s has %.2f %%", results.folder, top1, TEST_FILE, before)
    return Answers(pictures, names, labels, probs)
