"""Weights files and folders: what is damaged or dangerous is refused, and what is saved comes back."""

import argparse
import hashlib
import json
import os
import pickle
import resource
import struct
import time
import zipfile
from pathlib import Path

import pytest
import timm
import torch
from conftest import randomize
from safetensors.torch import load_file, save_file

import mnv3
from mnv3.catalog import WEIGHTS_FILE
from mnv3.errors import WeightsError
from mnv3.files import checkpoint, saving
from mnv3.files.checkpoint import read_checkpoint
from mnv3.files.folder import read_config, weights_in
from mnv3.files.saving import CONFIG_FILE, GOLDEN_FILE

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.linspace(0, 1, 5, dtype=torch.float64),
    "n": torch.tensor(7),
}
TINY = mnv3.Arch(
    stem=8, rows=(mnv3.Bneck(3, 16, 8, True, "RE", 2), mnv3.Bneck(5, 24, 16, True, "HS", 2)), last=32, head=40
)


def tiny(**kwargs):
    """A model of 7000 parameters whose outputs depend on every one."""
    return randomize(timm.create_model("mnv3_small", **{"arch": TINY, "num_classes": 4} | kwargs))


def load(folder, **kwargs):
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **kwargs).eval()


def logits(model, size=64, channels=3):
    x = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        return model(x)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key in expected:
        assert found[key].dtype == expected[key].dtype
        assert torch.equal(found[key], expected[key])


@pytest.fixture
def good(tmp_path):
    """A sound safetensors file."""
    save_file(TENSORS, tmp_path / "good.safetensors")
    assert_same(read_checkpoint(tmp_path / "good.safetensors"), TENSORS)
    return tmp_path / "good.safetensors"


# --- damaged files (reports F4, F13) ---------------------------------------------------------------------------------


