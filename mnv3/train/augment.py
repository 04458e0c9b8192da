"""What is done to training pictures on their way to the model: crop, mirror, policy, size, normalisation, erasing.

Pictures that are held in memory are augmented in whole batches on the training's device, each by its own draw
(`Augment`); files are read and cropped one by one, by the workers of a DataLoader (`TrainFiles`).
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..pictures.data import Pictures, read_file
from .draws import Draws, draw
from .recipe import Recipe

CPU = torch.device("cpu")


class Augment:
    """The augmentation of a recipe.

    Args:
        recipe: Which.
        mean, std: Of the model's input, for pixels from 0 to 1.
        device: Where it happens, but for the policy.
    """

    def __init__(self, recipe: Recipe, mean: Sequence[float], std: Sequence[float], device: torch.device = CPU) -> None:
        from torchvision.transforms import v2

        self.recipe, self.device = recipe, device
        self.mean, self.std = ((torch.tensor(list(v)).view(3, 1, 1) * 255).to(device) for v in (mean, std))
        self.policy = {"none": None, "trivial": v2.TrivialAugmentWide(), "rand": v2.RandAugment()}[recipe.augment]

    def draw(self, count: int, sides: Sequence[int], size: int, generator: torch.Generator | None = None) -> Draws:
        """The draws of a batch, see `draws.draw`; arguments as there."""
        return draw(self.recipe, count, sides, size, generator)

    def crop(self, x: Tensor, draws: Draws) -> Tensor:
        """Shift and mirror each picture by its own draw; mirrored pixels come in at the edges.

        Args:
            x: Pixels, uint8 (B, 3, H, W).
            draws: Of them.

        Returns:
            float32 (B, 3, H, W), from 0 to 255.
        """
        batch, _, height, width = x.shape
        rows, columns = (
            start + torch.arange(side, device=x.device)
            for start, side in zip(moved(draws.shifts, x.device), (height, width), strict=True)
        )
        columns = torch.where(moved(draws.mirrored, x.device), columns.flip(1), columns)
        x = F.pad(x.float(), [draws.margin] * 4, mode="reflect").permute(0, 2, 3, 1)
        index = torch.arange(batch, device=x.device)[:, None, None]
        return x[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    def batch(self, x: Tensor, size: int, draws: Draws) -> Tensor:
        """Pictures to the model's input, without a wait for the device.

        Args:
            x: Held pictures, uint8 (B, 3, H, W), or files by `TrainFiles`, float32 from 0 to 255.
            size: Pixels along a side of the input.
            draws: Of these pictures.

        Returns:
            float32 (B, 3, size, size), normalised.
        """
        if x.dtype == torch.uint8:
            if self.policy:
                x = torch.stack([self.policy(picture) for picture in x])
            x = self.crop(moved(x, self.device), draws)
        x = resize(moved(x, self.device), size)
        return erase((x - self.mean) / self.std, draws)


def erase(x: Tensor, draws: Draws) -> Tensor:
    """Noise in place of the boxes that were drawn.

    Args:
        x: Normalised pictures (B, 3, H, W), changed in place.
        draws: Of them.
    """
    if len(draws.erased):  # known without a look at the device
        top, left, bottom, right = moved(draws.boxes, x.device)
        y, at = torch.arange(x.shape[-1], device=x.device), moved(draws.erased, x.device)
        inside = ((y >= top) & (y < bottom))[:, None, :, None] & ((y >= left) & (y < right))[:, None, None, :]
        x[at] = torch.where(inside, moved(draws.noise, x.device), x[at])
    return x


def moved(x: Tensor, device: torch.device) -> Tensor:
    """`x` on a device, to which it is copied while the processor goes on."""
    if device.type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


def resize(x: Tensor, size: int) -> Tensor:
    """Float pictures (B, 3, H, W) to (B, 3, size, size), smoothed where they shrink."""
    return x if x.shape[-2:] == (size, size) else F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)


class TrainFiles(torch.utils.data.Dataset):
    """Picture files for training, by (index, seed): cropped, mirrored, augmented; float32 (3, size, size), 0 to 255.

    Args:
        pictures: Of files.
        recipe: Says how to crop and mirror.
        policy: `Augment.policy`.
        size: Pixels along a side.
    """

    def __init__(self, pictures: Pictures, recipe: Recipe, policy: Callable | None, size: int) -> None:
        from torchvision.transforms import v2

        self.pictures = pictures
        steps = [v2.RandomResizedCrop(size, scale=recipe.scale, antialias=True)]
        steps += [v2.RandomHorizontalFlip()] if recipe.flip else []
        steps += [policy] if policy else []
        self.transform = v2.Compose([*steps, v2.PILToTensor()])

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        index, seed = key
        torch.manual_seed(seed)
        return self.transform(read_file(self.pictures.source[index])).float()
