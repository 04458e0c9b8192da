"""mnv3 quantize: real 8 bits, near the float model's accuracy, or no file."""

import logging
import platform
import shutil

import pytest
import torch
from conftest import needs
from exports import FLOATS, exported, fading, folder, net, pictures, quantized, weights
from torch import nn

import mnv3
from mnv3.cli.main import main
from mnv3.deploy import FORMATS, int8, load, parity, quantize
from mnv3.deploy.exporter import deployable
from mnv3.deploy.int8 import prepare
from mnv3.errors import ExportError
from mnv3.pictures import data
from mnv3.pictures.data import DataError

TARGETS = list(int8.WRITERS)
EACH = ["onnx", *(pytest.param(to, marks=pytest.mark.slow) for to in TARGETS if to != "onnx")]


# --- what is written


@pytest.mark.slow
@pytest.mark.parametrize("to", TARGETS)
def test_accuracy_on_real_pictures(shared, tmp_path, to):
    """500 pictures; benchmarks/int8.py has all 10,000."""
    needs(to, int8=True)
    model = mnv3.create_model("mnv3_small_cifar.cifar10", pretrained=True).eval()
    mini, file = shared / "images" / "cifar10_mini", tmp_path / f"net{FORMATS[to].suffix}"
    held = data.load(str(mini), "test")
    held = held.take(torch.arange(0, len(held), 2))
    report = quantize(model, file, to=to, calibrate=mini / "train", evaluate=held, max_drop=2)
    assert report.calibrated == 400
    assert report.drop <= 2
    assert report.agreement >= 95
    # of a net so small, the graph in an .xml is a sixth
    assert report.bytes <= (0.32 if to == "openvino" else 0.3) * report.float_bytes
    int8.CHECKS[to](file)
    opened = load(file)
    assert opened.metadata["int8"] is True
    assert opened.metadata["calibrated"] == 400
    assert opened.metadata["float_layers"] == list(report.float_layers)
    assert opened(torch.zeros(3, 3, 32, 32)).shape == (3, 10)


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="oneDNN's 8-bit operators are those of x86")
def test_pt2_becomes_8_bit_operators():
    """The file has quantised operators; on x86 they become oneDNN's, of 8 bits."""
    file = quantized("pt2").file
    from torchao.quantization.pt2e.inductor_passes import x86
    from torchao.quantization.pt2e.lowering import lower_pt2e_quantized_to_x86

    load(file)  # which registers the operators of such files
    program = torch.export.load(file)
    x86._register_quantization_weight_pack_pass()
    lowered = lower_pt2e_quantized_to_x86(program.module(check_guards=False), (torch.zeros(1, 3, 32, 32),))
    names = [str(node.target) for node in lowered.graph.nodes]
    layers = sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in net().modules())
    assert sum("onednn.q" in name for name in names) >= layers - len(FLOATS)


@pytest.mark.parametrize("to", EACH)
def test_layers_in_float_are_said(to):
    """Those that were to stay, in the file itself: 'blocks.0.depthwise.conv' of OpenVINO did not."""
    report = quantized(to)
    assert report.float_layers == FLOATS
    assert str(report).endswith(f"; in float: {', '.join(FLOATS)}")
    assert load(report.file).metadata["float_layers"] == list(FLOATS)
    assert len(int8.CHECKS[to](report.file)) == 2


@pytest.mark.parametrize("to", EACH)
def test_one_channel_nearly_dead_and_one_dead(to):
    """Their weights have next to no scale, their biases would overflow 32 bits."""
    x = parity.inputs(fading(), 32, pictures())
    with torch.inference_mode():
        logits, expected = load(quantized(to).file)(x), fading()(x)
    assert logits.isfinite().all()
    assert (logits - expected).norm() < 0.2 * expected.norm()


@pytest.mark.parametrize("to", EACH)
def test_float_is_no_int8(to):
    file, _ = exported(to)
    needs(to, int8=True)
    with pytest.raises(ValueError, match="not an 8-bit model"):
        int8.CHECKS[to](file)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "to"),
    [
        ("small", "onnx"),
        ("large_minimal", "openvino"),
        ("small", "executorch"),
        ("large_minimal", "tflite"),
        ("small", "pt2"),
    ],
)
def test_real_weights(shared, tmp_path, name, to):
    """Agreement with float32 on pictures that were not calibrated on; benchmarks/int8.py has more of them."""
    needs(to, int8=True)
    source = shared / "weights" / "hub" / "timm" / f"tf_mobilenetv3_{name}_100.in1k"
    model, photos = mnv3.load_checkpoint(source).eval(), sorted((shared / "images" / "imagenet_half").iterdir())
    file = tmp_path / f"net{FORMATS[to].suffix}"
    report = quantize(model, file, to=to, calibrate=photos[::5])
    assert report.bytes <= 0.305 * report.float_bytes  # of the weights alone, and with the names of 1,000 classes
    opened, x = load(file), parity.inputs(model, 224, photos[1::5], count=100)
    with torch.inference_mode():
        assert (opened(x).argmax(1) == model(x).argmax(1)).float().mean() >= 0.82


