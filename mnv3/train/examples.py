"""The pictures that a training learns from: splits, order, augmentation.

Pictures that are held in memory are augmented in whole batches, each by its own draw; files are read by the workers of
a DataLoader. What is drawn depends on the seed, the step and the process alone, so that a training can go on from any
step.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DataError
from ..pictures import class_folders
from ..pictures.data import CIFAR, Pictures, load, read
from .recipe import Recipe


def splits(recipe: Recipe) -> dict[str, Pictures]:
    """The pictures of a recipe: 'train', and 'val' and 'test' where there are any.

    Raises:
        DataError: As for `load`, or there are fewer than two classes, or the splits do not have the same.
    """
    folder = Path(recipe.data).expanduser()

    def get(split: str) -> Pictures:
        return load(recipe.data, split, data_dir=recipe.data_dir, download=recipe.download)

    found = {"train": get("train")}
    if recipe.data in CIFAR:
        found["test"] = get("test")
    else:
        class_folders.check_training(folder, found["train"].classes)
        for split in class_folders.others(folder):
            found[split] = get(split)
            _check_classes(found["train"].classes, found[split].classes, f"{recipe.data}: train and {split}")
    if "val" not in found and recipe.val_fraction:
        found["train"], found["val"] = _hold_out(found["train"], recipe.val_fraction)
    return found


def _check_classes(expected: list[str], got: list[str], what: str) -> None:
    if expected != got:
        odd = sorted(set(expected) ^ set(got))
        raise DataError(f"{what} have different classes: {', '.join(odd[:5])}{' ...' if len(odd) > 5 else ''}")


def _hold_out(pictures: Pictures, fraction: float) -> tuple[Pictures, Pictures]:
    """A share of each class for validation, the same at every seed."""
    held = torch.zeros(len(pictures), dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    for label, name in enumerate(pictures.classes):
        mine = (pictures.labels == label).nonzero().flatten()
        if len(mine) < 2:
            raise DataError(f"class {name}: has {len(mine)} picture, too few to hold one out: set val_fraction to 0")
        count = min(max(1, round(fraction * len(mine))), len(mine) - 1)
        held[mine[torch.randperm(len(mine), generator=generator)[:count]]] = True
    return pictures.take((~held).nonzero().flatten()), pictures.take(held.nonzero().flatten())


def seeds(*key: int, count: int = 1) -> list[int]:
    """Seeds that are a hash of some numbers."""
    return np.random.SeedSequence(key).generate_state(count).tolist()


def seed_all(*key: int) -> None:
    """Seed torch, NumPy and Python (timm's mixup and erasing draw from these) with `seeds`."""
    (state,) = seeds(*key)
    random.seed(state)
    np.random.seed(state)
    torch.manual_seed(state)


def order(
    labels: Tensor, *, batch: int, parts: int, seed: int, epoch: int, balance: bool = False, even: bool = False
) -> Tensor:
    """Which pictures an epoch shows: indices (updates, parts, pictures of a part).

    What does not fill an update is left out, other pictures in each epoch. Where there are fewer pictures than an
    update takes, its parts are smaller.

    Args:
        labels: Class of every picture (N,).
        batch: Pictures of a part.
        parts: Batches of an update, over all processes.
        seed, epoch: What the order depends on.
        balance: Draw with replacement, every class equally often.
        even: An even number of pictures in a part, for mixup, which joins them in pairs.

    Raises:
        DataError: Some part would have fewer than the two pictures that batch norm needs.
    """
    generator = torch.Generator().manual_seed(*seeds(seed, epoch))
    if balance:
        weights = 1 / torch.bincount(labels).double()[labels]
        indices = torch.multinomial(weights, len(labels), replacement=True, generator=generator)
    else:
        indices = torch.randperm(len(labels), generator=generator)
    batch = min(batch, len(labels) // parts)
    batch -= even and batch % 2
    if batch < 2:
        raise DataError(
            f"{len(labels)} training pictures are too few: batch norm needs 2 or more in each of {parts} batches "
            "(processes x accumulate), and batch_size of at least 2"
        )
    updates = len(labels) // (batch * parts)
    return indices[: updates * batch * parts].view(updates, parts, batch)


class Augment:
    """Training pictures of a recipe: held ones in whole batches here, files one by one in `TrainFiles`."""

    def __init__(self, recipe: Recipe, mean: Sequence[float], std: Sequence[float]) -> None:
        from timm.data.random_erasing import RandomErasing
        from torchvision.transforms import v2

        self.recipe = recipe
        self.mean, self.std = (torch.tensor(list(v)).view(3, 1, 1) * 255 for v in (mean, std))
        self.policy = {"none": None, "trivial": v2.TrivialAugmentWide(), "rand": v2.RandAugment()}[recipe.augment]
        self.erasing = RandomErasing(recipe.erase, mode="pixel", device="cpu") if recipe.erase else None

    def crop(self, x: Tensor) -> Tensor:
        """Shift and mirror each picture of uint8 (B, 3, H, W) by its own draw; mirrored pixels come in at the edges."""
        recipe, (batch, _, height, width) = self.recipe, x.shape
        shift = min(recipe.crop, height - 1, width - 1)  # what a mirror can fill
        down, right = torch.randint(0, 2 * shift + 1, (2, batch, 1))
        rows, columns = down + torch.arange(height), right + torch.arange(width)
        if recipe.flip:
            columns = torch.where(torch.rand(batch, 1) < 0.5, columns, columns.flip(1))
        x = F.pad(x.float(), [shift] * 4, mode="reflect").permute(0, 2, 3, 1)
        return x[torch.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    def batch(self, x: Tensor, size: int, device: torch.device) -> Tensor:
        """uint8 (B, 3, H, W), or what `TrainFiles` made of files, to the model's input (B, 3, size, size)."""
        if x.dtype == torch.uint8:
            if self.policy:
                x = torch.stack([self.policy(picture) for picture in x])
            x = self.crop(x)
        x = resize(x.to(device), size)
        x = (x - self.mean.to(device)) / self.std.to(device)
        return self.erasing(x) if self.erasing else x


def resize(x: Tensor, size: int) -> Tensor:
    """Float pictures (B, 3, H, W) to (B, 3, size, size), smoothed where they shrink."""
    return x if x.shape[-2:] == (size, size) else F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)


class TrainFiles(torch.utils.data.Dataset):
    """Files for training, by (index, seed): cropped, mirrored, augmented, float (3, size, size) of 0 to 255."""

    def __init__(self, pictures: Pictures, recipe: Recipe, policy: Any, size: int) -> None:
        from torchvision.transforms import v2

        self.pictures = pictures
        steps = [v2.RandomResizedCrop(size, scale=recipe.scale, antialias=True)]
        steps += [v2.RandomHorizontalFlip()] if recipe.flip else []
        steps += [policy] if policy else []
        self.transform = v2.Compose([*steps, v2.PILToTensor()])

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        index, seed = key
        torch.manual_seed(seed)
        return self.transform(read(self.pictures.source[index])).float()
