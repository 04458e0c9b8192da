"""Pictures with classes for training and evaluation: CIFAR as torchvision lays it out, and folders <class>/*.

Small pictures are held as one uint8 tensor and augmented in whole batches, each picture by its own draw; large ones are
read by the workers of a DataLoader. What is drawn depends on the seed, the step and the process alone, so that a
training can go on from any step.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import DataError, choices
from ..train.recipe import Recipe
from . import class_folders, images

HELD_SIDE, HELD_BYTES = 96, 2**30  # pictures up to this many pixels a side, and this much in all, are held in memory
CIFAR = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}


@dataclass(frozen=True)
class Pictures:
    """Pictures of one split: a uint8 tensor (N, 3, H, W), or files to read."""

    source: Tensor | Sequence[Path]
    labels: Tensor  # (N,)
    classes: list[str]

    @property
    def held(self) -> bool:
        """Whether they are in memory."""
        return isinstance(self.source, Tensor)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> "Pictures":
        """Some of them."""
        source = self.source[indices] if self.held else [self.source[i] for i in indices.tolist()]
        return Pictures(source, self.labels[indices], self.classes)


def load(data: str, split: str, *, data_dir: str = "data", download: bool = False) -> Pictures:
    """The pictures of a split.

    Args:
        data: 'cifar10', 'cifar100', or a folder with train/<class>/*, test/<class>/* or val/<class>/* (or valid/ or
            validation/).
        split: 'train', 'test' or 'val'.
        data_dir: Where torchvision's CIFAR lies.
        download: Let torchvision download it.

    Raises:
        DataError: There are none, a class is empty, or a file cannot be read.
    """
    if data in CIFAR:
        return _cifar(data, split, data_dir, download)
    folder = Path(data).expanduser()
    if not folder.is_dir():
        raise DataError(f"data: no folder {data!r}. {choices(data, CIFAR)} Or a folder with train/<class>/*")
    classes, found = class_folders.read(class_folders.find(folder, split))
    files = [file for files in found for file in files]
    labels = torch.tensor([i for i, files in enumerate(found) for _ in files])
    return Pictures(_held(files) if _small(files) else files, labels, classes)


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


def _cifar(data: str, split: str, data_dir: str, download: bool) -> Pictures:
    from torchvision import datasets

    if split not in ("train", "test"):
        raise DataError(f"{data} has no split {split!r}: train or test")
    try:
        found = getattr(datasets, CIFAR[data])(Path(data_dir).expanduser(), train=split == "train", download=download)
    except RuntimeError as error:
        advice = "give its folder (data_dir), or let torchvision download it there (download=true)"
        raise DataError(f"no {CIFAR[data]} in {data_dir}, or it is damaged: {advice}") from error
    except OSError as error:
        raise DataError(f"cannot download {CIFAR[data]} to {data_dir}: {error}") from error
    source = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
    return Pictures(source, torch.tensor(found.targets), list(found.classes))


def _small(files: Sequence[Path]) -> bool:
    """Whether all pictures have one small size; reads their headers until one has another."""
    first = None
    for file in files:
        size = _read(file, images.size)
        first = first or size
        if size != first or max(size) > HELD_SIDE or len(files) * 3 * size[0] * size[1] > HELD_BYTES:
            return False
    return True


def _held(files: Sequence[Path]) -> Tensor | Sequence[Path]:
    """Their pixels, or the files themselves where some turn out to lie on their side (EXIF)."""
    with ThreadPoolExecutor(max_workers=2) as pool:  # Pillow decodes outside the interpreter lock
        arrays = list(pool.map(lambda file: np.asarray(_read(file)), files))
    if len({array.shape for array in arrays}) > 1:
        return files
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


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
        return self.transform(_read(self.pictures.source[index])).float()


class EvalPictures(torch.utils.data.Dataset):
    """Pictures for evaluation, each through a model's own preprocessing."""

    def __init__(self, pictures: Pictures, transform: Callable[[Image.Image], Tensor]) -> None:
        self.pictures, self.transform = pictures, transform

    def __getitem__(self, index: int) -> Tensor:
        source = self.pictures.source[index]
        held = isinstance(source, Tensor)
        return self.transform(Image.fromarray(source.permute(1, 2, 0).numpy()) if held else _read(source))


def _read(file: Path, get: Callable[[Path], Any] = images.load) -> Any:
    try:
        return get(file)
    except images.PictureError as error:
        raise DataError(str(error)) from None


def files_loader(dataset: torch.utils.data.Dataset, batches: Sequence[Any], workers: int) -> Iterator[Tensor]:
    """The batches of a dataset, read by other processes.

    Raises:
        DataError: A file cannot be read.
    """
    try:
        yield from torch.utils.data.DataLoader(dataset, batch_sampler=batches, num_workers=workers)
    except DataError as error:  # PyTorch puts a worker's traceback before the message
        raise DataError(str(error).rpartition(f"\n{DataError.__module__}.DataError: ")[2].strip()) from None
