"""The layers of a Keras model and how they are connected, from the configuration that its file has in JSON.

Keras 3 writes connections as `keras_history`, Keras 2 as nested lists. Nothing in it is built or imported.
"""

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import WeightsError
from ..files.layouts import listed

KINDS = {
    "InputLayer", "Rescaling", "Conv2D", "DepthwiseConv2D", "ZeroPadding2D", "BatchNormalization", "ReLU", "Activation",
    "GlobalAveragePooling2D", "GlobalMaxPooling2D", "Multiply", "Add", "Dropout", "Flatten", "Reshape", "Softmax",
}  # fmt: skip
OPERATORS = {"TFOpLambda __operators__.add": "Add", "TFOpLambda math.multiply": "Multiply"}  # of Keras 2
CHANNELS_LAST, CHANNELS_FIRST = "channels_last", "channels_first"


class Layer(NamedTuple):
    """One layer of the configuration."""

    name: str
    kind: str
    settings: dict[str, Any]
    inputs: tuple[str, ...]  # names of layers
    constant: float | None  # the second operand of an Add or Multiply by a number

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r}"


@dataclass(frozen=True)
class Network:
    """The layers of a file's model, in its order, and its one input and output."""

    layers: tuple[Layer, ...]
    input: str
    output: str

    @property
    def channels_first(self) -> bool:
        """Whether its maps are (N, C, H, W)."""
        return any(layer.settings.get("data_format") == CHANNELS_FIRST for layer in self.layers)

    @property
    def picture(self) -> tuple[int | None, int | None, int | None]:
        """Channels, height and width that it was built for."""
        settings = self.layers[[layer.name for layer in self.layers].index(self.input)].settings
        shape = settings.get("batch_shape") or settings.get("batch_input_shape")
        one, two, three = shape[1:]
        return (one, two, three) if self.channels_first else (three, one, two)


def parse(content: str | bytes) -> Network:
    """The model of a configuration in JSON; nothing in it is built or imported.

    Raises:
        WeightsError: It is no configuration of a model with one input and one output, or has layers of other kinds
            than keras.applications' MobileNetV3.
    """
    try:
        config = json.loads(content)["config"]
        unknown = {kind for layer in config["layers"] if (kind := _kind(layer)) not in KINDS}
        if unknown:
            kinds = listed(sorted(unknown))
            raise WeightsError(f"not a MobileNetV3 of keras.applications: it has layers of the kinds {kinds}")
        layers = tuple(_layer(layer) for layer in config["layers"])
        names = {layer.name for layer in layers}
        ends = [_only(config[key]) for key in ("input_layers", "output_layers")]
        network = Network(layers, *ends)
        if len(names) != len(layers) or not names.issuperset({*ends, *(n for layer in layers for n in layer.inputs)}):
            raise ValueError("names of layers that are missing or there twice")
        if not all(n is None or (type(n) is int and 0 < n < 100_000) for n in network.picture):
            raise ValueError(f"an input of shape {network.picture!s:.100}")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error!s:.200}"
        raise WeightsError(f"its configuration is not that of a Keras model of layers: {reason}") from None
    return network


def _kind(layer: dict[str, Any]) -> str:
    """The class of a layer of Keras' own; another one's of the same name is another kind."""
    kind, module = layer["class_name"], layer.get("module") or "keras.layers"
    registered = layer.get("registered_name")
    if not module.startswith(("keras.", "tf_keras.")) or registered not in (None, kind):
        return f"{registered or module} {kind}"
    operator = f"{kind} {layer['config'].get('function', '')}".strip()
    return OPERATORS.get(operator, operator)


def _layer(layer: dict[str, Any]) -> Layer:
    nodes = layer["inbound_nodes"]
    if len(nodes) != (_kind(layer) != "InputLayer"):
        raise ValueError(f"{layer['name']!r:.100} is called {len(nodes)} times")
    inputs, constants = [], []
    for node in nodes:
        _collect(node, inputs, constants)
    if len(constants) > 1 or len(inputs) + len(constants) > 2:
        raise ValueError(f"{layer['name']!r:.100} has more operands than two")
    return Layer(str(layer["name"]), _kind(layer), dict(layer["config"]), tuple(inputs), *(constants or [None]))


def _collect(value: Any, inputs: list[str], constants: list[float]) -> None:
    """The layers and numbers that a layer is called on, from one of its `inbound_nodes`."""
    if isinstance(value, dict) and value.get("class_name") == "__keras_tensor__":  # Keras 3
        inputs.append(_only(value["config"]["keras_history"]))
    elif isinstance(value, dict) and "args" in value:
        _collect(value["args"], inputs, constants)
        _collect_keywords(value["kwargs"], constants)
    elif isinstance(value, list) and value and isinstance(value[0], str):  # Keras 2
        inputs.append(_only(value[:3]))
        _collect_keywords(value[3] if len(value) > 3 else {}, constants)
    elif isinstance(value, list):
        for each in value:
            _collect(each, inputs, constants)
    elif type(value) in (int, float):
        constants.append(value)
    else:
        raise ValueError(f"a layer is called on {value!r:.100}")


def _collect_keywords(keywords: dict[str, Any], constants: list[float]) -> None:
    for key, value in keywords.items():
        if key == "y" and type(value) in (int, float):  # the operand of Keras 2's operators
            constants.append(value)
        elif value is not None and value is not False:
            raise ValueError(f"a layer is called with {key}={value!r:.100}")


def _only(ends: list[Any]) -> str:
    """The name in [name, 0, 0], or in a list of one such."""
    name, node, tensor = ends[0] if len(ends) == 1 else ends
    if not isinstance(name, str) or node or tensor:
        raise ValueError(f"{ends!r:.100} is not the one output of a layer")
    return name
