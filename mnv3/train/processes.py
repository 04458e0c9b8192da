"""Device, precision and processes: how many there are, and all that accelerate does."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..pictures.ahead import processors
from .recipe import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator


LEAST_PART = 32  # pictures of an update that a process should have: batch norm takes its statistics from them


def launched() -> int:
    """How many processes torchrun, `accelerate launch` or launcher.py started, this one among them."""
    try:
        return max(1, int(os.environ.get("WORLD_SIZE", "1")))
    except ValueError:
        return 1


def suitable(recipe: Recipe) -> int:
    """How many processes train fastest here: one for each GPU or core, as far as they get `LEAST_PART` pictures each.

    Two processes of one thread gain more than two threads of one, as each has its own pictures and waits for nothing.
    """
    if torch.cuda.is_available():
        most = torch.cuda.device_count()
    else:
        most = 1 if torch.backends.mps.is_available() else processors()
    shares = (n for n in range(most, 1, -1) if recipe.batch_size % n == 0 and recipe.batch_size // n >= LEAST_PART)
    even = 2 if recipe.mixup or recipe.cutmix else 1
    return next((n for n in shares if recipe.batch_size // n % even == 0), 1)


def accelerator(recipe: Recipe) -> "Accelerator":
    """accelerate's Accelerator with the recipe's precision; see `process_group`.

    Raises:
        ValueError: The device does not have this precision.
    """
    return process_group(recipe.precision if recipe.precision != "auto" else best_precision())


def process_group(precision: str = "no") -> "Accelerator":
    """accelerate's Accelerator: the device, and the other processes that `accelerate launch` or torchrun started.

    Args:
        precision: 'no' (float32), 'bf16' or 'fp16'.

    Raises:
        ValueError: The device does not have this precision.
        ImportError: accelerate is missing.
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.utils import DistributedDataParallelKwargs
    except ImportError:
        raise ImportError("training and evaluation need accelerate: pip install 'mnv3[finetune]'") from None
    # without cpu=True, accelerate takes torchrun's processes on a machine without a GPU for single ones
    no_gpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    if no_gpu and precision == "fp16":
        raise ValueError("precision: fp16 needs a GPU; take auto, bf16 or no")
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()  # accelerate keeps one state in a process, that of an earlier training
    # without buffers of its own, which `same_buffers` exchanges
    options = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    return Accelerator(mixed_precision=precision, cpu=no_gpu, kwargs_handlers=[options])


def best_precision() -> str:
    """bf16 where the device computes it faster than float32, else 'no'."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if torch.backends.mps.is_available():
        return "no"
    return "bf16" if getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16") else "no"


def wrap(raw: nn.Module, accelerator: "Accelerator", *, compile: bool, frozen: bool) -> nn.Module:
    """A model for the forward passes of an epoch: in mixed precision, and shared out as the launcher says.

    Made anew for each epoch, as what is frozen may change, which DistributedDataParallel does not follow. accelerate
    replaces the forward method of what it prepares: here of a shell, so that the model itself stays as it is.

    Args:
        raw: The model.
        accelerator: See `accelerator`.
        compile: Use torch.compile, with a graph for each size of pictures.
        frozen: Only the classifier learns.
    """
    raw.requires_grad_(not frozen)
    raw.get_classifier().requires_grad_(True)
    accelerator._models.clear()
    return accelerator.prepare_model(nn.Sequential(torch.compile(raw, dynamic=False) if compile else raw))


@torch.no_grad()
def same_buffers(model: nn.Module, world: int) -> None:
    """Give batch norms that learn the mean of the statistics in all processes, as each saw its own pictures.

    After every update, in one exchange: so a run goes on from any of them to the same bits.

    Args:
        model: Of this process.
        world: How many processes there are.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    buffers = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var) if buffer is not None]
    if world == 1 or not buffers:
        return
    flat = torch.cat(buffers)
    torch.distributed.all_reduce(flat)
    parts = (flat / world).split([len(buffer) for buffer in buffers])
    torch._foreach_copy_(buffers, list(parts))


def leave_together() -> bool:
    """End the communication of the processes; returns whether this is the first of them.

    Each waits for the others: Gloo aborts in one that still runs when another has gone.
    """
    from accelerate import PartialState

    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    return PartialState().is_main_process


@contextmanager
def determinism(recipe: Recipe) -> Iterator[None]:
    """Use PyTorch's deterministic algorithms in this block, if the recipe asks for them."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(recipe.deterministic or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
