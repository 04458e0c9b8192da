"""TFLite files become our models: equal to LiteRT where they are float, to rounding where they are quantised."""

import json
import sys

import numpy as np
import pytest
import torch
from conftest import needs, randomize
from tflite_files import (
    SIZE,
    TINY,
    Tensorflow,
    built,
    channels_last,
    logits,
    pack,
    pictures,
    run,
    schema,
    tiny,
    unpack,
    write,
)

import mnv3
from mnv3.cli import main
from mnv3.convert import reading


def equal(model, content, x, tolerance=1e-4):
    """The largest difference from LiteRT, as a share of the largest logit, is within the tolerance."""
    expected = run(content, channels_last(x))
    difference = np.abs(logits(model, x) - expected).max() / np.abs(expected).max()
    assert difference < tolerance


# --- float files: the same function


@pytest.mark.parametrize(
    ("options", "build"),
    [
        ({}, {"num_classes": 1, "in_chans": 1}),
        ({"act": "mul", "se": "mean"}, {}),
        ({"act": "mul", "se": "mean", "pad": "apart"}, {"se_order": "se-act"}),
        ({"se": "fc", "pad": "apart"}, {}),
        ({"se": "sum", "norm": "apart"}, {}),
        ({"se": "bias", "pad": "apart"}, {"pad_type": ""}),
        ({"se": "after", "weights": "float16"}, {}),
        ({"weights": "uint8"}, {}),
        ({"weights": "int8", "se": "fc"}, {}),
    ],
    ids=str,
)
def test_every_way_of_writing(tmp_path, options, build):
    model = tiny(**build)
    content = Tensorflow(model, SIZE, **options).bytes()
    foreign = reading.read(write(tmp_path / "in.tflite", content))
    copy, x = built(foreign), pictures(channels=model.in_chans)
    for name in ("arch", "pad_type", "se_order", "num_classes", "in_chans"):
        assert getattr(copy, name) == getattr(model, name), name
    equal(copy, content, x)
    if options.get("weights", "float32") == "float32":  # against what it was written from, too
        assert np.abs(logits(copy, x) - logits(model, x)).max() < 1e-4
    norm = copy.stem.norm  # mean 0, variance 1 - eps, weight 1: no output moves
    assert (norm.weight / (norm.running_var + norm.eps).sqrt() - 1).abs().max() < 1e-6
    assert not norm.running_mean.any()


@pytest.mark.parametrize(("size", "pad", "pooled"), [(63, "apart", 8), (65, "name", 9)])
def test_odd_sizes(tmp_path, size, pad, pooled):
    model = tiny()
    content = Tensorflow(model, size, pad=pad).bytes()
    foreign = reading.read(write(tmp_path / "in.tflite", content))
    equal(built(foreign), content, pictures(size))
    assert foreign.config["input_size"] == (3, size, size)
    assert foreign.config["pool_size"] == (pooled, pooled)
    equal(built(foreign), Tensorflow(model, SIZE).bytes(), pictures())  # and at another than the file's


@pytest.mark.parametrize(
    ("name", "width"),
    [("mnv3_small_075_tf", None), ("mnv3_small_tf", 0.35), ("mnv3_large_minimal_tf", 0.2), ("mnv3_small_cifar", None)],
)
def test_arch_is_recognised(tmp_path, name, width):
    options = {"num_classes": 5} | ({"width": width} if width else {})
    model = randomize(mnv3.create_model(name, **options))
    pad = "apart" if not model.pad_type else "name"
    foreign = reading.read(write(tmp_path / "in.tflite", Tensorflow(model, 32, pad=pad).bytes()))
    assert (foreign.arch, foreign.options) == (name, options | {"in_chans": 3})
    assert foreign.table == model.arch


def test_preprocessing(tmp_path):
    """TensorFlow's, unless the graph says it (B2, B3: accounted for once)."""
    model = tiny()
    foreign = reading.read(write(tmp_path / "plain.tflite", Tensorflow(model, SIZE).bytes()))
    assert (foreign.config["mean"], foreign.config["std"]) == ((0.5,) * 3, (0.5,) * 3)
    content = Tensorflow(model, SIZE).bytes(rescale=True, softmax=True)
    foreign = reading.read(write(tmp_path / "rescaling.tflite", content))
    np.testing.assert_allclose((*foreign.config["mean"], *foreign.config["std"]), 0.5, rtol=1e-6)
    raw = (pictures() / 2 + 0.5) * 255
    expected = run(content, channels_last(raw))
    normalised = (raw / 255 - 0.5) / 0.5
    np.testing.assert_allclose(torch.tensor(logits(built(foreign), normalised)).softmax(1), expected, atol=1e-5)
    assert "softmax" in foreign.note


# --- Google's files


SMALL_FILE, LARGE_FILE = "v3-small_224_1.0_uint8.tflite", "v3-large-minimalistic_224_1.0_uint8.tflite"
TIMM = {
    SMALL_FILE: ("mnv3_small_tf", "tf_mobilenetv3_small_100.in1k"),
    LARGE_FILE: ("mnv3_large_minimal_tf", "tf_mobilenetv3_large_minimal_100.in1k"),
}


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
    with_scalar = {  # the additions of h-swish, whose ranges are no ReLU's
        op.inputs[0]
        for op in graph.operators
        if len(op.inputs) == 2
        and (graph.tensors[op.inputs[1]].shape is None or not len(graph.tensors[op.inputs[1]].shape))
    }
    for op in graph.operators:
        kind = network.operatorCodes[op.opcodeIndex].deprecatedBuiltinCode
        top = zero_at_most.get(op.outputs[0])
        if top and kind in (3, 4) and op.outputs[0] not in with_scalar:
            op.builtinOptions.fusedActivationFunction = 1
        if top and kind == 0 and abs(top - 6) < 0.06:
            op.builtinOptions.fusedActivationFunction = 3
    return pack(network)


