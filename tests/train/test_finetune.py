import argparse
import csv
import dataclasses
import json
import math
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from conftest import randomize
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import mnv3
from mnv3.errors import TrainingStopped
from mnv3.train import ingredients, optimizers, processes, recipe
from mnv3.train.finetune import Training, finetune
from mnv3.train.recipe import Recipe

COLOURS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (200, 40, 40)}


@pytest.fixture(scope="session")
def coloured(tmp_path_factory):
    """train, val and test folders of noisy pictures of 16 px in three colours."""
    root, rng = tmp_path_factory.mktemp("coloured"), np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 3), ("test", 4)):
        for name, colour in COLOURS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.normal(colour, 40, (16, 16, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


@pytest.fixture
def plain(coloured):
    """The least recipe: two epochs of three updates in float32."""
    fields = {"model": "mnv3_small_cifar", "data": str(coloured), "size": 16, "batch_size": 16, "lr": 0.05}
    return Recipe(**fields, epochs=2, precision="no", workers=0)


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


def tensors(folder, name="model"):
    """Tensors of the last checkpoint."""
    (last,) = (folder / "checkpoints").glob("last-*")
    return load_file(last / f"{name}.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def log(folder):
    with open(folder / "log.csv") as file:
        return list(csv.DictReader(file))


def stop_at(monkeypatch, update, epoch):
    """Training ends there as if the process had been killed: nothing is saved."""

    class Killed(BaseException):
        pass

    update_once = Training._update

    def killed(self, *args):
        if (self.epoch, self.update) == (epoch, update):
            raise Killed
        update_once(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_update", killed)
        yield
    return Killed


# A whole run


def test_a_run_learns_and_is_a_weights_folder_for_every_door(plain, tmp_path, coloured):
    run = finetune(plain, out=tmp_path / "run", epochs=12, bn_momentum=0.3)
    metrics = json.loads((run / "test.json").read_text())
    assert metrics["top1"] > 90
    assert metrics["classes"] == list(COLOURS)
    for name in ("recipe.yaml", "log.csv", "curves.png", "confusion.png", "config.json", "golden.safetensors"):
        assert (run / name).stat().st_size > 0
    for model in (mnv3.load_checkpoint(run), timm.create_model(f"local-dir:{run}", pretrained=True)):
        found = mnv3.evaluate(model, mnv3.data.load(str(coloured), "test"))
        assert found.top1 == metrics["top1"]
        assert found.loss == pytest.approx(metrics["loss"], abs=1e-6)
        assert mnv3.class_names(model) == list(COLOURS)
    golden = load_file(run / "golden.safetensors")
    torch.testing.assert_close(mnv3.load_checkpoint(run).eval()(golden["inputs"]), golden["outputs"])
    picture = next((coloured / "test" / "red").iterdir())
    (prediction,) = mnv3.predict(mnv3.load_checkpoint(run), picture)
    assert prediction.topk[0]["label"] == "red"


def test_batch_norm_statistics_are_trained_and_saved(plain, tmp_path):
    saved = load_file(finetune(plain, out=tmp_path / "run") / "model.safetensors")
    for key, value in saved.items():
        if key.endswith("running_mean"):
            assert value.abs().max() > 0, key
        if key.endswith("running_var"):
            assert (value - 1).abs().max() > 0, key


def test_log_has_a_line_for_each_epoch(plain, tmp_path):
    run = finetune(plain, out=tmp_path / "run", ema=0.5)
    lines = log(run)
    assert [line["epoch"] for line in lines] == ["1", "2"]
    assert [line["updates"] for line in lines] == ["3", "6"]
    assert {line["weights"] for line in lines} == {"ema"}
    assert list((run / "tensorboard").iterdir())


def test_the_best_weights_on_val_are_the_result(plain, tmp_path, monkeypatch):
    accuracies = iter((50.0, 40.0))

    def evaluate(model, pictures, **options):
        metrics = mnv3.evaluate(model, pictures, **options)
        return dataclasses.replace(metrics, top1=next(accuracies, metrics.top1))

    monkeypatch.setattr(sys.modules["mnv3.finetune"], "evaluate", evaluate)
    run = finetune(plain, out=tmp_path / "run")
    assert same(load_file(run / "model.safetensors"), load_file(run / "checkpoints" / "best.safetensors"))
    assert not same(load_file(run / "model.safetensors"), tensors(run))


@pytest.mark.parametrize(("losses", "kept"), [((2.0, 1.0, 1.5), 2), ((1.0, 1.0, 1.0), 3), ((1.0, 2.0, 3.0), 1)])
def test_of_equal_accuracies_the_lower_loss_wins_and_then_the_later(plain, tmp_path, monkeypatch, losses, kept):
    values = iter(losses)

    def evaluate(model, pictures, **options):
        metrics = mnv3.evaluate(model, pictures, **options)
        return dataclasses.replace(metrics, top1=50.0, loss=next(values, 9.0))

    monkeypatch.setattr(sys.modules["mnv3.finetune"], "evaluate", evaluate)
    states, keep = [], Training._keep_best
    monkeypatch.setattr(Training, "_keep_best", lambda self: (states.append(self.epoch + 1), keep(self)))
    finetune(plain, out=tmp_path / "run", epochs=3)
    assert states[-1] == kept


@pytest.fixture
def few(tmp_path, coloured):
    """Three training pictures of each class."""
    for name in COLOURS:
        shutil.copytree(coloured / "val" / name, tmp_path / "few" / "train" / name)
        shutil.copytree(coloured / "val" / name, tmp_path / "few" / "val" / name)
    return str(tmp_path / "few")


def test_a_warmup_of_one_update_trains(plain, tmp_path, few, caplog):
    """An epoch is an update, and the validation pictures say nothing: all epochs are equally good."""
    training = trained(plain, tmp_path, data=few, epochs=2, warmup_epochs=1)
    assert training.batches.updates == 1
    assert not any(map(torch.equal, training.averaged.parameters(), training.start))
    assert "no weight has changed" not in caplog.text


def test_a_training_that_changes_nothing_says_so(plain, tmp_path, few, caplog):
    trained(plain, tmp_path, data=few, epochs=1, lr=1e-300)
    assert (
        "the result is what the training began with, no weight has changed (1 updates, lr up to 1e-300)" in caplog.text
    )


def test_without_val_the_last_weights_are_the_result(plain, tmp_path, coloured):
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "test"):
        (data / split).symlink_to(coloured / split)
    run = finetune(plain, out=tmp_path / "run", data=str(data))
    assert same(load_file(run / "model.safetensors"), tensors(run))
    assert "val_top1" not in log(run)[0]


# Stop and go on


@pytest.mark.parametrize(("epoch", "update"), [(0, 0), (0, 2), (1, 0), (1, 1)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        RICH | {"precision": "bf16"},
        RICH | {"schedule": "onecycle", "optimizer": "adamw", "accumulate": 2, "batch_size": 8},
        {"freeze_epochs": 1, "layer_decay": 0.7, "balance": True, "optimizer": "lamb"},
    ],
    ids=["plain", "bf16", "onecycle", "freeze"],
)
def test_a_killed_run_goes_on_to_the_same_bits(plain, tmp_path, monkeypatch, options, epoch, update):
    whole = finetune(plain, out=tmp_path / "whole", **options)
    stopping = stop_at(monkeypatch, update, epoch)
    next(stopping)
    with pytest.raises(BaseException, match="^$"):
        finetune(plain, out=tmp_path / "cut", **options)
    next(stopping, None)
    cut = finetune(plain, out=tmp_path / "cut", resume=True, **options)
    assert same(load_file(whole / "model.safetensors"), load_file(cut / "model.safetensors"))
    assert same(tensors(whole), tensors(cut))
    if "ema" in options:
        assert same(tensors(whole, "ema"), tensors(cut, "ema"))
    for a, b in zip(log(whole), log(cut), strict=True):
        timings = ("images_per_s", "seconds")
        assert {k: v for k, v in a.items() if k not in timings} == {k: v for k, v in b.items() if k not in timings}


def test_an_interrupted_run_is_saved_and_goes_on_within_the_epoch(plain, tmp_path, monkeypatch):
    whole = finetune(plain, out=tmp_path / "whole", ema=0.9)
    update_once = Training._update

    def interrupted(self, *args):
        if (self.epoch, self.update) == (1, 1):
            signal.raise_signal(signal.SIGINT)
        update_once(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_update", interrupted)
        with pytest.raises(TrainingStopped, match="--resume") as stopped:
            finetune(plain, out=tmp_path / "cut", ema=0.9)
    assert stopped.value.interrupted
    assert (tmp_path / "cut" / "checkpoints" / "last-5").is_dir()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    cut = finetune(plain, out=tmp_path / "cut", ema=0.9, resume=True)
    assert same(tensors(whole, "ema"), tensors(cut, "ema"))


@pytest.mark.slow
def test_kill_9_of_the_command_at_any_moment(plain, tmp_path):
    (tmp_path / "r.yaml").write_text(dataclasses.replace(plain, epochs=6, **RICH).to_yaml())
    command = [sys.executable, "-m", "mnv3", "finetune", str(tmp_path / "r.yaml"), "--resume", "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, timeout=120, capture_output=True)
    cut = tmp_path / "cut"
    for checkpoint in ("last-3", "last-9"):
        process = subprocess.Popen([*command, str(cut)], stderr=subprocess.PIPE)
        while process.poll() is None and not (cut / "checkpoints" / checkpoint).exists():
            time.sleep(0.01)
        process.kill()
        process.wait()
    subprocess.run([*command, str(cut)], check=True, timeout=120, capture_output=True)
    assert same(tensors(tmp_path / "whole", "ema"), tensors(cut, "ema"))
    assert not [path for path in cut.rglob(".*") if path.is_dir()]


def test_resume_of_a_finished_run_leaves_its_result(plain, tmp_path):
    run = finetune(plain, out=tmp_path / "run")
    before = (run / "model.safetensors").read_bytes(), (run / "log.csv").read_bytes()
    finetune(plain, out=tmp_path / "run", resume=True)
    assert before == ((run / "model.safetensors").read_bytes(), (run / "log.csv").read_bytes())


def test_resume_refuses_another_recipe_and_a_folder_in_use(plain, tmp_path):
    run = finetune(plain, out=tmp_path / "run", epochs=1)
    with pytest.raises(FileExistsError, match="--resume"):
        finetune(plain, out=run)
    with pytest.raises(ValueError, match="lr: 0.05, not 0.1"):
        finetune(plain, out=run, epochs=1, lr=0.1, resume=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "holiday.jpg").touch()
    with pytest.raises(FileExistsError, match="not empty"):
        finetune(plain, out=other, resume=True)
    with pytest.raises(FileExistsError, match="is a file"):
        finetune(plain, out=other / "holiday.jpg")


def test_resume_refuses_another_number_of_processes(plain, tmp_path):
    run = finetune(plain, out=tmp_path / "run", epochs=1)
    state = torch.load(run / "checkpoints" / "last-3" / "state.pt")
    torch.save(state | {"world": 2}, run / "checkpoints" / "last-3" / "state.pt")
    with pytest.raises(ValueError, match="was trained by 2 processes, not 1"):
        finetune(plain, out=run, epochs=1, resume=True)


def test_a_damaged_checkpoint_says_so(plain, tmp_path):
    run = finetune(plain, out=tmp_path / "run", epochs=1)
    (run / "checkpoints" / "last-3" / "state.pt").write_bytes(b"no")
    with pytest.raises(mnv3.WeightsError, match=r"state.pt.*remove"):
        finetune(plain, out=run, epochs=1, resume=True)


def test_a_validation_without_numbers_stops_the_run(plain, tmp_path, monkeypatch):
    module = sys.modules["mnv3.evaluate"]  # the package has the function under this name
    monkeypatch.setattr(module, "_logits", lambda model, x, tta: model(x) * float("nan"))
    with pytest.raises(TrainingStopped, match=r"^for \d+ of \d+ pictures the model gives NaN .* in epoch 1"):
        finetune(plain, out=tmp_path / "run")


def test_pixels_that_are_not_finite_stop_the_run_before_they_reach_the_weights(plain, tmp_path, monkeypatch):
    batch = mnv3.data.Augment.batch

    def poisoned(self, x, *args):
        x = batch(self, x, *args)
        poisoned.calls += 1
        return x * float("inf") if poisoned.calls == 5 else x

    poisoned.calls = 0
    monkeypatch.setattr("mnv3.data.Augment.batch", poisoned)
    with pytest.raises(TrainingStopped, match=r"not finite in epoch 2, update 2.*last-3"):
        finetune(plain, out=tmp_path / "run")
    assert all(value.isfinite().all() for value in tensors(tmp_path / "run").values())


# What a step does


def trained(plain, tmp_path, **options):
    training = Training(dataclasses.replace(plain, **options), tmp_path / "run")
    training.run()
    return training


def test_accumulated_batches_make_the_update_of_one_large_batch(plain, tmp_path):
    options = {"freeze_epochs": 9, "crop": 0, "flip": False, "clip": 0.1}  # batch norm sees batches, so it is frozen
    large = trained(plain, tmp_path / "large", batch_size=16, **options)
    small = trained(plain, tmp_path / "small", batch_size=4, accumulate=4, **options)
    assert large.scheduler.updates == small.scheduler.updates == 6
    torch.testing.assert_close(large.raw.state_dict(), small.raw.state_dict(), rtol=1e-5, atol=1e-6)


def test_gradients_are_clipped_once_an_update(plain, tmp_path, monkeypatch):
    norms, clip = [], Accelerator.clip_grad_norm_

    def spy(self, parameters, limit):
        parameters = list(parameters)
        result = clip(self, parameters, limit)
        norms.append(torch.cat([p.grad.flatten() for p in parameters]).norm().item())
        return result

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", spy)
    trained(plain, tmp_path, batch_size=4, accumulate=4, clip=0.01)
    assert len(norms) == 6
    assert max(norms) <= 0.01 * (1 + 1e-5)


def scaled(monkeypatch, scale):
    """Float32 training behind a loss scaler, as float16 on a GPU has it."""
    group = processes.process_group

    def with_scaler(precision):
        accelerator = group("no")
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6)
        accelerator.unscale_gradients = lambda: accelerator.scaler.unscale_(accelerator._optimizers[-1].optimizer)
        return accelerator

    monkeypatch.setattr(ingredients, "process_group", with_scaler)


def test_gradients_are_unscaled_before_they_are_clipped(plain, tmp_path, monkeypatch):
    for mode in ("norm", "agc"):
        with monkeypatch.context() as patch:
            expected = trained(plain, tmp_path / mode, clip=0.05, clip_mode=mode).raw.state_dict()
            scaled(patch, 2.0**10)  # a power of two changes no digit
            found = trained(plain, tmp_path / f"{mode}-scaled", clip=0.05, clip_mode=mode).raw.state_dict()
        assert same(expected, found)


def overflowing(monkeypatch):
    """The first gradients are too large for float32, until the scaler has halved its scale a few times."""
    scaled(monkeypatch, 2.0**120)
    backward = Accelerator.backward
    monkeypatch.setattr(Accelerator, "backward", lambda self, loss: backward(self, 2.0**13 * loss))


@pytest.mark.filterwarnings("error")
def test_a_skipped_update_moves_neither_schedule_nor_average(plain, tmp_path, monkeypatch):
    overflowing(monkeypatch)
    chosen = {"epochs": 4, "ema": 0.9, "warmup_epochs": 1, "lr": 1e-6}
    rates, step = [], torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda self, *a: (rates.append(self.param_groups[0]["lr"]), step(self))[1]
    )
    training = Training(dataclasses.replace(plain, **chosen), tmp_path / "run")
    rates.clear()  # of the rehearsal
    training.run()
    assert 0 < len(rates) < 12
    assert training.scheduler.updates == len(rates)
    expected = trained_rates(plain, **chosen)
    assert rates == pytest.approx(expected[: len(rates)])


def trained_rates(plain, updates=3, /, **options):
    """The rate of each update, `updates` in an epoch, and the one after the last."""
    chosen = dataclasses.replace(plain, **options)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=chosen.lr)
    schedule, rates = optimizers.Schedule(chosen, optimizer, updates), []
    for _ in range(updates * chosen.epochs):
        rates.append(schedule.lr)
        schedule.step()
    return [*rates, schedule.lr]


def test_a_gradient_that_never_is_finite_ends_the_run(plain, tmp_path, monkeypatch):
    overflowing(monkeypatch)
    monkeypatch.setattr(torch.amp.GradScaler, "update", lambda self: self._per_optimizer_states.clear())
    with pytest.raises(TrainingStopped, match="20 updates in a row"):
        trained(plain, tmp_path, epochs=8)


@pytest.mark.filterwarnings("ignore:Detected call of")  # here no optimiser steps
def test_schedules(plain):
    cosine = trained_rates(plain, epochs=10, warmup_epochs=2, min_lr=0.001)
    assert cosine[:6] == pytest.approx([0.001 + 0.049 * k / 6 for k in range(1, 7)])
    assert cosine[6:] == pytest.approx([0.001 + 0.049 * (1 + math.cos(math.pi * t / 30)) / 2 for t in range(6, 31)])
    onecycle = trained_rates(plain, schedule="onecycle", epochs=10, warmup_epochs=2)
    assert max(onecycle) == pytest.approx(0.05, rel=0.01)
    assert onecycle[-1] < 1e-5
    assert set(trained_rates(plain, schedule="constant", epochs=10)) == {0.05}
    warm = trained_rates(plain, schedule="constant", epochs=10, warmup_epochs=1)
    assert warm[:3] == pytest.approx([0.05 / 3, 0.1 / 3, 0.05])
    assert set(warm[3:]) == {0.05}


@pytest.mark.filterwarnings("ignore:Detected call of")
@pytest.mark.parametrize("schedule", ["cosine", "onecycle", "constant"])
@pytest.mark.parametrize("updates", [1, 2, 3])
@pytest.mark.parametrize(("epochs", "warmup"), [(1, 0), (1, 0.5), (4, 0.8), (4, 1), (12, 1), (12, 0.1)])
def test_no_update_has_a_rate_of_nothing(plain, schedule, updates, epochs, warmup):
    """With few pictures an update is an epoch; 4 epochs and 0.8 of them make the rise of one-cycle no step long."""
    rates = trained_rates(plain, updates, schedule=schedule, epochs=epochs, warmup_epochs=warmup)
    assert min(rates[:-1]) > 0
    assert max(rates) <= plain.lr * (1 + 1e-9)


@pytest.mark.filterwarnings("ignore:Detected call of")
def test_cycles(plain, tmp_path):
    """Restarts from half the rate, for twice as long; sizes grow in each. The first cycle is a training of its own."""
    rates = trained_rates(plain, epochs=14, cycles=3)
    assert [rates[3 * epoch] for epoch in (0, 2, 6)] == pytest.approx([0.05, 0.025, 0.0125])
    assert [epoch for epoch in range(1, 14) if rates[3 * epoch] > rates[3 * epoch - 1]] == [2, 6]
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert rates[:6] == pytest.approx(trained_rates(plain, epochs=2)[:6])
    training = trained(plain, tmp_path, epochs=6, cycles=2, sizes=(8, plain.size))
    assert [line["size"] for line in training.history] == [8, plain.size, 8, 8, plain.size, plain.size]


def test_a_frozen_backbone_keeps_every_bit_and_then_learns(plain, tmp_path):
    training = Training(dataclasses.replace(plain, epochs=2, freeze_epochs=1), tmp_path / "run")
    states = [{key: value.clone() for key, value in training.raw.state_dict().items()}]
    finish = training._finish_epoch

    def snapshot(board):
        states.append({key: value.clone() for key, value in training.raw.state_dict().items()})
        finish(board)

    training._finish_epoch = snapshot
    training.run()
    for key in states[0]:
        if key.startswith("classifier"):
            assert not torch.equal(states[0][key], states[1][key])
        else:
            assert torch.equal(states[0][key], states[1][key]), key
        if key.endswith(("conv.weight", "running_mean")):
            assert not torch.equal(states[1][key], states[2][key]), key


@pytest.mark.parametrize("name", ["tf_mobilenetv3_small_100", "tf_mobilenetv3_large_100"])
def test_with_its_own_eps_a_model_trains_as_timms_does(name):
    """The folded eps is exact in evaluation alone; in training, that of the source counts."""
    theirs = randomize(timm.create_model(name, num_classes=5).double())
    with torch.no_grad():
        for module in theirs.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.mul_(1e-4)  # where an eps counts
    ours = mnv3.create_model(name.replace("tf_mobilenetv3", "mnv3").replace("_100", "_tf"), num_classes=5).double()
    ours.load_state_dict(mnv3.convert_state_dict(theirs.state_dict(), ours))
    x = 1e-3 * torch.randn(4, 3, 64, 64, dtype=torch.float64)
    before = ours.eval()(x)
    mnv3.set_bn_eps(ours, 1e-3)
    torch.testing.assert_close(ours(x), before, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.train()(x), theirs.train()(x), rtol=1e-9, atol=1e-9)
    found = mnv3.convert_state_dict(theirs.state_dict(), mnv3.set_bn_eps(ours, 1e-5))
    torch.testing.assert_close(ours.state_dict(), found, rtol=1e-9, atol=1e-12)


def test_eps_that_no_variance_allows():
    model = mnv3.create_model("mnv3_small_cifar")
    model.blocks[3].expand.norm.running_var[5] = 1e-4
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"eps=0.001: a batch norm has a channel of variance \+ eps 0.00011"):
        mnv3.set_bn_eps(model, 1e-3)
    with pytest.raises(ValueError, match="above 0"):
        mnv3.set_bn_eps(model, 0)
    assert same(before, model.state_dict())


def test_eps_of_the_weights_that_it_starts_from(plain, tmp_path):
    def eps(**options):
        return ingredients._bn_eps(dataclasses.replace(plain, **options))

    assert eps() == eps(model="mnv3_small_tf") == eps(model="mnv3_small", pretrained=True) == 1e-5
    assert eps(model="mnv3_small_tf", pretrained=True) == eps(model="mnv3_large.tv2_in1k", pretrained=True) == 1e-3
    assert eps(bn_eps=1e-4) == 1e-4
    run = finetune(plain, out=tmp_path / "run", bn_eps=1e-3)
    model = mnv3.load_checkpoint(run)
    assert {module.eps for module in model.modules() if isinstance(module, nn.BatchNorm2d)} == {1e-5}
    metrics = json.loads((run / "test.json").read_text())
    assert mnv3.evaluate(model, mnv3.data.load(plain.data, "test")).loss == pytest.approx(metrics["loss"], abs=1e-5)


def test_frozen_batch_norms_keep_their_statistics_and_learn(plain, tmp_path):
    first = finetune(plain, out=tmp_path / "first")
    training = trained(plain, tmp_path / "second", checkpoint=str(first), freeze_bn=True)
    saved = load_file(first / "model.safetensors")
    for key, value in training.raw.state_dict().items():
        if "running" in key or "num_batches" in key:
            assert torch.equal(value, saved[key]), key
        elif key.endswith("norm.bias"):
            assert not torch.equal(value, saved[key]), key


def test_average_of_parameters_and_buffers(plain):
    raw = mnv3.create_model("mnv3_small_cifar")
    ema = ingredients.ema(dataclasses.replace(plain, ema=0.5), raw)
    before = {key: value.clone() for key, value in ema.module.state_dict().items()}
    for value in raw.state_dict().values():
        value.add_(3)
    ema.update(raw, step=10**6)
    for key, value in ema.module.state_dict().items():
        now = raw.state_dict()[key]
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.5 * before[key] + 0.5 * now)
        else:
            assert value.dtype == torch.int64
            assert value == now
    assert ema.get_decay(1) == 0
    assert ema.get_decay(2) < 0.5


