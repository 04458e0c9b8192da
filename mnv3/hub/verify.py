"""Weights against the catalog, in folders and in repositories: hash, configuration, strict load, golden logits."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..catalog import CATALOG, WEIGHTS_FILE, Checkpoint, find, split_name
from ..errors import WeightsError
from ..factory import create_model, load_checkpoint
from ..files import checkpoint, fetch, hub_client
from ..files.folder import read_config, weights_in
from ..files.hub_errors import fetching_problem
from ..files.patience import waiting_for
from ..files.saving import CONFIG_FILE, GOLDEN_FILE
from ..layers import evaluating
from ..train.run_folder import LOG_FILE, RECIPE_FILE, TEST_FILE
from .cards import CARD_FILE

REQUIRED = (CONFIG_FILE, WEIGHTS_FILE, GOLDEN_FILE, CARD_FILE)
NAMES = (*REQUIRED, RECIPE_FILE, LOG_FILE, TEST_FILE)  # the files of a weights folder that is published
TOLERANCE = 1e-4  # of golden logits, absolute and relative: processors add up in different orders
MAX_INPUTS = 1 << 22  # numbers in golden inputs, some seconds of computing


@dataclass(frozen=True)
class Check:
    """Weights that are what the catalog says.

    Attributes:
        source: The folder, repository or name.
        record: Its entry of the catalog.
        sha256: Of model.safetensors, or of the file behind the URL.
        tensors: How many the model has.
        deviation: Largest difference of a golden logit, or None where there are none (weights of others).
    """

    source: str
    record: Checkpoint
    sha256: str
    tensors: int
    deviation: float | None

    def __str__(self) -> str:
        golden = "no golden logits" if self.deviation is None else f"golden logits within {self.deviation:.1e}"
        return f"{self.source}: ok, {self.record.name}, sha256 {self.sha256[:12]}, {self.tensors} tensors, {golden}"


def check(folder: str | os.PathLike[str], record: Checkpoint | None = None, *, source: str | None = None) -> Check:
    """Hold a weights folder against the catalog: hash, configuration, strict load, golden logits.

    Args:
        folder: With config.json and model.safetensors; golden.safetensors, if they are our own.
        record: The entry of the catalog; by default the one that config.json names.
        source: What to call the folder.

    Raises:
        WeightsError: Something disagrees; the message says what, and what to do.
    """
    folder = Path(folder)
    name = source or str(folder)
    with errors_call(folder, name):
        record = record or record_of(folder)
        weights = weights_in(folder)
        if damage := checkpoint.damage(weights, record.sha256):
            raise WeightsError(f"{WEIGHTS_FILE} is not that of {record.name} in the catalog: {damage}. Fetch it again")
        if record.ours:
            _check_config(read_config(folder), record)
        try:
            model = load_checkpoint(folder)
        except (TypeError, RuntimeError, ValueError, AssertionError, KeyError, AttributeError) as error:
            raise WeightsError(f"it does not load: {error}") from error
        deviation = None
        if record.ours or (folder / GOLDEN_FILE).is_file():
            deviation = _golden_deviation(model, checkpoint.read_checkpoint(folder / GOLDEN_FILE))
    return Check(name, record, checkpoint.digest(weights), len(model.state_dict()), deviation)


@contextmanager
def errors_call(folder: Path, name: str) -> Iterator[None]:
    """Let errors about a folder call it by a name that the user knows."""
    try:
        yield
    except WeightsError as error:
        text = str(error).replace(str(folder), name)
        raise WeightsError(text if text.startswith(name) else f"{name}: {text}") from error


def verify(source: str | os.PathLike[str]) -> Check:
    """Hold weights against the catalog, wherever they are; see `check`.

    Args:
        source: A weights folder, 'NAMESPACE/NAME' or 'NAMESPACE/NAME@REVISION' on the Hub, or 'arch.tag'.

    Raises:
        WeightsError: They cannot be had, or something disagrees.
        ValueError: There is no such arch or tag.
    """
    source = os.fspath(source)
    if Path(source).exists():
        return check(source)
    if "/" in source:
        repo, _, revision = source.partition("@")
        record = record_at(repo)
        revision = revision or (record.revision if record else None)
        return check(download(repo, revision, record), record, source=source)
    record = find(*split_name(source))
    if local := fetch.local_folder(record):
        return check(local, record, source=source)
    if record.repo:
        return check(download(fetch.repo_of(record), record.revision, record), record, source=source)
    file, model = fetch.fetch(record), create_model(record.name, pretrained=True)
    return Check(source, record, checkpoint.digest(file), len(model.state_dict()), None)


def record_of(folder: Path) -> Checkpoint:
    """The entry of the catalog that a folder's config.json names."""
    config = read_config(folder)
    cfg = config.get("pretrained_cfg")
    tag = cfg.get("tag") if isinstance(cfg, dict) else None
    for record in CATALOG:
        if (record.arch, record.tag) == (config["architecture"], tag):
            return record
    raise WeightsError(
        f"{CONFIG_FILE} names {config['architecture']}.{tag}, which the catalog does not have: add it to "
        "mnv3/catalog.py, or publish what is not of this project with `hf upload`"
    )


