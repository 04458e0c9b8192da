"""One of the processes that launcher.py starts: `python -m mnv3.train.worker FOLDER`."""

import logging
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

import torch

from ..text import Notice
from . import processes
from .finetune import finetune
from .launcher import TASK
from .recipe import make


def _work(place: Path) -> None:
    """Do the task, and leave an error beside it."""
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    task = pickle.loads((place / TASK).read_bytes())
    _show_notices(task["level"])
    if task["quiet"]:
        warnings.simplefilter("ignore")
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        meeting = (place / "rendezvous").as_uri()
        torch.distributed.init_process_group(backend, init_method=meeting, rank=rank, world_size=world)
        finetune(make(task["recipe"]), out=task["folder"], resume=task["resume"])
        processes.leave_together()
    except BaseException as error:  # a KeyboardInterrupt too
        (place / f"{rank}.part").write_bytes(pickle.dumps((time.monotonic(), _portable(error))))
        (place / f"{rank}.part").rename(place / f"{rank}.error")
        sys.stderr.flush()
        os._exit(1)  # Gloo's threads would complain of what is not taken down


def _portable(error: BaseException) -> BaseException:
    """An error that another process can raise."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def _stop_with_parent() -> None:
    """Wait for the end of the process that started this one, then save and stop."""
    while os.read(0, 1):  # sys.stdin would hold a lock, for which forked processes that close it wait for ever
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _show_notices(level: int) -> None:
    """Our notices to stderr, as the command line shows them."""
    handler = logging.StreamHandler()
    handler.setFormatter(Notice())
    logger = logging.getLogger("mnv3")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(level)


if __name__ == "__main__":
    _work(Path(sys.argv[1]))
