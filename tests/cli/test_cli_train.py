"""The commands recipes, finetune, eval and ablate."""

import json
import signal

import numpy as np
import pytest
from PIL import Image

from mnv3.train import recipe
from mnv3.train.finetune import Training


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two classes of pictures of 16 px, bright and dark."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split in ("train", "test"):
        for name, level in (("bright", 200), ("dark", 50)):
            (root / split / name).mkdir(parents=True)
            for i in range(8):
                pixels = rng.normal(level, 20, (16, 16, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture
def file(tmp_path, data):
    """A recipe of one short epoch."""
    path = tmp_path / "short.yaml"
    lines = ("model: mnv3_small_cifar", f"data: {data}", "size: 16", "batch_size: 8", "epochs: 1", "precision: no")
    path.write_text("\n".join(lines))
    return path


def test_recipes(run):
    status, out, _ = run("recipes")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == recipe.names()
    for name in recipe.names():
        assert run("recipes", name)[1] == recipe.find(name).read_text()
    status, _, err = run("recipes", "cifar10_smal")
    assert status == 1
    assert "Did you mean 'cifar10_small'" in err


def test_finetune_then_eval_and_predict(run, file, data, tmp_path):
    out = tmp_path / "run"
    status, printed, err = run("finetune", file, "--set", "lr=0.01", "epochs=2", "--out", out)
    assert status == 0
    assert printed.startswith(f"wrote {out}: try `mnv3 predict --checkpoint {out} ")
    assert "epoch 2, loss " in err
    assert recipe.load(out / "recipe.yaml").lr == 0.01
    status, printed, _ = run("eval", out, "--data", data, "--json", tmp_path / "e.json", "--png", tmp_path / "e.png")
    assert status == 0
    metrics = json.loads((tmp_path / "e.json").read_text())
    assert printed.startswith(f"top-1 {metrics['top1']:.2f} %")
    assert metrics == json.loads((out / "test.json").read_text())
    assert Image.open(tmp_path / "e.png").size[0] > 100
    assert run("eval", out, "--data", data, "--tta", "flip", "--split", "train")[1].endswith(" %\n")
    assert run("predict", "--checkpoint", out, data / "test" / "dark" / "0.png")[0] == 0
    assert run("finetune", file, "--set", "lr=0.01", "epochs=2", "--out", out, "--resume")[0] == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["finetune", "nope"], "no recipe 'nope'"),
        (["finetune", "FILE", "--set", "lr"], "expected key=value"),
        (["finetune", "FILE", "--set", "lrr=1"], "override: unknown key 'lrr'. Did you mean 'lr'"),
        (["finetune", "FILE", "--set", "epochs=many"], "epochs: expected a whole number"),
        (["finetune", "FILE", "--set", "data=/nowhere"], "no folder '/nowhere'"),
        (["finetune", "FILE", "--set", "precision=fp16"], "fp16"),
        (["eval", "mnv3_smal", "--data", "DATA"], "Did you mean 'mnv3_small"),
        (["eval", "mnv3_small_cifar", "--data", "DATA", "--split", "val"], "expected a folder val in it"),
        (["eval", "mnv3_small_cifar", "--data", "DATA"], "the model has 10 classes and the pictures 2"),
        (["ablate", "FILE", "--seeds", "one"], "expected whole numbers"),
        (["ablate", "FILE", "--seeds", "1,1"], "no seed twice"),
        (["ablate", "FILE", "--variants", "sse"], "unknown variant 'sse'"),
    ],
)
def test_faults_are_one_line(run, file, data, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(*({"FILE": file, "DATA": data}.get(arg, arg) for arg in args))
    assert status == 1
    assert not out
    lines = err.splitlines()
    assert message in lines[-1]
    assert lines[-1].startswith("mnv3: ")
    assert not (tmp_path / "runs").exists()


def test_interrupted_is_status_130(run, file, tmp_path, monkeypatch):
    monkeypatch.setattr(Training, "_status", lambda self: signal.raise_signal(signal.SIGINT) or {})
    status, _, err = run("finetune", file, "--out", tmp_path / "run")
    assert status == 130
    assert "go on with --resume" in err
