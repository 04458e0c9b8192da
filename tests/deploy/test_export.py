"""`mnv3 export`: a file gives the model's logits in its runtime and says what it is, or there is no file."""

import configparser
import copy
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import types
import zipfile
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import PIL
import pytest
import timm
import torch
from conftest import ROOT, needs, with_distinct_logits
from exports import ARCH, NAMES, exported, net, weights
from PIL import Image
from torch import nn

import mnv3
from mnv3.arch import VARIANTS
from mnv3.cli.main import main
from mnv3.deploy import FORMATS, export, exporter, int8, load, runtime
from mnv3.errors import ExportError, WeightsError
from mnv3.files.checkpoint import digest
from mnv3.pictures.data import Pictures
from mnv3.pictures.evaluate import evaluate

RUN = [name for name in FORMATS if name != "coreml"]
SLOW = ("executorch", "tflite")
WEIGHTS = 350_000  # bytes of the network's parameters
ODD = ((33, 47), (64, 17), (9, 200))


def each(names, slow=SLOW):
    return [pytest.param(name, marks=pytest.mark.slow if name in slow else ()) for name in names]


def pixels(count, height=32, width=32, channels=3):
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(1))


def close(model, reference, x, atol=1e-4):
    with torch.inference_mode():
        torch.testing.assert_close(model(x), reference(x), rtol=0, atol=atol)


