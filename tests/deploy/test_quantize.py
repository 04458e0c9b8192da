"""mnv3 quantize: real 8 bits, near the float model's accuracy, or no file."""

import logging
import platform

import pytest
import torch
from conftest import needs
from PIL import Image
from torch import nn

import mnv3
from mnv3.cli import main
from mnv3.deploy import FORMATS, int8, load, parity, quantize
from mnv3.deploy.exporter import deployable
from mnv3.deploy.int8 import prepare
from mnv3.errors import ExportError
from mnv3.pictures import data
from mnv3.pictures.data import DataError

TARGETS = list(int8.WRITERS)


@pytest.fixture(scope="module")
def net():
    return mnv3.create_model("mnv3_small_cifar.cifar10", pretrained=True).eval()


@pytest.fixture(scope="module")
def mini(shared):
    return shared / "images" / "cifar10_mini"


@pytest.fixture
def some(tmp_path):
    """Pictures of two folders."""
    generator = torch.Generator().manual_seed(0)
    for i in range(120):
        folder = tmp_path / "pictures" / f"class {i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        x = torch.rand(4, 4, 3, generator=generator)
        Image.fromarray((x * 255).byte().numpy()).resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return tmp_path / "pictures"


@pytest.mark.slow
@pytest.mark.parametrize("to", TARGETS)
def test_accuracy_on_real_pictures(net, mini, tmp_path, to):
    """1,000 pictures; benchmarks/int8.py has all 10,000."""
    needs(to, int8=True)
    file = tmp_path / f"net{FORMATS[to].suffix}"
    report = quantize(net, file, to=to, calibrate=mini / "train", evaluate=data.load(str(mini), "test"), max_drop=1.5)
    assert report.calibrated == 400
    assert report.drop <= 1.5
    assert report.agreement >= 95
    # of a net so small, the graph in an .xml is a sixth
    assert report.bytes <= (0.32 if to == "openvino" else 0.3) * report.float_bytes
    int8.CHECKS[to](file)
    exported = load(file)
    assert exported.metadata["int8"] is True
    assert exported.metadata["calibrated"] == 400
    assert exported.metadata["float_layers"] == list(report.float_layers)
    assert exported(torch.zeros(3, 3, 32, 32)).shape == (3, 10)


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="oneDNN's 8-bit operators are those of x86")
def test_pt2_becomes_8_bit_operators(net, some, tmp_path):
    """The file has quantised operators; on x86 they become oneDNN's, of 8 bits."""
    needs("pt2", int8=True)
    from torchao.quantization.pt2e.inductor_passes import x86
    from torchao.quantization.pt2e.lowering import lower_pt2e_quantized_to_x86

    report = quantize(net, tmp_path / "net.pt2", to="pt2", calibrate=some, force=True)
    load(report.file)  # which registers the operators of such files
    program = torch.export.load(report.file)
    x86._register_quantization_weight_pack_pass()
    lowered = lower_pt2e_quantized_to_x86(program.module(check_guards=False), (torch.zeros(1, 3, 32, 32),))
    names = [str(node.target) for node in lowered.graph.nodes]
    layers = sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in net.modules())
    assert sum("onednn.q" in name for name in names) >= layers - prepare.FLOAT_LAYERS