def test_cut_files_are_refused_with_path_and_size(good):
    data = good.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    for size in (0, 1, 4, 8, 9, header // 2, header, len(data) - 1):
        for suffix in (".safetensors", ".pth", ""):
            cut = good.with_name(f"cut{suffix}")
            cut.write_bytes(data[:size])
            with pytest.raises(WeightsError, match=rf"/cut{suffix}: .*\b{size}\b"):
                read_checkpoint(cut)


def test_trailing_bytes_are_refused(good):
    size = good.stat().st_size
    with good.open("ab") as file:
        file.write(bytes(16))
    with pytest.raises(WeightsError, match=f"good.safetensors: cut off or damaged, {size + 16} bytes"):
        read_checkpoint(good)


def test_bad_headers_are_refused_fast(tmp_path):
    """What the library refuses, and what is longer than the header of any MobileNetV3 (report F13)."""
    file, start = tmp_path / "x.safetensors", time.perf_counter()
    for header, length in (
        (b"{}", 2**64 - 1),
        (b"{" + b" " * 5_000_000 + b"}", 5_000_002),
        (b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", 400_006),
        (b'{"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 1099511627776]}}', 72),
    ):
        data = struct.pack("<Q", length) + header + bytes(64)
        file.write_bytes(data)
        with pytest.raises(WeightsError, match=rf"x.safetensors: .*\b{len(data)} bytes: "):
            read_checkpoint(file)
    assert time.perf_counter() - start < 10


NOT_WEIGHTS = {
    "empty": (b"", "0 bytes; it is empty"),
    "html": (b"<!DOCTYPE html><html>404</html>", "31 bytes; it starts as a web page"),
    "indented html": (b"\n  <html></html>", "it starts as a web page"),
    "LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n",
        "65 bytes; it starts as a Git LFS pointer.* `git lfs pull`",
    ),
    "text": (b"hello, world, these are not weights", "35 bytes"),
    "JSON": (b'{"error": "not found"}', "22 bytes"),
}


@pytest.mark.parametrize("name", NOT_WEIGHTS)
def test_what_is_no_weights_is_named(tmp_path, name):
    data, message = NOT_WEIGHTS[name]
    for suffix in (".safetensors", ".pth", ".bin"):
        file = tmp_path / f"x{suffix}"
        file.write_bytes(data)
        assert checkpoint.damage(file) is not None  # so that a download of it is not kept
        with pytest.raises(WeightsError, match=f"/x{suffix}: .*{message}"):
            read_checkpoint(file)


def test_a_cut_zip_is_damaged(tmp_path):
    file = tmp_path / "x.pth"
    torch.save(TENSORS, file)
    assert checkpoint.damage(file) is None
    data = file.read_bytes()
    for cut in (0.2, 0.999):
        file.write_bytes(data[: int(len(data) * cut)])
        assert "not a whole file" in checkpoint.damage(file)
        with pytest.raises(WeightsError, match="not a whole file of weights, .* bytes; it starts as a zip"):
            read_checkpoint(file)


def test_missing_files(tmp_path):
    with pytest.raises(WeightsError, match=f"no file of weights at {tmp_path}/nothing.pth"):
        read_checkpoint(tmp_path / "nothing.pth")
    with pytest.raises(WeightsError, match=f"no file of weights at {tmp_path}"):
        read_checkpoint(tmp_path)
    assert "No such file" in checkpoint.damage(tmp_path / "nothing.pth")


def test_digest(good):
    expected = hashlib.sha256(good.read_bytes()).hexdigest()
    assert checkpoint.digest(good) == expected
    assert checkpoint.damage(good, expected) is None
    assert checkpoint.damage(good, expected[:8]) is None
    problem = checkpoint.damage(good, "0" * 64)
    assert problem == f"expected sha256 000000000000, found {expected[:12]} in {good.stat().st_size} bytes"


# --- pickles (reports F9, F10, D11) ----------------------------------------------------------------------------------


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def write_evil(file, marker, kind):
    payload = {"state_dict": {"a": torch.ones(1)}, "extra": Evil(marker)}
    if kind == "zip":
        torch.save(payload, file)
    elif kind == "legacy":
        torch.save(payload, file, _use_new_zipfile_serialization=False)
    elif kind == "hand-made zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("x/data.pkl", pickle.dumps(Evil(marker), protocol=2))
            archive.writestr("x/version", "3\n")
    else:
        file.write_bytes(pickle.dumps(Evil(marker), protocol=int(kind[-1])))


@pytest.mark.parametrize("kind", ["zip", "legacy", "hand-made zip", "protocol 0", "protocol 2", "protocol 4"])
def test_a_pickle_never_runs_code(tmp_path, kind):
    marker = tmp_path / "marker"
    for suffix in (".safetensors", ".bin", ".pth"):
        file = tmp_path / f"x{suffix}"
        write_evil(file, marker, kind)
        with pytest.raises(WeightsError, match=f"/x{suffix}: "):
            read_checkpoint(file)
    with pytest.raises(WeightsError):
        mnv3.load_checkpoint(file, model="mnv3_small")
    assert not marker.exists()
    if kind in ("zip", "legacy", "protocol 2"):  # it is a real threat
        torch.load(file, weights_only=False) if kind != "protocol 2" else pickle.loads(file.read_bytes())
        assert marker.exists()


def test_objects_beside_weights_are_refused_with_advice(tmp_path):
    torch.save({"state_dict": TENSORS, "path": Path("/")}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="x.pth: .* more than tensors, which could run code: save its state_dict"):
        read_checkpoint(tmp_path / "x.pth")
    torch.save(tiny(), tmp_path / "model.pth")
    with pytest.raises(WeightsError, match="model.pth: .* save its state_dict alone"):
        read_checkpoint(tmp_path / "model.pth")


def test_torchscript_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="x.pt: it is a TorchScript program: save the state_dict"):
        read_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_arguments_of_trainers_are_no_obstacle(tmp_path, zipped):
    """timm's and torchvision's training scripts keep argparse's Namespace beside the weights (report F9)."""
    checkpoint = {"state_dict": TENSORS, "epoch": 3, "args": argparse.Namespace(lr=0.1, model="x", betas=(0.9, 0.99))}
    torch.save(checkpoint, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    found = read_checkpoint(tmp_path / "x.pth")
    assert_same(found["state_dict"], TENSORS)
    assert found["epoch"] == 3
    assert found["args"].betas == (0.9, 0.99)


def test_a_whole_training_state_loads(tmp_path):
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    model.train()(torch.randn(2, 3, 64, 64)).sum().backward()
    optimizer.step()
    scheduler.step()
    checkpoint = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "recipe": {"lr": 0.1, "tags": ["a"]},
    }
    torch.save(checkpoint | {"scheduler": scheduler.state_dict()}, tmp_path / "x.pth")
    found = mnv3.load_checkpoint(tmp_path / "x.pth", model="mnv3_small", arch=TINY)
    assert torch.equal(logits(found.eval()), logits(model.eval()))


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_of_a_gpu_load_without_one(tmp_path, monkeypatch, zipped):
    """Report D11."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save(TENSORS, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):  # that is what the file asks for
            torch.load(tmp_path / "x.pth")
    found = read_checkpoint(tmp_path / "x.pth")
    assert_same(found, TENSORS)
    assert all(tensor.device.type == "cpu" for tensor in found.values())


def test_a_checkpoint_is_a_mapping(tmp_path):
    for content, name in (([TENSORS["a"]], "list"), (TENSORS["a"], "Tensor"), (argparse.Namespace(a=1), "Namespace")):
        torch.save(content, tmp_path / "x.pth")
        with pytest.raises(WeightsError, match=f"x.pth: expected a state dict, found a {name}"):
            read_checkpoint(tmp_path / "x.pth")


def test_other_entries_than_tensors_do_not_hurt(tmp_path):
    """Report F3."""
    model = tiny()
    torch.save({"state_dict": model.state_dict(), "epoch": 3, "best": None, "log": [1.5, "x"]}, tmp_path / "x.pth")
    found = mnv3.load_checkpoint(tmp_path / "x.pth", model="mnv3_small", arch=TINY)
    assert_same(found.state_dict(), model.state_dict())
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="none.pth: no state dict in the checkpoint: it has epoch"):
        mnv3.load_checkpoint(tmp_path / "none.pth", model="mnv3_small", num_classes=4)


def test_model_and_average_in_one_file_are_independent(tmp_path):
    """Report F2: neither what they share when saved nor what is loaded."""
    model, average = tiny(), tiny()
    average.classifier.bias.data += 1
    torch.save({"state_dict": model.state_dict(), "state_dict_ema": average.state_dict()}, tmp_path / "x.pth")
    found = read_checkpoint(tmp_path / "x.pth")
    found["state_dict"]["classifier.bias"].zero_()
    assert_same(found["state_dict_ema"], average.state_dict())


# --- half precision and counters (report F12) ------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "dtype"), [(".safetensors", torch.float16), (".pth", torch.bfloat16)])
def test_a_file_in_half_precision_loads_into_float32(tmp_path, dtype, suffix):
    model = tiny()
    state_dict = {key: value.to(dtype) for key, value in model.state_dict().items()}  # the counters too
    file = tmp_path / f"x{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state_dict, file)
    found = mnv3.load_checkpoint(file, model="mnv3_small", arch=TINY).state_dict()
    for key, value in model.state_dict().items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value.to(dtype).to(value.dtype))


def test_a_file_without_counters_loads(tmp_path):
    model = tiny()
    state_dict = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(state_dict, tmp_path / "x.safetensors")
    found = mnv3.load_checkpoint(tmp_path / "x.safetensors", model="mnv3_small", arch=TINY)
    assert torch.equal(logits(found.eval()), logits(model))
    assert found.stem.norm.num_batches_tracked.dtype == torch.int64


# --- folders (reports F10, F11) --------------------------------------------------------------------------------------


def test_weights_of_a_folder(tmp_path, caplog):
    """The file that timm would take."""
    with pytest.raises(WeightsError, match=f"no weights folder at {tmp_path}/nothing"):
        weights_in(tmp_path / "nothing")
    for name in (GOLDEN_FILE, "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    os.mkfifo(tmp_path / WEIGHTS_FILE)
    with pytest.raises(
        WeightsError, match=f"{tmp_path} has no file of weights: expected model.safetensors, or another"
    ):
        weights_in(tmp_path)
    (tmp_path / WEIGHTS_FILE).unlink()
    order = ["b.bin", "x.pth.tar", "b.pth", "a.pth", "z.safetensors", "model.pth", "pytorch_model.bin", WEIGHTS_FILE]
    for name in order:
        torch.save({}, tmp_path / name)
        assert weights_in(tmp_path) == tmp_path / name
        theirs = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(timm.models._hub, "load_state_dict", lambda path, **_: theirs.append(path))  # noqa: B023
            (tmp_path / GOLDEN_FILE).rename(tmp_path / "golden")
            timm.models._hub.load_state_dict_from_path(tmp_path)
            (tmp_path / "golden").rename(tmp_path / GOLDEN_FILE)
        assert theirs == [tmp_path / name]
    notices = [record.getMessage() for record in caplog.records if record.name == "mnv3.files.folder"]
    assert notices == [f"{tmp_path} has a.pth, b.pth: a.pth is taken, as timm does"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "other.safetensors", "best.pth", "last.pth.tar"])
def test_a_folder_with_another_file_of_weights(tmp_path, name):
    """save_for_hf writes pytorch_model.bin unless told otherwise."""
    model = tiny()
    folder = mnv3.save(model, tmp_path / "net")
    (folder / WEIGHTS_FILE).unlink()
    (save_file if name.endswith(".safetensors") else torch.save)(model.state_dict(), folder / name)
    doors = (load, mnv3.load_checkpoint, lambda f: mnv3.create_model(f"local-dir:{f}", pretrained=True))
    for make in doors:
        assert_same(make(folder).state_dict(), model.state_dict())


def test_a_folder_with_only_an_evil_pickle_is_refused(tmp_path):
    folder, marker = mnv3.save(tiny(), tmp_path / "net"), tmp_path / "marker"
    (folder / WEIGHTS_FILE).unlink()
    write_evil(folder / "pytorch_model.bin", marker, "zip")
    for make in (load, mnv3.load_checkpoint):
        with pytest.raises(WeightsError, match="pytorch_model.bin: .*could run code"):
            make(folder)
    assert not marker.exists()


def test_bad_configurations(tmp_path):
    for text, message in (
        (None, "is no weights folder: it has no config.json"),
        (b"", "config.json: cannot be read"),
        (b"{not json", "config.json: cannot be read"),
        (b"\xff\xfe{}", "config.json: cannot be read"),
        (b'{"a":' + b"[" * 200_000, "config.json: cannot be read"),
        (b"[1, 2]", "config.json: cannot be read: 'architecture' is not a name"),
        (b"{}", "config.json: no 'architecture' in it; expected timm's format"),
        (b'{"architecture": null}', "'architecture' is not a name"),
    ):
        if text is not None:
            (tmp_path / CONFIG_FILE).write_bytes(text)
        for read in (read_config, mnv3.load_checkpoint):
            with pytest.raises(WeightsError, match=message):
                read(tmp_path)


def test_a_plain_folder_needs_no_writing(tmp_path):
    """Report E6: neither locks nor links."""
    folder = mnv3.save(tiny(), tmp_path / "net")
    before = {file: file.stat().st_mtime_ns for file in (folder, *folder.iterdir())}
    load(folder)
    mnv3.load_checkpoint(folder)
    assert {file: file.stat().st_mtime_ns for file in (folder, *folder.iterdir())} == before


# --- saving ----------------------------------------------------------------------------------------------------------

OTHER = mnv3.Arch(stem=16, rows=(mnv3.Bneck(5, 32, 24, False, "HS", 1, dilation=2),), last=16, head=24, act="RE")
MODELS = {
    "as it is": ("mnv3_small_050", {}),
    "TensorFlow": ("mnv3_small_075_tf", {"num_classes": 3}),
    "32 px, no classifier": ("mnv3_small_cifar", {"num_classes": 0}),
    "width": ("mnv3_small", {"width": 0.35, "num_classes": 3}),
    "SE order, one channel": ("mnv3_small", {"arch": TINY, "se_order": "se-act", "in_chans": 1}),
    "minimal, five channels": ("mnv3_small", {"arch": TINY, "use_se": False, "use_hs": False, "in_chans": 5}),
    "arch": ("mnv3_large", {"arch": OTHER, "num_classes": 3, "drop_rate": 0.2, "drop_path_rate": 0.1}),
    "arch and width": ("mnv3_small", {"arch": TINY.to_dict(), "width": 1.5, "num_classes": 3}),
    "arch by name, pool": ("mnv3_small", {"arch": "large", "width": 0.25, "num_classes": 3, "global_pool": "max"}),
    "no pool": ("mnv3_small", {"arch": TINY, "global_pool": "", "num_classes": 3}),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_comes_back(tmp_path, name):
    arch, kwargs = MODELS[name]
    model = randomize(timm.create_model(arch, **kwargs))
    folder = mnv3.save(model, tmp_path / "net")
    assert sorted(file.name for file in folder.iterdir()) == [CONFIG_FILE, GOLDEN_FILE, WEIGHTS_FILE]
    expected = logits(model, channels=model.in_chans)
    golden = load_file(folder / GOLDEN_FILE)
    for make in (load, mnv3.load_checkpoint):
        found = make(folder).eval()
        assert_same(found.state_dict(), model.state_dict())
        assert torch.equal(logits(found, channels=model.in_chans), expected)
        assert found.arch == model.arch
        assert (found.num_classes, found.in_chans) == (model.num_classes, model.in_chans)
        with torch.inference_mode():
            torch.testing.assert_close(found(golden["inputs"]), golden["outputs"], rtol=0, atol=0)
    assert golden["inputs"].shape == (2, model.in_chans, *[min(64, model.pretrained_cfg["input_size"][-1])] * 2)
    assert load(folder).drop_rate == 0


def test_a_copy_of_a_copy_is_the_same(tmp_path):
    first = mnv3.save(tiny(width=1.5, se_order="se-act"), tmp_path / "first")
    second = mnv3.save(load(first), tmp_path / "second")
    for name in (CONFIG_FILE, WEIGHTS_FILE, GOLDEN_FILE):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_golden_outputs_are_those_of_evaluation(tmp_path):
    model = tiny(drop_rate=0.5).train()
    golden = load_file(mnv3.save(model, tmp_path / "net") / GOLDEN_FILE)
    assert model.training
    assert all(module.training for module in model.modules())
    with torch.inference_mode():
        assert torch.equal(model.eval()(golden["inputs"]), golden["outputs"])
    model.classifier.bias.data += 1
    other = load_file(mnv3.save(model, tmp_path / "other") / GOLDEN_FILE)
    assert torch.equal(other["inputs"], golden["inputs"])
    assert not torch.allclose(other["outputs"], golden["outputs"])


def test_the_classifier_after_a_reset_is_saved(tmp_path):
    model = tiny()
    model.reset_classifier(5, "max")
    found = load(mnv3.save(randomize(model), tmp_path / "net"))
    assert found.num_classes == 5
    assert torch.equal(logits(found), logits(model))


def test_entries_of_the_configuration(tmp_path):
    folder = mnv3.save(tiny(), tmp_path / "net", label_names=["a", "b", "c", "d"], note="mine")
    config = read_config(folder)
    assert config["architecture"] == "mnv3_small"
    assert config["num_classes"] == 4
    assert config["note"] == "mine"
    assert mnv3.class_names(load(folder)) == ["a", "b", "c", "d"]
    assert mnv3.class_names(mnv3.load_checkpoint(folder)) == ["a", "b", "c", "d"]


def test_preprocessing_is_saved(tmp_path):
    overlay = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "input_size": (3, 96, 96), "interpolation": "bilinear"}
    found = load(mnv3.save(tiny(pretrained_cfg_overlay=overlay), tmp_path / "net"))
    assert {key: tuple(v) if isinstance(v := found.pretrained_cfg[key], list) else v for key in overlay} == overlay


@pytest.mark.parametrize("how", ["channels last", "compiled", "half", "tied", "view"])
def test_any_kind_of_tensor_is_saved(tmp_path, how):
    """What safetensors refuses by itself: strides, shared storage, the keys of a compiled module (report F2)."""
    model = saved = tiny()
    if how == "channels last":
        model.to(memory_format=torch.channels_last)
        assert not model.stem.conv.weight.is_contiguous()
    elif how == "compiled":
        saved = torch.compile(model, backend="eager")
    elif how == "half":
        saved = model.bfloat16()
    elif how == "tied":
        model.blocks[0].depthwise.norm.weight = model.blocks[0].depthwise.norm.bias
    else:
        storage = torch.randn(2, *model.classifier.weight.shape)
        model.classifier.weight.data = storage[1]
    found = load(mnv3.save(saved, tmp_path / "net"))
    assert_same(
        found.state_dict(), {k: v.float() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    )


def replaced_classifier():
    model = tiny()
    model.classifier = torch.nn.Linear(40, 5)
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mnv3.MobileNetV3(TINY), "this MobileNetV3 has no configuration: make it with mnv3.create_model"),
        (lambda: torch.nn.Linear(2, 2), "this Linear has no configuration"),
        (
            lambda: timm.create_model("mnv3_small", arch=TINY, features_only=True, out_indices=(0,)),
            "FeatureListNet has no",
        ),
        (lambda: torch.nn.Sequential(tiny()), "this Sequential has no configuration"),
        (lambda: mnv3.fuse(tiny()), r"stem.norm.weight is missing, not \(8,\). Save it before fuse\(\)"),
        (replaced_classifier, r"classifier.weight is \(5, 40\), not \(4, 40\).* use reset_classifier\(n\)"),
    ],
)
def test_what_nothing_could_build_again_is_not_saved(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        mnv3.save(make(), tmp_path / "net")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "name", "error"),
    [(saving, "golden", RuntimeError("stop")), (timm.models._hub, "save_config_for_hf", KeyboardInterrupt())],
)
def test_a_folder_appears_whole_or_not_at_all(tmp_path, monkeypatch, module, name, error):
    model, existed = tiny(), []

    def fail(*args, **kwargs):
        existed.append((tmp_path / "net").exists())
        raise error

    monkeypatch.setattr(module, name, fail)
    with pytest.raises(type(error)):
        mnv3.save(model, tmp_path / "net")
    assert existed == [False]
    assert not any(tmp_path.iterdir())


def test_a_failure_leaves_the_old_folder(tmp_path, monkeypatch):
    old = tiny()
    folder = mnv3.save(old, tmp_path / "net")
    with pytest.raises(TypeError, match="set is not JSON serializable"):
        mnv3.save(tiny(num_classes=9), folder, exist_ok=True, note={1, 2})
    monkeypatch.setattr(saving, "golden", lambda model: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mnv3.save(tiny(num_classes=9), folder, exist_ok=True)
    assert torch.equal(logits(load(folder)), logits(old))
    assert list(tmp_path.iterdir()) == [folder]


def test_a_full_disk_leaves_nothing(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(Exception, match=r"(?i)too large|error 27"):
            mnv3.save(tiny(), tmp_path / "net")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not any(tmp_path.iterdir())


def test_an_existing_folder_is_replaced_only_on_request(tmp_path):
    folder = mnv3.save(tiny(), tmp_path / "net")
    other = tiny(num_classes=9)
    with pytest.raises(
        FileExistsError, match=r"net exists: choose another folder, or replace it \(exist_ok=True, --force"
    ):
        mnv3.save(other, folder)
    assert load(folder).num_classes == 4
    assert mnv3.save(other, folder, exist_ok=True) == folder
    assert torch.equal(logits(load(folder)), logits(other))
    assert list(tmp_path.iterdir()) == [folder]


def test_other_files_are_never_deleted(tmp_path):
    """`save(model, '.', exist_ok=True)` in a project's folder must not be the end of the project."""
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="not only a weights folder and is not replaced: it has thesis.tex"):
        mnv3.save(tiny(), tmp_path / "project", exist_ok=True)
    assert (tmp_path / "project" / "thesis.tex").read_text() == "years of work"
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError, match="file is not only a weights folder"):
        mnv3.save(tiny(), tmp_path / "file", exist_ok=True)
    assert (tmp_path / "file").read_text() == "x"


