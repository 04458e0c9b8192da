"""Damaged files of every format: refused in one line, or read as they were meant; in bounded time and memory.

MNV3_DAMAGED=1000 takes so many cases a format in place of CI's 100 (of run folders a tenth), MNV3_DAMAGED_SEED another
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
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, needs, randomize
from exports import exported, weights
from mutate import cases, damaged_archive, damaged_bytes, damaged_json
from PIL import Image

import mnv3

pytestmark = pytest.mark.slow
COUNT, SEED = int(os.environ.get("MNV3_DAMAGED", 100)), int(os.environ.get("MNV3_DAMAGED_SEED", 0))
SECONDS, MEGABYTES = 10, 1000


def check(kind: str, *folders: Path, sealed: frozenset[str] = frozenset()) -> None:
    """Open the cases of some folders in a process of its own; none may be worse than refused.

    Args:
        kind: What worker.py opens.
        folders: With `whole` and the cases.
        sealed: Names of those folders whose cases may not even give other answers.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folders[0].parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).parent / "worker.py"), kind, *map(str, folders)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
    for folder in folders:
        lines = [json.loads(line) for line in (folder / "results").read_text().splitlines()]
        last = {line["case"]: line for line in lines}  # a case that ended has a second line
        assert last["whole"]["outcome"] == "same", (folder, last["whole"], process.stderr[-2000:])
        allowed = {"refused", "same"} | (set() if folder.name in sealed else {"other"})
        bad = [line for line in last.values() if line["outcome"] not in allowed]
        bad += [line for line in last.values() if line.get("seconds", 0) > SECONDS]
        bad += [line for line in last.values() if line.get("megabytes", 0) > MEGABYTES]
        if bad:
            message = f"{len(bad)} of {len(last)}, in {folder}: {json.dumps(bad[:5], indent=1)}"
            pytest.fail(f"{message}\n{process.stderr[-2000:]}", pytrace=False)
        assert len(last) > 5
    assert process.returncode == 0, process.stderr[-2000:]


def damaged_files(folder: Path, whole: bytes, *ways: Callable[[bytes, random.Random], bytes]) -> Path:
    """A new folder, whose name ends as its files do, with a file and damaged copies of it."""
    folder.mkdir()
    (folder / f"whole{folder.suffix}").write_bytes(whole)
    for i, content in enumerate(cases(whole, COUNT, SEED, *ways)):
        (folder / f"{i}{folder.suffix}").write_bytes(content)
    return folder


def damaged_folders(folder: Path, whole: Path, damaged: list[tuple[str, bytes]]) -> Path:
    """A new folder with a copy of the folder `whole`, and copies of it with one file of other content in each."""
    shutil.copytree(whole, folder / "whole")
    for i, (name, content) in enumerate(damaged):
        copy = shutil.copytree(whole, folder / str(i), copy_function=os.link)
        (copy / name).unlink()
        (copy / name).write_bytes(content)
    return folder


def test_weights(tmp_path):
    """Of the arch that worker.py asks for, with no more weights than that takes."""
    from safetensors.torch import save

    state = randomize(mnv3.create_model("mnv3_small_050", num_classes=3)).state_dict()
    whole = save({key: value.contiguous() for key, value in state.items()})
    length = int.from_bytes(whole[:8], "little")

    def header(data: bytes, rng: random.Random) -> bytes:
        text = damaged_json(data[8 : 8 + length].decode(), rng).encode(errors="surrogatepass")
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    def table(data: bytes, rng: random.Random) -> bytes:
        return damaged_bytes(data[: 8 + length], rng) + data[8 + length :]

    folders = [damaged_files(tmp_path / "a.safetensors", whole, header, table, damaged_bytes)]
    for name, ways, legacy in (
        ("zip.pth", [damaged_bytes], False),
        ("legacy.pth", [damaged_bytes], True),
        ("packed again.pth", [damaged_archive], False),  # the archive's own checksums are right
    ):
        torch.save({"state_dict": state, "epoch": 3}, tmp_path / "file", _use_new_zipfile_serialization=not legacy)
        folders.append(damaged_files(tmp_path / name, (tmp_path / "file").read_bytes(), *ways))
    check("weights", *folders, sealed=frozenset({"zip.pth"}))


def test_config_json(tmp_path):
    config = (weights() / "config.json").read_bytes()

    def value(data: bytes, rng: random.Random) -> bytes:
        return damaged_json(data.decode(), rng).encode(errors="surrogatepass")

    damaged = [("config.json", content) for content in cases(config, COUNT, SEED, value, value, damaged_bytes)]
    check("folder", damaged_folders(tmp_path / "folders", weights(), damaged))


