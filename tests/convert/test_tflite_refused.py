"""TFLite files with another network in them, or damaged, are refused in one line."""

import numpy as np
import pytest
import torch
from tflite_files import (
    RELU,
    RELU6,
    SAME,
    SIZE,
    TINY,
    VALID,
    Tensorflow,
    Writer,
    edited,
    operators,
    schema,
    tiny,
    unpack,
    write,
)

from mnv3.arch import Arch, Bneck
from mnv3.convert import reading
from mnv3.errors import WeightsError

RELU_N1_TO_1 = 2


def refused(path, content):
    """The one line with which a file is refused."""
    with pytest.raises(WeightsError) as error:
        reading.read(write(path, content))
    message = str(error.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < 500
    return message


@pytest.fixture(scope="module")
def content():
    return Tensorflow(tiny(), SIZE, se="mean").bytes()


# --- changes of `content`, whose operators are the stem, the four blocks of TINY, last, pool, head and classifier


def options(kind, which, **changes):
    """Other options of the operators of a kind in this slice."""

    def edit(network, graph):
        for op in operators(network, graph, kind)[which]:
            for name, value in changes.items():
                assert hasattr(op.builtinOptions, name)
                setattr(op.builtinOptions, name, value)

    return edit


def kinds(**changes):
    """Operators of one kind become another."""

    def edit(network, graph):
        for code in network.operatorCodes:
            for old, new in changes.items():
                if code.builtinCode == getattr(schema.BuiltinOperator, old):
                    code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, new)

    return edit


def _relu_in_place_of_h_swish(number):
    def edit(network, graph):
        code = schema.OperatorCodeT()
        code.version, code.builtinCode = 1, schema.BuiltinOperator.RELU
        network.operatorCodes.append(code)
        operators(network, graph, "HARD_SWISH")[number].opcodeIndex = len(network.operatorCodes) - 1

    return edit


def stem_weight(network, graph):
    """The tensor of the stem's weights."""
    return graph.tensors[operators(network, graph, "CONV_2D")[0].inputs[1]]


def buffer(number):
    def edit(network, graph):
        stem_weight(network, graph).buffer = number

    return edit


def stem_bytes(change):
    def edit(network, graph):
        change(network.buffers[stem_weight(network, graph).buffer])

    return edit


def _short(buffer):
    buffer.data = buffer.data[:-4]


def _outside(buffer):
    buffer.data, buffer.offset, buffer.size = None, 10**9, 16 * 27 * 4


def _not_finite(buffer):
    buffer.data = np.full(len(buffer.data), 0xFF, np.uint8)


def _shortcut(network, graph):
    """The sum of block 0: there is one of a gate before it."""
    return operators(network, graph, "ADD")[1]


def _doubled_branch(network, graph):
    add = _shortcut(network, graph)
    add.inputs = [add.inputs[0], add.inputs[0]]


def _shortcut_of_another_map(network, graph):
    """Of block 0, from what its projection reads, which has as many channels."""
    add, project = _shortcut(network, graph), operators(network, graph, "CONV_2D")[3]
    add.inputs = [add.inputs[0], project.inputs[0]]


def _without_shortcut(network, graph):
    add = next(op for op in operators(network, graph, "ADD") if op.builtinOptions.fusedActivationFunction == 0)
    after = next(op for op in graph.operators if add.outputs[0] in list(op.inputs) and op is not add)
    after.inputs = [add.inputs[0], *list(after.inputs)[1:]]


def _gate_of_another_map(network, graph):
    """Block 2 averages what its depthwise layer reads, not what it gives."""
    mean = operators(network, graph, "MEAN")[1]
    mean.inputs = [operators(network, graph, "DEPTHWISE_CONV_2D")[2].inputs[0], mean.inputs[1]]


def _custom(network, graph):
    network.operatorCodes[0].builtinCode = network.operatorCodes[0].deprecatedBuiltinCode = 32
    network.operatorCodes[0].customCode = b"TFLite_Detection_PostProcess"


def _two_outputs(network, graph):
    graph.outputs = [*graph.outputs, graph.operators[-3].outputs[0]]


def _two_graphs(network, graph):
    network.subgraphs = [graph, graph]


def _huge_picture(network, graph):
    graph.tensors[graph.inputs[0]].shape = [1, 10**6, 10**6, 3]


