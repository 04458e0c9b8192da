"""The pictures of a recipe by split: train, and val and test where there are any."""

from pathlib import Path

import torch

from ..errors import DataError
from ..pictures import class_folders
from ..pictures.data import CIFAR, Pictures, load
from .recipe import Recipe


def load_splits(recipe: Recipe) -> dict[str, Pictures]:
    """Load the pictures that a recipe names.

    Returns:
        'train', and 'val' and 'test' where there are any; 'val' is held out of 'train' where the recipe says so.

    Raises:
        DataError: As for `mnv3.data.load`, or there are fewer than two classes, or the splits do not have the same.
    """

    def get(split: str) -> Pictures:
        return load(recipe.data, split, data_dir=recipe.data_dir, download=recipe.download)

    splits = {"train": get("train")}
    if recipe.data in CIFAR:
        splits["test"] = get("test")
    else:
        folder, classes = Path(recipe.data).expanduser(), splits["train"].classes
        class_folders.check_classes(folder, classes)
        for split in class_folders.splits_beside_train(folder):
            splits[split] = get(split)
            if odd := sorted(set(classes) ^ set(splits[split].classes)):
                names = ", ".join(odd[:5]) + (" ..." if len(odd) > 5 else "")
                raise DataError(f"{recipe.data}: train and {split} have different classes: {names}")
    if "val" not in splits and recipe.val_fraction:
        splits["train"], splits["val"] = _hold_out(splits["train"], recipe.val_fraction)
    return splits


def _hold_out(pictures: Pictures, fraction: float) -> tuple[Pictures, Pictures]:
    """The pictures without, and those of, a share of each class for validation, the same at every seed."""
    held_out = torch.zeros(len(pictures), dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    for label, name in enumerate(pictures.classes):
        indices = (pictures.labels == label).nonzero().flatten()
        if len(indices) < 2:
            raise DataError(f"class {name}: has {len(indices)} picture, too few to hold one out: set val_fraction to 0")
        count = min(max(1, round(fraction * len(indices))), len(indices) - 1)
        held_out[indices[torch.randperm(len(indices), generator=generator)[:count]]] = True
    return pictures.take((~held_out).nonzero().flatten()), pictures.take(held_out.nonzero().flatten())
