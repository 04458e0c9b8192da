"""Model cards: what is in them, that the shipped ones are the ones made, and that what they say can be run."""

import dataclasses
import json
import re
import shutil
from functools import partial

import pytest
import timm
import torch
import yaml
from conftest import ROOT
from hub_server import HubServer
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

import mnv3
from mnv3 import WeightsError
from mnv3.catalog import CATALOG, find
from mnv3.cli.main import _parser, main
from mnv3.hub import cards

OURS = [record for record in CATALOG if record.ours]
RECORDS = pytest.mark.parametrize("record", OURS, ids=lambda record: record.name)
TRAINED = pytest.mark.parametrize(
    "record", [record for record in OURS if record.recipe], ids=lambda record: record.name
)
WEIGHTS = ROOT / "weights"
SMALL = find("mnv3_small_cifar")
TOP1 = f"{SMALL.top1:.2f} %"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(WEIGHTS / SMALL.name, tmp_path / SMALL.name)


@RECORDS
def test_the_shipped_card_is_the_one_made(record):
    folder = WEIGHTS / record.name
    assert (folder / "README.md").read_text(encoding="utf-8") == cards.card(record, folder), "run `mnv3 card`"


def test_the_page_on_the_weights_is_the_one_made():
    assert (WEIGHTS / "README.md").read_text(encoding="utf-8") == cards.index(WEIGHTS), "run `mnv3 card`"
    assert {record for record, _ in cards.shipped(WEIGHTS)} == set(OURS), "of our own, only what is there is catalogued"


@TRAINED
def test_metadata_is_the_hubs(record):
    data = ModelCard.load(WEIGHTS / record.name / "README.md").data
    assert data.library_name == "timm"
    assert data.pipeline_tag == "image-classification"
    assert data.license == record.license == "apache-2.0"
    assert data.datasets == ["uoft-cs/cifar10"]
    assert data.model_name == record.name
    top1, top5 = data.eval_results
    assert (top1.metric_type, top1.metric_value) == ("accuracy", round(record.top1 / 100, 4))
    assert top1.metric_value < top5.metric_value < 1
    assert (top1.dataset_type, top1.dataset_split) == ("uoft-cs/cifar10", "test")
    command = top1.metric_args["command"].split()
    assert command[:3] == ["mnv3", "eval", record.name]
    assert _parser().parse_args(command[1:]).command == "eval"


@TRAINED
def test_what_a_card_must_say(record):
    text = cards.card(record, WEIGHTS / record.name)
    recipe = yaml.safe_load((WEIGHTS / record.name / "recipe.yaml").read_text())
    for part in (
        record.sha256,
        f"**{record.top1:.2f} %**",
        *record.label_names,
        f'"hf-hub:{record.repo}"',
        f"epochs {recipe['epochs']}",
        f"ema {recipe['ema']}",
        "## Use and limits",
        "## Licence",
        "seed 0",
    ):
        assert part in text, part
    assert max(map(len, text.splitlines())) < 160


def test_another_repository(folder):
    text = cards.card(SMALL, folder, repo="me/mine")
    assert text.count("me/mine") == 4
    assert "org/mnv3_small_cifar.cifar10" not in text
    assert not cards.same(text, cards.card(SMALL, folder))


def test_same_despite_another_layout(folder):
    text = cards.card(SMALL, folder)
    head, body = text.split("---\n")[1:]
    shuffled = yaml.safe_dump(yaml.safe_load(head), sort_keys=True, width=40)
    assert shuffled != head
    assert cards.same(f"---\n{shuffled}---\n{body}", text)
    for other in (
        text.replace(f"{SMALL.top1 / 100:.4f}", "0.9985"),
        text.replace(TOP1, "99.85 %"),
        body,
        "",
        "---\n[\n---\n" + body,
        "---\n- a list\n---\n" + body,
        "---\n!!python/object/apply:os.system ['false']\n---\n" + body,
    ):
        assert not cards.same(other, text)


def test_a_card_without_records_of_the_training(folder):
    for name in ("test.json", "recipe.yaml", "log.csv"):
        (folder / name).unlink()
    text = cards.card(SMALL, folder)
    assert f"**{TOP1}**" in text
    assert "top-5" not in text
    assert "epochs 44" in text, "of the recipe that the catalog names"
    assert len(ModelCard(text).data.eval_results) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"count": 1, "top1": 92.0, "top5": 99.0, "loss": 0, "per_class": {"a": 92}, "confusion": [[1]]}',
            f"has a top-1 of 92.0 %, the catalog {TOP1}",
        ),
        ("{}", "cannot be read as metrics"),
        ('{"top1": "high"}', "cannot be read as metrics"),
        ("[1]", "cannot be read as metrics"),
        ("[" * 100_000, "cannot be read as metrics"),
        ("\xff", "has|cannot be read as metrics"),
    ],
)
def test_metrics_that_do_not_fit(folder, content, message):
    (folder / "test.json").write_text(content, encoding="latin-1")
    with pytest.raises(WeightsError, match=message):
        cards.card(SMALL, folder)


def test_a_recipe_that_cannot_be_read(folder):
    (folder / "recipe.yaml").write_text("!!python/object/apply:os.system ['touch ran']")
    with pytest.raises(WeightsError, match="recipe.yaml"):
        cards.card(SMALL, folder)
    assert not (ROOT / "ran").exists()


def test_the_weights_of_others_have_cards_of_their_own(folder):
    with pytest.raises(WeightsError, match="mnv3_large.ra_in1k is published by its authors, at timm/mobilenetv3_large"):
        cards.card(find("mnv3_large"), folder)


