"""The command line: what it prints, and one line for everything that goes wrong."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import timm
import torch
from conftest import ROOT, randomize
from PIL import Image

import mnv3
from mnv3 import arch, catalog
from mnv3.cli.main import main
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


def test_info_of_a_checkpoint(run):
    """miil_in21k has 11221 classes."""
    _, out, _ = run("info", "mnv3_large.miil_in21k")
    assert f"{arch.count_params(arch.LARGE, num_classes=11221):,}" in out
    _, out, _ = run("info", "mnv3_large")
    for record in catalog.checkpoints("mnv3_large"):
        (line,) = [line for line in out.splitlines() if line.split()[:1] == [record.name]]
        assert line.endswith(record.license)
    assert run("info", "mnv3_large_075")[1].endswith("\nweights: none published\n")


def test_tables_are_aligned(run):
    for command, last in ((["list"], "classes"), (["info", "mnv3_large"], "MACs")):
        out = run(*command)[1]
        assert not [line for line in out.splitlines() if line != line.rstrip()]
        table = next(part for part in out.split("\n\n") if last in part).splitlines()
        end = table[0].index(last) + len(last)
        assert all(line[end - 1].isdigit() and line[end : end + 1] in ("", " ") for line in table[1:])


def test_unknown_names(fails):
    assert "Did you mean 'mnv3_large'" in fails("info", "mnv3_larg")
    assert "unknown model 'resnet50'. Allowed: mnv3_large" in fails("predict", "x.jpg", "--model", "resnet50")
    assert "unknown tag 'x' of mnv3_small" in fails("predict", "x.jpg", "--model", "mnv3_small.x")
    assert "no weights are published for mnv3_large_075 (see `mnv3 list`): give your own with --checkpoint" in fails(
        "predict", "x", "--model", "mnv3_large_075"
    )


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\n  lines"), "mnv3: two lines"),
        (KeyError("x"), "mnv3: KeyError: 'x'"),
        (RuntimeError("CUDA error"), "mnv3: RuntimeError: CUDA error"),
        (PermissionError(13, "Permission denied", "there"), "mnv3: there: Permission denied"),
    ],
)
def test_any_failure_is_one_line(fails, monkeypatch, error, line):
    def broken(*args, **kwargs):
        raise error

    monkeypatch.setattr(catalog, "split_name", broken)
    assert fails("info", "mnv3_small") == f"{line}\n"
    with pytest.raises(type(error)):
        main(["info", "mnv3_small", "--debug"])


def test_interrupted(run, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(catalog, "split_name", interrupted)
    assert run("info", "mnv3_small") == (130, "", "")


@pytest.mark.parametrize("command", [[], ["list"], ["info"], ["predict"], ["convert"]])
def test_help(run, command):
    status, out, _ = run(*command, "--help")
    assert status == 0
    assert out.startswith(" ".join(["usage: mnv3", *command]))


def test_usage_errors(run):
    assert run("--version")[:2] == (0, f"mnv3 {mnv3.__version__}\n")
    for wrong in ([], ["nothing"], ["info"], ["info", "mnv3_small", "--size", "0"], ["list", "x"], ["predict"]):
        status, out, err = run(*wrong)
        assert (status, out) == (2, "")
        assert err.startswith("usage: mnv3")


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
    advice = "a single file does not say which model it is for: give its name (model, --model, --arch). Allowed: "
    assert message.startswith(f"mnv3: {tmp_path / 'x.pth'}: {advice}mnv3_large, mnv3_small, ")
    message = fails("predict", pictures / "a.png", "--checkpoint", tmp_path / "x.pth", "--model", "mnv3_small")
    assert "The file fits mnv3_small_050" in message
    message = fails("predict", pictures / "a.png", "--checkpoint", net, "--model", "mnv3_large")
    assert f"{net} holds mnv3_small_cifar, not mnv3_large" in message


@pytest.mark.parametrize("name", ["missing.pth", "runs/missing", "last.pth.tar", "mnv3_small.safetensors"])
def test_a_file_that_is_not_there(fails, pictures, noisy, tmp_path, name):
    """It is not taken for a model of that name."""
    for command in (
        ("eval", name, "--data", noisy),
        ("export", name, "--to", "pt2"),
        ("predict", pictures, "--model", name),
        ("finetune", "folder", "--set", f"model={name}", f"data={noisy}", "--out", tmp_path / "out"),
    ):
        assert f"mnv3: {name}: no such file or folder" in fails(*command)


def test_predict_by_source(run, fails, pictures, net):
    """As timm names folders and repositories."""
    expected = run("predict", pictures / "a.png", "--checkpoint", net)
    assert expected[0] == 0
    for option in ("--model", "--checkpoint"):
        assert run("predict", pictures / "a.png", option, f"local-dir:{net}") == expected
    message = fails("predict", pictures / "a.png", "--model", f"local-dir:{net}x")
    assert f"{net}x is no weights folder: it has no config.json" in message
    message = fails("predict", pictures / "a.png", "--checkpoint", f"local-dir:{net}", "--ema")
    assert "use_ema (--ema, --no-ema) is for files and folders of weights" in message


def test_predict_wrong_usage(run, fails, pictures, net, tmp_path):
    assert f"no pictures in {tmp_path}" in fails("predict", tmp_path, "--checkpoint", net)
    assert "--device nonsense" in fails("predict", pictures / "a.png", "--checkpoint", net, "--device", "nonsense")
    assert "--device meta: it holds no values" in fails(
        "predict", pictures / "a.png", "--checkpoint", net, "--device", "meta"
    )
    message = f"mnv3: --checkpoint {tmp_path / 'none'}: no such file or folder\n"
    assert fails("predict", "x", "--checkpoint", tmp_path / "none") == message
    assert fails("predict", "x", "--checkpoint", tmp_path / "none", "--model", "mnv3_small") == message
    assert "is no weights folder: it has no config.json" in fails("predict", "x", "--checkpoint", tmp_path)
    for wrong in (["--topk", "0"], ["--topk", "x"], ["--batch-size", "-1"]):
        status, _, err = run("predict", pictures / "a.png", "--checkpoint", net, *wrong)
        assert status == 2
        assert "expected a whole number of at least 1" in err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_predict_on_a_gpu(run, pictures, net):
    assert run("predict", pictures / "a.png", "--checkpoint", net, "--device", "cuda")[0] == 0


def test_closed_pipe():
    """`mnv3 list | head`, where head is gone before anything is written."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "mnv3", "list"]
    result = subprocess.run(command, env=env, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert (result.returncode, result.stderr) == (1, "")


def test_ctrl_c(run, net, pictures, monkeypatch):
    """While a picture is read, in a thread of its own."""
    monkeypatch.setattr(
        mnv3.images, "load", lambda path, **options: os.kill(os.getpid(), signal.SIGINT) or time.sleep(0.5)
    )
    assert run("predict", pictures / "a.png", "--checkpoint", net) == (130, "", "")


@pytest.mark.parametrize("terminals", [(), ("stderr",), ("stdout", "stderr")])
def test_progress_bar(run, pictures, net, monkeypatch, terminals):
    """Only where results go elsewhere than to the terminal that the bar is on; on both, one would disturb the other."""
    for name in terminals:
        monkeypatch.setattr(getattr(sys, name), "isatty", lambda: True)
    status, out, err = run("predict", pictures, "--checkpoint", net, "--topk", 1, "--json")
    assert status == 1
    assert len([json.loads(line) for line in out.splitlines()]) == 3
    assert f"mnv3: {pictures / 'c.png'}: not a picture\n" in err
    assert ("0/4" in err) == (terminals == ("stderr",))
    _, _, err = run("predict", pictures / "a.png", "--checkpoint", net)
    assert err == "", "nor for a single picture"


def test_odd_file_names(pictures, net, tmp_path, monkeypatch, capsys):
    """Not valid UTF-8, a line break, and letters that a terminal's encoding lacks."""
    names = [b"caf\xe9.png", "\u732b.png".encode(), b"two\nlines.png"]
    for name in names:
        shutil.copy(
            os.fsencode(pictures / ("c.png" if b"\n" in name else "a.png")), os.fsencode(tmp_path) + b"/" + name
        )
    stdout = io.TextIOWrapper(io.BytesIO(), "ascii", "strict")
    monkeypatch.setattr(sys, "stdout", stdout)
    assert main(["predict", str(tmp_path), "--checkpoint", str(net), "--topk", "1"]) == 1
    assert capsys.readouterr().err == f"mnv3: {tmp_path}/two lines.png: not a picture\n"
    assert stdout.buffer.getvalue().splitlines()[::2] == [
        f"{tmp_path}/{name}".encode() for name in (r"caf\udce9.png", r"\u732b.png")
    ]


def test_warnings_of_libraries_are_not_shown(run, pictures, net, tmp_path):
    Image.open(pictures / "a.png").save(tmp_path / "x.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\x01")
    assert run("predict", tmp_path / "x.jpg", "--checkpoint", net)[::2] == (0, "")
    with pytest.warns(UserWarning, match="Corrupt EXIF"):
        run("predict", tmp_path / "x.jpg", "--checkpoint", net, "--debug")


def test_no_weights_are_fetched_for_no_pictures(fails, monkeypatch, tmp_path):
    monkeypatch.setattr(mnv3.files.fetch, "fetch", lambda *args, **kwargs: pytest.fail("downloaded"))
    assert "no pictures in" in fails("predict", tmp_path, "--model", "mnv3_small")


# --- predictions into a file


@pytest.mark.parametrize("ending", [".jsonl", ".csv"])
def test_predict_into_a_file(run, fails, pictures, net, tmp_path, monkeypatch, ending):
    """Killed on the way and resumed, the file is the one of a run that was not."""
    whole, resumed = tmp_path / f"whole{ending}", tmp_path / f"resumed{ending}"
    predict = ("predict", pictures, "--checkpoint", net, "--batch-size", 1, "--workers", 1)
    status, out, err = run(*predict, "--out", whole)
    assert (status, out) == (1, f"wrote {whole}: 4 pictures\n")
    assert "c.png: not a picture" in err
    load = mnv3.images.load

    def interrupted(path, **options):
        if path.name == "d.png":
            raise KeyboardInterrupt
        return load(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(mnv3.images, "load", interrupted)
        assert run(*predict, "--out", resumed)[0] == 130
    assert not resumed.exists()
    lines = (tmp_path / f"resumed{ending}.partial").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + 2, "the settings, a and b; c was not handed out yet"
    assert "is of a run that did not end: go on with --resume" in fails(*predict, "--out", resumed)
    assert "was begun with topk 5, not 2" in fails(*predict, "--out", resumed, "--resume", "--topk", 2)
    assert "was begun with batch_size 1, not 2" in fails(*predict, "--out", resumed, "--resume", "--batch-size", 2)
    status, _, again = run(*predict, "--out", resumed, "--resume")
    assert (status, again) == (1, err)
    assert resumed.read_bytes() == whole.read_bytes()
    assert "choose another name, or replace it with --force" in fails(*predict, "--out", whole)
    assert "--resume and --force are for --out FILE" in fails(*predict, "--resume")


def test_predict_a_list(run, fails, pictures, net, tmp_path, monkeypatch):
    names = [pictures / "d.png", pictures / "a.png"]
    (tmp_path / "list.txt").write_text("".join(f"{name}\n" for name in names) + "\n")
    expected = run("predict", *names, "--checkpoint", net, "--json")
    assert run("predict", "--files-from", tmp_path / "list.txt", "--checkpoint", net, "--json") == expected
    monkeypatch.setattr(sys, "stdin", open(tmp_path / "list.txt"))  # noqa: SIM115
    assert run("predict", "--files-from", "-", "--checkpoint", net, "--json") == expected
    (tmp_path / "list.txt").write_text("")
    assert f"no pictures in {tmp_path / 'list.txt'}" in fails("predict", "--files-from", tmp_path / "list.txt")


@pytest.mark.slow
def test_predict_in_two_processes(pictures, net, tmp_path):
    """By torchrun, each with its share of the pictures: the file of one process."""
    files = {}
    for processes in (1, 2):
        files[processes] = tmp_path / f"{processes}.jsonl"
        command = ["predict", pictures, "--checkpoint", net, "--out", files[processes]]
        launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "-m", "mnv3"]
        subprocess.run([sys.executable, *launcher, *map(str, command)], cwd=ROOT, timeout=300, capture_output=True)
    assert files[1].read_bytes() == files[2].read_bytes()
    assert len(files[1].read_text().splitlines()) == 4
