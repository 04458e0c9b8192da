"""What a training (`finetune.Training`) shows while it runs (a bar, lines, TensorBoard), and how one stops it."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)


def bar(training: Any) -> Any:
    """A bar of an epoch's updates; where stderr is no terminal, or in other processes than the first, nothing."""
    from tqdm import tqdm

    return tqdm(
        total=training.batches.updates,
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
def board(training: Any) -> Iterator[Any]:
    """TensorBoard's writer, in the run's folder; epochs that are done again replace what it has of them.

    Raises:
        ImportError: tensorboard is missing.
        TrainingStopped: The disk is full, for instance.
    """
    if training.rank:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ImportError("training needs tensorboard: pip install 'mnv3[finetune]'") from None
    folder = training.files.folder / "tensorboard"
    with training.files.writing(folder):
        writer = SummaryWriter(str(folder), purge_step=training.epoch + 1)
    try:
        yield writer
    finally:
        with training.files.writing(folder):
            writer.close()


class Interrupted:
    """Whether this process was told to stop."""

    here = False

    def anywhere(self, accelerator: Any) -> bool:
        """Whether one of the processes was; the same in all, so that they stop after the same update."""
        if accelerator.num_processes == 1:
            return self.here
        if self.here:
            accelerator.set_trigger()
        return accelerator.check_trigger()


@contextmanager
def interruptible() -> Iterator[Interrupted]:
    """Ctrl-C and SIGTERM are noted, for the update that is running to end; a second one stops at once."""
    interrupted = Interrupted()

    def stop(number: int, _: Any) -> None:
        interrupted.here = True
        signal.signal(number, signal.default_int_handler)

    signals = (signal.SIGINT, signal.SIGTERM)
    main = threading.current_thread() is threading.main_thread()  # no other may set handlers
    before = {number: signal.signal(number, stop) for number in signals} if main else {}
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
