"""Which pictures an epoch shows, and random draws."""

import random

import numpy as np
import pytest
import torch

from mnv3.errors import DataError
from mnv3.train.batches import shuffled
from mnv3.train.seeds import seed_all


def labels(count, classes=2) -> torch.Tensor:
    return torch.arange(count) % classes


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_order_is_complete_and_disjoint(parts):
    kwargs = {"batch": 4, "parts": parts, "seed": 0}
    found = shuffled(labels(24), epoch=0, **kwargs)
    assert found.shape == (24 // (4 * parts), parts, 4)
    assert found.flatten().sort().values.tolist() == list(range(24))
    assert torch.equal(found, shuffled(labels(24), epoch=0, **kwargs))
    for other in (
        shuffled(labels(24), epoch=1, **kwargs),
        shuffled(labels(24), epoch=0, **(kwargs | {"seed": 1})),
    ):
        assert not torch.equal(found, other)
        assert other.unique().numel() == 24


@pytest.mark.parametrize(
    ("count", "batch", "parts", "shape"), [(9, 16, 1, (1, 1, 8)), (10, 8, 2, (1, 2, 4)), (24, 8, 1, (3, 1, 8))]
)
def test_order_of_an_even_number(count, batch, parts, shape):
    found = shuffled(labels(count), batch=batch, parts=parts, seed=0, epoch=0, even=True)
    assert found.shape == shape
    assert len(found.unique()) == found.numel()
    with pytest.raises(DataError, match="too few"):
        shuffled(labels(3), batch=8, parts=2, seed=0, epoch=0, even=True)


def test_order_does_not_depend_on_the_number_of_parts():
    """Two processes see together what one sees with twice the batch."""
    one, two = (shuffled(labels(32), batch=16 // parts, parts=parts, seed=3, epoch=2) for parts in (1, 2))
    assert torch.equal(one.flatten(), two.flatten())


def test_order_leaves_the_global_generators_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    shuffled(labels(10), batch=2, parts=1, seed=0, epoch=0)
    shuffled(labels(10), batch=2, parts=1, seed=0, epoch=0, balance=True)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("count", "batch", "parts", "shape"),
    [
        (33, 16, 1, (2, 1, 16)),
        (33, 16, 2, (1, 2, 16)),
        (33, 9, 4, (1, 4, 8)),
        (5, 9, 1, (1, 1, 5)),
        (5, 9, 2, (1, 2, 2)),
    ],
)
def test_what_does_not_fill_an_update(count, batch, parts, shape):
    """A last batch of one picture would be the end of batch norm."""
    epochs = [shuffled(labels(count), batch=batch, parts=parts, seed=0, epoch=epoch) for epoch in range(60)]
    assert {found.shape for found in epochs} == {shape}
    assert all(found.unique().numel() == found.numel() for found in epochs)
    assert torch.cat(epochs).unique().numel() == count, "others are left out in each epoch"


@pytest.mark.parametrize(("count", "batch", "parts"), [(1, 16, 1), (3, 16, 2), (100, 1, 1)])
@pytest.mark.parametrize("balance", [False, True])
def test_too_few_pictures(count, batch, parts, balance):
    with pytest.raises(DataError, match=f"{count} training pictures are too few: .* in each of {parts} batches"):
        shuffled(labels(count), batch=batch, parts=parts, seed=0, epoch=0, balance=balance)


def test_balance():
    uneven = torch.tensor([0] * 9000 + [1] * 900 + [2] * 100)
    kwargs = {"batch": 100, "parts": 1, "seed": 0, "balance": True}
    found = shuffled(uneven, epoch=0, **kwargs)
    assert found.shape == (100, 1, 100)
    shares = uneven[found.flatten()].bincount() / 10000
    assert shares.tolist() == pytest.approx([1 / 3] * 3, abs=0.02)
    assert torch.equal(found, shuffled(uneven, epoch=0, **kwargs))
    assert not torch.equal(found, shuffled(uneven, epoch=1, **kwargs))


# Random numbers


def draws() -> tuple:
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_seed_all():
    found = []
    for key in ((0,), (1,), (0, 1), (1, 0, 0, 0, 5), (0,)):
        seed_all(*key)
        found.append(draws())
    assert found[0] == found[-1]
    for generator in zip(*found[:-1], strict=True):
        assert len(set(generator)) == 4
