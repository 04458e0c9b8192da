"""Files of other frameworks, damaged by a seed in hundreds of ways: read or refused, in a line and a moment."""

import io
import json
import os
import subprocess
import sys
import zipfile

import pytest
import test_from_keras as keras_files
import test_from_slim as slim_files
import test_from_tflite as tflite_files
from conftest import ROOT, randomize

from mnv3 import WeightsError
from mnv3.convert import reading
from mnv3.model import MobileNetV3

KINDS = ["x.keras", "whole.h5", "keras2.h5", "x.weights.h5", "x.index", "x.tflite"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small file of every kind."""
    folder = tmp_path_factory.mktemp("whole")
    model = keras_files.build(alpha=0.35, classes=2)
    for name in KINDS[:4]:
        keras_files.SAVE[name](model, folder / name)
    narrow = randomize(MobileNetV3(slim_files.NARROW, pad_type="same", num_classes=3))
    slim_files.write(folder, slim_files.slim(narrow), name="x")
    content = tflite_files.Tensorflow(tflite_files.tiny(), tflite_files.SIZE, se="mean").bytes()
    (folder / "x.tflite").write_bytes(content)
    return folder


def after_mutations(file, count, seed):
    command = [sys.executable, ROOT / "tests" / "helpers" / "mutations.py", file, str(count), str(seed)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_hundreds_of_mutations(folder, name):
    found = after_mutations(folder / name, 200, 0)
    assert found["wrong"] == []
    assert found["refused"] > 50
    assert found["longest"] < 10


def with_name(raw, flags):
    """A zip archive whose one entry has this name, byte for byte."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("x" * len(raw), b"content")
    content = bytearray(content.getvalue().replace(b"x" * len(raw), raw))
    directory = content.index(b"PK\x01\x02")
    content[directory + 8 : directory + 10] = flags.to_bytes(2, "little")
    content[6:8] = flags.to_bytes(2, "little")
    return bytes(content)


@pytest.mark.parametrize(("raw", "flags"), [(b"\xff\xfe\xfa.json", 0x800), (b"a\0b\x1b[2J", 0)])
def test_zip_archives_with_broken_names(tmp_path, raw, flags):
    """Names that are not the UTF-8 that they say to be were a raw UnicodeDecodeError."""
    file = tmp_path / "x.keras"
    file.write_bytes(with_name(raw, flags))
    with pytest.raises(WeightsError, match=r"x.keras: (cannot be read: |by its name a Keras archive)") as info:
        reading.kind_of(file)
    assert "\n" not in str(info.value)
