"""Weights files and folders: check, read, save.

A weights folder is what timm and the Hub expect: config.json, model.safetensors; and golden.safetensors, fixed inputs
and the model's outputs for them. Any file is checked against its own format, in bounded time and memory, before a
library reads it, and nothing in it is ever executed.
"""

import argparse
import copy
import hashlib
import json
import operator
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from .arch import as_arch
from .catalog import WEIGHTS_FILE
from .convert import layout_of, num_classes_of, unwrap
from .errors import WeightsError
from .layers import check_own_weights, whole_state

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
    try:
        size, head = path.stat().st_size, _head(path)
        if sha256 and not (found := digest(path)).startswith(sha256):
            return f"expected sha256 {sha256[:12]}, found {found[:12]} in {size} bytes{_looks_like(head)}"
        if _is_safetensors(head):
            return _safetensors_damage(path, size)
        whole = head[:1] == b"\x80" or zipfile.is_zipfile(path)
    except OSError as error:
        return f"cannot be read: {error}"
    if path.suffix == ".safetensors":
        return f"not a safetensors file, {size} bytes{_looks_like(head)}"
    return None if whole else f"not a whole file of weights, {size} bytes{_looks_like(head)}"


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(64)


def _is_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{"  # after the length of the header comes its JSON


def _looks_like(head: bytes) -> str:
    if not head:
        return "; it is empty"
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
        spans = [entry["data_offsets"] for entry in entries.values()]
        spans = sorted((operator.index(start), operator.index(stop)) for start, stop in spans)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return f"the safetensors header cannot be read, {size} bytes"
    end = 0
    for start, stop in spans:
        if start != end or stop < start:
            return f"the safetensors header has tensors that overlap or leave gaps, {size} bytes"
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


class FamilyWeights(NamedTuple):
    """What a checkpoint for one of our models holds."""

    state_dict: dict[str, torch.Tensor]
    num_classes: int
    in_chans: int


def family_of(checkpoint: Mapping[str, Any], *, use_ema: bool | None = None) -> FamilyWeights:
    """A checkpoint in any layout that `convert_state_dict` knows, out of its wrapper.

    Raises:
        WeightsError: It holds no weights, or those of another network.
    """
    state_dict = unwrap(checkpoint, use_ema=use_ema)
    in_chans = layout_of(state_dict).stem(state_dict).shape[1]
    return FamilyWeights(state_dict, num_classes_of(state_dict), in_chans)


def read_family(path: str | os.PathLike, *, use_ema: bool | None = None) -> FamilyWeights:
    """Read a file as `family_of` takes it.

    Raises:
        WeightsError: As for `read_checkpoint` and `family_of`; the message names the file.
    """
    checkpoint = read_checkpoint(path)
    try:
        return family_of(checkpoint, use_ema=use_ema)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error


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
    except (ValueError, RecursionError, OSError) as error:
        raise WeightsError(f"{file}: cannot be read: {error}") from None
    return config


def save(model: nn.Module, folder: str | os.PathLike, *, exist_ok: bool = False, **config: Any) -> Path:
    """Write a weights folder: config.json in timm's format, model.safetensors, and golden inputs and logits.

    It appears whole or not at all. timm (`local-dir:`, `hf-hub:` after a push), torch.hub and `mnv3 predict
    --checkpoint` can load it.

    Args:
        model: A model made by `timm.create_model`, `mnv3.create_model` or a torch.hub entry.
        folder: Where.
        exist_ok: Replace a weights folder that is there.
        config: More entries for config.json, `label_names` for instance.

    Raises:
        FileExistsError: The folder exists, and `exist_ok` is False or it holds other files too.
        ValueError: The model was not made by one of those, or its layers were changed since, so that nothing says how
            to build it again.
    """
    folder = Path(folder).resolve()
    model = unwrapped(model)
    contents = weights_files(model, **config)  # before anything is written
    with new_folder(folder, exist_ok=exist_ok) as new:
        for name, content in contents.items():
            (new / name).write_bytes(content)
    return folder


@contextmanager
def new_folder(
    folder: Path, *, exist_ok: bool = False, names: Iterable[str] = (CONFIG_FILE, WEIGHTS_FILE, GOLDEN_FILE)
) -> Iterator[Path]:
    """A folder to write into, which appears under its name at the end of the block, or not at all.

    Args:
        folder: Its name, absolute.
        exist_ok: Replace one that is there, if it has no other files than `names`.
        names: Those that may be replaced.

    Raises:
        FileExistsError: It may not be replaced.
    """
    _check_replaceable(folder, exist_ok, names)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        new = draft / "new"
        new.mkdir()
        yield new
        if folder.exists():
            folder.replace(draft / "old")
        new.replace(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def unwrapped(model: nn.Module) -> nn.Module:
    """What torch.compile wrapped, or the model itself."""
    return getattr(model, "_orig_mod", model)


def weights_files(model: nn.Module, **config: Any) -> dict[str, bytes]:
    """Names and contents of the files of a weights folder; see `save`."""
    from safetensors.torch import save as as_bytes
    from timm.models._hub import save_config_for_hf

    args = _build_args(model)
    if model.num_classes == model.pretrained_cfg.get("num_classes"):
        config.setdefault("label_names", model.pretrained_cfg.get("label_names"))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / CONFIG_FILE
        save_config_for_hf(model, file, model_config=config, model_args=args)
        entries = json.loads(file.read_text(encoding="utf-8"))
    del entries["model_args"]["num_classes"]  # it stands beside them; transformers' wrapper gives it a second time
    config_json = (json.dumps(entries, indent=2) + "\n").encode()
    weights = as_bytes(plain_tensors(whole_state(model)))
    return {WEIGHTS_FILE: weights, GOLDEN_FILE: as_bytes(golden(model)), CONFIG_FILE: config_json}


def plain_tensors(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies on the CPU in the memory layout that safetensors wants."""
    return {key: value.cpu().clone(memory_format=torch.contiguous_format) for key, value in state_dict.items()}


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all, even if the machine stops."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(draft, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _build_args(model: nn.Module) -> dict[str, Any]:
    """The arguments that build a model like this again; that they do is tried here."""
    from timm.models import model_entrypoint

    from .model import MobileNetV3

    if not isinstance(model, MobileNetV3) or not hasattr(model, "_model_args"):
        raise ValueError(f"this {type(model).__name__} has no configuration: make it with mnv3.create_model(name, ...)")
    check_own_weights(model)
    args = {key: value for key, value in model._model_args.items() if not key.startswith("drop_")}
    if "arch" in args:
        args["arch"] = as_arch(args["arch"]).to_dict()
    args |= {"num_classes": model.num_classes, "in_chans": model.in_chans, "global_pool": model.global_pool.pool_type}
    again = model_entrypoint(model.pretrained_cfg["architecture"])(**args, device="meta")
    expected, found = ({k: tuple(v.shape) for k, v in whole_state(m).items()} for m in (again, model))
    for key in expected | found:
        if expected.get(key) != found.get(key):
            raise ValueError(
                f"the model was changed since it was made, so its configuration does not build it: {key} is "
                f"{found.get(key, 'missing')}, not {expected.get(key, 'there')}. Save it before fuse(); for other "
                "classes use reset_classifier(n)"
            )
    return args


def _check_replaceable(folder: Path, exist_ok: bool, replaceable: Iterable[str]) -> None:
    if not folder.exists():
        return
    if not exist_ok:
        raise FileExistsError(f"{folder} exists: choose another folder, or replace it (exist_ok=True, --force)")
    names = {file.name for file in folder.iterdir()} if folder.is_dir() else {"a file"}
    if others := sorted(names - set(replaceable)):
        raise FileExistsError(f"{folder} is not only a weights folder and is not replaced: it has {', '.join(others)}")


def golden(model: nn.Module) -> dict[str, torch.Tensor]:
    """Fixed inputs (2, C, 64, 64) and what the model makes of them in evaluation, to check a loaded copy by."""
    size = min(64, model.pretrained_cfg["input_size"][-1])
    inputs = torch.randn(2, model.in_chans, size, size, generator=torch.Generator().manual_seed(0))
    parameter = next(model.parameters())
    with torch.no_grad():
        outputs = copy.deepcopy(model).eval()(inputs.to(parameter)).float().cpu()  # the model's modes stay as they are
    return {"inputs": inputs, "outputs": outputs.contiguous()}
