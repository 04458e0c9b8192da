"""Model cards, made from the catalog and from what a weights folder records of its training; `mnv3 card` writes them.

The text is in templates/: card.md says what the model is, its figures with the command that gives them, how to load it,
how it was trained, its licence and hash; `<arch>.<tag>.md` and `<tag>.md` add what is to be said of one model in
sentences; weights.md is the page on all of them. Nobody edits a card: what is wrong in it is wrong there or in
catalog.py, and `mnv3 push` refuses a folder whose card is another than the one made here.
"""

import dataclasses
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..arch import VARIANTS, count_macs, count_params
from ..catalog import CATALOG, ORG, WEIGHTS_FILE, Checkpoint
from ..errors import WeightsError
from ..pictures.evaluate import Metrics
from ..text import markdown
from ..train import recipe as recipes
from ..train.run_folder import MACHINE_KEYS, RECIPE_FILE, TEST_FILE
from ..version import __version__

CARD_FILE = "README.md"
SHOWN = ("epochs", "batch_size", "optimizer", "lr", "schedule")  # of a recipe, also where they are the default
ELSEWHERE = ("model", "data", "mean", "std", *MACHINE_KEYS)  # of a recipe, in other parts of the card


def card(record: Checkpoint, folder: str | os.PathLike[str], *, repo: str | None = None) -> str:
    """The model card of a checkpoint of our own: Markdown, with the Hub's metadata at its head.

    Args:
        record: Its entry of the catalog.
        folder: Its weights folder, for what the catalog does not have: test.json and recipe.yaml, if they are there.
        repo: The repository that it is to be loaded from, if not the catalog's.

    Raises:
        WeightsError: The checkpoint is of others, test.json has another accuracy than the catalog, or one of the two
            files cannot be read.
    """
    from huggingface_hub import ModelCard

    if not record.ours:
        raise WeightsError(f"{record.name} is published by its authors, at {record.repo or record.url}")
    metrics = _metrics(record, Path(folder))
    params, macs = _costs(record)
    text = _render(
        [f"{record.name}.md", f"{record.tag}.md", "card.md"],
        record=record,
        metrics=metrics,
        metadata=_metadata(record, metrics).to_yaml(),
        arch=VARIANTS[record.arch].arch,
        size=record.input_size[-1],
        repo=repo or record.repo,
        project=f"https://github.com/{ORG}/mnv3",
        release=f"{ORG}/mnv3:v{__version__}",
        settings=_settings(record, Path(folder)),
        params=params,
        macs=macs,
    )
    return ModelCard(text).content


def same(card: str, expected: str) -> bool:
    """Whether two cards say the same, however the metadata is laid out: that differs by version of the Hub's client."""
    from huggingface_hub import ModelCard

    try:
        one, other = ModelCard(card), ModelCard(expected)
    except Exception:  # no YAML, or not the Hub's
        return False
    return (one.data.to_dict(), one.text.strip()) == (other.data.to_dict(), other.text.strip())


def index(weights: str | os.PathLike[str]) -> str:
    """The page on a folder of weights folders, with a table of those that are in it."""
    rows = [
        (record, *_costs(record), (folder / WEIGHTS_FILE).stat().st_size / 1e6) for record, folder in shipped(weights)
    ]
    return _render(["weights.md"], rows=rows)


def shipped(weights: str | os.PathLike[str]) -> Iterator[tuple[Checkpoint, Path]]:
    """The checkpoints of our own that have a folder in `weights`, and that folder."""
    for record in CATALOG:
        folder = Path(weights) / record.name
        if record.ours and (folder / WEIGHTS_FILE).is_file():
            yield record, folder


def _render(templates: list[str], **values: object) -> str:
    """The first template that exists, with the values filled in; names out of files pass through `markdown` in it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"markdown": markdown, "paragraph": _paragraph}
    return environment.select_template(templates).render(**values)


def _paragraph(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False) + "\n"


def _costs(record: Checkpoint) -> tuple[float, float]:
    """Parameters and MACs, in millions."""
    arch, classes = VARIANTS[record.arch].arch, record.num_classes
    macs = count_macs(arch, size=record.input_size[-1], num_classes=classes)
    return count_params(arch, num_classes=classes) / 1e6, macs / 1e6


def _settings(record: Checkpoint, folder: Path) -> dict[str, str]:
    """What to say of the recipe: its usual keys, and all that are not the default."""
    if not record.recipe:
        return {}
    file = folder / RECIPE_FILE
    try:
        recipe = recipes.load(file if file.is_file() else record.recipe)
    except ValueError as error:
        raise WeightsError(str(error)) from None
    settings = {}
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        if field.name in SHOWN or (value != field.default and field.name not in ELSEWHERE):
            settings[field.name] = " ".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()
    return settings


def _metrics(record: Checkpoint, folder: Path) -> Metrics | None:
    """The metrics of the test after the training, if the folder has them."""
    file = folder / TEST_FILE
    if not file.is_file():
        return None
    try:
        metrics = Metrics.load(file)
    except ValueError as error:
        raise WeightsError(str(error)) from None
    if (top1 := round(metrics.top1, 2)) != record.top1:
        raise WeightsError(
            f"{file} has a top-1 of {top1} %, the catalog {record.top1} %: one of them is of other weights"
        )
    return metrics


def _metadata(record: Checkpoint, metrics: Metrics | None) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    values = {"Top 1 Accuracy": record.top1} if record.top1 else {}
    values |= {"Top 5 Accuracy": metrics.top5} if metrics else {}
    data, _, split = record.data.rpartition(" ")
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=record.dataset,
            dataset_name=data,
            dataset_split=split,
            metric_type="accuracy",
            metric_name=name,
            metric_value=round(value / 100, 4),  # the Hub's accuracy is a fraction
            metric_args={"command": record.measured},
        )
        for name, value in values.items()
    ]
    return ModelCardData(
        license=record.license,
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "transformers", "mnv3", "mobilenetv3"],
        datasets=[record.dataset],
        metrics=["accuracy"] if results else None,
        model_name=record.name,
        eval_results=results or None,
    )
