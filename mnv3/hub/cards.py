"""Model cards, made from the catalog and from what a weights folder records of its training; `mnv3 card` writes them.

A card says what the model is, its figures with the command that gives them, how to load it, how it was trained, what it
is for, its licence and hash; its head is the Hub's metadata. Nobody edits one: what is wrong in it is wrong here or in
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
from ..text import markdown, markdown_table
from ..train import recipe as recipes
from ..train.run_folder import LOG_FILE, MACHINE_KEYS, RECIPE_FILE, TEST_FILE
from ..version import __version__

CARD_FILE = "README.md"
SHOWN = ("epochs", "batch_size", "optimizer", "lr", "schedule")  # of a recipe, also where they are the default
ELSEWHERE = ("model", "data", "mean", "std", *MACHINE_KEYS)  # of a recipe, in other parts of the card


def card(record: Checkpoint, folder: str | os.PathLike, *, repo: str | None = None) -> str:
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
    repo, folder = repo or record.repo, Path(folder)
    metrics = _metrics(record, folder)
    parts = (
        f"# {record.name}",
        *_figures(record, metrics),
        *_loading(record, repo),
        *_training(record, folder),
        "## Use and limits",
        _fill(record.limits or f"See {record.origin}."),
        "## Licence and source",
        _fill(
            f"{record.license}, {record.origin}. MobileNetV3: Howard et al., *Searching for MobileNetV3*, ICCV 2019, "
            "[arXiv:1905.02244](https://arxiv.org/abs/1905.02244)."
        ),
        "## Check",
        f"SHA-256 of {WEIGHTS_FILE}: `{record.sha256}`",
        _fill(
            f"`mnv3 verify {repo}` compares it, loads the weights strictly, and runs golden.safetensors: inputs and "
            "the logits that the model gave for them."
        ),
    )
    head = _metadata(record, metrics).to_yaml()
    return ModelCard(f"---\n{head}\n---\n\n" + "\n\n".join(parts) + "\n").content


def same(found: str, expected: str) -> bool:
    """Whether two cards say the same, however the metadata is laid out: that differs by version of the Hub's client."""
    from huggingface_hub import ModelCard

    try:
        one, other = ModelCard(found), ModelCard(expected)
    except Exception:  # no YAML, or not the Hub's
        return False
    return (one.data.to_dict(), one.text.strip()) == (other.data.to_dict(), other.text.strip())


def index(weights: str | os.PathLike) -> str:
    """The page on a folder of weights folders, with a table of those that are in it."""
    rows = [("weights", "top-1 / %", "of", "params / M", "MACs / M", "px", "MB", "SHA-256")]
    for record, folder in shipped(weights):
        megabytes = f"{(folder / WEIGHTS_FILE).stat().st_size / 1e6:.1f}"
        name = f"[{record.name}]({record.name}/{CARD_FILE})"
        figures = (f"{record.top1:.2f}", record.data, *_costs(record), record.input_size[-1], megabytes)
        rows.append((name, *figures, f"`{record.sha256[:12]}...`"))
    return f"""# Weights that ship with mnv3

A folder `<arch>.<tag>/` here is what is published on the Hugging Face Hub under that name: config.json in timm's
format, model.safetensors, golden.safetensors (inputs and the logits that the model gives for them), a model card, and
how it was trained: recipe.yaml, log.csv, test.json. mnv3, timm and torch.hub find these without a network, and take a
file only if its SHA-256 is the one in `mnv3/catalog.py`. All other checkpoints that `mnv3 list --pretrained` shows are
fetched from where their authors published them.

{markdown_table(rows, "<><>>>><")}

`mnv3 card` writes this page and the model cards, `mnv3 verify` checks the folders, `mnv3 push --all` publishes them.
`python benchmarks/cifar10.py --data cifar10 --data-dir data` measures them again on all test pictures.
"""


def shipped(weights: str | os.PathLike) -> Iterator[tuple[Checkpoint, Path]]:
    """The checkpoints of our own that have a folder in `weights`, and that folder."""
    for record in CATALOG:
        folder = Path(weights) / record.name
        if record.ours and (folder / WEIGHTS_FILE).is_file():
            yield record, folder


