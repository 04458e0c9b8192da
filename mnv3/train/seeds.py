"""Random draws that depend on the recipe's seed, the update and the process alone.

So a checkpoint needs no state of generators: a training that was killed draws the same again.
"""

import random

import numpy as np
import torch


def derived(*key: int, count: int = 1) -> list[int]:
    """`count` seeds that are a hash of the numbers in `key`."""
    return np.random.SeedSequence(key).generate_state(count).tolist()


def seed_all(*key: int) -> None:
    """Seed torch, NumPy and Python (timm's mixup and erasing draw from these) by the numbers in `key`."""
    (seed,) = derived(*key)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
