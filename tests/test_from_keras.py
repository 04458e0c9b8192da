"""Keras' own MobileNetV3, on its PyTorch backend, saved by Keras and read by us: the same logits."""

import io
import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

import mnv3
from mnv3 import WeightsError, foreign
from mnv3.foreign import keras as from_keras

os.environ.update(KERAS_BACKEND="torch", KERAS_HOME=os.environ["HF_HOME"])
h5py = pytest.importorskip("h5py", reason="needs pip install 'mnv3[convert]'")
keras = pytest.importorskip("keras", reason="needs pip install 'mnv3[test]'")


RESULT_TYPE = keras.src.backend.result_type


def compute_in(dtype):
    keras.config.set_dtype_policy(dtype)
    keras.config.set_floatx(dtype)  # of constants
    # Keras has float32 in its norms and means even where all else is float64, which would hide small mistakes.
    for module in (keras.src.backend, keras.src.backend.common.dtypes):
        module.result_type = RESULT_TYPE if dtype == "float32" else lambda *dtypes: dtype


@pytest.fixture(autouse=True)
def float32():
    yield
    compute_in("float32")


def build(size="Small", dtype="float32", **options):
    """Keras' model with random weights and batch norm statistics that are not the trivial ones."""
    compute_in(dtype)
    options = {"input_shape": (64, 64, 3), "classifier_activation": None} | options
    model = getattr(keras.applications, f"MobileNetV3{size}")(weights=None, **options)
    return randomize(model)


def randomize(model):
    rng = np.random.default_rng(0)
    for layer in model.layers:
        values = []
        for variable in layer.weights:
            shape, value = variable.shape, rng.standard_normal(variable.shape)
            if variable.name == "moving_variance":
                value = rng.uniform(0.5, 1.5, shape)
            elif variable.name == "gamma":
                value = 1 + 0.2 * value
            elif len(shape) == 1:
                value = 0.2 * value
            else:
                value = value / np.sqrt(np.prod(shape[:2]) * (1 if "depthwise" in layer.name else shape[2]))
            values.append(value)
        if layer.weights and "dropout" not in layer.name:
            layer.set_weights(values)
    return model


def save_as_keras_2(model, file):
    """What Keras 2 wrote for save_weights('x.h5')."""
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

    with h5py.File(file, "w") as root:
        save_weights_to_hdf5_group(root, model)


def save_with_slashes(model, file):
    """As the published files have it: https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v3.

    Keras 2 had slashes in the names of this model's layers, each layer a group, its variables at their full names.
    """
    with h5py.File(file, "w") as root:
        for layer in model.layers:
            name = slashed(layer.name)
            group = root.create_group(name)
            group.attrs["weight_names"] = [f"{name}/{v.name}:0".encode() for v in layer.weights]
            for variable in layer.weights if "dropout" not in name else ():
                leaf = "depthwise_kernel" if name.endswith("depthwise") else variable.name
                group[f"{name}/{leaf}:0"] = keras.ops.convert_to_numpy(variable)
        root.attrs["layer_names"] = [slashed(layer.name).encode() for layer in model.layers]


def slashed(name):
    block, part = name, ""
    for word in ("expand", "depthwise", "squeeze_excite", "project"):
        if f"_{word}" in name and name.startswith("expanded_conv"):
            block, _, rest = name.partition(f"_{word}")
            part = "/" + word + rest.replace("_conv", "/Conv", 1)
            break
    if block in ("conv", "conv_1", "conv_2", "logits", "conv_bn", "conv_1_bn"):
        block = block.capitalize()
    return (block + part).replace("_bn", "/BatchNorm")


SAVE = {
    "x.weights.h5": lambda model, file: model.save_weights(file),
    "x.keras": lambda model, file: model.save(file),
    "whole.h5": lambda model, file: model.save(file),
    "keras2.h5": save_as_keras_2,
    "slashes.h5": save_with_slashes,
}


def ours(file, dtype=torch.float64):
    found = foreign.read(file)
    model = mnv3.create_model(found.arch, **found.options).to(dtype).eval()
    model.load_state_dict(found.state_dict, strict=True)
    return found, model


