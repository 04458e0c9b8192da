"""Throughput of a training step beside the same recipe written with timm's own model, loader and transforms.

    python benchmarks/training.py --data CIFAR10 [--models small large] [--threads 1 2] [--turns 8] [--json FILE]

For N threads, `processes: N` is measured too: N processes of one thread that share the batches out. Its windows are in
the same turns as the others, whose memory and threads then rest.

CIFAR10 is a folder train/<class>/*.png of 32 px. Both train the same network (strides 1, 2, 1, 2, 2) on batches of 128
with crop, mirroring, random erasing, label smoothing, clipping, SGD and an average of the weights. timm's model is in
channels_last, in float32 as its train.py has it by default, and in bfloat16 (`--amp --amp-dtype bfloat16`). Windows of
four updates run in turn, after a warm-up; of each are told the median images a second and the median and quartiles of
its ratios, turn by turn, to timm in both, and to mnv3 on one thread.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import record
import timm
import torch
from timm.data import create_dataset, create_loader
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import nn

import mnv3
from mnv3.train import ingredients, launcher, processes, recipe
from mnv3.train.finetune import Training

WINDOW = 4  # updates


def timm_model(size: str, classes: int) -> nn.Module:
    """timm's network with the strides and the shortcuts of ours."""
    model, ours = (
        timm.create_model(f"mobilenetv3_{size}_100", num_classes=classes),
        mnv3.create_model(f"mnv3_{size}_cifar"),
    )
    model.conv_stem.stride = (1, 1)
    blocks = [block for stage in model.blocks[:-1] for block in stage]
    for theirs, block in zip(blocks, ours.blocks, strict=True):
        theirs.conv_dw.stride = block.depthwise.conv.stride
        theirs.has_skip = block.has_shortcut
    return model


def timm_updates(size: str, chosen: recipe.Recipe, *, workers: int, amp: bool) -> Iterator[None]:
    """The recipe with timm's parts, update by update."""
    dataset = create_dataset("", root=f"{chosen.data}/train", is_training=True)
    loader = create_loader(
        dataset,
        (3, chosen.size, chosen.size),
        chosen.batch_size,
        is_training=True,
        use_prefetcher=False,
        scale=(0.8, 1.0),
        hflip=0.5,
        re_prob=chosen.erase,
        re_mode="pixel",
        mean=chosen.mean,
        std=chosen.std,
        num_workers=workers,
        device=torch.device("cpu"),
    )
    model = timm_model(size, len(dataset.reader.class_to_idx)).to(memory_format=torch.channels_last).train()
    options = {"lr": 0.01, "momentum": chosen.momentum, "weight_decay": chosen.weight_decay}
    optimizer = create_optimizer_v2(model, opt=chosen.optimizer, **options)
    criterion, ema = LabelSmoothingCrossEntropy(chosen.label_smoothing), ModelEmaV3(model, decay=chosen.ema)
    while True:
        for x, y in loader:
            with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                loss = criterion(model(x.contiguous(memory_format=torch.channels_last)), y)
            optimizer.zero_grad()
            loss.backward()
            dispatch_clip_grad(model.parameters(), chosen.clip)
            optimizer.step()
            ema.update(model)
            loss.item()
            yield


def our_updates(chosen: recipe.Recipe) -> Iterator[None]:
    """The recipe with mnv3's helper."""
    training = Training(chosen, Path(tempfile.mkdtemp()) / "run")
    while True:
        model = processes.wrap(training.raw, training.accelerator, compile=chosen.compile, frozen=False)
        for batches in training.batches.of_epoch(training.epoch, 0):
            ingredients.train_mode(training.raw, freeze_bn=False)
            training._update(model, batches)
            training.update += 1
            yield
        training.epoch, training.update = training.epoch + 1, 0


def on_one_thread(updates: Iterator[None], threads: int) -> Iterator[None]:
    """The same with one thread, whatever the others have."""
    while True:
        torch.set_num_threads(1)
        next(updates)
        torch.set_num_threads(threads)
        yield


