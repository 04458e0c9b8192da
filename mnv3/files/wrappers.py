"""What trainers wrap a state dict in: dictionaries of any name, prefixes of any name, a second copy beside it.

The weights are where a whole network of a known layout lies. Where two lie, the names have to say which is meant.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import WeightsError
from .layouts import layout_of, listed, prefixes
from .tensors import MAX_NAME, check_kinds, shown

logger = logging.getLogger(__name__)

EMA_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "ema_model")
PLAIN_KEYS = ("state_dict", "model_state_dict", "model", "net")
# what torch.compile, DataParallel, FSDP and activation checkpointing put into the names of what they wrap
MODULE_WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
MAX_DEPTH = 8  # dictionaries inside one another
MAX_MAPPINGS = 1000
MAX_COPIES = 100


class Copy(NamedTuple):
    """A whole network in a checkpoint."""

    path: tuple[str, ...]  # the dictionaries around it
    prefix: str  # of its tensors' names in the innermost one
    tensors: dict[str, Tensor]  # without the prefix
    beside: list[Any]  # the keys of other tensors in the same dictionary

    @property
    def name(self) -> str:
        """Where it lies, for a message."""
        return shown(" > ".join((*self.path, *([self.prefix] if self.prefix else [])))) or "the outermost dictionary"

    @property
    def names(self) -> list[str]:
        """The names of the dictionaries and modules around it."""
        return [*self.path, *self.prefix.split(".")[:-1]]

    @property
    def averaged(self) -> bool:
        return any(name in EMA_KEYS for name in self.names)

    @property
    def usual(self) -> bool:
        """Whether it lies where trainers put the weights that they mean."""
        return all(name in PLAIN_KEYS + EMA_KEYS for name in self.names)


def unwrap(checkpoint: Mapping[str, Any], *, use_ema: bool | None = None) -> dict[str, Tensor]:
    """The state dict of a known layout inside a checkpoint, without the prefix of its names.

    Tensors beside it and other copies are left out with a notice.

    Args:
        checkpoint: What was read from a file: nested dictionaries with tensors.
        use_ema: Which weights, where a checkpoint has an averaged copy: True for the average or an error, False for
            the raw ones, None for the average if there is one (as timm does).

    Raises:
        WeightsError: There is no known network inside, or no averaged one and `use_ema` is True, only an averaged one
            and it is False, or two and it is not clear which is meant; or a tensor is of a kind that no weights are.
    """
    copies = list(_copies(checkpoint))
    if not copies:
        raise _nothing_known(checkpoint)
    averaged = [copy for copy in copies if copy.averaged]
    raw = [copy for copy in copies if not copy.averaged]
    if use_ema and not averaged:
        raise WeightsError(
            f"use_ema=True, but the checkpoint has none of {', '.join(EMA_KEYS)}: leave use_ema (--ema) out"
        )
    if use_ema is False and not raw:
        raise WeightsError(
            f"use_ema=False, but the checkpoint has averaged weights alone, {averaged[0].name}: leave use_ema "
            "(--no-ema) out"
        )
    chosen = _the_one_meant(averaged if averaged and use_ema is not False else raw)
    _notice(checkpoint, chosen, copies, use_ema=use_ema)
    return chosen.tensors


def _copies(checkpoint: Mapping[str, Any]) -> Iterator[Copy]:
    networks: dict[int, tuple[dict[str, dict[str, Tensor]], list[Any]]] = {}  # of a dictionary, looked for once
    count = 0
    for path, mapping in _mappings(checkpoint):
        if id(mapping) not in networks:
            networks[id(mapping)] = _networks(mapping)
        by_prefix, beside = networks[id(mapping)]
        count += len(by_prefix)
        if count > MAX_COPIES:
            raise WeightsError(f"the checkpoint has more than {MAX_COPIES} networks: save the one meant by itself")
        for prefix, tensors in by_prefix.items():
            yield Copy(path, prefix, tensors, beside)


def _networks(mapping: Mapping[str, Any]) -> tuple[dict[str, dict[str, Tensor]], list[Any]]:
    """The tensors of a dictionary that belong to whole networks, by prefix, and the keys of its other tensors."""
    tensors = _tensors(mapping)
    longest_first = sorted(prefixes(tensors), key=len, reverse=True)
    by_prefix: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in longest_first}
    beside = [key for key, value in mapping.items() if isinstance(value, Tensor) and not _is_name(key)]
    for key, tensor in tensors.items() if 0 < len(by_prefix) <= MAX_COPIES else ():
        prefix = next((prefix for prefix in longest_first if key.startswith(prefix)), None)
        if prefix is None:
            beside.append(key)
        else:
            by_prefix[prefix][key.removeprefix(prefix)] = tensor
    return by_prefix, beside


def _mappings(checkpoint: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """The dictionaries inside one another, from the outermost on; one in several places comes several times."""
    queue: list[tuple[tuple[str, ...], Mapping[str, Any]]] = [((), checkpoint)]
    for path, mapping in queue:
        yield path, mapping
        for key, value in mapping.items() if len(path) < MAX_DEPTH else ():
            if isinstance(key, str) and isinstance(value, Mapping) and len(queue) < MAX_MAPPINGS:
                queue.append(((*path, key), value))


def _tensors(mapping: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a dictionary by their names, without what wrappers of modules put into these."""
    tensors = {}
    for key, value in mapping.items():
        if (
            _is_name(key) and isinstance(value, Tensor) and not key.endswith("n_averaged")
        ):  # torch's AveragedModel counts there
            name = ".".join(part for part in key.split(".") if part not in MODULE_WRAPPERS)
            taken = name in tensors or (name != key and name in mapping)
            tensors[key if taken else name] = value
    return tensors


