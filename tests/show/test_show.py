"""mnv3 show: what the figures say is what is computed elsewhere, and nothing in them is cut off."""

import copy
import csv
import json
import math
import os
import shutil
import subprocess
import sys
from collections import Counter
from xml.etree import ElementTree

import figures
import numpy as np
import pytest
import timm
import torch
from conftest import ROOT
from PIL import Image
from torch import nn
from torchvision.transforms.functional import normalize, to_tensor

import mnv3
from mnv3 import arch, show
from mnv3.cli import main
from mnv3.figures import panels, style
from mnv3.pictures import images
from mnv3.show.calibration import calibration
from mnv3.show.comparison import collect
from mnv3.show.feature_maps import look
from mnv3.show.gradcam import class_index, grad_cam
from mnv3.show.network import lines
from mnv3.show.training import worst
from mnv3.timm_models import VARIANTS
from mnv3.train.results import read

pytest.importorskip("matplotlib")
SHIP = ROOT / "docs" / "ship.jpg"


@pytest.fixture(scope="module")
def cifar():
    return mnv3.create_model("mnv3_small_cifar", pretrained=True)


# --- arch


def counted(model, x):
    """Parameters, MACs and activations by part, by looking at every layer that runs."""
    found = {"macs": Counter(), "activations": Counter(), "params": Counter()}

    def count(name, layer, _, y):
        places = y[0, 0].numel() if y.ndim == 4 else 1
        part = ".".join(name.split(".")[: 2 if name.startswith("blocks") else 1])
        found["activations"][part] += y[0].numel()
        found["macs"][part] += layer.weight.numel() * places

    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(lambda layer, x, y, name=name: count(name, layer, x, y))
    for name, parameter in model.named_parameters():
        found["params"][".".join(name.split(".")[: 2 if name.startswith("blocks") else 1])] += parameter.numel()
    with torch.inference_mode():
        model.eval()(x)
    return found


NUMBERS = {"params": (1e3, ",.1f"), "macs": (1e6, ",.2f"), "activations": (250, ",.1f")}


def test_table_is_what_the_layers_say(arch_name):
    variant = VARIANTS[arch_name]
    found = counted(mnv3.create_model(arch_name), torch.zeros(1, 3, variant.size, variant.size))
    rows = list(arch.costs(variant.arch, size=variant.size, num_classes=variant.num_classes))
    for line in lines(variant.arch, rows):
        for name, (unit, form) in NUMBERS.items():
            assert line[name] == format(found[name][line["part"]] / unit, form), (line["part"], name)


@pytest.mark.parametrize("name", ["mnv3_small", "mnv3_large_minimal", "mnv3_large_cifar"])
def test_arch(name, tmp_path):
    """The picture has every line of the table, and its total."""
    variant = VARIANTS[name]
    figure = show.arch(name, path=tmp_path / "a.png")
    figures.check(figure)
    words = figures.texts(figure)
    rows = list(arch.costs(variant.arch, size=variant.size, num_classes=variant.num_classes))
    for line in lines(variant.arch, rows):
        start = words.index(line["part"], words.index("resolution"))
        assert words[start : start + 11] == list(line.values())
    for key, (unit, form) in NUMBERS.items():
        assert format(sum(getattr(row, key) for row in rows) / unit, form) in words
    assert Image.open(tmp_path / "a.png").width == 1245
    assert any(word == "pool" for word in words) == any(row.se for row in variant.arch.rows)


def test_activations_are_those_that_timm_publishes():
    """Of its results/model_metadata-in1k.csv, in millions."""
    for table, published in ((arch.LARGE, 4.41), (arch.SMALL, 1.42)):
        assert sum(cost.activations for cost in arch.costs(table)) / 1e6 == pytest.approx(published, abs=0.005)
    theirs = counted(timm.create_model("mobilenetv3_large_100"), torch.zeros(1, 3, 224, 224))
    assert theirs["activations"].total() == sum(cost.activations for cost in arch.costs(arch.LARGE))


