"""The models in timm's registry: `import mnv3`, then `timm.create_model('mnv3_large', pretrained=True)`.

Every function below is a registered name, a torch.hub entry (hubconf.py), and takes the arguments of
`mnv3.model.MobileNetV3`. `pretrained` is True for the default checkpoint, False, or a tag.
"""

import dataclasses
import inspect
import warnings
from functools import partial
from typing import Any

from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    is_model,
    model_entrypoint,
    register_model,
)
from timm.models._builder import PretrainedCfg, pretrained_cfg_for_features, resolve_pretrained_cfg
from torch import Tensor, nn

from .arch import VARIANTS, Arch, as_arch, dilate
from .catalog import CATALOG, Checkpoint, checkpoints, find
from .errors import WeightsError
from .files import checkpoint, fetch, folder, saving, trained
from .files.conversion import convert_state_dict
from .files.layouts import LAYOUTS
from .files.schema import SOURCES
from .layers import BN_EPS, set_bn_eps
from .model import MobileNetV3

__all__: list[str] = []  # register_model adds the names


def _cfg(arch: str, record: Checkpoint | None = None) -> dict[str, Any]:
    """timm's pretrained configuration of a checkpoint, or of an arch without one."""
    variant = VARIANTS[arch]
    cfg = {
        "input_size": (3, variant.size, variant.size),
        "pool_size": (-(-variant.size // variant.arch.stride),) * 2,
        "num_classes": variant.num_classes,
        "first_conv": "stem.conv",
        "classifier": "classifier",
        "paper_ids": "arXiv:1905.02244",
        "paper_name": "Searching for MobileNetV3",
        "interpolation": "bicubic",
    }
    if record is None:
        return cfg
    same = ("num_classes", "input_size", "mean", "std", "interpolation", "crop_pct", "license")
    cfg |= {name: getattr(record, name) for name in same}
    cfg |= {"test_input_size": record.test_input_size, "test_crop_pct": record.test_crop_pct}
    cfg |= {"origin_url": record.origin, "url": record.url}
    if record.label_names:
        cfg["label_names"] = list(record.label_names)
    if record.repo:
        cfg["hf_hub_id"] = f"{record.repo}@{record.revision}" if record.revision else record.repo
    return cfg


default_cfgs = generate_default_cfgs(
    {record.name: _cfg(record.arch, record) for record in CATALOG}
    | {f"{arch}.untrained": _cfg(arch) for arch in VARIANTS if not checkpoints(arch)}
)


OUTPUT_STRIDES = (8, 16, 32)  # timm's
NEW_CLASSIFIER = -1  # of a pretrained_cfg's num_classes: timm's way to leave the weights' classifier out

# What timm takes for itself; all else goes to the model, which refuses what it does not know.
_TIMM_ARGS = frozenset(inspect.signature(build_model_with_cfg).parameters) | {"out_indices", "feature_cls", "pruned"}


def _create(
    name: str,
    pretrained: bool | str,
    *,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: Any = None,
    features_only: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """A model as timm's `build_model_with_cfg` makes it, of weights in any layout, verified and described."""
    if isinstance(pretrained, str):
        pretrained_cfg, pretrained = find(name, pretrained).tag, True
    elif not isinstance(pretrained, bool):
        raise ValueError(f"pretrained={pretrained!r}: expected True, False or a tag of {name}")
    source_args = kwargs.get("pretrained_model_args") or {}
    cfg = _configuration(name, pretrained_cfg, pretrained_cfg_overlay or {}, source_args, pretrained=pretrained)
    variant = VARIANTS[name]
    defaults = {"arch": variant.table, "width": variant.width, "pad_type": variant.pad_type}
    kwargs = defaults | kwargs
    if (output_stride := kwargs.pop("output_stride", None)) is not None:
        kwargs["arch"] = _with_output_stride(as_arch(kwargs["arch"]), output_stride)
    new_classifier = cfg.num_classes == NEW_CLASSIFIER
    if new_classifier:
        cfg = dataclasses.replace(cfg, num_classes=kwargs.setdefault("num_classes", variant.num_classes))
    model_args = {key: value for key, value in kwargs.items() if key not in _TIMM_ARGS}
    outline = MobileNetV3(**(model_args | {"device": "meta"}))  # bad values are refused before anything is fetched
    convert = partial(convert_state_dict, drop_background=bool(cfg.label_offset))
    bn_eps, load_cfg = None, cfg
    if pretrained:
        any_classes = features_only or "num_classes" in kwargs
        load_cfg = _with_weights(name, cfg, cache_dir, any_classes=any_classes, in_chans=source_args.get("in_chans"))
        cfg = dataclasses.replace(load_cfg, source=cfg.source)
        if new_classifier:  # the tag and the names are of the classes of the old one
            load_cfg = dataclasses.replace(load_cfg, num_classes=NEW_CLASSIFIER)
            cfg = dataclasses.replace(cfg, num_classes=kwargs["num_classes"], tag=None, label_names=None)
        kwargs.setdefault("in_chans", cfg.input_size[0])
        bn_eps = kwargs.pop("bn_eps", None)  # the weights are for BN_EPS
    feature_cfg = {"out_indices": tuple(range(len(outline.feature_info))), "flatten_sequential": True}
    model = build_model_with_cfg(
        MobileNetV3,
        name,
        pretrained,
        pretrained_cfg=load_cfg,
        pretrained_filter_fn=convert,
        feature_cfg=feature_cfg | (kwargs.pop("feature_cfg", None) or {}),
        features_only=features_only,
        **kwargs,
    )
    if bn_eps is not None:
        set_bn_eps(model, bn_eps)
    described = dataclasses.replace(cfg, state_dict=None).to_dict()  # what weights there were are in the model now
    if features_only:
        described = pretrained_cfg_for_features(described)
    else:
        model.register_load_state_dict_pre_hook(_take_any_layout)
    model.pretrained_cfg = model.default_cfg = described
    # what config.json has to say to build the model again
    model._model_args = {k: v for k, v in model_args.items() if k not in ("device", "dtype") and v != defaults.get(k)}
    return model


def _configuration(
    name: str,
    pretrained_cfg: PretrainedCfg | dict[str, Any] | str | None,
    overlay: dict[str, Any],
    source_args: dict[str, Any],
    *,
    pretrained: bool,
) -> PretrainedCfg:
    """The configuration that describes the model: the given one, that of a tag, or that of the default checkpoint.

    Raises:
        ValueError: There is no such tag.
        WeightsError: It is of a folder or repository, and says what cannot be.
    """
    if isinstance(pretrained_cfg, dict) and pretrained_cfg.get("source") in folder.READ_FROM:
        pretrained_cfg = folder.checked(name, pretrained_cfg, source_args)
    try:
        cfg = resolve_pretrained_cfg(name, pretrained_cfg, overlay)
    except RuntimeError:
        find(name, str(pretrained_cfg))  # says which tags there are
        raise
    if pretrained_cfg is None and not (pretrained and overlay.keys().isdisjoint(SOURCES)):
        # random weights, or others than those published: nothing of the default ones is true of them
        cfg = dataclasses.replace(cfg, **(trained.UNKNOWN | {k: overlay[k] for k in trained.UNKNOWN if k in overlay}))
    return cfg


def _with_output_stride(arch: Arch, output_stride: int) -> Arch:
    """At most this total stride, by dilation; 32, timm's default, leaves every table as it is."""
    if isinstance(output_stride, bool) or output_stride not in OUTPUT_STRIDES:
        raise ValueError(f"output_stride={output_stride!r}: expected one of {', '.join(map(str, OUTPUT_STRIDES))}")
    if arch.stride < output_stride < 32:
        raise ValueError(f"output_stride={output_stride}: the total stride of this table is {arch.stride} already")
    while arch.stride > output_stride:
        arch = dilate(arch)
    return arch


def _take_any_layout(model: MobileNetV3, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Turn a state dict of timm's or torchvision's into ours in place, before `load_state_dict` reads it.

    timm's `checkpoint_path`, validate.py and `--initial-checkpoint` come this way. What is in our keys, or in nobody's,
    is left to PyTorch.
    """
    given = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    if not any(all(key in given for key in layout.keys) for layout in LAYOUTS if layout.name != "mnv3"):
        return
    for key, value in convert_state_dict(given, model).items():
        state_dict[prefix + key] = _for_eps(value, model.stem.norm.eps) if key.endswith("running_var") else value
    for key in given.keys() - model.state_dict().keys():
        del state_dict[prefix + key]


def _for_eps(variance: Tensor, eps: float) -> Tensor:
    """A running variance beside `BN_EPS` as it has to be beside `eps` for the same outputs."""
    if (variance + BN_EPS).min() < 0.999 * eps:  # not for rounding alone
        raise ValueError(f"bn_eps={eps!r}: the weights have a channel of less variance: load them without, then train")
    return (variance + (BN_EPS - eps)).clamp(min=0)


def _with_weights(
    name: str, cfg: PretrainedCfg, cache_dir: Any, *, any_classes: bool, in_chans: int | None = None
) -> PretrainedCfg:
    """The configuration with its verified weights in it, described as they are, for timm to adapt and load.

    Args:
        name: The registered name of the model.
        cfg: Where they are.
        cache_dir: For what is downloaded.
        any_classes: Whether the model need not have as many classes as `cfg` says.
        in_chans: The channels that the weights are said to have.
    """
    if cfg.state_dict:  # given with pretrained_cfg_overlay, it comes before any file, as in timm
        path, weights = cfg.file or "the state dict", checkpoint.family_of(cfg.state_dict)
    else:
        path = fetch.locate(cfg, cache_dir=cache_dir)
        weights, training = trained.read(path)
        weights = weights._replace(state_dict=trained.at_usual_eps(weights, name, training.bn_eps))
    classes = max(weights.num_classes - (cfg.label_offset or 0), 0)
    if classes != cfg.num_classes and not any_classes:
        has = f"has {classes} classes" if classes else "has no classifier"
        raise WeightsError(
            f"{path} {has}, {cfg.architecture} {cfg.num_classes}: pass num_classes={classes} to take it "
            "as it is, or another number for a new classifier"
        )
    if in_chans not in (None, weights.in_chans):
        expected = f"{saving.CONFIG_FILE} says {in_chans}"
        raise WeightsError(f"{path} is for pictures of {weights.in_chans} channels, {expected}")
    return dataclasses.replace(
        cfg,
        source=None,
        state_dict=weights.state_dict,
        num_classes=classes,
        label_offset=None,
        input_size=(weights.in_chans, *cfg.input_size[1:]),
    )


def mnv3_large(pretrained: bool | str = False, **kwargs: Any) -> nn.Module:
    """MobileNetV3-Large 1.0, Table 1 of the paper."""
    return _create("mnv3_large", pretrained, **kwargs)


def mnv3_small(pretrained: bool | str = False, **kwargs: Any) -> nn.Module:
    """MobileNetV3-Small 1.0, Table 2 of the paper."""
    return _create("mnv3_small", pretrained, **kwargs)


def mnv3_large_075(pretrained: bool | str = False, **kwargs: Any) -> nn.Module:
    """MobileNetV3-Large 0.75."""
    return _create("mnv3_large_075", pretrained, **kwargs)


def mnv3_small_075(pretrained: bool | str = False, **kwargs: Any) -> nn.Module:
    """MobileNetV3-Small 0.75."""
    return _create("mnv3_small_075", pretrained, **kwargs)


def mnv3_small_050(pretrained: bool | str = False, **kwargs: Any) -> nn.Module:
    """MobileNetV3-Small 0.5."""
    return _create("mnv3_small_050", pretrained, **kwargs)


def mnv3_large_minimal(pretrained: bool | str = False, **kwargs: Any) -> nn.Module:
    """Large 'minimalistic': no SE, no h-swish, no 5x5 kernels."""
    return _create("mnv3_large_minimal", pretrained, **kwargs)


def mnv3_small_minimal(pretrained: bool | str = False, **kwargs: Any) -> nn.Module:
    """Small 'minimalistic': no SE, no h-swish, no 5x5 kernels."""
    return _create("mnv3_small_minimal", pretrained, **kwargs)


def mnv3_large_tf(pretrained: bool | str = False, **kwargs: Any) -> nn.Module:
    """Large 1.0 with TensorFlow's padding."""
    return _create("mnv3_large_tf", pretrained, **kwargs)


def mnv3_small_tf(pretrained: bool | str = False, **kwargs: Any) -> nn.Module:
    """Small 1.0 with TensorFlow's padding."""
    return _create("mnv3_small_tf", pretrained, **kwargs)


def mnv3_large_075_tf(pretrained: bool | str = False, **kwargs: Any) -> nn.Module:
    """Large 0.75 with TensorFlow's padding."""
    return _create("mnv3_large_075_tf", pretrained, **kwargs)


def mnv3_small_075_tf(pretrained: bool | str = False, **kwargs: Any) -> nn.Module:
    """Small 0.75 with TensorFlow's padding."""
    return _create("mnv3_small_075_tf", pretrained, **kwargs)


def mnv3_large_minimal_tf(pretrained: bool | str = False, **kwargs: Any) -> nn.Module:
    """Large minimalistic with TensorFlow's padding."""
    return _create("mnv3_large_minimal_tf", pretrained, **kwargs)


def mnv3_small_minimal_tf(pretrained: bool | str = False, **kwargs: Any) -> nn.Module:
    """Small minimalistic with TensorFlow's padding."""
    return _create("mnv3_small_minimal_tf", pretrained, **kwargs)


def mnv3_large_cifar(pretrained: bool | str = False, **kwargs: Any) -> nn.Module:
    """Large for 32x32 pictures: total stride 8, 10 classes."""
    return _create("mnv3_large_cifar", pretrained, **kwargs)


def mnv3_small_cifar(pretrained: bool | str = False, **kwargs: Any) -> nn.Module:
    """Small for 32x32 pictures: total stride 8, 10 classes."""
    return _create("mnv3_small_cifar", pretrained, **kwargs)


def _register() -> None:
    """Put every variant into timm's registry, or none of them if a name is taken."""
    builders = [globals()[name] for name in VARIANTS]
    taken = [name for name in VARIANTS if is_model(name) and model_entrypoint(name).__module__ != __name__]
    if taken:
        raise ImportError(
            f"timm's registry has {', '.join(taken)} from {model_entrypoint(taken[0]).__module__} already; "
            "mnv3 has registered nothing. Import only one of the two"
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Overwriting .* in registry")  # ours, when this module is reloaded
        for builder in builders:
            register_model(builder)


_register()
