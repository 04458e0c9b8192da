"""Train a MobileNetV3 by a recipe: one loop, from scratch or from published weights, on any device.

The loop is `Training.run`. Random draws depend on the seed, the update and the process alone (`data.seed_all`), so a
checkpoint needs no state of generators, and a run that was killed goes on to the very bits that it would have reached.
"""

import dataclasses
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save as as_bytes
from torch import Tensor, nn

from . import data, ingredients, progress, visualize
from .errors import TrainingStopped, WeightsError
from .evaluate import Metrics, evaluate
from .files import plain_tensors, read_checkpoint, weights_files, write_atomically
from .layers import BN_EPS, set_bn_eps
from .recipe import Recipe, load, make
from .runs import Run

logger = logging.getLogger(__name__)
MAX_SKIPPED = 20  # updates in a row without a finite gradient, after which a smaller loss scale will not help


def finetune(
    recipe: str | os.PathLike | Recipe,
    *,
    out: str | os.PathLike | None = None,
    resume: bool = False,
    **overrides: Any,
) -> Path:
    """Train by a recipe; the result is a weights folder (see `mnv3.save` and runs.py).

    Args:
        recipe: A file, the name of one of the package (`mnv3 recipes`), or a `Recipe`.
        out: The folder to write; by default runs/ and the recipe's name.
        resume: Go on where the run in this folder stopped; start it if there is none.
        overrides: Values in place of the recipe's.

    Raises:
        ValueError: Something in the recipe is not allowed, or the pictures cannot be used.
        FileExistsError: The folder is not empty, and `resume` is False.
        TrainingStopped: Interrupted, or the loss is not finite any more.
    """
    if isinstance(recipe, Recipe):
        name, recipe = "finetune", make(dataclasses.asdict(recipe), overrides)
    else:
        name, recipe = Path(recipe).stem, load(recipe, **overrides)
    return Training(recipe, Path(out or Path("runs") / name), resume=resume).run()


