"""Train a MobileNetV3 by a recipe: one loop, from scratch or from published weights, on any device.

The loop is `Training.run`; what happens in one update, from its batches to the averaged weights, is `Training._update`.
Random draws depend on the seed, the update and the process alone (see seeds.py), so a run that was killed goes on to
the very bits that it would have reached.
"""

import dataclasses
import logging
import math
import os
import time
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
import torch.nn.functional as F
from safetensors.torch import save as as_bytes
from torch import Tensor, nn

from ..errors import TrainingStopped, WeightsError
from ..files.atomic import write_atomically
from ..files.checkpoint import read_checkpoint
from ..files.saving import plain_tensors
from ..layers import BN_EPS, set_bn_eps
from ..pictures.evaluate import Metrics, evaluate
from . import ingredients, launcher, optimizers, processes, progress, results
from .augment import Augment
from .batches import Batches
from .folder_lock import locked
from .inventory import inventory
from .recipe import Recipe, load, make
from .run_folder import Run
from .seeds import seed_all
from .splits import load_splits

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)
LAG = 16  # updates after which to wait for a device that computes beside us
MAX_SKIPPED = 20  # updates in a row without a finite gradient, after which a smaller loss scale will not help


def finetune(
    recipe: str | os.PathLike[str] | Recipe,
    *,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    **overrides: Any,
) -> Path:
    """Train by a recipe; the result is a weights folder (see `mnv3.save` and run_folder.py).

    Args:
        recipe: A file, the name of one of the package (`mnv3 recipes`), or a `Recipe`.
        out: The folder to write; by default runs/ and the recipe's name.
        resume: Go on where the run in this folder stopped; start it if there is none.
        overrides: Values in place of the recipe's.

    Returns:
        The folder.

    Raises:
        ValueError: Something in the recipe is not allowed, or the pictures cannot be used or are not those before.
        FileExistsError: The folder is not empty, and `resume` is False; or another training is at work in it.
        WeightsError: What is to be resumed is damaged.
        TrainingStopped: Interrupted, the loss is not finite any more, or the disk is full.
    """
    if isinstance(recipe, Recipe):
        name, recipe = "finetune", make(dataclasses.asdict(recipe), overrides)
    else:
        name, recipe = Path(recipe).stem, load(recipe, **overrides)
    folder = Path(out or Path("runs") / name)
    recipe = launcher.settled(recipe, folder, resume=resume)
    if recipe.processes > 1 and processes.launched() == 1:
        return launcher.launch(recipe, folder, resume=resume)
    first = processes.accelerator(recipe).is_main_process
    with locked(folder) if first else nullcontext():
        return Training(recipe, folder, resume=resume).run()


