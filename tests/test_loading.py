"""`load`, of every file that `mnv3 convert` reads, and `resolve`, of all that a command takes for a model."""

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from conftest import randomize
from ports import DLi14
from safetensors.torch import save_file

import mnv3
from mnv3 import WeightsError, arch
from mnv3.loading import kind_of, load, resolve

SLIM = Path(__file__).parent / "convert" / "data" / "slim" / "model.index"


def same(found, theirs, channels=3):
    x = torch.randn(2, channels, 64, 64, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        torch.testing.assert_close(found.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    """A model of d-li14's ports, and a file with its weights."""
    model = randomize(DLi14(arch.SMALL, num_classes=6))
    file = tmp_path_factory.mktemp("port") / "in.safetensors"
    save_file(model.state_dict(), file)
    return model, file


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """A small model of timm with three classes, and a file with its weights."""
    model = randomize(timm.create_model("mobilenetv3_small_050", num_classes=3))
    file = tmp_path_factory.mktemp("narrow") / "in.pth"
    torch.save(model.state_dict(), file)
    return model, file


THEIRS = {
    "timm.pth": (lambda: timm.create_model("mobilenetv3_small_050", num_classes=0), "mnv3_small_050"),
    "grey.pth": (lambda: timm.create_model("mobilenetv3_small_050", num_classes=3, in_chans=1), "mnv3_small_050"),
    "tf.safetensors": (lambda: timm.create_model("tf_mobilenetv3_small_075", num_classes=6), "mnv3_small_075_tf"),
    "torchvision.safetensors": (lambda: torchvision.models.mobilenet_v3_small(num_classes=6), "mnv3_small"),
}


@pytest.mark.parametrize("name", THEIRS)
def test_files_of_others(name, tmp_path):
    make, ours = THEIRS[name]
    theirs, file = randomize(make()), tmp_path / name
    (save_file if file.suffix == ".safetensors" else torch.save)(theirs.state_dict(), file)
    model = load(file, arch=ours)
    assert model.pretrained_cfg["architecture"] == ours
    same(model, theirs, model.in_chans)


def test_order_and_eps_that_a_file_does_not_say(port):
    theirs, file = port
    with pytest.raises(WeightsError, match="the file has its squeeze-and-excite in se_order='se-act-expanded'"):
        load(file, arch="mnv3_small")
    same(load(file, arch="mnv3_small", se_order="se-act-expanded"), theirs)
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-3
    same(load(file, arch="mnv3_small", se_order="se-act-expanded", bn_eps=1e-3), theirs)


def test_a_folder_of_timms(tmp_path):
    theirs = randomize(timm.create_model("tf_mobilenetv3_small_minimal_100", num_classes=3))
    timm.models.save_for_hf(theirs, str(tmp_path / "net"), safe_serialization=True)
    for model in (load(tmp_path / "net"), load(str(tmp_path / "net"), arch="mnv3_small_minimal_tf")):
        assert model.pretrained_cfg["architecture"] == "mnv3_small_minimal_tf"
        same(model, theirs)
    with pytest.raises(ValueError, match="holds mnv3_small_minimal_tf, not mnv3_small_minimal"):
        load(tmp_path / "net", arch="mnv3_small_minimal")


@pytest.mark.parametrize("classes", [1001, 4])
def test_background(classes, tmp_path):
    """Dropped once, and not a second time of what is saved then."""
    theirs = timm.create_model("tf_mobilenetv3_small_minimal_100", num_classes=classes)
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "in.pth")
    assert load(tmp_path / "in.pth", arch="mnv3_small_minimal_tf").num_classes == classes
    dropped = load(tmp_path / "in.pth", arch="mnv3_small_minimal_tf", drop_background=True)
    for model in (dropped, mnv3.load_checkpoint(mnv3.save(dropped, tmp_path / "net"))):
        torch.testing.assert_close(model.classifier.weight, theirs.classifier.weight[1:], rtol=0, atol=0)
        assert not model.pretrained_cfg.get("label_offset")


def test_averaged_weights(narrow, tmp_path):
    raw, file = narrow
    averaged = randomize(timm.create_model("mobilenetv3_small_050", num_classes=3), seed=1)
    wrapped = {"module." + key: value for key, value in averaged.state_dict().items()}
    torch.save({"state_dict": raw.state_dict(), "model_ema": wrapped}, tmp_path / "in.pth")
    for use_ema, expected in ((True, averaged), (None, averaged), (False, raw)):
        model = load(tmp_path / "in.pth", arch="mnv3_small_050", use_ema=use_ema)
        assert torch.equal(model.classifier.weight, expected.classifier.weight)
    with pytest.raises(WeightsError, match="use_ema=True, but the checkpoint has none of"):
        load(file, arch="mnv3_small_050", use_ema=True)


def test_a_file_of_another_framework(capsys, caplog):
    """It says which model it is; with `verbose`, in words too."""
    model = load(SLIM)
    assert (model.num_classes, model.pad_type, model.pretrained_cfg["mean"]) == (5, "same", (0.5,) * 3)
    assert load(SLIM, drop_background=True).num_classes == 4
    assert capsys.readouterr().out == ""
    assert torch.equal(load(SLIM, use_ema=False, verbose=True).head.weight, model.head.weight)
    expected = f"{SLIM}: mnv3_small_tf; TF-Slim's weights of another width, 5 classes\n"
    assert capsys.readouterr().out == expected
    assert [record.args for record in caplog.records] == [(5,)], "of the class that is dropped"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"se_order": "se-act"}, "--se-order is for checkpoints that do not say it: .*model.index does"),
        ({"bn_eps": 1e-3}, "bn_eps or --bn-eps is for checkpoints that do not say it"),
        ({"calibrate": "."}, "--calibrate is for quantised TFLite files: .*model.index is none"),
        ({"use_ema": True}, "use_ema=True, but no variable has an average"),
        ({"arch": "mnv3_large"}, "model.index holds mnv3_small_tf with arch=.*, not mnv3_large: leave --arch out"),
        ({"arch": "mnv3_small_tf"}, "model.index holds mnv3_small_tf with arch=.*, not mnv3_small_tf"),
        ({"arch": "mnv3_smal"}, "unknown model 'mnv3_smal'"),
    ],
    ids=str,
)
def test_options_that_are_not_for_the_file(options, message):
    with pytest.raises((ValueError, WeightsError), match=message):
        load(SLIM, **options)


