"""What happens in an update: accumulation, clipping, loss scaling, skipped steps, what is frozen."""

import dataclasses

import pytest
import torch
from accelerate import Accelerator
from conftest import randomize
from safetensors.torch import load_file
from timm.data import Mixup
from trainings import last, rates_of, same, trained

import mnv3
from mnv3.errors import TrainingStopped
from mnv3.train import ingredients, processes
from mnv3.train.augment import Augment
from mnv3.train.finetune import Training

pytestmark = pytest.mark.usefixtures("no_charts")


def test_accumulated_batches_make_the_update_of_one_large_batch(plain, tmp_path):
    options = {"freeze_epochs": 9, "crop": 0, "flip": False}  # batch norm sees batches, so it is frozen
    large = trained(plain, tmp_path / "large", batch_size=16, **options)
    small = trained(plain, tmp_path / "small", batch_size=4, accumulate=4, **options)
    assert large.scheduler.updates == small.scheduler.updates == 6
    torch.testing.assert_close(large.raw.state_dict(), small.raw.state_dict(), rtol=1e-5, atol=1e-6)
    assert large.history[1]["train_loss"] == pytest.approx(small.history[1]["train_loss"], rel=1e-5)


def test_gradients_are_clipped_once_an_update(plain, tmp_path, monkeypatch):
    norms, clip = [], Accelerator.clip_grad_norm_

    def spy(self, parameters, limit):
        parameters = list(parameters)
        result = clip(self, parameters, limit)
        norms.append(torch.cat([p.grad.flatten() for p in parameters]).norm().item())
        return result

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", spy)
    trained(plain, tmp_path, batch_size=4, accumulate=4, clip=0.01, epochs=1)
    assert len(norms) == 3
    assert max(norms) <= 0.01 * (1 + 1e-5)


def scaled(monkeypatch, scale):
    """Float32 training behind a loss scaler, as float16 on a GPU has it."""
    group = processes.process_group

    def with_scaler(precision):
        accelerator = group("no")
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6)
        accelerator.unscale_gradients = lambda: accelerator.scaler.unscale_(accelerator._optimizers[-1].optimizer)
        return accelerator

    monkeypatch.setattr(processes, "process_group", with_scaler)


def test_gradients_are_unscaled_before_they_are_clipped(plain, tmp_path, monkeypatch):
    for mode in ("norm", "agc"):
        with monkeypatch.context() as patch:
            expected = trained(plain, tmp_path / mode, clip=0.05, clip_mode=mode, epochs=1).raw.state_dict()
            scaled(patch, 2.0**10)  # a power of two changes no digit
            scaled_up = trained(
                plain, tmp_path / f"{mode}-scaled", clip=0.05, clip_mode=mode, epochs=1
            ).raw.state_dict()
        assert same(expected, scaled_up)


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
    assert rates == pytest.approx(rates_of(plain, **chosen)[: len(rates)])


def test_a_gradient_that_never_is_finite_ends_the_run(plain, tmp_path, monkeypatch):
    overflowing(monkeypatch)
    monkeypatch.setattr(torch.amp.GradScaler, "update", lambda self: self._per_optimizer_states.clear())
    with pytest.raises(TrainingStopped, match="20 updates in a row"):
        trained(plain, tmp_path, batch_size=4)  # 12 updates an epoch


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


def test_frozen_batch_norms_keep_their_statistics_and_learn(plain, tmp_path):
    folder = mnv3.save(randomize(mnv3.create_model("mnv3_small_cifar", num_classes=3)), tmp_path / "first")
    training = trained(plain, tmp_path / "second", checkpoint=str(folder), freeze_bn=True, epochs=1)
    saved = load_file(folder / "model.safetensors")
    for key, value in training.raw.state_dict().items():
        if "running" in key or "num_batches" in key:
            assert torch.equal(value, saved[key]), key
        elif key.endswith("norm.bias"):
            assert not torch.equal(value, saved[key]), key


