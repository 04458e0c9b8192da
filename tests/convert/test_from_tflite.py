"""TFLite files become our models: equal to LiteRT where they are float, and refused in one line where they are not."""

import json
import sys

import numpy as np
import pytest
import torch
from conftest import needs, randomize
from PIL import Image
from tflite_files import Tensorflow, Writer, pack, run, schema, unpack

import mnv3
from mnv3.arch import Arch, Bneck
from mnv3.cli import main
from mnv3.convert import reading
from mnv3.convert.tflite.network import find
from mnv3.errors import WeightsError
from mnv3.pictures import images

SIZE = 64
TINY = Arch(
    stem=16,
    rows=(
        Bneck(3, 16, 16, True, "RE", 1),
        Bneck(3, 64, 24, False, "RE", 2),
        Bneck(5, 72, 24, True, "HS", 1),
        Bneck(5, 96, 40, False, "HS", 2),
    ),
    last=96,
    head=64,
)


def tiny(pad_type="same", table=TINY, **kwargs):
    kwargs = {"num_classes": 7} | kwargs
    return randomize(mnv3.create_model("mnv3_small", arch=table, pad_type=pad_type, **kwargs))


def write(path, content):
    path.write_bytes(content)
    return path


def built(found):
    model = mnv3.create_model(found.arch, pretrained_cfg_overlay=found.config, **found.options)
    model.load_state_dict(found.state_dict)
    return model.eval()


def pictures(size=SIZE, count=3, channels=3):
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def logits(model, x):
    with torch.no_grad():
        return model(x).numpy()


def as_litert(x):
    return x.permute(0, 2, 3, 1).contiguous().numpy()


def equal(model, content, x, tolerance=1e-4):
    """The largest difference, as a share of the largest logit, is within the tolerance."""
    expected = run(content, as_litert(x))
    difference = np.abs(logits(model, x) - expected).max() / np.abs(expected).max()
    assert difference < tolerance


# --- float files: the same function


@pytest.mark.parametrize(
    ("options", "pad_type"),
    [
        ({}, "same"),
        ({"act": "mul", "se": "mean"}, "same"),
        ({"se": "fc", "pad": "apart"}, "same"),
        ({"se": "sum", "norm": "apart"}, "same"),
        ({"se": "bias", "pad": "apart"}, ""),
        ({"se": "after", "weights": "float16"}, "same"),
        ({"weights": "uint8"}, "same"),
        ({"weights": "int8", "se": "fc"}, "same"),
    ],
    ids=str,
)
def test_every_way_of_writing(tmp_path, options, pad_type):
    model = tiny(pad_type)
    content = Tensorflow(model, SIZE, **options).bytes()
    found = reading.read(write(tmp_path / "in.tflite", content))
    copy = built(found)
    assert (copy.arch, copy.pad_type, copy.num_classes) == (TINY, pad_type, 7)
    equal(copy, content, pictures())
    if options.get("weights", "float32") == "float32":  # against what it was written from, too
        assert np.abs(logits(copy, pictures()) - logits(model, pictures())).max() < 1e-4


@pytest.mark.parametrize("size", [63, 65])
def test_odd_sizes(tmp_path, size):
    model = tiny()
    content = Tensorflow(model, size).bytes()
    found = reading.read(write(tmp_path / "in.tflite", content))
    equal(built(found), content, pictures(size))
    assert found.config["input_size"] == (3, size, size)
    equal(built(found), Tensorflow(model, SIZE).bytes(), pictures())  # and at another than the file's


@pytest.mark.parametrize(
    ("name", "kwargs", "options"),
    [
        ("mnv3_small_tf", {}, {}),
        ("mnv3_large_minimal_tf", {"num_classes": 1001}, {}),
        ("mnv3_small_075_tf", {}, {}),
        ("mnv3_small_tf", {"width": 0.35, "num_classes": 5}, {"width": 0.35}),
        ("mnv3_small_cifar", {}, {}),
    ],
    ids=str,
)
def test_arch_is_recognised(tmp_path, name, kwargs, options):
    model = randomize(mnv3.create_model(name, **kwargs))
    size = 32 if "cifar" in name else SIZE
    pad = "apart" if not model.pad_type else "name"
    found = reading.read(write(tmp_path / "in.tflite", Tensorflow(model, size, pad=pad).bytes()))
    assert found.arch == name
    assert found.options == {"num_classes": model.num_classes, "in_chans": 3} | options
    assert built(found).arch == model.arch
    np.testing.assert_allclose(logits(built(found), pictures(size)), logits(model, pictures(size)), rtol=0, atol=1e-4)