class Training:
    """A training and all its state."""

    def __init__(self, recipe: Recipe, folder: Path, *, resume: bool = False) -> None:
        self.recipe, self.files = recipe, Run(folder)
        self.files.check(recipe, resume=resume)
        self.accelerator = processes.accelerator(recipe)
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        if recipe.processes not in (1, self.world):
            raise ValueError(f"processes: {recipe.processes}, but {self.world} were started: expected as many, or 1")
        self.pictures = load_splits(recipe)
        self.inventory = inventory(self.pictures)
        self.files.check_pictures(self.inventory)
        train = self.pictures["train"]
        seed_all(recipe.seed)
        device = self.accelerator.device
        self.raw = ingredients.model(recipe, train.classes).to(device)
        self.start = [parameter.detach().clone() for parameter in self.raw.parameters()]
        augment = Augment(recipe, *(self.raw.pretrained_cfg[name] for name in ("mean", "std")), device)
        self.batches = Batches(recipe, train, augment, self.accelerator)
        self.ema = ingredients.ema(recipe, self.raw)
        self.averaged = self.ema.module if self.ema else self.raw  # whose accuracy counts
        self.models = {"model": self.raw} | ({"ema": self.averaged} if self.ema else {})  # by their files' names
        self.teacher = ingredients.teacher(recipe, self.raw)
        optimizer = optimizers.optimizer(recipe, self.raw)  # of all parameters, also of those that are frozen at first
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        self.scheduler = optimizers.Schedule(recipe, optimizer, self.batches.updates)
        self.mixup = ingredients.mixup(recipe, self.raw.num_classes)
        if self.rank == 0:
            ingredients.warn(recipe, self.raw, self.batches)
        self.epoch, self.update = 0, 0  # whole epochs done; updates done in this one
        self.history: list[dict[str, float | str]] = []  # the lines of log.csv
        self.sums = {"loss": 0.0, "grad_norm": 0.0, "seconds": 0.0}  # over the updates of this epoch
        self.best: tuple[float, float] | None = None  # see `_rank`
        self.skipped = 0
        self.pending: list[tuple[int, Tensor]] = []  # updates whose loss and norm the device has still to tell
        self.lag = 1 if device.type == "cpu" else LAG
        if resume and (checkpoint := self.files.last()):
            self._restore(checkpoint)

    # The loop

    def run(self) -> Path:
        """Train to the end and write the result; returns the run's folder."""
        recipe, first = self.recipe, self.rank == 0
        self.accelerator.wait_for_everyone()  # all have looked at the folder before one changes it
        if first:
            self.files.start(recipe, self.inventory)
        self.accelerator.wait_for_everyone()
        shown = progress.board(self.files, epoch=self.epoch + 1) if first else nullcontext()
        with progress.interruptible() as interrupted, processes.determinism(recipe), shown as board:
            while self.epoch < recipe.epochs:
                self._train_epoch(interrupted)
                self._finish_epoch(board)
            return self._finish()

    def _train_epoch(self, interrupted: progress.Interrupted) -> None:
        """Make what is left of this epoch's updates."""
        recipe, frozen = self.recipe, self.epoch < self.recipe.freeze_epochs
        if self.mixup:
            self.mixup.mixup_enabled = self.epoch < recipe.epochs - recipe.mix_off_epochs
        model = processes.wrap(self.raw, self.accelerator, compile=recipe.compile, frozen=frozen)
        name, start = f"epoch {self.epoch + 1}/{recipe.epochs}", time.perf_counter() - self.sums["seconds"]
        with progress.bar(name, total=self.batches.updates, done=self.update, shown=self.rank == 0) as bar:
            for batches in self.batches.of_epoch(self.epoch, self.update):
                ingredients.train_mode(self.raw, freeze_bn=frozen or recipe.freeze_bn)
                self._update(model, batches)
                self.sums["seconds"] = time.perf_counter() - start
                self.update += 1
                bar.update(1)
                if self.pending and self.update < self.batches.updates:
                    continue
                self._settle()
                self.sums["seconds"] = time.perf_counter() - start
                bar.set_postfix(self._status(), refresh=False)
                if interrupted.anywhere(self.accelerator):
                    self._save()
                    advice = f"saved in {self.files.folder}, go on with --resume"
                    raise TrainingStopped(f"interrupted: {advice}", interrupted=True)

    def _update(self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """One update, from its batches to the averaged weights.

        Args:
            model: `raw` for forward passes, see `processes.wrap`.
            batches: `accumulate` times pictures (B, 3, size, size) and labels (B,), made when they are asked for.
        """
        recipe, accelerator = self.recipe, self.accelerator
        total = torch.zeros((), device=accelerator.device)
        for part, (x, target) in enumerate(batches, 1):
            smoothing = recipe.label_smoothing
            if self.mixup:
                x, target = self.mixup(x, target)  # probabilities (B, classes), smoothed already
                smoothing = 0.0
            if recipe.channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            # the processes add up their gradients in the last backward pass alone
            with nullcontext() if part == recipe.accumulate else accelerator.no_sync(model):
                logits = model(x).float()
                loss = F.cross_entropy(logits, target, label_smoothing=smoothing)
                if self.teacher:
                    distance = ingredients.distance(logits, self._answer(x), recipe.temperature)
                    loss = (1 - recipe.teacher_weight) * loss + recipe.teacher_weight * distance
                loss = loss / recipe.accumulate
                accelerator.backward(loss)
            total += loss.detach()

        by_norm = recipe.clip and recipe.clip_mode == "norm"
        parameters = [p for p in self.raw.parameters() if p.requires_grad]
        norm = accelerator.clip_grad_norm_(parameters, recipe.clip if by_norm else math.inf)  # unscaled, before
        self.pending.append((self.update, torch.stack((total, norm))))
        if len(self.pending) >= self.lag:
            self._settle()
        if recipe.clip and not by_norm:
            optimizers.clip_adaptively(self.raw, recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if accelerator.optimizer_step_was_skipped:  # the loss scale was too large, and is halved now
            self.skipped += 1
            if self.skipped == MAX_SKIPPED:
                self._fail(f"the gradient was not finite in {MAX_SKIPPED} updates in a row")
        else:
            self.skipped = 0
            self.scheduler.step()
            processes.same_buffers(self.raw, self.world)
            if self.ema:
                self.ema.update(self.raw, step=self.scheduler.updates)

    def _settle(self) -> None:
        """Take up losses and norms since the last time, for which the device is waited for; before anything is saved.

        Raises:
            TrainingStopped: A gradient was not finite.
        """
        if not self.pending:
            return
        pending, self.pending = self.pending, []
        values = torch.stack([value for _, value in pending])
        if self.world > 1:
            values = self.accelerator.reduce(values, "mean")  # each has the loss of its own pictures
        for (update, _), (loss, norm) in zip(pending, values.tolist(), strict=True):
            if not math.isfinite(norm) and self.accelerator.scaler is None:
                self._fail("the gradient is not finite", update)
            self.sums["grad_norm"] += norm if math.isfinite(norm) else 0.0
            self.sums["loss"] += loss

    def _answer(self, x: Tensor) -> Tensor:
        """The teacher's logits (B, classes)."""
        with torch.no_grad(), self.accelerator.autocast():
            return self.teacher(x).float()

    # Between epochs

    def _finish_epoch(self, board: "SummaryWriter | None") -> None:
        """Evaluate, log and save."""
        seconds, count = self.sums["seconds"], self.batches.updates
        line = {
            "epoch": self.epoch + 1,
            "updates": self.scheduler.updates,
            "size": self.batches.size(self.epoch),
            "lr": self.scheduler.lr,
            "train_loss": self.sums["loss"] / count,
            "grad_norm": self.sums["grad_norm"] / count,
            "images_per_s": round(count * self.batches.pictures_per_update / seconds, 1),
            "seconds": round(seconds, 2),
        }
        if "val" in self.pictures:
            metrics = self._evaluate("val")
            line |= {"weights": "ema" if self.ema else "raw", "val_loss": metrics.loss, "val_top1": metrics.top1}
            if self.best is None or _rank(line) >= self.best:
                self.best = _rank(line)
                self._keep_best()
        self.history.append(line)
        self.epoch, self.update = self.epoch + 1, 0
        self.sums = dict.fromkeys(self.sums, 0.0)
        if self.rank == 0:
            self.files.write_log(self.history)
            with self.files.writing(self.files.folder / "tensorboard"):
                progress.report(line, board)
        self._save()

    def _keep_best(self) -> None:
        if self.rank == 0:
            with self.files.writing(self.files.best) as file:
                write_atomically(file, as_bytes(plain_tensors(self.averaged.state_dict())))

    def _evaluate(self, split: str) -> Metrics:
        pictures, workers = self.pictures[split], self.recipe.workers
        try:
            return evaluate(self.averaged, pictures, workers=workers, accelerator=self.accelerator)
        except WeightsError as error:
            self._fail(str(error))

    def _finish(self) -> Path:
        """Test once, and write the result."""
        model = self.averaged
        if "val" in self.pictures:
            try:
                model.load_state_dict(read_checkpoint(self.files.best))
            except RuntimeError as error:
                reason = " ".join(str(error).split())[:200]
                raise WeightsError(f"{self.files.best} is not of this training, put it back: {reason}") from error
        metrics = self._evaluate("test") if "test" in self.pictures else None
        if self.rank == 0:
            if all(map(torch.equal, model.parameters(), self.start)):
                done = f"{self.scheduler.updates} updates, lr up to {self.recipe.lr:g}"
                logger.warning("the result is what the training began with, no weight has changed (%s)", done)
            set_bn_eps(model, BN_EPS)  # which every weights folder has
            results.write(self.files, model, self.pictures["train"].classes, self.history, metrics)
        self.accelerator.wait_for_everyone()
        return self.files.folder

    # Stop and go on

    def _save(self) -> None:
        if self.rank:
            return
        weights = {name: model.state_dict() for name, model in self.models.items()}
        scaler = self.accelerator.scaler
        state = {name: getattr(self, name) for name in ("epoch", "update", "history", "sums", "skipped", "world")}
        state |= {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()}
        state |= {"scaler": scaler.state_dict() if scaler else {}}
        self.files.save(self.epoch * self.batches.updates + self.update, weights, state)

    def _restore(self, checkpoint: Path) -> None:
        has_val = "val" in self.pictures
        weights, state = self.files.read(checkpoint, world=self.world, updates=self.batches.updates, has_val=has_val)
        try:
            for name, model in self.models.items():
                model.load_state_dict(weights[name])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            if self.accelerator.scaler:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.sums = {name: float(state["sums"][name]) for name in self.sums}
            if has_val:
                self.best = max(map(_rank, state["history"]), default=None)
        except (RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
            raise WeightsError(
                f"{checkpoint} does not fit this training ({reason}): is it another's, or are the classes others? "
                f"Put it back, or remove it to start again"
            ) from error
        for name in ("epoch", "update", "history", "skipped"):
            setattr(self, name, state[name])

    def _fail(self, reason: str, update: int | None = None) -> NoReturn:
        number = (self.update if update is None else update) + 1
        when, last = f"epoch {self.epoch + 1}, update {number}", self.files.last()
        kept = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
        raise TrainingStopped(f"{reason} in {when}: lower lr, raise warmup_epochs, or look at the pictures; {kept}")

    def _status(self) -> dict[str, str]:
        """The numbers behind the bar."""
        pictures = self.update * self.batches.pictures_per_update
        return {
            "loss": f"{self.sums['loss'] / self.update:.3f}",
            "lr": f"{self.scheduler.lr:.2g}",
            "images/s": f"{pictures / self.sums['seconds']:.0f}",
        }


def _rank(line: dict[str, Any]) -> tuple[float, float]:
    """What is best on the validation pictures: of equal accuracies the lower loss, of equal losses the later."""
    return line["val_top1"], -line["val_loss"]
