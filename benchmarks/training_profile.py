"""Where the time of an update of mnv3's training goes, by operator, at one and at two threads.

    python benchmarks/training_profile.py --data CIFAR10 [--models small large] [--threads 1 2] [--json FILE]

CIFAR10 is a folder train/<class>/*.png of 32 px. An update has 128 pictures, without resizing. Times are what PyTorch's
profiler gives an operator without those that it calls, as a mean of eight updates, after a warm-up; those of all
operators are less than the update, which Python has a part of.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import record
import torch
from torch.profiler import ProfilerActivity, profile
from training import our_updates, pictures_of

from mnv3.train import recipe

UPDATES = 8
PARTS = {  # operators by what they do in a training
    "convolutions, backward": ("aten::convolution_backward", "DepthwiseFunctionBackward"),
    "convolutions, forward": ("aten::mkldnn_convolution", "aten::convolution_overrideable", "DepthwiseFunction"),
    "batch norm, backward": ("aten::native_batch_norm_backward",),
    "batch norm, forward": ("aten::native_batch_norm",),
    "activations": (
        "aten::hardswish",
        "aten::hardswish_backward",
        "aten::clamp_min_",
        "aten::threshold_backward",
        "aten::hardsigmoid",
        "aten::hardsigmoid_backward",
    ),
    "copies": ("aten::copy_",),
    "products, sums": ("aten::mul", "aten::add", "aten::mm", "aten::addmm", "aten::sum", "aten::add_", "aten::mul_"),
}


def measure(size: str, data: str, threads: int, pictures: int) -> dict[str, Any]:
    """Milliseconds of an update, and of its parts.

    Args:
        size: 'small' or 'large'.
        data: The folder of pictures.
        threads: Of PyTorch.
        pictures: Of an update.
    """
    torch.set_num_threads(threads)
    updates = our_updates(recipe.load(f"cifar10_{size}", data=data, sizes=[], lr=0.01, batch_size=pictures))
    times = []
    for _ in range(4 + UPDATES):
        start = time.perf_counter()
        next(updates)
        times.append(1e3 * (time.perf_counter() - start))
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(UPDATES):
            next(updates)
    own = {event.key: event.self_cpu_time_total / 1e3 / UPDATES for event in found.key_averages()}
    parts = {part: round(sum(own.get(name, 0.0) for name in names), 1) for part, names in PARTS.items()}
    return {
        "model": size,
        "threads": threads,
        "pictures": pictures,
        "ms": round(statistics.median(times[4:]), 1),
    } | parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--models", nargs="+", default=["small", "large"], choices=["small", "large"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured")
    args = parser.parse_args()
    rows = []
    for size in args.models:
        for threads, pictures in [(threads, 128) for threads in args.threads] + [(1, 64)]:
            rows.append(measure(size, args.data, threads, pictures))
            print(rows[-1], flush=True)
    if args.json:
        record.write(args.json, ("torch",), note=pictures_of(args.data), rows=rows)


if __name__ == "__main__":
    main()