def test_other_channels(tmp_path):
    content = Tensorflow(tiny(in_chans=1), SIZE).bytes()
    found = reading.read(write(tmp_path / "in.tflite", content))
    assert found.options["in_chans"] == 1
    equal(built(found), content, pictures(channels=1))


def test_batch_norm_is_exact(tmp_path):
    """Mean 0, variance 1 - eps, weight 1: no output moves."""
    found = reading.read(write(tmp_path / "in.tflite", Tensorflow(tiny(), SIZE).bytes()))
    norm = built(found).stem.norm
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    assert (scale - 1).abs().max() < 1e-6
    assert not norm.running_mean.any()


def test_preprocessing(tmp_path):
    """TensorFlow's, unless the graph says it (B2, B3: accounted for once)."""
    model = tiny()
    found = reading.read(write(tmp_path / "plain.tflite", Tensorflow(model, SIZE).bytes()))
    assert (found.config["mean"], found.config["std"]) == ((0.5,) * 3, (0.5,) * 3)
    content = Tensorflow(model, SIZE).bytes(rescale=True, softmax=True)
    found = reading.read(write(tmp_path / "rescaling.tflite", content))
    np.testing.assert_allclose((*found.config["mean"], *found.config["std"]), 0.5, rtol=1e-6)
    raw = (pictures() / 2 + 0.5) * 255
    expected = run(content, as_litert(raw))
    normalised = (raw / 255 - 0.5) / 0.5
    np.testing.assert_allclose(torch.tensor(logits(built(found), normalised)).softmax(1), expected, atol=1e-5)
    assert "softmax" in found.note


# --- Google's files


SMALL_FILE, LARGE_FILE = "v3-small_224_1.0_uint8.tflite", "v3-large-minimalistic_224_1.0_uint8.tflite"
TIMM = {
    SMALL_FILE: ("mnv3_small_tf", "tf_mobilenetv3_small_100.in1k"),
    LARGE_FILE: ("mnv3_large_minimal_tf", "tf_mobilenetv3_large_minimal_100.in1k"),
}


@pytest.mark.parametrize("file", TIMM)
def test_googles_files_are_timms_weights(shared, file):
    """timm's were made from the same files, by way of float checkpoints: bit by bit the same after folding."""
    name, timms = TIMM[file]
    found = reading.read(shared / "weights" / "tflite" / file)
    assert (found.arch, found.options) == (name, {"num_classes": 1001, "in_chans": 3})
    assert found.note == "TFLite, uint8 per tensor, 1001 classes, without its softmax"
    np.testing.assert_allclose((*found.config["mean"], *found.config["std"]), 0.5, atol=2e-3)
    theirs = mnv3.load_checkpoint(shared / "weights" / "hub" / "timm" / timms).eval()
    x = pictures(224, 2)
    np.testing.assert_allclose(logits(built(found), x)[:, 1:], logits(theirs, x), rtol=0, atol=5e-5)


def dequantised(content):
    """A quantised file of TOCO as the float one that it was made from: its ReLUs are back, all else is TensorFlow's."""
    network = unpack(content)
    graph = network.subgraphs[0]
    zero_at_most = {}
    for i, tensor in enumerate(graph.tensors):
        q = tensor.quantization
        if tensor.type not in (2, 3) or q is None or q.scale is None:
            continue
        data = network.buffers[tensor.buffer].data
        if data is not None:
            stored = np.frombuffer(np.asarray(data, np.uint8).tobytes(), np.uint8 if tensor.type == 3 else np.int32)
            real = (stored.astype(np.float64) - q.zeroPoint[0]) * q.scale[0]
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(real.astype(np.float32).tobytes(), np.uint8)
            network.buffers.append(buffer)
            tensor.buffer = len(network.buffers) - 1
        elif q.zeroPoint[0] == 0:
            zero_at_most[i] = q.scale[0] * 255
        tensor.type, tensor.quantization = 0, None
    added = {
        op.inputs[0] for op in graph.operators if len(op.inputs) == 2 and graph.tensors[op.inputs[1]].shape is None
    }
    added |= {
        op.inputs[0] for op in graph.operators if len(op.inputs) == 2 and not len(graph.tensors[op.inputs[1]].shape)
    }
    for op in graph.operators:
        kind = network.operatorCodes[op.opcodeIndex].deprecatedBuiltinCode
        top = zero_at_most.get(op.outputs[0])
        if top and kind in (3, 4) and op.outputs[0] not in added:
            op.builtinOptions.fusedActivationFunction = 1
        if top and kind == 0 and abs(top - 6) < 0.06:
            op.builtinOptions.fusedActivationFunction = 3
    return pack(network)


