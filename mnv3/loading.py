"""A model from what its user names: a name, a folder or file of weights, another framework's file, an exported file."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import timm
from torch import nn

from .arch import VARIANTS
from .catalog import split_name
from .convert import reading
from .convert.foreign import Foreign
from .deploy import runtime
from .errors import choices
from .factory import create_model, has_source, read_saved_model
from .files.conversion import check_eps
from .text import terminal

logger = logging.getLogger(__name__)

STORED = ("weights", "exported", "repository")  # the kinds of what has weights of its own
LIBRARIES = ("timm", "torchvision")
Pictures = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]  # files and folders


def load(
    path: str | os.PathLike[str],
    *,
    arch: str | None = None,
    se_order: str | None = None,
    bn_eps: float | None = None,
    drop_background: bool = False,
    use_ema: bool | None = None,
    calibrate: Pictures | None = None,
    verbose: bool = False,
) -> nn.Module:
    """The model of a file or folder of weights, of mnv3 or from elsewhere; what `mnv3 convert` reads.

    Args:
        path: A weights folder (config.json and weights, ours or timm's for this family); a checkpoint of timm,
            torchvision, d-li14's ports or mnv3 (safetensors, or what torch.save wrote); or a file of TFLite, Keras
            (.weights.h5, .h5, .keras) or TF-Slim (.index).
        arch: 'arch', for a file that does not say it. 'arch.tag' says that it has the weights of that tag, with their
            preprocessing and names of classes.
        se_order: Of 'act-se', 'se-act', 'se-act-expanded': where a checkpoint of d-li14's ports has its
            squeeze-and-excite.
        bn_eps: Of the batch norms that a checkpoint was trained with, if not its layout's own.
        drop_background: Drop class 0 of TensorFlow's 1001.
        use_ema: Which weights, where there is an averaged copy: True for the average or an error, False for the raw
            ones, None for the average if there is one.
        calibrate: Pictures or a folder of them, for a quantised TFLite file: every layer's mean is corrected on 64 of
            them, which need no labels.
        verbose: Print what another framework's file says of itself.

    Returns:
        A MobileNetV3 on the CPU, as `create_model` makes it.

    Raises:
        ValueError: `arch` is missing, unknown, or another than the file says; or an option is not for this file.
        WeightsError: The file is damaged, dangerous, or of another network.
        ImportError: A package that reads it is missing.
    """
    path = Path(path)
    kind = reading.kind_of(path)
    if calibrate is not None and kind != "tflite":
        raise ValueError(f"calibrate or --calibrate is for quantised TFLite files: {path} is none")
    if kind is None:
        saved = read_saved_model(path, model=arch, use_ema=use_ema)
        options = {"se_order": se_order} if se_order else {}
        if bn_eps is not None:
            check_eps(bn_eps)
            saved = saved._replace(bn_eps=bn_eps)
        if drop_background:
            options["num_classes"] = max(saved.weights.num_classes - 1, 0)
            options["pretrained_cfg_overlay"] = {"label_offset": 1}
        return saved.build(**options)
    for option, value in (("se_order or --se-order", se_order), ("bn_eps or --bn-eps", bn_eps)):
        if value is not None:
            raise ValueError(f"{option} is for checkpoints that do not say it: {path} does")
    if use_ema is not None and kind != "slim":
        raise ValueError(f"use_ema or --ema is for checkpoints with averaged weights: {path} has none")
    if calibrate is None:
        foreign = reading.read(path, use_ema=use_ema)
    else:
        from .convert.tflite.calibrate import calibrated  # needs LiteRT

        foreign = calibrated(path, calibrate)
    tag = _tag_of(foreign, path, arch) if arch else None
    if verbose:
        print(terminal(f"{path}: {foreign.arch}; {foreign.note}"))
    if foreign.options["num_classes"] == 1001 and not drop_background:
        logger.warning("class 0 of 1001 is TensorFlow's background: drop_background or --drop-background drops it")
    return foreign.build(tag=tag, drop_background=drop_background)


def _tag_of(foreign: Foreign, path: Path, arch: str) -> str | None:
    """The tag in 'arch.tag' if the file has this arch.

    Raises:
        ValueError: It has another one.
    """
    name, tag = split_name(arch)
    other = {key: value for key, value in foreign.options.items() if key in ("width", "pad_type", "arch")}
    if name != foreign.arch or other:
        table = "".join(f" with {key}={value!r:.40}" for key, value in other.items())
        raise ValueError(f"{path} holds {foreign.arch}{table}, not {name}: leave --arch out (arch) to take it as it is")
    return tag


def kind_of(name: str) -> str | None:
    """What a name stands for.

    Returns:
        'exported', for a file that exists with the ending of an exported one; 'weights', for any other file or folder;
        'repository', for hf-hub:... or local-dir:...; 'mnv3', for a model by name; 'timm' or 'torchvision', for
        'timm/NAME', 'torchvision/NAME' or NAME alone; None, for nothing that is known.
    """
    path = Path(name)
    if path.exists():
        return "exported" if runtime.format_of(path) else "weights"
    if has_source(name):
        return "repository"
    if name.partition(".")[0] in VARIANTS:
        return "mnv3"
    library, _, short = name.rpartition("/")
    if library in ("", "timm") and timm.is_model(short):
        return "timm"
    if library in ("", "torchvision"):
        import torchvision

        if short in torchvision.models.list_models(torchvision.models):
            return "torchvision"
    return None


def resolve(name: str, *, arch: str | None = None, use_ema: bool | None = None, pretrained: bool = True) -> nn.Module:
    """The model that a user names, to any command.

    Args:
        name: A name of `mnv3 list`; hf-hub:NAMESPACE/NAME or local-dir:FOLDER; a folder or file of weights, as `load`
            takes it; or an exported file.
        arch, use_ema: Of a folder or file of weights, as for `load`.
        pretrained: False where only the network matters: a name without a tag has random weights then, and models of
            timm and torchvision are allowed.

    Returns:
        The model; a `deploy.Exported` of an exported file.

    Raises:
        ValueError: There is none of this name, or an option is not for it.
        WeightsError: The weights cannot be had, or do not fit.
    """
    kind = kind_of(name)
    if kind == "weights":
        return load(name, arch=arch, use_ema=use_ema)
    for option, value in (("arch (--arch, --model)", arch), ("use_ema (--ema, --no-ema)", use_ema)):
        if value is not None:
            raise ValueError(f"{option} is for files and folders of weights, not {name}")
    if kind == "exported":
        return runtime.load(name)
    if pretrained or kind in ("mnv3", "repository"):
        return create_model(name, pretrained=pretrained or kind == "repository" or "." in name)
    short = name.rpartition("/")[2]
    if kind == "timm":
        return timm.create_model(short)
    if kind == "torchvision":
        import torchvision

        return torchvision.models.get_model(short)
    raise ValueError(f"no model {name!r} in mnv3, timm or torchvision. {choices(name, VARIANTS)}")
