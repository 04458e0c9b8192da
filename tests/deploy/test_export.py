"""`mnv3 export`: a file gives the model's logits in its runtime and says what it is, or there is no file."""

import copy
import json
import multiprocessing
import re
import shutil
import tempfile
import zipfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import PIL
import pytest
import timm
import torch
from conftest import ROOT, needs, with_distinct_logits
from exports import ARCH, NAMES, close, exported, net, photos, pixels, weights
from PIL import Image
from torch import nn

import mnv3
from mnv3.arch import VARIANTS
from mnv3.deploy import FORMATS, export, exporter, load
from mnv3.files.checkpoint import digest
from mnv3.pictures.data import Pictures
from mnv3.pictures.evaluate import evaluate

RUN = [name for name in FORMATS if name != "coreml"]
SLOW = ("executorch", "tflite")
WEIGHTS = 350_000  # bytes of the network's parameters
ODD = ((33, 47), (64, 17), (9, 200))


def each(names, slow=SLOW):
    return [pytest.param(name, marks=pytest.mark.slow if name in slow else ()) for name in names]


def tiny(name="mnv3_small_cifar", **options):
    return with_distinct_logits(name, arch=ARCH, **options)


# --- what is written


@pytest.mark.parametrize("to", each(RUN))
def test_logits(to):
    file, report = exported(to)
    assert (report.file, report.format, report.pictures, report.agreement) == (file, to, 16, 100)
    assert report.bytes == sum(path.stat().st_size for path in file.parent.iterdir())
    assert report.difference < 1e-5 * report.largest
    assert f"{report.bytes / 1e6:.2f} MB; on 16 pictures the logits differ by at most" in str(report)
    model = load(file)
    for count in (0, 1, 2, 5):
        close(model, net(), pixels(count))
    for size in ODD:
        if "size" in FORMATS[to].dynamic:
            close(model, net(), pixels(2, *size))
        else:
            refused = rf"^this file takes pictures of \(B, 3, 32, 32\), got \(1, 3, {size[0]}, {size[1]}\)$"
            with pytest.raises(ValueError, match=refused):
                model(pixels(1, *size))
    for wrong in (pixels(1)[0], pixels(1, channels=1)):
        with pytest.raises(ValueError, match="this file takes pictures of"):
            model(wrong)
    close(model.to(torch.float64), net(), pixels(1))  # it stays as it is, as it would on a GPU


@pytest.mark.parametrize("to", each(RUN))
def test_metadata(to):
    entry, meta, cfg = FORMATS[to], load(exported(to)[0]).metadata, net().pretrained_cfg
    expected = {
        "format": to,
        "architecture": "mnv3_small_cifar",
        "sha256": digest(weights() / "model.safetensors"),
        "num_classes": 10,
        "label_names": NAMES,
        "input_size": [3, 32, 32],
        "input_type": "float32",
        "layout": "NHWC" if to == "tflite" else "NCHW",
        "dynamic": list(entry.dynamic),
        "batch": 1 if entry.dynamic or to == "ncnn" else 2,
        "mean": list(cfg["mean"]),
        "std": list(cfg["std"]),
        **dict.fromkeys(("normalize", "softmax", "half"), False),
        **{key: cfg.get(key) for key in ("interpolation", "crop_pct", "crop_mode", "license")},
    }
    assert {key: meta[key] for key in expected} == expected
    assert set(meta["versions"]) == {"mnv3", "torch", "timm", *entry.runtime, *entry.writers}
    assert all(re.match(r"\d+", version) for version in meta["versions"].values())
    assert str(Path(tempfile.gettempdir())) not in json.dumps(meta), "where the weights lay is nobody's business"


def test_versions_of_packages_with_another_name():
    assert exporter._version("PIL") == PIL.__version__