@pytest.mark.parametrize("file", TIMM)
def test_tensorflows_own_float_graph(shared, tmp_path, file):
    """Google's graph with its weights dequantised, in LiteRT: the import's logits."""
    content = dequantised((shared / "weights" / "tflite" / file).read_bytes())
    found = reading.read(write(tmp_path / "float.tflite", content))
    assert found.note == "TFLite, float32, 1001 classes, without its softmax"
    x = pictures(224, 2)
    expected = run(content, as_litert(x))
    np.testing.assert_allclose(torch.tensor(logits(built(found), x)).softmax(1), expected, rtol=1e-3, atol=1e-5)
    same = reading.read(shared / "weights" / "tflite" / file).state_dict
    assert all(torch.allclose(found.state_dict[key], value, rtol=1e-6, atol=0) for key, value in same.items())


# --- what other tools write


@pytest.mark.slow
@pytest.mark.parametrize("pad_type", ["", "same"])
@pytest.mark.parametrize("options", [{}, {"half": True}, {"normalize": True, "softmax": True}], ids=str)
def test_own_exports(tmp_path, options, pad_type):
    """LiteRT Torch's graphs, with the preprocessing that `mnv3 export` wrote beside them, and without it."""
    needs("tflite")
    model = tiny(pad_type)
    mnv3.deploy.export(model, tmp_path / "model.tflite", to="tflite", size=SIZE, **options)
    exported = mnv3.deploy.load(tmp_path / "model.tflite")
    for beside in (True, False):
        if not beside:
            (tmp_path / "model.tflite.json").unlink()
        found = reading.read(tmp_path / "model.tflite")
        copy = built(found)
        assert (copy.arch, copy.pad_type) == (TINY, pad_type)
        x = pictures()
        if "normalize" in options:
            mean, std = (torch.tensor(found.config[name]).view(3, 1, 1) for name in ("mean", "std"))
            torch.testing.assert_close(mean.flatten(), torch.tensor(model.pretrained_cfg["mean"]), rtol=1e-4, atol=1e-5)
            pixels = ((x + 1) * 127).round()
            with torch.no_grad():
                expected = exported(pixels).softmax(1)
            found_probs = torch.tensor(logits(copy, (pixels / 255 - mean) / std)).softmax(1)
            torch.testing.assert_close(found_probs, expected, rtol=0, atol=1e-4)
        else:
            with torch.no_grad():
                torch.testing.assert_close(torch.tensor(logits(copy, x)), exported(x), rtol=0, atol=1e-5)
            assert found.config["mean"] == (model.pretrained_cfg["mean"] if beside else (0.5,) * 3)


@pytest.mark.slow
def test_channels_first(tmp_path):
    """A graph whose input is (1, C, H, W)."""
    needs("tflite")
    import litert_torch

    model, x = tiny(), pictures()
    with mnv3.deploy.runtime.quiet():
        litert_torch.convert(model, (x[:1],)).export(str(tmp_path / "in.tflite"))
    found = reading.read(tmp_path / "in.tflite")
    np.testing.assert_allclose(logits(built(found), x), run(tmp_path / "in.tflite", x.numpy()), rtol=0, atol=1e-5)
    assert found.config["input_size"] == (3, SIZE, SIZE)


