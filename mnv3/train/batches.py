"""The batches of a training: which pictures an epoch shows, in what order and size."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import DataError
from ..pictures.data import Pictures, files_loader
from . import seeds
from .augment import Augment, TrainFiles, moved
from .recipe import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator


class Batches:
    """The training pictures in batches, the same ones whenever they are asked for.

    Args:
        recipe: Batch size, sizes of pictures, seed.
        pictures: Those of 'train'.
        augment: What is done to them.
        accelerator: Says which of the processes this is, and where the batches go.

    Attributes:
        updates: Of an epoch.
        pictures_per_update: In all processes.
    """

    def __init__(self, recipe: Recipe, pictures: Pictures, augment: Augment, accelerator: "Accelerator") -> None:
        self.recipe, self.pictures, self.augment = recipe, pictures, augment
        device = accelerator.device
        self.labels, self.source, self.sides = pictures.labels.to(device), pictures.source, (1, 1)
        if pictures.held:
            self.sides = pictures.source.shape[2:]
            self.source = pictures.source if augment.policy else pictures.source.to(device)
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.updates, *shape = self.order(0).shape
        self.pictures_per_update = math.prod(shape)

    def order(self, epoch: int) -> Tensor:
        """Indices of an epoch's pictures: (updates, batches of an update in all processes, pictures of a batch)."""
        recipe = self.recipe
        return shuffled(
            self.pictures.labels,
            batch=recipe.share,
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

        def seed_of(update: int, part: int) -> tuple[int, ...]:
            return self.recipe.seed, epoch, update, part

        count, start = self.world * mine.shape[-1], self.rank * mine.shape[-1]  # pictures of all processes, and mine
        files = None
        if not self.pictures.held:
            dataset = TrainFiles(self.pictures, self.recipe, self.augment.policy, size)
            keys = [
                list(zip(row.tolist(), seeds.derived(*seed_of(update, part), 0, count=count)[start:], strict=False))
                for update, rows in enumerate(mine, first)
                for part, row in enumerate(rows)
            ]
            files = files_loader(dataset, keys, self.recipe.workers)

        def of_update(update: int, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            for part, row in enumerate(rows):
                generator = torch.Generator().manual_seed(*seeds.derived(*seed_of(update, part), 0))
                draws = self.augment.draw(count, self.sides, size, generator).part(start, start + len(row))
                x = next(files) if files else self.source[moved(row, self.source.device)]
                seeds.seed_all(*seed_of(update, part), self.rank)  # of mixup, of layers that drop, and of a policy
                yield self.augment.batch(x, size, draws), self.labels[moved(row, self.labels.device)]

        for update, rows in enumerate(mine, first):
            yield of_update(update, rows)


def shuffled(
    labels: Tensor, *, batch: int, parts: int, seed: int, epoch: int, balance: bool = False, even: bool = False
) -> Tensor:
    """The pictures that an epoch shows, in its order.

    Pictures that do not fill an update are left out, others in each epoch. Where there are fewer pictures than an
    update takes, its parts are smaller.

    Args:
        labels: Class of every picture (N,).
        batch: Pictures of a part.
        parts: Batches of an update, over all processes.
        seed, epoch: What the order depends on.
        balance: Draw with replacement, every class equally often.
        even: An even number of pictures in a part, for mixup, which joins them in pairs.

    Returns:
        Indices (updates, parts, pictures of a part).

    Raises:
        DataError: Some part would have fewer than the two pictures that batch norm needs.
    """
    generator = torch.Generator().manual_seed(*seeds.derived(seed, epoch))
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
