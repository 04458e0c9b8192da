"""keras.applications' MobileNetV3 from `.weights.h5`, `.keras` (Keras 3) and `.h5` (Keras 2, and its layout).

Keras' model takes pixels from 0 to 255 and has the scaling to -1..1 in its first layer. Ours takes what
`mnv3.transforms(model)` gives, by mean and std of 0.5: the same scaling, once.

Keras pads strided convolutions as TensorFlow's 'SAME' does for the size that it was built for. Built without an
`input_shape`, it pads every map as if its sides were even: so it differs from 'SAME', and from our `_tf` models, at
sizes that are not multiples of 32.
Source: https://github.com/keras-team/keras/blob/master/keras/src/applications/mobilenet_v3.py
"""

import io
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from ..errors import WeightsError
from ..files.layouts import listed
from . import hdf5, keras_config, keras_graph
from .foreign import Foreign
from .tensorflow import foreign, our_key

CONFIG, WEIGHTS = "config.json", "model.weights.h5"  # in a .keras archive
MAX_CONFIG = 2_000_000  # bytes; Large's has 220,000
MAX_RATIO = 4  # of the weights to the archive: trained weights hardly compress
GROUPS = ("layers", "_layer_checkpoint_dependencies", "model_weights")  # Keras 3, its first versions, whole models
# Keras 3 names layers in its files by class and number, and variables by number.
COUNTED = re.compile(r"(.+?)(?:_(\d{1,4}))?/vars/(\d)")
VARIABLES = {
    "conv2d": ("kernel", "bias"),
    "depthwise_conv2d": ("kernel",),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
}


def read(path: Path) -> Foreign:
    """keras.applications.MobileNetV3Small or Large, of any alpha, minimalistic or not, with or without top.

    Without top the model has no classifier, and a new head (the note says so).

    Args:
        path: Weights of Keras 3, its archive, or an HDF5 file in the layout of Keras 2, whole models included.

    Raises:
        WeightsError: The file is damaged, holds more than plain arrays, or another network.
        ImportError: h5py is missing.
    """
    path, file, network = Path(path), None, None
    try:
        if zipfile.is_zipfile(path):
            content, file = _unpacked(path)
            network = keras_config.parse(content)
        elif content := hdf5.attribute(path, "model_config", limit=MAX_CONFIG):  # of a whole model
            network = keras_config.parse(content)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    except ImportError:
        raise
    except Exception as error:  # zipfile's, zlib's, struct's
        reason = str(error).strip().split("\n")[0]
        raise WeightsError(f"{path}: cannot be read as a Keras file: {type(error).__name__}: {reason}") from None
    arrays = hdf5.read(path, file, groups=GROUPS, leave_out=("dropout",))  # its random state is no weight
    try:
        if any("/vars/" in name for name in arrays):
            arrays = _by_layer(arrays)
        model = foreign(_by_our_keys(arrays), source="Keras' weights")
        return _checked(model, network, by_name=file is None) if network else model
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None


def _checked(model: Foreign, network: keras_config.Network, *, by_name: bool) -> Foreign:
    """A model, with the size of its pictures and its pooling, if its layers are those of its table."""

    def module_of(layer: str) -> str | None:
        return (our_key(f"{layer}/bias") or "").removesuffix(".bias")

    classes = model.options["num_classes"]
    pooling = keras_graph.check(network, model.table, num_classes=classes, named=module_of if by_name else None)
    if pooling != "avg":
        model.options["global_pool"] = pooling
    channels = model.options.get("in_chans", 3)
    if network.picture[0] not in (None, channels):
        raise WeightsError(f"its input has {network.picture[0]} channels, its weights are for {channels}")
    if None not in network.picture:
        model.config["input_size"] = network.picture
    return model


def _by_our_keys(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays at LAYER/NAME, or in Keras 2's layout at LAYER/LAYER/NAME:0, where LAYER may have slashes."""
    by_key, unknown = {}, set()
    for name, array in arrays.items():
        *parts, leaf = name.partition(":")[0].split("/")
        layers = ("/".join(parts[:n]) for n in range(len(parts), 0, -1))
        key = next((key for layer in layers if (key := our_key(f"{layer}/{leaf}"))), None)
        if key in by_key:
            raise WeightsError(f"two arrays are {key}, {name} the second: more than one model")
        if key:
            by_key[key] = array
        else:
            unknown.add(name)
    if unknown or not by_key:
        raise WeightsError(
            f"not a MobileNetV3 of keras.applications: it has {listed(sorted(unknown))}. A model around it, "
            "as with layers of your own, cannot be taken: save the MobileNetV3 in it alone"
        )
    return by_key


def _by_layer(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays of Keras 3 at LAYER/NAME: its layers are counted in the order of the model, class by class."""
    layers: dict[str, dict[int, dict[str, np.ndarray]]] = {kind: {} for kind in VARIABLES}
    for name, array in arrays.items():
        match = COUNTED.fullmatch(name)
        kind, number, variable = match.groups() if match else ("", None, "0")
        if kind not in VARIABLES or int(variable) >= len(VARIABLES[kind]):
            raise WeightsError(f"not a MobileNetV3 of keras.applications: it has {name}; save the MobileNetV3 alone")
        layers[kind].setdefault(int(number or 0), {})[VARIABLES[kind][int(variable)]] = array
    convs, depthwise, norms = ([of[i] for i in sorted(of)] for of in layers.values())
    named = dict(zip(_conv_names(["bias" in conv for conv in convs], len(depthwise)), convs, strict=True))
    named |= {f"{_block(i)}_depthwise": variables for i, variables in enumerate(depthwise)}
    named |= zip(_norm_names(len(depthwise)), norms, strict=False)  # shapes tell what is missing or left
    return {f"{layer}/{name}": array for layer, variables in named.items() for name, array in variables.items()}


def _block(i: int) -> str:
    return f"expanded_conv_{i}" if i else "expanded_conv"


def _conv_names(biased: list[bool], blocks: int) -> list[str]:
    """The names of the model's convolutions in order; a block has squeeze-and-excite where two with bias follow."""
    names = ["conv"]
    for i in range(blocks):
        names += [f"{_block(i)}_expand"] if i else []
        if any(biased[len(names) : len(names) + 1]):
            names += [f"{_block(i)}_squeeze_excite_conv", f"{_block(i)}_squeeze_excite_conv_1"]
        names.append(f"{_block(i)}_project")
    names += ["conv_1", "conv_2", "logits"]
    if len(names) - 2 <= len(biased) <= len(names):
        return names[: len(biased)]
    raise WeightsError(
        f"not a MobileNetV3: {len(biased)} convolutions beside {blocks} depthwise ones; expected {len(names)}, "
        f"or {len(names) - 2} without top"
    )


def _norm_names(blocks: int) -> Iterator[str]:
    yield "conv_bn"
    for i in range(blocks):
        yield from (f"{_block(i)}_{part}_bn" for part in ("expand", "depthwise", "project")[not i :])
    yield "conv_1_bn"


def _unpacked(path: Path) -> tuple[bytes, io.BytesIO]:
    """What the configuration of an archive says, and its weights; nothing in it is built or imported."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = []
        for name, limit in ((CONFIG, MAX_CONFIG), (WEIGHTS, MAX_RATIO * size)):
            if name not in archive.namelist():
                raise WeightsError(f"not a Keras archive: it has no {name}")
            info = archive.getinfo(name)
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.file_size > limit:
                raise WeightsError(f"{name} would unpack to {info.file_size} bytes, from an archive of {size}: refused")
            members.append(archive.read(info))  # no more than the size that it declares
    return members[0], io.BytesIO(members[1])
