"""What a training shows while it runs (a bar, lines, TensorBoard), and how one stops it."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .run_folder import Run

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.utils.tensorboard import SummaryWriter
    from tqdm import tqdm

logger = logging.getLogger(__name__)


def bar(name: str, *, total: int, done: int, shown: bool) -> "tqdm":
    """A bar of an epoch's updates; nothing where stderr is no terminal.

    Args:
        name: Of the epoch.
        total: How many updates it has.
        done: How many of them are done.
        shown: False for nothing anywhere, as in other processes than the first.
    """
    from tqdm import tqdm

    return tqdm(desc=name, total=total, initial=done, unit=" updates", leave=False, disable=None if shown else True)


def report(line: dict[str, Any], board: "SummaryWriter") -> None:
    """Log an epoch's line of log.csv in words, and write it to TensorBoard."""
    words = [f"epoch {line['epoch']}", f"loss {line['train_loss']:.4f}", f"lr {line['lr']:.2g}"]
    if "val_top1" in line:
        words.append(f"validation top-1 {line['val_top1']:.2f} % ({line['weights']} weights)")
    logger.info("%s, %.0f images/s", ", ".join(words), line["images_per_s"])
    for name, value in line.items():
        if isinstance(value, float):
            board.add_scalar(name, value, line["epoch"])
    board.flush()


@contextmanager
def board(files: Run, *, epoch: int) -> Iterator["SummaryWriter"]:
    """TensorBoard's writer in a run's folder, closed at the end of the block.

    Args:
        files: The run's folder.
        epoch: The next one, from 1; what the folder has of it and later ones is replaced.

    Raises:
        ImportError: tensorboard is missing.
        TrainingStopped: The disk is full, for instance.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ImportError("training needs tensorboard: pip install 'mnv3[finetune]'") from None
    folder = files.folder / "tensorboard"
    with files.writing(folder):
        writer = SummaryWriter(str(folder), purge_step=epoch)
    try:
        yield writer
    finally:
        with files.writing(folder):
            writer.close()


class Interrupted:
    """Whether a signal has told this process to stop."""

    here = False

    def anywhere(self, accelerator: "Accelerator") -> bool:
        """Whether one of the processes was told; the same in all, so that they stop after the same update."""
        if accelerator.num_processes == 1:
            return self.here
        if self.here:
            accelerator.set_trigger()
        return accelerator.check_trigger()


@contextmanager
def interruptible() -> Iterator[Interrupted]:
    """Note Ctrl-C and SIGTERM during the block, so that the running update ends; a second one stops at once."""
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
