"""Which formats of pictures are read, those of Pillow's plug-ins included, and what a file is that is none of them."""

import functools
import importlib
from pathlib import Path
from typing import NamedTuple

from PIL import Image

# Pillow has Ghostscript run the first as a program; of the others it reads a header and no picture. An ICNS holds
# pictures whose sizes show only when they are decoded, which is too late.
NOT_READ = ("EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF", "ICNS")


class PlugIn(NamedTuple):
    """A format that Pillow reads by a package of its own, or by itself if it was built with it."""

    kind: str  # Pillow's name of it
    package: str  # pip's name
    module: str
    register: str | None  # the module's function that tells Pillow; None where the import does
    endings: tuple[str, ...]
    brands: tuple[bytes, ...]  # at the start of such files (ISO/IEC 23008-12)


PLUG_INS = {
    "HEIC": PlugIn(
        "HEIF",
        "pillow-heif",
        "pillow_heif",
        "register_heif_opener",
        (".heic", ".heics", ".heif", ".heifs", ".hif"),
        (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"),
    ),
    "AVIF": PlugIn("AVIF", "pillow-avif-plugin", "pillow_avif", None, (".avif", ".avifs"), (b"avif", b"avis")),
}
# What the pictures of data sets often turn out to be: how such files start, in lower case.
OTHERS = {
    b"version https://git-lfs": "a Git LFS pointer: run `git lfs pull`",
    b"<!doctype html": "an HTML page",
    b"<html": "an HTML page",
    b"<svg": "an SVG drawing",
    b"%pdf": "a PDF document",
    b"pk\x03\x04": "a zip file",
}


def formats() -> list[str]:
    """Pillow's names of the formats that are read, those of its installed plug-ins included."""
    _register()
    return [kind for kind in Image.OPEN if kind not in NOT_READ]


def suffixes() -> set[str]:
    """File name endings of these formats, in lower case."""
    kinds = formats()
    return {suffix for suffix, kind in Image.EXTENSION.items() if kind in kinds}


@functools.cache
def _register() -> None:
    """Make all formats of Pillow and its plug-ins known to it."""
    Image.init()
    for plug_in in PLUG_INS.values():
        if plug_in.kind not in Image.OPEN:
            try:
                module = importlib.import_module(plug_in.module)
            except ImportError:
                continue
            if plug_in.register:
                getattr(module, plug_in.register)()


def missing_package(suffix: str) -> str | None:
    """What to say of pictures with this ending that want a package that is not installed."""
    for name, plug_in in PLUG_INS.items():
        if suffix in plug_in.endings and plug_in.kind not in formats():
            return f"{name} needs `pip install {plug_in.package}`"
    return None


def what_it_is(path: Path) -> str:
    """In brackets, what a file is that no format of ours takes for a picture; nothing where that is not known."""
    try:
        with open(path, "rb") as file:
            start = file.read(256)
    except OSError:
        return ""
    if not start:
        return " (the file is empty)"
    for name, plug_in in PLUG_INS.items():
        if start[4:8] == b"ftyp" and start[8:12] in plug_in.brands:
            known = plug_in.kind in formats()
            return f" ({name}, {'but damaged' if known else f'which needs `pip install {plug_in.package}`'})"
    start = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((f" ({what})" for mark, what in OTHERS.items() if start.startswith(mark)), "")
