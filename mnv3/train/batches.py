"""What an epoch shows to a training: which pictures, in what order, size and batches."""

import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ..pictures import data
from ..pictures.data import Pictures
from . import examples
from .examples import Augment
from .recipe import Recipe


class Batches:
    """The training pictures in batches, the same ones whenever they are asked for.

    Args:
        recipe: Batch size, sizes of pictures, seed.
        pictures: Those of 'train'.
        augment: What is done to them.
        accelerator: Says which of the processes this is, and where the batches go.
    """

    def __init__(self, recipe: Recipe, pictures: Pictures, augment: Augment, accelerator: Any) -> None:
        self.recipe, self.pictures, self.augment = recipe, pictures, augment
        self.device = accelerator.device
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.updates, *shape = self.order(0).shape
        self.pictures_per_update = math.prod(shape)

    def order(self, epoch: int) -> Tensor:
        """Indices of an epoch's pictures: (updates, batches of an update in all processes, pictures of a batch)."""
        recipe = self.recipe
        return examples.order(
            self.pictures.labels,
            batch=recipe.batch_size,
            parts=recipe.accumulate * self.world,
            seed=recipe.seed,
            epoch=epoch,
            balance=recipe.balance,
            even=bool(recipe.mixup or recipe.cutmix),
        )

    def size(self, epoch: int) -> int:
        """Pixels along a side of an epoch's pictures."""
        sizes = self.recipe.sizes or (self.recipe.size,)
        start, length = self.recipe.cycle(epoch)
        left = start + length - 1 - epoch
        return sizes[len(sizes) - 1 - left * len(sizes) // length]

    def of_epoch(self, epoch: int, first: int) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
        """For each update from `first` on, this process's batches: pictures (B, 3, size, size) and labels (B,)."""
        size = self.size(epoch)
        mine = self.order(epoch)[first:, self.rank :: self.world]  # (updates, accumulate, batch)
        files = None
        if not self.pictures.held:
            dataset = examples.TrainFiles(self.pictures, self.recipe, self.augment.policy, size)
            parts = ((first + i, part, row) for i, rows in enumerate(mine) for part, row in enumerate(rows))
            keys = [self._keys(epoch, *part) for part in parts]
            files = data.files_loader(dataset, keys, self.recipe.workers)

        def of_update(update: int, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            for part, row in enumerate(rows):
                x = self.pictures.source[row] if files is None else next(files)
                examples.seed_all(self.recipe.seed, epoch, update, part, self.rank)
                yield self.augment.batch(x, size, self.device), self.pictures.labels[row].to(self.device)

        for i, rows in enumerate(mine):
            yield of_update(first + i, rows)

    def _keys(self, epoch: int, update: int, part: int, row: Tensor) -> list[tuple[int, int]]:
        """Indices with a seed for each picture's own draws in a worker."""
        own = examples.seeds(self.recipe.seed, epoch, update, part, self.rank, count=len(row))
        return list(zip(row.tolist(), own, strict=True))
