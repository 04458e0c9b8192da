"""How long callables take, in turn, so that a change of the machine's speed meets all of them."""

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

REST = 0.02  # seconds between turns: the threads of a runtime wait for work for a while, and disturb the next


def interleaved(
    runs: Mapping[str, Callable[[Tensor], object]], x: Tensor, *, rounds: int = 5, seconds: float = 0.1
) -> dict[str, list[float]]:
    """Milliseconds of every call by name; a first round and the first call of each turn warm up and do not count.

    Args:
        runs: What to call, by name.
        x: The batch (B, C, H, W) to call it with.
        rounds: Turns of each.
        seconds: Length of a turn.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            time.sleep(REST)
            measured = call_times(run, x, seconds=seconds)
            times[name] += measured if turn else []
    return times


@torch.inference_mode()
def call_times(run: Callable[[Tensor], object], x: Tensor, *, seconds: float) -> list[float]:
    """Milliseconds of each call made in so many seconds, at least one; one more before them does not count.

    Args:
        run: What to call.
        x: The batch (B, C, H, W) to call it with.
        seconds: For how long.
    """
    times, end = [], time.perf_counter() + seconds
    run(x)
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        run(x)
        times.append(1e3 * (time.perf_counter() - start))
    return times