def _fill(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _costs(record: Checkpoint) -> tuple[str, str]:
    """Parameters and MACs, in millions."""
    table, classes = VARIANTS[record.arch].arch, record.num_classes
    macs = count_macs(table, size=record.input_size[-1], num_classes=classes)
    return f"{count_params(table, num_classes=classes) / 1e6:.2f}", f"{macs / 1e6:.1f}"


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

    values = {"Top 1 Accuracy": record.top1} | ({"Top 5 Accuracy": metrics.top5} if metrics else {})
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
        metrics=["accuracy"],
        model_name=record.name,
        eval_results=results,
    )


def _figures(record: Checkpoint, metrics: Metrics | None) -> Iterator[str]:
    variant, size = VARIANTS[record.arch], record.input_size[-1]
    kind = "Large" if "large" in record.arch else "Small"
    yield _fill(
        f"MobileNetV3-{kind} with a total stride of {variant.arch.stride}, for pictures of {size} x {size} pixels and "
        f"{record.num_classes} classes, of [mnv3]({record.origin})."
    )
    params, macs = _costs(record)
    rows = [("", record.data), ("top-1", f"**{record.top1:.2f} %**")]
    if metrics:
        rows += [("top-5", f"{metrics.top5:.2f} %"), ("pictures", f"{metrics.count:,}, one view each, float32")]
        worst = sorted(metrics.per_class.items(), key=lambda item: item[1])[:2]
        rows += [("lowest by class", ", ".join(f"{markdown(name)} {value:.1f} %" for name, value in worst))]
    rows += [("parameters", f"{params} M"), (f"MACs at {size} px", f"{macs} M")]
    yield markdown_table(rows, "<<")
    yield f"Measured by `{record.measured}`."
    if record.label_names:
        yield _fill(f"Classes: {', '.join(map(markdown, record.label_names))}.")
    yield _fill(
        f"Preprocessing: {size} x {size} RGB, (x / 255 - mean) / std with mean {record.mean} and std {record.std}; "
        "config.json says it, and all of the following apply it."
    )


def _loading(record: Checkpoint, repo: str) -> Iterator[str]:
    yield "## Load"
    yield _fill(
        "`import mnv3` comes first, also in front of transformers: it registers the models. Without it, timm says "
        "that the model is unknown, and transformers that timm has to be upgraded, which does not help."
    )
    yield f"""timm:

```python
import mnv3, timm

model = timm.create_model("hf-hub:{repo}", pretrained=True).eval()
transform = mnv3.transforms(model)  # a PIL picture to its tensor
```

torch.hub:

```python
import torch

model = torch.hub.load("{ORG}/mnv3:v{__version__}", "{record.arch}", pretrained="{record.tag}", trust_repo=True).eval()
```

The command line:

```console
$ mnv3 predict photo.jpg --model {record.name}
```

transformers:

```python
import mnv3
from transformers import AutoImageProcessor, AutoModelForImageClassification

processor = AutoImageProcessor.from_pretrained("{repo}")
model = AutoModelForImageClassification.from_pretrained("{repo}")
```"""


def _training(record: Checkpoint, folder: Path) -> Iterator[str]:
    if not record.recipe:
        return
    yield "## Training"
    yield f"`mnv3 finetune {record.recipe} --set data_dir=data download=true` ({RECIPE_FILE}, {LOG_FILE}):"
    file = folder / RECIPE_FILE
    try:
        recipe = recipes.load(file if file.is_file() else record.recipe)
    except ValueError as error:
        raise WeightsError(str(error)) from None
    values = dataclasses.asdict(recipe)
    defaults = {field.name: field.default for field in dataclasses.fields(recipe)}
    told = [k for k, v in values.items() if k in SHOWN or (v != defaults[k] and k not in ELSEWHERE)]
    yield _fill(", ".join(f"{key} {_plain(values[key])}" for key in told) + ".")
    yield _fill(record.history or "")


def _plain(value: object) -> str:
    return markdown(" ".join(map(str, value)) if isinstance(value, tuple) else str(value).lower())
