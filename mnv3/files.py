"""Weights files and folders: check, read, save.

A weights folder is what timm and the Hub expect: config.json, model.safetensors; and golden.safetensors, fixed inputs
and the model's outputs for them. Any file is checked against its own format, in bounded time and memory, before a
library reads it, and nothing in it is ever executed.
"""

import argparse
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .arch import as_arch
from .catalog import WEIGHTS_FILE
from .errors import WeightsError

CONFIG_FILE = "config.json"
GOLDEN_FILE = "golden.safetensors"
MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library


def digest(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    state = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def damage(path: Path, sha256: str | None = None) -> str | None:
    """What is wrong with a file of weights, or None.

    Args:
        path: The file.
        sha256: The digest that it should have, or the beginning of it.
    """
    size, head = path.stat().st_size, _head(path)
    if sha256 and not (found := digest(path)).startswith(sha256):
        return f"expected sha256 {sha256[:12]}, found {found[:12]} in {size} bytes{_looks_like(head)}"
    if _is_safetensors(head):
        return _safetensors_damage(path, size)
    return f"not a safetensors file, {size} bytes{_looks_like(head)}" if path.suffix == ".safetensors" else None


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(64)


def _is_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{"  # after the length of the header comes its JSON


def _looks_like(head: bytes) -> str:
    for start, meaning in (
        (b"<", "a web page: is there a login page, a proxy or a wrong URL in between?"),
        (b"version https://git-lfs", "a Git LFS pointer in place of the file: run `git lfs pull`"),
        (b"PK", "a zip archive, as torch.save writes it"),
        (b"\x80", "a pickle"),
    ):
        if head.lstrip().startswith(start):
            return f"; it starts as {meaning}"
    return ""


def _safetensors_damage(path: Path, size: int) -> str | None:
    """Check the header against the size, in bounded time and memory."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, MAX_HEADER):
            return f"the safetensors header should take {length} bytes of {size}: the file is cut off or damaged"
        header = file.read(length)
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        spans = sorted(tuple(entry["data_offsets"]) for entry in entries.values())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return f"the safetensors header cannot be read, {size} bytes"
    end = 0
    for start, stop in spans:
        if start != end or stop < start:
            return "the safetensors header has tensors that overlap or leave gaps"
        end = stop
    expected = 8 + length + end
    return None if expected == size else f"expected {expected} bytes by its safetensors header, found {size}"


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Read a file of tensors to the CPU: safetensors, or what torch.save wrote, without running any code in it.

    Raises:
        WeightsError: The file is missing, damaged, or holds other things than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no file of weights at {path}")
    if problem := damage(path):
        raise WeightsError(f"{path}: {problem}")
    head = _head(path)
    try:
        if _is_safetensors(head):
            from safetensors.torch import load_file

            return load_file(path)
        # timm's and torchvision's trainers keep their arguments beside the weights
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle, zipfile and safetensors each have their own
        reason = str(error).strip().split("\n")[0]
        unsafe = "weights_only" in str(error).lower() and head[:2] in (b"PK", b"\x80\x02")
        advice = "it holds more than tensors, which could run code: save its state_dict alone" if unsafe else reason
        raise WeightsError(
            f"{path}: cannot be read as weights, {path.stat().st_size} bytes{_looks_like(head)}: {advice}"
        ) from error
    if not isinstance(checkpoint, Mapping):
        raise WeightsError(f"{path}: expected a state dict, found a {type(checkpoint).__name__}")
    return dict(checkpoint)


def weights_in(folder: str | os.PathLike) -> Path:
    """The safetensors file of a weights folder.

    Raises:
        WeightsError: There is none. A pickle beside it is not taken in its place.
    """
    folder = Path(folder)
    if (folder / WEIGHTS_FILE).is_file():
        return folder / WEIGHTS_FILE
    if not folder.is_dir():
        raise WeightsError(f"no weights folder at {folder}")
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pth", ".pt", ".ckpt"))
    advice = f"; convert it once: mnv3 convert {folder / pickles[0]} OUT --arch ARCH" if pickles else ""
    raise WeightsError(f"{folder} has no {WEIGHTS_FILE}, only {', '.join(pickles) or 'other files'}{advice}")


def read_config(folder: str | os.PathLike) -> dict[str, Any]:
    """config.json of a weights folder.

    Raises:
        WeightsError: It is missing or not what timm writes.
    """
    file = Path(folder) / CONFIG_FILE
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(config, dict) or not isinstance(config["architecture"], str):
            raise ValueError("'architecture' is not a name")
    except FileNotFoundError:
        raise WeightsError(f"{folder} is no weights folder: it has no {CONFIG_FILE}") from None
    except KeyError as error:
        raise WeightsError(f"{file}: no {error} in it; expected timm's format") from None
    except (ValueError, OSError) as error:
        raise WeightsError(f"{file}: cannot be read: {error}") from None
    return config


def save(model: nn.Module, folder: str | os.PathLike, *, exist_ok: bool = False, **config: Any) -> Path:
    """Write a weights folder: config.json in timm's format, model.safetensors, and golden inputs and logits.

    It appears whole or not at all. timm (`local-dir:`, `hf-hub:` after a push), torch.hub and `mnv3 predict
    --checkpoint` can load it.

    Args:
        model: A model made by `timm.create_model`, `mnv3.create_model` or a torch.hub entry.
        folder: Where.
        exist_ok: Replace a folder that is there.
        config: More entries for config.json, `label_names` for instance.

    Raises:
        FileExistsError: The folder exists, and `exist_ok` is False.
        ValueError: The model was not made by one of those, so nothing says how to build it again.
    """
    from safetensors.torch import save_file
    from timm.models import save_for_hf

    folder = Path(folder).absolute()
    if getattr(model, "pretrained_cfg", None) is None or not hasattr(model, "_model_args"):
        raise ValueError(f"this {type(model).__name__} has no configuration: make it with mnv3.create_model(name, ...)")
    if folder.exists() and not exist_ok:
        raise FileExistsError(f"{folder} exists: choose another folder, or replace it (exist_ok=True, --force)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        arch = {key: as_arch(model._model_args[key]).to_dict() for key in ("arch",) if key in model._model_args}
        save_for_hf(model, str(draft), model_config=config, model_args=arch, safe_serialization=True)
        save_file(golden(model), draft / GOLDEN_FILE)
        draft.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        draft.replace(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def golden(model: nn.Module) -> dict[str, torch.Tensor]:
    """Fixed inputs (2, C, 64, 64) and what the model makes of them in evaluation, to check a loaded copy by."""
    size = min(64, model.pretrained_cfg["input_size"][-1])
    inputs = torch.randn(2, model.in_chans, size, size, generator=torch.Generator().manual_seed(0))
    parameter = next(model.parameters())
    training = model.training
    with torch.inference_mode():
        outputs = model.eval()(inputs.to(parameter)).float().cpu()
    model.train(training)
    return {"inputs": inputs, "outputs": outputs.contiguous()}
