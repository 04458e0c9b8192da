"""mnv3 show features and why: what is drawn is what the model computes."""

import copy

import figures
import numpy as np
import pytest
import timm
import torch
from conftest import ROOT
from PIL import Image
from torchvision.transforms.functional import normalize, to_tensor

import mnv3
from mnv3 import arch, show
from mnv3.pictures import images
from mnv3.show.feature_maps import compute_activations, most_varied
from mnv3.show.gradcam import class_index, grad_cam
from mnv3.show.inputs import inspectable

pytest.importorskip("matplotlib")
CFG = mnv3.create_model("mnv3_small_cifar").pretrained_cfg
SHIP = ROOT / "docs" / "ship.jpg"


@pytest.fixture(scope="module")
def cifar():
    return mnv3.create_model("mnv3_small_cifar", pretrained=True)


def tiny_model(*, se):
    """One with two stages, which is drawn fast."""
    rows = (arch.Bneck(3, 16, 16, False, "RE", 1), arch.Bneck(3, 32, 24, se, "HS", 2))
    model = mnv3.MobileNetV3(arch.Arch(16, rows, 32, 32), num_classes=3)
    model.pretrained_cfg = CFG | {"architecture": "tiny", "input_size": (3, 32, 32)}
    return model


# --- features


def test_features_are_the_models(cifar):
    cifar.train()
    activations = compute_activations(SHIP, cifar)
    assert cifar.training
    assert not any(module._forward_hooks for module in cifar.modules())
    cifar.eval()
    x = mnv3.transforms(cifar)(images.load(SHIP))[None]
    backbone = mnv3.create_model("mnv3_small_cifar", pretrained=True, features_only=True).eval()
    with torch.inference_mode():
        for (tap, maps), expected in zip(activations.stages, backbone(x), strict=True):
            assert torch.allclose(maps, expected[0], atol=1e-5), tap
        y = cifar.stem(x)
        for i, block in enumerate(cifar.blocks):
            if (name := f"blocks.{i}") in activations.gates:
                se, mean = block.se, block.depthwise(block.expand(y)).mean((2, 3))
                hidden = torch.relu(mean @ se.squeeze.weight.flatten(1).T + se.squeeze.bias)
                logit = hidden @ se.excite.weight.flatten(1).T + se.excite.bias
                assert torch.allclose(activations.gates[name], (logit[0] / 6 + 0.5).clamp(0, 1), atol=1e-5), name
            y = block(y)
    assert len(activations.gates) == sum(row.se for row in cifar.arch.rows)


def test_a_figure_shows_the_activations():
    model = tiny_model(se=True)
    activations = compute_activations(SHIP, model)
    figure = show.features(SHIP, model)
    figures.check(figure)
    words = figures.texts(figure)
    for tap, maps in activations.stages:
        title = "{}: {} channels of {} × {}, stride {}".format(tap.module, *maps.shape, tap.reduction)
        assert title in words
    for name, gate in activations.gates.items():
        opened, shut = (100 * share.float().mean().item() for share in (gate > 0.5, gate == 0))
        assert f"{name}: {len(gate)} channels, {opened:.0f} % above ½, {shut:.0f} % shut" in words
        (axis,) = (axis for axis in figure.axes if axis.get_title("left").startswith(f"{name}: "))
        assert np.allclose(figures.picture(axis)[0], gate)
        bars = figure.axes[figure.axes.index(axis) + 1].patches
        assert sum(bar.get_height() for bar in bars) == len(gate)
    drawn = [figures.picture(axis) for axis in figure.axes if axis.get_title() == "mean"]
    assert all(np.allclose(a, maps.mean(0)) for a, (_, maps) in zip(drawn, activations.stages, strict=True))


def test_channels_that_vary_most_are_shown():
    maps = torch.tensor([[[1.0, 1.0]], [[0.0, 1.0]], [[9.0, 9.0]], [[-2.0, 2.0]]])  # (C, 1, 2)
    assert most_varied(maps, 2) == [3, 1]
    assert len(most_varied(maps, 9)) == 4


