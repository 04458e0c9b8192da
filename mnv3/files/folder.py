"""Weights folders as timm and the Hub have them: config.json, and the file with the weights.

config.json says what the weights beside it are, and is checked where it enters; where else weights might be it does not
say, whatever it has.
"""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..catalog import ENDINGS, WEIGHTS_FILE, arch_named
from ..errors import WeightsError
from .saving import CONFIG_FILE, GOLDEN_FILE
from .schema import CFG, SOURCES, check_args, check_cfg, check_model

logger = logging.getLogger(__name__)

PICKLE_FILE = "pytorch_model.bin"  # read as tensors alone, as any other
# In timm's order; a folder that has none of these has a file with one of the ENDINGS.
WEIGHTS_FILES = (WEIGHTS_FILE, PICKLE_FILE, "pytorch_model.pth", "model.pth")
MAX_CONFIG = 1 << 24  # bytes
READ_FROM = {"local-dir": "file", "hf-hub": "hf_hub_id"}  # the entry in which timm says where it read a config.json


def checked(arch: str, cfg: Mapping[str, Any], args: Mapping[str, Any]) -> dict[str, Any]:
    """What timm read from the config.json of a folder or repository, as `parse` gives it.

    Args:
        arch: A registered name.
        cfg: timm's PretrainedCfg, with the `source` that timm put into it.
        args: The model's arguments.

    Raises:
        WeightsError: It says what cannot be.
    """
    where = f"{cfg[READ_FROM[cfg['source']]]}: {CONFIG_FILE}"
    check_cfg({name: value for name, value in cfg.items() if name not in SOURCES}, f"{where}: pretrained_cfg")
    check_args(args, f"{where}: model_args")
    check_model(arch, cfg, args, f"{where}: model_args")
    return _cleaned(arch, cfg)


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """config.json of a weights folder, checked.

    Raises:
        WeightsError: It is missing, not what timm writes, or says what cannot be.
    """
    return read_config_file(Path(folder) / CONFIG_FILE)


def read_config_file(file: Path) -> dict[str, Any]:
    """The entries of a config.json, checked; errors as for `read_config`."""
    try:
        if not file.exists():
            raise WeightsError(f"{file.parent} is no weights folder: it has no {CONFIG_FILE}")
        if not file.is_file():
            raise WeightsError(f"{file}: not a regular file")
        if file.stat().st_size > MAX_CONFIG:
            raise WeightsError(f"{file}: {file.stat().st_size} bytes; at most {MAX_CONFIG}")
        config = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(config, dict) or not isinstance(config["architecture"], str):
            raise ValueError("'architecture' is not a name")
    except KeyError as error:
        raise WeightsError(f"{file}: no {error} in it; expected timm's format") from None
    except (ValueError, RecursionError, OSError) as error:
        raise WeightsError(f"{file}: cannot be read: {error}") from None
    _check_config(config, str(file))
    return config


def _check_config(config: dict[str, Any], where: str) -> None:
    cfg, args = config.get("pretrained_cfg"), config.get("model_args", {})
    if "pretrained_cfg" in config:
        check_cfg(cfg, f"{where}: pretrained_cfg")
    # what stands beside it, or all of it in timm's first format
    beside = {name: value for name, value in _renamed(config).items() if name in CFG}
    check_cfg(beside, where)
    check_args(args, f"{where}: model_args")
    if arch := arch_named(config["architecture"]):
        check_model(arch, (cfg or {}) | beside, args, f"{where}: model_args")


def _renamed(config: dict[str, Any]) -> dict[str, Any]:
    """With timm's present name for the names of classes."""
    return ({"label_names": config["labels"]} if "labels" in config else {}) | config


def parse(config: dict[str, Any], source: str, location: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a checked configuration says, in timm's terms.

    Args:
        config: What `read_config` gave, of a model of this family.
        source: 'local-dir' or 'hf-hub', as timm calls where it came from.
        location: The folder, or the repository with its revision.

    Returns:
        Entries of timm's PretrainedCfg, and the model's arguments.
    """
    config = _renamed(config)
    beside = {name: config[name] for name in CFG if config.get(name) is not None}
    args = dict(config.get("model_args", {}))
    cfg = {"input_size": (3, 224, 224)} | config.get("pretrained_cfg", {}) | beside
    if "in_chans" in args:  # the arguments are of the weights; older folders have the size of others
        for name in ("input_size", "test_input_size", "min_input_size"):
            if cfg.get(name):
                cfg[name] = (args["in_chans"], *cfg[name][1:])
    cfg |= {"source": source, READ_FROM[source]: location}
    return _cleaned(arch_named(config["architecture"]), cfg), args


def _cleaned(arch: str, cfg: Mapping[str, Any]) -> dict[str, Any]:
    """A checked PretrainedCfg with our names of the layers, and of where weights are, only where it came from."""
    own = ("source", READ_FROM[cfg["source"]])
    kept = {name: value for name, value in cfg.items() if name not in SOURCES or name in own}
    if "label_names" in kept:
        kept["label_names"] = _as_list(kept["label_names"])
    layers = {"first_conv": "stem.conv", "classifier": "classifier"}
    return kept | layers | {"architecture": arch, "fixed_input_size": False}


def _as_list(names: Any) -> list[str] | None:
    """Names of the classes in their order, also where they stand by index; None where one is missing."""
    if not isinstance(names, Mapping):
        return names and list(names)
    try:
        return [names[str(i)] for i in range(len(names))]
    except KeyError:
        return None


def weights_in(folder: str | os.PathLike[str]) -> Path:
    """The file of weights of a folder: model.safetensors, or the one that timm would take.

    Raises:
        WeightsError: There is none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise WeightsError(f"no weights folder at {folder}")
    for name in WEIGHTS_FILES:
        if (folder / name).is_file():
            return folder / name
    for ending in ENDINGS:
        files = sorted(p for p in folder.glob(f"*{ending}") if p.is_file() and p.name != GOLDEN_FILE)
        if len(files) > 1:
            names = ", ".join(path.name for path in files)
            logger.warning("%s has %s: %s is taken, as timm does", folder, names, files[0].name)
        if files:
            return files[0]
    raise WeightsError(f"{folder} has no file of weights: expected {WEIGHTS_FILE}, or another of {', '.join(ENDINGS)}")