def test_where_it_is_saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tiny()
    assert mnv3.save(model, "new/deep/../net") == tmp_path / "new" / "net"
    (tmp_path / "link").symlink_to(tmp_path / "new" / "net")
    assert mnv3.save(model, "link", exist_ok=True) == tmp_path / "new" / "net"
    assert (tmp_path / "link").is_symlink()
    assert torch.equal(logits(load("link")), logits(model))
    mask = os.umask(0o022)
    os.umask(mask)
    assert (tmp_path / "new" / "net").stat().st_mode & 0o777 == 0o777 & ~mask
    assert (tmp_path / "link" / WEIGHTS_FILE).stat().st_mode & 0o777 == 0o666 & ~mask


def test_what_is_saved_reads_without_mnv3(tmp_path):
    """It is timm's format: plain JSON and tensors, and no pickle."""
    model = tiny()
    folder = mnv3.save(model, tmp_path / "net")
    assert_same(load_file(folder / WEIGHTS_FILE), model.state_dict())
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    assert config["model_args"]["arch"] == json.loads(json.dumps(TINY.to_dict()))
    assert config["pretrained_cfg"]["first_conv"] == "stem.conv"


def test_half(tmp_path):
    """Weights in float16, computed in float32: what is loaded gives the logits of the rounded model to the bit."""
    model = randomize(mnv3.create_model("mnv3_small_cifar", width=0.5))
    whole, half = (mnv3.save(model, tmp_path / name, half=name == "half") for name in ("whole", "half"))
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (whole, half)]
    assert sizes[1] < 0.6 * sizes[0]
    dtypes = {value.dtype for value in load_file(half / "model.safetensors").values() if value.ndim > 1}
    assert dtypes == {torch.float16}
    expected = {key: value.half().float() if value.ndim > 1 else value for key, value in model.state_dict().items()}
    loaded = mnv3.load_checkpoint(half).eval()
    torch.testing.assert_close(loaded.state_dict(), expected, rtol=0, atol=0)
    golden = load_file(half / "golden.safetensors")
    with torch.no_grad():
        assert torch.equal(loaded(golden["inputs"]), golden["outputs"])
        timms = timm.create_model(f"local-dir:{half}", pretrained=True).eval()
        assert torch.equal(timms(golden["inputs"]), golden["outputs"])
        model.classifier.weight[0, 0] = 1e5
    with pytest.raises(ValueError, match=r"classifier\.weight has weights beyond 65504.* half=False"):
        mnv3.save(model, tmp_path / "large", half=True)
    assert not (tmp_path / "large").exists()
