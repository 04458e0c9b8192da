"""Which tensors can be weights: dense ones of finite floating-point numbers."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import WeightsError
from ..text import terminal

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COUNTS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
LARGEST = 1e10  # of a weight; trained ones stay below 1e5, and a flipped bit of an exponent makes one of 1e38
MAX_NAME = 500  # characters
MAX_TENSORS = 2000  # of one network; MobileNetV3-Large has 312


def check_kinds(state_dict: Mapping[str, Tensor]) -> None:
    """Refuse a state dict with tensors that no network of ours has, in time and memory that do not depend on shapes.

    Raises:
        WeightsError: One is sparse, quantised, on the meta device, empty, of a type that is no float, or takes less
            memory than its shape needs. The message names it. Or there are too many, or they share their memory.
    """
    if len(state_dict) > MAX_TENSORS:
        raise WeightsError(f"{len(state_dict):,} tensors: expected at most {MAX_TENSORS:,} of one MobileNetV3")
    for name, tensor in state_dict.items():
        if problem := _problem_of(name, tensor):
            raise WeightsError(f"{shown(name)} is {problem}: expected a dense tensor of floating-point numbers")
    storages = [tensor.untyped_storage() for tensor in state_dict.values()]
    memory = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    size = sum(tensor.nbytes for tensor in state_dict.values())
    if size > 2 * memory + (1 << 20):  # a few may be tied
        raise WeightsError(f"the tensors share {memory:,} bytes of memory, and would take {size:,} by their shapes")


def _problem_of(name: str, tensor: Tensor) -> str | None:
    if tensor.layout != torch.strided:
        return f"sparse ({tensor.layout})"
    if tensor.is_quantized:
        return f"quantised ({tensor.dtype})"
    if tensor.is_meta:
        return "without values, on the meta device"
    # no output depends on a counter; half-precision exports turn it into a float
    allowed = FLOATS + COUNTS if name.endswith("num_batches_tracked") else FLOATS
    if tensor.dtype not in allowed:
        return f"of type {tensor.dtype}"
    if not tensor.numel():
        return f"empty, of shape {tuple(tensor.shape)}"
    if _overlaps(tensor):
        return f"expanded to {tuple(tensor.shape)} from less memory (strides {tensor.stride()})"
    return None


def _overlaps(tensor: Tensor) -> bool:
    """Whether two elements may lie at the same address."""
    reached = 0  # the last offset that the dimensions with smaller strides reach
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1):
        if stride <= reached:
            return True
        reached += stride * (size - 1)
    return False


def check_values(state_dict: Mapping[str, Tensor], *, eps: float = 0.0) -> None:
    """Refuse weights that no training ends with.

    Args:
        state_dict: Tensors that `check_kinds` accepts.
        eps: Of the batch norms. Folding another eps into a variance may leave it below 0, but above -eps.

    Raises:
        WeightsError: A value is not finite or absurdly large, or a running variance is negative. The message names the
            tensor.
    """
    for name, tensor in state_dict.items():
        lowest, highest = (float(value) for value in torch.aminmax(tensor))
        if not -LARGEST <= lowest <= highest <= LARGEST:  # nor is it NaN
            bad = int((~torch.isfinite(tensor)).sum())
            what = (
                f"{bad} of {tensor.numel()} values that are NaN or infinite" if bad else f"a value beyond {LARGEST:g}"
            )
            raise WeightsError(f"{shown(name)} has {what}: a training that diverged, or a damaged file")
        if name.endswith("running_var") and lowest < -eps:
            raise WeightsError(f"{shown(name)} has a variance of {lowest:.3g}: a damaged file")


def shown(name: str) -> str:
    """A name from a file as a message has it: on one line, and not long."""
    return terminal(name if len(name) <= 100 else f"{name[:60]}...{name[-30:]}")
