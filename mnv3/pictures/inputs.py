"""From pictures to a model's input: which channels it takes, and batches of files or of a data set."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import DataError
from ..factory import transforms
from . import images
from .data import Pictures, files_loader

Transform = Callable[[Image.Image], Tensor]


def check_channels(model: nn.Module, *, grey: bool = False, source: str = "files are read as RGB") -> None:
    """Refuse a model of other input channels than pictures have.

    Args:
        model: A model with `in_chans`; one of another library without it takes RGB.
        grey: Also allow models of one channel, for which `mnv3.transforms` makes pictures grey.
        source: The end of the message: what the pictures are.

    Raises:
        DataError: The model takes others.
    """
    channels = getattr(model, "in_chans", 3)
    if channels != 3 and not (grey and channels == 1):
        raise DataError(f"the model takes pictures of in_chans={channels}: {source}")


def load_batch(files: Iterable[Path], transform: Transform) -> Tensor:
    """Picture files as one batch (N, C, H, W).

    Args:
        files: At least one.
        transform: Of a picture to a tensor (C, H, W), see `mnv3.transforms`.

    Raises:
        PictureError: A file cannot be read.
    """
    return torch.stack([transform(images.load(file)) for file in files])


def batches(model: nn.Module, pictures: Pictures, indices: Sequence[list[int]], *, workers: int) -> Iterator[Tensor]:
    """Batches of a data set, each (B, 3, H, W) by the model's own preprocessing.

    Args:
        model: A model with its `pretrained_cfg`.
        pictures: The data set.
        indices: The pictures of each batch.
        workers: Processes that read pictures that are not held in memory.

    Raises:
        DataError: A file cannot be read.
    """
    cfg = model.pretrained_cfg
    if pictures.held and pictures.source.shape[1:] == cfg["input_size"] and cfg["crop_pct"] == 1:
        mean, std = (torch.tensor(cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
        for batch in indices:  # what the transform below would do, to whole batches
            yield (pictures.source[batch] / 255 - mean) / std
    else:
        yield from files_loader(Preprocessed(pictures, transforms(model)), indices, workers)


class Preprocessed(torch.utils.data.Dataset):
    """Every picture of a data set through a model's preprocessing."""

    def __init__(self, pictures: Pictures, transform: Transform) -> None:
        self.pictures, self.transform = pictures, transform

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(self.pictures.picture(index))