@pytest.mark.parametrize(
    ("se", "what", "maps", "gates"),
    [(False, None, True, False), (True, "maps", True, False), (True, "gates", False, True)],
)
def test_one_part_of_features(se, what, maps, gates):
    figure = show.features(SHIP, tiny_model(se=se), what=what, dark=True)
    figures.check(figure)
    words = figures.texts(figure)
    assert ("mean" in words, any("shut" in word for word in words)) == (maps, gates)


def test_no_gates_without_squeeze_and_excite(tmp_path):
    with pytest.raises(ValueError, match="tiny has no squeeze-and-excite"):
        show.features(SHIP, tiny_model(se=False), what="gates", path=tmp_path / "x.png")
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_every_model_can_be_looked_into(arch_name):
    model = mnv3.create_model(arch_name)
    figures.check(show.features(SHIP, model))
    figures.check(show.why(SHIP, model, class_=3))


def test_fused_and_compiled_models_are_looked_into_too(cifar):
    before = compute_activations(SHIP, cifar)
    fused = compute_activations(SHIP, mnv3.fuse(cifar.eval()))
    assert fused.gates.keys() == before.gates.keys()
    assert all(torch.allclose(fused.gates[name], gate, atol=1e-4) for name, gate in before.gates.items())
    assert inspectable(torch.compile(cifar)) is cifar


# --- why


def test_why_is_grad_cam_and_the_predictions(cifar):
    x = mnv3.transforms(cifar)(images.load(SHIP))[None]
    for index in (None, 3):
        heat, logits = grad_cam(cifar, x, index)
        features = cifar.eval().forward_features(x).detach().requires_grad_()
        logit = cifar.forward_head(features)[0, logits.argmax() if index is None else index]
        (gradient,) = torch.autograd.grad(logit, features)
        expected = (gradient.mean((2, 3), keepdim=True) * features).sum(1)
        assert torch.allclose(heat, expected.detach(), atol=1e-6)
        assert not any(parameter.grad is not None for parameter in cifar.parameters())
    figure = show.why(SHIP, cifar, class_="Airplane")
    figures.check(figure)
    words = figures.texts(figure)
    (prediction,) = mnv3.predict(cifar, SHIP, exact=True)
    for entry in prediction.topk:
        assert words[words.index(entry["label"]) + 1] == f"{100 * entry['prob']:.1f} %"
    assert {"speaks for airplane", "seen at 32 × 32 px", "probability / %"} <= set(words)
    picture, grey = (figures.picture(axis) for axis in figure.axes[:2])
    assert picture.shape == (448, 448, 3)
    assert grey.shape == (448, 448)


def test_a_class_by_name_or_number():
    names = ["cat", "Dog", "7"]
    assert [class_index(names, given) for given in ("cat", "dog", 1, "1", "7")] == [0, 1, 1, 1, 2]
    with pytest.raises(ValueError, match="class 3: the model has classes 0 to 2"):
        class_index(names, "3")
    with pytest.raises(ValueError, match="no class 'catt'. Did you mean 'cat'"):
        class_index(names, "catt")


def test_models_that_cannot_be_looked_into():
    cases = [
        (timm.create_model("mobilenetv3_small_050"), "MobileNetV3: only mnv3's models"),
        (mnv3.create_model("mnv3_small_050", in_chans=1), "in_chans=1"),
        (mnv3.create_model("mnv3_small_050", num_classes=0), "no classifier"),
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
        for side, file in enumerate(files[i : i + 2]):
            picture = images.load(file)
            length = min(picture.size)
            left, top = ((pixels - length) // 2 for pixels in picture.size)
            half = picture.crop((left, top, left + length, top + length)).resize((224, 224))
            both.paste(half, (224 * side, 112))
        x = normalize(to_tensor(both), (0.5,) * 3, (0.5,) * 3)[None]  # which these weights take
        for side in (0, 1):
            heat = grad_cam(model, x, labels[i + side].item())[0][0].clamp(min=0)
            halves = heat.chunk(2, 1)
            shares.append((halves[side].sum() / heat.sum()).item())
    assert len(shares) > 50
    assert np.mean(np.array(shares) > 0.5) > 0.9
    assert np.mean(shares) > 0.75
