"""A recipe's optimiser and the learning rate of its updates."""

from typing import Any

import torch
from torch import nn

from ..errors import choices
from .recipe import Recipe


def optimizer(recipe: Recipe, raw: nn.Module) -> torch.optim.Optimizer:
    """timm's optimiser of the recipe's name; no weight decay on biases and norms.

    Args:
        recipe: The optimiser and its values.
        raw: The model that it trains.

    Raises:
        ValueError: There is none of this name, or it cannot be made and make a step with these values on this device.
    """
    from timm.optim import list_optimizers

    if recipe.optimizer not in (names := list_optimizers()):
        raise ValueError(f"optimizer: {recipe.optimizer!r}. {choices(recipe.optimizer, names, limit=100)}")
    try:
        _rehearse(recipe, next(raw.parameters()).device)
        return _optimizer(recipe, raw, layer_decay=recipe.layer_decay)
    except Exception as error:  # each optimiser has its own
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ValueError(f"optimizer: {recipe.optimizer} does not run with this recipe here: {reason}") from error


def _optimizer(recipe: Recipe, model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    from timm.optim import create_optimizer_v2, get_optimizer_info

    if recipe.momentum == 0 and "nesterov" in (get_optimizer_info(recipe.optimizer).defaults or {}):
        options["nesterov"] = False  # which needs momentum
    options |= {"lr": recipe.lr, "weight_decay": recipe.weight_decay, "momentum": recipe.momentum}
    return create_optimizer_v2(model, opt=recipe.optimizer, **options)


def _rehearse(recipe: Recipe, device: torch.device) -> None:
    """Make one step with a few weights, as some optimisers say only then what they lack."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Linear(4, 2)).to(device)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.1)
    optimizer = _optimizer(recipe, model)
    Schedule(recipe, optimizer, 1)
    optimizer.step()


class Schedule:
    """The learning rate as a function of the updates done: timm's cosine, torch's one-cycle, or constant.

    No update has a rate of 0: the k-th of a warm-up of n updates takes k/n of the way from `min_lr` to `lr`.
    """

    def __init__(self, recipe: Recipe, optimizer: torch.optim.Optimizer, updates_per_epoch: int) -> None:
        from timm.scheduler import create_scheduler_v2

        self.optimizer, self.updates = optimizer, 0
        self.onecycle = None
        if recipe.schedule == "onecycle":
            self.onecycle = _onecycle(recipe, optimizer, updates=recipe.epochs * updates_per_epoch)
            return
        self.timm, _ = create_scheduler_v2(
            optimizer,
            sched=recipe.schedule,
            num_epochs=recipe.cycle(0)[1],
            cycle_mul=2,
            cycle_decay=0.5,
            cycle_limit=recipe.cycles,
            warmup_epochs=0,  # timm's begins with an update at `min_lr`, often 0
            min_lr=recipe.min_lr,
            step_on_epochs=False,
            updates_per_epoch=updates_per_epoch,
        )
        self.warmup, self.low = recipe.warmup_epochs * updates_per_epoch, recipe.min_lr
        self._set()

    def _set(self) -> None:
        """Set the rates of the next update."""
        if self.updates < self.warmup:
            share = min((self.updates + 1) / self.warmup, 1)
            self.timm.update_groups([self.low + share * (peak - self.low) for peak in self.timm.base_values])
        else:
            self.timm.step_update(self.updates)

    @property
    def lr(self) -> float:
        """The rate of the layers nearest to the output."""
        return max(group["lr"] for group in self.optimizer.param_groups)

    def step(self) -> None:
        """Go on to the next update; not called after one that the loss scaler skipped."""
        self.updates += 1
        if self.onecycle:
            self.onecycle.step()
        else:
            self._set()

    def state_dict(self) -> dict[str, Any]:
        """The number of updates done; the rates themselves are in the optimiser's state."""
        return {"updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after so many updates."""
        self.updates = state["updates"]
        if self.onecycle:
            self.onecycle.last_epoch = self.onecycle._step_count = self.updates


def _onecycle(recipe: Recipe, optimizer: torch.optim.Optimizer, *, updates: int) -> Any:
    """torch's one-cycle; momentum runs against the rate, where the optimiser has one and the recipe lets it."""
    peaks = [recipe.lr * group.get("lr_scale", 1) for group in optimizer.param_groups]
    rising = recipe.warmup_epochs / recipe.epochs or 0.3  # torch's own default
    steps = updates + 1
    if rising * steps == 1:
        rising = 0.0  # torch divides by the length of the rise, here no step
    has_momentum = "betas" in optimizer.defaults or ("momentum" in optimizer.defaults and recipe.momentum > 0)
    options = {"total_steps": steps, "pct_start": rising, "cycle_momentum": has_momentum}
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, peaks, **options)


def clip_adaptively(raw: nn.Module, factor: float) -> None:
    """Adaptive gradient clipping (Brock et al. 2021) of all but the classifier, as its authors do."""
    from timm.utils.agc import adaptive_clip_grad

    last = set(raw.get_classifier().parameters())
    adaptive_clip_grad([p for p in raw.parameters() if p.grad is not None and p not in last], factor)