class Training:
    """A training and all its state."""

    def __init__(self, recipe: Recipe, folder: Path, *, resume: bool = False) -> None:
        self.recipe, self.files = recipe, Run(folder)
        self.files.check(recipe, resume=resume)
        self.accelerator = ingredients.accelerator(recipe)
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.pictures = data.splits(recipe)
        labels = self.pictures["train"].labels
        self.parts = recipe.accumulate * self.world
        self.updates_per_epoch, *shape = self._order(0).shape
        self.pictures_per_update = math.prod(shape)
        data.seed_all(recipe.seed)
        self.raw = ingredients.model(recipe, self.pictures["train"].classes).to(self.accelerator.device)
        if self.rank == 0:
            ingredients.warn(recipe, self.raw, updates=recipe.epochs * self.updates_per_epoch, pictures=len(labels))
        self.ema = ingredients.ema(recipe, self.raw)
        self.teacher = ingredients.teacher(recipe, self.raw)
        optimizer = ingredients.optimizer(recipe, self.raw)  # of all parameters, also of those that are frozen at first
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        self.scheduler = ingredients.Schedule(recipe, optimizer, self.updates_per_epoch)
        self.augment = data.Augment(recipe, *(self.raw.pretrained_cfg[name] for name in ("mean", "std")))
        self.mixup = ingredients.mixup(recipe, self.raw.num_classes)
        self.epoch, self.update = 0, 0  # whole epochs done; updates done in this one
        self.history: list[dict[str, Any]] = []
        self.sums = {"loss": 0.0, "grad_norm": 0.0, "seconds": 0.0}  # over the updates of this epoch
        self.best = -1.0
        self.skipped = 0
        self.interrupted = False
        if resume and (checkpoint := self.files.last()):
            self._restore(checkpoint)

    # The loop

    def run(self) -> Path:
        """Train to the end and write the result; returns the run's folder."""
        recipe, folder = self.recipe, self.files.folder
        self.accelerator.wait_for_everyone()  # all have looked at the folder before one changes it
        if self.accelerator.is_main_process:
            self.files.start(recipe)
        self.accelerator.wait_for_everyone()
        with self._interruptible(), ingredients.determinism(recipe), progress.tensorboard(self) as board:
            while self.epoch < recipe.epochs:
                self._train_epoch()
                self._finish_epoch(board)
            return self._finish(folder)

    def _train_epoch(self) -> None:
        with progress.bar(self) as bar:
            for _ in self._updates():
                bar.update(1)
                bar.set_postfix(self._status(), refresh=False)
                if self._stop_requested():
                    self._save()
                    where = f"saved in {self.files.folder}, go on with --resume"
                    raise TrainingStopped(f"interrupted: {where}", interrupted=True)

    def _updates(self) -> Iterator[None]:
        """What is left of this epoch, update by update."""
        frozen, device = self.epoch < self.recipe.freeze_epochs, self.accelerator.device
        model = ingredients.wrap(self, frozen=frozen)
        order, size = self._order(self.epoch)[self.update :], self._size()
        start = time.perf_counter() - self.sums["seconds"]
        for batches in self._batches(order, size):
            ingredients.train_mode(self.raw, freeze_bn=frozen or self.recipe.freeze_bn)
            loss = torch.zeros((), device=device)
            for part, (x, y) in enumerate(batches):
                last = part == self.recipe.accumulate - 1
                with nullcontext() if last else self.accelerator.no_sync(model):
                    part_loss = self._loss(model, x, y) / self.recipe.accumulate
                    self.accelerator.backward(part_loss)
                loss += part_loss.detach()
            self.sums["grad_norm"] += self._step()
            self.sums["loss"] += loss.item()
            self.sums["seconds"] = time.perf_counter() - start
            self.update += 1
            yield

    def _step(self) -> float:
        """Clip and apply the gradient of all processes; returns its norm before clipping."""
        recipe, accelerator = self.recipe, self.accelerator
        agc = recipe.clip and recipe.clip_mode == "agc"
        limit = recipe.clip if recipe.clip and not agc else math.inf
        parameters = [p for p in self.raw.parameters() if p.requires_grad]
        norm = accelerator.clip_grad_norm_(parameters, limit).item()  # of the unscaled gradient
        if not math.isfinite(norm) and accelerator.scaler is None:
            self._fail("the gradient is not finite")
        if agc:
            ingredients.clip_adaptively(self.raw, recipe.clip)
        self.optimizer.step()
        skipped = accelerator.optimizer_step_was_skipped  # the loss scale was too large, and is halved now
        self.optimizer.zero_grad()
        self.skipped = self.skipped + 1 if skipped else 0
        if self.skipped == MAX_SKIPPED:
            self._fail(f"the gradient was not finite in {MAX_SKIPPED} updates in a row")
        if not skipped:
            self.scheduler.step()
            if self.ema:
                self.ema.update(self.raw, step=self.scheduler.updates)
        return norm if math.isfinite(norm) else 0.0

    def _loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy with the classes, or with those that mixup made of them, and with a teacher's answer."""
        recipe = self.recipe
        target, smoothing = y, recipe.label_smoothing
        if self.mixup and self.raw.training:
            x, target = self.mixup(x, y)  # it smooths the labels itself
            smoothing = 0.0
        if recipe.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        logits = model(x).float()
        loss = F.cross_entropy(logits, target, label_smoothing=smoothing)
        if self.teacher is None:
            return loss
        t = recipe.temperature
        with torch.no_grad(), self.accelerator.autocast():
            answer = self.teacher(x).float()
        answers = F.log_softmax(logits / t, 1), F.log_softmax(answer / t, 1)
        distance = F.kl_div(*answers, reduction="batchmean", log_target=True) * t * t  # Hinton et al. 2015
        return (1 - recipe.teacher_weight) * loss + recipe.teacher_weight * distance

    # Batches

    def _order(self, epoch: int) -> Tensor:
        recipe = self.recipe
        return data.order(
            self.pictures["train"].labels,
            batch=recipe.batch_size,
            parts=self.parts,
            seed=recipe.seed,
            epoch=epoch,
            balance=recipe.balance,
        )

    def _size(self) -> int:
        sizes = self.recipe.sizes or (self.recipe.size,)
        start, length = self.recipe.cycle(self.epoch)
        left = start + length - 1 - self.epoch
        return sizes[len(sizes) - 1 - left * len(sizes) // length]

    def _batches(self, order: Tensor, size: int) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
        """For each update, this process's batches of it: pictures (B, 3, size, size) and labels (B,)."""
        train, first = self.pictures["train"], self.update
        mine = order[:, self.rank :: self.world]  # (updates, accumulate, batch)
        files = None
        if not train.held:
            dataset = data.TrainFiles(train, self.recipe, self.augment.policy, size)
            keys = [self._keys(first + i, part, row) for i, rows in enumerate(mine) for part, row in enumerate(rows)]
            files = data.files_loader(dataset, keys, self.recipe.workers)

        def batches_of(update: int, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            for part, row in enumerate(rows):
                x = train.source[row] if files is None else next(files)
                data.seed_all(self.recipe.seed, self.epoch, update, part, self.rank)
                x = self.augment.batch(x, size, self.accelerator.device)
                yield x, train.labels[row].to(self.accelerator.device)

        for i, rows in enumerate(mine):
            yield batches_of(first + i, rows)

    def _keys(self, update: int, part: int, row: Tensor) -> list[tuple[int, int]]:
        """Indices with a seed for each picture's own draws in a worker."""
        place = (self.recipe.seed, self.epoch, update, part, self.rank)
        return list(zip(row.tolist(), data.seeds(*place, count=len(row)), strict=True))

    # Between epochs

    @property
    def averaged(self) -> nn.Module:
        """The model whose accuracy counts: the average of the weights where there is one."""
        return self.ema.module if self.ema else self.raw

    def _finish_epoch(self, board: Any) -> None:
        ingredients.same_buffers(self)
        seconds, count = self.sums["seconds"], self.updates_per_epoch
        line = {
            "epoch": self.epoch + 1,
            "updates": self.scheduler.updates,
            "size": self._size(),
            "lr": self.scheduler.lr,
            "train_loss": self.sums["loss"] / count,
            "grad_norm": self.sums["grad_norm"] / count,
            "images_per_s": round(count * self.pictures_per_update / seconds, 1),
            "seconds": round(seconds, 2),
        }
        if "val" in self.pictures:
            metrics = self._evaluate("val")
            line |= {"weights": "ema" if self.ema else "raw", "val_loss": metrics.loss, "val_top1": metrics.top1}
            if metrics.top1 > self.best and self.accelerator.is_main_process:
                write_atomically(self.files.best, as_bytes(plain_tensors(self.averaged.state_dict())))
            self.best = max(self.best, metrics.top1)
        self.history.append(line)
        self.epoch, self.update = self.epoch + 1, 0
        self.sums = dict.fromkeys(self.sums, 0.0)
        if self.accelerator.is_main_process:
            self.files.write_log(self.history)
            progress.report(line, board)
        self._save()

    def _evaluate(self, split: str) -> Metrics:
        options = {"accelerator": self.accelerator, "workers": self.recipe.workers}
        try:
            return evaluate(self.averaged, self.pictures[split], **options)
        except WeightsError as error:
            self._fail(str(error))

    def _finish(self, folder: Path) -> Path:
        """Test once, and write the weights folder, pictures and figures."""
        if self.files.best.is_file():
            self.averaged.load_state_dict(read_checkpoint(self.files.best))
        metrics = self._evaluate("test") if "test" in self.pictures else None
        if self.accelerator.is_main_process:
            classes = self.pictures["train"].classes
            set_bn_eps(self.averaged, BN_EPS)  # which every weights folder has
            for name, content in weights_files(self.averaged, label_names=classes).items():
                write_atomically(folder / name, content)
            visualize.curves(self.history, folder / "curves.png")
            if metrics:
                visualize.confusion(metrics.confusion, metrics.classes, folder / "confusion.png")
                metrics.save(folder / "test.json")
                logger.info("test top-1 %.2f %%, top-5 %.2f %%, loss %.4f", metrics.top1, metrics.top5, metrics.loss)
        self.accelerator.wait_for_everyone()
        return folder

    # Stop and go on

    def _save(self) -> None:
        ingredients.same_buffers(self)
        if not self.accelerator.is_main_process:
            return
        weights = {"model": self.raw.state_dict()} | ({"ema": self.ema.module.state_dict()} if self.ema else {})
        scaler = self.accelerator.scaler
        state = {
            name: getattr(self, name) for name in ("epoch", "update", "history", "sums", "best", "skipped", "world")
        }
        state |= {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()}
        state |= {"scaler": scaler.state_dict() if scaler else {}}
        self.files.save(self.epoch * self.updates_per_epoch + self.update, weights, state)

    def _restore(self, checkpoint: Path) -> None:
        weights, state = self.files.read(checkpoint)
        if state["world"] != self.world:
            raise ValueError(
                f"{self.files.folder} was trained by {state['world']} processes, not {self.world}: resume so"
            )
        self.raw.load_state_dict(weights["model"])
        if self.ema:
            self.ema.module.load_state_dict(weights["ema"])
        self.optimizer.load_state_dict(state.pop("optimizer"))
        self.scheduler.load_state_dict(state.pop("scheduler"))
        if scaler := state.pop("scaler"):
            self.accelerator.scaler.load_state_dict(scaler)
        for name, value in state.items():
            setattr(self, name, value)

    def _fail(self, reason: str) -> None:
        place = f"epoch {self.epoch + 1}, update {self.update + 1}"
        last = self.files.last()
        kept = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
        raise TrainingStopped(f"{reason} in {place}: lower lr, raise warmup_epochs, or look at the pictures; {kept}")

    def _stop_requested(self) -> bool:
        if self.world == 1:
            return self.interrupted
        if self.interrupted:
            self.accelerator.set_trigger()
        return self.accelerator.check_trigger()  # so that all processes stop after the same update

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM stop after the update that is running; a second one at once."""

        def stop(number: int, _: Any) -> None:
            self.interrupted = True
            signal.signal(number, signal.default_int_handler)

        signals = (signal.SIGINT, signal.SIGTERM)
        main = threading.current_thread() is threading.main_thread()  # no other may set handlers
        before = {number: signal.signal(number, stop) for number in signals} if main else {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _status(self) -> dict[str, str]:
        pictures = self.update * self.pictures_per_update
        return {
            "loss": f"{self.sums['loss'] / self.update:.3f}",
            "lr": f"{self.scheduler.lr:.2g}",
            "images/s": f"{pictures / self.sums['seconds']:.0f}",
        }
