"""What a training (`finetune.Training`) shows while it runs: a bar, a line for each epoch, TensorBoard."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)


def bar(training: Any) -> Any:
    """A bar of an epoch's updates; where stderr is no terminal, or in other processes than the first, nothing."""
    from tqdm import tqdm

    return tqdm(
        total=training.updates_per_epoch,
        initial=training.update,
        desc=f"epoch {training.epoch + 1}/{training.recipe.epochs}",
        unit=" updates",
        leave=False,
        disable=None if training.rank == 0 else True,
    )


def report(line: dict[str, Any], board: Any) -> None:
    """An epoch's line of the log, in words, and to TensorBoard."""
    words = [f"epoch {line['epoch']}", f"loss {line['train_loss']:.4f}", f"lr {line['lr']:.2g}"]
    if "val_top1" in line:
        words.append(f"validation top-1 {line['val_top1']:.2f} % ({line['weights']} weights)")
    logger.info("%s, %.0f images/s", ", ".join(words), line["images_per_s"])
    for name, value in line.items():
        if isinstance(value, float):
            board.add_scalar(name, value, line["epoch"])
    board.flush()


@contextmanager
def tensorboard(training: Any) -> Iterator[Any]:
    """TensorBoard's writer, in the run's folder; epochs that are done again replace what it has of them.

    Raises:
        ImportError: tensorboard is missing.
    """
    if training.rank:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ImportError("training needs tensorboard: pip install 'mnv3[finetune]'") from None
    with SummaryWriter(str(training.files.folder / "tensorboard"), purge_step=training.epoch + 1) as writer:
        yield writer
