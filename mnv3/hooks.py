"""What layers read and write while a model runs."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn

Measurement = TypeVar("Measurement")


@contextmanager
def watching(
    modules: Iterable[nn.Module], measure: Callable[[Tensor, Tensor], Measurement]
) -> Iterator[dict[nn.Module, Measurement]]:
    """Watch modules: measure what they read and write whenever they run inside of the block.

    Args:
        modules: Each reads one tensor and writes one.
        measure: Called with the two; what it returns is kept, of a module that runs twice the later.

    Yields:
        The measurements, filled in as the modules run.
    """
    measurements: dict[nn.Module, Measurement] = {}

    def keep(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        measurements[module] = measure(inputs[0], output)

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield measurements
    finally:
        for handle in handles:
            handle.remove()
