"""Whether a model is right as often as it says: reliability diagram and expected calibration error."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ..figures import style

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

BINS = 15


@dataclass(frozen=True)
class Calibration:
    """Pictures in bins of one width by the probability of the model's answer; NaN where a bin has none."""

    count: np.ndarray  # (bins,) pictures
    confidence: np.ndarray  # (bins,) mean probability of the answer
    accuracy: np.ndarray  # (bins,) share of right answers
    ece: float  # expected calibration error, from 0 to 1

    @property
    def width(self) -> float:
        """The width of a bin."""
        return 1 / len(self.count)

    @property
    def centres(self) -> np.ndarray:
        """The middle of every bin, (bins,)."""
        return (np.arange(len(self.count)) + 0.5) * self.width


def calibration(probs: Tensor, labels: Tensor, bins: int = BINS) -> Calibration:
    """Compare how sure a model is with how often it is right (Guo et al. 2017, https://arxiv.org/abs/1706.04599).

    Args:
        probs: (N, classes).
        labels: (N,).
        bins: How many; a probability of exactly an edge belongs to the bin below, as in the paper.
    """
    confidence, answer = (column.numpy() for column in probs.double().max(1))
    right = answer == labels.numpy()
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(bin_of, minlength=bins)
    hits, total = (np.bincount(bin_of, weights, minlength=bins) for weights in (right, confidence))
    with np.errstate(invalid="ignore"):
        return Calibration(count, total / count, hits / count, float(np.abs(hits - total).sum() / len(labels)))


def draw_reliability(subfigure: "SubFigure", calibration: Calibration) -> None:
    """Draw the accuracy of every bin, and what is missing to its probability."""
    axis = subfigure.subplots()
    blue, orange, *_ = style.colours()
    filled = calibration.count > 0
    centres, accuracy = calibration.centres[filled], calibration.accuracy[filled]
    gap, width = calibration.confidence[filled] - accuracy, 0.9 * calibration.width
    axis.bar(centres, accuracy, width, color=blue, label="right")
    axis.bar(centres, gap, width, accuracy, facecolor="none", edgecolor=orange, hatch="////", label="difference")
    axis.plot((0, 1), (0, 1), "--", color=style.ink(), lw=1)
    axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of the answer", ylabel="share of right answers")
    axis.set_title(f"calibration: ECE {100 * calibration.ece:.1f} %", size=9)
    axis.set_aspect("equal", adjustable="box")
    axis.legend(loc="upper left")
    axis.grid()


def draw_counts(subfigure: "SubFigure", calibration: Calibration) -> None:
    """Draw how many pictures are in every bin, the mean probability and the accuracy."""
    axis = subfigure.subplots()
    blue, orange, *_ = style.colours()
    count = calibration.count
    axis.bar(calibration.centres, count, 0.9 * calibration.width, color=blue)
    shares = (calibration.confidence, calibration.accuracy)
    confidence, accuracy = (np.nansum(share * count) / count.sum() for share in shares)
    axis.axvline(confidence, color=orange, label=f"mean probability {100 * confidence:.1f} %")
    axis.axvline(accuracy, color=style.ink(), ls=":", label=f"right {100 * accuracy:.1f} %")
    axis.set(xlim=(0, 1), xlabel="probability of the answer", ylabel="pictures")
    axis.legend(loc="upper left")
    axis.grid(axis="y")
