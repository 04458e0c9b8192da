"""What `norm_layer`, `act_layer`, `bn_eps` and `bn_momentum` of `timm.create_model` do to a network."""

import math
from collections.abc import Callable

from timm.layers import create_act_layer, get_act_layer, get_norm_layer
from torch import nn

from .layers import ACTIVATION, ConvNormAct, SqueezeExcite


def set_norms(
    model: nn.Module,
    norm_layer: str | Callable[[int], nn.Module] | None = None,
    *,
    eps: float | None = None,
    momentum: float | None = None,
) -> None:
    """Norms of another kind, eps or momentum, before any weights are loaded.

    Args:
        model: Changed in place.
        norm_layer: timm's name of one ('groupnorm1'), or what makes one of a number of channels; None for batch norm.
        eps: Above 0.
        momentum: Above 0 and at most 1, of batch norm.

    Raises:
        ValueError: One of them cannot be had.
    """
    layers = [module for module in model.modules() if isinstance(module, ConvNormAct)]
    if norm_layer is not None:
        make = _timm_layer("norm_layer", norm_layer, get_norm_layer)
        for layer in layers:
            layer.norm = make(layer.conv.out_channels).to(layer.conv.weight)
            if hasattr(layer.norm, "act"):
                raise ValueError(f"norm_layer={norm_layer!r} has an activation of its own: expected a norm alone")
    for name, value, most in (("eps", eps, math.inf), ("momentum", momentum, 1)):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= most:
            raise ValueError(f"bn_{name}={value!r}: expected a number above 0" + (" and at most 1" * (most == 1)))
        for norm in (layer.norm for layer in layers):
            if not hasattr(norm, name):
                raise ValueError(f"bn_{name}={value!r}: {type(norm).__name__} has no {name}")
            setattr(norm, name, value)


def set_activation(model: nn.Module, act: str, act_layer: str | type[nn.Module]) -> None:
    """Replace an activation by another everywhere but in squeeze-and-excite.

    Args:
        model: Changed in place.
        act: The activation to replace, 'RE' or 'HS'.
        act_layer: timm's name of the new one ('silu'), or its class.

    Raises:
        ValueError: There is no such activation.
    """
    _timm_layer("act_layer", act_layer, get_act_layer)
    for parent in [module for module in model.modules() if not isinstance(module, SqueezeExcite)]:
        for name, child in list(parent.named_children()):
            if type(child) is ACTIVATION[act]:
                setattr(parent, name, create_act_layer(act_layer, inplace=child.inplace))


def _timm_layer(argument: str, given: str | Callable, get: Callable) -> Callable:
    """The layer that timm's `get` knows by name, or `given` itself; ValueError for what is neither."""
    try:
        layer = get(given)
    except (KeyError, AssertionError):
        layer = None
    if not callable(layer):
        raise ValueError(f"{argument}={given!r}: expected timm's name of a layer, or what makes one")
    return layer
