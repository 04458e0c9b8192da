"""Optimisers, and the learning rate of every update."""

import dataclasses
import math

import pytest
import torch
from trainings import rates_of

import mnv3
from mnv3.train import optimizers
from mnv3.train.finetune import Training


@pytest.fixture(scope="module")
def raw():
    """A model whose weights a test may change."""
    return mnv3.create_model("mnv3_small_cifar", num_classes=3)


def test_weight_decay_is_for_weights_alone(plain, raw):
    groups = optimizers.optimizer(plain, raw).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    spared = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}
    assert not decayed & spared
    assert decayed | spared == {id(p) for p in raw.parameters()}
    assert decayed == {id(p) for p in raw.parameters() if p.dim() > 1}


def test_layer_decay_gives_early_layers_smaller_rates(plain, raw):
    optimizer = optimizers.optimizer(dataclasses.replace(plain, layer_decay=0.5), raw)
    optimizers.Schedule(dataclasses.replace(plain, schedule="constant"), optimizer, 3)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    stem, first, second = (
        rate[id(m)] for m in (raw.stem.conv.weight, raw.blocks[1].expand.conv.weight, raw.classifier.weight)
    )
    assert stem < first < second == 0.05


@pytest.mark.parametrize(
    "options",
    [
        *({"optimizer": name, "momentum": 0.0} for name in ("sgd", "momentum", "sgdw", "sgdp", "adamw")),
        *({"optimizer": name, "schedule": "onecycle"} for name in ("adafactor", "lamb", "muon")),
        {"optimizer": "sgd", "schedule": "onecycle", "momentum": 0.0},
    ],
    ids=str,
)
def test_optimizers_make_a_step(plain, raw, options):
    chosen = dataclasses.replace(plain, **options)
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


@pytest.mark.filterwarnings("ignore:Detected call of")  # here no optimiser steps
def test_schedules(plain):
    cosine = rates_of(plain, epochs=10, warmup_epochs=2, min_lr=0.001)
    assert cosine[:6] == pytest.approx([0.001 + 0.049 * k / 6 for k in range(1, 7)])
    assert cosine[6:] == pytest.approx([0.001 + 0.049 * (1 + math.cos(math.pi * t / 30)) / 2 for t in range(6, 31)])
    onecycle = rates_of(plain, schedule="onecycle", epochs=10, warmup_epochs=2)
    assert max(onecycle) == pytest.approx(0.05, rel=0.01)
    assert onecycle[-1] < 1e-5
    assert set(rates_of(plain, schedule="constant", epochs=10)) == {0.05}
    warm = rates_of(plain, schedule="constant", epochs=10, warmup_epochs=1)
    assert warm[:3] == pytest.approx([0.05 / 3, 0.1 / 3, 0.05])
    assert set(warm[3:]) == {0.05}


@pytest.mark.filterwarnings("ignore:Detected call of")
@pytest.mark.parametrize("schedule", ["cosine", "onecycle", "constant"])
def test_no_update_has_a_rate_of_nothing(plain, schedule):
    """With few pictures an update is an epoch; 4 epochs and 0.8 of them make the rise of one-cycle no step long."""
    for epochs, warmup in ((1, 0), (1, 0.5), (4, 0.8), (4, 1), (12, 1), (12, 0.1)):
        for updates in (1, 2, 3):
            rates = rates_of(plain, updates, schedule=schedule, epochs=epochs, warmup_epochs=warmup)
            assert min(rates[:-1]) > 0
            assert max(rates) <= plain.lr * (1 + 1e-9)


@pytest.mark.filterwarnings("ignore:Detected call of")
def test_cycles(plain, tmp_path):
    """Restarts from half the rate, for twice as long; sizes grow in each. The first cycle is a training of its own."""
    rates = rates_of(plain, epochs=14, cycles=3)
    assert [rates[3 * epoch] for epoch in (0, 2, 6)] == pytest.approx([0.05, 0.025, 0.0125])
    assert [epoch for epoch in range(1, 14) if rates[3 * epoch] > rates[3 * epoch - 1]] == [2, 6]
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert rates[:6] == pytest.approx(rates_of(plain, epochs=2)[:6])
    training = Training(dataclasses.replace(plain, epochs=6, cycles=2, sizes=(8, 16)), tmp_path / "run")
    assert [training.batches.size(epoch) for epoch in range(6)] == [8, 16, 8, 8, 16, 16]