def test_exported(tmp_path):
    """Also a flipped bit anywhere is seen: the files have their SHA-256 with them."""
    formats = [name for name in mnv3.deploy.FORMATS if name != "coreml"]
    for to in formats:
        needs(to)
        file, _ = exported(to)
        parts = sorted(file.parent.iterdir())
        damaged = [(part.name, case) for part in parts for case in cases(part.read_bytes(), COUNT, SEED, damaged_bytes)]
        if to in ("pt2", "torchscript"):
            damaged += [(file.name, case) for case in cases(file.read_bytes(), COUNT, SEED, damaged_archive)]
        damaged_folders(tmp_path / to, file.parent, damaged)
    check("exported", *(tmp_path / to for to in formats), sealed=frozenset(formats))


def test_keras(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras", reason="needs pip install 'mnv3[test]'")
    options = {"input_shape": (32, 32, 3), "alpha": 0.75, "classes": 3, "weights": None, "minimalistic": True}
    h5py = pytest.importorskip("h5py", reason="needs pip install 'mnv3[convert]'")
    model = keras.applications.MobileNetV3Small(**options, classifier_activation=None)
    model.save(tmp_path / "model.keras")
    model.save(tmp_path / "model.h5")
    model.save_weights(tmp_path / "model.weights.h5")

    def archived_configuration(data: bytes, rng: random.Random) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
            for name in old.namelist():
                content = old.read(name)
                if name == "config.json":
                    content = damaged_json(content.decode(), rng).encode(errors="surrogatepass")
                new.writestr(name, content)
        return out.getvalue()

    def configuration(data: bytes, rng: random.Random) -> bytes:
        out = io.BytesIO(data)
        with h5py.File(out, "r+") as root:
            text = damaged_json(root.attrs["model_config"], rng)
            root.attrs["model_config"] = text.encode(errors="surrogatepass")
        return out.getvalue()

    archive, whole, bare = ((tmp_path / f"model{name}").read_bytes() for name in (".keras", ".h5", ".weights.h5"))
    check(
        "foreign",
        damaged_files(tmp_path / "a.keras", archive, damaged_bytes, damaged_archive, archived_configuration),
        damaged_files(tmp_path / "whole.h5", whole, damaged_bytes, configuration),
        damaged_files(tmp_path / "weights.h5", bare, damaged_bytes),
    )


def test_slim_and_tflite(tmp_path):
    pytest.importorskip("google_crc32c", reason="needs pip install 'mnv3[convert]'")
    tflite_files = pytest.importorskip("tflite_files", reason="needs pip install 'mnv3[convert]'")
    slim, folders = ROOT / "tests" / "convert" / "data" / "slim", []
    for name in ("model.index", "model.data-00000-of-00001"):
        damaged = [(name, content) for content in cases((slim / name).read_bytes(), COUNT, SEED, damaged_bytes)]
        folders.append(damaged_folders(tmp_path / name, slim, damaged))
    small = randomize(mnv3.create_model("mnv3_small_minimal_tf", width=0.35, num_classes=3))
    tflite = damaged_files(tmp_path / "a.tflite", tflite_files.Tensorflow(small, 32).bytes(), damaged_bytes)
    check("foreign", *folders, tflite, sealed=frozenset(folder.name for folder in folders))


def test_recipes(tmp_path):
    whole = (ROOT / "mnv3" / "train" / "recipes" / "cifar10_small.yaml").read_bytes()
    check("recipe", damaged_files(tmp_path / "a.yaml", whole, damaged_bytes))


def test_pictures(tmp_path):
    folders, pixels = [], np.random.default_rng(0).integers(0, 255, (64, 80, 3), np.uint8)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        file = tmp_path / "picture"
        Image.fromarray(pixels).save(file, kind)
        folders.append(damaged_files(tmp_path / f"a.{kind.lower()}", file.read_bytes(), damaged_bytes))
    check("picture", *folders)


def test_run_folders(noisy, tmp_path):
    """A training that was stopped goes on to the same bits, or says what is wrong with its folder."""
    run = tmp_path / "run"
    options = {"model": "mnv3_small_cifar", "data": str(noisy), "size": 16, "batch_size": 8}
    options |= {"workers": 0, "epochs": 2}
    stopped = "import mnv3\nfrom mnv3.train.run_folder import Run\nsave = Run.save\n"
    stopped += "def stop(*args):\n    save(*args)\n    raise SystemExit\n"
    stopped += f"Run.save = stop\nmnv3.finetune(mnv3.recipe.Recipe(**{options}), out={str(run)!r})"
    subprocess.run([sys.executable, "-c", stopped], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    checkpoint = next((run / "checkpoints").glob("last-*"))
    names = ["recipe.yaml", *(str(file.relative_to(run)) for file in sorted(checkpoint.iterdir()))]
    damaged = []
    for i in range(COUNT // 10):
        name = names[i % len(names)]
        way = damaged_archive if name.endswith(".pt") and i % 2 else damaged_bytes
        damaged.append((name, way((run / name).read_bytes(), random.Random(f"{SEED} {i}"))))
    folder = tmp_path / "runs"
    for i, (name, content) in enumerate([(None, b""), *damaged]):
        copy = shutil.copytree(run, folder / ("whole" if name is None else str(i - 1)))
        if name:
            (copy / name).write_bytes(content)
    check("run", folder)
