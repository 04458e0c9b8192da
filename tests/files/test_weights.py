"""The weights that ship with mnv3: what they are, that nothing of them changed, and what they reach."""

import json
import re

import pytest
import timm
import torch
from conftest import ROOT
from safetensors.torch import load_file

import mnv3
from mnv3.arch import VARIANTS, count_macs
from mnv3.catalog import CATALOG, ORG
from mnv3.cli.arguments import DEFAULT_MODEL
from mnv3.cli.main import main
from mnv3.files import checkpoint, fetch
from mnv3.files.folder import read_config
from mnv3.train import recipe

OURS = [record for record in CATALOG if record.repo and record.repo.startswith(f"{ORG}/")]
RECORDS = pytest.mark.parametrize("record", OURS, ids=lambda record: record.name)
TRAINED = pytest.mark.parametrize(
    "record", [record for record in OURS if record.recipe], ids=lambda record: record.name
)
# On the 1,000 pictures of ../shared/images/cifar10_mini/test, in per cent.
MINI_TOP1 = {"mnv3_small_cifar.cifar10": 92.0, "mnv3_large_cifar.cifar10": 94.3}
DOCUMENT = {"mnv3_small_cifar": (91.3, 58.2e6), "mnv3_large_cifar": (93.7, 217.8e6)}  # top-1 and MACs to beat


def folder(record):
    return ROOT / "weights" / record.name


@RECORDS
def test_folder_is_whole_and_the_catalogs(record):
    names = {path.name for path in folder(record).iterdir()}
    of_training = {"log.csv", "recipe.yaml", "test.json"} if record.recipe else set()
    assert names == {"README.md", "config.json", "golden.safetensors", "model.safetensors"} | of_training
    assert checkpoint.digest(folder(record) / "model.safetensors") == record.sha256
    shipped = fetch.local_folder(record)  # in the checkout, or in the wheel that is installed
    assert (shipped / "model.safetensors").read_bytes() == (folder(record) / "model.safetensors").read_bytes()
    config = read_config(folder(record))
    assert config["architecture"] == record.arch
    assert config["num_classes"] == record.num_classes
    cfg = config["pretrained_cfg"]
    for name in ("mean", "std", "input_size"):
        assert tuple(cfg[name]) == getattr(record, name), name
    assert tuple(cfg.get("label_names") or ()) == (record.label_names or ())
    for name in ("interpolation", "crop_pct", "license"):
        assert cfg[name] == getattr(record, name), name


@TRAINED
def test_recipe_is_the_packages(record):
    assert recipe.load(folder(record) / "recipe.yaml") == recipe.load(record.recipe)


@TRAINED
def test_accuracy_is_that_of_the_one_test_after_training(record):
    metrics = json.loads((folder(record) / "test.json").read_text())
    assert metrics["count"] == 10_000
    assert round(metrics["top1"], 2) == record.top1
    confusion = torch.tensor(metrics["confusion"])
    assert confusion.diag().sum() == round(100 * record.top1)
    assert (confusion.sum(1) == 1000).all()
    assert f"{record.top1:.2f} %" in (folder(record) / "README.md").read_text()
    top1, macs = DOCUMENT[record.arch]
    assert count_macs(VARIANTS[record.arch].arch, size=32, num_classes=10) < macs
    assert record.top1 >= top1


@RECORDS
def test_golden_logits(record):
    golden = load_file(folder(record) / "golden.safetensors")
    model = timm.create_model(record.name, pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(golden["inputs"]), golden["outputs"], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@TRAINED
def test_accuracy_on_real_pictures(record, shared):
    pictures = mnv3.data.load(str(shared / "images" / "cifar10_mini"), "test")
    metrics = mnv3.evaluate(mnv3.create_model(record.name, pretrained=True), pictures)
    assert metrics.top1 == pytest.approx(MINI_TOP1[record.name], abs=0.15)  # one picture may be on the edge


@RECORDS
def test_every_door_has_them_without_a_network(record, monkeypatch):
    monkeypatch.setattr(fetch, "fetch_hub", lambda *args, **kwargs: pytest.fail("asked the network"))
    expected = load_file(folder(record) / "model.safetensors")
    doors = (
        timm.create_model(record.name, pretrained=True),
        timm.create_model(f"local-dir:{folder(record)}", pretrained=True),
        torch.hub.load(str(ROOT), record.arch, source="local", pretrained=record.tag),
        mnv3.load_checkpoint(folder(record)),
    )
    for model in doors:
        assert all(torch.equal(value, expected[key].to(value)) for key, value in model.state_dict().items())
        assert next(model.parameters()).dtype == torch.float32
        assert len(mnv3.class_names(model)) == record.num_classes


def test_uint8_is_googles_file_and_no_default(shared, tmp_path):
    """Made again of the file by the command on its card, but for the pictures of the calibration."""
    record = next(record for record in OURS if record.tag == "uint8_in1k")
    text = (folder(record) / "README.md").read_text()
    command = re.search(r"\$ mnv3 (convert .*)", text)[1].split()
    file = shared / "weights" / "tflite" / command[1]
    assert checkpoint.digest(file) in text.replace("\n", "")
    plain = [part for part in command if part not in ("--calibrate", "pictures/")]
    assert main([plain[0], str(file), str(tmp_path / "out"), *plain[3:]]) == 0
    ours, theirs = (load_file(path / "model.safetensors") for path in (folder(record), tmp_path / "out"))
    corrected = {key for key in ours if not torch.equal(ours[key], theirs[key])}
    assert corrected
    assert all(ours[key].ndim == 1 for key in corrected), "the calibration changes means alone"
    assert mnv3.catalog.find(record.arch).tag == "in1k"


@pytest.mark.slow
def test_uint8_on_real_pictures(shared):
    """The figure of its card: 76.0 % of 500 pictures, of which one is 0.2."""
    files = sorted((shared / "images" / "imagenet_half").glob("*.jpg"))
    model = mnv3.create_model("mnv3_small_tf.uint8_in1k", pretrained=True)
    right = [p.topk[0]["index"] == int(p.file.name[:4]) for p in mnv3.predict(model, files, topk=1, exact=True)]
    assert 100 * sum(right) / len(right) == pytest.approx(76.0, abs=0.21)


def test_predict_needs_neither_model_nor_network(tmp_path, capsys, monkeypatch):
    from PIL import Image

    monkeypatch.setattr(fetch, "fetch_hub", lambda *args, **kwargs: pytest.fail("asked the network"))
    Image.new("RGB", (64, 48), "blue").save(tmp_path / "photo.png")
    assert main(["predict", str(tmp_path / "photo.png")]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 5
    assert f"no --model: {DEFAULT_MODEL}" in captured.err