# --- what is refused, and said


@pytest.fixture
def some(tmp_path):
    """The pictures, to be spoilt."""
    return shutil.copytree(pictures(), tmp_path / "pictures")


@pytest.fixture
def stub(monkeypatch):
    """A writer that takes no time: it gives a file that is there already, or does what a test wants."""
    ready = quantized("onnx").file

    def use(write):
        monkeypatch.setitem(int8.WRITERS, "onnx", write)

    use(lambda model, file, batches: shutil.copy(ready, file) and list(FLOATS))
    return use


def onnx_of(some, tmp_path, **options):
    return quantize(net(), tmp_path / "net.onnx", to="onnx", calibrate=some, **options)


def test_a_collapse_leaves_no_file(some, tmp_path, monkeypatch):
    def turned(model, file, batches):
        broken = deployable(net())
        broken.classifier.weight.neg_()
        if not made.exists():
            write(broken, made, batches)
        shutil.copy(made, file)
        return []

    needs("onnx", int8=True)
    write, made = int8.WRITERS["onnx"], folder("turned") / "net.onnx"
    monkeypatch.setitem(int8.WRITERS, "onnx", turned)
    monkeypatch.setattr(prepare, "_sensitive", lambda *_, **__: [])
    with pytest.raises(ExportError, match=r"agrees with float32 on .* nothing was written \(--force does\)"):
        onnx_of(some, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]
    assert onnx_of(some, tmp_path, force=True).agreement < 80


def test_one_line_when_the_writer_fails(stub, some, tmp_path):
    def fail(model, file, batches):
        file.write_bytes(b"half")
        raise RuntimeError("first line\nsecond line")

    stub(fail)
    with pytest.raises(ExportError, match="^onnx: the exporter failed: RuntimeError: first line$"):
        onnx_of(some, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_what_is_left_behind_without_being_8_bit_is_refused(stub, some, tmp_path):
    stub(lambda model, file, batches: [shutil.copy(exported("onnx")[0], file)])
    with pytest.raises(ExportError, match="not an 8-bit model"):
        onnx_of(some, tmp_path)


def test_calibration_uses_the_pictures_preprocessing(stub, some, tmp_path):
    given, write = [], int8.WRITERS["onnx"]
    stub(lambda model, file, batches: given.extend(batches) or write(model, file, batches))
    onnx_of(some, tmp_path, force=True)
    transform = mnv3.transforms(net())
    files = sorted(path for path in some.rglob("*.png"))
    assert torch.equal(torch.cat(given), torch.stack([transform(mnv3.images.load(path)) for path in files]))


def test_few_one_folder_and_broken_pictures_are_said(stub, some, tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="mnv3")
    (some / "class 0" / "broken.png").write_bytes(b"no picture")
    report = onnx_of(some, tmp_path, force=True)
    assert report.calibrated == 100
    assert "left out: " in caplog.text
    assert "not a picture" in caplog.text
    assert "no pictures to evaluate on" in caplog.text
    caplog.clear()
    onnx_of(sorted((some / "class 0").iterdir())[:9], tmp_path, force=True)
    assert "pictures are few to calibrate on" in caplog.text
    caplog.clear()
    onnx_of([*sorted((some / "class 0").iterdir())] * 2, tmp_path, force=True)
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
def test_refused(some, tmp_path, monkeypatch, options, error, message):
    needs("onnx")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    given = {"file": "net.onnx", "to": "onnx", "calibrate": some} | options
    with pytest.raises(error, match=message):
        quantize(net(), given.pop("file"), **given)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "pictures"]


def test_pictures_of_other_classes(some, tmp_path):
    needs("onnx", int8=True)
    (tmp_path / "data").mkdir()
    some.rename(tmp_path / "data" / "test")
    with pytest.raises(DataError, match="the model has 10 classes and the pictures 2"):
        onnx_of(tmp_path / "data", tmp_path, evaluate=data.load(str(tmp_path / "data"), "test"))


def test_command(some, tmp_path, monkeypatch, capsys):
    needs("onnx", int8=True)
    monkeypatch.chdir(tmp_path)
    command = ["quantize", str(weights()), "--to", "onnx", "--calibrate", str(some), "--force"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert out.startswith("mnv3_small_cifar.int8.onnx: ")
    assert "of 100 calibration pictures" in out
    assert main([*command[:-1]]) == 1
    assert "exists" in capsys.readouterr().err
    assert main(["predict", "--checkpoint", "mnv3_small_cifar.int8.onnx", str(some / "class 0" / "0.png")]) == 0
    assert main(["quantize", "mnv3_small_cifar", "--to", "onx", "--calibrate", str(some)]) == 1
    assert "unknown format 'onx'" in capsys.readouterr().err
