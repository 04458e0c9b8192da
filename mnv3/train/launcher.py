"""One training in several processes of this machine, started here: recipe's `processes`.

Each is `python -m mnv3.train.worker FOLDER`, with torchrun's variables in its environment, and a folder that has its
task and gets its error. They are in sessions of their own, so that Ctrl-C reaches them from here alone, and once.
"""

import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from ..errors import TrainingStopped
from ..pictures.ahead import processors
from . import processes
from .recipe import Recipe, load, make
from .run_folder import RECIPE_FILE

GRACE = 20  # seconds for the others to end once one has failed: they wait for it in vain
ROOT = Path(__file__).resolve().parents[2]  # from where the processes import us too
TASK, WORKER = "task.pickle", "mnv3.train.worker"


def settled(recipe: Recipe, folder: Path, *, resume: bool) -> Recipe:
    """The recipe with a number for `processes: auto`: that of the run which goes on, else what suits the machine."""
    if recipe.processes != "auto":
        return recipe
    before = folder / RECIPE_FILE
    if resume and before.is_file():
        return make(vars(recipe), {"processes": load(before).processes})
    count = processes.launched() if processes.launched() > 1 else processes.suitable(recipe)
    return make(vars(recipe), {"processes": count})


def launch(recipe: Recipe, folder: Path, *, resume: bool) -> Path:
    """Train in `recipe.processes` processes; arguments, result and errors are those of `finetune`."""
    level = logging.getLogger("mnv3").getEffectiveLevel()
    quiet = any(entry[:3] == ("ignore", None, Warning) for entry in warnings.filters)  # as the command line sets it
    task = {"recipe": vars(recipe), "folder": str(folder), "resume": resume, "level": level, "quiet": quiet}
    with tempfile.TemporaryDirectory(prefix="mnv3-") as temporary:
        place = Path(temporary)
        (place / TASK).write_bytes(pickle.dumps(task))
        failed = None
        with _passing_signals_on() as children:
            try:
                for rank in range(recipe.processes):
                    children.append(_start(place, rank, recipe.processes))
                failed = _wait(children)
            finally:
                _end(children)
        if failed is not None:
            _raise(place, children, failed, folder)
    return folder


def environment(rank: int, world: int) -> dict[str, str]:
    """The environment of a process: torchrun's variables, its share of the cores, and memory that it keeps."""
    threads = max(1, processors() // world)
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    numbers |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    # glibc would give the memory of every map back to the system, which has to clear it anew for the next
    numbers |= {"MALLOC_MMAP_THRESHOLD_": 2**25, "MALLOC_TRIM_THRESHOLD_": 2**32}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = os.environ | {key: str(number) for key, number in numbers.items()}
    variables |= {"PYTHONPATH": os.pathsep.join(paths), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    if sys.platform == "linux":
        variables.setdefault("GLOO_SOCKET_IFNAME", "lo")  # gradients need no network
    return variables


def _start(place: Path, rank: int, world: int) -> subprocess.Popen:
    """One of the processes; the errors output of the first is ours."""
    with open(place / f"{rank}.log", "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", WORKER, str(place)],
            env=environment(rank, world),
            stdin=subprocess.PIPE,  # nothing comes, but its end, which says that this process is gone
            stderr=log if rank else None,
            start_new_session=True,
        )


@contextmanager
def _passing_signals_on() -> Iterator[list[subprocess.Popen]]:
    """A list of processes to which Ctrl-C and SIGTERM go in the block, in place of this one."""
    children: list[subprocess.Popen] = []

    def pass_on(number: int, _: Any) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    main = threading.current_thread() is threading.main_thread()  # no other may set handlers
    signals = (signal.SIGINT, signal.SIGTERM) if main else ()
    before = {number: signal.signal(number, pass_on) for number in signals}
    try:
        yield children
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(children: list[subprocess.Popen]) -> int | None:
    """Until all have ended, or some time after one has failed; returns which did first, or None."""
    failed, until = None, float("inf")
    while True:
        states = [child.poll() for child in children]
        if failed is None and any(states):
            failed, until = next(n for n, state in enumerate(states) if state), time.monotonic() + GRACE
        if None not in states or time.monotonic() > until:
            return failed
        time.sleep(0.05)


def _end(children: list[subprocess.Popen]) -> None:
    for child in children:
        if child.poll() is None:
            child.kill()
        child.wait()
        child.stdin.close()


def _raise(place: Path, children: list[subprocess.Popen], failed: int, folder: Path) -> NoReturn:
    """Raise the error of the process that failed first; of the others it is that they missed this one."""
    errors = [pickle.loads(file.read_bytes()) for file in place.glob("*.error")]
    if errors:
        raise min(errors, key=lambda found: found[0])[1]
    child = children[failed]
    if -child.returncode in (signal.SIGINT, signal.SIGTERM):
        raise KeyboardInterrupt
    how = f"by signal {-child.returncode}" if child.returncode < 0 else f"with status {child.returncode}"
    memory = " (memory may have run out)" if child.returncode == -signal.SIGKILL else ""
    log = place / f"{failed}.log"
    lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
    last = next((f": {line.strip()}" for line in reversed(lines) if line.strip()), "")
    raise TrainingStopped(
        f"process {failed + 1} of {len(children)} ended {how}{memory}{last}: "
        f"what was saved is in {folder}, go on with --resume"
    )
