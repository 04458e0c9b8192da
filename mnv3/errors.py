"""The errors that mnv3 raises for its users, and how it writes a list of choices into them."""

import difflib
from collections.abc import Iterable

from .text import terminal


class WeightsError(RuntimeError):
    """A file of weights is damaged, does not belong to the model, or could not be had.

    The message names the file or repository, what was expected, what was found, and how to mend it.
    """


class DataError(ValueError):
    """The pictures cannot be used; the message names the folder or file and says why."""


class TrainingStopped(RuntimeError):
    """A training cannot go on, or was interrupted; the message says where its last checkpoint is."""

    def __init__(self, message: str, *, interrupted: bool = False) -> None:
        super().__init__(message)
        self.interrupted = interrupted


class ExportError(RuntimeError):
    """A model could not be written for another runtime, or gives something else there; nothing was left behind."""


class PublishError(RuntimeError):
    """A weights folder could not be published; nothing is by halves, and the message says what to do."""


def one_line(error: object) -> str:
    """A message as the command line shows it."""
    return f"mnv3: {terminal(' '.join(str(error).split()))}"


def names(option: str, given: object, allowed: Iterable[str]) -> tuple[str, ...]:
    """`given` as a tuple if it is a list of allowed names; ValueError otherwise."""
    allowed = list(allowed)
    if isinstance(given, str) or not isinstance(given, Iterable):
        first = given if given in allowed else allowed[0]
        raise ValueError(f"{option}={given!r}: expected a list of names, such as [{first!r}]. {choices('', allowed)}")
    given = tuple(given)
    for name in given:
        if name not in allowed:
            raise ValueError(f"{option}: {name!r} is unknown. {choices(str(name), allowed)}")
    return given


def choices(given: str, allowed: Iterable[str], *, limit: int = 20) -> str:
    """Near misses of `given` first, then the allowed names, as the tail of an error message."""
    allowed = list(allowed)
    near = difflib.get_close_matches(given, allowed, n=3, cutoff=0.6)
    hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    more = f" and {len(allowed) - limit} more" if len(allowed) > limit else ""
    return f"{hint}Allowed: {', '.join(allowed[:limit])}{more}."