def test_arch_of_models_and_tables():
    tiny = arch.Arch(16, (arch.Bneck(3, 16, 16, False, "RE", 1), arch.Bneck(5, 96, 40, True, "HS", 2)), 240, 256)
    for given in (tiny, mnv3.MobileNetV3(tiny, num_classes=7), arch.dilate(arch.LARGE)):
        if isinstance(given, nn.Module):
            given.pretrained_cfg = {"architecture": "tiny", "input_size": (3, 64, 64)}
        figures.check(show.arch(given, size=96, dark=True))
    model = mnv3.create_model("mnv3_small", se_order="se-act", num_classes=0, in_chans=1)
    figure = show.arch(model, block=3)
    figures.check(figure)
    words = figures.texts(figure)
    assert {"blocks.3", "depthwise 5×5, stride 2", "h-swish", "24 → 96, hard σ", "224² × 1"} <= set(words)
    assert "depthwise 5×5, stride 2,\nh-swish" in figures.texts(show.arch("mnv3_small", block=3))


# --- features


def test_features_are_the_models(cifar, tmp_path):
    cifar.train()
    looked = look(SHIP, cifar)
    assert cifar.training
    assert not any(module._forward_hooks for module in cifar.modules())
    cifar.eval()
    x = mnv3.transforms(cifar)(images.load(SHIP))[None]
    backbone = mnv3.create_model("mnv3_small_cifar", pretrained=True, features_only=True).eval()
    with torch.inference_mode():
        for (tap, maps), expected in zip(looked.stages, backbone(x), strict=True):
            assert torch.allclose(maps, expected[0], atol=1e-5), tap
        y = cifar.stem(x)
        for i, block in enumerate(cifar.blocks):
            if (name := f"blocks.{i}") in looked.gates:
                se, mean = block.se, block.depthwise(block.expand(y)).mean((2, 3))
                hidden = torch.relu(mean @ se.squeeze.weight.flatten(1).T + se.squeeze.bias)
                logit = hidden @ se.excite.weight.flatten(1).T + se.excite.bias
                assert torch.allclose(looked.gates[name], (logit[0] / 6 + 0.5).clamp(0, 1), atol=1e-5), name
            y = block(y)
    assert len(looked.gates) == sum(row.se for row in cifar.arch.rows)

    figure = show.features(SHIP, cifar, path=tmp_path / "f.png")
    figures.check(figure)
    words = figures.texts(figure)
    for tap, maps in looked.stages:
        title = "{}: {} channels of {} × {}, stride {}".format(tap.module, *maps.shape, tap.reduction)
        assert title in words
    for name, gate in looked.gates.items():
        opened, shut = (100 * share.float().mean().item() for share in (gate > 0.5, gate == 0))
        assert f"{name}: {len(gate)} channels, {opened:.0f} % above ½, {shut:.0f} % shut" in words
        (axis,) = (axis for axis in figure.axes if axis.get_title("left").startswith(f"{name}: "))
        assert np.allclose(figures.picture(axis)[0], gate)
        bars = figure.axes[figure.axes.index(axis) + 1].patches
        assert sum(bar.get_height() for bar in bars) == len(gate)
    drawn = [figures.picture(axis) for axis in figure.axes if axis.get_title() == "mean"]
    assert all(np.allclose(a, maps.mean(0)) for a, (_, maps) in zip(drawn, looked.stages, strict=True))


def test_features_without_squeeze_and_excite(tmp_path):
    model = mnv3.create_model("mnv3_small_minimal")
    words = figures.texts(show.features(SHIP, model))
    assert "mean" in words
    assert not any("shut" in word for word in words)
    with pytest.raises(ValueError, match="mnv3_small_minimal has no squeeze-and-excite"):
        show.features(SHIP, model, what="gates", path=tmp_path / "x.png")
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_every_model_can_be_looked_into(arch_name):
    model = mnv3.create_model(arch_name)
    figures.check(show.features(SHIP, model))
    figures.check(show.why(SHIP, model, class_=3))


def test_fused_and_compiled_models_are_looked_into_too(cifar):
    before = look(SHIP, cifar)
    fused = look(SHIP, mnv3.fuse(cifar.eval()))
    assert fused.gates.keys() == before.gates.keys()
    assert all(torch.allclose(fused.gates[name], gate, atol=1e-4) for name, gate in before.gates.items())
    figures.check(show.why(SHIP, torch.compile(cifar)))


