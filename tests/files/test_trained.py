"""Checkpoints of trainings elsewhere: they are loaded as they were trained, and no name is put on their classes."""

import argparse
import json

import pytest
import timm
import torch
import torchvision
from conftest import randomize
from PIL import Image

import mnv3
from mnv3.errors import WeightsError


def checkpoint(folder, weights, *, ema=None, **args):
    """What timm's train.py leaves of a model, written by timm's own saver."""
    given = {"bn_eps": None, "in_chans": None, "img_size": None, "input_size": None, "crop_pct": None, "mean": None}
    given |= {"std": None, "interpolation": "", "gp": None, "num_classes": None, "model_kwargs": {}, "class_map": ""}
    optimizer = torch.optim.SGD(weights.parameters(), lr=0.1)
    args = argparse.Namespace(**(given | args))
    options = {"model_ema": ema, "checkpoint_dir": folder, "recovery_dir": folder}
    saver = timm.utils.CheckpointSaver(weights, optimizer, args, **options)
    saver.save_checkpoint(0, metric=50.0)
    return folder / "last.pth.tar"


def trained(name, **kwargs):
    return randomize(timm.create_model(name, **kwargs))


def same(found, expected, channels=3, size=64):
    x = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        torch.testing.assert_close(found.eval()(x), expected.eval()(x), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def cifar():
    return trained("mnv3_small_cifar")


# --- channels


def test_a_file_has_its_channels(tmp_path):
    """As its classes, also where only a folder's weights say them."""
    channels = 13
    theirs = trained("mnv3_small_cifar", in_chans=channels, num_classes=4)
    torch.save(theirs.state_dict(), tmp_path / "x.pth")
    found = mnv3.load_checkpoint(tmp_path / "x.pth", model="mnv3_small_cifar")
    assert (found.in_chans, found.num_classes) == (channels, 4)
    assert found.pretrained_cfg["input_size"] == (channels, 32, 32)
    same(found, theirs, channels, 32)
    overlay = {"file": str(tmp_path / "x.pth")}
    by_timm = timm.create_model("mnv3_small_cifar", pretrained=True, num_classes=4, pretrained_cfg_overlay=overlay)
    same(by_timm, theirs, channels, 32)
    folder = mnv3.save(theirs, tmp_path / "net")
    config = json.loads((folder / "config.json").read_text())
    del config["model_args"]["in_chans"]
    config["pretrained_cfg"]["input_size"][0] = 3
    (folder / "config.json").write_text(json.dumps(config))
    for model in (mnv3.load_checkpoint(folder), timm.create_model(f"local-dir:{folder}", pretrained=True)):
        same(model, theirs, channels, 32)
    config["model_args"]["in_chans"] = 5
    (folder / "config.json").write_text(json.dumps(config))
    for load in (mnv3.load_checkpoint, lambda f: timm.create_model(f"local-dir:{f}", pretrained=True)):
        with pytest.raises(WeightsError, match=f"is for pictures of {channels} channels, config.json says 5"):
            load(folder)


def test_channels_that_are_asked_for_are_adapted_as_timm_does(tmp_path):
    theirs = trained("mobilenetv3_small_050", num_classes=4)
    torch.save(theirs.state_dict(), tmp_path / "x.pth")
    overlay = {"file": str(tmp_path / "x.pth"), "num_classes": 4}
    options = {"pretrained": True, "num_classes": 4, "in_chans": 5, "pretrained_cfg_overlay": overlay}
    expected = timm.create_model("mobilenetv3_small_050", **options)
    same(mnv3.load_checkpoint(tmp_path / "x.pth", model="mnv3_small_050", in_chans=5), expected, channels=5)


def test_preprocessing_for_other_channels():
    grey = mnv3.transforms(mnv3.create_model("mnv3_small", in_chans=1, num_classes=2))
    picture = Image.effect_noise((300, 250), 60).convert("RGB")
    size = {"interpolation": "bicubic", "crop_pct": 0.875}
    theirs = timm.data.create_transform((1, 224, 224), mean=(0.449,), std=(0.226,), **size)
    torch.testing.assert_close(grey(picture), theirs(picture.convert("L")), rtol=0, atol=1e-6)
    model = mnv3.create_model("mnv3_small", in_chans=1, pretrained_cfg_overlay={"mean": (0.2,), "std": (0.1,)})
    assert mnv3.transforms(model)(Image.new("RGB", (9, 9))).unique().tolist() == pytest.approx([-2])
    with pytest.raises(ValueError, match="the model takes pictures of 13 channels: there is preprocessing for RGB and"):
        mnv3.transforms(mnv3.create_model("mnv3_small", in_chans=13))


# --- names of classes


@pytest.mark.parametrize("name", ["mnv3_small_cifar", "mnv3_small_050"])
def test_names_come_with_the_weights(tmp_path, name):
    """Ten fruits are not airplanes, a thousand birds not tenches."""
    model = trained(name)
    assert model.num_classes == {"mnv3_small_cifar": 10, "mnv3_small_050": 1000}[name]
    assert mnv3.class_names(model) is None, "random weights, or those of one's own training"
    file, saved = checkpoint(tmp_path, model, model=name), mnv3.save(model, tmp_path / name)
    torch.save(model.state_dict(), tmp_path / "x.pth")
    for found in (
        mnv3.load_checkpoint(file),
        mnv3.load_checkpoint(file, model=mnv3.catalog.find(name).name),
        mnv3.load_checkpoint(tmp_path / "x.pth", model=name),
        mnv3.load_checkpoint(saved),
        timm.create_model(f"local-dir:{saved}", pretrained=True),
    ):
        assert mnv3.class_names(found) is None
        assert not {"tag", "license", "label_names"} & found.pretrained_cfg.keys()


def test_no_names_are_printed_or_written_that_nothing_says(tmp_path, run):
    Image.new("RGB", (40, 40), "red").save(tmp_path / "apple.png")
    file = checkpoint(tmp_path, trained("mnv3_small_cifar"), model="mnv3_small_cifar")
    status, out, _ = run("predict", tmp_path / "apple.png", "--checkpoint", file)
    assert status == 0
    assert all(" class " in line for line in out.splitlines())
    assert run("convert", file, tmp_path / "out")[0] == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not {"label_names", "tag"} & (config.keys() | config["pretrained_cfg"].keys())


def test_names_where_something_says_them(tmp_path):
    theirs = trained("mobilenetv3_small_050")
    timm.models.save_for_hf(theirs, str(tmp_path / "net"), safe_serialization=True)
    model = mnv3.load_checkpoint(tmp_path / "net")
    assert mnv3.class_names(model)[0] == "tench", "its tag is that of published weights"
    assert mnv3.class_names(mnv3.load_checkpoint(mnv3.save(model, tmp_path / "again")))[0] == "tench"
    torch.save(theirs.state_dict(), tmp_path / "x.pth")
    named = mnv3.load_checkpoint(tmp_path / "x.pth", model="mnv3_small_050.lamb_in1k")
    assert mnv3.class_names(named)[999] == "toilet tissue"
    config = json.loads((tmp_path / "net" / "config.json").read_text())
    config["label_names"] = {str(i): f"kind {i}" for i in range(1000)}
    (tmp_path / "net" / "config.json").write_text(json.dumps(config))
    for found in (mnv3.load_checkpoint(tmp_path / "net"), mnv3.create_model(f"local-dir:{tmp_path / 'net'}")):
        assert mnv3.class_names(found)[3] == "kind 3"


# --- what timm's train.py writes


OF_TIMM = {  # name, ours, arguments of the model, arguments of train.py
    "plain": ("tf_mobilenetv3_small_075", "mnv3_small_075_tf", {}, {}),
    "eps": ("mobilenetv3_small_050.lamb_in1k", "mnv3_small_050", {"bn_eps": 1e-3}, {"bn_eps": 1e-3}),
    "pool": (
        "mobilenetv3_small_050",
        "mnv3_small_050",
        {"global_pool": "max", "in_chans": 2},
        {"gp": "max", "in_chans": 2},
    ),
    "ours": (
        "mnv3_small.tv_in1k",
        "mnv3_small",
        {"width": 0.35, "se_order": "se-act"},
        {"model_kwargs": {"width": 0.35, "se_order": "se-act", "drop_path_rate": 0.1}},
    ),
}


@pytest.mark.parametrize("case", OF_TIMM)
def test_a_checkpoint_of_timms_training(tmp_path, case):
    """It says which model it is, and computes what it was trained with."""
    name, ours, built, said = OF_TIMM[case]
    theirs = trained(name, num_classes=7, **built)
    file = checkpoint(tmp_path, theirs, model=name, num_classes=7, **said)
    for model in (mnv3.load_checkpoint(file), mnv3.load_checkpoint(file, model=ours)):
        assert model.pretrained_cfg["architecture"] == ours
        same(model, theirs, model.in_chans)
    same(mnv3.load_checkpoint(mnv3.save(model, tmp_path / "net")), theirs, model.in_chans)
    overlay = {"file": str(file)}
    options = {"num_classes": 7} | {key: value for key, value in built.items() if key not in ("bn_eps", "in_chans")}
    same(timm.create_model(ours, pretrained=True, pretrained_cfg_overlay=overlay, **options), theirs, model.in_chans)
    with pytest.raises(ValueError, match=f"last.pth.tar is a checkpoint of {ours}, not mnv3_large"):
        mnv3.load_checkpoint(file, model="mnv3_large")


def test_converted_with_what_it_says(tmp_path, run):
    theirs = trained("mnv3_small_cifar", num_classes=3, width=0.5)
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-2
    options = {"bn_eps": 1e-2, "model_kwargs": {"width": 0.5}, "mean": [0.1, 0.2, 0.3]}
    file = checkpoint(tmp_path, theirs, model="mnv3_small_cifar", **options)
    assert run("convert", file, tmp_path / "out")[0] == 0
    found = mnv3.load_checkpoint(tmp_path / "out")
    same(found, theirs, size=32)
    assert found.pretrained_cfg["mean"] == [0.1, 0.2, 0.3]


def test_preprocessing_of_a_training(tmp_path):
    """What its arguments say, and else that of the model it started from: as timm resolves it."""
    theirs = trained("mobilenetv3_small_050", num_classes=2)
    said = {"img_size": 96, "mean": [0.1, 0.2, 0.3], "std": [0.4], "interpolation": "bilinear", "crop_pct": 0.9}
    for args in (said, {"input_size": (3, 64, 48)}, {}):
        file = checkpoint(tmp_path, theirs, model="mobilenetv3_small_050.lamb_in1k", **args)
        expected = timm.data.resolve_data_config(args, pretrained_cfg=theirs.pretrained_cfg)
        picture = Image.effect_noise((150, 130), 60).convert("RGB")
        found = mnv3.transforms(mnv3.load_checkpoint(file))(picture)
        torch.testing.assert_close(found, timm.data.create_transform(**expected)(picture), rtol=0, atol=1e-6)


def test_averaged_weights(tmp_path, run, fails):
    raw, averaged = (trained("mnv3_small_cifar", num_classes=3) for _ in range(2))
    averaged.classifier.bias.data[2] += 100
    file = checkpoint(tmp_path, raw, ema=timm.utils.ModelEmaV3(averaged), model="mnv3_small_cifar")
    for use_ema, expected in ((None, averaged), (True, averaged), (False, raw)):
        same(mnv3.load_checkpoint(file, use_ema=use_ema), expected, size=32)
    Image.new("RGB", (40, 40), "red").save(tmp_path / "a.png")
    command = ("predict", tmp_path / "a.png", "--checkpoint", file, "--topk", 1)
    assert run(*command, "--ema")[1].split() == ["100.00", "%", "class", "2"]
    assert run(*command, "--no-ema")[1].split()[0] != "100.00"
    message = fails("predict", tmp_path / "a.png", "--ema")
    assert "use_ema (--ema, --no-ema) is for files and folders of weights, not mnv3_small_tf.uint8_in1k" in message
    torch.save(raw.state_dict(), tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="x.pth: use_ema=True, but the checkpoint has none of"):
        mnv3.load_checkpoint(tmp_path / "x.pth", model="mnv3_small_cifar", use_ema=True)


def test_other_trainings_that_say_their_model(tmp_path):
    """PyTorch's ImageNet example and torchvision's references."""
    theirs = randomize(torchvision.models.mobilenet_v3_small(num_classes=4))
    for said in ({"arch": "mobilenet_v3_small"}, {"args": argparse.Namespace(model="mobilenet_v3_small")}):
        torch.save({"model": theirs.state_dict(), "epoch": 1} | said, tmp_path / "x.pth")
        same(mnv3.load_checkpoint(tmp_path / "x.pth"), theirs)
    torch.save({"model": theirs.state_dict(), "arch": "resnet18"}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="x.pth: a single file does not say which model it is for"):
        mnv3.load_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"model_kwargs": {"checkpoint_path": "/etc/passwd"}}, "args.model_kwargs: unknown 'checkpoint_path'"),
        ({"model_kwargs": ["width"]}, "args.model_kwargs: expected names with values, found list"),
        ({"model_kwargs": {"width": "wide"}}, "args.model_kwargs: width 'wide': expected a number from"),
        ({"bn_eps": -1.0}, "args.bn_eps -1.0: expected a number above 0 and below 1"),
        ({"bn_eps": "1e-3"}, "args.bn_eps '1e-3': expected a number"),
        ({"crop_pct": 1e-3}, "args: crop_pct 0.001: expected a number from 0.01"),
        ({"img_size": 10**6}, "args: input_size .*: expected a list of channels, height and width"),
        ({"mean": "0.5"}, "args: mean '0.5': expected a list"),
        ({"gp": "none"}, "global_pool='none'"),
        ({"mean": [torch.zeros(3)]}, r"args: mean \[tensor\(\[0., 0., 0.\]\)\]: expected a list"),
        ({"model_kwargs": {"width": torch.zeros(40, 2)}}, r"width tensor\(\[\[0., 0.\].*: expected a number"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, cifar, said, message):
    file = checkpoint(tmp_path, cifar, model="mnv3_small_cifar", **said)
    with pytest.raises((WeightsError, ValueError), match=message):
        mnv3.load_checkpoint(file)


@pytest.mark.parametrize("said", [{"arch": torch.zeros(3)}, {"arch": 3, "args": [1]}, {"args": {"gp": torch.ones(2)}}])
def test_what_says_nothing_is_passed_over(tmp_path, cifar, said):
    torch.save({"state_dict": cifar.state_dict()} | said, tmp_path / "x.pth")
    same(mnv3.load_checkpoint(tmp_path / "x.pth", model="mnv3_small_cifar"), cifar, size=32)
    with pytest.raises(ValueError, match="does not say which model it is for"):
        mnv3.load_checkpoint(tmp_path / "x.pth")