@pytest.mark.parametrize("file", TIMM)
def test_googles_files(shared, tmp_path, file):
    """timm's weights were made from the same files, by way of float checkpoints: the same after folding.

    And Google's graph with its weights dequantised, run in LiteRT, gives the import's probabilities.
    """
    name, timms = TIMM[file]
    source = shared / "weights" / "tflite" / file
    foreign = reading.read(source)
    assert (foreign.arch, foreign.options) == (name, {"num_classes": 1001, "in_chans": 3})
    assert foreign.note == "TFLite, uint8 per tensor, 1001 classes, without its softmax"
    np.testing.assert_allclose((*foreign.config["mean"], *foreign.config["std"]), 0.5, atol=2e-3)
    theirs = mnv3.load_checkpoint(shared / "weights" / "hub" / "timm" / timms).eval()
    x = pictures(224, 2)
    ours = logits(built(foreign), x)
    np.testing.assert_allclose(ours[:, 1:], logits(theirs, x), rtol=0, atol=5e-5)

    content = dequantised(source.read_bytes())
    from_float = reading.read(write(tmp_path / "float.tflite", content))
    assert from_float.note == "TFLite, float32, 1001 classes, without its softmax"
    for key, value in foreign.state_dict.items():
        torch.testing.assert_close(from_float.state_dict[key], value, rtol=1e-6, atol=0)
    np.testing.assert_allclose(torch.tensor(ours).softmax(1), run(content, channels_last(x)), rtol=1e-3, atol=1e-5)


# --- what other tools write


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "pad_type"),
    [({}, ""), ({"half": True}, "same"), ({"normalize": True, "softmax": True}, "same")],
    ids=str,
)
def test_own_exports(tmp_path, options, pad_type):
    """LiteRT Torch's graphs, with the preprocessing that `mnv3 export` wrote beside them, and without it."""
    needs("tflite")
    model, x = tiny(pad_type), pictures()
    mnv3.deploy.export(model, tmp_path / "model.tflite", to="tflite", size=SIZE, **options)
    exported = mnv3.deploy.load(tmp_path / "model.tflite")
    pixels = ((x + 1) * 127).round()
    with torch.no_grad():
        expected = exported(pixels).softmax(1) if "normalize" in options else exported(x)
    for beside in (True, False):
        if not beside:
            (tmp_path / "model.tflite.json").unlink()
        foreign = reading.read(tmp_path / "model.tflite")
        copy = built(foreign)
        assert (copy.arch, copy.pad_type) == (TINY, pad_type)
        if "normalize" in options:
            mean, std = (torch.tensor(foreign.config[name]).view(3, 1, 1) for name in ("mean", "std"))
            torch.testing.assert_close(mean.flatten(), torch.tensor(model.pretrained_cfg["mean"]), rtol=1e-4, atol=1e-5)
            ours = torch.tensor(logits(copy, (pixels / 255 - mean) / std)).softmax(1)
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
        else:
            torch.testing.assert_close(torch.tensor(logits(copy, x)), expected, rtol=0, atol=1e-5)
            assert foreign.config["mean"] == (model.pretrained_cfg["mean"] if beside else (0.5,) * 3)


@pytest.mark.slow
def test_channels_first(tmp_path):
    """A graph whose input is (1, C, H, W)."""
    needs("tflite")
    import litert_torch

    model, x = tiny(), pictures()
    with mnv3.deploy.packages.quiet():
        litert_torch.convert(model, (x[:1],)).export(str(tmp_path / "in.tflite"))
    foreign = reading.read(tmp_path / "in.tflite")
    np.testing.assert_allclose(logits(built(foreign), x), run(tmp_path / "in.tflite", x.numpy()), rtol=0, atol=1e-5)
    assert foreign.config["input_size"] == (3, SIZE, SIZE)


# --- the command


@pytest.fixture
def convert(capsys):
    def call(*args):
        status = main(["convert", *map(str, args)])
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


def test_convert_a_table_of_its_own(convert, tmp_path):
    source = write(tmp_path / "in.tflite", Tensorflow(tiny(), SIZE).bytes())
    assert convert(source, tmp_path / "out")[0] == 0
    assert mnv3.load_checkpoint(tmp_path / "out").arch == TINY


def test_convert_refuses(convert, tmp_path):
    content = Tensorflow(tiny(), SIZE).bytes()
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


@pytest.mark.parametrize(("package", "options"), [("tflite", []), ("ai_edge_litert.interpreter", ["--calibrate", "."])])
def test_missing_packages(convert, shared, tmp_path, monkeypatch, package, options):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.chdir(shared / "images" / "imagenet_half")
    status, _, err = convert(shared / "weights" / "tflite" / SMALL_FILE, tmp_path / "out", *options)
    assert status == 1
    assert "pip install 'mnv3[convert]'" in err
    assert not (tmp_path / "out").exists()