@pytest.mark.parametrize("what", ["maps", "gates"])
def test_one_part_of_features(cifar, what):
    words = figures.texts(show.features(SHIP, cifar, what=what, dark=True))
    assert ("mean" in words) == (what == "maps")
    assert any("shut" in word for word in words) == (what == "gates")


# --- why


def test_why_is_grad_cam_and_the_predictions(cifar, tmp_path):
    x = mnv3.transforms(cifar)(images.load(SHIP))[None]
    for index in (None, 3):
        heat, logits = grad_cam(cifar, x, index)
        features = cifar.eval().forward_features(x).detach().requires_grad_()
        logit = cifar.forward_head(features)[0, logits.argmax() if index is None else index]
        (gradient,) = torch.autograd.grad(logit, features)
        expected = (gradient.mean((2, 3), keepdim=True) * features).sum(1)
        assert torch.allclose(heat, expected.detach(), atol=1e-6)
        assert not any(parameter.grad is not None for parameter in cifar.parameters())
    figure = show.why(SHIP, cifar, class_="Airplane", path=tmp_path / "w.png")
    figures.check(figure)
    words = figures.texts(figure)
    (prediction,) = mnv3.predict(cifar, SHIP)
    for entry in prediction.topk:
        assert words[words.index(entry["label"]) + 1] == f"{100 * entry['prob']:.1f} %"
    assert {"speaks for airplane", "seen at 32 × 32 px", "probability / %"} <= set(words)
    picture, grey = (figures.picture(axis) for axis in figure.axes[:2])
    assert picture.shape == (448, 448, 3)
    assert grey.shape == (448, 448)
    assert Image.open(tmp_path / "w.png").width == 1245


def test_a_class_by_name_or_number():
    names = ["cat", "Dog", "7"]
    assert [class_index(names, given) for given in ("cat", "dog", 1, "1", "7")] == [0, 1, 1, 1, 2]
    with pytest.raises(ValueError, match="class 3: the model has classes 0 to 2"):
        class_index(names, "3")
    with pytest.raises(ValueError, match="no class 'catt'. Did you mean 'cat'"):
        class_index(names, "catt")


def test_models_that_cannot_be_looked_into(cifar):
    cases = [
        (timm.create_model("mobilenetv3_small_050"), "MobileNetV3: only mnv3's models"),
        (mnv3.create_model("mnv3_small", in_chans=1), "in_chans=1"),
        (mnv3.create_model("mnv3_small", num_classes=0), "no classifier"),
    ]
    for model, message in cases:
        with pytest.raises(ValueError, match=message):
            show.why(SHIP, model)


def spearman(a, b):
    """Rank correlation of each pair of maps."""
    a, b = (maps.flatten(1).argsort(1).argsort(1).double() for maps in (a, b))
    a, b = (ranks - ranks.mean(1, keepdim=True) for ranks in (a, b))
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


@pytest.fixture(scope="module")
def real(shared):
    """Real weights, and pictures with their classes that they know."""
    model = mnv3.load_checkpoint(shared / "weights/hub/timm/tf_mobilenetv3_small_100.in1k").eval()
    files = sorted((shared / "images/imagenet_half").glob("*.jpg"))[::10]
    x = torch.stack([mnv3.transforms(model)(images.load(file)) for file in files])
    labels = torch.tensor([int(file.name[:4]) for file in files])
    with torch.inference_mode():
        right = model(x).argmax(1) == labels
    return model, [file for file, good in zip(files, right, strict=True) if good], x[right], labels[right]


@pytest.mark.slow
@pytest.mark.parametrize("last", ["classifier", "last", "stem"])
def test_other_weights_give_another_map(real, last):
    """Adebayo et al. 2018, https://arxiv.org/abs/1810.03292: from the classifier down, shuffle the weights."""
    model, _, x, labels = real
    before = torch.cat([grad_cam(model, one[None], label)[0] for one, label in zip(x, labels.tolist(), strict=True)])
    shuffled, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    parts = ["classifier", "head", "last", *(f"blocks.{i}" for i in reversed(range(len(model.blocks)))), "stem"]
    for part in parts[: parts.index(last) + 1]:
        for parameter in shuffled.get_submodule(part).parameters():
            if parameter.ndim > 1:
                order = torch.randperm(parameter.numel(), generator=generator)
                parameter.data = parameter.data.flatten()[order].view_as(parameter)
    maps = [grad_cam(shuffled, one[None], label)[0] for one, label in zip(x, labels.tolist(), strict=True)]
    assert spearman(before, torch.cat(maps)).abs().mean() < 0.45
    assert spearman(before, before).min() > 0.999


