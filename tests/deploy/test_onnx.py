"""ONNX files in runtimes that are not ours: old ones, and OpenCV's."""

from collections import Counter

import pytest
import torch
from conftest import needs, with_distinct_logits
from PIL import Image
from torch import nn

import mnv3
from mnv3.deploy import export, load, parity, quantize
from mnv3.layers import SqueezeExcite

onnx = pytest.importorskip("onnx", reason="needs pip install 'mnv3[deploy]'")


@pytest.fixture(scope="module", autouse=True)
def _packages():
    needs("onnx", int8=True)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model, and its file for any batch and size."""
    model, file = with_distinct_logits(), tmp_path_factory.mktemp("onnx") / "net.onnx"
    export(model, file, to="onnx", dynamic=("batch", "size"))
    return model, file


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """Trained weights, their file of 8 bits, and the pictures that it was calibrated on."""
    folder = tmp_path_factory.mktemp("int8")
    model = mnv3.create_model("mnv3_small_cifar.cifar10", pretrained=True).eval()
    for i, x in enumerate(torch.rand(100, 4, 4, 3, generator=torch.Generator().manual_seed(0))):
        picture = Image.fromarray((x * 255).byte().numpy()).resize((32, 32), Image.Resampling.BICUBIC)
        picture.save(folder / f"{i}.png")
    return model, quantize(model, folder / "net.onnx", to="onnx", calibrate=folder, force=True).file, folder


def of(model, kind):
    return sum(isinstance(module, kind) for module in model.modules())


def test_the_lowest_versions(exported, eight):
    """onnxruntime 1.17 takes IR versions up to 9, and refuses sets of operators that it does not know."""
    for file in (exported[1], eight[1]):
        model = onnx.load(file)
        assert model.ir_version == 8
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
        onnx.checker.check_model(model, full_check=True)


def test_dimensions_have_names(exported, eight):
    def shapes(file):
        graph = onnx.load(file).graph
        named = {value.name: value.type.tensor_type.shape.dim for value in (*graph.input, *graph.output)}
        return {name: [dim.dim_param or dim.dim_value for dim in dims] for name, dims in named.items()}

    assert shapes(exported[1]) == {"input": ["batch", 3, "height", "width"], "output": ["batch", 10]}
    assert shapes(eight[1]) == {"input": ["batch", 3, 32, 32], "output": ["batch", 10]}
    texts = {d.dim_param for v in onnx.load(exported[1]).graph.value_info for d in v.type.tensor_type.shape.dim}
    assert any("height" in text for text in texts)
    assert not any("s77" in text for text in texts)


def test_gates_are_no_hard_sigmoid(exported, eight):
    model, file = exported
    operators = Counter(node.op_type for node in onnx.load(file).graph.node)
    gates = of(model, SqueezeExcite)
    assert gates > 5
    assert (operators["Clip"], operators["HardSigmoid"]) == (gates, 0)
    assert operators["HardSwish"] == of(model, nn.Hardswish)
    assert operators["Conv"] == of(model, nn.Conv2d)
    assert operators["Mul"] == gates, "the 1/6 is in the convolution"
    # ONNX Runtime's quantiser writes h-swish as x * hard_sigmoid(x), which OpenCV computes rightly
    graph = onnx.load(eight[1]).graph
    made = {name: node for node in graph.node for name in node.output}
    hard = [node for node in graph.node if node.op_type == "Mul" and made[node.input[1]].op_type == "HardSigmoid"]
    assert len(hard) == of(eight[0], nn.Hardswish)
    assert all(node.input[0] == made[node.input[1]].input[0] for node in hard)


def in_opencv(file, x):
    cv2 = pytest.importorskip("cv2", reason="needs pip install opencv-python-headless")
    net = cv2.dnn.readNetFromONNX(str(file))
    net.setInput(x.numpy())
    return torch.from_numpy(net.forward().copy())


def close(found, model, x):
    with torch.inference_mode():
        torch.testing.assert_close(found, model(x), rtol=0, atol=1e-5)


def test_opencv_at_any_size(exported):
    model, file = exported
    for shape in ((1, 3, 32, 32), (3, 3, 32, 32), (2, 3, 47, 33)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        close(in_opencv(file, x), model, x)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mnv3_small", {}),
        ("mnv3_small", {"se_order": "se-act", "in_chans": 1}),
        ("mnv3_large", {"se_order": "se-act-expanded"}),
        ("mnv3_small_tf", {}),
        ("mnv3_small_minimal", {}),
    ],
    ids=str,
)
def test_other_models_in_opencv(tmp_path, name, options):
    pytest.importorskip("cv2", reason="needs pip install opencv-python-headless")
    model = with_distinct_logits(name, num_classes=5, **options)
    export(model, tmp_path / "net.onnx", to="onnx", size=96)
    x = torch.randn(1, model.in_chans, 96, 96, generator=torch.Generator().manual_seed(1))
    close(in_opencv(tmp_path / "net.onnx", x), model, x)


def test_8_bits_in_opencv(eight):
    """As near to float32 as in ONNX Runtime, which rounds elsewhere."""
    model, file, pictures = eight
    x = parity.inputs(model, 32, pictures)
    with torch.inference_mode():
        expected, ours = model(x), load(file)(x)
    found = in_opencv(file, x)
    assert (ours - expected).norm() < 0.1 * expected.norm()
    assert (found - expected).norm() < 0.1 * expected.norm()