def test_weight_decay_is_for_weights_alone(plain):
    raw = mnv3.create_model("mnv3_small_cifar", num_classes=3)
    groups = optimizers.optimizer(plain, raw).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    spared = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}
    assert not decayed & spared
    assert decayed | spared == {id(p) for p in raw.parameters()}
    assert decayed == {id(p) for p in raw.parameters() if p.dim() > 1}


def test_layer_decay_gives_early_layers_smaller_rates(plain):
    raw = mnv3.create_model("mnv3_small_cifar", num_classes=3)
    optimizer = optimizers.optimizer(dataclasses.replace(plain, layer_decay=0.5), raw)
    optimizers.Schedule(dataclasses.replace(plain, schedule="constant"), optimizer, 3)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    stem, first, second = (
        rate[id(m)] for m in (raw.stem.conv.weight, raw.blocks[1].expand.conv.weight, raw.classifier.weight)
    )
    assert stem < first < second == 0.05


# Options


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "muon", "lr": 0.01},
        {"optimizer": "lamb", "lr": 0.01, "clip": 0.01, "clip_mode": "agc"},
        {"optimizer": "adamw", "bn_momentum": 0.2, "channels_last": False},
        {"augment": "rand", "balance": True, "deterministic": True},
        {"size": 24, "sizes": (8, 24), "crop": 2},
        {"use_se": False},
        {"use_hs": False, "se_order": "act-se"},
        {"se_order": "se-act"},
        {"precision": "bf16"},
        {"batch_size": 1000},
        pytest.param({"compile": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_options(plain, tmp_path, options):
    training = trained(plain, tmp_path, **options)
    assert all(value.isfinite().all() for value in training.raw.state_dict().values())
    again = mnv3.load_checkpoint(tmp_path / "run")
    assert same(again.state_dict(), load_file(tmp_path / "run" / "model.safetensors"))


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"mixup": 0.2}, (1, 1, 8)),
        ({"cutmix": 1.0, "accumulate": 2}, (1, 2, 4)),
        ({"cutmix": 1.0, "accumulate": 3}, (1, 3, 2)),
        ({"cutmix": 1.0, "batch_size": 6}, (1, 1, 6)),
    ],
)
def test_mixup_of_nine_pictures(plain, tmp_path, few, options, shape):
    """Pictures are joined in pairs, so a batch of too few leaves one out, another in each epoch."""
    training = trained(plain, tmp_path, data=few, epochs=1, **options)
    assert training.batches.order(0).shape == shape


