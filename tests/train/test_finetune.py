"""A whole training: what it writes, that it goes on after any stop, and what it refuses."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import timm
import torch
from safetensors.torch import load_file
from trainings import COLOURS, Killed, log, same, tensors, trained

import mnv3
from mnv3.errors import TrainingStopped
from mnv3.train import recipe
from mnv3.train.augment import Augment
from mnv3.train.finetune import Training, finetune

pytestmark = pytest.mark.usefixtures("no_charts")
RICH = {
    "ema": 0.9,
    "mixup": 0.2,
    "cutmix": 1.0,
    "erase": 0.5,
    "drop_path": 0.2,
    "drop_rate": 0.2,
    "augment": "trivial",
    "clip": 1.0,
    "label_smoothing": 0.1,
    "sizes": (8, 16),
}


@contextmanager
def before_update(act, *, epoch, update):
    """Do something before this update of trainings in the block."""
    make = Training._update

    def acting(self, *args):
        if (self.epoch, self.update) == (epoch, update):
            act()
        make(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "_update", acting)
        yield


def kill():
    raise Killed


# A whole run


@pytest.fixture(scope="module")
def run(plain, tmp_path_factory):
    """A run that learns, with its figures."""
    return finetune(plain, out=tmp_path_factory.mktemp("runs") / "run", epochs=12, bn_momentum=0.3, ema=0.5)


def test_a_run_learns_and_is_a_weights_folder_for_every_door(run, coloured):
    metrics = json.loads((run / "test.json").read_text())
    assert metrics["top1"] > 90
    assert metrics["classes"] == COLOURS
    for name in ("recipe.yaml", "log.csv", "curves.png", "confusion.png", "config.json", "golden.safetensors"):
        assert (run / name).stat().st_size > 0
    for model in (mnv3.load_checkpoint(run), timm.create_model(f"local-dir:{run}", pretrained=True)):
        again = mnv3.evaluate(model, mnv3.data.load(str(coloured), "test"))
        assert again.top1 == metrics["top1"]
        assert again.loss == pytest.approx(metrics["loss"], abs=1e-6)
        assert mnv3.class_names(model) == COLOURS
    golden = load_file(run / "golden.safetensors")
    torch.testing.assert_close(mnv3.load_checkpoint(run).eval()(golden["inputs"]), golden["outputs"])
    picture = next((coloured / "test" / "red").iterdir())
    (prediction,) = mnv3.predict(mnv3.load_checkpoint(run), picture)
    assert prediction.topk[0]["label"] == "red"


def test_batch_norm_statistics_are_trained_and_saved(run):
    for key, value in load_file(run / "model.safetensors").items():
        if key.endswith("running_mean"):
            assert value.abs().max() > 0, key
        if key.endswith("running_var"):
            assert (value - 1).abs().max() > 0, key


def test_log_has_a_line_for_each_epoch(run):
    lines = log(run)
    assert [line["epoch"] for line in lines] == [str(i) for i in range(1, 13)]
    assert [line["updates"] for line in lines] == [str(3 * i) for i in range(1, 13)]
    assert {line["weights"] for line in lines} == {"ema"}
    assert list((run / "tensorboard").iterdir())


def test_resume_of_a_finished_run_leaves_its_result(run, plain):
    before = (run / "model.safetensors").read_bytes(), (run / "log.csv").read_bytes()
    finetune(plain, out=run, epochs=12, bn_momentum=0.3, ema=0.5, resume=True)
    assert before == ((run / "model.safetensors").read_bytes(), (run / "log.csv").read_bytes())


def test_the_best_weights_on_val_are_the_result(plain, few, tmp_path, monkeypatch):
    """Of equal accuracies the lower loss wins, and then the later."""
    values, kept, keep = iter([(50, 2), (40, 0.5), (50, 1), (50, 1), (50, 1.5), (40, 1)]), [], Training._keep_best

    def evaluate(model, pictures, **options):
        top1, loss = next(values)
        return dataclasses.replace(mnv3.evaluate(model, pictures, **options), top1=float(top1), loss=float(loss))

    monkeypatch.setattr("mnv3.train.finetune.evaluate", evaluate)
    monkeypatch.setattr(Training, "_keep_best", lambda self: (kept.append(self.epoch + 1), keep(self)))
    run = finetune(plain, out=tmp_path / "run", data=few, epochs=6)
    assert kept == [1, 3, 4]
    assert same(load_file(run / "model.safetensors"), load_file(run / "checkpoints" / "best.safetensors"))
    assert not same(load_file(run / "model.safetensors"), tensors(run))


def test_without_val_the_last_weights_are_the_result(plain, tmp_path, coloured):
    for split in ("train", "test"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / split).symlink_to(coloured / split)
    run = finetune(plain, out=tmp_path / "run", data=str(tmp_path / "data"), epochs=1)
    assert same(load_file(run / "model.safetensors"), tensors(run))
    assert "val_top1" not in log(run)[0]


def test_a_warmup_of_one_update_trains(plain, tmp_path, few, caplog):
    """An epoch is an update, and the validation pictures say nothing: all epochs are equally good."""
    training = trained(plain, tmp_path, data=few, warmup_epochs=1)
    assert training.batches.updates == 1
    assert not any(map(torch.equal, training.averaged.parameters(), training.start))
    assert "no weight has changed" not in caplog.text


def test_a_training_that_changes_nothing_says_so(plain, tmp_path, few, caplog):
    trained(plain, tmp_path, data=few, epochs=1, lr=1e-300)
    assert (
        "the result is what the training began with, no weight has changed (1 updates, lr up to 1e-300)" in caplog.text
    )


# Stop and go on


@pytest.mark.parametrize(
    ("options", "stop", "epoch", "update"),
    [
        ({}, kill, 0, 2),
        (RICH | {"precision": "bf16"}, kill, 1, 1),
        (RICH | {"schedule": "onecycle", "optimizer": "adamw", "accumulate": 2, "batch_size": 8}, "interrupt", 1, 1),
        ({"freeze_epochs": 1, "layer_decay": 0.7, "balance": True, "optimizer": "lamb"}, kill, 1, 0),
    ],
    ids=["plain", "bf16", "onecycle", "freeze"],
)
def test_a_stopped_run_goes_on_to_the_same_bits(plain, tmp_path, options, stop, epoch, update):
    """Killed, it goes on from the last epoch; interrupted, after the update."""
    whole = finetune(plain, out=tmp_path / "whole", **options)
    if stop is kill:
        with before_update(kill, epoch=epoch, update=update), pytest.raises(Killed):
            finetune(plain, out=tmp_path / "cut", **options)
    else:
        with (
            before_update(lambda: signal.raise_signal(signal.SIGINT), epoch=epoch, update=update),
            pytest.raises(TrainingStopped, match="--resume") as stopped,
        ):
            finetune(plain, out=tmp_path / "cut", **options)
        assert stopped.value.interrupted
        assert (tmp_path / "cut" / "checkpoints" / "last-5").is_dir()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    cut = finetune(plain, out=tmp_path / "cut", resume=True, **options)
    assert same(load_file(whole / "model.safetensors"), load_file(cut / "model.safetensors"))
    assert same(tensors(whole), tensors(cut))
    if "ema" in options:
        assert same(tensors(whole, "ema"), tensors(cut, "ema"))
    for a, b in zip(log(whole), log(cut), strict=True):
        timings = ("images_per_s", "seconds")
        assert {k: v for k, v in a.items() if k not in timings} == {k: v for k, v in b.items() if k not in timings}


@pytest.mark.slow
def test_kill_9_of_the_command_at_any_moment(plain, tmp_path):
    (tmp_path / "r.yaml").write_text(dataclasses.replace(plain, epochs=4, **RICH).to_yaml())
    whole, cut = finetune(tmp_path / "r.yaml", out=tmp_path / "whole"), tmp_path / "cut"
    command = [sys.executable, "-m", "mnv3", "finetune", str(tmp_path / "r.yaml"), "--resume", "--out", str(cut)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    while process.poll() is None and not (cut / "checkpoints" / "last-3").exists():
        time.sleep(0.01)
    process.kill()
    process.wait()
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    assert same(tensors(whole, "ema"), tensors(cut, "ema"))
    assert not [path for path in cut.rglob(".*") if path.is_dir()]


def test_resume_refuses_another_recipe_and_a_folder_in_use(run, plain, tmp_path):
    with pytest.raises(FileExistsError, match="--resume"):
        finetune(plain, out=run)
    with pytest.raises(ValueError, match="lr: 0.05, not 0.1"):
        finetune(plain, out=run, epochs=12, bn_momentum=0.3, ema=0.5, lr=0.1, resume=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "holiday.jpg").touch()
    with pytest.raises(FileExistsError, match="not empty"):
        finetune(plain, out=other, resume=True)
    with pytest.raises(FileExistsError, match="is a file"):
        finetune(plain, out=other / "holiday.jpg")


def test_a_validation_without_numbers_stops_the_run(plain, tmp_path, monkeypatch):
    monkeypatch.setattr("mnv3.pictures.evaluate._logits", lambda model, x, tta: model(x) * float("nan"))
    with pytest.raises(TrainingStopped, match=r"^for \d+ of \d+ pictures the model gives NaN .* in epoch 1"):
        finetune(plain, out=tmp_path / "run")


def test_pixels_that_are_not_finite_stop_the_run_before_they_reach_the_weights(plain, tmp_path, monkeypatch):
    batch, calls = Augment.batch, iter(range(9))

    def poisoned(self, x, *args):
        return batch(self, x, *args) * (float("inf") if next(calls) == 4 else 1)

    monkeypatch.setattr(Augment, "batch", poisoned)
    with pytest.raises(TrainingStopped, match=r"not finite in epoch 2, update 2.*last-3"):
        finetune(plain, out=tmp_path / "run")
    assert all(value.isfinite().all() for value in tensors(tmp_path / "run").values())


# Options


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "muon", "lr": 0.01, "use_se": False, "augment": "rand", "balance": True, "deterministic": True},
        {"optimizer": "lamb", "lr": 0.01, "clip": 0.01, "clip_mode": "agc", "size": 24, "sizes": (8, 24), "crop": 2},
        {"optimizer": "adamw", "bn_momentum": 0.2, "channels_last": False, "se_order": "se-act", "batch_size": 1000},
        {"use_hs": False, "se_order": "act-se", "precision": "bf16"},
        pytest.param({"compile": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_options(plain, tmp_path, options):
    training = trained(plain, tmp_path, **options)
    assert all(value.isfinite().all() for value in training.raw.state_dict().values())
    again = mnv3.load_checkpoint(tmp_path / "run")
    assert same(again.state_dict(), load_file(tmp_path / "run" / "model.safetensors"))


def test_mixup_of_nine_pictures(plain, tmp_path, few):
    """Pictures are joined in pairs, so a batch of too few leaves one out, another in each epoch."""
    training = trained(plain, tmp_path, data=few, epochs=1, cutmix=1.0, accumulate=3)
    assert training.batches.order(0).shape == (1, 3, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "sdg"}, "Did you mean 'sgd'"),
        ({"optimizer": "adahessian"}, "optimizer: adahessian does not run with this recipe here: RuntimeError: "),
        ({"cutmix": 1.0, "accumulate": 32}, "batch norm needs 2"),
        ({"model": "mnv3_smal_cifar"}, "mnv3_small_cifar"),
        ({"mixup": 0.2, "batch_size": 15}, "odd"),
        ({"batch_size": 1}, "batch norm needs 2"),
        ({"data": "nowhere"}, "no folder"),
        ({"se_order": "se"}, "se-act"),
    ],
)
def test_what_cannot_be_leaves_nothing_behind(plain, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        finetune(plain, out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_warnings(plain, tmp_path, caplog):
    Training(dataclasses.replace(plain, model="mnv3_small", lr=0.5, ema=0.999, batch_size=60), tmp_path / "run")
    text = " ".join(caplog.messages)
    for part in (
        "1x1 map at total stride 32",
        "lr 0.5 is high",
        "too few for batches of 60: a batch has 48",
        "few for an average",
    ):
        assert part in text


@pytest.mark.parametrize("package", ["accelerate", "torch.utils.tensorboard"])
def test_missing_packages_say_what_to_install(plain, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install 'mnv3\[finetune\]'"):
        finetune(plain, out=tmp_path / package, epochs=1)


def test_recipes_of_the_package_name_models_that_exist():
    for name in recipe.names():
        mnv3.create_model(recipe.load(name).model, device="meta")
        assert recipe.find(name).read_text().startswith("# ")
