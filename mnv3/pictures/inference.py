"""From picture files to a network's answers: threads decode, resize and compute side by side."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import TypeVar

import torch
from torch import nn

from .. import onednn
from ..folding import fuse
from ..layers import evaluating
from ..model import MobileNetV3
from .ahead import read_ahead, single_threads

BATCH = 16  # pictures at a time: more than these take more memory, and no less time each
Item = TypeVar("Item")
Loaded = TypeVar("Loaded")
Answer = TypeVar("Answer")


def answered(
    model: nn.Module,
    items: Iterable[Item],
    load: Callable[[Item], Loaded],
    answer: Callable[[nn.Module, list[tuple[Item, Loaded]]], Answer],
    *,
    batch_size: int,
    workers: int,
) -> Iterator[tuple[list[tuple[Item, Loaded]], Answer]]:
    """Batches of items, in order, each with the answer of the network; what is ahead of them is bounded.

    Args:
        model: Computes in several threads at once if it is a MobileNetV3 in float32 on the CPU, else in this thread.
        items: As many as there are; they are asked for one by one.
        load: What an item is for the network; called in threads.
        answer: Of the network, which is `model` or its equal in a faster form, and a batch of items with what was
            loaded of them.
        batch_size: Items of a batch.
        workers: Threads.
    """
    network, of_threads = for_inference(model, batch_size)
    with single_threads(workers) as pool:
        loaded = read_ahead(items, load, pool=pool, ahead=batch_size + workers)
        batches = iter(lambda: list(islice(loaded, batch_size)), [])
        compute = partial(answer, network)
        if of_threads:
            yield from read_ahead(batches, compute, pool=pool, ahead=(workers + 1) // 2)
        else:
            yield from ((batch, compute(batch)) for batch in batches)


def for_inference(model: nn.Module, batch_size: int) -> tuple[nn.Module, bool]:
    """A model in the fastest form that gives its own logits to rounding, and whether threads may share it.

    A MobileNetV3 in float32 is copied with its batch norms folded, and laid out for oneDNN on the CPU. One in half
    precision, which folding would round twice, one with hooks, and any other model is returned as it is.
    """
    parameter = next(model.parameters())
    if not isinstance(model, MobileNetV3) or parameter.dtype != torch.float32 or _hooked(model):
        return model, False
    with evaluating(model):
        try:
            fused = fuse(model)
        except ValueError:  # folded already, without norms, or pruned
            return model, False
        if parameter.device.type != "cpu" or not onednn.available():
            return fused, False
        one = torch.zeros(1, *model.pretrained_cfg["input_size"])
        try:
            return onednn.lay_out(fused, one.expand(batch_size, -1, -1, -1)), True
        except ValueError:  # an activation that oneDNN does not have
            return fused, True


def _hooked(model: nn.Module) -> bool:
    return any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
