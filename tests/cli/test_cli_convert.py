"""`mnv3 convert`: what it writes, says and refuses. What the models compute is tested in test_loading.py."""

import json
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from conftest import randomize
from safetensors.torch import load_file

import mnv3
from mnv3 import loading
from mnv3.files import checkpoint

SLIM = Path(__file__).parents[1] / "convert" / "data" / "slim" / "model.index"


def config(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A model of torchvision, and a file with its weights."""
    model = randomize(torchvision.models.mobilenet_v3_small(num_classes=6))
    file = tmp_path_factory.mktemp("theirs") / "in.pth"
    torch.save(model.state_dict(), file)
    return model, file


def test_a_file_becomes_a_folder(run, theirs, tmp_path):
    """Unless --arch has a tag, it is not said to be the default checkpoint, with its licence and origin."""
    model, file = theirs
    plain, tagged = tmp_path / "plain", tmp_path / "tagged"
    status, printed, _ = run("convert", file, plain, "--arch", "mnv3_small")
    assert status == 0
    digest = checkpoint.digest(plain / "model.safetensors")
    assert printed == f"wrote {plain}: mnv3_small, 6 classes, sha256 {digest}\n"
    assert {p.name for p in plain.iterdir()} == {"config.json", "golden.safetensors", "model.safetensors"}
    assert not {"tag", "license", "origin_url", "file"} & set(config(plain)["pretrained_cfg"])
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        for found in (timm.create_model(f"local-dir:{plain}", pretrained=True), mnv3.load_checkpoint(plain)):
            torch.testing.assert_close(found.eval()(x), model(x), rtol=1e-4, atol=1e-4)
    printed = run("convert", file, tagged, "--arch", "mnv3_small.tv_in1k")[1]
    assert printed.startswith(f"wrote {tagged}: mnv3_small.tv_in1k, 6 classes")
    cfg = config(tagged)["pretrained_cfg"]
    assert (cfg["tag"], cfg["license"], cfg["interpolation"]) == ("tv_in1k", "bsd-3-clause", "bilinear")


def test_what_a_folder_says_is_kept(run, tmp_path):
    """Preprocessing and names of the classes go with the weights; and so does the width."""
    theirs = timm.create_model("mobilenetv3_small_050.lamb_in1k", num_classes=3)
    theirs.pretrained_cfg = theirs.pretrained_cfg | {"mean": (0.1, 0.2, 0.3), "crop_pct": 0.7, "tag": "mine"}
    names = ["a", "b", "c"]
    timm.models.save_for_hf(theirs, str(tmp_path / "in"), model_config={"label_names": names}, safe_serialization=True)
    mnv3.save(mnv3.create_model("mnv3_small", width=0.35, num_classes=3), tmp_path / "narrow", label_names=names)
    assert run("convert", tmp_path / "in", tmp_path / "out", "--arch", "mnv3_small_050")[0] == 0
    cfg = config(tmp_path / "out")["pretrained_cfg"]
    assert (cfg["mean"], cfg["crop_pct"], cfg["tag"]) == ([0.1, 0.2, 0.3], 0.7, "mine")
    assert (cfg["first_conv"], cfg["classifier"]) == ("stem.conv", "classifier")
    assert run("convert", tmp_path / "narrow", tmp_path / "copy")[0] == 0
    assert config(tmp_path / "copy")["model_args"]["width"] == 0.35
    for folder in ("out", "copy"):
        model = mnv3.load_checkpoint(tmp_path / folder)
        assert mnv3.class_names(model) == names
        assert model.pretrained_cfg["num_classes"] == 3


def test_all_options_reach_the_loader(run, monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(
        loading, "load", lambda path, **options: given.append(options) or mnv3.create_model("mnv3_small_cifar")
    )
    options = ["--arch", "mnv3_small", "--se-order", "se-act", "--bn-eps", "1e-3", "--drop-background", "--no-ema"]
    assert run("convert", "in.pth", tmp_path / "out", *options, "--calibrate", tmp_path)[0] == 0
    assert run("convert", "in.pth", tmp_path / "plain")[0] == 0
    full, plain = given
    assert full == {
        "arch": "mnv3_small", "se_order": "se-act", "bn_eps": 1e-3, "drop_background": True, "use_ema": False,
        "calibrate": tmp_path, "verbose": True,
    }  # fmt: skip
    assert plain == dict.fromkeys(full) | {"drop_background": False, "verbose": True}


def test_an_eps_is_one(run, tmp_path):
    for eps in ("nan", "-5", "0", "inf", "1", "small"):
        status, _, err = run("convert", tmp_path / "in.pth", tmp_path / "out", f"--bn-eps={eps}")
        assert status == 2
        assert err.endswith(f"argument --bn-eps: '{eps}': expected a number between 0 and 1, such as 1e-5\n")


def test_refused(fails, theirs, tmp_path):
    files = {name: tmp_path / f"{name}.pth" for name in ("text", "epoch", "resnet", "missing")}
    files["text"].write_text("hello")
    torch.save({"epoch": 3}, files["epoch"])
    torch.save(torchvision.models.resnet18().state_dict(), files["resnet"])
    before = sorted(tmp_path.iterdir())
    for file, arch, message in (
        (theirs[1], "mnv3_large", "The file fits mnv3_small"),
        (theirs[1], "mobilenet", "unknown model"),
        (files["missing"], "mnv3_large", "no file of weights"),
        (files["text"], "mnv3_small", f"{files['text']}: not a whole file of weights"),
        (files["epoch"], "mnv3_small", "no state dict in the checkpoint: it has epoch"),
        (files["resnet"], "mnv3_small", "not a MobileNetV3 that mnv3 knows"),
    ):
        assert message in fails("convert", file, tmp_path / "out", "--arch", arch)
    message = fails("convert", theirs[1], files["text"], "--arch", "mnv3_small", "--force")
    assert f"{files['text']} is not only a weights folder and is not replaced" in message
    assert "text.pth" in fails("convert", theirs[1], files["text"] / "out", "--arch", "mnv3_small")
    assert sorted(tmp_path.iterdir()) == before, "nothing half-written"


def test_it_does_not_overwrite(run, fails, theirs, tmp_path):
    command = ("convert", theirs[1], tmp_path / "out", "--arch", "mnv3_small")
    assert run(*command)[0] == 0
    assert "out exists: choose another folder, or replace it" in fails(*command)
    (tmp_path / "out" / "config.json").write_text("old")
    assert run(*command, "--force")[0] == 0
    assert config(tmp_path / "out")["architecture"] == "mnv3_small"
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert "is not replaced: it has notes.txt" in fails(*command, "--force")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_what_a_foreign_file_says_is_printed(run, tmp_path):
    status, out, _ = run("convert", SLIM, tmp_path / "out")
    assert status == 0
    assert out.startswith(
        f"{SLIM}: mnv3_small_tf; TF-Slim's weights of another width, 5 classes\nwrote {tmp_path}/out: "
    )
    assert mnv3.load_checkpoint(tmp_path / "out").num_classes == 5


def test_for_timm_and_torchvision(run, fails, tmp_path):
    folder, file = tmp_path / "folder", tmp_path / "out.safetensors"
    model = randomize(mnv3.create_model("mnv3_small", num_classes=7))
    mnv3.save(model, folder)
    x = torch.randn(1, 3, 64, 64)
    status, out, _ = run("convert", folder, file, "--to", "timm")
    assert status == 0
    assert out.startswith(f"wrote {file}: for timm.create_model('mobilenetv3_small_100', num_classes=7), sha256 ")
    theirs = timm.create_model("mobilenetv3_small_100", num_classes=7, checkpoint_path=str(file)).eval()
    torch.testing.assert_close(theirs(x), model(x), rtol=0, atol=1e-5)
    assert "exists: choose another file" in fails("convert", folder, file, "--to", "torchvision")
    assert run("convert", folder, file, "--to", "torchvision", "--force")[0] == 0
    theirs = torchvision.models.mobilenet_v3_small(num_classes=7).eval()
    theirs.load_state_dict(load_file(file))
    torch.testing.assert_close(theirs(x), model(x), rtol=0, atol=1e-5)


def test_names_and_models_that_they_do_not_have(run, fails, tmp_path):
    file = tmp_path / "out.safetensors"
    message = fails("convert", "mnv3_small_cifar.cifar10", file, "--to", "timm")
    assert "timm has no model like this mnv3_small_cifar" in message
    assert "Did you mean 'mnv3_small'" in fails("convert", "mnv3_smal", file, "--to", "timm")
    status, _, err = run("convert", SLIM, file, "--to", "timm")
    assert (status, "timm has no model like this" in err) == (1, True)
    assert not list(tmp_path.iterdir())


def test_real_weights(run, shared, tmp_path):
    """The same predictions, to the letter, from timm's folder and from what is made of it."""
    source = shared / "weights" / "hub" / "timm" / "tf_mobilenetv3_small_100.in1k"
    pictures = sorted((shared / "images" / "imagenet_half").glob("*.jpg"))[:3]
    status, before, _ = run("predict", *pictures, "--checkpoint", source)
    assert status == 0
    assert "%  tench" in before.splitlines()[1]
    assert run("convert", source, tmp_path / "out", "--arch", "mnv3_small_tf")[0] == 0
    assert run("predict", *pictures, "--checkpoint", tmp_path / "out")[1] == before
    file = source / "model.safetensors"
    assert run("predict", *pictures, "--checkpoint", file, "--model", "mnv3_small_tf.in1k")[1] == before
    alone = run("predict", *pictures, "--checkpoint", file, "--model", "mnv3_small_tf")[1]
    assert "%  tench" not in alone, "nothing says that these are ImageNet's classes"
    assert [line.split("%")[0] for line in alone.splitlines()] == [line.split("%")[0] for line in before.splitlines()]