def updates_in_processes(size: str, data: str, count: int) -> Iterator[None]:
    """The recipe with mnv3's helper in processes that share a batch out, as `processes: N` starts them."""
    with tempfile.TemporaryDirectory() as folder:
        meeting, children = (Path(folder) / "meeting").as_uri(), []
        for rank in range(count):
            command = [sys.executable, __file__, "--data", data, "--models", size, "--serve", meeting]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            children.append(subprocess.Popen(command, env=launcher.environment(rank, count), **pipes))
        try:
            while True:
                for child in children:
                    child.stdin.write(b"\n")
                    child.stdin.flush()
                for child in children:
                    if not child.stdout.readline():
                        raise RuntimeError("a process has ended")
                yield
        finally:
            for child in children:
                child.stdin.close()
            for child in children:  # which end together
                child.wait()


def serve(size: str, data: str, meeting: str) -> None:
    """In one of these processes: an update for each line of stdin, and a line of stdout after it."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    updates = our_updates(recipe.load(f"cifar10_{size}", data=data, sizes=[], lr=0.01, processes=world))
    for _ in sys.stdin:
        next(updates)
        print(flush=True)
    processes.leave_together()


def measure(size: str, data: str, *, threads: int, turns: int) -> dict[str, list[float]]:
    """Images a second of every window of every candidate, in turn."""
    torch.set_num_threads(threads)
    chosen = recipe.load(f"cifar10_{size}", data=data, sizes=[], lr=0.01)
    candidates = {
        "timm, float32": timm_updates(size, chosen, workers=threads, amp=False),
        "timm, bfloat16": timm_updates(size, chosen, workers=threads, amp=True),
        "mnv3, float32": our_updates(recipe.load(f"cifar10_{size}", data=data, sizes=[], lr=0.01, precision="no")),
        "mnv3": our_updates(chosen),
    }
    if threads > 1:
        candidates["mnv3, one thread"] = on_one_thread(our_updates(chosen), threads)
        candidates["mnv3, processes"] = updates_in_processes(size, data, threads)
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(turns + 1):
        for name, updates in candidates.items():
            start = time.perf_counter()
            for _ in range(WINDOW):
                next(updates)
            if turn:  # the first is the warm-up
                rates[name].append(WINDOW * chosen.batch_size / (time.perf_counter() - start))
    if threads > 1:
        candidates["mnv3, processes"].close()
    return rates


def pictures_of(data: str) -> str:
    """How many pictures were trained on, for the record."""
    return f"of {len(list(Path(data).glob('train/*/*'))):,} pictures"


def rows_of(size: str, threads: int, rates: dict[str, list[float]]) -> list[dict[str, Any]]:
    """What is told of each candidate."""
    rows = []
    for name, own in rates.items():
        row = {"model": size, "threads": threads, "what": name, "images_per_s": round(statistics.median(own))}
        for other in ("timm, float32", "timm, bfloat16", "mnv3, one thread"):
            if other in rates and other != name:
                row[f"to {other}"] = record.ratio(own, rates[other])
        rows.append(row)
    return rows


def main() -> None:
    """Print what is told of each candidate, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--models", nargs="+", default=["small", "large"], choices=["small", "large"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured")
    parser.add_argument("--serve", metavar="MEETING", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.models[0], args.data, args.serve)
    rows = []
    for size in args.models:
        for threads in args.threads:
            for row in rows_of(size, threads, measure(size, args.data, threads=threads, turns=args.turns)):
                print(row, flush=True)
                rows.append(row)
    if args.json:
        precision = "bfloat16" if processes.best_precision() == "bf16" else "float32"
        record.write(
            args.json, ("torch", "timm"), turns=args.turns, precision=precision, note=pictures_of(args.data), rows=rows
        )


if __name__ == "__main__":
    main()
