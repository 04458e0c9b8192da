"""Fonts for the names of classes, which may be in any script: found where they are installed, else asked for."""

import functools
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)
OWN = "DejaVu Sans"  # matplotlib's: Latin, Greek, Cyrillic, Arabic, Hebrew and some more
# Fonts that are taken first where matplotlib's own lacks a character; after them any that has it.
PREFERRED = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",  # as Debian's fonts-noto-cjk is called, which has all of them
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Microsoft YaHei",
    "PingFang SC",
)
UNFIT = ("Last Resort", "Emoji")  # whose every character is a box; in colours, which matplotlib cannot draw
SHOWN = 5
_said: set[str] = set()


def fit(figure: "Figure") -> None:
    """Give texts a font for the characters that ours lacks; a log line where none that is installed has them."""
    from matplotlib.text import Text

    lacking = {text: set(filter(str.isprintable, text.get_text())) - _characters(OWN) for text in figure.findobj(Text)}
    lacking = {text: characters for text, characters in lacking.items() if characters}
    missing, families = set().union(*lacking.values()), []
    for name in _families() if missing else ():
        if missing & _characters(name):
            families.append(name)
            missing -= _characters(name)
    for text in lacking:
        text.set_fontfamily([OWN, *families])
    if new := missing - _said:
        _said.update(new)
        shown = " ".join(sorted(new)[:SHOWN]) + (" ..." if len(new) > SHOWN else "")
        logger.warning(
            "no installed font has %s, which figures show as boxes: install one, such as Noto Sans CJK (Debian: apt "
            "install fonts-noto-cjk) for Chinese, Japanese and Korean, or Noto Sans of another script",
            shown,
        )


@functools.cache
def _families() -> list[str]:
    """Names of the installed fonts, preferred ones first, with those that matplotlib's list is too old for."""
    from matplotlib import font_manager

    manager = font_manager.fontManager
    known = {font.fname for font in manager.ttflist}
    for path in font_manager.findSystemFonts():
        if path not in known:
            try:
                manager.addfont(path)
            except Exception:  # a font that FreeType cannot open, of which there are all sorts
                continue
    installed = {font.name for font in manager.ttflist if not any(word in font.name for word in UNFIT)}
    return [name for name in PREFERRED if name in installed] + sorted(installed - {OWN, *PREFERRED})


@functools.cache
def _characters(name: str) -> frozenset[str]:
    """The characters of an installed font; none if it cannot be read."""
    from matplotlib import font_manager

    try:
        path = next(font.fname for font in font_manager.fontManager.ttflist if font.name == name)
        font = font_manager.get_font(path)
    except Exception:  # as above
        return frozenset()
    return frozenset(map(chr, font.get_charmap()))