def real_outputs(file, inputs):
    """LiteRT's logits in real numbers, whatever the output is stored as."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(file))
    interpreter.allocate_tensors()
    result = interpreter.get_output_details()[0]
    scale, zero = result["quantization"]
    rows = []
    for one in inputs:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], one)
        interpreter.invoke()
        rows.append(interpreter.get_tensor(result["index"])[0].astype(float))
    return (np.stack(rows) - zero) * (scale or 1)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["layers", "everything", "weights"])
def test_int8_per_channel(tmp_path, which):
    """AI Edge Quantizer's files: the import is the float model to the rounding of its weights."""
    needs("tflite")
    pytest.importorskip("ai_edge_quantizer")
    import litert_torch
    from ai_edge_quantizer import qtyping, quantizer

    model, x, file = tiny(), pictures(count=8), tmp_path / "in.tflite"
    with mnv3.deploy.runtime.quiet():
        last = litert_torch.to_channel_last_io(model, args=[0]).eval()
        litert_torch.convert(last, (x[:1].permute(0, 2, 3, 1).contiguous(),)).export(str(file))
        tool = quantizer.Quantizer(str(file))
        kinds = ["ALL_SUPPORTED"] if which == "everything" else ["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"]
        for kind in (qtyping.TFLOperationName[kind] for kind in kinds):
            if which == "weights":
                tool.add_dynamic_config(".*", kind, num_bits=8)
            else:
                tool.add_static_config(".*", kind, activation_num_bits=8, weight_num_bits=8)
        pairs = {"serving_default": [{"args_0": one[None]} for one in as_litert(x)]}
        tool.quantize(None if which == "weights" else tool.calibrate(pairs)).export_model(str(file), overwrite=True)
    found = reading.read(file)
    assert "int8 per channel" in found.note
    difference = np.abs(logits(built(found), x) - logits(model, x)).max() / np.abs(logits(model, x)).max()
    assert difference < 0.02
    if which == "everything":  # its input is int8: the step of a byte is part of it
        np.testing.assert_allclose((*found.config["mean"], *found.config["std"]), 0.5, atol=0.01)
    for i in range(16):
        pixels = np.random.default_rng(i).integers(0, 256, (80, 80, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    from mnv3.convert.tflite.calibrate import _inputs, calibrated

    corrected, before = calibrated(file, tmp_path), built(found)
    assert "biases corrected on 16 pictures" in corrected.note
    transform = mnv3.transforms(before)
    batch = torch.stack([transform(images.load(path)) for path in images.find(tmp_path)])
    theirs = real_outputs(file, _inputs(find(file), batch))
    errors = [np.abs((logits(m, batch) - theirs).mean(0)).mean() for m in (before, built(corrected))]
    if which != "weights":  # with float activations there is nothing to correct
        assert errors[1] < 0.8 * errors[0]


# --- other graphs, and damaged files


def refused(path, content):
    """The one line with which a file is refused."""
    with pytest.raises(WeightsError) as error:
        reading.read(write(path, content))
    message = str(error.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < 500
    return message


def edited(content, edit):
    """A file's bytes after `edit(model, graph)` has changed the object of the schema."""
    network = unpack(content)
    edit(network, network.subgraphs[0])
    return pack(network)


def operators(network, graph, kind):
    number = getattr(schema.BuiltinOperator, kind)
    return [op for op in graph.operators if network.operatorCodes[op.opcodeIndex].builtinCode == number]


@pytest.fixture(scope="module")
def content():
    return Tensorflow(tiny(), SIZE, se="mean").bytes()


def _relu6(network, graph):
    for op in operators(network, graph, "DEPTHWISE_CONV_2D"):
        if op.builtinOptions.fusedActivationFunction == 1:
            op.builtinOptions.fusedActivationFunction = 3


def _without_shortcut(network, graph):
    add = next(op for op in operators(network, graph, "ADD") if op.builtinOptions.fusedActivationFunction == 0)
    add.inputs = [add.inputs[0], add.inputs[0]]


def _strided(network, graph):
    options = operators(network, graph, "CONV_2D")[-3].builtinOptions
    options.strideH = options.strideW = 2


def _stride_4(network, graph):
    for op in operators(network, graph, "DEPTHWISE_CONV_2D")[1:2]:
        op.builtinOptions.strideH = op.builtinOptions.strideW = 4


def _max_pool(network, graph):
    for code in network.operatorCodes:
        if code.builtinCode == schema.BuiltinOperator.MEAN:
            code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.REDUCE_MAX


def _custom(network, graph):
    network.operatorCodes[0].builtinCode = network.operatorCodes[0].deprecatedBuiltinCode = 32
    network.operatorCodes[0].customCode = b"TFLite_Detection_PostProcess"


def _two_outputs(network, graph):
    graph.outputs = [*graph.outputs, graph.operators[-3].outputs[0]]


def _two_graphs(network, graph):
    network.subgraphs = [graph, graph]


def _missing_buffer(network, graph):
    graph.tensors[operators(network, graph, "CONV_2D")[0].inputs[1]].buffer = 0


def _unknown_buffer(network, graph):
    graph.tensors[operators(network, graph, "CONV_2D")[0].inputs[1]].buffer = 10**6


def _short_buffer(network, graph):
    buffer = network.buffers[graph.tensors[operators(network, graph, "CONV_2D")[0].inputs[1]].buffer]
    buffer.data = buffer.data[:-4]


def _outside(network, graph):
    buffer = network.buffers[graph.tensors[operators(network, graph, "CONV_2D")[0].inputs[1]].buffer]
    buffer.data, buffer.offset, buffer.size = None, 10**9, 16 * 27 * 4


def _not_finite(network, graph):
    buffer = network.buffers[graph.tensors[operators(network, graph, "CONV_2D")[0].inputs[1]].buffer]
    buffer.data = np.full(len(buffer.data), 0xFF, np.uint8)


def _huge_picture(network, graph):
    graph.tensors[graph.inputs[0]].shape = [1, 10**6, 10**6, 3]


def _other_gate(network, graph):
    for op in operators(network, graph, "ADD"):
        if op.builtinOptions.fusedActivationFunction == 3:
            op.builtinOptions.fusedActivationFunction = 1


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (_relu6, "another function; expected ReLU or h-swish"),
        (_without_shortcut, "not"),
        (_strided, "the last convolution, before the pool has stride 2 and dilation 1"),
        (_stride_4, "stride=4"),
        (_max_pool, "REDUCE_MAX) is nothing that a MobileNetV3 consists of"),
        (_custom, "CUSTOM TFLite_Detection_PostProcess"),
        (_two_outputs, "1 inputs and 2 outputs"),
        (_two_graphs, "2 graphs"),
        (_missing_buffer, "should be a constant"),
        (_unknown_buffer, "buffer 1000000"),
        (_short_buffer, "bytes: damaged"),
        (_outside, "outside of the file"),
        (_not_finite, "not finite"),
        (_huge_picture, "no batch of pictures"),
        (_other_gate, "no hard sigmoid"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_other_graphs_are_refused(tmp_path, content, edit, expected):
    assert expected in refused(tmp_path / "in.tflite", edited(content, edit))


def test_squeeze_width(tmp_path):
    """A8: a quarter that is not rounded to 8 is another network."""
    model = tiny(table=Arch(16, (Bneck(3, 120, 24, True, "RE", 2),), 96, 64))
    se = model.blocks[0].se
    se.squeeze, se.excite = torch.nn.Conv2d(120, 30, 1), torch.nn.Conv2d(30, 120, 1)
    message = refused(tmp_path / "in.tflite", Tensorflow(model, SIZE).bytes())
    assert "squeeze-and-excite of 120 channels has 30 in the middle" in message


def test_missing_scales(tmp_path):
    def without(network, graph):
        for tensor in graph.tensors:
            if tensor.type == 9:
                tensor.quantization.scale = None

    def too_few(network, graph):
        for tensor in graph.tensors:
            if tensor.type == 9:
                tensor.quantization.scale = tensor.quantization.scale[:-1]

    def nonsense(network, graph):
        for tensor in graph.tensors:
            if tensor.type == 9:
                tensor.quantization.scale = tensor.quantization.scale * np.nan

    content = Tensorflow(tiny(), SIZE, weights="int8").bytes()
    assert "has no scale" in refused(tmp_path / "in.tflite", edited(content, without))
    assert "scales for axis" in refused(tmp_path / "in.tflite", edited(content, too_few))
    assert "not above 0" in refused(tmp_path / "in.tflite", edited(content, nonsense))


def test_mobilenet_v2_and_edgetpu(tmp_path):
    """Their graphs as the same writer has them: no head after the pool, ReLU6; full convolutions in the blocks."""
    file = Writer((1, SIZE, SIZE, 3))
    x = file.graph.inputs[0]
    rng = np.random.default_rng(0)

    def conv(x, out, kernel, act):
        weight = file.constant(rng.normal(size=(out, kernel, kernel, file.shape(x)[3])))
        options = {"strideH": 1, "strideW": 1, "padding": 0, "fusedActivationFunction": act}
        return file.op("CONV_2D", [x, weight, file.constant(np.zeros(out))], (*file.shape(x)[:3], out), **options)

    def end(x, head):
        shape = (1, 1, 1, file.shape(x)[3])
        x = file.op("MEAN", [x, file.constant([1, 2], "int32")], shape, keepDims=True)
        return conv(conv(x, 24, 1, 1) if head else x, 10, 1, 0)

    x = conv(x, 16, 3, 1)
    fused = conv(conv(x, 64, 3, 1), 16, 1, 0)  # EdgeTPU's expansion
    last = conv(fused, 96, 1, 1)
    assert "the head" in refused(tmp_path / "v2.tflite", file.bytes(end(last, head=False)))
    message = refused(tmp_path / "edgetpu.tflite", file.bytes(end(last, head=True)))
    assert "the input of a projection to 16 channels is a full convolution of 3x3" in message


def test_shared_weights(tmp_path):
    """A small file cannot ask for much memory: every byte makes one number."""
    file = Writer((1, SIZE, SIZE, 256))
    x, weight, bias = file.graph.inputs[0], file.constant(np.zeros((256, 1, 1, 256))), file.constant(np.zeros(256))
    for _ in range(20):
        options = {"strideH": 1, "strideW": 1, "padding": 0}
        x = file.op("CONV_2D", [x, weight, bias], file.shape(x), **options)
    assert "many layers share their weights" in refused(tmp_path / "in.tflite", file.bytes(x))


def _no_shortcut(network, graph):
    add = next(op for op in operators(network, graph, "ADD") if op.builtinOptions.fusedActivationFunction == 0)
    after = next(op for op in graph.operators if add.outputs[0] in list(op.inputs) and op is not add)
    after.inputs = [add.inputs[0], *list(after.inputs)[1:]]


def test_missing_shortcut(tmp_path):
    content = Tensorflow(tiny(table=Arch(16, (Bneck(3, 16, 16, False, "RE", 1), *TINY.rows[1:]), 96, 64)), SIZE).bytes()
    assert "a block of 16 channels has no shortcut" in refused(tmp_path / "in.tflite", edited(content, _no_shortcut))


def test_not_tflite(tmp_path):
    for name in ("model.tflite", "weights.h5", "model.keras"):
        assert "but it is not one" in refused(tmp_path / name, b"<html>")
        assert "but it is not one" in refused(tmp_path / name, b"")
    assert reading.read(write(tmp_path / "page.pth", b"<html>")) is None
    assert reading.read(tmp_path) is None
    refused(tmp_path / "stub.tflite", b"\0\0\0\0TFL3")


def test_damage(tmp_path, content):
    """Cut anywhere, or with wrong bytes anywhere: read or refused in a moment."""
    rng = np.random.default_rng(0)
    weights = np.array([len(b.data) if b.data is not None else 0 for b in unpack(content).buffers])
    assert weights.max() < len(content) / 4  # most bytes are structure
    files = [content[:cut] for cut in range(8, len(content), len(content) // 20)]
    for _ in range(60):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), rng.integers(1, 64)):
            damaged[place] = rng.integers(256)
        files.append(bytes(damaged))
    outcomes = []
    for file in files:
        try:
            outcomes.append(reading.read(write(tmp_path / "in.bin", file)))
        except WeightsError as error:
            outcomes.append(str(error))
    messages = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert len(messages) > 20
    assert not any("\n" in message for message in messages)


# --- the command


@pytest.fixture
def convert(capsys, tmp_path):
    def call(*args):
        status = main.main(["convert", *map(str, args)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_convert(convert, tmp_path):
    model = randomize(mnv3.create_model("mnv3_small_050", num_classes=1001, pad_type="same"))
    source = write(tmp_path / "in.bin", Tensorflow(model, SIZE).bytes())  # content decides
    status, out, err = convert(source, tmp_path / "out")
    assert status == 0
    assert f"{source}: mnv3_small_050; TFLite, float32, 1001 classes" in out
    assert "1001 classes, sha256" in out
    assert "--drop-background drops it" in err
    status, out, _ = convert(source, tmp_path / "out", "--drop-background", "--force")
    assert status == 0
    assert "1000 classes" in out
    copy = mnv3.load_checkpoint(tmp_path / "out").eval()
    np.testing.assert_allclose(logits(copy, pictures()), logits(model, pictures())[:, 1:], rtol=0, atol=1e-4)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [3, SIZE, SIZE]
    assert config["pretrained_cfg"]["mean"] == [0.5, 0.5, 0.5]


def test_convert_a_table_of_its_own(convert, tmp_path, content):
    assert convert(write(tmp_path / "in.tflite", content), tmp_path / "out")[0] == 0
    assert mnv3.load_checkpoint(tmp_path / "out").arch == TINY


def test_convert_refuses(convert, tmp_path, content):
    source, out = write(tmp_path / "in.tflite", content), tmp_path / "out"
    for options, expected in (
        (["--arch", "mnv3_large"], "not mnv3_large: leave --arch out"),
        (["--bn-eps", "0.001"], "--bn-eps is for checkpoints"),
        (["--ema"], "has none"),
        (["--calibrate", tmp_path], "is not quantised"),
        (["--drop-background", "--arch", "mnv3_smal"], "unknown model"),
    ):
        status, _, err = convert(source, out, *options)
        assert (status, err.count("\n")) == (1, 1)
        assert expected in err
        assert not out.exists()
    torch.save(tiny().state_dict(), tmp_path / "in.pth")
    assert "does not say which model it is for" in convert(tmp_path / "in.pth", out)[2]
    assert "is none" in convert(tmp_path / "in.pth", out, "--arch", "mnv3_small", "--calibrate", tmp_path)[2]
    assert "damaged or cut off" in convert(write(tmp_path / "cut.tflite", content[:2000]), out)[2]
    assert not out.exists()


# --- calibration


def test_calibrate_refuses(convert, shared, tmp_path):
    source = shared / "weights" / "tflite" / SMALL_FILE
    (tmp_path / "none").mkdir()
    assert "at least 2 pictures, found 0" in convert(source, tmp_path / "out", "--calibrate", tmp_path / "none")[2]
    assert not (tmp_path / "out").exists()


def test_shift():
    """Means are met where they can be, and a correction that is noise is not made."""
    from mnv3.convert.tflite.calibrate import _shift

    generator = torch.Generator().manual_seed(0)
    values = torch.randn(16, 5, 64, generator=generator)
    moved = values + torch.tensor([0.5, -0.3, 0.1, 0.0, -9.0])[:, None]
    step = _shift(values, moved.clamp(0, 6).mean(2), 0.0, 6.0)
    torch.testing.assert_close(step[:4], torch.tensor([0.5, -0.3, 0.1, 0.0]), rtol=0, atol=0.02)
    assert step[4] < -1.5  # a dead channel is dead
    noise = torch.randn(16, 5, generator=generator)
    assert _shift(values, values.mean(2) + noise, -1e9, 1e9).abs().max() < noise.mean(0).abs().max()


@pytest.mark.slow
@pytest.mark.parametrize(("file", "plain", "calibrated"), [(SMALL_FILE, 71.4, 75.0), (LARGE_FILE, 81.2, 81.2)])
def test_accuracy(convert, shared, tmp_path, file, plain, calibrated):
    """500 pictures; calibrated on 64 of the even ones. The files themselves: 75.8 and 80.8 %."""
    folder = shared / "images" / "imagenet_half"
    half = tmp_path / "even"
    half.mkdir()
    for path in sorted(folder.iterdir())[::2]:
        (half / path.name).symlink_to(path)
    source = shared / "weights" / "tflite" / file
    files = sorted(folder.iterdir())
    labels = torch.tensor([int(path.name.split("_")[0]) for path in files])
    x = None
    for options, least in (([], plain), (["--calibrate", half], calibrated)):
        assert convert(source, tmp_path / "out", "--drop-background", "--force", *options)[0] == 0
        model = mnv3.load_checkpoint(tmp_path / "out").eval()
        if x is None:
            transform = mnv3.transforms(model)
            x = torch.stack([transform(images.load(path)) for path in files])
        with torch.no_grad():
            hits = torch.cat([model(part).argmax(1) for part in x.split(50)]) == labels
        assert 100 * hits.float().mean() >= least - 1e-3


@pytest.mark.parametrize(("package", "options"), [("tflite", []), ("ai_edge_litert.interpreter", ["--calibrate", "."])])
def test_missing_packages(convert, shared, tmp_path, monkeypatch, package, options):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.chdir(shared / "images" / "imagenet_half")
    status, _, err = convert(shared / "weights" / "tflite" / SMALL_FILE, tmp_path / "out", *options)
    assert status == 1
    assert "pip install 'mnv3[convert]'" in err
    assert not (tmp_path / "out").exists()