@pytest.mark.parametrize("to", each(RUN))
def test_bytes_to_probabilities(to):
    """Normalisation, softmax and float16 weights: the same predictions and metrics."""
    file, report = exported(to, whole=True)
    model, half = load(file), FORMATS[to].half
    assert model.metadata["input_type"] == ("float32" if to == "ncnn" else "uint8")
    assert half == (exported(to)[1].bytes - report.bytes > 0.35 * WEIGHTS)
    predictions = mnv3.predict(model, photos(), topk=10, batch_size=2)
    for ours, theirs in zip(predictions, mnv3.predict(net(), photos(), topk=10), strict=True):
        ours, theirs = ({entry["label"]: entry["prob"] for entry in p.topk} for p in (ours, theirs))
        assert ours == pytest.approx(theirs, abs=2e-2 if half else 1e-4)
        assert max(ours.values()) > 2 * min(ours.values())
    held = Pictures((torch.rand(20, 3, 32, 32) * 255).byte(), torch.arange(20) % 10, NAMES)
    ours, theirs = (asdict(evaluate(evaluated, held)) for evaluated in (model, net()))
    assert ours.pop("loss") == pytest.approx(theirs.pop("loss"), abs=1e-2 if half else 1e-4)
    assert ours == theirs


def test_onnx_by_itself(tmp_path):
    """Without mnv3, in another place."""
    file, _ = exported("onnx")
    import onnx
    import onnxruntime

    assert [path.name for path in file.parent.iterdir()] == ["net.onnx"]
    moved = shutil.copy(file, tmp_path / "x.onnx")
    session = onnxruntime.InferenceSession(str(moved), providers=["CPUExecutionProvider"])
    for x in (pixels(1), pixels(3), pixels(2, 33, 47)):
        close(lambda x: torch.from_numpy(session.run(["output"], {"input": x.numpy()})[0]), net(), x)
    model = onnx.load(moved)
    onnx.checker.check_model(model, full_check=True)
    assert [opset.version for opset in model.opset_import if not opset.domain] == [18]
    operators = Counter(node.op_type for node in model.graph.node)
    assert not {"BatchNormalization", "Dropout", "Identity", "HardSigmoid"} & set(operators)
    for tensor in model.graph.initializer:  # random bytes may spell anything
        tensor.ClearField("raw_data")
    text = model.SerializeToString()
    assert len(text) < 1e5
    for path in (str(ROOT), "/work", "site-packages", ".py", tempfile.gettempdir()):
        assert path.encode() not in text


