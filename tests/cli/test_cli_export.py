"""`mnv3 convert --to`, and of Keras' and TF-Slim's files."""

from pathlib import Path

import timm
import torch
import torchvision
from conftest import randomize
from safetensors.torch import load_file

import mnv3
from mnv3.cli.main import main

SLIM = Path(__file__).parent / "data" / "slim" / "model.index"


def test_weights_for_timm_and_torchvision(tmp_path, capsys):
    folder, file = tmp_path / "folder", tmp_path / "out.safetensors"
    model = randomize(mnv3.create_model("mnv3_small", num_classes=7))
    mnv3.save(model, folder)
    x = torch.randn(1, 3, 64, 64)
    assert main(["convert", str(folder), str(file), "--to", "timm"]) == 0
    assert "for timm.create_model('mobilenetv3_small_100', num_classes=7), sha256" in capsys.readouterr().out
    theirs = timm.create_model("mobilenetv3_small_100", num_classes=7, checkpoint_path=str(file)).eval()
    torch.testing.assert_close(theirs(x), model(x), rtol=0, atol=1e-5)
    assert main(["convert", str(folder), str(file), "--to", "torchvision"]) == 1
    assert "exists: choose another file" in capsys.readouterr().err
    assert main(["convert", str(folder), str(file), "--to", "torchvision", "--force"]) == 0
    theirs = torchvision.models.mobilenet_v3_small(num_classes=7).eval()
    theirs.load_state_dict(load_file(file))
    torch.testing.assert_close(theirs(x), model(x), rtol=0, atol=1e-5)


def test_a_name_and_what_they_do_not_have(tmp_path, capsys):
    file = tmp_path / "out.safetensors"
    assert main(["convert", "mnv3_small_cifar.cifar10", str(file), "--to", "timm"]) == 1
    assert "timm has no model like this mnv3_small_cifar" in capsys.readouterr().err
    assert main(["convert", str(SLIM), str(file), "--to", "timm"]) == 1
    assert main(["convert", "mnv3_smal", str(file), "--to", "timm"]) == 1
    assert "mnv3_small" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_slim(tmp_path, capsys):
    assert main(["convert", str(SLIM), str(tmp_path / "out")]) == 0
    assert "TF-Slim's weights of another width, 5 classes" in capsys.readouterr().out
    assert mnv3.load_checkpoint(tmp_path / "out").num_classes == 5
    assert main(["convert", str(SLIM), str(tmp_path / "two"), "--ema"]) == 1
    assert "no variable has an average" in capsys.readouterr().err
