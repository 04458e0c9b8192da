"""What chance decides for a batch of training pictures, drawn on the CPU: the same on every device.

The draws are those of all pictures of a step, of which a process takes its own: several make what one would.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .recipe import Recipe

ATTEMPTS, AREA, RATIO = 10, (0.02, 1 / 3), (0.3, 1 / 0.3)  # of random erasing (Zhong et al. 2017), as timm has them


@dataclass(frozen=True)
class Draws:
    """The draws of a batch of N pictures, E of which are erased in part."""

    margin: int  # pixels that a picture may be shifted by, either way
    shifts: Tensor  # (2, N, 1), down and right, from 0 to 2 margin
    mirrored: Tensor  # bool (N, 1)
    erased: Tensor  # (E,), indices
    boxes: Tensor  # (4, E, 1): top, left, bottom, right
    noise: Tensor  # (E, 3, size, size)

    def part(self, start: int, stop: int) -> "Draws":
        """Those of the pictures from `start` up to `stop`."""
        mine = ((self.erased >= start) & (self.erased < stop)).nonzero().flatten()
        erased = self.erased[mine] - start, self.boxes[:, mine], self.noise[mine]
        return Draws(self.margin, self.shifts[:, start:stop], self.mirrored[start:stop], *erased)


def draw(
    recipe: Recipe, count: int, sides: Sequence[int], size: int, generator: torch.Generator | None = None
) -> Draws:
    """Draw for a batch.

    Args:
        recipe: Says what is drawn.
        count: Number of pictures.
        sides: Height and width of the held pictures; files are cropped elsewhere.
        size: Pixels along a side of the model's input.
        generator: Of the CPU; None for PyTorch's global one.
    """
    margin = min(recipe.crop, *(side - 1 for side in sides))  # what a mirror can fill
    shifts = torch.randint(0, 2 * margin + 1, (2, count, 1), generator=generator)
    mirrored = torch.zeros(count, 1, dtype=torch.bool)
    if recipe.flip:
        mirrored = torch.rand(count, 1, generator=generator) >= 0.5
    erased, boxes = torch.zeros(0, dtype=torch.long), torch.zeros(4, 0, 1, dtype=torch.long)
    if recipe.erase:
        erased, boxes = _boxes(recipe.erase, count, size, generator)
    noise = torch.randn(len(erased), 3, size, size, generator=generator)
    return Draws(margin, shifts, mirrored, erased, boxes, noise)


def _boxes(share: float, count: int, size: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Indices (E,) of the pictures to erase in and their boxes (4, E, 1): for each the first attempt that fits."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)

    chosen = uniform(0, 1, count) < share
    area = size * size * uniform(*AREA, count, ATTEMPTS)
    ratio = uniform(*map(math.log, RATIO), count, ATTEMPTS).exp()
    sides = torch.stack(((area * ratio).sqrt(), (area / ratio).sqrt())).round()  # height, width
    fits = (sides < size).all(0)
    first = fits.byte().argmax(1)
    height, width = sides[:, torch.arange(count), first]
    top, left = (uniform(0, 1, 2, count) * (size + 1 - torch.stack((height, width)))).floor()
    erased = (chosen & fits.any(1)).nonzero().flatten()
    boxes = torch.stack((top, left, top + height, left + width)).long()
    return erased, boxes[:, erased, None]
