"""TFLite files of MobileNetV3, float or quantised, as models of ours: the same function to rounding.

Weights of 8 bits become the real numbers that they stand for. TFLite has folded batch norm into weights and biases:
ours becomes (mean 0, variance 1 - eps, weight 1) with the bias.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...catalog import HALF
from ...errors import WeightsError
from ...layers import BN_EPS
from ..foreign import Foreign, named
from .features import Node
from .file import Tensor
from .matching import Network, read_network

BESIDE = ("mean", "std", "interpolation", "crop_pct", "crop_mode", "label_names")  # what `mnv3 export` wrote of these


def read(path: str | os.PathLike[str]) -> Foreign:
    """The model in a TFLite file: a float32, float16 or quantised (uint8, int8) classifier of one picture.

    Raises:
        WeightsError: The file is damaged or not a MobileNetV3; the message says where the graph departs from one.
        ImportError: The schema package is missing.
    """
    path = Path(path)
    return to_foreign(path, read_network(path))


def to_foreign(path: Path, network: Network) -> Foreign:
    """What `read` returns, for the network that is in the file.

    Raises:
        WeightsError: Its weights or its preprocessing are no usable numbers.
    """
    arch, options = named(network.table, network.pad_type)
    classes, channels = len(network.layers["classifier"].bias), network.layers["stem"].weight.shape[1]
    options |= {"num_classes": classes, "in_chans": channels}
    if network.se_order != "act-se":
        options["se_order"] = network.se_order
    return Foreign(arch, options, _state_dict(network), _config(path, network), _note(network))


def _state_dict(network: Network) -> dict[str, torch.Tensor]:
    """The weights under our keys."""
    tensors = {}
    for name, layer in network.layers.items():
        weight, bias = (torch.tensor(values).float() for values in layer.folded())
        if not (weight.isfinite().all() and bias.isfinite().all()):
            raise WeightsError(f"{name} has weights that float32 does not hold: damaged scales?")
        if name == "classifier":
            weight = weight.flatten(1)
        if name in ("classifier", "head") or ".se." in name:
            tensors |= {f"{name}.weight": weight, f"{name}.bias": bias}
            continue
        tensors |= {
            f"{name}.conv.weight": weight,
            f"{name}.norm.weight": torch.ones_like(bias),
            f"{name}.norm.bias": bias,
            f"{name}.norm.running_mean": torch.zeros_like(bias),
            f"{name}.norm.running_var": torch.full_like(bias, 1 - BN_EPS),
            f"{name}.norm.num_batches_tracked": torch.zeros((), dtype=torch.long),
        }
    return tensors


def _config(path: Path, network: Network) -> dict[str, Any]:
    """Preprocessing: what mnv3 wrote beside the file, else what the graph does with bytes, else TensorFlow's."""
    stem = network.layers["stem"]
    channels, picture = stem.weight.shape[1], stem.sources[0]
    height, width = (network.input.dims[axis] for axis in picture.axes[1:3])
    pooled = -(-max(height, width) // network.table.stride)
    config = {"input_size": (channels, height, width), "pool_size": (pooled, pooled)}
    config |= {"mean": HALF[:1] * channels, "std": HALF[:1] * channels, "interpolation": "bilinear", "crop_pct": 0.875}
    scaling = _scaling(network.graph.tensors[network.graph.input], network.input, channels)
    if scaling is not None:  # gain * byte + shift = (byte / 255 - mean) / std
        gain, shift = scaling
        if not (np.all(gain > 1e-5) and np.all(gain < 10) and np.all(np.abs(shift) < 1e3)):
            raise WeightsError(f"{path}: it makes {gain} * byte + {shift} of pictures: damaged?")
        config |= {"std": tuple((1 / (255 * gain)).tolist()), "mean": tuple((-shift / (255 * gain)).tolist())}
    return config | _beside(path)


def _scaling(entry: Tensor, picture: Node, channels: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Gain and shift (channels,) from a byte of a picture to what the stem reads, where the file says them."""
    if not {np.size(numbers) for numbers in picture.affine} <= {1, channels}:
        raise WeightsError(f"pictures of {channels} channels are normalised with {picture.affine[0]}")
    gain, shift = (np.broadcast_to(np.asarray(numbers, float), channels) for numbers in picture.affine)
    if entry.type in ("UINT8", "INT8"):
        scale = 1.0 if entry.scale is None else entry.scale[0]
        low = -128 if entry.type == "INT8" else 0  # what a byte of 0 is given as
        return gain * scale, gain * (low - entry.zero_point[0]) * scale + shift
    if np.all(gain == 1) and np.all(shift == 0):
        return None
    return (gain / 255 if np.all(gain > 0.1) else gain), shift  # of numbers up to 1, or up to 255


def _beside(path: Path) -> dict[str, Any]:
    """What mnv3 wrote beside its own file; nothing where there is nothing to be read."""
    from ...deploy.seal import read

    try:
        written = json.loads(read(path).text)
        config = {key: value for key in BESIDE if (value := written.get(key)) is not None}
        return config | {key: tuple(config[key]) for key in ("mean", "std") if key in config}
    except (OSError, WeightsError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _note(network: Network) -> str:
    """In one line, how the weights are stored and what the classifier is."""
    kinds = dict.fromkeys(_kind(layer.stored) for layer in network.layers.values())
    classes, softmax = len(network.layers["classifier"].bias), ", without its softmax" * network.has_softmax
    return f"TFLite, {' and '.join(kinds)}, {classes} classes{softmax}"


def _kind(weight: Tensor) -> str:
    kind = weight.type.lower()
    if weight.scale is None or not weight.quantised:
        return kind
    return f"{kind} per channel" if weight.scale.size > 1 else f"{kind} per tensor"