@pytest.mark.parametrize(
    "options",
    [
        *({"optimizer": name, "momentum": 0.0} for name in ("sgd", "momentum", "sgdw", "sgdp", "adamw")),
        *({"optimizer": name, "schedule": "onecycle"} for name in ("adafactor", "lamb", "muon")),
        {"optimizer": "sgd", "schedule": "onecycle", "momentum": 0.0},
    ],
    ids=str,
)
def test_optimizers_make_a_step(plain, options):
    raw, chosen = mnv3.create_model("mnv3_small_cifar", num_classes=3), dataclasses.replace(plain, **options)
    made = optimizers.optimizer(chosen, raw)
    schedule = optimizers.Schedule(chosen, made, 3)
    for parameter in raw.parameters():
        parameter.grad = torch.full_like(parameter, 0.1)
    before = raw.stem.conv.weight.detach().clone()
    made.step()
    schedule.step()
    assert not torch.equal(raw.stem.conv.weight, before)
    if options["optimizer"] == "sgd":  # plain: the rate times gradient and decay, and nothing kept for the next step
        rate = 0.05 if "schedule" not in options else 0.05 / 25
        moved = before - rate * (0.1 + chosen.weight_decay * before)
        torch.testing.assert_close(raw.stem.conv.weight.detach(), moved)
        assert {group["momentum"] for group in made.param_groups} == {0.0}


