"""TFLite files become our models: equal to LiteRT where they are float, and refused in one line where they are not."""

import numpy as np
import pytest
import torch
from conftest import randomize
from tflite_files import Tensorflow, pack, run, schema, unpack

import mnv3
from mnv3 import foreign
from mnv3.arch import Arch, Bneck

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
    found = foreign.read(write(tmp_path / "in.tflite", content))
    copy = built(found)
    assert (copy.arch, copy.pad_type, copy.num_classes) == (TINY, pad_type, 7)
    equal(copy, content, pictures())
    if options.get("weights", "float32") == "float32":  # against what it was written from, too
        assert np.abs(logits(copy, pictures()) - logits(model, pictures())).max() < 1e-4


@pytest.mark.parametrize("size", [63, 65])
def test_odd_sizes(tmp_path, size):
    model = tiny()
    content = Tensorflow(model, size).bytes()
    found = foreign.read(write(tmp_path / "in.tflite", content))
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
    found = foreign.read(write(tmp_path / "in.tflite", Tensorflow(model, size, pad=pad).bytes()))
    assert found.arch == name
    assert found.options == {"num_classes": model.num_classes, "in_chans": 3} | options
    assert built(found).arch == model.arch
    np.testing.assert_allclose(logits(built(found), pictures(size)), logits(model, pictures(size)), rtol=0, atol=1e-4)


def test_other_channels(tmp_path):
    content = Tensorflow(tiny(in_chans=1), SIZE).bytes()
    found = foreign.read(write(tmp_path / "in.tflite", content))
    assert found.options["in_chans"] == 1
    equal(built(found), content, pictures(channels=1))


def test_batch_norm_is_exact(tmp_path):
    """Mean 0, variance 1 - eps, weight 1: no output moves."""
    found = foreign.read(write(tmp_path / "in.tflite", Tensorflow(tiny(), SIZE).bytes()))
    norm = built(found).stem.norm
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    assert (scale - 1).abs().max() < 1e-6
    assert not norm.running_mean.any()


def test_preprocessing(tmp_path):
    """TensorFlow's, unless the graph says it (B2, B3: accounted for once)."""
    model = tiny()
    found = foreign.read(write(tmp_path / "plain.tflite", Tensorflow(model, SIZE).bytes()))
    assert (found.config["mean"], found.config["std"]) == ((0.5,) * 3, (0.5,) * 3)
    content = Tensorflow(model, SIZE).bytes(rescale=True, softmax=True)
    found = foreign.read(write(tmp_path / "rescaling.tflite", content))
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
    found = foreign.read(shared / "weights" / "tflite" / file)
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
    found = foreign.read(write(tmp_path / "float.tflite", content))
    assert found.note == "TFLite, float32, 1001 classes, without its softmax"
    x = pictures(224, 2)
    expected = run(content, as_litert(x))
    np.testing.assert_allclose(torch.tensor(logits(built(found), x)).softmax(1), expected, rtol=1e-3, atol=1e-5)
    same = foreign.read(shared / "weights" / "tflite" / file).state_dict
    assert all(torch.allclose(found.state_dict[key], value, rtol=1e-6, atol=0) for key, value in same.items())
