"""The command line: what it prints, and one line for everything that goes wrong."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import timm
import torch
import torchvision
from conftest import ROOT, randomize
from PIL import Image
from ports import DLi14
from safetensors.torch import save_file

import mnv3
from mnv3 import arch, cli
from mnv3.timm_models import VARIANTS


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for name, color in (("a.png", "red"), ("b.png", "green"), ("d.png", "blue")):
        Image.new("RGB", (50, 40), color).save(folder / name)
    (folder / "c.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """A weights folder of ours, with names for its classes."""
    torch.manual_seed(0)
    model = randomize(timm.create_model("mnv3_small_cifar"))
    return mnv3.save(model, tmp_path_factory.mktemp("net") / "net", label_names=[f"kind {i}" for i in range(10)])


@pytest.fixture
def run(capsys):
    """Status, standard output, standard error of a command."""

    def run(*args):
        capsys.readouterr()
        try:
            status = cli.main([str(arg) for arg in args])
        except SystemExit as error:
            status = error.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def fails(run):
    """A command ends with one line on stderr, and status 1."""

    def fails(*args):
        status, out, err = run(*args)
        assert (status, out) == (1, "")
        assert err.startswith("mnv3: ")
        assert err.count("\n") == 1, err
        return err

    return fails


def subprocess_run(*args, **kwargs):
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mnv3", *map(str, args)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, **kwargs)


# --- list and info


def test_list(run):
    status, out, _ = run("list")
    assert status == 0
    names = [line.split()[0] for line in out.splitlines()[1:]]
    assert {name.split(".")[0] for name in names} == set(VARIANTS)
    _, out, _ = run("list", "--pretrained")
    assert sorted(line.split()[0] for line in out.splitlines()[1:]) == sorted(timm.list_pretrained("mnv3_*"))


def test_list_json(run):
    entries = [json.loads(line) for line in run("list", "--json")[1].splitlines()]
    for entry in entries:
        model = timm.create_model(entry["arch"], num_classes=entry["num_classes"], device="meta")
        assert entry["params"] == sum(p.numel() for p in model.parameters()), entry["name"]
        assert (entry["source"] is None) == (entry["tag"] is None)
    pretrained = [json.loads(line)["name"] for line in run("list", "--json", "--pretrained")[1].splitlines()]
    assert pretrained == [entry["name"] for entry in entries if entry["tag"]]


@pytest.mark.parametrize("name", VARIANTS)
def test_info(run, name):
    status, out, _ = run("info", name)
    assert status == 0
    table = VARIANTS[name].arch
    total = next(line for line in out.splitlines() if line.startswith("total")).split()
    params = arch.count_params(table, num_classes=VARIANTS[name].num_classes)
    macs = arch.count_macs(table, size=VARIANTS[name].size, num_classes=VARIANTS[name].num_classes)
    assert total[1:] == [f"{params:,}", f"{macs:,}"]
    assert sum(line.startswith("blocks.") for line in out.splitlines()) == len(table.rows)


def test_info_at_another_size(run):
    assert f"{arch.count_macs(arch.SMALL, size=112):,}" in run("info", "mnv3_small", "--size", 112)[1]


def test_unknown_names(fails):
    assert "did you mean 'mnv3_large'" in fails("info", "mnv3_larg")
    assert "unknown model 'resnet50'. Allowed: mnv3_large" in fails("predict", "x.jpg", "--model", "resnet50")
    assert "unknown tag 'x' of mnv3_small" in fails("predict", "x.jpg", "--model", "mnv3_small.x")
    assert "no pretrained weights are published for mnv3_large_075" in fails(
        "predict", "x", "--model", "mnv3_large_075"
    )


def test_debug_shows_the_traceback():
    plain, debug = (subprocess_run("info", "nothing", *option) for option in ((), ("--debug",)))
    assert (plain.returncode, debug.returncode) == (1, 1)
    assert "Traceback" not in plain.stderr
    assert "Traceback" in debug.stderr


# --- predict


def test_predict_text(run, pictures, net):
    status, out, err = run("predict", pictures / "a.png", "--checkpoint", net, "--topk", 3)
    assert (status, err) == (0, "")
    assert len(out.splitlines()) == 3
    assert all(" %  kind " in line for line in out.splitlines())
    status, out, _ = run("predict", pictures / "a.png", pictures / "b.png", "--checkpoint", net, "--topk", 1)
    assert [line for line in out.splitlines() if "%" not in line] == [str(pictures / "a.png"), str(pictures / "b.png")]


def test_predict_json(run, pictures, net):
    status, out, err = run("predict", pictures, "--checkpoint", net, "--json", "--topk", 2, "--batch-size", 2)
    assert status == 1
    assert err == f"mnv3: {pictures / 'c.png'}: not a picture\n"
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["file"] for line in lines] == [str(pictures / name) for name in ("a.png", "b.png", "d.png")]
    for line in lines:
        assert list(line) == ["file", "topk"]
        assert [list(entry) for entry in line["topk"]] == [["index", "label", "prob"]] * 2
        assert all(entry["label"] == f"kind {entry['index']}" for entry in line["topk"])
    expected = next(mnv3.predict(mnv3.load_checkpoint(net), [pictures / "a.png"], topk=2)).topk
    assert lines[0]["topk"][0]["prob"] == pytest.approx(expected[0]["prob"], abs=1e-6)


def test_predict_single_files(run, fails, pictures, net, tmp_path):
    torch.save(
        {"state_dict": timm.create_model("mobilenetv3_small_050", num_classes=4).state_dict()}, tmp_path / "x.pth"
    )
    status, out, _ = run("predict", pictures / "a.png", "--checkpoint", tmp_path / "x.pth", "--model", "mnv3_small_050")
    assert status == 0
    assert out.count("class ") == 4
    message = fails("predict", pictures / "a.png", "--checkpoint", tmp_path / "x.pth")
    assert "a single file does not say which model it is for: give one" in message
    message = fails("predict", pictures / "a.png", "--checkpoint", tmp_path / "x.pth", "--model", "mnv3_small")
    assert "The file fits mnv3_small_050" in message
    message = fails("predict", pictures / "a.png", "--checkpoint", net, "--model", "mnv3_large")
    assert f"{net} holds mnv3_small_cifar, not mnv3_large" in message


def test_predict_wrong_usage(run, fails, pictures, net, tmp_path):
    assert "which model? Give --model" in fails("predict", pictures / "a.png")
    assert f"no pictures in {tmp_path}" in fails("predict", tmp_path, "--checkpoint", net)
    assert "--device nonsense" in fails("predict", pictures / "a.png", "--checkpoint", net, "--device", "nonsense")
    assert "no file of weights at" in fails("predict", "x", "--checkpoint", tmp_path / "none", "--model", "mnv3_small")
    assert "is no weights folder: it has no config.json" in fails("predict", "x", "--checkpoint", tmp_path)
    for wrong in (["--topk", "0"], ["--topk", "x"], ["--batch-size", "-1"]):
        status, _, err = run("predict", pictures / "a.png", "--checkpoint", net, *wrong)
        assert status == 2
        assert "expected a whole number of at least 1" in err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_predict_on_a_gpu(run, pictures, net):
    assert run("predict", pictures / "a.png", "--checkpoint", net, "--device", "cuda")[0] == 0


def test_closed_pipe():
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = f"{sys.executable} -m mnv3 list | head -1; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, timeout=60)
    assert result.stderr == ""
    assert result.stdout.splitlines()[0].startswith("name")


def test_ctrl_c(net, tmp_path):
    os.mkfifo(tmp_path / "never.png")  # a picture that does not arrive
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mnv3", "predict", str(tmp_path / "never.png"), "--checkpoint", str(net)]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(6)
    process.send_signal(signal.SIGINT)
    with open(tmp_path / "never.png", "wb"):  # lets the reading thread end
        pass
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_without_a_terminal_there_is_no_progress_bar(pictures, net):
    result = subprocess_run("predict", pictures, "--checkpoint", net, "--topk", 1)
    assert result.stderr == f"mnv3: {pictures / 'c.png'}: not a picture\n"


# --- convert


def foreign(kind):
    """A foreign model with random weights, the arch that it is, and options of the command."""
    if kind == "torchvision":
        return randomize(torchvision.models.mobilenet_v3_small(num_classes=6)), "mnv3_small", []
    if kind == "d-li14":
        return randomize(DLi14(arch.SMALL, num_classes=6)), "mnv3_small", ["--se-order", "se-act-expanded"]
    name = {"timm": "mobilenetv3_small_050", "timm tf": "tf_mobilenetv3_small_075"}[kind]
    return (
        randomize(timm.create_model(name, num_classes=6)),
        {"timm": "mnv3_small_050"}.get(kind, "mnv3_small_075_tf"),
        [],
    )


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", ["timm", "timm tf", "torchvision", "d-li14"])
def test_convert(run, tmp_path, kind, suffix):
    theirs, name, options = foreign(kind)
    source, out = tmp_path / f"in{suffix}", tmp_path / "out"
    save_file(theirs.state_dict(), source) if suffix == ".safetensors" else torch.save(theirs.state_dict(), source)
    status, printed, _ = run("convert", source, out, "--arch", name, *options)
    assert status == 0
    assert printed.startswith(f"wrote {out}: {name}, 6 classes, sha256 {mnv3.files.digest(out / 'model.safetensors')}")
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "golden.safetensors", "model.safetensors"]
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        for model in (timm.create_model(f"local-dir:{out}", pretrained=True), mnv3.load_checkpoint(out)):
            torch.testing.assert_close(model.eval()(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_convert_a_folder_of_timms(run, fails, tmp_path, pictures):
    theirs = randomize(timm.create_model("tf_mobilenetv3_small_minimal_100"))
    timm.models.save_for_hf(theirs, str(tmp_path / "in"), safe_serialization=True)
    assert run("convert", tmp_path / "in", tmp_path / "out", "--arch", "mnv3_small_minimal_tf")[0] == 0
    assert (
        run("predict", pictures / "a.png", "--checkpoint", tmp_path / "out")[1]
        == run("predict", pictures / "a.png", "--checkpoint", tmp_path / "in")[1]
    )
    message = fails("convert", tmp_path / "in", tmp_path / "other", "--arch", "mnv3_small_minimal")
    assert "holds mnv3_small_minimal_tf, not mnv3_small_minimal" in message


def test_convert_refuses(fails, tmp_path):
    theirs, _, _ = foreign("torchvision")
    torch.save(theirs.state_dict(), tmp_path / "in.pth")
    assert "The file fits mnv3_small" in fails("convert", tmp_path / "in.pth", tmp_path / "out", "--arch", "mnv3_large")
    assert "no file of weights" in fails("convert", tmp_path / "none.pth", tmp_path / "out", "--arch", "mnv3_large")
    assert "unknown model" in fails("convert", tmp_path / "in.pth", tmp_path / "out", "--arch", "mobilenet")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.pth"], "nothing half-written"


def test_convert_does_not_overwrite(run, fails, tmp_path):
    theirs, name, _ = foreign("timm")
    torch.save(theirs.state_dict(), tmp_path / "in.pth")
    command = ("convert", tmp_path / "in.pth", tmp_path / "out", "--arch", name)
    assert run(*command)[0] == 0
    assert "out exists: choose another folder, or replace it" in fails(*command)
    assert run(*command, "--force")[0] == 0


def test_convert_background_and_ema(run, fails, tmp_path):
    theirs = timm.create_model("tf_mobilenetv3_small_100", num_classes=1001)
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "in.pth")
    command = ("convert", tmp_path / "in.pth", tmp_path / "out", "--arch", "mnv3_small_tf")
    assert "1001 classes" in run(*command)[1]
    status, out, err = run(*command, "--force", "--drop-background")
    assert status == 0
    assert "1000 classes" in out
    assert "dropped class 0" in err
    assert "use_ema=True, but the checkpoint has none of" in fails(*command, "--force", "--ema")
    assert mnv3.load_checkpoint(tmp_path / "out").num_classes == 1000