def tiny(name="mnv3_small_cifar", **options):
    return with_distinct_logits(name, arch=ARCH, **options)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Five files, larger than the model takes."""
    folder = tmp_path_factory.mktemp("pictures")
    for i, x in enumerate(torch.rand(5, 6, 7, 3, generator=torch.Generator().manual_seed(2))):
        Image.fromarray((x * 255).byte().numpy()).resize((50, 40), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def stub(monkeypatch):
    """An exporter that takes no time: it gives a file that is there already, or does what a test wants."""
    ready, _ = exported("torchscript")

    def use(write):
        monkeypatch.setitem(FORMATS, "torchscript", replace(FORMATS["torchscript"], write=write))

    use(lambda graph, file: shutil.copy(ready, file))
    return use


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
def test_bytes_to_probabilities(pictures, to):
    """Normalisation, softmax and float16 weights: the same predictions and metrics."""
    file, report = exported(to, whole=True)
    model, half = load(file), FORMATS[to].half
    assert model.metadata["input_type"] == ("float32" if to == "ncnn" else "uint8")
    assert half == (exported(to)[1].bytes - report.bytes > 0.35 * WEIGHTS)
    predictions = mnv3.predict(model, pictures, topk=10, batch_size=2)
    for ours, theirs in zip(predictions, mnv3.predict(net(), pictures, topk=10), strict=True):
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


# --- what goes wrong


@pytest.mark.parametrize(
    "change",
    [lambda y: y + 1e-3, lambda y: y * float("nan"), lambda y: y.flip(1), lambda y: y[:, :5], lambda y: 1 / 0],
    ids=["shifted", "nan", "mixed up", "too few", "raises"],
)
def test_a_wrong_result_is_refused(stub, monkeypatch, tmp_path, change):
    opener = runtime.OPENERS["torchscript"]

    def changed(file, threads):
        run, text = opener(file, threads)
        return lambda x: change(run(x)), text

    monkeypatch.setitem(runtime.OPENERS, "torchscript", changed)
    with pytest.raises(ExportError, match=r"^.+$"):
        export(net(), tmp_path / "a.torchscript", to="torchscript")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("first line\nsecond line"), ExportError),
        (SyntaxError(), ExportError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(28, "No space left on device"), OSError),
        (None, ExportError),
    ],
    ids=str,
)
def test_a_failing_exporter_leaves_nothing(stub, tmp_path, error, expected):
    def write(graph, file):
        file.write_bytes(b"half of it")
        (file.parent / "more").mkdir()
        if error:
            raise error

    stub(write)
    file = tmp_path / "a.torchscript"
    with pytest.raises(expected) as caught:
        export(net(), file, to="torchscript")
    assert not list(tmp_path.iterdir())
    assert "\n" not in str(caught.value)
    file.write_bytes(b"old")
    with pytest.raises(expected):
        export(net(), file, to="torchscript", exist_ok=True)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert file.read_bytes() == b"old"


def test_what_is_there(stub, tmp_path):
    file = tmp_path / "sub" / "a.torchscript"
    export(net(), file, to="torchscript")
    file.write_bytes(b"old")
    with pytest.raises(FileExistsError, match=r"a.torchscript exists: choose another name, or replace it"):
        export(net(), file, to="torchscript")
    assert file.read_bytes() == b"old"
    export(net(), file, to="torchscript", exist_ok=True)
    assert file.read_bytes() == exported("torchscript")[0].read_bytes()
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    (tmp_path / "b.torchscript").mkdir()
    for exist_ok in (False, True):
        with pytest.raises(FileExistsError, match="b.torchscript"):
            export(net(), tmp_path / "b.torchscript", to="torchscript", exist_ok=exist_ok)
        (tmp_path / "c.bin").write_bytes(b"of c.xml")
        with pytest.raises(FileExistsError, match="c.bin exists and belongs to another"):
            export(net(), tmp_path / "c.param", to="ncnn", exist_ok=exist_ok)
    with pytest.raises(OSError, match="a.torchscript"):
        export(net(), file / "d.torchscript", to="torchscript")


@pytest.mark.parametrize(
    ("to", "module"), [(to, module) for to, entry in FORMATS.items() for module in entry.runtime + entry.writers]
)
def test_missing_packages(monkeypatch, tmp_path, to, module):
    entry = FORMATS[to]
    for other in entry.runtime + entry.writers:
        monkeypatch.setitem(sys.modules, other, None if other == module else types.ModuleType(other))
    file, extra = tmp_path / f"a{entry.suffix}", entry.extra
    message = rf"^{to} needs {module} \(.*\): pip install 'mnv3\[{extra}\]'$"
    with pytest.raises(ImportError, match=message):
        export(net(), file, to=to)
    assert not list(tmp_path.iterdir())
    file.touch()
    if to != "coreml":  # what only writes it is not asked for to run it
        error, said = (ImportError, message) if module in entry.runtime else (WeightsError, None)
        with pytest.raises(error, match=said):
            load(file)
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert re.search(rf"^{module.replace('_', '-')}\b", config["options.extras_require"][extra], re.MULTILINE)


@pytest.mark.parametrize(
    ("to", "options", "message"),
    [
        ("onx", {}, "unknown format 'onx'. Did you mean 'onnx'"),
        ("onnx", {}, "a file for onnx ends in .onnx"),
        ("torchscript", {"dynamic": ["bach"]}, "dynamic: 'bach' is unknown. Did you mean 'batch'"),
        (
            "torchscript",
            {"dynamic": "batch"},
            r"dynamic='batch': expected a list of names, such as \['batch'\]. Allowed:",
        ),
        (
            "torchscript",
            {"dynamic": True},
            r"dynamic=True: expected a list of names, such as \['batch'\]. Allowed: batch",
        ),
        ("torchscript", {"dynamic": [True]}, "dynamic: True is unknown. Allowed: batch, size"),
        ("tflite", {"dynamic": ["batch"]}, "tflite has no dynamic batch: pt2, torchscript, onnx, openvino have"),
        ("torchscript", {"half": True}, "torchscript has no float16 weights: onnx, openvino, tflite, ncnn, coreml"),
        ("ncnn", {"batch": 2}, "ncnn takes one picture at a time, not 2"),
        *(("torchscript", {"batch": value}, f"batch={value}: expected") for value in (0, 1.5)),
        *(("torchscript", {"size": value}, f"size={value}: expected") for value in (0, -1, 1.5, 100_000)),
        ("torchscript", {"size": 4096, "batch": 5}, "batch=5: expected a whole number from 1 to 4 pictures of 4096 px"),
        ("torchscript", {"batch": 100_000}, "batch=100000: expected a whole number from 1 to 4096 pictures of 32 px"),
        ("torchscript", {"pictures": "none.png"}, "none.png"),
    ],
)
def test_wrong_arguments(tmp_path, to, options, message):
    suffix = FORMATS[to].suffix if options else ".pt"
    with pytest.raises(ValueError, match=message):
        export(net(), tmp_path / f"a{suffix}", to=to, **options)
    assert not list(tmp_path.iterdir())


def test_wrong_models(tmp_path):
    none = tiny()
    none.reset_classifier(0)
    for model, message in (
        (none, r"no classifier \(num_classes=0\)"),
        (nn.Linear(3, 3), "this Linear is none of mnv3.create_model"),
        (load(exported("torchscript")[0]), "this Exported is none of mnv3.create_model"),
        (timm.create_model("resnet10t"), "this ResNet is none of"),
        (mnv3.MobileNetV3(), "this MobileNetV3 is none of"),
        (mnv3.fuse(tiny()), "is it fused already"),
    ):
        with pytest.raises(ValueError, match=message):
            export(model, tmp_path / "a.torchscript", to="torchscript")
    assert not list(tmp_path.iterdir())


def test_pictures_to_check_by(stub, pictures, tmp_path):
    file = tmp_path / "a.torchscript"
    assert export(net(), file, to="torchscript", pictures=pictures).pictures == 5
    many = [pictures / f"{i % 5}.png" for i in range(40)]
    assert export(net(), file, to="torchscript", pictures=iter(many), exist_ok=True).pictures == 16
    (tmp_path / "a.png").write_bytes(b"no picture")
    for wrong, message in ((tmp_path / "a.png", "not a picture"), ([], "no pictures in")):
        with pytest.raises(ValueError, match=message):
            export(net(), file, to="torchscript", pictures=wrong, exist_ok=True)


@pytest.mark.parametrize("damage", ["half", "empty", "foreign"])
@pytest.mark.parametrize("to", each(RUN))
def test_damaged_files(tmp_path, to, damage):
    source, _ = exported(to)
    parts = [path.name for path in source.parent.iterdir()]
    for name in parts:
        shutil.copytree(source.parent, tmp_path / name)
        file, part = tmp_path / name / source.name, tmp_path / name / name
        content = part.read_bytes()
        part.write_bytes({"half": content[: len(content) // 2], "empty": b"", "foreign": b"\x89PNG\r\n" * 999}[damage])
        with pytest.raises(WeightsError, match=rf"^{re.escape(str(file))}: .+$"):
            load(file)
        part.unlink()
        with pytest.raises((ValueError, WeightsError), match=rf"{re.escape(name)}.* (no such file|missing)"):
            load(file)


def test_files_of_others(tmp_path):
    for name in ("a.pt", "a.safetensors", "a"):
        (tmp_path / name).touch()
        with pytest.raises(ValueError, match=r"no exported file. .*Allowed: .pt2, .torchscript"):
            load(tmp_path / name)
    torch.jit.save(torch.jit.trace(net(), pixels(1)), tmp_path / "a.torchscript")
    for text in (None, "[]", "{}", '{"format": "torchscript"}', "no JSON"):
        if text:
            extra = {"mnv3": text}
            torch.jit.save(torch.jit.load(tmp_path / "a.torchscript"), tmp_path / "a.torchscript", _extra_files=extra)
        with pytest.raises(WeightsError, match=r"^.*a.torchscript: no SHA-256 at its end: .* written by mnv3\?$"):
            load(tmp_path / "a.torchscript")


def test_onnx_of_others(tmp_path):
    file, _ = exported("onnx")
    import onnx

    model = onnx.load(file)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(WeightsError, match=r"a.onnx: no SHA-256 at its end: .* or not written by mnv3\?$"):
        load(tmp_path / "a.onnx")


# --- the command line


@pytest.fixture
def run(capfd, monkeypatch, tmp_path):
    """Status, standard output, standard error of a command, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        capfd.readouterr()
        try:
            status = main([str(arg) for arg in args])
        except SystemExit as error:
            status = error.code
        return status, *capfd.readouterr()

    return run