@pytest.mark.parametrize("to", ["onnx", *(pytest.param(to, marks=pytest.mark.slow) for to in TARGETS if to != "onnx")])
def test_layers_in_float_are_said(net, some, tmp_path, to, monkeypatch):
    """Those that were to stay, in the file itself: 'blocks.0.depthwise.conv' of OpenVINO did not."""
    needs(to, int8=True)
    chosen = ["blocks.0.depthwise.conv", "blocks.0.se.excite"]
    monkeypatch.setattr(prepare, "_sensitive", lambda *_: chosen)
    report = quantize(net, tmp_path / f"net{FORMATS[to].suffix}", to=to, calibrate=some, force=True)
    assert report.float_layers == tuple(chosen)
    assert str(report).endswith("; in float: blocks.0.depthwise.conv, blocks.0.se.excite")
    assert load(report.file).metadata["float_layers"] == chosen
    assert len(int8.CHECKS[to](report.file)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("to", TARGETS)
def test_float_is_no_int8(net, tmp_path, to):
    needs(to, int8=True)
    file = tmp_path / f"net{FORMATS[to].suffix}"
    mnv3.deploy.export(net, file, to=to)
    with pytest.raises(ValueError, match="not an 8-bit model"):
        int8.CHECKS[to](file)


@pytest.mark.slow
@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("name", ["tf_mobilenetv3_small_100", "tf_mobilenetv3_large_minimal_100"])
def test_real_weights(shared, tmp_path, to, name):
    """Agreement with float32 on pictures that were not calibrated on; benchmarks/int8.py has more of them."""
    needs(to, int8=True)
    model = mnv3.load_checkpoint(shared / "weights" / "hub" / "timm" / f"{name}.in1k").eval()
    pictures = sorted((shared / "images" / "imagenet_half").iterdir())
    file = tmp_path / f"net{FORMATS[to].suffix}"
    report = quantize(model, file, to=to, calibrate=pictures[::5])
    assert report.bytes <= 0.305 * report.float_bytes  # of the weights alone, and with the names of 1,000 classes
    exported, x = load(file), parity.inputs(model, 224, pictures[1::5], count=100)
    with torch.inference_mode():
        assert (exported(x).argmax(1) == model(x).argmax(1)).float().mean() >= 0.82


def onnx_of(model, some, tmp_path, **options):
    needs("onnx")
    return quantize(model, tmp_path / "net.onnx", to="onnx", calibrate=some, **options)


@pytest.mark.parametrize("to", ["onnx", *(pytest.param(to, marks=pytest.mark.slow) for to in TARGETS if to != "onnx")])
def test_one_channel_nearly_dead_and_one_dead(net, some, tmp_path, to):
    """Their weights have next to no scale, their biases would overflow 32 bits."""
    model = mnv3.load_checkpoint(mnv3.save(net, tmp_path / "net")).eval()
    layer = model.blocks[5].depthwise
    with torch.no_grad():
        layer.conv.weight[0] = 1e-9
        layer.norm.bias[0] = 5.0
        layer.norm.running_mean[0] = 0.0
        layer.conv.weight[1] = 0.0
        layer.norm.bias[1] = 0.0
        layer.norm.running_mean[1] = 0.0
    needs(to, int8=True)
    report = quantize(model, tmp_path / f"net{FORMATS[to].suffix}", to=to, calibrate=some)
    x = parity.inputs(model, 32, some)
    with torch.inference_mode():
        found, expected = load(report.file)(x), model(x)
    assert found.isfinite().all()
    assert (found - expected).norm() < 0.2 * expected.norm()


def test_a_collapse_leaves_no_file(net, some, tmp_path, monkeypatch):
    def turned(model, file, batches):
        broken = deployable(net)
        broken.classifier.weight.neg_()
        return write(broken, file, batches)

    write = int8.WRITERS["onnx"]
    monkeypatch.setitem(int8.WRITERS, "onnx", turned)
    with pytest.raises(ExportError, match=r"agrees with float32 on .* nothing was written \(--force does\)"):
        onnx_of(net, some, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]
    assert onnx_of(net, some, tmp_path, force=True).agreement < 80


def test_one_line_when_the_writer_fails(net, some, tmp_path, monkeypatch):
    def fail(model, file, batches):
        file.write_bytes(b"half")
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setitem(int8.WRITERS, "onnx", fail)
    with pytest.raises(ExportError, match="^onnx: the exporter failed: RuntimeError: first line$"):
        onnx_of(net, some, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_what_is_left_behind_without_being_8_bit_is_refused(net, some, tmp_path, monkeypatch):
    needs("onnx")
    monkeypatch.setitem(int8.WRITERS, "onnx", lambda model, file, batches: mnv3.deploy.export(net, file, to="onnx"))
    with pytest.raises(ExportError, match="not an 8-bit model"):
        onnx_of(net, some, tmp_path)


def test_calibration_uses_the_pictures_preprocessing(net, some, tmp_path, monkeypatch):
    seen = []
    write = int8.WRITERS["onnx"]
    monkeypatch.setitem(int8.WRITERS, "onnx", lambda m, f, batches: seen.extend(batches) or write(m, f, batches))
    onnx_of(net, some, tmp_path)
    transform = mnv3.transforms(net)
    files = sorted(path for path in some.rglob("*.png"))
    assert torch.equal(torch.cat(seen), torch.stack([transform(mnv3.images.load(path)) for path in files]))


def test_few_one_folder_and_broken_pictures_are_said(net, some, tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="mnv3")
    quick = {"force": True}
    (some / "class 0" / "broken.png").write_bytes(b"no picture")
    report = onnx_of(net, some, tmp_path, **quick)
    assert report.calibrated == 120
    assert "left out: " in caplog.text
    assert "not a picture" in caplog.text
    assert "no pictures to evaluate on" in caplog.text
    caplog.clear()
    onnx_of(net, sorted((some / "class 0").iterdir())[:9], tmp_path, **quick)
    assert "pictures are few to calibrate on" in caplog.text
    caplog.clear()
    onnx_of(net, [*sorted((some / "class 0").iterdir())] * 2, tmp_path, **quick)
    assert "of one folder" in caplog.text


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"to": "ncnn"}, ValueError, "no 8-bit 'ncnn'. Allowed: onnx"),
        ({"file": "net.pt"}, ValueError, "a file for onnx ends in .onnx"),
        ({"calibrate": "empty"}, ValueError, "no pictures to calibrate on in empty"),
        ({"size": -1}, ValueError, "size=-1: expected"),
        ({"size": 100_000}, ValueError, "size=100000: expected a whole number of pixels from 1 to 4096"),
    ],
)
def test_refused(net, some, tmp_path, monkeypatch, options, error, message):
    needs("onnx")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    given = {"file": "net.onnx", "to": "onnx", "calibrate": some} | options
    with pytest.raises(error, match=message):
        quantize(net, given.pop("file"), **given)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "pictures"]


def test_pictures_of_other_classes(net, some, tmp_path):
    (tmp_path / "data").mkdir()
    some.rename(tmp_path / "data" / "test")
    with pytest.raises(DataError, match="the model has 10 classes and the pictures 2"):
        onnx_of(net, tmp_path / "data", tmp_path, evaluate=data.load(str(tmp_path / "data"), "test"))


def test_command(some, tmp_path, monkeypatch, capsys):
    needs("onnx")
    monkeypatch.chdir(tmp_path)
    command = ["quantize", "mnv3_small_cifar.cifar10", "--to", "onnx", "--calibrate", str(some), "--force"]
    assert main.main(command) == 0
    out = capsys.readouterr().out
    assert out.startswith("mnv3_small_cifar.int8.onnx: ")
    assert "of 120 calibration pictures" in out
    assert main.main([*command[:-1]]) == 1
    assert "exists" in capsys.readouterr().err
    assert main.main(["predict", "--checkpoint", "mnv3_small_cifar.int8.onnx", str(some / "class 0" / "0.png")]) == 0
    assert main.main(["quantize", "mnv3_small_cifar", "--to", "onx", "--calibrate", str(some)]) == 1
    assert "unknown format 'onx'" in capsys.readouterr().err
