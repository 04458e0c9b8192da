"""What a Keras file says of its model's layers, held against MobileNetV3's: kinds, settings, connections.

Shapes of arrays do not show strides, dilation, padding, pooling, activations, residuals, or whose output a
squeeze-and-excite scales. The configuration in `.keras` archives and whole `.h5` models does; here it is walked from
the input to the output beside the table.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..arch import Arch
from ..errors import WeightsError
from ..files.layouts import BN_EPS_TF, listed
from .keras_config import CHANNELS_FIRST, CHANNELS_LAST, Layer, Network

FLOATS = {"float16", "bfloat16", "float32", "float64", "mixed_float16", "mixed_bfloat16"}
# Settings that change no output of a trained model.
NEUTRAL = {
    "name",
    "trainable",
    "dtype",
    "function",
    "momentum",
    "renorm_momentum",
    "renorm_clipping",
    "batch_input_shape",
}
NEUTRAL_ENDS = ("_initializer", "_regularizer", "_constraint")
LAST_AXIS = (-1, 3, [3], [-1])


def check(network: Network, arch: Arch, *, num_classes: int, named: Callable[[str], str | None] | None = None) -> str:
    """Hold a model against a table.

    Args:
        network: The model.
        arch: The table that its arrays were recognised as.
        num_classes: Of its classifier; 0 for a model without top.
        named: Which of our modules a layer's arrays are by its name; by default, by its number among those of its
            kind.

    Returns:
        The pooling before the head: 'avg', or 'max' for a model without top that says so.

    Raises:
        WeightsError: It differs; the message names layer and difference.
    """
    walk = _Walk(network)
    try:
        pooling = _walk_through(walk, arch, num_classes)
        walk.check_end()
        walk.check_weights(named)
    except WeightsError as error:
        raise WeightsError(f"not the MobileNetV3 of keras.applications: {error}") from None
    return pooling


def _walk_through(walk: "_Walk", arch: Arch, num_classes: int) -> str:
    if walk.next_is("Rescaling"):
        walk.take("Rescaling", scale=1 / 127.5, offset=-1.0)
    _, height, width = walk.network.picture
    walk.conv("stem", arch.stem, kernel=3, stride=arch.stem_stride)
    walk.activate(arch.act)
    size = [None if n is None else -(-n // arch.stem_stride) for n in (height, width)]
    for i, (row, channels) in enumerate(zip(arch.rows, arch.inputs, strict=True)):
        shortcut, module = walk.at, f"blocks.{i}"
        if i:
            walk.conv(f"{module}.expand", row.exp)
            walk.activate(row.act)
        if row.stride == 2:
            # as correct_pad of keras.applications has it, which takes a side it does not know for an even one
            before = [row.kernel // 2 - (1 if None in size else 1 - n % 2) for n in size]
            padding = [[n, row.kernel // 2] for n in before]
            walk.take("ZeroPadding2D", padding=padding, data_format=walk.data_format)
            size = [None if n is None else -(-n // 2) for n in size]
        walk.depthwise(f"{module}.depthwise", row.kernel, row.stride)
        walk.activate(row.act)
        if row.se:
            walk.squeeze_excite(f"{module}.se", row.squeeze, row.exp)
        walk.conv(f"{module}.project", row.out)
        if row.stride == 1 and channels == row.out:
            walk.join("Add", shortcut)
    walk.conv("last", arch.last)
    walk.activate(arch.act)
    if not num_classes:
        return walk.pool_without_top()
    walk.pool()
    walk.conv("head", arch.head, norm=False)
    walk.activate(arch.act)
    walk.conv("classifier", num_classes, norm=False)
    walk.flatten()
    walk.softmax()
    return "avg"


class _Walk:
    """A position in a network, from its input on."""

    def __init__(self, network: Network) -> None:
        self.network, self.at = network, network.input
        self.used = {network.input}
        self.weighted: list[tuple[str, Layer]] = []  # our modules, and whose arrays they are
        self.data_format = CHANNELS_FIRST if network.channels_first else CHANNELS_LAST
        self.after: dict[tuple[str, ...], list[Layer]] = {}
        for layer in network.layers:
            self.after.setdefault(tuple(sorted(layer.inputs)), []).append(layer)

    def next_is(self, *kinds: str) -> bool:
        """Whether one layer of these kinds follows; what does nothing in evaluation is passed by first."""
        following = self.after.get((self.at,), [])
        while len(following) == 1 and following[0].kind == "Dropout":
            self._step(following[0])
            following = self.after.get((self.at,), [])
        return len(following) == 1 and following[0].kind in kinds

    def take(self, kind: str, constant: float | None = None, **expected: Any) -> Layer:
        """Go on by the one layer that follows, which must be of this kind and have these settings."""
        if not self.next_is(kind):
            following = self.after.get((self.at,)) or [each for each in self.network.layers if self.at in each.inputs]
            wrong = listed([str(each) for each in following])
            raise WeightsError(f"after {self.at!r:.100} comes {wrong}, expected {kind}")
        layer = self.after[self.at,][0]
        if layer.constant != constant:
            raise WeightsError(f"{layer} has the number {layer.constant}, expected {constant}")
        self._check_settings(layer, expected)
        return self._step(layer)

    def join(self, kind: str, other: str) -> None:
        """Go on by the one layer that takes the position and another layer's output."""
        following = self.after.get(tuple(sorted((self.at, other))), [])
        if len(following) != 1 or following[0].kind != kind:
            wrong = listed([str(layer) for layer in following])
            raise WeightsError(f"{self.at!r:.100} and {other!r:.100} go into {wrong}, expected one {kind}")
        self._check_settings(following[0], {})
        self._step(following[0])

    def _step(self, layer: Layer) -> Layer:
        self.used.add(layer.name)
        self.at = layer.name
        return layer

    def _check_settings(self, layer: Layer, expected: dict[str, Any]) -> None:
        dtype = layer.settings.get("dtype")
        if isinstance(dtype, dict):
            dtype = dtype["config"].get("name") if isinstance(dtype.get("config"), dict) else dtype
        if dtype is not None and (not isinstance(dtype, str) or dtype not in FLOATS):
            raise WeightsError(f"{layer} computes in {dtype!r:.100}, expected a type of floats")
        for key, value in layer.settings.items():
            if key in NEUTRAL or key.endswith(NEUTRAL_ENDS) or value is None:
                continue
            if key not in expected:
                if value is not False:
                    raise WeightsError(f"{layer} has {key} {value!r:.100}, which MobileNetV3's has not")
            elif not _same(value, expected[key]):
                raise WeightsError(f"{layer} has {key} {value!r:.100}, expected {_first(expected[key])!r}")
        for key, value in expected.items():  # what an earlier Keras does not write is as it was: groups of 1
            allowed = value if isinstance(value, tuple) else (value,)
            if layer.settings.get(key) is None and not any(each in (None, False, 1) for each in allowed):
                raise WeightsError(f"{layer} does not say {key}, expected {_first(value)!r}")

    def conv(self, module: str, channels: int, *, kernel: int = 1, stride: int = 1, norm: bool = True) -> None:
        """A convolution, and its batch norm or its bias."""
        common = self._conv_settings(kernel, stride, "same", bias=not norm)
        layer = self.take("Conv2D", filters=channels, groups=1, **common)
        self.weighted.append((f"{module}.conv" if norm else module, layer))
        if norm:
            self.norm(module)

    def depthwise(self, module: str, kernel: int, stride: int) -> None:
        """A depthwise convolution, and its batch norm."""
        common = self._conv_settings(kernel, stride, "valid" if stride == 2 else "same", bias=False)
        # Keras 2 wrote the settings of Conv2D here too, where they do nothing
        layer = self.take("DepthwiseConv2D", depth_multiplier=1, groups=1, **common)
        self.weighted.append((f"{module}.conv", layer))
        self.norm(module)

    def _conv_settings(self, kernel: int, stride: int, padding: str, *, bias: bool) -> dict[str, Any]:
        return {
            "kernel_size": [kernel, kernel],
            "strides": [stride, stride],
            "padding": padding,
            "data_format": self.data_format,
            "dilation_rate": [1, 1],
            "activation": ("linear", None),
            "use_bias": bias,
        }

    def norm(self, module: str) -> None:
        """A batch norm."""
        axis = (1, [1]) if self.network.channels_first else LAST_AXIS
        layer = self.take("BatchNormalization", axis=axis, epsilon=BN_EPS_TF, center=True, scale=True)
        self.weighted.append((f"{module}.norm", layer))

    def activate(self, act: str) -> None:
        """ReLU or h-swish, in the ways in which Keras' versions write them."""
        if act == "RE":
            self.relu()
        elif self.next_is("Add"):
            start = self.at
            self.hard_sigmoid()
            self.join("Multiply", start)
        else:
            self.take("Activation", activation=("hard_silu", "hard_swish"))

    def relu(self, max_value: float | None = None) -> None:
        """ReLU, or ReLU6."""
        if max_value is None and self.next_is("Activation"):
            self.take("Activation", activation="relu")
        else:
            self.take("ReLU", max_value=max_value, negative_slope=(0, None), threshold=(0, None))

    def hard_sigmoid(self) -> None:
        """ReLU6(x + 3) / 6; the activation of that name was another function in Keras 2."""
        self.take("Add", constant=3.0)
        self.relu(6.0)
        self.take("Multiply", constant=1 / 6)

    def squeeze_excite(self, module: str, squeeze: int, channels: int) -> None:
        """From a map to the map times its gate."""
        start = self.at
        self.pool()
        self.conv(f"{module}.squeeze", squeeze, norm=False)
        self.relu()
        self.conv(f"{module}.excite", channels, norm=False)
        self.hard_sigmoid()
        self.join("Multiply", start)

    def pool(self) -> None:
        """The mean of every channel."""
        self.take("GlobalAveragePooling2D", data_format=self.data_format, keepdims=(True, False, None))
        self.flatten()

    def flatten(self) -> None:
        """Other axes for what has one value a channel; only by what keeps the order."""
        while self.next_is("Flatten", "Reshape"):
            kind = self.after[self.at,][0].kind
            shape = self.after[self.at,][0].settings.get("target_shape")
            self.take(kind, **({"target_shape": shape} if kind == "Reshape" else {"data_format": self.data_format}))

    def pool_without_top(self) -> str:
        """What include_top=False leaves: the map, its means or its maxima."""
        for kind, pooling in (("GlobalAveragePooling2D", "avg"), ("GlobalMaxPooling2D", "max")):
            if self.next_is(kind):
                self.take(kind, data_format=self.data_format, keepdims=(True, False, None))
                return pooling
        return "avg"

    def softmax(self) -> None:
        """Nothing, or probabilities."""
        if self.next_is("Softmax"):
            self.take("Softmax", axis=-1)
        elif self.next_is("Activation"):
            self.take("Activation", activation=("softmax", "linear", None))

    def check_end(self) -> None:
        """Nothing may follow, and nothing be beside the way."""
        self.next_is()
        if others := [str(layer) for layer in self.network.layers if layer.name not in self.used]:
            raise WeightsError(f"it has {listed(others)}, which MobileNetV3 has not")
        if self.network.output != self.at:
            raise WeightsError(f"its output is that of {self.network.output!r:.100}, expected {self.at!r:.100}")

    def check_weights(self, named: Callable[[str], str | None] | None) -> None:
        """Every layer must get the arrays that the reader took for it."""
        if named:
            wrong = ((module, layer) for module, layer in self.weighted if named(layer.name) != module)
        else:
            numbers = {layer.name: number for number, layer in enumerate(self.network.layers)}
            wrong = _out_of_order(self.weighted, numbers)
        for module, layer in wrong:
            raise WeightsError(f"{layer} stands where the weights of another layer belong ({module} of ours)")


def _out_of_order(weighted: Iterable[tuple[str, Layer]], numbers: dict[str, int]) -> Iterable[tuple[str, Layer]]:
    last: dict[str, int] = {}
    for module, layer in weighted:
        if numbers[layer.name] < last.get(layer.kind, -1):
            yield module, layer
        last[layer.kind] = numbers[layer.name]


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value


def _same(value: Any, expected: Any) -> bool:
    """Whether a setting is as expected, or one of those in a tuple; 3 is [3, 3] where a pair is expected."""
    if isinstance(expected, tuple):
        return any(_same(value, each) for each in expected)
    if isinstance(expected, list) and len(expected) == 2 and type(value) is int:
        value = [value, value]
    if isinstance(value, bool) or isinstance(expected, bool):
        return value is expected
    if isinstance(value, Sequence) and isinstance(expected, list):
        return len(value) == len(expected) and all(map(_same, value, expected))
    return type(value) in (int, float, str) and value == expected