def test_command(run, tmp_path):
    folder = weights()
    command = ("export", folder, "--to", "torchscript", "--dynamic", "batch,size", "--softmax")
    status, out, err = run(*command)
    assert (status, err) == (0, "")
    assert re.fullmatch(r"mnv3_small_cifar.torchscript: .* top-1 agrees on 100 %\n", out)
    close(load("mnv3_small_cifar.torchscript"), lambda x: net()(x).log_softmax(1), pixels(2, 33, 47))
    status, out, err = run(*command)
    assert (status, out) == (1, "")
    assert err == f"mnv3: mnv3_small_cifar.torchscript exists: {err.split(': ', 2)[2]}"
    assert err.count("\n") == 1
    assert run(*command, "--force", "--size", 40, "--batch", 3, "--normalize")[0] == 0
    meta = load("mnv3_small_cifar.torchscript").metadata
    assert (meta["input_size"], meta["batch"], meta["normalize"]) == ([3, 40, 40], 3, True)
    weights_file = ROOT / "weights" / "mnv3_small_cifar.cifar10" / "model.safetensors"
    status, _, err = run("export", weights_file, "--arch", "mnv3_small_cifar", "--to", "torchscript")
    assert (status, "torchscript exists" in err) == (1, True)
    assert [path.name for path in tmp_path.iterdir()] == ["mnv3_small_cifar.torchscript"]