def test_checkpoints_and_teachers_that_take_no_rgb_or_do_not_pool(plain, tmp_path):
    for name, options, message in (
        ("grey", {"in_chans": 1}, "is for pictures of 1 channels; those of a training are RGB, 3 channels"),
        ("thirteen", {"in_chans": 13}, "is for pictures of 13 channels; those of a training are RGB, 3 channels"),
        ("maps", {"global_pool": ""}, "has global_pool='' and makes maps"),
    ):
        folder = mnv3.save(mnv3.create_model("mnv3_small_cifar", num_classes=3, **options), tmp_path / name)
        starts = [{"checkpoint": str(folder)}, {"teacher": str(folder)}]
        file = folder / "model.safetensors"
        if name == "maps":  # a file of weights does not say it, a checkpoint of timm's train.py does
            args = argparse.Namespace(model="mnv3_small_cifar", model_kwargs=options)
            checkpoint = {"arch": args.model, "state_dict": load_file(file), "optimizer": {}, "args": args}
            torch.save(checkpoint, file := tmp_path / "last.pth.tar")
        starts += [{"checkpoint": str(file)}]
        for start in starts:
            with pytest.raises(ValueError, match=message) as caught:
                finetune(plain, out=tmp_path / "run", **start)
            assert str(caught.value).startswith(f"{next(iter(start))}: {next(iter(start.values()))}")
            assert not (tmp_path / "run").exists()