def _is_name(key: Any) -> bool:
    return isinstance(key, str) and len(key) <= MAX_NAME


def _nothing_known(checkpoint: Mapping[str, Any]) -> WeightsError:
    """The error for a checkpoint without a known network."""
    for path, mapping in _mappings(checkpoint):
        if tensors := _tensors(mapping) if set(path) <= {*PLAIN_KEYS, *EMA_KEYS} else {}:
            try:
                layout_of(tensors)
            except WeightsError as error:
                return error
    return WeightsError(
        f"no state dict in the checkpoint: it has {listed(checkpoint)}; expected tensors, or one of "
        f"{', '.join(EMA_KEYS + PLAIN_KEYS)}"
    )


def _the_one_meant(copies: list[Copy]) -> Copy:
    usual = [copy for copy in copies if copy.usual] or copies
    for copy in usual:
        check_kinds(copy.tensors)
    first = usual[0]
    if other := next((copy for copy in usual[1:] if not _same(first, copy)), None):
        raise WeightsError(
            f"the checkpoint has two networks, {first.name} and {other.name}, and nothing says which is meant: save "
            "the state_dict of one by itself"
        )
    return first


def _same(one: Copy, other: Copy) -> bool:
    """Whether two names stand for the same weights."""
    pairs = ((value, other.tensors.get(key)) for key, value in one.tensors.items())
    return len(one.tensors) == len(other.tensors) and all(
        b is not None and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b) for a, b in pairs
    )


def _notice(checkpoint: Mapping[str, Any], chosen: Copy, copies: list[Copy], *, use_ema: bool | None) -> None:
    """Say what is left out, but for the optimiser and the like, and an average or its original."""
    if others := [copy.name for copy in copies if copy.averaged == chosen.averaged and copy is not chosen]:
        logger.warning("took the weights of %s; not those of %s", chosen.name, listed(others))
    if chosen.beside:
        logger.warning("took the weights of %s; left out beside them: %s", chosen.name, listed(chosen.beside))
    if use_ema is None and not chosen.averaged:
        for key in EMA_KEYS:
            if isinstance(checkpoint.get(key), Mapping) and checkpoint[key]:
                logger.warning("%s holds no averaged weights, only %s", key, listed(checkpoint[key]))
