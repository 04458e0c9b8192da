"""ONNX files in runtimes that are not ours: old ones, and OpenCV's."""

from collections import Counter

import pytest
import torch
from conftest import needs, with_distinct_logits
from exports import ARCH, exported, fading, net, pictures, quantized
from torch import nn

from mnv3.deploy import export, load, parity
from mnv3.layers import SqueezeExcite

onnx = pytest.importorskip("onnx", reason="needs pip install 'mnv3[deploy]'")


@pytest.fixture(scope="module", autouse=True)
def _packages():
    needs("onnx", int8=True)


def count(kind):
    return sum(isinstance(module, kind) for module in net().modules())


def test_the_lowest_versions():
    """onnxruntime 1.17 takes IR versions up to 9, and refuses sets of operators that it does not know."""
    for file in (exported("onnx")[0], quantized("onnx").file):
        model = onnx.load(file)
        assert model.ir_version == 8
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
        onnx.checker.check_model(model, full_check=True)


def test_dimensions_have_names():
    def shapes(file):
        graph = onnx.load(file).graph
        named = {value.name: value.type.tensor_type.shape.dim for value in (*graph.input, *graph.output)}
        return {name: [dim.dim_param or dim.dim_value for dim in dims] for name, dims in named.items()}

    file, _ = exported("onnx")
    assert shapes(file) == {"input": ["batch", 3, "height", "width"], "output": ["batch", 10]}
    assert shapes(quantized("onnx").file) == {"input": ["batch", 3, 32, 32], "output": ["batch", 10]}
    texts = {d.dim_param for v in onnx.load(file).graph.value_info for d in v.type.tensor_type.shape.dim}
    assert any("height" in text for text in texts)
    assert not any("s77" in text for text in texts)


def test_gates_are_no_hard_sigmoid():
    operators = Counter(node.op_type for node in onnx.load(exported("onnx")[0]).graph.node)
    gates = count(SqueezeExcite)
    assert gates == 3
    assert (operators["Clip"], operators["HardSigmoid"]) == (gates, 0)
    assert operators["HardSwish"] == count(nn.Hardswish)
    assert operators["Conv"] == count(nn.Conv2d)
    assert operators["Mul"] == gates, "the 1/6 is in the convolution"
    # ONNX Runtime's quantiser writes h-swish as x * hard_sigmoid(x), which OpenCV computes rightly
    graph = onnx.load(quantized("onnx").file).graph
    made = {name: node for node in graph.node for name in node.output}
    hard = [node for node in graph.node if node.op_type == "Mul" and made[node.input[1]].op_type == "HardSigmoid"]
    assert len(hard) == count(nn.Hardswish)
    assert all(node.input[0] == made[node.input[1]].input[0] for node in hard)


def in_opencv(file, x):
    cv2 = pytest.importorskip("cv2", reason="needs pip install opencv-python-headless")
    model = cv2.dnn.readNetFromONNX(str(file))
    model.setInput(x.numpy())
    return torch.from_numpy(model.forward().copy())


def close(logits, model, x):
    with torch.inference_mode():
        torch.testing.assert_close(logits, model(x), rtol=0, atol=1e-5)


def test_opencv_at_any_size():
    file, _ = exported("onnx")
    for shape in ((1, 3, 32, 32), (3, 3, 32, 32), (2, 3, 47, 33)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        close(in_opencv(file, x), net(), x)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mnv3_small", {"se_order": "se-act", "in_chans": 1}),
        ("mnv3_small_tf", {}),
        pytest.param("mnv3_large", {"se_order": "se-act-expanded", "arch": None}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_other_models_in_opencv(tmp_path, name, options):
    pytest.importorskip("cv2", reason="needs pip install opencv-python-headless")
    model = with_distinct_logits(name, num_classes=5, **{"arch": ARCH} | options)
    export(model, tmp_path / "net.onnx", to="onnx", size=96)
    x = torch.randn(1, model.in_chans, 96, 96, generator=torch.Generator().manual_seed(1))
    close(in_opencv(tmp_path / "net.onnx", x), model, x)


def test_8_bits_in_opencv():
    """As near to float32 as in ONNX Runtime, which rounds elsewhere."""
    file, x = quantized("onnx").file, parity.inputs(fading(), 32, pictures())
    with torch.inference_mode():
        expected, ours = fading()(x), load(file)(x)
    for logits in (ours, in_opencv(file, x)):
        assert (logits - expected).norm() < 0.1 * expected.norm()