def test_the_command_writes_them(folder, capsys, monkeypatch):
    made = (folder / "README.md").read_text()
    (folder / "README.md").write_text("scribbled")
    assert main(["card", str(folder)]) == 0
    assert capsys.readouterr().out == f"wrote {folder}/README.md\n"
    assert (folder / "README.md").read_text() == made
    (folder / "README.md").unlink()
    monkeypatch.setattr("mnv3.files.fetch.LOCAL_WEIGHTS", (folder.parent,))
    assert main(["card"]) == 0
    assert (folder / "README.md").read_text() == made
    assert SMALL.sha256[:12] in (folder.parent / "README.md").read_text()
    (folder / "config.json").write_text(json.dumps({"architecture": "mnv3_small", "pretrained_cfg": {"tag": "mine"}}))
    assert main(["card", str(folder)]) == 1
    assert "config.json names mnv3_small.mine, which the catalog" in capsys.readouterr().err


@RECORDS
def test_every_line_of_code_in_a_card_runs(record, tmp_path, monkeypatch):
    """Report E13. With the Hub and torch.hub's GitHub in this machine."""
    pytest.importorskip("transformers")
    import transformers

    served = tmp_path / "served" / "org" / record.name
    shutil.copytree(WEIGHTS / record.name, served)
    text = (served / "README.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    golden = load_file(served / "golden.safetensors")
    load = torch.hub.load
    monkeypatch.setattr(
        torch.hub, "load", lambda repo, *args, trust_repo, **kw: load(str(ROOT), *args, source="local", **kw)
    )
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    for auto in (transformers.AutoImageProcessor, transformers.AutoModelForImageClassification):
        monkeypatch.setattr(
            auto, "from_pretrained", lambda repo, real=auto.from_pretrained: real(tmp_path / "served" / repo)
        )
    with HubServer(tmp_path / "served") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        download = partial(timm.models._hub.hf_hub_download, endpoint=server.url, cache_dir=tmp_path / "cache")
        monkeypatch.setattr(timm.models._hub, "hf_hub_download", download)  # by which timm reads config.json
        for block in blocks:
            names: dict = {}
            exec(block, names)
            outputs = names["model"].eval()(golden["inputs"])
            torch.testing.assert_close(getattr(outputs, "logits", outputs), golden["outputs"], rtol=1e-4, atol=1e-4)
    command = re.search(r"^\$ mnv3 (predict .*)$", text, re.MULTILINE)[1].split()
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30), "blue").save("photo.jpg")
    assert main(command) == 0


@RECORDS
def test_transformers(record, tmp_path):
    """Labels, preprocessing and logits of its timm wrapper, and a classifier for other classes."""
    transformers = pytest.importorskip("transformers")
    folder = WEIGHTS / record.name
    model = transformers.AutoModelForImageClassification.from_pretrained(folder)
    names = record.label_names or [model.config.id2label[i] for i in range(1000)]  # of ImageNet it has its own
    assert names[0] in ("airplane", "tench, Tinca tinca")
    assert model.config.id2label == dict(enumerate(names))
    assert not record.label_names or model.config.label2id[names[3]] == 3
    assert model.dtype == torch.float32
    golden = load_file(folder / "golden.safetensors")
    with torch.no_grad():
        logits = model.eval()(golden["inputs"]).logits
    torch.testing.assert_close(logits, golden["outputs"], rtol=1e-4, atol=1e-4)
    picture = Image.effect_noise((50, 41), 60).convert("RGB")
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    expected = mnv3.transforms(record.name)(picture)
    torch.testing.assert_close(processor(picture)["pixel_values"][0], expected, rtol=0, atol=0)
    model.save_pretrained(tmp_path / "again")
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "again").eval()
    with torch.no_grad():
        assert torch.equal(again(golden["inputs"]).logits, logits)
    other = transformers.AutoModelForImageClassification.from_pretrained(
        folder, num_labels=3, ignore_mismatched_sizes=True
    )
    assert other.eval()(golden["inputs"]).logits.shape == (2, 3)
    features = transformers.AutoModel.from_pretrained(folder).eval()(golden["inputs"])
    assert features.pooler_output.shape == (2, other.timm_model.head_hidden_size)


@pytest.mark.parametrize("changes", [{"width": 0.5}, {"in_chans": 1}, {"num_classes": 1000}, {"se_order": "se-act"}])
def test_transformers_and_what_save_writes(tmp_path, changes):
    transformers = pytest.importorskip("transformers")
    names = ["a", "b", "c", "d"]
    model = mnv3.create_model("mnv3_small", **({"num_classes": 4} | changes)).eval()
    labels = {} if model.num_classes == 1000 else {"label_names": names}
    folder = mnv3.save(model, tmp_path / "net", **labels)
    wrapped = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    x = torch.randn(2, model.in_chans, 64, 64)
    with torch.no_grad():
        assert torch.equal(wrapped(x).logits, model(x))
    found = list(wrapped.config.id2label.values())
    assert len(found) == model.num_classes
    assert found == names if labels else found[0].startswith("tench")


def test_fields_of_the_card_are_in_every_record_of_ours():
    for record in OURS:
        assert record.dataset, record.name
        assert bool(record.recipe) == bool(record.measured) == (record.tag == "cifar10"), record.name
    assert all(not record.ours for record in CATALOG if record.url)
    assert dataclasses.replace(SMALL, repo=None).ours is False
