"""Which activation a curve of features.py is."""

import numpy as np

from ...errors import WeightsError
from .features import GRID, UNARY, FeatureMap

CURVES = {"RE": UNARY["RELU"](GRID), "HS": UNARY["HARD_SWISH"](GRID)}
CLOSE = 0.01  # of a curve; constants of 8 bits are that exact, and the functions differ by more


def is_linear(features: FeatureMap) -> bool:
    """Whether there is no activation, up to rounding; a ReLU that a quantised range implies does not count."""
    return _close(features.curve, GRID)


def activation(features: FeatureMap) -> str | None:
    """The activation after a layer: 'RE' or 'HS', None if it is another or there is none."""
    if features.implied_relu and is_linear(features):
        return "RE"
    return next((name for name, curve in CURVES.items() if _close(features.curve, curve)), None)


def slope(features: FeatureMap) -> float | None:
    """The factor, if the curve is a line through the origin that rises."""
    factor = float(features.curve[-1] / GRID[-1])
    return factor if factor > 0 and np.allclose(features.curve, factor * GRID) else None


def hard_sigmoid(gate: FeatureMap, height: float) -> tuple[float, float]:
    """Gain and shift with which height * curve(x) is hard_sigmoid(gain * x + shift), 1 and 0 where it is itself.

    Raises:
        WeightsError: It is no hard sigmoid.
    """
    for curve in (height * gate.curve, height * gate.clamped):
        inside = (curve > 0.02) & (curve < 0.98)
        if inside.sum() < 2:
            continue
        rise, level = np.polyfit(GRID[inside], curve[inside], 1)
        if _close(np.clip(rise * GRID + level, 0, 1), curve):
            gain, shift = 6 * rise, 6 * level - 3
            gain = 1.0 if abs(gain - 1) < 1e-3 else gain
            nearest = round(shift)
            return float(gain), float(nearest if abs(shift - nearest) < 3e-3 else shift)
    raise WeightsError("the gate of a squeeze-and-excite is no hard sigmoid")


def _close(curve: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(curve - other).max() < CLOSE)
