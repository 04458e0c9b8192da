"""YAML as recipes are written in it: PyYAML with what surprises people taken out."""

import re
import reprlib
import types
from typing import IO, Any

NUMBER = re.compile(r"[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$|[-+]?\.\d+[eE][-+]?\d+$")  # also those YAML 1.1 calls text
# What YAML 1.1 counts by eight or sixty: 010 is 8, 1:30 is 90, 1:30.5 is 90.5.
NOT_BY_TEN = re.compile(r"[-+]?(0[0-7_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")

BRIEFLY = reprlib.Repr()  # for messages: a few aliases can stand for more values than memory holds
BRIEFLY.maxlevel = 2


def load(text: str | IO[str], source: str, *, lines: bool = True) -> Any:
    """The value that a YAML text says.

    Args:
        text: Or a file that is open.
        source: What an error calls it.
        lines: Whether an error says the line.

    Raises:
        ValueError: It is no YAML, or says something that people do not mean; the message says what.
        ImportError: PyYAML is missing.
    """
    yaml = _yaml()
    try:
        return yaml.load(text, _loader())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark and lines else ""
        problem = str(getattr(error, "problem", None) or error).partition("\n")[0]
        raise ValueError(f"{source}{line}: {problem}") from None


def dump(values: dict[str, Any]) -> str:
    """As a text that `load` reads again, in this order."""
    yaml = _yaml()

    class Dumper(yaml.SafeDumper):
        """Writes text that `_loader` would take for a number in quotation marks."""

    Dumper.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+.0123456789"))
    return yaml.dump(values, Dumper=Dumper, sort_keys=False)


def _yaml() -> types.ModuleType:
    try:
        import yaml
    except ImportError:
        raise ImportError("recipes need PyYAML: pip install 'mnv3[finetune]'") from None
    return yaml


def _loader() -> type:
    """PyYAML's safe loader (no tag can make an object), but 1e-3 is a number and a repeated key an error.

    Of its words for booleans only true and false are left; `no` is text, as in `precision: no`.
    """
    yaml = _yaml()

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {  # noqa: RUF012
            first: [(tag, pattern) for tag, pattern in resolvers if first in "tTfF" or not tag.endswith(":bool")]
            for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def construct_object(self, node, deep=False):
            if node.tag.endswith((":int", ":float")) and NOT_BY_TEN.fullmatch(str(node.value)):
                meant = f"{super().construct_object(node, deep)} in YAML, which is hardly meant"
                problem = f"{node.value} is {meant}: write a decimal number (quotation marks make it text)"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
            try:
                return super().construct_object(node, deep)
            except (ValueError, LookupError, AttributeError):  # a date 2001-13-45, or !!int of a word
                kind = node.tag.rpartition(":")[2]
                problem = f"{BRIEFLY.repr(node.value)} is no valid {kind} (quotation marks make it text)"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None

        def construct_mapping(self, node, deep=False):
            seen = []
            for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"key {key.value!r} is given twice", problem_mark=key.start_mark)
                seen.append(key.value)
            return super().construct_mapping(node, deep)

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+.0123456789"))
    return Loader
