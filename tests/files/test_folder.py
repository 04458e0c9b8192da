"""config.json is input: what cannot be is refused in one line, by every way in, before anything is built from it."""

import json
import os
import random
import subprocess
import sys
import time

import huggingface_hub
import pytest
import timm
import torch
from conftest import ROOT, randomize
from hub_server import HubServer
from safetensors.torch import save_file

import mnv3
from mnv3.errors import WeightsError
from mnv3.files.folder import read_config
from mnv3.files.saving import CONFIG_FILE

TINY = mnv3.Arch(stem=8, rows=(mnv3.Bneck(3, 16, 8, True, "RE", 2),), last=16, head=24)
ROW = [3, 16, 8, True, "RE", 2]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A weights folder."""
    torch.manual_seed(0)
    model = randomize(timm.create_model("mnv3_small", arch=TINY, num_classes=4))
    return mnv3.save(model, tmp_path_factory.mktemp("saved") / "net", label_names=list("abcd"))


@pytest.fixture
def net(saved, tmp_path):
    """A copy of it, to be spoilt."""
    (tmp_path / "net").mkdir()
    for file in saved.iterdir():
        (tmp_path / "net" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "net"


def change(folder, where, name, value):
    """Put an entry into a folder's config.json."""
    config = json.loads((folder / CONFIG_FILE).read_text())
    (config[where] if where else config)[name] = value
    (folder / CONFIG_FILE).write_text(json.dumps(config))


def by_timm(folder):
    return timm.create_model(f"local-dir:{folder}", pretrained=True)