def test_bytes_are_what_goes_in():
    x = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    mean, std = (torch.tensor(net().pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    expected = net()((x / 255 - mean) / std).softmax(1).detach()
    scripted = torch.jit.load(exported("torchscript", whole=True)[0])
    torch.testing.assert_close(scripted(x), expected, rtol=0, atol=1e-5)
    file, _ = exported("onnx", whole=True)
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].type == "tensor(uint8)"
    assert torch.from_numpy(session.run(None, {"input": x.numpy()})[0]).allclose(expected, rtol=0, atol=2e-2)


def test_nothing_in_place():
    scripted = torch.jit.load(exported("torchscript")[0])
    graph = str(scripted.inlined_graph)
    assert "aten::hardswish(" in graph
    assert not re.findall(r"aten::\w*[a-z]_\(", graph)
    x = pixels(1)
    scripted(x)
    assert x.equal(pixels(1))


def test_pt2_has_the_weights_alone(tmp_path):
    export(net(), tmp_path / "a.pt2", to="pt2", batch=200)  # as an example it would be 2.4 MB
    assert (tmp_path / "a.pt2").stat().st_size < 2 * WEIGHTS
    assert sum(i.file_size for i in zipfile.ZipFile(tmp_path / "a.pt2").infolist() if "sample_inputs" in i.filename) < 9


@pytest.mark.slow
def test_core_ml(tmp_path):
    plain, half = (exported("coreml", whole=whole)[1] for whole in (False, True))
    for report in (plain, half):
        assert (report.difference, report.agreement) == (None, None)
        assert "not run: coreml runs only on a Mac" in str(report)
        assert [path.name for path in report.file.parent.iterdir()] == ["net.mlpackage"]
    assert plain.bytes - half.bytes > 0.35 * WEIGHTS
    file = shutil.copytree(plain.file, tmp_path / "a.mlpackage")
    assert export(net(), file, to="coreml", half=True, exist_ok=True).bytes < plain.bytes - 0.35 * WEIGHTS
    assert [path.name for path in tmp_path.iterdir()] == ["a.mlpackage"]
    with pytest.raises(ValueError, match="only a Mac or an iPhone"):
        load(file)


# --- which models


def test_the_model_stays_as_it_was(tmp_path):
    model = tiny(drop_rate=0.9, drop_path_rate=0.9)
    evaluated = copy.deepcopy(model)
    model.train()
    model.blocks[2].eval()  # frozen
    modes = [(module.training, getattr(module, "inplace", None)) for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = list(model.parameters())
    export(model, tmp_path / "a.torchscript", to="torchscript")
    assert [(module.training, getattr(module, "inplace", None)) for module in model.modules()] == modes
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(p is q and p.requires_grad for p, q in zip(model.parameters(), parameters, strict=True))
    close(load(tmp_path / "a.torchscript"), evaluated, pixels(2))


def test_other_states(tmp_path):
    states = (copy.deepcopy(net()).bfloat16(), torch.compile(net()), copy.deepcopy(net()).double())
    for i, model in enumerate(states):
        file = tmp_path / f"{i}.torchscript"
        assert export(model, file, to="torchscript").difference < 1e-4
        reference = net() if i else copy.deepcopy(model).float()
        close(load(file), reference, pixels(2))
        same = load(file).metadata["sha256"] == digest(weights() / "model.safetensors")
        assert same == (i == 1)


@pytest.mark.parametrize(
    "kwargs",
    [{"num_classes": 1}, {"num_classes": 2, "width": 0.5}, {"se_order": "se-act"}, {"in_chans": 1}],
    ids=str,
)
def test_other_models(tmp_path, kwargs):
    model, channels = tiny(**kwargs), kwargs.get("in_chans", 3)
    export(model, tmp_path / "a.torchscript", to="torchscript")
    opened = load(tmp_path / "a.torchscript")
    close(opened, model, pixels(2, channels=channels))
    assert (opened.num_classes, opened.in_chans) == (model.num_classes, channels)
    assert len(opened.metadata["mean"]) == len(opened.metadata["std"]) == channels
    if channels == 1:
        export(model, tmp_path / "b.torchscript", to="torchscript", normalize=True)
        with pytest.raises(ValueError, match="in_chans=1: files are read as RGB"):
            export(model, tmp_path / "c.torchscript", to="torchscript", pictures=tmp_path)


@pytest.mark.parametrize("to", each([n for n in RUN if "size" in FORMATS[n].dynamic], ("onnx", "openvino")))
def test_tensorflow_padding_at_any_size(tmp_path, monkeypatch, to):
    needs(to)
    model, file = tiny("mnv3_small_tf"), tmp_path / f"a{FORMATS[to].suffix}"
    started = []
    monkeypatch.setattr(multiprocessing, "Process", lambda *args, **kwargs: started.append(kwargs))
    export(model, file, to=to, size=64, dynamic=("size", "batch"))
    assert not started, "OpenVINO's converter reports to its makers, from a process of its own"
    opened = load(file)
    for size in ((64, 64), (33, 47), (90, 65)):
        close(opened, model, pixels(2, *size))


def test_no_padding_by_name():
    """padding='same' would be another operator in every exporter."""
    for name in VARIANTS:
        model = mnv3.create_model(name, device="meta")
        assert not [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and isinstance(m.padding, str)]


# --- real weights


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "to"),
    [
        ("small", "onnx"),
        ("large_minimal", "openvino"),
        ("large_minimal", "executorch"),
        ("small", "tflite"),
        ("small", "ncnn"),
    ],
)
def test_real_weights(shared, tmp_path, name, to):
    """timm's own model of the same file, on photographs."""
    needs(to)
    theirs = f"tf_mobilenetv3_{name}_100"
    source = shared / "weights" / "hub" / "timm" / f"{theirs}.in1k"
    reference = timm.create_model(theirs, checkpoint_path=str(source / "model.safetensors")).eval()
    photos = sorted((shared / "images" / "imagenet_half").glob("*.jpg"))[::60][:8]
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(reference))
    x = torch.stack([transform(Image.open(path).convert("RGB")) for path in photos])
    assert x.shape == (8, 3, 224, 224)
    file = tmp_path / f"a{FORMATS[to].suffix}"
    report = export(mnv3.load_checkpoint(source), file, to=to, dynamic=FORMATS[to].dynamic, pictures=photos)
    assert (report.pictures, report.agreement) == (8, 100)
    opened = load(file)
    with torch.inference_mode():
        logits, expected = opened(x), reference(x)
    assert (logits - expected).abs().max() < 1e-3
    assert logits.argmax(1).equal(expected.argmax(1))
    assert logits.argmax(1).unique().numel() > 4
    if FORMATS[to].dynamic:
        close(opened, reference, x[:2, :, :193, 17:], atol=1e-3)