def same_outputs(theirs, model, size, tolerance, features=False):
    """Pixels of 0..255 into Keras' model; ours gets them by mean and std, as transforms(model) gives them."""
    dtype = next(model.parameters()).dtype
    pixels = torch.randint(256, (2, *size, 3), generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.no_grad():
        expected = theirs(pixels, training=False)
        x = (pixels.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
        found = model.forward_features(x).permute(0, 2, 3, 1) if features else model(x)
    assert (expected.dtype, expected.shape) == (dtype, found.shape)
    assert expected.std() > 1e-2
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


ARCHS = {
    ("Small", 1.0, False): "mnv3_small_tf",
    ("Small", 0.75, False): "mnv3_small_075_tf",
    ("Small", 1.0, True): "mnv3_small_minimal_tf",
    ("Small", 0.75, True): "mnv3_small_minimal_tf",
    ("Large", 1.0, False): "mnv3_large_tf",
    ("Large", 0.75, False): "mnv3_large_075_tf",
    ("Large", 1.0, True): "mnv3_large_minimal_tf",
    ("Large", 0.75, True): "mnv3_large_minimal_tf",
}


@pytest.mark.slow
@pytest.mark.parametrize("pixels", [224, 97])
@pytest.mark.parametrize("top", [True, False])
@pytest.mark.parametrize(("size", "alpha", "minimalistic"), ARCHS)
def test_logits(size, alpha, minimalistic, top, pixels, tmp_path):
    """At 224 pixels and at an odd size, in float64; from all kinds of files the same weights."""
    options = {"alpha": alpha, "minimalistic": minimalistic, "include_top": top}
    theirs = build(size, "float64", input_shape=(pixels, pixels, 3), **options)
    states = []
    for name, save in SAVE.items():
        save(theirs, tmp_path / name)
        found, model = ours(tmp_path / name)
        assert found.arch == ARCHS[size, alpha, minimalistic]
        assert found.options["num_classes"] == (1000 if top else 0)
        assert found.config["mean"] == found.config["std"] == (0.5, 0.5, 0.5)
        assert found.config.get("input_size") == ((3, pixels, pixels) if name == "x.keras" else None)
        assert ("untrained" in found.note) != top
        states.append(found.state_dict)
    assert all(torch.equal(state[key], value) for state in states[1:] for key, value in states[0].items())
    same_outputs(theirs, model, (pixels, pixels), 1e-9, features=not top)


@pytest.mark.parametrize("name", SAVE)
def test_every_kind_of_file(name, tmp_path):
    theirs = build("Small", classes=7)
    SAVE[name](theirs, tmp_path / name)
    found, model = ours(tmp_path / name, torch.float32)
    assert found.note == "Keras' weights, 7 classes"
    same_outputs(theirs, model, (64, 64), 1e-5)


@pytest.mark.parametrize("alpha", [0.35, 0.5, 1.25, 1.5])
def test_other_widths(alpha, tmp_path):
    """Keras' stem keeps its 16 channels at every alpha."""
    for size, minimalistic in (("Small", False), ("Large", True)):
        theirs = build(size, "float64", alpha=alpha, minimalistic=minimalistic, input_shape=(33, 47, 3), classes=5)
        theirs.save_weights(tmp_path / "x.weights.h5")
        found, model = ours(tmp_path / "x.weights.h5")
        assert "of another width" in found.note
        same_outputs(theirs, model, (33, 47), 1e-9)


def test_without_the_scaling_inside(tmp_path):
    theirs = build(include_preprocessing=False)
    theirs.save(tmp_path / "x.keras")
    _, model = ours(tmp_path / "x.keras", torch.float32)
    x = torch.randn(2, 64, 64, 3)
    with torch.no_grad():
        torch.testing.assert_close(model(x.permute(0, 3, 1, 2)), theirs(x, training=False), rtol=0, atol=1e-5)


def test_gray_pictures(tmp_path):
    theirs = build(input_shape=(64, 64, 1), classes=3)
    theirs.save_weights(tmp_path / "x.weights.h5")
    found, _ = ours(tmp_path / "x.weights.h5")
    assert found.options == {"num_classes": 3, "in_chans": 1}
    assert found.config["input_size"] == (1, 224, 224)
    assert len(found.config["mean"]) == 1


def test_padding_of_a_model_built_for_no_size(tmp_path):
    """Keras then pads odd maps as if they were even: the same only at multiples of 32, as the module says."""
    theirs = build(dtype="float64", input_shape=(None, None, 3))
    theirs.save_weights(tmp_path / "x.weights.h5")
    _, model = ours(tmp_path / "x.weights.h5")
    same_outputs(theirs, model, (64, 96), 1e-9)
    with pytest.raises(AssertionError):
        same_outputs(theirs, model, (97, 97), 1e-3)


def test_the_saved_folder_predicts_as_keras_does(tmp_path):
    """From the file to a weights folder, and through its preprocessing."""
    from PIL import Image

    theirs = build(classes=10)
    theirs.save(tmp_path / "x.keras")
    found = foreign.read(tmp_path / "x.keras")
    model = mnv3.create_model(found.arch, **found.options, pretrained_cfg_overlay=found.config)
    model.load_state_dict(found.state_dict)
    again = mnv3.load_checkpoint(mnv3.save(model.eval(), tmp_path / "folder")).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    x = mnv3.transforms(again, crop_pct=1.0)(Image.fromarray(pixels))[None]
    with torch.no_grad():
        expected = theirs(pixels[None].astype("float32"), training=False)
        torch.testing.assert_close(again(x), expected, rtol=0, atol=1e-5)


# What is refused.


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder with a small file of every kind."""
    folder = tmp_path_factory.mktemp("good")
    for name, save in SAVE.items():
        save(build(alpha=0.35, classes=2), folder / name)
    return folder


def refused(file, message):
    with pytest.raises(WeightsError, match=message) as info:
        from_keras.read(file)
    assert str(file) in str(info.value)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("name", SAVE)
def test_truncated(name, good, tmp_path):
    content = (good / name).read_bytes()
    for size in (0, 9, 100, 5000, len(content) // 2, len(content) - 1000):
        (tmp_path / name).write_bytes(content[:size])
        refused(
            tmp_path / name, "cannot be read|is missing|tensors are wrong|has none|not a Mobile|not a Keras archive"
        )


def test_not_what_the_name_says(tmp_path):
    for name in ("x.weights.h5", "x.keras", "x.h5"):
        for content in (b"", b"<html>", b"PK\x03\x04" + bytes(200), bytes(10_000)):
            (tmp_path / name).write_bytes(content)
            refused(tmp_path / name, "cannot be read as HDF5")


def test_other_networks(tmp_path):
    dense = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    backbone = keras.applications.MobileNetV3Small(weights=None, include_top=False, input_shape=(32, 32, 3))
    around = keras.Sequential([backbone, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)])
    make = keras.applications
    for model in (
        dense,
        around,
        make.MobileNetV2(weights=None, alpha=0.35, input_shape=(32, 32, 3)),
        make.EfficientNetB0(weights=None, input_shape=(32, 32, 3)),
        make.MobileNet(weights=None, alpha=0.25, input_shape=(32, 32, 3)),
    ):
        for name, save in SAVE.items():
            if name == "slashes.h5":
                continue
            save(model, tmp_path / name)
            refused(tmp_path / name, "not a MobileNetV3|count is of type int32|vars/2 is of type int32")


def change(file, name, array=None):
    """Another array, or none, at a path of an HDF5 file."""
    with h5py.File(file, "r+") as root:
        del root[name]
        if array is not None:
            root[name] = array


def copied(good, tmp_path, name="x.weights.h5"):
    file = tmp_path / name
    file.write_bytes((good / name).read_bytes())
    return file


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("layers/conv2d_5/vars/0", None, "block 2 expands 32 channels to 32; MobileNetV3, to 120"),  # all move up
        ("layers/conv2d_1/vars/1", None, "41 convolutions|not a MobileNetV3"),
        ("layers/batch_normalization_7/vars/3", None, "1 of .* tensors are wrong .*running_var missing"),
        ("layers/batch_normalization_7/vars/3", np.ones(3, "f4"), "1 of .* tensors are wrong"),
        ("layers/batch_normalization_7/vars/3", np.ones((2, 2), "f4"), "expected 1 axes"),
        ("layers/conv2d/vars/0", np.zeros((3, 3, 3, 0), "f4"), "expected 4 axes of at least 1"),
        ("layers/conv2d/vars/0", np.zeros((3, 3, 3, 16), "i4"), "type int32; expected float16, float32"),
        ("layers/conv2d/vars/0", np.full((3, 3, 3, 16), np.nan, "f4"), "not finite"),
        ("layers/conv2d/vars/0", "text", "type object"),
        ("layers/depthwise_conv2d_3/vars/0", np.zeros((7, 7, 16, 1), "f4"), r"11 blocks \(kernels 3\+SE 3 3 7\+SE"),
        ("layers/depthwise_conv2d_3/vars/0", np.zeros((5, 5, 16, 1), "f4"), "block 3 expands .* channels to 16"),
    ],
)
def test_changed_arrays(name, array, message, good, tmp_path):
    file = copied(good, tmp_path)
    change(file, name, array)
    refused(file, message)


def test_more_layers(good, tmp_path):
    file = copied(good, tmp_path)
    with h5py.File(file, "r+") as root:
        root["layers/dense/vars/0"] = np.zeros((2, 2), "f4")
    refused(file, "not a MobileNetV3 of keras.applications: it has dense/vars/0|it has layers/dense")


def test_links_and_storage_elsewhere(good, tmp_path):
    """Nothing outside the file is opened, nothing goes round in circles, nothing is unpacked."""
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as root:
        root["data"] = np.zeros((3, 3, 3, 16), "f4")
    raw = tmp_path / "raw.bin"
    raw.write_bytes(bytes(3 * 3 * 3 * 16 * 4))
    name, shape = "layers/conv2d/vars/0", (3, 3, 3, 16)

    def external(root):
        root[name] = h5py.ExternalLink(str(secret), "/data")

    def soft(root):
        root[name] = h5py.SoftLink("/layers/conv2d/vars/0")

    def circle(root):
        root["layers/conv2d/vars/0"] = root["layers"]

    def group(root):
        del root["layers"]
        root["layers"] = h5py.ExternalLink(str(secret), "/")

    def storage(root):
        root.create_dataset(name, shape, "f4", external=[(str(raw), 0, h5py.h5f.UNLIMITED)])

    def virtual(root):
        layout = h5py.VirtualLayout(shape, "f4")
        layout[:] = h5py.VirtualSource(str(secret), "data", shape)
        root.create_virtual_dataset(name, layout)

    def huge(root):
        root.create_dataset(name, (1 << 20, 1 << 20), "f4")

    def bomb(root):
        root.create_dataset(name, (1 << 14, 1 << 14), "f4", compression="gzip", data=np.zeros((1 << 14, 1 << 14), "f4"))

    def many(root):
        for i in range(hdf5_limit + 1):
            root[f"layers/conv2d/{i}"] = root["layers/conv2d_1/vars"]

    from mnv3.foreign import hdf5

    hdf5_limit = hdf5.MAX_ENTRIES
    for tamper, message in (
        (external, "is a ExternalLink: links to elsewhere are not followed"),
        (soft, "is a SoftLink"),
        (circle, "more than 12 levels|more than 20000 entries"),
        (group, "'layers' is a ExternalLink"),
        (storage, "lies in another file"),
        (virtual, "chunked, compressed or virtual"),
        (huge, "declares 4398046511104 bytes and has 0"),
        (bomb, "chunked, compressed or virtual"),
        (many, "more than 20000 entries"),
    ):
        file = copied(good, tmp_path)
        with h5py.File(file, "r+") as root:
            del root[name]
            tamper(root)
        refused(file, message)


def archive(file, **members):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in members.items():
            out.writestr(name.replace("__", "."), content)


def test_archives(good, tmp_path):
    file = tmp_path / "x.keras"
    with zipfile.ZipFile(good / "x.keras") as whole:
        config, weights = json.loads(whole.read("config.json")), whole.read("model.weights.h5")

    def edited(edit):
        layers = json.loads(json.dumps(config))
        edit(layers["config"]["layers"])
        return json.dumps(layers)

    def layer(kind):
        return lambda layers: layers.append({"class_name": kind, "config": {"function": "import os"}, "module": "evil"})

    def setting(kind, **values):
        return lambda layers: [each["config"].update(values) for each in layers if each["class_name"] == kind]

    plain = json.dumps(config)
    archive(file, config__json=plain, model__weights__h5=weights)
    assert from_keras.read(file).arch == "mnv3_small_tf"  # packed with compression by somebody: fine
    for content, message in (
        (edited(layer("Lambda")), "it has layers of the kinds Lambda import os"),
        (edited(layer("MyLayer")), "it has layers of the kinds MyLayer"),
        (edited(setting("BatchNormalization", epsilon=1e-5)), "epsilon of 1e-05; expected 0.001"),
        (edited(lambda layers: layers[3]["config"].update(epsilon="x")), "epsilon of (x, 0.001|0.001, x); expected"),
        (edited(setting("Rescaling", scale=1 / 255, offset=0)), "it scales pixels by"),
        ("{}", "config.json is not that of a Keras model"),
        ("[" * 100_000, "config.json is not that of a Keras model"),
        ("nothing", "config.json is not that of a Keras model"),
        ('{"config": {"layers": [1]}}', "config.json is not that of a Keras model"),
        ('{"config": {"layers": [{"class_name": [], "config": {}}]}}', "config.json is not that of a Keras model"),
        (" " * 20_000_000, "config.json would unpack to 20000000 bytes"),
    ):
        archive(file, config__json=content, model__weights__h5=weights)
        refused(file, message)
    archive(file, config__json=plain, model__weights__h5=bytes(100_000_000))
    refused(file, "model.weights.h5 would unpack to 100000000 bytes, from an archive of")
    archive(file, config__json=plain)
    refused(file, "not a Keras archive: it has no model.weights.h5")
    archive(file, config__json=plain, model__weights__h5=weights[: len(weights) // 2])
    refused(file, "cannot be read as HDF5")


def test_an_archive_that_lies_about_its_size(good, tmp_path):
    """The directory says 100 bytes; what follows is more."""
    file = tmp_path / "x.keras"
    packed = io.BytesIO()
    with zipfile.ZipFile(good / "x.keras") as whole:
        archive(packed, config__json=whole.read("config.json"), model__weights__h5=bytes(100_000_000))
    content = packed.getvalue().replace((100_000_000).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    file.write_bytes(content)
    refused(file, "cannot be read")


@pytest.mark.slow
def test_damage_anywhere_is_an_error_or_harmless(good, tmp_path):
    """Random bytes changed in the part with HDF5's structures, each file in bounded time, in one other process."""
    code = """
import sys, time, random, pathlib
from mnv3 import WeightsError
from mnv3.foreign import keras as from_keras
content, file, found = pathlib.Path(sys.argv[1]).read_bytes(), pathlib.Path(sys.argv[2]), 0
for seed in range(60):
    rng, changed = random.Random(seed), bytearray(content)
    for _ in range(30):
        changed[rng.randrange(20_000)] = rng.randrange(256)
    file.write_bytes(changed)
    start = time.monotonic()
    try:
        from_keras.read(file)
    except WeightsError:
        found += 1
    assert time.monotonic() - start < 10
print(found)
"""
    command = [sys.executable, "-c", code, str(good / "keras2.h5"), str(tmp_path / "x.h5")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 30


def test_h5py_is_missing(good, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"need h5py: pip install 'mnv3\[convert\]'"):
        from_keras.read(good / "x.weights.h5")