def test_an_eps_that_no_batch_norm_has(narrow):
    for eps in (0, -1.0, 2, float("nan")):
        with pytest.raises(ValueError, match=f"bn_eps={eps}: expected a number above 0 and at most 1"):
            load(narrow[1], arch="mnv3_small_050", bn_eps=eps)


# --- what a user names


def test_kinds_of_names(tmp_path, narrow):
    (tmp_path / "net.onnx").write_bytes(b"")
    for name, kind in {
        str(narrow[1]): "weights",
        str(narrow[1].parent): "weights",
        str(tmp_path / "net.onnx"): "exported",
        str(tmp_path / "none.onnx"): None,
        "hf-hub:o/net": "repository",
        f"local-dir:{tmp_path}": "repository",
        "mnv3_small": "mnv3",
        "mnv3_small.tv_in1k": "mnv3",
        "resnet18": "timm",
        "timm/resnet18.a1_in1k": "timm",
        "torchvision/resnet18": "torchvision",
        "timm/nothing": None,
        "torchvision/fasterrcnn_resnet50_fpn": None,
        "nothing.pth": None,
    }.items():
        assert kind_of(name) == kind, name


def test_all_kinds_resolve(narrow, tmp_path):
    theirs, file = narrow
    folder = mnv3.save(mnv3.load_checkpoint(file, model="mnv3_small_050"), tmp_path / "net")
    for model in (resolve(str(file), arch="mnv3_small_050"), resolve(str(folder)), resolve(f"local-dir:{folder}")):
        same(model, theirs)
    assert resolve(str(SLIM)).num_classes == 5
    assert mnv3.class_names(resolve("mnv3_small_cifar"))[0] == "airplane"
    named, untrained = resolve("mnv3_small_cifar.cifar10"), resolve("mnv3_small_cifar", pretrained=False)
    assert torch.equal(resolve("mnv3_small_cifar.cifar10", pretrained=False).head.weight, named.head.weight)
    assert not torch.equal(untrained.head.weight, named.head.weight)
    assert type(resolve("resnet18", pretrained=False)).__module__.startswith("timm")
    assert type(resolve("torchvision/resnet18", pretrained=False)).__module__.startswith("torchvision")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18", {}, "unknown model 'resnet18'. Allowed: mnv3_large"),
        ("mnv3_smal", {"pretrained": False}, "no model 'mnv3_smal' in mnv3, timm or torchvision. Did you mean 'mnv3_s"),
        ("none.pth", {}, "none.pth: no such file or folder"),
        (
            "mnv3_small",
            {"arch": "mnv3_small"},
            r"arch \(--arch, --model\) is for files and folders of weights, not mnv3",
        ),
        (
            "local-dir:net",
            {"use_ema": True},
            r"use_ema \(--ema, --no-ema\) is for files and folders of weights, not local",
        ),
    ],
    ids=str,
)
def test_what_does_not_resolve(name, options, message):
    with pytest.raises(ValueError, match=message):
        resolve(name, **options)