@pytest.mark.parametrize(("command", "formats"), [("export", FORMATS), ("quantize", int8.WRITERS)])
def test_help_names_the_formats(run, command, formats):
    *most, last = formats
    assert f"--to FORMAT {', '.join(most)} or {last} " in " ".join(run(command, "--help")[1].split())


def test_command_faults(run, tmp_path):
    folder, (file, _) = weights(), exported("torchscript")
    for args, message in (
        ((folder, "--to", "onx"), "unknown format 'onx'. Did you mean 'onnx'"),
        ((folder, "--to", "torchscript", "-o", "a.pt"), "a.pt: a file for torchscript ends in .torchscript"),
        ((folder, "--to", "torchscript", "--dynamic", "batch,sice"), "'sice' is unknown. Did you mean 'size'"),
        ((folder, "--to", "torchscript", "--half"), "torchscript has no float16 weights"),
        ((file, "--to", "torchscript"), "this Exported is none of mnv3.create_model"),
        (("mnv3_smal", "--to", "torchscript"), "Did you mean 'mnv3_small"),
        ((folder, "--to", "torchscript", "--pictures", "none"), "none"),
    ):
        status, out, err = run("export", *args)
        assert (status, out) == (1, "")
        assert err.startswith("mnv3: ")
        assert message in err
        assert err.count("\n") == 1
    assert run("export", folder)[0] == 2
    assert run("export", folder, "--to", "torchscript", "--size", 0)[0] == 2
    assert not list(tmp_path.iterdir())


def test_predict_and_eval_commands(run, pictures, tmp_path):
    folder, (file, _) = weights(), exported("onnx")
    options = ("predict", *sorted(pictures.iterdir()), "--json", "--topk", 10)
    status, out, err = run(*options, "--checkpoint", file)
    assert (status, err) == (0, "")
    for ours, theirs in zip(out.splitlines(), run(*options, "--checkpoint", folder)[1].splitlines(), strict=True):
        ours, theirs = ({e["label"]: e["prob"] for e in json.loads(line)["topk"]} for line in (ours, theirs))
        assert ours == pytest.approx(theirs, abs=1e-4)
    for option in (("--model", "mnv3_small_cifar"), ("--device", "cuda")):
        status, out, err = run("predict", pictures / "0.png", "--checkpoint", file, *option)
        assert (status, out) == (1, "")
        assert err == f"mnv3: {file}: an exported file says which model it is, and runs on the CPU\n"
    (tmp_path / "bad.onnx").write_bytes(file.read_bytes()[:99999])
    status, out, err = run("predict", pictures / "0.png", "--checkpoint", "bad.onnx")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("mnv3: bad.onnx: no SHA-256 at its end: cut off")
    for i, name in enumerate(NAMES):
        (tmp_path / "data" / "test" / name).mkdir(parents=True)
        shutil.copy(pictures / f"{i % 5}.png", tmp_path / "data" / "test" / name)
    command = ("eval", "--data", "data", "--json")
    first, second = run(*command, "0.json", file), run(*command, "1.json", folder)
    assert first[1] == second[1]
    ours, theirs = (json.loads((tmp_path / name).read_text()) for name in ("0.json", "1.json"))
    assert ours.pop("loss") == pytest.approx(theirs.pop("loss"), abs=1e-4)
    assert ours == theirs


@pytest.mark.slow
def test_without_a_home():
    """As in a container under a number that no user has, if the tests may take one."""
    code = """
import sys, mnv3
from mnv3.deploy import export, load
export(mnv3.load_checkpoint(sys.argv[1]), "a.onnx", to="onnx")
print(load("a.onnx").metadata["format"])
"""
    needs("onnx")
    env = {k: v for k, v in os.environ.items() if k not in ("HOME", "USER", "LOGNAME", "HF_HOME", "TORCH_HOME")}
    env |= {"PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(weights(), f"{folder}/net")
        for path in (folder, *Path(folder).rglob("*")):
            Path(path).chmod(0o777)
        options = {"cwd": folder, "env": env, "capture_output": True, "text": True}
        command = [sys.executable, "-c", code, "net"]
        stranger = {}
        if os.geteuid() == 0:
            stranger = {"user": 54321, "group": 54321}
            try:
                readable = subprocess.run([sys.executable, "-c", "import torch, mnv3"], **options, **stranger)
                stranger = stranger if readable.returncode == 0 else {}
            except OSError:  # root's Python is behind a closed door
                stranger = {}
        result = subprocess.run(command, **options, **stranger, timeout=120)
        assert (result.returncode, result.stdout) == (0, "onnx\n"), result.stderr
        assert sorted(path.name for path in Path(folder).iterdir()) == ["a.onnx", "net"]


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
