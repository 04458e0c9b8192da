"""The command `mnv3 export`, and exported files in `mnv3 predict` and `mnv3 eval`."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import ROOT, command_runner, needs
from exports import NAMES, close, exported, net, photos, pixels, weights

from mnv3.deploy import FORMATS, int8, load


@pytest.fixture
def run(capfd, monkeypatch, tmp_path):
    """Status, standard output, standard error of a command, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return command_runner(capfd)


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


def test_predict_and_eval_commands(run, tmp_path):
    folder, (file, _) = weights(), exported("onnx")
    options = ("predict", *sorted(photos().iterdir()), "--json", "--topk", 10)
    status, out, err = run(*options, "--checkpoint", file)
    assert (status, err) == (0, "")
    for ours, theirs in zip(out.splitlines(), run(*options, "--checkpoint", folder)[1].splitlines(), strict=True):
        ours, theirs = ({e["label"]: e["prob"] for e in json.loads(line)["topk"]} for line in (ours, theirs))
        assert ours == pytest.approx(theirs, abs=1e-4)
    for option in (("--model", "mnv3_small_cifar"), ("--device", "cuda")):
        status, out, err = run("predict", photos() / "0.png", "--checkpoint", file, *option)
        assert (status, out) == (1, "")
        assert err == f"mnv3: {file}: an exported file says which model it is, and runs on the CPU\n"
    (tmp_path / "bad.onnx").write_bytes(file.read_bytes()[:99999])
    status, out, err = run("predict", photos() / "0.png", "--checkpoint", "bad.onnx")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("mnv3: bad.onnx: no SHA-256 at its end: cut off")
    for i, name in enumerate(NAMES):
        (tmp_path / "data" / "test" / name).mkdir(parents=True)
        shutil.copy(photos() / f"{i % 5}.png", tmp_path / "data" / "test" / name)
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
