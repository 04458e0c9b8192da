"""Pictures from files, as people have them: any mode, any orientation, broken ones with a reason."""

import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

MAX_ASPECT = 8  # longer strips are cropped to this, around the middle: resizing them whole would take gigabytes


class PictureError(ValueError):
    """A file that is not a picture, or one that cannot be read; the message says why."""


def suffixes() -> set[str]:
    """File name endings that Pillow can read, in lower case."""
    Image.init()
    return {suffix for suffix, kind in Image.EXTENSION.items() if kind in Image.OPEN}


def find(paths: Iterable[str | os.PathLike]) -> Iterator[Path]:
    """Every file that is named, and every picture (by its ending) in the folders that are, in order of their names."""
    for path in map(Path, paths):
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes() and p.is_file())
        else:
            yield path


def load(path: str | os.PathLike) -> Image.Image:
    """A picture as upright 8-bit RGB.

    EXIF orientation is applied, 16-bit grey is scaled to 8, and transparency is laid on white.

    Raises:
        PictureError: The file is missing, no picture, cut off, or too large to be one (Pillow's limit).
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large photos are fine; bombs still raise
            with Image.open(path) as picture:
                picture.load()
                return _rgb(ImageOps.exif_transpose(picture))
    except UnidentifiedImageError:
        empty = path.stat().st_size == 0
        raise PictureError(f"{path}: not a picture{' (the file is empty)' if empty else ''}") from None
    except FileNotFoundError:
        raise PictureError(f"{path}: no such file") from None
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise PictureError(f"{path}: cannot be read: {error}") from None


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith(("I", "F")):  # 16 or 32 bits a pixel
        if picture.getextrema()[1] > 255:  # 16-bit grey; Pillow's own conversion would clip it to white
            picture = picture.convert("F").point(lambda value: value / 257)
        picture = picture.convert("L")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("RGB")
    short, long = sorted(picture.size)
    if long > MAX_ASPECT * short:
        size = tuple(min(side, MAX_ASPECT * short) for side in picture.size)
        picture = ImageOps.crop(picture, tuple((a - b) // 2 for a, b in zip(picture.size, size, strict=True)))
    return picture
