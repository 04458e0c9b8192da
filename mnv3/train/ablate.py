"""What squeeze-and-excite and h-swish are worth: the four tables with and without them, trained alike."""

import json
import logging
import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..arch import count_macs, count_params
from ..deploy.timing import interleaved
from ..errors import choices
from ..factory import load_checkpoint
from ..files.atomic import write_atomically
from ..pictures.evaluate import Metrics
from ..text import markdown_table
from .finetune import finetune
from .recipe import load
from .run_folder import TEST_FILE

logger = logging.getLogger(__name__)
# Student's t that 2.5 % lie above, for 1, 2, 3 ... degrees of freedom; beyond those, the last is a little too wide.
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
VARIANTS: dict[str, dict[str, Any]] = {
    "none": {"use_se": False, "use_hs": False},
    "se": {"use_se": True, "use_hs": False},
    "hs": {"use_se": False, "use_hs": True},
    "both": {},
    "se-first": {"se_order": "se-act"},  # both, the squeeze-and-excite before the activation
}


def ablate(
    recipe: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] = "runs/ablation",
    seeds: Sequence[int] = (0, 1),
    variants: Sequence[str] = tuple(VARIANTS),
    **overrides: Any,
) -> str:
    """Train every variant with every seed; runs in `out` that are done are kept, those that are begun go on.

    Args:
        recipe: As for `mnv3.finetune`.
        out: Gets a run's folder for each variant and seed, ablation.md and ablation.json.
        seeds: Of the trainings.
        variants: Which of `VARIANTS`.
        overrides: Values in place of the recipe's.

    Returns:
        A Markdown table: top-1 on the test pictures (mean and standard deviation over the seeds), its difference from
        the first variant's with a 95 % interval (paired by seed), parameters, MACs, and the latency of one picture in
        this process, median of interleaved runs.

    Raises:
        ValueError: As for `finetune`, an unknown variant, no seeds, or no test pictures.
    """
    for variant in variants:
        if variant not in VARIANTS:
            raise ValueError(f"unknown variant {variant!r}. {choices(variant, VARIANTS)}")
    if not seeds or not variants or len(set(seeds)) < len(seeds):
        raise ValueError(
            f"seeds={list(seeds)}, variants={list(variants)}: expected at least one of each, no seed twice"
        )
    out = Path(out)
    load(recipe, **overrides)  # before anything is written
    accuracy: dict[str, list[float]] = {variant: [] for variant in variants}
    for seed in seeds:
        for variant in variants:
            accuracy[variant].append(_top1(recipe, out / f"{variant}-seed{seed}", variant, seed, overrides))
    models = {variant: load_checkpoint(out / f"{variant}-seed{seeds[0]}").eval() for variant in variants}
    size = models[variants[0]].pretrained_cfg["input_size"][-1]
    times = interleaved(models, torch.zeros(1, 3, size, size))
    rows = [
        {
            "variant": variant,
            "seeds": list(seeds),
            "top1": accuracy[variant],
            "mean": statistics.mean(accuracy[variant]),
            "sd": statistics.stdev(accuracy[variant]) if len(seeds) > 1 else None,
            "against": variants[0],
            "difference": difference(accuracy[variant], accuracy[variants[0]]),
            "params": count_params(model.arch, num_classes=model.num_classes),
            "macs": count_macs(model.arch, size=size, num_classes=model.num_classes),
            "latency_ms": statistics.median(times[variant]),
        }
        for variant, model in models.items()
    ]
    text = _table(rows, size)
    write_atomically(out / "ablation.json", (json.dumps(rows, indent=1) + "\n").encode())
    write_atomically(out / "ablation.md", text.encode())
    return text


def _top1(recipe: str | os.PathLike[str], folder: Path, variant: str, seed: int, overrides: dict[str, Any]) -> float:
    """The test accuracy of a run, which is trained if it is not done."""
    if not (folder / TEST_FILE).is_file():
        logger.info("%s, seed %d", variant, seed)
        finetune(recipe, out=folder, resume=True, **(overrides | VARIANTS[variant] | {"seed": seed}))
    if not (folder / TEST_FILE).is_file():
        raise ValueError(f"{folder}: there are no test pictures to compare the variants on")
    return Metrics.load(folder / TEST_FILE).top1


def difference(top1: Sequence[float], other: Sequence[float]) -> tuple[float, float | None]:
    """Mean of the differences seed by seed, and half of its 95 % interval by Student's t (None for a single seed)."""
    differences = [a - b for a, b in zip(top1, other, strict=True)]
    count = len(differences)
    if count < 2:
        return differences[0], None
    t = T_975[min(count - 1, len(T_975)) - 1]
    return statistics.mean(differences), t * statistics.stdev(differences) / math.sqrt(count)


def _table(rows: list[dict[str, Any]], size: int) -> str:
    against = f"difference from {rows[0]['against']} (95 %)"
    heads = (f"top-1 / % ({len(rows[0]['seeds'])} seeds)", against, "parameters / M", f"MACs / M at {size} px")
    lines = [("variant", *heads, "latency / ms")]
    for row in rows:
        accuracy = f"{row['mean']:.2f}" + (f" ± {row['sd']:.2f}" if row["sd"] is not None else "")
        mean, half = row["difference"]
        gained = f"{mean:+.2f}" + (f" ± {half:.2f}" if half is not None else "") if row is not rows[0] else "-"
        numbers = (f"{row['params'] / 1e6:.3f}", f"{row['macs'] / 1e6:.2f}", f"{row['latency_ms']:.2f}")
        lines.append((row["variant"], accuracy, gained, *numbers))
    return markdown_table(lines, "<<<<<<") + "\n"
