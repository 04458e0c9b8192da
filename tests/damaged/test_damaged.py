"""Damaged files of every format: refused in one line, or read as they were meant; in bounded time and memory.

MNV3_DAMAGED=1000 takes so many cases a format in place of CI's 200 (of run folders a fifth), MNV3_DAMAGED_SEED another
draw.
"""

import io
import json
import os
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, needs, randomize
from mutate import cases, damaged_archive, damaged_bytes, damaged_json
from PIL import Image

import mnv3

pytestmark = pytest.mark.slow
COUNT, SEED = int(os.environ.get("MNV3_DAMAGED", 200)), int(os.environ.get("MNV3_DAMAGED_SEED", 0))
SECONDS, MEGABYTES = 10, 1000
TINY = mnv3.Arch(
    stem=8,
    rows=(mnv3.Bneck(3, 8, 8, True, "RE", 2), mnv3.Bneck(5, 24, 16, True, "HS", 2)),
    last=24,
    head=16,
)


@pytest.fixture(scope="module")
def model():
    """Of the arch that worker.py asks for, with no more weights than that takes."""
    return randomize(mnv3.create_model("mnv3_small_050", num_classes=3))


@pytest.fixture(scope="module")
def tiny():
    return randomize(mnv3.create_model("mnv3_small", arch=TINY, num_classes=3))


