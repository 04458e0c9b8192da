"""Exported files are opened only as they were written, and say what they may; nothing else is waited for or lost."""

import json
import os
import random
import re
import shutil
import zipfile

import pytest
import torch
from exports import exported, net
from PIL import Image

from mnv3.deploy import FORMATS, export, load
from mnv3.deploy.metadata import check_metadata
from mnv3.deploy.seal import read, seal
from mnv3.deploy.writers import attach, beside
from mnv3.errors import WeightsError

BESIDE = [name for name, entry in FORMATS.items() if not entry.own_metadata and name != "coreml"]
SEALED = ["pt2", "torchscript", "onnx", "openvino"]
GOOD = {
    "format": "torchscript",
    "num_classes": 2,
    "label_names": ["cat", "dog"],
    "input_size": [3, 32, 32],
    "input_type": "float32",
    "batch": 1,
    "dynamic": [],
    "normalize": False,
    "softmax": False,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.2, 0.2, 0.2],
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
}


@pytest.fixture
def made(tmp_path):
    """A file of a format as far as its SHA-256 goes; no runtime can open it."""

    def make(to, name="net", content=b"\x01weights" * 300):
        file = tmp_path / f"{name}{FORMATS[to].suffix}"
        if to in ("pt2", "torchscript"):
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("net/data", content)
        elif to == "openvino":
            file.write_text('<?xml version="1.0"?>\n<net><rt_info><mnv3 value="{}" /></rt_info></net>\n')
        else:
            file.write_bytes(content)
        if to in ("openvino", "ncnn"):
            file.with_suffix(".bin").write_bytes(content)
        if to in BESIDE:
            attach(file, GOOD | {"format": to})
        seal(file)
        return file

    return make


# --- SHA-256


def same_json(changed, content):
    """Whether a change was of a space: only what a JSON file says counts."""
    try:
        return json.loads(changed) == json.loads(content)
    except ValueError:
        return False


@pytest.mark.parametrize("to", [*SEALED, *BESIDE])
def test_a_changed_bit_anywhere(made, tmp_path, to):
    file = made(to)
    assert read(file).content == file.read_bytes()
    seal(file)
    assert read(file).content == file.read_bytes(), "twice is once"
    rng, spaces = random.Random(0), 0
    for part in sorted(tmp_path.iterdir()):
        content = part.read_bytes()
        places = [*range(-70, 0), *(rng.randrange(len(content)) for _ in range(100))]
        for place in places:
            changed = bytearray(content)
            changed[place] ^= 1 << rng.randrange(8)
            part.write_bytes(changed)
            if part == beside(file) and same_json(changed, content):
                spaces += 1
                continue
            with pytest.raises(WeightsError, match=rf"^{re.escape(str(file))}: .+$"):
                read(file)
        for cut in (content[:-2], content[1:], content + b"\0", b""):
            part.write_bytes(cut)
            with pytest.raises(WeightsError, match=r"^.*: .+$"):
                read(file)
        part.write_bytes(content)
    assert spaces < 20
    read(file)


@pytest.mark.parametrize("to", ["openvino", "ncnn"])
def test_a_file_with_the_bin_of_another(made, to):
    old, new = made(to, "old"), made(to, "new", content=b"\x02weights" * 300)
    for name in ("a", "b"):
        source, weights = (old, new) if name == "a" else (new, old)
        file = source.with_name(f"{name}{source.suffix}")
        shutil.copy(source, file)
        shutil.copy(weights.with_suffix(".bin"), file.with_suffix(".bin"))
        if to == "ncnn":
            shutil.copy(beside(source), beside(file))
        with pytest.raises(WeightsError, match=r"written together: damaged|the .bin is not what was written"):
            read(file)


@pytest.mark.parametrize("to", BESIDE)
def test_files_of_0_1_0(made, to):
    """Their JSON has no digest of its own, files with their metadata inside have none at all."""
    file = made(to)
    metadata = json.loads(beside(file).read_text())
    del metadata["files"][".json"]
    beside(file).write_text(json.dumps(metadata))
    with pytest.raises(WeightsError, match=r"no SHA-256 of its own: of mnv3 0.1.0\? Export it again$"):
        read(file)


@pytest.mark.parametrize("to", ["pt2", "torchscript", "onnx", "openvino"])
def test_sealed_files_open_everywhere(to):
    """The SHA-256 disturbs no one's reader, at the path or beside it."""
    (file, _), x = exported(to), torch.randn(1, 3, 32, 32)
    assert b"mnv3-sha256:" in file.read_bytes()[-80:]
    if to == "pt2":
        logits = torch.export.load(file).module()(x)
    elif to == "torchscript":
        logits = torch.jit.load(file)(x)
    elif to == "onnx":
        import onnx
        import onnxruntime

        onnx.checker.check_model(onnx.load(file), full_check=True)
        logits = torch.from_numpy(onnxruntime.InferenceSession(file).run(None, {"input": x.numpy()})[0])
    else:
        import openvino

        logits = torch.from_numpy(
            openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(x.numpy())[0]
        )
    torch.testing.assert_close(logits, net()(x).detach(), rtol=0, atol=1e-4)


# --- special files


def special(path, kind):
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_special_files(made, tmp_path, kind):
    """Refused at once: nothing is waited for."""
    special(tmp_path / "a.onnx", kind)
    with pytest.raises(ValueError, match=r"a.onnx: not a file"):
        load(tmp_path / "a.onnx")
    for to, part in (("openvino", ".bin"), ("ncnn", ".bin"), ("tflite", ".tflite.json")):
        pytest.importorskip(FORMATS[to].runtime[0])
        file = made(to)
        path = file.with_name(f"net{part}")
        path.unlink()
        special(path, kind)
        with pytest.raises(WeightsError, match=rf"its net{part} is .*not a file$"):
            load(file)
        shutil.rmtree(path) if kind == "folder" else path.unlink()


