"""`mnv3 export`: what goes wrong is said, and leaves nothing; damaged files and those of others are refused."""

import configparser
import re
import shutil
import sys
import types
from dataclasses import replace

import pytest
import timm
import torch
from conftest import ROOT, with_distinct_logits
from exports import ARCH, exported, net, photos, pixels
from torch import nn

import mnv3
from mnv3.deploy import FORMATS, export, load, runtime
from mnv3.errors import ExportError, WeightsError

SLOW = ("executorch", "tflite")


def tiny(name="mnv3_small_cifar", **options):
    return with_distinct_logits(name, arch=ARCH, **options)


@pytest.fixture
def stub(monkeypatch):
    """An exporter that takes no time: it gives a file that is there already, or does what a test wants."""
    ready, _ = exported("torchscript")

    def use(write):
        monkeypatch.setitem(FORMATS, "torchscript", replace(FORMATS["torchscript"], write=write))

    use(lambda graph, file: shutil.copy(ready, file))
    return use


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


def test_pictures_to_check_by(stub, tmp_path):
    file = tmp_path / "a.torchscript"
    assert export(net(), file, to="torchscript", pictures=photos()).pictures == 5
    many = [photos() / f"{i % 5}.png" for i in range(40)]
    assert export(net(), file, to="torchscript", pictures=iter(many), exist_ok=True).pictures == 16
    (tmp_path / "a.png").write_bytes(b"no picture")
    for wrong, message in ((tmp_path / "a.png", "not a picture"), ([], "no pictures in")):
        with pytest.raises(ValueError, match=message):
            export(net(), file, to="torchscript", pictures=wrong, exist_ok=True)


@pytest.mark.parametrize("damage", ["half", "empty", "foreign"])
@pytest.mark.parametrize(
    "to",
    [pytest.param(to, marks=pytest.mark.slow if to in SLOW else ()) for to in FORMATS if to != "coreml"],
)
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