def test_start_from_weights(plain, tmp_path):
    first = finetune(plain, out=tmp_path / "first")
    start = ingredients.model(dataclasses.replace(plain, checkpoint=str(first)), list("abcd"))
    saved = load_file(first / "model.safetensors")
    assert start.classifier.out_features == 4
    assert all(torch.equal(v, saved[k]) for k, v in start.state_dict().items() if not k.startswith("classifier"))
    as_file = dataclasses.replace(plain, checkpoint=str(first / "model.safetensors"))
    assert torch.equal(ingredients.model(as_file, list("abc")).stem.conv.weight, saved["stem.conv.weight"])
    with pytest.raises(ValueError, match="no file or folder"):
        ingredients.model(dataclasses.replace(plain, checkpoint="nowhere"), list("abc"))


def test_a_teacher_sees_pictures_in_its_own_normalisation(plain, tmp_path, monkeypatch):
    folder = finetune(plain, out=tmp_path / "teacher", mean=(0.2, 0.3, 0.4), std=(0.1, 0.2, 0.3))
    chosen = dataclasses.replace(plain, teacher=str(folder), teacher_weight=1.0, temperature=2.0)
    student = ingredients.model(chosen, list(COLOURS))
    teacher = ingredients.teacher(chosen, student)
    pixels = torch.rand(2, 3, 16, 16)
    own, (mean, std) = (
        mnv3.load_checkpoint(folder).eval(),
        (torch.tensor(student.pretrained_cfg[k]) for k in ("mean", "std")),
    )
    x = (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    expected = own((pixels - torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)) / torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1))
    torch.testing.assert_close(teacher(x), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="has 3 classes, the pictures 2"):
        ingredients.teacher(chosen, mnv3.create_model("mnv3_small_cifar", num_classes=2))


