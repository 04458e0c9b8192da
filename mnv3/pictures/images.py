"""Pictures from files, as people have them: any mode, any orientation, broken ones with a reason."""

import os
import stat
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from PIL import Image, UnidentifiedImageError

from . import deep
from .folders import find, spread
from .formats import formats, suffixes, what_it_is

__all__ = ["PictureError", "find", "formats", "load", "size", "spread", "suffixes"]
MAX_ASPECT = 8  # longer strips are cropped to this, around the middle: resizing them whole would take gigabytes
# What is larger is refused by its header, so that no file takes more than a gigabyte, or much longer than ten seconds.
MAX_SIDE = 100_000  # pixels
MAX_PIXELS = 110_000_000
HEAVY = {"WEBP": 51_000_000, "AVIF": 51_000_000, "HEIF": 51_000_000, "JPEG2000": 40_000_000}  # up to 20 bytes a pixel
PROGRESSIVE = 75_000_000  # pixels of a JPEG whose coefficients are kept to the end
SLOW = 8_000_000  # pixels of a format that Pillow decodes in Python
MAX_SCANS = 100  # of a progressive JPEG; each goes over the whole picture
MAX_ICON = 4096  # pixels along a side of an ICO
PART = 2**20  # pixels that are converted at a time
ORIENTATION = 0x0112  # EXIF's tag
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
T = TypeVar("T")
_filters_lock = threading.Lock()


class PictureError(ValueError):
    """A file that is not a picture, or one that cannot be read; the message says why."""


def load(path: str | os.PathLike[str], *, at_least: int | None = None) -> Image.Image:
    """A picture as upright 8-bit RGB; of an animation, its first.

    EXIF orientation is applied, 16- and 32-bit grey is scaled to 8 (see docs/pictures.md), and transparency is laid on
    white.

    Args:
        path: The file.
        at_least: Pixels along its shorter side that are enough: a larger JPEG is decoded at 1/2, 1/4 or 1/8 of its
            size, as long as it keeps so many, in a fraction of the time. By default everything is decoded.

    Raises:
        PictureError: The file is missing, no picture, cut off, or larger than what is read.
    """

    def upright(picture: Image.Image) -> tuple[Image.Image, Image.Transpose | None]:
        if at_least and picture.format == "JPEG":
            picture.draft(None, (at_least, at_least))
        return _rgb(picture), UPRIGHT.get(_orientation(picture))

    picture, turn = _read(path, upright)
    return picture if turn is None else picture.transpose(turn)


def size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height in pixels, from the header alone; errors as for `load`."""
    return _read(path, lambda picture: picture.size)


def _read(path: str | os.PathLike[str], get: Callable[[Image.Image], T]) -> T:
    path = Path(path)
    try:
        if not stat.S_ISREG(mode := path.stat().st_mode):  # opening a FIFO would wait for a writer
            raise PictureError(f"{path}: {'a folder' if stat.S_ISDIR(mode) else 'a FIFO or device'}, not a picture")
        _check_icon(path)
        with _open(path) as picture:
            _check_size(picture, path)
            return get(picture)
    except UnidentifiedImageError:
        raise PictureError(f"{path}: not a picture{what_it_is(path)}") from None
    except FileNotFoundError:
        raise PictureError(f"{path}: no such file") from None
    except PictureError:
        raise
    except Exception as error:  # a broken file makes Pillow's readers raise anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise PictureError(f"{path}: cannot be read: {' '.join(reason.split())}") from None


def _open(path: Path) -> Image.Image:
    # The list of warning filters is the process's, so two threads at once would leave it changed.
    with _filters_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large photos are fine; bombs still raise
        return Image.open(path, formats=formats())


def _check_icon(path: Path) -> None:
    """Refuse an ICO with a picture that is none: Pillow decodes it as it opens the file, whatever its size."""
    with open(path, "rb") as file:
        start = file.read(6)
        if start[:4] != b"\0\0\1\0":
            return
        entries = [file.read(16) for _ in range(int.from_bytes(start[4:], "little"))]
        for offset in {int.from_bytes(entry[12:], "little") for entry in entries}:
            file.seek(offset)
            head = file.read(24)
            sides = (head[16:20], head[20:24]) if head.startswith(b"\x89PNG") else (head[4:8][::-1], head[8:12][::-1])
            if max(abs(int.from_bytes(side, "big", signed=True)) for side in sides) > MAX_ICON:
                raise ValueError(f"an icon of more than {MAX_ICON} pixels along a side")


def _check_size(picture: Image.Image, path: Path) -> None:
    """Refuse what would take too much memory or time, before anything is decoded."""
    width, height = picture.size
    limit, kind = HEAVY.get(picture.format, MAX_PIXELS), picture.format
    if picture.info.get("progressive"):
        limit, kind = PROGRESSIVE, f"progressive {kind}"
        if (scans := path.read_bytes().count(b"\xff\xda")) > MAX_SCANS:
            raise ValueError(f"a JPEG of {scans} scans, of at most {MAX_SCANS} that are read")
    if any(tile[0] in Image.DECODERS for tile in getattr(picture, "tile", ())):
        limit = SLOW
    if width * height > limit or max(width, height) > MAX_SIDE:
        raise ValueError(
            f"{width} x {height} pixels are too many: of a {kind}, up to {limit:,} are read, and {MAX_SIDE:,} along a "
            "side; make it smaller first"
        )


def _orientation(picture: Image.Image) -> int:
    try:
        return picture.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF is no reason to refuse a picture
        return 1


def _rgb(picture: Image.Image) -> Image.Image:
    picture.load()
    left, top, right, bottom = box = _middle(picture.size)
    if picture.mode == "RGB" and not picture.has_transparency_data:
        return picture if box == (0, 0, *picture.size) else picture.crop(box)
    grey = deep.Grey(picture) if deep.is_deep(picture) else None
    rgb = Image.new("RGB", (right - left, bottom - top))
    rows = max(1, PART // rgb.width)
    for y in range(top, bottom, rows):  # so that no third copy of a large picture is made
        part = picture.crop((left, y, right, min(y + rows, bottom)))
        rgb.paste(grey(part) if grey else _on_white(part), (0, y - top))
    if grey:
        grey.warn_if_odd()
    return rgb


def _middle(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box of a picture that is left of a long strip."""
    sides = [min(side, MAX_ASPECT * min(size)) for side in size]
    left, top = ((a - b) // 2 for a, b in zip(size, sides, strict=True))
    return left, top, left + sides[0], top + sides[1]


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")
