"""What is done to training pictures on their way to the model: crop, mirror, policy, size, normalisation, erasing.

Pictures that are held in memory are augmented in whole batches, each by its own draw (`Augment`); files are read and
cropped one by one, by the workers of a DataLoader (`TrainFiles`).
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..pictures.data import Pictures, read_file
from .recipe import Recipe


class Augment:
    """The augmentation of a recipe.

    Args:
        recipe: Which.
        mean, std: Of the model's input, for pixels from 0 to 1.
    """

    def __init__(self, recipe: Recipe, mean: Sequence[float], std: Sequence[float]) -> None:
        from timm.data.random_erasing import RandomErasing
        from torchvision.transforms import v2

        self.recipe = recipe
        self.mean, self.std = (torch.tensor(list(v)).view(3, 1, 1) * 255 for v in (mean, std))
        self.policy = {"none": None, "trivial": v2.TrivialAugmentWide(), "rand": v2.RandAugment()}[recipe.augment]
        self.erasing = RandomErasing(recipe.erase, mode="pixel", device="cpu") if recipe.erase else None

    def crop(self, x: Tensor) -> Tensor:
        """Shift and mirror each picture by its own draw; mirrored pixels come in at the edges.

        Args:
            x: Pixels, uint8 (B, 3, H, W).

        Returns:
            float32 (B, 3, H, W), from 0 to 255.
        """
        recipe, (batch, _, height, width) = self.recipe, x.shape
        shift = min(recipe.crop, height - 1, width - 1)  # what a mirror can fill
        down, right = torch.randint(0, 2 * shift + 1, (2, batch, 1))
        rows, columns = down + torch.arange(height), right + torch.arange(width)
        if recipe.flip:
            columns = torch.where(torch.rand(batch, 1) < 0.5, columns, columns.flip(1))
        x = F.pad(x.float(), [shift] * 4, mode="reflect").permute(0, 2, 3, 1)
        return x[torch.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    def batch(self, x: Tensor, size: int, device: torch.device) -> Tensor:
        """Pictures to the model's input.

        Args:
            x: Held pictures, uint8 (B, 3, H, W), or files by `TrainFiles`, float32 from 0 to 255.
            size: Pixels along a side of the input.
            device: Where it is to be.

        Returns:
            float32 (B, 3, size, size), normalised.
        """
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