def test_a_teacher_of_ours_is_folded(plain, tmp_path):
    teacher = randomize(mnv3.create_model("mnv3_small_cifar", num_classes=3))
    folder = mnv3.save(teacher, tmp_path / "teacher")
    made = ingredients.teacher(dataclasses.replace(plain, teacher=str(folder)), teacher)
    assert not [module for module in made.modules() if isinstance(module, nn.BatchNorm2d)]
    x = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(made(x), teacher(x), rtol=1e-4, atol=1e-4)
    loss = ingredients.distance(made(x), teacher(x), 2.0)
    assert loss.abs() < 1e-6
    student, answer = torch.randn(4, 3), torch.randn(4, 3)
    p, q = (answer / 2).softmax(1), (student / 2).softmax(1)
    torch.testing.assert_close(ingredients.distance(student, answer, 2.0), 4 * (p * (p / q).log()).sum() / 4)


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


def test_missing_packages_say_what_to_install(plain, tmp_path, monkeypatch):
    for package in ("accelerate", "torch.utils.tensorboard", "matplotlib.figure"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(ImportError, match=r"pip install 'mnv3\[finetune\]'"):
                finetune(plain, out=tmp_path / package, epochs=1)


# Several processes


@pytest.fixture
def torchrun():
    """The beginning of a command that runs in two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]


@pytest.mark.slow
def test_two_processes(plain, tmp_path, coloured, torchrun):
    (tmp_path / "r.yaml").write_text(dataclasses.replace(plain, ema=0.9, batch_size=8).to_yaml())

    def command(*args):
        done = subprocess.run([*torchrun, "-m", "mnv3", *args], capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    assert command("finetune", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "run")).count("wrote") == 1
    assert log(tmp_path / "run")[-1]["updates"] == "6"  # of 48 pictures, 8 for each process
    command("eval", str(tmp_path / "run"), "--data", str(coloured), "--json", str(tmp_path / "two.json"))
    one = mnv3.evaluate(mnv3.load_checkpoint(tmp_path / "run"), mnv3.data.load(str(coloured), "test"))
    one.save(tmp_path / "one.json")
    assert (tmp_path / "one.json").read_text() == (tmp_path / "two.json").read_text()


@pytest.mark.slow
def test_processes_see_different_pictures_and_end_with_the_same_buffers(plain, tmp_path, torchrun):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    (tmp_path / "r.yaml").write_text(dataclasses.replace(plain, ema=0.9, batch_size=8).to_yaml())
    done = subprocess.run([*torchrun, str(script), str(tmp_path)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for epoch in (0, 1):
        a, b = first["order"][epoch], second["order"][epoch]
        assert sorted([*a, *b]) == list(range(48))
    assert first["order"][0] != first["order"][1]
    assert same(first["raw"], second["raw"])
    assert same(first["ema"], second["ema"])


SCRIPT = """
import sys, torch
from mnv3 import recipe
from mnv3.finetune import Training
folder = sys.argv[1]
training = Training(recipe.load(f"{folder}/r.yaml"), __import__("pathlib").Path(folder) / "run")
order = [training.batches.order(epoch)[:, training.rank :: training.world].flatten().tolist() for epoch in (0, 1)]
training.run()
state = {"order": order, "raw": training.raw.state_dict(), "ema": training.ema.module.state_dict()}
torch.save(state, f"{folder}/{training.rank}.pt")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def test_recipes_of_the_package_name_models_that_exist():
    for name in recipe.names():
        mnv3.create_model(recipe.load(name).model)
        assert Path(recipe.find(name)).read_text().startswith("# ")