def record_at(repo: str) -> Checkpoint | None:
    """The entry of the catalog that a repository is of, by its name."""
    for record in CATALOG:
        if record.repo == repo or (record.ours and repo.rpartition("/")[2] == record.name):
            return record
    return None


def _check_config(config: dict[str, Any], record: Checkpoint) -> None:
    """Raise if config.json says something else than the catalog."""
    cfg = config.get("pretrained_cfg")
    cfg = cfg if isinstance(cfg, dict) else {}
    args = {"in_chans": record.input_size[0], "global_pool": "avg"}
    pairs = {"architecture": (config["architecture"], record.arch), "model_args": (config.get("model_args"), args)}
    for name in ("num_classes", "label_names"):
        pairs[name] = (config.get(name), getattr(record, name))
    for name in ("input_size", "mean", "std", "interpolation", "crop_pct", "license", "tag"):
        pairs[f"pretrained_cfg.{name}"] = (cfg.get(name), getattr(record, name))
    for name, (value, expected) in pairs.items():
        expected = list(expected) if isinstance(expected, tuple) else expected
        if value != expected:
            raise WeightsError(
                f"{CONFIG_FILE} has {name}: {value!r}, the catalog {expected!r}: mend the one that is wrong"
            )


def _golden_deviation(model: nn.Module, golden: dict[str, Tensor]) -> float:
    """The largest difference of the model's logits to those of golden.safetensors; WeightsError if it is too large."""
    inputs, outputs = golden.get("inputs"), golden.get("outputs")
    shape = () if inputs is None or outputs is None else tuple(inputs.shape)
    if len(shape) != 4 or shape[1] != model.in_chans or not 0 < inputs.numel() <= MAX_INPUTS:
        raise WeightsError(f"{GOLDEN_FILE} has no inputs (N, {model.in_chans}, H, W) with their outputs in it")
    with evaluating(model):
        logits = model(inputs.float())
    if outputs.shape != logits.shape:
        given, expected = tuple(outputs.shape), tuple(logits.shape)
        raise WeightsError(f"{GOLDEN_FILE} has outputs of shape {given}, the model gives {expected}")
    difference = (logits - outputs).abs()
    if not (difference <= TOLERANCE * (1 + outputs.abs())).all():  # true of no NaN
        raise WeightsError(
            f"the model's logits differ from those of {GOLDEN_FILE} by {difference.max():.3g}: one of the two is not "
            "of these weights"
        )
    return float(difference.max())


def download(repo: str, revision: str | None, record: Checkpoint | None) -> Path:
    """The files of one commit of a repository, in the Hub's cache, all of them verified.

    The Hub is asked for the newest commit of a branch or tag; the cache alone serves for a full commit, and where
    HF_HUB_OFFLINE is set.

    Args:
        repo: 'NAMESPACE/NAME'.
        revision: A branch, tag or commit; None for `main`.
        record: The entry of the catalog that the weights have to be of, if there is one.

    Raises:
        WeightsError: The files cannot be had, or are not those that the Hub states.
    """
    from huggingface_hub import HfApi, snapshot_download

    asks = not hub_client.offline() and not re.fullmatch("[0-9a-f]{40}", revision or "")
    with waiting_for(hub_client.endpoint()):
        try:
            head = HfApi(endpoint=hub_client.endpoint()).model_info(repo, revision=revision).sha if asks else None
            folder = snapshot_download(
                repo,
                revision=revision,
                allow_patterns=list(NAMES),
                cache_dir=hub_client.default_cache(),
                endpoint=hub_client.endpoint(),
                local_files_only=hub_client.offline(),
                library_name="mnv3",
            )
        except Exception as error:  # the client, its transport and the file system each have their own
            raise WeightsError(fetching_problem(error, repo, "the weights folder", revision)) from error
    folder = Path(folder)
    commit = folder.name
    if head not in (None, commit):  # where the Hub is lost, the client takes what the cache has
        raise WeightsError(f"{repo} was changed, or {hub_client.endpoint()} lost, while it was fetched: run it again")
    fetch.fetch_hub(repo, revision=commit, sha256=record.sha256 if record else None)
    for name in NAMES:
        if name != WEIGHTS_FILE and (folder / name).is_file():
            fetch.fetch_hub(repo, name, revision=commit)
    return folder
