"""Pictures with classes: CIFAR as torchvision lays it out, and folders <class>/*.

Small pictures are held as one uint8 tensor; large ones are read by the workers of a DataLoader.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import DataError, choices
from . import class_folders, images

HELD_SIDE, HELD_BYTES = 96, 2**30  # pictures up to this many pixels a side, and this much in all, are held in memory
CIFAR = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}
T = TypeVar("T")


@dataclass(frozen=True)
class Pictures:
    """The pictures of one split with their classes."""

    source: Tensor | Sequence[Path]  # uint8 (N, 3, H, W), or files
    labels: Tensor  # (N,), indices of classes
    classes: list[str]

    @property
    def held(self) -> bool:
        """Whether they are in memory."""
        return isinstance(self.source, Tensor)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> "Pictures":
        """The pictures at these indices (M,)."""
        source = self.source[indices] if self.held else [self.source[i] for i in indices.tolist()]
        return Pictures(source, self.labels[indices], self.classes)

    def picture(self, index: int) -> Image.Image:
        """One picture in 8-bit RGB.

        Raises:
            DataError: Its file cannot be read.
        """
        source = self.source[index]
        return Image.fromarray(source.permute(1, 2, 0).numpy()) if self.held else read_file(source)


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
    classes, by_class = class_folders.read_classes(class_folders.find_split(folder, split))
    files = [file for files in by_class for file in files]
    labels = torch.tensor([label for label, files in enumerate(by_class) for _ in files])
    return Pictures(_pixels(files) if _fit_in_memory(files) else files, labels, classes)


def _cifar(data: str, split: str, data_dir: str, download: bool) -> Pictures:
    from torchvision import datasets

    if split not in ("train", "test"):
        raise DataError(f"{data} has no split {split!r}: train or test")
    try:
        cifar = getattr(datasets, CIFAR[data])(Path(data_dir).expanduser(), train=split == "train", download=download)
    except RuntimeError as error:
        advice = "give its folder (data_dir), or let torchvision download it there (download=true)"
        raise DataError(f"no {CIFAR[data]} in {data_dir}, or it is damaged: {advice}") from error
    except OSError as error:
        raise DataError(f"cannot download {CIFAR[data]} to {data_dir}: {error}") from error
    source = torch.from_numpy(cifar.data).permute(0, 3, 1, 2).contiguous()
    return Pictures(source, torch.tensor(cifar.targets), list(cifar.classes))


def _fit_in_memory(files: Sequence[Path]) -> bool:
    """Whether all pictures have one small size; reads their headers until one has another."""
    first = None
    for file in files:
        size = read_file(file, images.size)
        first = first or size
        if size != first or max(size) > HELD_SIDE or len(files) * 3 * size[0] * size[1] > HELD_BYTES:
            return False
    return True


def _pixels(files: Sequence[Path]) -> Tensor | Sequence[Path]:
    """uint8 (N, 3, H, W); or the files themselves, if EXIF turns some of them on their side."""
    with ThreadPoolExecutor(max_workers=2) as pool:  # Pillow decodes outside the interpreter lock
        arrays = list(pool.map(lambda file: np.asarray(read_file(file)), files))
    if len({array.shape for array in arrays}) > 1:
        return files
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def read_file(file: Path, read: Callable[[Path], T] = images.load) -> T:
    """A picture of a data set; an error of its file is one of the data.

    Args:
        file: Its file.
        read: `images.load`, or `images.size`.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return read(file)
    except images.PictureError as error:
        raise DataError(str(error)) from None


def files_loader(dataset: torch.utils.data.Dataset, batches: Sequence[Any], workers: int) -> Iterator[Tensor]:
    """The batches of a dataset of picture files.

    Args:
        dataset: Of tensors; its `__getitem__` may raise DataError.
        batches: The keys of each batch.
        workers: Processes that read; 0 to read in this one.

    Raises:
        DataError: A file cannot be read.
    """
    try:
        yield from torch.utils.data.DataLoader(dataset, batch_sampler=batches, num_workers=workers)
    except DataError as error:  # PyTorch puts a worker's traceback before the message
        error.__traceback__ = None  # PyTorch's is a cycle: collected later, it waits 10 seconds for the workers
        raise DataError(str(error).rpartition(f"\n{DataError.__module__}.DataError: ")[2].strip()) from None
