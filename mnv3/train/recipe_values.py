"""Values of a recipe's keys: their types, allowed values and ranges, as the annotations of its fields say them."""

import math
import re
import sys
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

from ..errors import choices
from .recipe_yaml import BRIEFLY

PLAIN_NUMBER = {
    int: re.compile(r"[-+]?(0|[1-9]\d{0,17})", re.ASCII),
    float: re.compile(r"[-+]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][-+]?\d+)?", re.ASCII),
}


class Range(NamedTuple):
    """The values that a key may have, as a test and in words."""

    allows: Callable[[Any], bool]
    expected: str


class Field(NamedTuple):
    """A key of a recipe.

    Attributes:
        types: Of its value: bool, int, float, str, tuple[int, ...], tuple[float, ...] and NoneType.
        ranges: Of its value, unless that is None or a word.
        words: Its values, or where it may be a number too, those that are text.
    """

    types: tuple[Any, ...]
    ranges: tuple[Range, ...]
    words: tuple[str, ...]

    @classmethod
    def of(cls, annotation: Any) -> "Field":
        """Read an annotation: a type, `Annotated[type, Range, ...]` or `Literal[word, ...]`, alone or `| None`."""
        kinds, ranges, words = [], (), ()
        union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
        for kind in typing.get_args(annotation) if union else (annotation,):
            if typing.get_origin(kind) is Annotated:
                kind, *ranges = typing.get_args(kind)
            elif typing.get_origin(kind) is Literal:
                kind, words = str, typing.get_args(kind)
            kinds.append(kind)
        return cls(tuple(kinds), tuple(ranges), words)

    def convert(self, value: Any) -> Any:
        """A value from YAML as one of the types; numbers may be written without a point, lists become tuples.

        Raises:
            ValueError: It is of another type.
        """
        for kind in self.types:
            if kind is type(None) and value is None:
                return None
            if typing.get_origin(kind) is tuple:
                item = typing.get_args(kind)[0]
                if isinstance(value, (list, tuple)) and all(_fits(v, item) for v in value):
                    return tuple(item(v) for v in value)
            elif _fits(number := _unquoted(value, kind), kind):
                return kind(number)
        raise ValueError(f"expected {' or '.join(map(_type_name, self.types))}, got {briefly(value)}")

    def check(self, value: Any) -> None:
        """Raise ValueError for a value out of its range."""
        if value is None:
            return
        if self.words and isinstance(value, str):
            if value not in self.words:
                number = " Or a whole number." if int in self.types else ""
                raise ValueError(f"{value!r} is not allowed. {choices(value, self.words)}{number}")
            return
        numbers = value if isinstance(value, tuple) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise ValueError(f"{value!r} is not allowed: expected a finite number")
        for allowed in self.ranges:
            if not allowed.allows(value):
                raise ValueError(f"{value!r} is not allowed: {allowed.expected}")


def briefly(value: Any) -> str:
    """A value from YAML and its type, for a message."""
    return f"{BRIEFLY.repr(value)} ({type(value).__name__})" if value is not None else "nothing"


def _unquoted(value: Any, kind: type) -> Any:
    """The number that is meant by one in quotation marks, where a number is wanted."""
    if kind in (int, float) and isinstance(value, str) and PLAIN_NUMBER[kind].fullmatch(value):
        return kind(value)
    return value


def _fits(value: Any, kind: type) -> bool:
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is float and isinstance(value, int):
        return abs(value) <= sys.float_info.max
    return isinstance(value, kind)


def _type_name(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return f"a list of {_type_name(typing.get_args(kind)[0])}s".replace("list of a ", "list of ")
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(kind, "null")
