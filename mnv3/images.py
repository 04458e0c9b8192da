"""Pictures from files, as people have them: any mode, any orientation, broken ones with a reason."""

import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from PIL import Image, ImageOps, UnidentifiedImageError

MAX_ASPECT = 8  # longer strips are cropped to this, around the middle: resizing them whole would take gigabytes
# Pillow has Ghostscript run the first as a program; of the others it reads a header and no picture.
NOT_READ = ("EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF")
T = TypeVar("T")
_filters_lock = threading.Lock()


class PictureError(ValueError):
    """A file that is not a picture, or one that cannot be read; the message says why."""


def formats() -> list[str]:
    """Pillow's names of the formats that are read, those of its installed plug-ins included."""
    Image.init()
    return [kind for kind in Image.OPEN if kind not in NOT_READ]


def suffixes() -> set[str]:
    """File name endings of these formats, in lower case."""
    kinds = formats()
    return {suffix for suffix, kind in Image.EXTENSION.items() if kind in kinds}


def find(paths: str | os.PathLike | Iterable[str | os.PathLike]) -> Iterator[Path]:
    """Every file that is named, and every picture (by its ending) in the folders that are, in order of their names.

    Hidden files and folders are left out unless they are named: thumbnails, and macOS's '._cat.jpg', which are none.
    """
    endings = suffixes()
    for path in map(Path, [paths] if isinstance(paths, (str, os.PathLike)) else paths):
        if path.is_dir():
            found = (p for p in path.rglob("*") if p.suffix.lower() in endings and p.is_file())
            yield from sorted(p for p in found if not any(part[0] == "." for part in p.relative_to(path).parts))
        else:
            yield path


def spread(files: Sequence[Path], count: int) -> list[Path]:
    """At most `count` of the files, from all along the list, as folders are classes."""
    step = max(len(files) / count, 1)
    return [files[int(i * step)] for i in range(min(count, len(files)))]


def load(path: str | os.PathLike) -> Image.Image:
    """A picture as upright 8-bit RGB.

    EXIF orientation is applied, 16- and 32-bit grey is scaled to 8, and transparency is laid on white.

    Raises:
        PictureError: The file is missing, no picture, cut off, or too large to be one (Pillow's limit).
    """
    return _read(path, lambda picture: _rgb(ImageOps.exif_transpose(picture)))


def size(path: str | os.PathLike) -> tuple[int, int]:
    """Width and height in pixels, from the header alone; errors as for `load`."""
    return _read(path, lambda picture: picture.size)


def _read(path: str | os.PathLike, get: Callable[[Image.Image], T]) -> T:
    path = Path(path)
    try:
        with _open(path) as picture:
            return get(picture)
    except UnidentifiedImageError:
        empty = path.stat().st_size == 0
        raise PictureError(f"{path}: not a picture{' (the file is empty)' if empty else ''}") from None
    except FileNotFoundError:
        raise PictureError(f"{path}: no such file") from None
    except Exception as error:  # a broken file makes Pillow's readers raise anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise PictureError(f"{path}: cannot be read: {reason}") from None


def _open(path: Path) -> Image.Image:
    # The list of warning filters is the process's, so two threads at once would leave it changed.
    with _filters_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large photos are fine; bombs still raise
        return Image.open(path, formats=formats())


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith(("I", "F")):
        picture = _grey(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("RGB")
    short, long = sorted(picture.size)
    if long > MAX_ASPECT * short:
        size = tuple(min(side, MAX_ASPECT * short) for side in picture.size)
        picture = ImageOps.crop(picture, tuple((a - b) // 2 for a, b in zip(picture.size, size, strict=True)))
    return picture


def _grey(picture: Image.Image) -> Image.Image:
    """8-bit grey from 16 or 32 bits a pixel, where Pillow's own conversion clips to white."""
    picture = picture.convert("F")
    high = picture.getextrema()[1]
    white = next((white for white in (1, 255, 65535) if high <= white), high)  # no file says what its white is
    return picture.point(lambda value: value * (255 / white) + 0.5).convert("L")
