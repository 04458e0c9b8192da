"""Grey pictures of more than 8 bits: which of a file's numbers are black and white, and their 8-bit grey.

The rule (docs/pictures.md) looks at the type of the file and at its tags, never at what is in the picture: two
exposures of one scene are read with one gain.
"""

import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

logger = logging.getLogger(__name__)
# Tags of TIFF 6.0. Its MinSampleValue and MaxSampleValue (280, 281) are not to affect how a picture is shown.
BITS, PHOTOMETRIC, SAMPLE_FORMAT, SAMPLE_MIN, SAMPLE_MAX = 258, 262, 339, 340, 341
SIGNED, FLOAT = 2, 3  # of SAMPLE_FORMAT
DARK = 16  # of a picture that stays below this part of white, no more than 4 of its bits are left
_warned: set[str] = set()


def is_deep(picture: Image.Image) -> bool:
    """Whether it has numbers of 16 or 32 bits, which Pillow's own conversion would cut off at 255."""
    return picture.mode.startswith(("I", "F"))


class Grey:
    """Makes 8-bit RGB of a deep picture, part by part."""

    def __init__(self, picture: Image.Image) -> None:
        self.name = getattr(picture, "filename", "a picture")
        self.black, self.white, self.stated = _levels(picture)
        self.transparent = picture.info.get("transparency")  # PNG: one of its numbers
        self.low, self.high = math.inf, -math.inf

    def __call__(self, part: Image.Image) -> Image.Image:
        """A part of the picture, as 8-bit RGB; what is no number is black."""
        values = np.asarray(part)
        if values.dtype == np.int32 and max(self.black, self.white) > 2**31 - 1:
            values = values.view(np.uint32)  # Pillow has no such type
        self.low, self.high = min(self.low, values.min()), max(self.high, values.max())
        shares = (values.astype(np.float64) - self.black) / (self.white - self.black)
        grey = (np.nan_to_num(shares).clip(0, 1) * 255 + 0.5).astype(np.uint8)
        if isinstance(self.transparent, int):
            grey[values == self.transparent] = 255
        return Image.fromarray(grey).convert("RGB")

    def warn_if_odd(self) -> None:
        """Log, once of each kind, that the numbers do not look like those that the file's type is meant for."""
        advice = "a file has to say so where another number is white (docs/pictures.md)"
        if self.stated:
            return
        if self.high > max(self.black, self.white):
            _warn_once("bright", f"{self.name}: has numbers up to {self.high:g}, but {self.white:g} is white: {advice}")
        elif self.low >= 0 and 0 < self.high < self.white / DARK:
            _warn_once(
                "dark",
                f"{self.name}: nearly black, its numbers end at {self.high:g}, and {self.white:g} is white: {advice}",
            )


def _levels(picture: Image.Image) -> tuple[float, float, bool]:
    """Which numbers of an opened file are black and white, and whether the file says so, not only its type."""
    if picture.format == "TIFF":
        return _levels_of_tiff(picture.tag_v2)
    if picture.mode == "F":
        return 0, 1, False
    scaled = picture.format in ("PPM", "PNG")  # by Pillow or the writer, to 16 bits, also where Pillow holds 32
    return 0, 65535 if scaled or picture.mode != "I" else 2**31 - 1, False


def _levels_of_tiff(tags: Mapping[int, Any]) -> tuple[float, float, bool]:
    kind, bits = _number(tags, SAMPLE_FORMAT), int(_number(tags, BITS) or 16)
    black, white = 0.0, 1.0 if kind == FLOAT else float(2 ** (bits - (kind == SIGNED)) - 1)
    low, high = _number(tags, SAMPLE_MIN), _number(tags, SAMPLE_MAX)
    low, high = black if low is None else low, white if high is None else high
    stated = low < high and (low, high) != (black, white)
    if stated:
        black, white = low, high
    if _number(tags, PHOTOMETRIC) == 0:  # white is zero, which Pillow heeds in pictures of 8 bits only
        black, white = white, black
    return black, white, stated


def _number(tags: Mapping[int, Any], tag: int) -> float | None:
    """The first value of a tag if it is a finite number; a file may have anything there."""
    value = tags.get(tag)
    value = value[0] if isinstance(value, tuple) and value else value
    try:
        return float(value) if math.isfinite(value) else None
    except (TypeError, ValueError, ArithmeticError):
        return None


def _warn_once(kind: str, message: str) -> None:
    if kind not in _warned:
        _warned.add(kind)
        logger.warning("%s; said once", message)