STEM, LAST, PROJECT_1 = ("CONV_2D", slice(1)), ("CONV_2D", slice(-3, -2)), ("CONV_2D", slice(5, 6))
DEPTHWISE_1 = ("DEPTHWISE_CONV_2D", slice(1, 2))
GATES, SHORTCUTS = ("ADD", slice(0, None, 2)), ("ADD", slice(1, None, 2))
CHANGES = {
    "relu6": (options(*DEPTHWISE_1, fusedActivationFunction=RELU6), "24 channels has another function; expected ReLU"),
    "no relu": (options(*DEPTHWISE_1, fusedActivationFunction=0), "24 channels has no activation; expected ReLU"),
    "clipped": (options(*STEM, fusedActivationFunction=RELU_N1_TO_1), "the stem has another function"),
    "act of stem": (_relu_in_place_of_h_swish(0), "the stem, the last convolution and the head have two activations"),
    "act of block": (_relu_in_place_of_h_swish(1), "a block of 72 channels has two activations, RE and HS"),
    "projection": (options(*PROJECT_1, fusedActivationFunction=RELU), "a block's projection has RE; expected no"),
    "after sum": (options(*SHORTCUTS, fusedActivationFunction=RELU), "an activation after a shortcut's sum"),
    "logistic": (kinds(HARD_SWISH="LOGISTIC"), "LOGISTIC) is nothing that a MobileNetV3 consists of"),
    "gate": (options(*GATES, fusedActivationFunction=RELU), "no hard sigmoid"),
    "gate's map": (_gate_of_another_map, "a squeeze-and-excite does not read the map that it scales"),
    "maximum": (kinds(MEAN="REDUCE_MAX"), "REDUCE_MAX) is nothing that a MobileNetV3 consists of"),
    "doubled": (_doubled_branch, "a block's projection has another function; expected no"),
    "shortcut": (_shortcut_of_another_map, "a sum is not that of a block's output and its input"),
    "stride": (options(*LAST, strideH=2, strideW=2), "the last convolution, before the pool has stride 2 and dilation"),
    "stride 4": (options(*DEPTHWISE_1, strideH=4, strideW=4), "stride=4"),
    "not square": (options(*DEPTHWISE_1, strideH=1), "is of 1 x 2: MobileNetV3's are square"),
    "dilation": (options(*DEPTHWISE_1, dilationHFactor=2, dilationWFactor=2), "has stride 2 and dilation 2"),
    "padding": (options(*DEPTHWISE_1, padding=VALID), "pads by (0, 0, 0, 0): neither TensorFlow's padding"),
    "custom": (_custom, "CUSTOM TFLite_Detection_PostProcess"),
    "outputs": (_two_outputs, "1 inputs and 2 outputs"),
    "graphs": (_two_graphs, "2 graphs"),
    "picture": (_huge_picture, "no batch of pictures"),
    "no buffer": (buffer(0), "should be a constant"),
    "no such buffer": (buffer(10**6), "buffer 1000000"),
    "short": (stem_bytes(_short), "bytes: damaged"),
    "outside": (stem_bytes(_outside), "outside of the file"),
    "not finite": (stem_bytes(_not_finite), "not finite"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_one_change(tmp_path, content, change):
    edit, expected = CHANGES[change]
    assert expected in refused(tmp_path / "in.tflite", edited(content, edit))


def test_missing_shortcut(tmp_path):
    table = Arch(16, (Bneck(3, 16, 16, False, "RE", 1), *TINY.rows[1:]), 96, 64)
    content = edited(Tensorflow(tiny(table=table), SIZE).bytes(), _without_shortcut)
    assert "a block of 16 channels has no shortcut" in refused(tmp_path / "in.tflite", content)


def test_squeeze_width(tmp_path):
    """A8: a quarter that is not rounded to 8 is another network."""
    model = tiny(table=Arch(16, (Bneck(3, 120, 24, True, "RE", 2),), 96, 64))
    se = model.blocks[0].se
    se.squeeze, se.excite = torch.nn.Conv2d(120, 30, 1), torch.nn.Conv2d(30, 120, 1)
    message = refused(tmp_path / "in.tflite", Tensorflow(model, SIZE).bytes())
    assert "squeeze-and-excite of 120 channels has 30 in the middle" in message


def test_two_paddings(tmp_path):
    """The symmetric one in the first half of the network, TensorFlow's in the second."""

    class Mixed(Tensorflow):
        def unit(self, x, unit, act):
            self.pad = "apart" if self.file.shape(x)[1] > SIZE // 4 else "name"
            self.model.pad_type = "" if self.pad == "apart" else "same"
            return super().unit(x, unit, act)

    assert "others the symmetric one" in refused(tmp_path / "in.tflite", Mixed(tiny(), SIZE).bytes())


def test_two_orders(tmp_path):
    """Squeeze-and-excite before the activation in some blocks alone."""
    model = tiny(se_order="se-act-expanded")
    message = refused(tmp_path / "in.tflite", Tensorflow(model, SIZE).bytes())
    assert "before the activation in some blocks and after it in others" in message


@pytest.mark.parametrize(
    ("scales", "expected"),
    [
        (lambda scales: None, "has no scale"),
        (lambda scales: scales[:-1], "scales for axis"),
        (lambda scales: scales * np.nan, "not above 0"),
    ],
)
def test_scales(tmp_path, scales, expected):
    def edit(network, graph):
        for tensor in graph.tensors:
            if tensor.type == 9:
                tensor.quantization.scale = scales(tensor.quantization.scale)

    content = Tensorflow(tiny(), SIZE, weights="int8").bytes()
    assert expected in refused(tmp_path / "in.tflite", edited(content, edit))


def conv(file, x, out, kernel, act):
    """A convolution of stride 1 with random weights."""
    weight = file.constant(np.random.default_rng(0).normal(size=(out, kernel, kernel, file.shape(x)[3])))
    options = {"strideH": 1, "strideW": 1, "padding": SAME, "fusedActivationFunction": act}
    return file.op("CONV_2D", [x, weight, file.constant(np.zeros(out))], (*file.shape(x)[:3], out), **options)


@pytest.mark.parametrize(
    ("head", "expected"),
    [(False, "the head"), (True, "the input of a projection to 16 channels is a full convolution of 3x3")],
    ids=["v2", "edgetpu"],
)
def test_mobilenet_v2_and_edgetpu(tmp_path, head, expected):
    """No head after the pool; full convolutions in the blocks."""
    file = Writer((1, SIZE, SIZE, 3))
    x = conv(file, file.graph.inputs[0], 16, 3, RELU)
    x = conv(file, conv(file, x, 64, 3, RELU), 16, 1, 0)  # EdgeTPU's expansion
    x = conv(file, x, 96, 1, RELU)
    x = file.op("MEAN", [x, file.constant([1, 2], "int32")], (1, 1, 1, 96), keepDims=True)
    x = conv(file, x, 24, 1, RELU) if head else x
    assert expected in refused(tmp_path / "in.tflite", file.bytes(conv(file, x, 10, 1, 0)))


def test_shared_weights(tmp_path):
    """A small file cannot ask for much memory: every byte makes one number."""
    file = Writer((1, SIZE, SIZE, 256))
    x, weight, bias = file.graph.inputs[0], file.constant(np.zeros((256, 1, 1, 256))), file.constant(np.zeros(256))
    for _ in range(20):
        x = file.op("CONV_2D", [x, weight, bias], file.shape(x), strideH=1, strideW=1, padding=SAME)
    assert "many layers share their weights" in refused(tmp_path / "in.tflite", file.bytes(x))


def test_shared_buffer(tmp_path):
    """Nor can it by many tensors of the same bytes."""
    file = Writer((1, SIZE, SIZE, 3))
    x, first = file.graph.inputs[0], file.constant(np.zeros((1, SIZE, SIZE, 3)))
    for _ in range(5):
        again = file.tensor(file.shape(x))
        file.graph.tensors[again].buffer = file.graph.tensors[first].buffer
        x = file.op("ADD", [x, again], file.shape(x))
    assert "several times the bytes of the file" in refused(tmp_path / "in.tflite", file.bytes(x))


# --- damaged files


def test_not_tflite(tmp_path):
    for name in ("model.tflite", "weights.h5", "model.keras"):
        assert "but it is not one" in refused(tmp_path / name, b"<html>")
        assert "but it is not one" in refused(tmp_path / name, b"")
    assert reading.read(write(tmp_path / "page.pth", b"<html>")) is None
    assert reading.read(tmp_path) is None
    refused(tmp_path / "stub.tflite", b"\0\0\0\0TFL3")


def test_damage(tmp_path, content):
    """Cut anywhere, or with wrong bytes anywhere: read, or refused in one line."""
    rng = np.random.default_rng(0)
    weights = np.array([len(b.data) if b.data is not None else 0 for b in unpack(content).buffers])
    assert weights.max() < len(content) / 4  # most bytes are structure
    files = [content[:cut] for cut in range(8, len(content), len(content) // 10)]
    for _ in range(30):
        damaged = bytearray(content)
        for position in rng.integers(0, len(content), rng.integers(1, 64)):
            damaged[position] = rng.integers(256)
        files.append(bytes(damaged))
    messages = []
    for file in files:
        try:
            reading.read(write(tmp_path / "in.bin", file))
        except WeightsError as error:
            messages.append(str(error))
    assert len(messages) > 10
    assert not any("\n" in message for message in messages)
