"""Names out of files (classes, tensors, layers, files) as what reads them shows them, and nothing more than that.

Whoever names a class can write escape sequences for a terminal, markup for a page, or characters that no XML may have.
So every such text passes through one of these where it leaves.
"""

import logging
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

JOINERS = "\u200c\u200d"  # of Persian, Hindi and emoji; all other invisible characters can hide or turn text
UNKNOWN = "\N{REPLACEMENT CHARACTER}"
MARKUP = re.compile(r"([\\`*_\[\]<>|&~$#!]|(?<=\w):(?=//)|(?<=\bwww)\.)")
AT_THE_START = re.compile(r"(?<!\S)(\d{0,9})([-+=.)])(?=[-=]*(?:\s|$))")  # of a line: lists, rules and headings
NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def terminal(text: object) -> str:
    """For a terminal, in one line: what is not printable as Python escapes it."""
    return "".join(c if _printable(c) else c.encode("unicode_escape").decode() for c in str(text))


class Notice(logging.Formatter):
    """What a logger of mnv3's says, in one line for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return f"mnv3: {terminal(super().format(record))}"


def drawable(text: object) -> str:
    """For a picture: a sign in place of what no font has."""
    return "".join(c if _printable(c) else UNKNOWN for c in str(text))


def printable(text: object) -> str:
    """For a template of a page, which escapes markup itself. Lines stay."""
    return "".join(c if _printable(c) or c in "\n\t" else UNKNOWN for c in str(text))


def markdown(text: object) -> str:
    """For a paragraph or a cell of a table in Markdown."""
    return AT_THE_START.sub(r"\1\\\2", MARKUP.sub(r"\\\1", drawable(text)))


def aligned_columns(rows: Iterable[Sequence[object]], align: str) -> Iterator[str]:
    """The lines of a table for a terminal.

    Args:
        rows: The heading, if any, and all others, alike long.
        align: '<' or '>' for each column.
    """
    rows = [[terminal(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True)).rstrip()


def markdown_table(rows: Iterable[Sequence[object]], align: str) -> str:
    """A table in Markdown.

    Args:
        rows: The heading and all others, alike long; their text is Markdown already.
        align: '<' or '>' for each column.
    """
    heading, *others = (f"| {' | '.join(map(str, row))} |" for row in rows)
    rule = f"| {' | '.join('---:' if side == '>' else '---' for side in align)} |"
    return "\n".join((heading, rule, *others))


def well_formed(content: bytes) -> bytes:
    """An SVG without the characters that make XML ill-formed."""
    return NOT_IN_XML.sub(UNKNOWN, content.decode(errors="replace")).encode()


def _printable(character: str) -> bool:
    return character.isprintable() or character in JOINERS or unicodedata.category(character) == "Zs"