@pytest.mark.slow
def test_the_map_follows_the_object(real):
    """Of two pictures side by side, the map of either's class lies on its own half."""
    model, files, _, labels = real
    shares = []
    for i in range(len(files) - 1):
        both = Image.new("RGB", (448, 448), "gray")
        for place, file in enumerate(files[i : i + 2]):
            picture = images.load(file)
            side = min(picture.size)
            left, top = ((length - side) // 2 for length in picture.size)
            half = picture.crop((left, top, left + side, top + side)).resize((224, 224))
            both.paste(half, (224 * place, 112))
        x = normalize(to_tensor(both), (0.5,) * 3, (0.5,) * 3)[None]  # which these weights take
        for place in (0, 1):
            heat = grad_cam(model, x, labels[i + place].item())[0][0].clamp(min=0)
            halves = heat.chunk(2, 1)
            shares.append((halves[place].sum() / heat.sum()).item())
    assert len(shares) > 50
    assert np.mean(np.array(shares) > 0.5) > 0.9
    assert np.mean(shares) > 0.75


# --- run


def test_run(trained, tmp_path):
    figure = show.run(trained, path=tmp_path / "r.png")
    figures.check(figure)
    test = json.loads((trained / "test.json").read_text())
    words = figures.texts(figure)
    assert f"mnv3_small_cifar, noisy0, 2 epochs, top-1 {test['top1']:.2f} % of 30 test pictures" in words
    by_label = {axis.get_ylabel(): axis for axis in figure.axes if axis.get_ylabel()}
    log = list(csv.DictReader((trained / "log.csv").open()))
    for label, keys in (
        ("cross-entropy / nats", ["train_loss", "val_loss"]),
        ("learning rate", ["lr"]),
        ("validation top-1 / %", ["val_top1"]),
    ):
        drawn = [line.get_ydata().tolist() for line in by_label[label].lines]
        assert drawn == [[float(line[key]) for line in log] for key in keys]
    matrix = np.array(test["confusion"])
    assert np.allclose(figures.picture(by_label["true class"]), 100 * matrix / matrix.sum(1, keepdims=True))
    for share in test["per_class"].values():
        assert f"{share:.1f}" in words


def test_answers_are_the_evaluations(trained):
    """Predictions made again give test.json; calibration and mistakes are counted one by one."""
    results = read(trained)
    probs, labels = results.answers.probs, results.answers.labels
    matrix = np.zeros((3, 3), dtype=int)
    for p, label in zip(probs, labels, strict=True):
        matrix[label, p.argmax()] += 1
    assert matrix.tolist() == results.test.confusion
    wrong = [
        (-max(p.tolist()), i, label.item(), p.argmax().item())
        for i, (p, label) in enumerate(zip(probs, labels, strict=True))
        if p.argmax() != label
    ]
    expected = [(i, label, answer, pytest.approx(-sure)) for sure, i, label, answer in sorted(wrong)]
    assert worst(results.answers, 1000) == expected
    assert len(wrong) > 3


def test_run_with_large_pictures(trained, tmp_path):
    """Of several sizes, so that they are read from their files; and none for some of the mistakes."""
    rng = np.random.default_rng(0)
    for i, name in enumerate(("bright", "dark", "middle & <b>")):
        (tmp_path / "test" / name).mkdir(parents=True)
        for j in range(3):
            pixels = rng.normal(100 + 20 * i, 30, (120, 150 + 10 * j, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "test" / name / f"{j}.jpg")
    figure = show.run(trained, what=["mistakes"], data=str(tmp_path))
    figures.check(figure)
    drawn = [figures.picture(axis) for axis in figure.axes if axis.images]
    assert len(drawn) > 2
    assert all(max(picture.shape) <= 160 for picture in drawn)


@pytest.mark.filterwarnings("ignore:Glyph")  # where no font has it
def test_many_classes_and_odd_names():
    """A hundred classes are not named along the axes; a dollar is a dollar; a long name is cut off."""
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, 9, (100, 100)).tolist()
    names = [f"a rather long name of a class, {i}" for i in range(100)]
    names[int(np.argmin([row[i] / sum(row) for i, row in enumerate(matrix)]))] = "$\\nope$ 猫"

    def draw(place):
        panels.confusion(place.subplots(), matrix, names)

    def worst_classes(place):
        assert panels.by_class(place.subplots(), matrix, names) == panels.SHOWN

    with style.page(None):
        rows = [(4, [draw]), (6, [worst_classes])]
        figure = style.finish(style.sheet(rows), None)
    figures.check(figure)
    words = figures.texts(figure)
    assert "a rather long name …" in words
    assert "$\\nope$ 猫" in words
    assert len(figure.axes[1].get_yticklabels()) == panels.SHOWN


def test_calibration_by_hand():
    generator = torch.Generator().manual_seed(0)
    probs = torch.randn(500, 4, generator=generator).mul(2).softmax(1)
    labels = torch.randint(0, 4, (500,), generator=generator)
    bins = [[] for _ in range(15)]
    for p, label in zip(probs.double().tolist(), labels.tolist(), strict=True):
        sure = max(p)
        bins[math.ceil(sure * 15) - 1].append((sure, p.index(sure) == label))
    ece = sum(abs(sum(s for s, _ in b) - sum(r for _, r in b)) for b in bins) / 500
    found = calibration(probs, labels)
    assert found.ece == pytest.approx(ece)
    assert found.count.tolist() == [len(b) for b in bins]
    for share, b in zip(found.accuracy, bins, strict=True):
        assert np.isnan(share) if not b else share == pytest.approx(np.mean([right for _, right in b]))
    perfect = calibration(torch.eye(4), torch.arange(4))
    assert perfect.ece == 0
    assert perfect.count[-1] == 4


def test_wilson_by_its_equation():
    """Its ends are where the normal interval of the true share just holds what was seen."""
    for hits, count in ((0, 10), (3, 10), (10, 10), (821, 1000)):
        for end in panels.wilson(hits, count):
            if 0 < end < 1:
                assert abs(hits / count - end) == pytest.approx(1.96 * math.sqrt(end * (1 - end) / count))
        low, high = panels.wilson(hits, count)
        assert 0 <= low <= hits / count <= high <= 1


def test_run_that_is_not_whole(copied, run, fails, tmp_path):
    out = ("-o", tmp_path / "x.png")
    (copied / "test.json").write_text("[]")
    assert "not what `mnv3 finetune` writes" in fails("show", "run", copied, *out)
    (copied / "test.json").unlink()
    assert "no test.json: there were no test pictures" in fails("show", "run", copied, *out)
    (copied / "config.json").unlink()
    assert "is not finished (2 of 2 epochs): go on with `mnv3 finetune --resume`" in fails("show", "run", copied, *out)
    assert run("show", "run", copied, "--what", "curves", *out)[0] == 0
    (tmp_path / "x.png").unlink()
    (copied / "log.csv").write_text("epoch,lr\n1,many\n")
    assert "not the log of a training" in fails("show", "run", copied, "--what", "curves", *out)
    (copied / "log.csv").unlink()
    assert "no epoch is done yet" in fails("show", "run", copied, *out)
    (copied / "recipe.yaml").unlink()
    assert "is no run's folder: it has no recipe.yaml" in fails("show", "run", copied, *out)
    assert "no such folder" in fails("show", "run", tmp_path / "none", *out)
    assert "expected some of curves, confusion" in fails("show", "run", copied, "--what", "curve", *out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]


def test_run_whose_pictures_are_gone(copied, noisy, run, fails, tmp_path):
    recipe = (copied / "recipe.yaml").read_text()
    (copied / "recipe.yaml").write_text(recipe.replace(str(noisy), "/nowhere"))
    out = ("-o", tmp_path / "x.png")
    err = fails("show", "run", copied, *out)
    assert "gone" in err
    assert "--what curves,confusion" in err
    assert run("show", "run", copied, "--what", "curves,confusion", *out)[0] == 0
    assert run("show", "run", copied, "--data", noisy, *out)[0] == 0


def test_other_pictures_are_noticed(copied, tmp_path, run):
    test = json.loads((copied / "test.json").read_text())
    (copied / "test.json").write_text(json.dumps(test | {"top1": 99.0}))
    status, _, err = run("show", "run", copied, "-o", tmp_path / "x.png")
    assert status == 0
    assert "but test.json has 99.00 %" in err


# --- compare


def test_compare(trained, tmp_path):
    test = json.loads((trained / "test.json").read_text())
    (tmp_path / "eval.json").write_text(json.dumps(test | {"top1": 70.5}))
    names = ["mnv3_small", "mnv3_large.tv_in1k", "torchvision/resnet18", "timm/mobilenetv2_100=72.9"]
    points, _ = collect([*names, f"mnv3_large_075={tmp_path / 'eval.json'}"], latency=False)
    assert [(p.name, p.library, p.top1) for p in points] == [
        ("mnv3_small.lamb_in1k", "mnv3", 67.638),
        ("mnv3_large.tv_in1k", "mnv3", 74.042),
        ("resnet18", "torchvision", 69.758),
        ("mobilenetv2_100", "timm", 72.9),
        ("mnv3_large_075", "mnv3", 70.5),
    ]
    assert points[0].macs == arch.count_macs(arch.SMALL)
    assert points[2].macs == pytest.approx(1.814e9, rel=1e-3)  # torchvision states as many GFLOPS
    cells = [
        {"model": p.source, "runtime": "eager", "threads": 1, "batch": 1, "ms": 3.0 + i} for i, p in enumerate(points)
    ]
    (tmp_path / "bench.json").write_text(json.dumps({"cells": cells}))
    figure = show.compare(names, bench=tmp_path / "bench.json", path=tmp_path / "c.svg")
    figures.check(figure)
    words = figures.texts(figure)
    assert {"top-1 / % (ImageNet-1k val)", "MACs / M at 224 px", "latency of one picture / ms, 1 thread"} <= set(words)
    for p in points[:4]:
        assert words.count(p.name) == 2
    macs = [x for part in figure.axes[0].collections for x in part.get_offsets()[:, 0].tolist()]
    assert sorted(macs) == pytest.approx(sorted(p.macs / 1e6 for p in points[:4]))
    shutil.copytree(trained, tmp_path / "a=b")
    (odd,), _ = collect([str(tmp_path / "a=b")], latency=False)
    weights = mnv3.save(mnv3.create_model("mnv3_small_cifar"), tmp_path / "w")
    (given,), _ = collect([f"{weights}=12.5"], latency=False)
    assert (odd.name, given.name, given.top1, given.macs) == ("a=b", "w", 12.5, 16315392)
    (point,), _ = collect([str(trained)], latency=False)
    assert (point.name, point.data) == ("trained", "noisy0 test")
    assert point.top1 == json.loads((trained / "test.json").read_text())["top1"]


def test_published_figures_beside_ours():
    """The public front of CIFAR-10; models whose MACs nobody states are in the table of docs/cifar10.md alone."""
    file = ROOT / "benchmarks" / "cifar10_published.json"
    names = ["mnv3_small_cifar.cifar10", str(file)]
    points, _ = collect(names, latency=False)
    stated = {m["name"]: (m["top1"], m["macs"]) for m in json.loads(file.read_text())["models"]}
    assert {p.name: (p.top1, p.macs) for p in points[1:]} == {k: v for k, v in stated.items() if v[1]}
    assert {(p.library, p.data, p.size) for p in points[1:]} == {("published", "CIFAR-10 test", 32)}
    figures.check(show.compare(names, latency=False))


@pytest.mark.slow
def test_compare_measures(tmp_path):
    points, _ = collect(["mnv3_small_cifar", "mnv3_large_cifar"], seconds=0.3)
    assert 0 < points[0].ms < points[1].ms


def test_names_of_all_models_have_room():
    names = [record.name for record in mnv3.CATALOG if record.top1 and record.data == "ImageNet-1k val"]
    figures.check(show.compare([*names, "torchvision/resnet18"], latency=False))


def test_ablation(tmp_path):
    rows = [
        {"variant": "none", "top1": [70.0, 71.0], "mean": 70.5, "sd": 0.7071, "macs": 1, "latency_ms": 2.0},
        {"variant": "both", "top1": [72.0, 75.0], "mean": 73.5, "sd": 2.1213, "macs": 1, "latency_ms": 2.5},
    ]
    (tmp_path / "ablation.json").write_text(json.dumps(rows))
    figure = show.compare([str(tmp_path)])
    figures.check(figure)
    axis = figure.axes[0]
    assert [bar.get_width() for bar in axis.patches] == [70.5, 73.5]
    ends = [part.get_segments()[0][:, 0].tolist() for part in axis.collections]
    assert ends == [pytest.approx([row["mean"] - row["sd"], row["mean"] + row["sd"]]) for row in rows]
    dots = [line.get_xdata().tolist() for line in axis.lines if line.get_marker() == "o"]
    assert dots == [row["top1"] for row in rows]
    assert {"neither", "both (the paper's)", "2.50"} <= set(figures.texts(figure))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["mnv3_smal"], "Did you mean 'mnv3_small"),
        (["mnv3_small.x"], "unknown tag 'x'"),
        (["mnv3_large_minimal"], "no pretrained weights are published"),
        (["mnv3_large.miil_in21k"], "no top-1 is published"),
        (["timm/resnet18"], "give it, as in timm/resnet18=71.5"),
        (["timm/resnet19=70"], "no model 'timm/resnet19'"),
        (["mnv3_small=170"], "expected a top-1 from 0 to 100"),
        (["mnv3_small=none.json"], "no such file, and no number"),
        (["mnv3_small=BAD"], "no top-1 in it"),
        (["mnv3_small", "mnv3_small_cifar"], "accuracies on different pictures"),
        (["mnv3_small", "--bench", "BAD"], "not what `mnv3 bench --json` writes"),
        (["mnv3_small", "--bench", "EMPTY"], "has no mnv3_small.lamb_in1k in eager with 1 thread"),
        (["mnv3_small", "--bench", "none.json"], "none.json: no such file"),
        (["WEIGHTS"], "no test.json of a run in it: give its top-1"),
        (["net.onnx=50"], "the MACs of an exported file cannot be counted"),
        (["ABLATION"], "not what `mnv3 ablate` writes"),
        (["BAD", "--no-latency"], "not a file of published figures"),
        (["none.json", "--no-latency"], "none.json: no such file"),
        (["PUBLISHED", "--no-latency"], "expected a top-1 from 0 to 100 per cent"),
        (["mnv3_small_cifar", str(ROOT / "benchmarks" / "cifar10_published.json")], "has no latency to measure"),
    ],
)
def test_what_cannot_be_compared(fails, tmp_path, args, message):
    (tmp_path / "bad.json").write_text("[]")
    (tmp_path / "empty.json").write_text('{"cells": []}')
    (tmp_path / "ablation.json").write_text('[{"variant": "none"}]')
    odd = {"name": "a", "top1": 170, "macs": 1, "source": "x"}
    (tmp_path / "published.json").write_text(json.dumps({"data": "x", "size": 32, "models": [odd]}))
    weights = mnv3.save(mnv3.create_model("mnv3_small_cifar"), tmp_path / "w")
    files = {
        "WEIGHTS": weights,
        "PUBLISHED": tmp_path / "published.json",
        "ABLATION": tmp_path,
        "EMPTY": tmp_path / "empty.json",
        "BAD": tmp_path / "bad.json",
    }
    args = [str(files[a]) if a in files else a.replace("BAD", str(files["BAD"])) for a in args]
    assert message in fails("show", "compare", *args, "-o", tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


# --- files and the command


def test_files(tmp_path):
    """PNG or SVG by the ending; the same figure is the same file; on black it is black."""
    for name in ("a.png", "b.png", "a.svg", "b.svg"):
        show.arch("mnv3_small", path=tmp_path / name)
    show.arch("mnv3_small", path=tmp_path / "dark.png", dark=True)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert ElementTree.parse(tmp_path / "a.svg").getroot().tag.endswith("}svg")
    assert Image.open(tmp_path / "a.png").convert("L").getpixel((2, 2)) == 255
    assert Image.open(tmp_path / "dark.png").convert("L").getpixel((2, 2)) < 40
    assert len(list(tmp_path.iterdir())) == 5


def test_nothing_of_matplotlibs_is_left_changed():
    import matplotlib

    before = dict(matplotlib.rcParams)
    show.arch("mnv3_small", dark=True)
    assert dict(matplotlib.rcParams) == before


def test_no_display_and_no_pyplot(tmp_path):
    code = "import mnv3, sys; mnv3.show.arch('mnv3_small', path='a.png'); print('matplotlib.pyplot' in sys.modules)"
    env = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "MPLBACKEND")}
    env |= {"PYTHONPATH": str(ROOT), "MPLBACKEND": "TkAgg"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert result.stdout == "False\n", result.stderr
    assert (tmp_path / "a.png").is_file()


@pytest.mark.parametrize(("module", "args"), [("matplotlib", ["arch", "mnv3_small"]), ("captum.attr", ["why", SHIP])])
def test_missing_packages(fails, monkeypatch, tmp_path, module, args):
    monkeypatch.setitem(sys.modules, module, None)
    assert "pip install 'mnv3[viz]'" in fails("show", *args, "-o", tmp_path / "x.png")


def test_commands(run, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ablation.json").write_text(
        '[{"variant": "none", "top1": [1], "mean": 1, "sd": null, "macs": 1, "latency_ms": 1}]'
    )
    for args, file in (
        (["arch", "mnv3_small.tv_in1k", "--size", "96"], "mnv3_small.tv_in1k.png"),
        (["arch", trained, "--block", "2"], "trained.png"),
        (["features", SHIP, "--what", "gates"], "ship.features.png"),
        (["why", SHIP, "--class", "8", "--model", "mnv3_small_cifar.cifar10", "--dark"], "ship.why.png"),
        (["why", SHIP, "--model", trained, "-o", "other.svg"], "other.svg"),
        (["run", trained, "--what", "curves"], "trained.png"),
        (["compare", "ablation.json"], "compare.png"),
    ):
        assert run("show", *args) == (0, f"wrote {file}\n", "")
        assert (tmp_path / file).stat().st_size > 5000


@pytest.mark.parametrize("args", [("show", "--debug", "arch"), ("show", "arch", "--debug")])
def test_debug_shows_the_traceback(args):
    with pytest.raises(ValueError, match="unknown model"):
        main.main([*args, "mnv3_smal"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["arch", "mnv3_smal", "-o", "OUT/x.png"], "unknown model 'mnv3_smal'. Did you mean 'mnv3_small"),
        (["arch", "mnv3_small", "--block", "11", "-o", "OUT/x.png"], "block=11: expected a row from 0 to 10"),
        (["arch", "mnv3_small", "-o", "OUT/x.gif"], "unknown ending '.gif'"),
        (["arch", "mnv3_small", "-o", "OUT/none/x.png"], "there is no such folder to write to"),
        (["arch", "mnv3_small", "-o", "/proc/self/x.png"], "/proc/self/x.png: "),
        (["why", "OUT/none.jpg", "-o", "OUT/x.png"], "none.jpg: no such file"),
        (["why", "FILE", "-o", "OUT/x.png"], "not a picture"),
        (["features", "FILE", "-o", "OUT/x.png"], "not a picture"),
        (["why", SHIP, "--class", "shipp", "-o", "OUT/x.png"], "no class 'shipp'. Did you mean 'ship'"),
        (["why", SHIP, "--class", "10", "-o", "OUT/x.png"], "class 10: the model has classes 0 to 9"),
        (["why", SHIP, "--model", "mnv3_large_minimal", "-o", "OUT/x.png"], "no pretrained weights"),
    ],
)
def test_faults_are_one_line(fails, tmp_path, args, message):
    (tmp_path / "file.png").write_bytes(b"no picture")
    args = [str(a).replace("OUT", str(tmp_path)).replace("FILE", str(tmp_path / "file.png")) for a in args]
    assert message in fails("show", *args)
    assert [path.name for path in tmp_path.iterdir()] == ["file.png"]