DOORS = (mnv3.load_checkpoint, by_timm, lambda folder: mnv3.create_model(f"local-dir:{folder}", pretrained=True))
CFG, ARGS = "pretrained_cfg", "model_args"
BAD = {
    "no arguments": ("", ARGS, [1], "model_args: expected names with values, found list"),
    "unknown argument": (ARGS, "widht", 2, "model_args: unknown 'widht'. Did you mean 'width'"),
    "a device": (ARGS, "device", "cuda", "model_args: unknown 'device'"),
    "a strategy": (ARGS, "pretrained_strict", False, "model_args: unknown 'pretrained_strict'"),
    "width": (ARGS, "width", 70, "width 70: expected a number from 0.01 to 64"),
    "width is NaN": (ARGS, "width", float("nan"), "width nan: expected a number from 0.01 to 64"),
    "width is a text": (ARGS, "width", "1.0", "width '1.0': expected a number"),
    "width is true": (ARGS, "width", True, "width True: expected a number"),
    "se is a text": (ARGS, "use_se", "no", "use_se 'no': expected true or false"),
    "channels": (ARGS, "in_chans", 10**9, "1000000000.*: expected .* 1024"),
    "pool": (ARGS, "global_pool", "none", "model_args: global_pool='none'. Allowed: "),
    "padding": (ARGS, "pad_type", [], r"pad_type \[\]: expected a text, a number, true or false"),
    "drop rate": (ARGS, "drop_rate", 7, "model_args: drop_rate=7"),
    "table is a number": (ARGS, "arch", 3, "arch 3: expected a name or a table"),
    "table is unknown": (ARGS, "arch", "medium", "model_args: unknown arch 'medium'"),
    "many rows": (ARGS, "arch", TINY.to_dict() | {"rows": [ROW] * 501}, "arch rows: 501; at most 500"),
    "rows of text": (ARGS, "arch", TINY.to_dict() | {"rows": "abc"}, "arch table: "),
    "many channels": (ARGS, "arch", TINY.to_dict() | {"last": 65537}, "arch channels: 65537; at most 65536"),
    "large table": (
        ARGS,
        "arch",
        TINY.to_dict() | {"last": 60000, "head": 60000},
        "a network of .* at most 134,217,728",
    ),
    "dilation": (ARGS, "arch", TINY.to_dict() | {"rows": [[*ROW[:5], 1, 65]]}, "arch dilation: 65; at most 64"),
    "kernel": (ARGS, "arch", TINY.to_dict() | {"rows": [[33, *ROW[1:]]]}, "arch kernel: 33; at most 31"),
    "classes": ("", "num_classes", 10**9, "num_classes 1000000000: expected a whole number from 0"),
    "classes is a text": ("", "num_classes", "4", "num_classes '4': expected a whole number"),
    "names": ("", "label_names", [1, 2, 3, 4], r"label_names \[1, 2, 3, 4\]: expected a list of names"),
    "descriptions": ("", "label_descriptions", ["a"], "label_descriptions .*: expected a text for each name"),
    "no preprocessing": ("", CFG, "none", "pretrained_cfg: expected names with values, found str"),
    "unknown entry": (CFG, "crop_ptc", 0.9, "pretrained_cfg: unknown 'crop_ptc'. Did you mean 'crop_pct'"),
    "crop": (CFG, "crop_pct", 1e-3, "crop_pct 0.001: expected a number from 0.01"),
    "small crop": (CFG, "crop_pct", 0.02, "crop_pct 0.02 of 224 pixels has pictures resized to 11200 pixels"),
    "test crop": (CFG, "test_crop_pct", 0.02, "test_crop_pct 0.02 of 224 pixels has pictures resized to 11200"),
    "size": (CFG, "input_size", [3, 10**6, 10**6], "input_size .*: expected a list of channels, height and width"),
    "size of two": (CFG, "input_size", [224, 224], "input_size .*: expected a list of channels, height and width"),
    "size is a number": (CFG, "input_size", 224, "input_size 224: expected a list"),
    "mean": (CFG, "mean", ["0.5"] * 3, "mean .*: expected a list of a number for each channel"),
    "std of nothing": (CFG, "std", [0, 0, 0], "std .*: expected a list of a number above 0"),
    "std is infinite": (CFG, "std", [float("inf")] * 3, "std .*: expected a list of a number above 0"),
    "interpolation": (CFG, "interpolation", "cubic", "interpolation 'cubic': expected one of nearest, bilinear"),
    "interpolation of lists": (CFG, "interpolation", [], r"interpolation \[\]: expected one of"),
    "crop mode": (CFG, "crop_mode", "left", "crop_mode 'left': expected one of center"),
    "tag": (CFG, "tag", {"a": 1}, "tag {'a': 1}: expected a text"),
    "offset": (CFG, "label_offset", -7, "label_offset -7: expected a whole number from 0 to 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_refused(net, name):
    where, entry, value, message = BAD[name]
    change(net, where, entry, value)
    start = time.perf_counter()
    for load in DOORS:
        if load is by_timm and (entry in (ARGS, CFG) or name == "size is a number"):
            continue  # timm itself stumbles, before it calls us
        with pytest.raises(WeightsError, match=message) as info:
            load(net)
        assert f"{net}" in str(info.value)
        assert len(str(info.value)) < 1200
    with pytest.raises(WeightsError, match=message):
        read_config(net)
    assert time.perf_counter() - start < 10


def test_no_other_file_is_loaded(net, tmp_path):
    """Not by the model's arguments, and not by what the configuration says of where weights are."""
    other = randomize(timm.create_model("mnv3_small", arch=TINY, num_classes=4), seed=7)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    expected = mnv3.load_checkpoint(net).state_dict()
    elsewhere = {"file": str(tmp_path / "other.pth"), "url": f"file://{tmp_path}/other.pth", "hf_hub_id": "o/other"}
    elsewhere |= {"hf_hub_filename": "../other.pth", "source": "url", "custom_load": True, "state_dict": {"a": [1]}}
    for name, value in elsewhere.items():
        change(net, CFG, name, value)
    change(net, CFG, "classifier", "head")
    change(net, CFG, "first_conv", "blocks.0.expand.conv")
    for load in DOORS:
        model = load(net)
        assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    change(net, ARGS, "checkpoint_path", str(tmp_path / "other.pth"))
    for load in (mnv3.load_checkpoint, DOORS[2]):
        with pytest.raises(WeightsError, match="config.json: model_args: unknown 'checkpoint_path'"):
            load(net)


def test_no_other_repository_is_loaded(saved, tmp_path, monkeypatch):
    """The weights of a repository are those in it, of the commit whose configuration was read."""
    other = randomize(timm.create_model("mnv3_small", arch=TINY, num_classes=4), seed=7)
    for commit, model in (("a" * 40, None), ("b" * 40, other)):
        folder = tmp_path / "served" / "o" / "net" / commit
        folder.mkdir(parents=True)
        for file in saved.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        if model:
            save_file(model.state_dict(), folder / "model.safetensors")
        torch.save(other.state_dict(), tmp_path / "x.pth")
        for name, value in {"file": str(tmp_path / "x.pth"), "url": "http://127.0.0.1:1/x.pth"}.items():
            change(folder, CFG, name, value)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with HubServer(tmp_path / "served") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        expected = mnv3.load_checkpoint(saved).state_dict()
        found = mnv3.create_model(f"hf-hub:o/net@{'a' * 40}", pretrained=True)
        assert all(torch.equal(value, expected[key]) for key, value in found.state_dict().items())
        assert mnv3.class_names(found) == list("abcd")
        newest = mnv3.load_checkpoint("hf-hub:o/net")
        assert torch.equal(newest.classifier.weight, other.classifier.weight)
        assert newest.pretrained_cfg["hf_hub_id"] == f"o/net@{'b' * 40}"
        assert mnv3.create_model("hf_hub:o/net", num_classes=9).num_classes == 9
        change(folder, ARGS, "checkpoint_path", str(tmp_path / "x.pth"))
        server.requests.clear()
        with pytest.raises(WeightsError, match="config.json: model_args: unknown 'checkpoint_path'"):
            mnv3.create_model("hf-hub:o/net", pretrained=True, cache_dir=tmp_path / "fresh")
        with pytest.raises(WeightsError, match="no repository o/none on http"):
            mnv3.create_model("hf-hub:o/none", pretrained=True)


def test_a_repository_as_save_for_hf_writes_it(tmp_path, monkeypatch):
    """With pytorch_model.bin, and timm's name of the model."""
    theirs = randomize(timm.create_model("mobilenetv3_small_050", num_classes=3))
    timm.models.save_for_hf(theirs, str(tmp_path / "served" / "o" / "net"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    x = torch.randn(2, 3, 64, 64)
    with HubServer(tmp_path / "served") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        for offline in ("", "1"):
            monkeypatch.setenv("HF_HUB_OFFLINE", offline)
            model = mnv3.create_model("hf-hub:o/net", pretrained=True).eval()
            with torch.inference_mode():
                torch.testing.assert_close(model(x), theirs(x), rtol=1e-4, atol=1e-4)
        assert model.pretrained_cfg["architecture"] == "mnv3_small_050"
        monkeypatch.setenv("HF_HUB_OFFLINE", "")
        (tmp_path / "served" / "o" / "net" / "pytorch_model.bin").unlink()
        with pytest.raises(WeightsError, match="o/net at .* has no model.safetensors"):
            mnv3.create_model("hf-hub:o/net", pretrained=True, cache_dir=tmp_path / "fresh")


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "large", "socket name"])
def test_special_files(net, kind):
    """They neither hang nor fill the memory."""
    file = net / CONFIG_FILE
    file.unlink()
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "folder":
        file.mkdir()
    elif kind == "large":
        with file.open("wb") as stream:
            stream.truncate(1 << 34)
    else:
        file.symlink_to("nowhere")
    messages = {"large": "17179869184 bytes; at most", "socket name": "is no weights folder: it has no config.json"}
    for load in (mnv3.load_checkpoint, DOORS[2]):
        with pytest.raises(WeightsError, match=messages.get(kind, "config.json: not a regular file")):
            load(net)


def test_timms_first_format(net):
    """All in one, where timm had no pretrained_cfg apart."""
    config = json.loads((net / CONFIG_FILE).read_text())
    flat = config["pretrained_cfg"] | {"architecture": "mnv3_small", "labels": list("wxyz"), "num_classes": 4}
    flat |= {"model_args": config["model_args"], "mean": [0.1, 0.2, 0.3]}
    (net / CONFIG_FILE).write_text(json.dumps(flat))
    model = mnv3.load_checkpoint(net)
    assert mnv3.class_names(model) == list("wxyz")
    assert model.pretrained_cfg["mean"] == [0.1, 0.2, 0.3]
    change(net, "", "crop_pct", "all")
    with pytest.raises(WeightsError, match="config.json: crop_pct 'all': expected a number"):
        mnv3.load_checkpoint(net)


def test_the_hub_clients_mixin(tmp_path):
    """It writes the arguments of a class of one's own, an Arch as its fields by name."""

    class Net(mnv3.MobileNetV3, huggingface_hub.PyTorchModelHubMixin):
        pass

    model = randomize(Net(TINY, num_classes=4))
    model.save_pretrained(tmp_path / "net")
    found = Net.from_pretrained(tmp_path / "net").eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(found(x), model(x))
    assert found.arch == TINY


VALUES = (None, True, -1, 0, 3, 10**12, 1e-9, 1e308, float("nan"), float("inf"), "", "x", "large", [], [1, 2], [[]], {})


@pytest.mark.slow
def test_any_change_is_read_right_or_refused(net):
    """One entry of another value, 600 times: a model with the folder's weights, or one line."""
    text, rng, refused = (net / CONFIG_FILE).read_text(), random.Random(0), []
    expected = mnv3.load_checkpoint(net).state_dict()
    for _ in range(600):
        config = json.loads(text)
        place = config
        while True:
            key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if not (isinstance(place[key], (dict, list)) and place[key] and rng.random() < 0.8):
                break
            place = place[key]
        place[key] = rng.choice(VALUES)
        (net / CONFIG_FILE).write_text(json.dumps(config))
        try:
            model = mnv3.load_checkpoint(net)
        except WeightsError as error:
            refused.append(str(error))
        else:
            mnv3.transforms(model)
            assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    assert len(refused) > 300
    assert [line for line in refused if "\n" in line or str(net) not in line] == []


@pytest.mark.slow
def test_memory(net):
    """What was 3 to 5 GB is refused within the memory that imports take."""
    change(net, ARGS, "width", 40)
    del_args = "c['model_args'].pop('arch'); json.dump(c, open(f, 'w'))"
    code = f"""
import json, resource, mnv3
f = {str(net / CONFIG_FILE)!r}
c = json.load(open(f)); {del_args}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    mnv3.load_checkpoint({str(net)!r})
except mnv3.WeightsError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    message, more = done.stdout.splitlines()
    assert "a network of " in message, done.stderr
    assert int(more) < 200, "MB"
