"""What a recipe names, made: models from weights, their eps, averages, teachers."""

import argparse
import dataclasses
import json

import pytest
import timm
import torch
from conftest import randomize
from safetensors.torch import load_file
from torch import nn
from trainings import COLOURS, same

import mnv3
from mnv3.train import ingredients
from mnv3.train.finetune import finetune

pytestmark = pytest.mark.usefixtures("no_charts")


def test_with_its_own_eps_a_model_trains_as_timms_does():
    """The folded eps is exact in evaluation alone; in training, that of the source counts."""
    theirs = randomize(timm.create_model("tf_mobilenetv3_small_100", num_classes=5).double())
    with torch.no_grad():
        for module in theirs.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.mul_(1e-4)  # where an eps counts
    ours = mnv3.create_model("mnv3_small_tf", num_classes=5).double()
    ours.load_state_dict(mnv3.convert_state_dict(theirs.state_dict(), ours))
    x = 1e-3 * torch.randn(4, 3, 64, 64, dtype=torch.float64)
    before = ours.eval()(x)
    mnv3.set_bn_eps(ours, 1e-3)
    torch.testing.assert_close(ours(x), before, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.train()(x), theirs.train()(x), rtol=1e-9, atol=1e-9)
    folded = mnv3.convert_state_dict(theirs.state_dict(), mnv3.set_bn_eps(ours, 1e-5))
    torch.testing.assert_close(ours.state_dict(), folded, rtol=1e-9, atol=1e-12)


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
    run = finetune(plain, out=tmp_path / "run", bn_eps=1e-3, epochs=1)
    model = mnv3.load_checkpoint(run)
    assert {module.eps for module in model.modules() if isinstance(module, nn.BatchNorm2d)} == {1e-5}
    metrics = json.loads((run / "test.json").read_text())
    assert mnv3.evaluate(model, mnv3.data.load(plain.data, "test")).loss == pytest.approx(metrics["loss"], abs=1e-5)


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_chans": 1}, "is for pictures of 1 channels; those of a training are RGB, 3 channels"),
        ({"global_pool": ""}, "has global_pool='' and makes maps"),
    ],
)
def test_checkpoints_and_teachers_that_take_no_rgb_or_do_not_pool(plain, tmp_path, options, message):
    folder = mnv3.save(mnv3.create_model("mnv3_small_cifar", num_classes=3, **options), tmp_path / "odd")
    file = folder / "model.safetensors"
    if "global_pool" in options:  # a file of weights does not say it, a checkpoint of timm's train.py does
        args = argparse.Namespace(model="mnv3_small_cifar", model_kwargs=options)
        checkpoint = {"arch": args.model, "state_dict": load_file(file), "optimizer": {}, "args": args}
        torch.save(checkpoint, file := tmp_path / "last.pth.tar")
    for key, path in (("checkpoint", folder), ("checkpoint", file), ("teacher", folder)):
        with pytest.raises(ValueError, match=message) as caught:
            finetune(plain, out=tmp_path / "run", **{key: str(path)})
        assert str(caught.value).startswith(f"{key}: {path}")
        assert not (tmp_path / "run").exists()


def test_start_from_weights(plain, tmp_path):
    first = mnv3.save(randomize(mnv3.create_model("mnv3_small_cifar", num_classes=3)), tmp_path / "first")
    start = ingredients.model(dataclasses.replace(plain, checkpoint=str(first)), list("abcd"))
    saved = load_file(first / "model.safetensors")
    assert start.classifier.out_features == 4
    assert all(torch.equal(v, saved[k]) for k, v in start.state_dict().items() if not k.startswith("classifier"))
    as_file = dataclasses.replace(plain, checkpoint=str(first / "model.safetensors"))
    assert torch.equal(ingredients.model(as_file, list("abc")).stem.conv.weight, saved["stem.conv.weight"])
    with pytest.raises(ValueError, match="no file or folder"):
        ingredients.model(dataclasses.replace(plain, checkpoint="nowhere"), list("abc"))


def test_a_teacher_sees_pictures_in_its_own_normalisation(plain, tmp_path):
    other = dataclasses.replace(plain, mean=(0.2, 0.3, 0.4), std=(0.1, 0.2, 0.3))
    folder = mnv3.save(randomize(ingredients.model(other, COLOURS)), tmp_path / "teacher")
    chosen = dataclasses.replace(plain, teacher=str(folder), teacher_weight=1.0, temperature=2.0)
    student = ingredients.model(chosen, COLOURS)
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