def check(kind: str, folder: Path, *, hashed: bool = False) -> None:
    """Open the cases in a process of its own; none may be worse than refused, or than other answers if not `hashed`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).parent / "worker.py"), kind, str(folder)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
    lines = [json.loads(line) for line in (folder / "results").read_text().splitlines()]
    last = {line["case"]: line for line in lines}  # a case that ended has a second line
    assert last["whole"]["outcome"] == "same", (last["whole"], process.stderr[-2000:])
    allowed = {"refused", "same"} | (set() if hashed else {"other"})
    bad = [line for line in last.values() if line["outcome"] not in allowed]
    bad += [line for line in last.values() if line.get("seconds", 0) > SECONDS or line.get("megabytes", 0) > MEGABYTES]
    assert process.returncode == 0, (process.stderr[-2000:], bad)
    if bad:
        pytest.fail(f"{len(bad)} of {len(last)}, in {folder}: {json.dumps(bad[:5], indent=1)}", pytrace=False)
    assert len(last) > 5


def write(folder: Path, suffix: str, whole: bytes, damaged: list[bytes]) -> Path:
    (folder / f"whole{suffix}").write_bytes(whole)
    for i, content in enumerate(damaged):
        (folder / f"{i}{suffix}").write_bytes(content)
    return folder


def test_safetensors(model, tmp_path):
    from safetensors.torch import save

    whole = save({key: value.contiguous() for key, value in model.state_dict().items()})
    length = int.from_bytes(whole[:8], "little")

    def header(data: bytes, rng: random.Random) -> bytes:
        text = damaged_json(data[8 : 8 + length].decode(), rng).encode(errors="surrogatepass")
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    def table(data: bytes, rng: random.Random) -> bytes:
        return damaged_bytes(data[: 8 + length], rng) + data[8 + length :]

    check(
        "weights",
        write(tmp_path, ".safetensors", whole, cases(whole, COUNT, SEED, header, table, damaged_bytes)),
    )


@pytest.mark.parametrize("legacy", [False, True])
def test_pth(model, tmp_path, legacy):
    file = tmp_path / "model"
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, file, _use_new_zipfile_serialization=not legacy)
    whole = file.read_bytes()
    check("weights", write(tmp_path, ".pth", whole, cases(whole, COUNT, SEED, damaged_bytes)), hashed=not legacy)


def test_pth_packed_again(model, tmp_path):
    """What is wrong inside an archive whose own checksums are right."""
    file = tmp_path / "model"
    torch.save(model.state_dict(), file)
    check(
        "weights",
        write(tmp_path, ".pth", file.read_bytes(), cases(file.read_bytes(), COUNT, SEED, damaged_archive)),
    )


def folders(folder: Path, whole: Path, name: str, damaged: list[bytes]) -> Path:
    """Copies of a folder, one of its files damaged in each."""
    whole = whole.rename(folder / "whole") if whole.parent == folder else shutil.copytree(whole, folder / "whole")
    for i, content in enumerate(damaged):
        shutil.copytree(whole, folder / str(i))
        (folder / str(i) / name).write_bytes(content)
    return folder


def test_config_json(tiny, tmp_path):
    whole = mnv3.save(tiny, tmp_path / "model")
    config = (whole / "config.json").read_bytes()

    def value(data: bytes, rng: random.Random) -> bytes:
        return damaged_json(data.decode(), rng).encode(errors="surrogatepass")

    check(
        "folder",
        folders(tmp_path, whole, "config.json", cases(config, COUNT, SEED, value, value, damaged_bytes)),
    )


@pytest.mark.parametrize("to", ["pt2", "torchscript", "onnx", "openvino", "executorch", "tflite", "ncnn"])
def test_exported(tiny, tmp_path, to):
    """Also a flipped bit anywhere is seen: the files have their SHA-256 with them."""
    needs(to)
    (tmp_path / "model").mkdir()
    whole = tmp_path / "model" / f"net{mnv3.deploy.FORMATS[to].suffix}"
    mnv3.deploy.export(tiny, whole, to=to, size=32)
    files = sorted(whole.parent.iterdir())
    drawn = [(file, case) for file in files for case in cases(file.read_bytes(), COUNT, SEED, damaged_bytes)]
    if to in ("pt2", "torchscript"):
        drawn += [(whole, case) for case in cases(whole.read_bytes(), COUNT, SEED, damaged_archive)]
    original = whole.parent.rename(tmp_path / "whole")
    for i, (file, content) in enumerate(drawn):
        shutil.copytree(original, tmp_path / str(i))
        (tmp_path / str(i) / file.name).write_bytes(content)
    check("exported", tmp_path, hashed=True)


@pytest.fixture
def keras_model(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras", reason="needs pip install 'mnv3[test]'")
    options = {"input_shape": (32, 32, 3), "alpha": 0.75, "classes": 3, "weights": None, "minimalistic": True}
    return keras.applications.MobileNetV3Small(**options, classifier_activation=None)


def test_keras(keras_model, tmp_path):
    def configuration(data: bytes, rng: random.Random) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
            for name in old.namelist():
                content = old.read(name)
                if name == "config.json":
                    content = damaged_json(content.decode(), rng).encode(errors="surrogatepass")
                new.writestr(name, content)
        return out.getvalue()

    keras_model.save(tmp_path / "whole.keras")
    whole = (tmp_path / "whole.keras").read_bytes()
    damaged = cases(whole, COUNT, SEED, damaged_bytes, damaged_archive, configuration)
    check("foreign", write(tmp_path, ".keras", whole, damaged))


def test_whole_h5(keras_model, tmp_path):
    """A model with its configuration."""
    h5py = pytest.importorskip("h5py", reason="needs pip install 'mnv3[convert]'")

    def configuration(data: bytes, rng: random.Random) -> bytes:
        out = io.BytesIO(data)
        with h5py.File(out, "r+") as root:
            text = damaged_json(root.attrs["model_config"], rng)
            root.attrs["model_config"] = text.encode(errors="surrogatepass")
        return out.getvalue()

    keras_model.save(tmp_path / "whole.h5")
    whole = (tmp_path / "whole.h5").read_bytes()
    check("foreign", write(tmp_path, ".h5", whole, cases(whole, COUNT, SEED, damaged_bytes, configuration)))


def test_h5(keras_model, tmp_path):
    keras_model.save_weights(tmp_path / "w.weights.h5")
    whole = (tmp_path / "w.weights.h5").read_bytes()
    check("foreign", write(tmp_path, ".h5", whole, cases(whole, COUNT, SEED, damaged_bytes)))


@pytest.mark.parametrize("name", ["model.index", "model.data-00000-of-00001"])
def test_slim(tmp_path, name):
    pytest.importorskip("google_crc32c", reason="needs pip install 'mnv3[convert]'")
    whole = ROOT / "tests" / "convert" / "data" / "slim"
    damaged = cases((whole / name).read_bytes(), COUNT, SEED, damaged_bytes)
    check("foreign", folders(tmp_path, whole, name, damaged), hashed=True)


def test_tflite(tmp_path):
    tflite_files = pytest.importorskip("tflite_files", reason="needs pip install 'mnv3[convert]'")
    small = randomize(mnv3.create_model("mnv3_small_minimal_tf", width=0.35, num_classes=3))
    whole = tflite_files.Tensorflow(small, 32).bytes()
    check("foreign", write(tmp_path, ".tflite", whole, cases(whole, COUNT, SEED, damaged_bytes)))


def test_recipes(tmp_path):
    whole = (ROOT / "mnv3" / "recipes" / "cifar10_small.yaml").read_bytes()
    check("recipe", write(tmp_path, ".yaml", whole, cases(whole, COUNT, SEED, damaged_bytes)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_pictures(tmp_path, kind):
    file = tmp_path / "picture"
    pixels = np.random.default_rng(0).integers(0, 255, (64, 80, 3), np.uint8)
    Image.fromarray(pixels).save(file, kind)
    check(
        "picture",
        write(tmp_path, f".{kind.lower()}", file.read_bytes(), cases(file.read_bytes(), COUNT, SEED, damaged_bytes)),
    )


def test_run_folders(noisy, tmp_path):
    """A training that was stopped goes on to the same bits, or says what is wrong with its folder."""
    run = tmp_path / "run"
    options = {"model": "mnv3_small_cifar", "data": str(noisy), "size": 16, "batch_size": 8, "workers": 0, "epochs": 2}
    stopped = "import mnv3, sys; t = sys.modules['mnv3.finetune']; end = t.Training._finish_epoch\n"
    stopped += "def stop(self, board):\n    end(self, board)\n    raise SystemExit\n"
    stopped += f"t.Training._finish_epoch = stop\nmnv3.finetune(mnv3.recipe.Recipe(**{options}), out={str(run)!r})"
    subprocess.run([sys.executable, "-c", stopped], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    checkpoint = next((run / "checkpoints").glob("last-*"))
    (tmp_path / "whole").mkdir()
    whole = run.rename(tmp_path / "whole")
    names = ["recipe.yaml", *(f"checkpoints/{checkpoint.name}/{file.name}" for file in sorted(checkpoint_of(whole)))]
    for i in range(COUNT // 5):
        name, rng = names[i % len(names)], random.Random(f"{SEED} {i}")
        shutil.copytree(whole, tmp_path / str(i))
        content = (whole / name).read_bytes()
        way = damaged_archive if name.endswith(".pt") and i % 2 else damaged_bytes
        (tmp_path / str(i) / name).write_bytes(way(content, rng))
    check("run", tmp_path)


def checkpoint_of(run: Path) -> list[Path]:
    return list(next((run / "checkpoints").glob("last-*")).iterdir())
