"""Weights folders: save.

A weights folder is what timm and the Hub expect: config.json, model.safetensors; and golden.safetensors, fixed inputs
and the model's outputs for them. folder.py reads config.json, checkpoint.py the weights.
"""

import copy
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..arch import as_arch
from ..catalog import WEIGHTS_FILE
from ..layers import check_own_weights, full_state_dict, with_default_eps
from .atomic import new_folder

CONFIG_FILE = "config.json"
GOLDEN_FILE = "golden.safetensors"


def save(
    model: nn.Module, folder: str | os.PathLike[str], *, half: bool = False, exist_ok: bool = False, **config: Any
) -> Path:
    """Write a weights folder: config.json in timm's format, model.safetensors, and golden inputs and logits.

    It appears whole or not at all. timm (`local-dir:`, `hf-hub:` after a push), torch.hub and `mnv3 predict
    --checkpoint` can load it.

    Args:
        model: A model made by `timm.create_model`, `mnv3.create_model` or a torch.hub entry.
        folder: The folder to write.
        half: Store the weights of convolutions and linear layers as float16, half the size. They are loaded into
            float32, and computed in it.
        exist_ok: Replace a weights folder that is there.
        config: More entries for config.json, `label_names` for instance.

    Returns:
        The folder, as an absolute path.

    Raises:
        FileExistsError: The folder exists, and `exist_ok` is False or it holds other files too.
        ValueError: The model was not made by one of those, or its layers were changed since, so that nothing says how
            to build it again; or a weight is too large for float16.
    """
    folder = Path(folder).resolve()
    model = unwrapped(model)
    contents = weights_files(model, half=half, **config)  # before anything is written
    with new_folder(folder, names=list(contents), needs=WEIGHTS_FILE, exist_ok=exist_ok) as new:
        for name, content in contents.items():
            (new / name).write_bytes(content)
    return folder


def unwrapped(model: nn.Module) -> nn.Module:
    """What torch.compile wrapped, or the model itself."""
    return getattr(model, "_orig_mod", model)


def weights_files(model: nn.Module, *, half: bool = False, **config: Any) -> dict[str, bytes]:
    """Names and contents of the files of a weights folder; arguments and errors as for `save`."""
    from safetensors.torch import save as as_bytes
    from timm.models._hub import save_config_for_hf

    model = with_default_eps(model)
    if half:
        model = _rounded_to_half(model)
    args = _build_args(model)
    if model.num_classes == model.pretrained_cfg.get("num_classes"):
        config.setdefault("label_names", model.pretrained_cfg.get("label_names"))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / CONFIG_FILE
        save_config_for_hf(model, file, model_config=config, model_args=args)
        entries = json.loads(file.read_text(encoding="utf-8"))
    del entries["model_args"]["num_classes"]  # it stands beside them; transformers' wrapper gives it a second time
    if half:
        entries["dtype"] = "float32"  # or transformers would compute in float16
    config_json = (json.dumps(entries, indent=2) + "\n").encode()
    tensors = plain_tensors(full_state_dict(model))
    if half:
        tensors = {key: value.half() if value.ndim > 1 else value for key, value in tensors.items()}
    return {WEIGHTS_FILE: as_bytes(tensors), GOLDEN_FILE: as_bytes(golden(model)), CONFIG_FILE: config_json}


@torch.no_grad()
def _rounded_to_half(model: nn.Module) -> nn.Module:
    """A copy whose weights of convolutions and linear layers are numbers that float16 has."""
    model = copy.deepcopy(model)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.copy_(parameter.half())
            if not parameter.isfinite().all():
                raise ValueError(
                    f"{name} has weights beyond 65504, which float16 does not hold: save it with half=False"
                )
    return model


def plain_tensors(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies on the CPU in the memory layout that safetensors wants."""
    return {key: value.cpu().clone(memory_format=torch.contiguous_format) for key, value in state_dict.items()}


def _build_args(model: nn.Module) -> dict[str, Any]:
    """The arguments that build a model like this again; that they do is tried here."""
    from timm.models import model_entrypoint

    from ..model import MobileNetV3

    if not isinstance(model, MobileNetV3) or not hasattr(model, "_model_args"):
        raise ValueError(f"this {type(model).__name__} has no configuration: make it with mnv3.create_model(name, ...)")
    check_own_weights(model)
    args = {key: value for key, value in model._model_args.items() if not key.startswith("drop_")}
    if "arch" in args:
        args["arch"] = as_arch(args["arch"]).to_dict()
    for key in {"norm_layer", "act_layer"} & args.keys():
        if not isinstance(args[key], str):
            raise ValueError(f"{key}={args[key]!r} cannot be written into config.json: make the model with timm's name")
    args |= {"num_classes": model.num_classes, "in_chans": model.in_chans, "global_pool": model.global_pool.pool_type}
    again = model_entrypoint(model.pretrained_cfg["architecture"])(**args, device="meta")
    expected, shapes = ({k: tuple(v.shape) for k, v in full_state_dict(m).items()} for m in (again, model))
    for key in expected | shapes:
        if expected.get(key) != shapes.get(key):
            raise ValueError(
                f"the model was changed since it was made, so its configuration does not build it: {key} is "
                f"{shapes.get(key, 'missing')}, not {expected.get(key, 'there')}. Save it before fuse(); for other "
                "classes use reset_classifier(n)"
            )
    return args


def golden(model: nn.Module) -> dict[str, torch.Tensor]:
    """Inputs (2, C, 64, 64), the same for every model, and its outputs in evaluation, to check a loaded copy by."""
    size = min(64, model.pretrained_cfg["input_size"][-1])
    inputs = torch.randn(2, model.in_chans, size, size, generator=torch.Generator().manual_seed(0))
    parameter = next(model.parameters())
    with torch.no_grad():
        outputs = copy.deepcopy(model).eval()(inputs.to(parameter)).float().cpu()  # the model's modes stay as they are
    return {"inputs": inputs, "outputs": outputs.contiguous()}
