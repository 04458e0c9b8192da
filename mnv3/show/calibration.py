"""Whether a model is right as often as it says: reliability diagram and expected calibration error."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..figures import style

BINS = 15


@dataclass(frozen=True)
class Calibration:
    """By bin of the probability of the answer, all of one width; shares are NaN where no picture falls."""

    count: np.ndarray  # pictures
    confidence: np.ndarray  # mean probability of the answer
    accuracy: np.ndarray  # share of right answers
    ece: float  # expected calibration error, from 0 to 1

    @property
    def edges(self) -> np.ndarray:
        """Of the bins."""
        return np.linspace(0, 1, len(self.count) + 1)


def calibration(probs: Tensor, labels: Tensor, bins: int = BINS) -> Calibration:
    """Compare how sure a model is with how often it is right (Guo et al. 2017, https://arxiv.org/abs/1706.04599).

    Args:
        probs: (N, classes).
        labels: (N,).
        bins: How many; a probability of exactly an edge belongs to the bin below, as in the paper.
    """
    sure, answer = (found.numpy() for found in probs.double().max(1))
    right = answer == labels.numpy()
    place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    count, hits, total = (np.bincount(place, weights, minlength=bins) for weights in (None, right, sure))
    with np.errstate(invalid="ignore"):
        accuracy, confidence = hits / count, total / count
    return Calibration(count, confidence, accuracy, float(np.abs(hits - total).sum() / len(sure)))


def draw_reliability(place: Any, found: Calibration) -> None:
    """Accuracy over probability, and what is missing to the diagonal."""
    axis, width = place.subplots(), 1 / len(found.count)
    blue, orange, *_ = style.colours()
    there = found.count > 0
    middles = (found.edges[:-1] + width / 2)[there]
    accuracy, gap = found.accuracy[there], (found.confidence - found.accuracy)[there]
    axis.bar(middles, accuracy, 0.9 * width, color=blue, label="right")
    axis.bar(middles, gap, 0.9 * width, accuracy, facecolor="none", edgecolor=orange, hatch="////", label="difference")
    axis.plot((0, 1), (0, 1), "--", color=style.ink(), lw=1)
    axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of the answer", ylabel="share of right answers")
    axis.set_title(f"calibration: ECE {100 * found.ece:.1f} %", size=9)
    axis.set_aspect("equal", adjustable="box")
    axis.legend(loc="upper left")
    axis.grid()


def draw_counts(place: Any, found: Calibration) -> None:
    """How many pictures have an answer of which probability, and the two means."""
    axis, width, all_of_them = place.subplots(), 1 / len(found.count), found.count.sum()
    blue, orange, *_ = style.colours()
    axis.bar(found.edges[:-1] + width / 2, found.count, 0.9 * width, color=blue)
    sure, right = (np.nansum(share * found.count) / all_of_them for share in (found.confidence, found.accuracy))
    axis.axvline(sure, color=orange, label=f"mean probability {100 * sure:.1f} %")
    axis.axvline(right, color=style.ink(), ls=":", label=f"right {100 * right:.1f} %")
    axis.set(xlim=(0, 1), xlabel="probability of the answer", ylabel="pictures")
    axis.legend(loc="upper left")
    axis.grid(axis="y")