# --- metadata


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("batch", value) for value in (0, -1, 1.0, True, "1", None, 10**30)),
        *(("num_classes", value) for value in (0, "x", 2.5, 10**9, [2])),
        *(("label_names", value) for value in (["cat"], ["cat", 1], "no", {"cat": 1, "dog": 2})),
        *(("input_size", value) for value in ([3, 32], [3, 0, 32], [3, "32", 32], 32, [3, 1e3, 32], [3, 10**9, 1])),
        ("input_size", [3, 16000, 16000]),
        *(("input_type", value) for value in ("float16", "__doc__", None, ["uint8"])),
        *(("dynamic", value) for value in ("batch", ["width"], [["batch"]], None, {"batch": 1})),
        *(("normalize", value) for value in (0, "no", None)),
        *((key, value) for key in ("mean", "std") for value in ([0.5, 0.5], [0.5, 0.5, "x"], 0.5, [1e300] * 3, None)),
        *(("std", value) for value in ([0.2, 0.2, 0.0], [0.2, 0.2, -0.2], [float("nan")] * 3)),
        *(("crop_pct", value) for value in (1e-3, 0, 1.5, "1", float("inf"))),
        ("interpolation", "cubic"),
        ("crop_mode", "middle"),
    ],
    ids=str,
)
def test_wrong_metadata(tmp_path, name, value):
    file = tmp_path / "a.torchscript"
    assert check_metadata(file, "torchscript", json.dumps(GOOD)) == GOOD
    with pytest.raises(WeightsError) as caught:
        check_metadata(file, "torchscript", json.dumps(GOOD | {name: value}))
    assert str(caught.value).startswith(f"{file}: it says {name}=")
    assert len(str(caught.value).splitlines()[0]) == len(str(caught.value)) < 500


def test_missing_metadata(tmp_path):
    file = tmp_path / "a.torchscript"
    for name in GOOD:
        with pytest.raises(WeightsError, match=r"a.torchscript: it does not say .*: not written by mnv3\?$"):
            check_metadata(file, "torchscript", json.dumps({key: value for key, value in GOOD.items() if key != name}))
    for text in (None, "", "[]", "null", "no JSON", '{"format": ["onnx"]}', "[" * 100_000):
        with pytest.raises(WeightsError, match="it does not say what it takes and gives"):
            check_metadata(file, "torchscript", text)
    with pytest.raises(WeightsError, match="says that it is of the format torchscript, not onnx"):
        check_metadata(tmp_path / "a.onnx", "onnx", json.dumps(GOOD))


def test_a_whole_file_with_wrong_metadata(tmp_path, fails):
    """By the command: one line."""
    extra = {"mnv3": ""}
    module = torch.jit.load(exported("torchscript")[0], _extra_files=extra)
    file = tmp_path / "a.torchscript"
    torch.jit.save(module, file, _extra_files={"mnv3": json.dumps(json.loads(extra["mnv3"]) | {"batch": 0})})
    seal(file)
    picture = tmp_path / "a.png"
    Image.new("RGB", (32, 32)).save(picture)
    assert "it says batch=0, expected a whole number from 1 to" in fails("predict", picture, "--checkpoint", file)


# --- what is replaced


def test_what_goes_with_a_file_is_replaced_only_if_mnv3_wrote_it(made, tmp_path):
    for to, part in (("tflite", "a.tflite.json"), ("ncnn", "a.bin"), ("ncnn", "a.param.json"), ("openvino", "a.bin")):
        path, file = tmp_path / part, tmp_path / f"a{FORMATS[to].suffix}"
        for content in (b"{}", b"mine", b'{"format": "mine"}'):
            path.write_bytes(content)
            for exist_ok in (False, True):
                with pytest.raises(FileExistsError, match=rf"{part} exists and belongs to another file"):
                    export(net(), file, to=to, exist_ok=exist_ok)
            assert [other.name for other in tmp_path.iterdir()] == [part]
            assert path.read_bytes() == content
        path.unlink()
    file = made("tflite", "b")
    file.unlink()
    with pytest.raises(FileExistsError, match="b.tflite.json exists"):
        export(net(), file, to="tflite")


@pytest.mark.parametrize("to", ["openvino", pytest.param("tflite", marks=pytest.mark.slow), "ncnn"])
def test_what_mnv3_wrote_is_replaced(tmp_path, to):
    file = shutil.copytree(exported(to)[0].parent, tmp_path / "old") / f"net{FORMATS[to].suffix}"
    before = sorted(file.parent.iterdir())
    export(net(), file, to=to, exist_ok=True, softmax=True)
    assert sorted(file.parent.iterdir()) == before
    assert load(file).metadata["softmax"]


def test_links_and_folders_are_left_alone(tmp_path):
    file, target = tmp_path / "a.torchscript", tmp_path / "kept"
    target.write_bytes(b"mine")
    file.symlink_to(target)
    with pytest.raises(FileExistsError, match=r"a.torchscript is a link: choose another name"):
        export(net(), file, to="torchscript", exist_ok=True)
    assert file.is_symlink()
    file.unlink()
    file.symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match=r"a.torchscript exists"):
        export(net(), file, to="torchscript")
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(FileExistsError, match=r"a.torchscript is a device"):
        export(net(), file, to="torchscript", exist_ok=True)
    package = tmp_path / "a.mlpackage"
    package.mkdir()
    (package / "mine").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"a.mlpackage is a folder: choose another name"):
        export(net(), package, to="coreml", exist_ok=True)
    assert target.read_bytes() == (package / "mine").read_bytes() == b"mine"
