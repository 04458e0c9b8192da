"""From pictures to a model's input: which channels it takes, and batches of files or of a data set."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.transforms import MaybeToTensor
from torch import Tensor, nn
from torchvision.transforms import Normalize

from ..errors import DataError
from ..factory import Grey
from . import images
from .data import Pictures

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


class Preprocessing:
    """A model's preprocessing in two parts, which give what the whole gives, bit by bit.

    Each picture is resized and cropped in 8 bits; numbers are made of them, and normalised, in whole batches.

    Args:
        transform: See `mnv3.transforms`. One that does not end as timm's does is applied to each picture.
    """

    def __init__(self, transform: Transform) -> None:
        self._grey = isinstance(transform, Grey)
        self._whole = transform
        steps = getattr(transform.transform if self._grey else transform, "transforms", [])
        self._split = len(steps) > 1 and isinstance(steps[-2], MaybeToTensor) and isinstance(steps[-1], Normalize)
        if self._split:
            *self._steps, _, normalize = steps
            self._mean, self._std = (
                torch.as_tensor(values, dtype=torch.float32).view(-1, 1, 1)
                for values in (normalize.mean, normalize.std)
            )

    def picture(self, picture: Image.Image) -> Tensor:
        """What `batch` takes of a picture: uint8 (H, W, C), or a float tensor (C, H, W)."""
        if not self._split:
            return self._whole(picture)
        picture = picture.convert("L") if self._grey else picture
        for step in self._steps:
            picture = step(picture)
        pixels = torch.from_numpy(np.array(picture))
        return pixels[..., None] if pixels.dim() == 2 else pixels

    def batch(self, pictures: Sequence[Tensor]) -> Tensor:
        """The model's input, float (B, C, H, W)."""
        if not self._split:
            return torch.stack(list(pictures))
        height, width, channels = pictures[0].shape
        x = torch.empty(len(pictures), channels, height, width, memory_format=torch.channels_last)
        for one, pixels in zip(x, pictures, strict=True):  # one by one, as each stays in the processor's cache
            one.copy_(pixels.permute(2, 0, 1)).div_(255).sub_(self._mean).div_(self._std)
        return x


def is_held_as_input(pictures: Pictures, cfg: dict[str, Any]) -> bool:
    """Whether pictures in memory have the size of a model's input, and are neither resized nor cropped for it.

    Args:
        pictures: The data set.
        cfg: The model's `pretrained_cfg`.
    """
    return pictures.held and pictures.source.shape[1:] == cfg["input_size"] and cfg["crop_pct"] == 1


def held_batches(pictures: Pictures, cfg: dict[str, Any], indices: Iterable[list[int]]) -> Iterator[Tensor]:
    """Batches (B, 3, H, W) of such pictures.

    Args:
        pictures: The data set.
        cfg: The model's `pretrained_cfg`.
        indices: The pictures of each batch.
    """
    mean, std = (torch.tensor(cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    for batch in indices:
        yield (pictures.source[batch] / 255 - mean) / std