def test_a_teachers_share_of_the_loss_and_the_average_of_one_update(plain, tmp_path, few, monkeypatch):
    options = {"data": few, "epochs": 1, "freeze_epochs": 1}
    alone = trained(plain, tmp_path / "alone", ema=0.9, **options)
    assert same(alone.raw.state_dict(), alone.averaged.state_dict()), "its decay is warmed up, from zero"
    folder = mnv3.save(alone.raw, tmp_path / "teacher")
    monkeypatch.setattr("mnv3.train.ingredients.distance", lambda logits, answer, temperature: 0 * logits.sum() + 2)
    taught = trained(plain, tmp_path / "taught", teacher=str(folder), teacher_weight=0.25, **options)
    expected = 0.75 * alone.history[0]["train_loss"] + 0.25 * 2
    assert taught.history[0]["train_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "mixed"), [({}, [3, 3]), ({"mix_off_epochs": 1}, [3, 0]), ({"mix_prob": 0}, [0, 0])]
)
def test_which_batches_are_mixed(plain, tmp_path, monkeypatch, options, mixed):
    shares, mix = [], Mixup._mix_batch
    monkeypatch.setattr(Mixup, "_mix_batch", lambda self, x: shares.append(mix(self, x)) or shares[-1])
    trained(plain, tmp_path, mixup=1.0, **options)
    assert [sum(share < 1 for share in shares[at : at + 3]) for at in (0, 3)] == mixed


# A device that computes beside us


def test_an_update_does_not_wait_for_the_device(plain, tmp_path, monkeypatch):
    """Every tensor is on 'meta', whose numbers nobody can ask for, and which no operator takes beside another's."""
    make = ingredients.ema

    def ema(recipe, raw):
        average = make(recipe, mnv3.create_model("mnv3_small_cifar", num_classes=3))
        average.module.to("meta")
        return average

    monkeypatch.setattr(ingredients, "ema", ema)
    monkeypatch.setattr(Accelerator, "device", torch.device("meta"))
    options = {"ema": 0.9, "erase": 0.9, "cutmix": 1.0, "mixup": 0.2, "clip": 1.0, "accumulate": 2, "batch_size": 8}
    training = Training(dataclasses.replace(plain, **options), tmp_path / "run")
    model = processes.wrap(training.raw, training.accelerator, compile=False, frozen=False)
    for batches in training.batches.of_epoch(0, 0):
        ingredients.train_mode(training.raw, freeze_bn=False)
        training._update(model, batches)
    assert [value.device.type for _, value in training.pending] == ["meta"] * 3
    with pytest.raises((NotImplementedError, RuntimeError)):
        training._settle()


def test_what_a_device_tells_late_is_the_same(plain, tmp_path):
    logs = []
    for lag in (1, 2, 16):
        training = Training(dataclasses.replace(plain, ema=0.9), tmp_path / str(lag))
        training.lag = lag
        training.run()
        logs.append(([(line["train_loss"], line["grad_norm"]) for line in training.history], training.raw.state_dict()))
    assert logs[0][0] == logs[1][0] == logs[2][0]
    assert same(logs[0][1], logs[1][1])
    assert same(logs[0][1], logs[2][1])


@pytest.mark.parametrize("lag", [1, 2, 16])
def test_a_late_gradient_that_is_not_finite_is_the_one_named(plain, tmp_path, monkeypatch, lag):
    batch, calls = Augment.batch, iter(range(9))

    def poisoned(self, x, *args):
        return batch(self, x, *args) * (float("inf") if next(calls) == 4 else 1)

    monkeypatch.setattr(Augment, "batch", poisoned)
    training = Training(plain, tmp_path / "run")
    training.lag = lag
    with pytest.raises(TrainingStopped, match=r"not finite in epoch 2, update 2.*last-3"):
        training.run()
    assert all(value.isfinite().all() for value in load_file(last(tmp_path / "run") / "model.safetensors").values())


def test_a_graph_for_each_size_and_no_other(plain, tmp_path, monkeypatch):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **kwargs: compile(model, backend=backend, **kwargs))
    training = trained(plain, tmp_path, compile=True, epochs=6, sizes=(8, 12, 16))
    assert training.scheduler.updates == 18
    assert len(graphs) == 3
