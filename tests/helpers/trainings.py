"""Small trainings, and looks into the folders that they write."""

import csv
import dataclasses
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from mnv3.train import optimizers
from mnv3.train.finetune import Training
from mnv3.train.recipe import Recipe

COLOURS = ["blue", "green", "red"]  # the classes of the fixture `coloured`


class Killed(BaseException):
    """The process is gone: nothing is saved."""


def trained(recipe: Recipe, folder: Path, **options) -> Training:
    """A training by a recipe with other options, done."""
    training = Training(dataclasses.replace(recipe, **options), folder / "run")
    training.run()
    return training


def last(run: Path) -> Path:
    """The checkpoint of a run."""
    (checkpoint,) = (run / "checkpoints").glob("last-*")
    return checkpoint


def tensors(run: Path, name: str = "model") -> dict[str, torch.Tensor]:
    """Weights of the checkpoint of a run."""
    return load_file(last(run) / f"{name}.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def log(run: Path) -> list[dict[str, str]]:
    with open(run / "log.csv") as file:
        return list(csv.DictReader(file))


def rates_of(recipe: Recipe, updates: int = 3, /, **options) -> list[float]:
    """The rate of each update, `updates` in an epoch, and the one after the last."""
    chosen = dataclasses.replace(recipe, **options)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=chosen.lr)
    schedule, rates = optimizers.Schedule(chosen, optimizer, updates), []
    for _ in range(updates * chosen.epochs):
        rates.append(schedule.lr)
        schedule.step()
    return [*rates, schedule.lr]
