"""Keras' own MobileNetV3, on its PyTorch backend, saved by Keras and read by us: the same logits."""

import io
import json
import os
import sys
import zipfile

import numpy as np
import pytest
import torch

import mnv3
from mnv3 import WeightsError
from mnv3.convert import hdf5, keras as from_keras, reading
from mnv3.loading import load

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
    found = reading.read(file)
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


@pytest.fixture(scope="module")
def small():
    return build(alpha=0.35, classes=2)


@pytest.fixture(scope="module")
def good(small, tmp_path_factory):
    """A folder with a small file of every kind."""
    folder = tmp_path_factory.mktemp("good")
    for name, save in SAVE.items():
        save(small, folder / name)
    return folder


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
        has_config = name in ("x.keras", "whole.h5")
        assert found.config.get("input_size") == ((3, pixels, pixels) if has_config else None)
        assert ("untrained" in found.note) != top
        states.append(found.state_dict)
    assert all(torch.equal(state[key], value) for state in states[1:] for key, value in states[0].items())
    same_outputs(theirs, model, (pixels, pixels), 1e-9, features=not top)


@pytest.mark.parametrize("name", SAVE)
def test_every_kind_of_file(name, small, good):
    found, model = ours(good / name, torch.float32)
    assert found.note == "Keras' weights of another width, 2 classes"
    same_outputs(small, model, (64, 64), 1e-5)


@pytest.mark.parametrize(("size", "minimalistic", "alpha"), [("Small", False, 0.5), ("Large", True, 1.25)])
def test_other_widths(size, minimalistic, alpha, tmp_path):
    """Keras' stem keeps its 16 channels at every alpha."""
    theirs = build(size, "float64", alpha=alpha, minimalistic=minimalistic, input_shape=(33, 47, 3), classes=5)
    theirs.save_weights(tmp_path / "x.weights.h5")
    found, model = ours(tmp_path / "x.weights.h5")
    assert "of another width" in found.note
    same_outputs(theirs, model, (33, 47), 1e-9)


def test_without_the_scaling_inside(tmp_path):
    theirs = build(alpha=0.35, include_preprocessing=False)
    theirs.save(tmp_path / "x.keras")
    _, model = ours(tmp_path / "x.keras", torch.float32)
    x = torch.randn(2, 64, 64, 3)
    with torch.no_grad():
        torch.testing.assert_close(model(x.permute(0, 3, 1, 2)), theirs(x, training=False), rtol=0, atol=1e-5)


def test_gray_pictures(tmp_path):
    theirs = build(alpha=0.35, input_shape=(64, 64, 1), classes=3)
    theirs.save_weights(tmp_path / "x.weights.h5")
    found, _ = ours(tmp_path / "x.weights.h5")
    assert (found.options["num_classes"], found.options["in_chans"]) == (3, 1)
    assert found.config["input_size"] == (1, 224, 224)
    assert len(found.config["mean"]) == 1


def test_padding_of_a_model_built_for_no_size(tmp_path):
    """Keras then pads odd maps as if they were even: the same only at multiples of 32, as the module says."""
    theirs = build(alpha=0.35, dtype="float64", input_shape=(None, None, 3))
    theirs.save_weights(tmp_path / "x.weights.h5")
    _, model = ours(tmp_path / "x.weights.h5")
    same_outputs(theirs, model, (64, 96), 1e-9)
    with pytest.raises(AssertionError):
        same_outputs(theirs, model, (97, 97), 1e-3)


def test_the_saved_folder_predicts_as_keras_does(small, good, tmp_path):
    """From the file to a weights folder, and through its preprocessing."""
    from PIL import Image

    again = mnv3.load_checkpoint(mnv3.save(load(good / "x.keras"), tmp_path / "folder")).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    x = mnv3.transforms(again, crop_pct=1.0)(Image.fromarray(pixels))[None]
    with torch.no_grad():
        expected = small(pixels[None].astype("float32"), training=False)
        torch.testing.assert_close(again(x), expected, rtol=0, atol=1e-5)


# What is refused.


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
    options = {"weights": None, "alpha": 0.35, "input_shape": (32, 32, 3)}
    backbone = keras.applications.MobileNetV3Small(include_top=False, **options)
    around = keras.Sequential([backbone, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)])
    for model in (dense, around, keras.applications.MobileNetV2(**options)):
        for name in ("x.weights.h5", "x.keras", "whole.h5", "keras2.h5"):
            SAVE[name](model, tmp_path / name)
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


def test_links_and_storage_elsewhere(good, tmp_path, monkeypatch):
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
        root.create_dataset(name, (1 << 11, 1 << 11), "f4", compression="gzip", data=np.zeros((1 << 11, 1 << 11), "f4"))

    def many(root):
        for i in range(1000):
            root[f"layers/conv2d/{i}"] = root["layers/conv2d_1/vars"]

    monkeypatch.setattr(hdf5, "MAX_ENTRIES", 1000)
    for tamper, message in (
        (external, "is a ExternalLink: links to elsewhere are not followed"),
        (soft, "is a SoftLink"),
        (circle, "more than 12 levels|more than 1000 entries"),
        (group, "'layers' is a ExternalLink"),
        (storage, "lies in another file"),
        (virtual, "chunked, compressed or virtual"),
        (huge, "declares 4398046511104 bytes and has 0"),
        (bomb, "chunked, compressed or virtual"),
        (many, "more than 1000 entries"),
    ):
        file = copied(good, tmp_path)
        with h5py.File(file, "r+") as root:
            del root[name]
            tamper(root)
        refused(file, message)


def archive(file, **members):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as out:
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
        (edited(layer("Lambda")), "it has layers of the kinds evil Lambda"),
        (edited(layer("MyLayer")), "it has layers of the kinds evil MyLayer"),
        (edited(setting("BatchNormalization", epsilon=1e-5)), "epsilon 1e-05, expected 0.001"),
        (edited(lambda layers: layers[3]["config"].update(epsilon="x")), "'conv_bn' has epsilon 'x', expected 0.001"),
        (edited(setting("Rescaling", scale=1 / 255)), "Rescaling 'rescaling.*' has scale 0.0039"),
        (edited(setting("Rescaling", offset=0)), "Rescaling 'rescaling.*' has offset 0, expected -1.0"),
        ("{}", "its configuration is not that of a Keras model"),
        ("[" * 100_000, "its configuration is not that of a Keras model"),
        ("nothing", "its configuration is not that of a Keras model"),
        ('{"config": {"layers": [1]}}', "its configuration is not that of a Keras model"),
        ('{"config": {"layers": [{"class_name": [], "config": {}}]}}', r"layers of the kinds \[\]"),
        (" " * 3_000_000, "config.json would unpack to 3000000 bytes"),
    ):
        archive(file, config__json=content, model__weights__h5=weights)
        refused(file, message)
    archive(file, config__json=plain, model__weights__h5=bytes(20_000_000))
    refused(file, "model.weights.h5 would unpack to 20000000 bytes, from an archive of")
    archive(file, config__json=plain)
    refused(file, "not a Keras archive: it has no model.weights.h5")
    archive(file, config__json=plain, model__weights__h5=weights[: len(weights) // 2])
    refused(file, "cannot be read as HDF5")


# What the file says of its layers.


class Altered:
    """keras.layers, with other settings for the layers of a name."""

    def __init__(self, layers, name, **settings):
        self.layers, self.name, self.settings = layers, name, settings

    def __getattr__(self, kind):
        make = getattr(self.layers, kind)

        def altered(*args, **settings):
            return make(*args, **settings | (self.settings if settings.get("name") == self.name else {}))

        return altered


DIFFERENCES = {
    "conv stride": ("conv", {"strides": (1, 1)}, r"Conv2D 'conv' has strides \[1, 1\], expected \[2, 2\]"),
    "conv padding": ("conv", {"padding": "valid"}, "'conv' has padding 'valid', expected 'same'"),
    "conv activation": ("conv_1", {"activation": "relu"}, "'conv_1' has activation 'relu', expected 'linear'"),
    "stride": ("expanded_conv_3_depthwise", {"strides": [1, 1]}, r"strides \[1, 1\], expected \[2, 2\]"),
    "dilation": ("expanded_conv_4_depthwise", {"dilation_rate": [2, 2]}, r"dilation_rate \[2, 2\], expected \[1, 1\]"),
    "padding": ("expanded_conv_1_depthwise", {"padding": "same"}, "has padding 'same', expected 'valid'"),
    "zeros": (
        "expanded_conv_1_depthwise_pad",
        {"padding": ((1, 0), (1, 0))},
        r"has padding \[\[1, 0\], \[1, 0\]\], exp",
    ),
    "epsilon": ("expanded_conv_5_expand_bn", {"epsilon": 1e-5}, "'expanded_conv_5_expand_bn' has epsilon 1e-05"),
    "relu6": ("expanded_conv_squeeze_excite_relu", {"max_value": 6.0}, "has max_value 6.0, expected None"),
    "leaky": ("expanded_conv_squeeze_excite_relu", {"negative_slope": 0.1}, "has negative_slope 0.1, expected 0"),
    "sigmoid": ("predictions", {"activation": "sigmoid"}, "'predictions' has activation 'sigmoid', expected 'softmax'"),
}


@pytest.mark.parametrize("case", DIFFERENCES)
def test_another_setting_of_one_layer(case, good, tmp_path):
    """All shapes of arrays are MobileNetV3's."""
    name, settings, message = DIFFERENCES[case]
    file = copied(good, tmp_path, "whole.h5")
    with h5py.File(file, "r+") as root:
        config = json.loads(root.attrs["model_config"])
        next(layer for layer in config["config"]["layers"] if layer["name"] == name)["config"].update(settings)
        root.attrs["model_config"] = json.dumps(config)
    refused(file, f"not the MobileNetV3 of keras.applications: .*{message}")


@pytest.mark.parametrize(("case", "ending"), [("stride", "keras"), ("epsilon", "h5")])
def test_a_setting_as_keras_writes_it(case, ending, monkeypatch, tmp_path):
    name, settings, message = DIFFERENCES[case]
    module = keras.src.applications.mobilenet_v3
    monkeypatch.setattr(module, "layers", Altered(keras.layers, name, **settings))
    build(alpha=0.35, classes=2).save(tmp_path / f"x.{ending}")
    refused(tmp_path / f"x.{ending}", message)


def other_functions(monkeypatch):
    """Ways to change the functions of which keras.applications builds the network."""
    module = keras.src.applications.mobilenet_v3
    layers = module.layers
    squeeze_excite, block = module._se_block, module._inverted_res_block

    def max_pool(inputs, filters, se_ratio, prefix):
        monkeypatch.setattr(
            layers, "GlobalAveragePooling2D", lambda **_: layers.GlobalMaxPooling2D(keepdims=True, name=f"{prefix}max")
        )
        found = squeeze_excite(inputs, filters, se_ratio, prefix)
        monkeypatch.undo()
        return found

    def no_gate(inputs, *args):
        squeeze_excite(inputs, *args)
        return inputs

    def added_gate(inputs, *args):
        return inputs + squeeze_excite(inputs, *args)

    def no_residual(x, *args):
        monkeypatch.setattr(layers, "Add", lambda **_: lambda inputs: inputs[1])
        found = block(x, *args)
        monkeypatch.undo()
        return found

    def double(x, *args):
        return 2 * block(x, *args)

    relu = layers.ReLU
    return {
        "max pooling": ("_se_block", max_pool, "comes GlobalMaxPooling2D .*, expected GlobalAveragePooling2D"),
        "no squeeze-and-excite": ("_se_block", no_gate, "not a MobileNetV3"),
        "gates are added": ("_se_block", added_gate, "comes Add 'add.*', expected Conv2D"),
        "no residual": ("_inverted_res_block", no_residual, "go into nothing, expected one Add"),
        "all doubled": ("_inverted_res_block", double, "comes Multiply '.*', expected Conv2D"),
        "relu for h-swish": ("hard_swish", lambda x: relu()(x), "comes ReLU 're_lu.*', expected Activation"),
        "h-swish for relu": ("relu", lambda x: layers.Activation("hard_swish")(x), "'hard_silu', expected 'relu'"),
        "sigmoid": ("hard_sigmoid", lambda x: layers.Activation("sigmoid")(x), "comes Activation '.*', expected Add"),
        "Keras 2's hard sigmoid": (
            "hard_sigmoid",
            lambda x: relu(1.0)(x * 0.2 + 0.5),
            "comes Multiply '.*' expected Add|",
        ),
        "another sixth": ("hard_sigmoid", lambda x: relu(6.0)(x + 3.0) * 0.2, "has the number 0.2, expected 0.166"),
        "another three": ("hard_sigmoid", lambda x: relu(6.0)(x + 2.0) * (1 / 6), "has the number 2.0, expected 3.0"),
    }


FUNCTIONS = {  # and the kind of file that it is saved in
    "max pooling": "keras",
    "no squeeze-and-excite": "h5",
    "gates are added": "keras",
    "no residual": "h5",
    "another sixth": "keras",
    "relu for h-swish": "h5",
}
SLOW_FUNCTIONS = {
    "all doubled": "keras",
    "h-swish for relu": "keras",
    "sigmoid": "h5",
    "Keras 2's hard sigmoid": "keras",
    "another three": "h5",
}


@pytest.mark.parametrize(
    ("case", "ending"),
    [*FUNCTIONS.items(), *(pytest.param(*item, marks=pytest.mark.slow) for item in SLOW_FUNCTIONS.items())],
)
def test_other_functions_inside(case, ending, tmp_path):
    with pytest.MonkeyPatch.context() as patch, pytest.MonkeyPatch.context() as inner:
        name, function, message = other_functions(inner)[case]
        patch.setattr(keras.src.applications.mobilenet_v3, name, function)
        build(alpha=0.35, classes=2).save(tmp_path / f"x.{ending}")
    refused(tmp_path / f"x.{ending}", message)


def test_models_of_keras_applications_convert(tmp_path):
    """Its options that are no difference, and pooling, which is taken over."""
    for ending, options in (
        ("keras", {"classifier_activation": "softmax", "dropout_rate": 0.0}),
        ("h5", {"input_shape": (97, 64, 3), "minimalistic": True}),
        ("keras", {"input_shape": (None, None, 3)}),
        ("h5", {"include_top": False}),
    ):
        build(alpha=0.35, **options).save(tmp_path / f"x.{ending}")
        assert "global_pool" not in ours(tmp_path / f"x.{ending}")[0].options
    theirs = build("Small", "float64", alpha=0.35, include_top=False, pooling="max")
    theirs.save(tmp_path / "x.keras")
    found, model = ours(tmp_path / "x.keras")
    assert found.options["global_pool"] == model.global_pool.pool_type == "max"
    pixels = torch.randint(256, (2, 64, 64, 3), generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        pooled = model.global_pool(model.forward_features((pixels.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5)).flatten(1)
        torch.testing.assert_close(pooled, theirs(pixels, training=False), rtol=0, atol=1e-9)


def in_keras_2(layers):
    """The layers of a configuration as Keras 2 wrote them: operators, h-swish by hand, connections as lists."""
    written = []
    for layer in layers:
        config = layer["config"] | {"dtype": "float32"}
        config.pop("batch_shape", None)
        tensors, numbers = [], []
        for value in layer["inbound_nodes"][0]["args"] if layer["inbound_nodes"] else ():
            for each in value if isinstance(value, list) else [value]:
                (tensors if isinstance(each, dict) else numbers).append(each)
        names = [tensor["config"]["keras_history"][0] for tensor in tensors]
        kind, name = layer["class_name"], layer["name"]
        if kind == "InputLayer":
            config["batch_input_shape"] = layer["config"]["batch_shape"]
        if numbers:
            operator = {"Add": "__operators__.add", "Multiply": "math.multiply"}[kind]
            written.append(operation(name, operator, names[0], numbers[0]))
        elif config.get("activation") == "hard_silu":
            written.append(operation(f"{name}/add", "__operators__.add", names[0], 3.0))
            written.append(node(f"{name}/relu", "ReLU", {"max_value": 6.0, "negative_slope": 0.0}, [f"{name}/add"]))
            written.append(operation(f"{name}/mul", "math.multiply", f"{name}/relu", 1 / 6))
            written.append(node(name, "Multiply", {}, [names[0], f"{name}/mul"]))
        else:
            written.append(node(name, kind, config, names))
    return written


def node(name, kind, config, inputs):
    nodes = [[[each, 0, 0, {}] for each in inputs]] if inputs else []
    return {"class_name": kind, "config": config | {"name": name}, "name": name, "inbound_nodes": nodes}


def operation(name, function, tensor, number):
    inputs = [[tensor, 0, 0, {"y": number, "name": None}]]
    return {
        "class_name": "TFOpLambda",
        "config": {"name": name, "trainable": True, "dtype": "float32", "function": function},
        "name": name,
        "inbound_nodes": inputs,
    }


def test_a_whole_model_of_keras_2(good, tmp_path):
    """The same arrays under a configuration in its form, and one with a difference."""
    file = copied(good, tmp_path, "whole.h5")
    with h5py.File(file, "r+") as root:
        config = json.loads(root.attrs["model_config"])
        layers = in_keras_2(config["config"]["layers"])
        ends = {"input_layers": [[layers[0]["name"], 0, 0]], "output_layers": [[layers[-1]["name"], 0, 0]]}
        root.attrs["model_config"] = json.dumps({"class_name": "Functional", "config": {"layers": layers} | ends})
    expected = reading.read(good / "whole.h5")
    found = reading.read(file)
    assert found[:2] == expected[:2]
    assert found.config == expected.config
    with h5py.File(file, "r+") as root:
        next(layer for layer in layers if layer["name"].endswith("/mul"))["inbound_nodes"][0][3]["y"] = 0.2
        root.attrs["model_config"] = json.dumps({"class_name": "Functional", "config": {"layers": layers} | ends})
    refused(file, "has the number 0.2, expected 0.166")


def test_connections(good, tmp_path):
    """Changed in the configuration alone, as no function of Keras would."""
    file = copied(good, tmp_path, "whole.h5")
    with h5py.File(file) as root:
        plain = root.attrs["model_config"]
    names = {layer["class_name"]: layer["name"] for layer in reversed(json.loads(plain)["config"]["layers"])}

    def history(name):
        return f'"keras_history": ["{name}", 0, 0]'

    swapped = plain.replace('"expanded_conv_4_expand"', '"?"').replace(
        '"expanded_conv_5_expand"', '"expanded_conv_4_expand"'
    )
    for content, message in (
        (
            plain.replace(history("expanded_conv_squeeze_excite_mul"), history(names["ReLU"])),
            "expected GlobalAverage",
        ),
        (plain.replace(history("expanded_conv_2_add"), history("expanded_conv_2_project_bn")), "expected Add|comes"),
        (swapped.replace('"?"', '"expanded_conv_5_expand"'), "where the weights of another layer belong"),
        (plain.replace('"mask": null', '"training": true', 1), "is called with training=True"),
        (plain.replace('"output_layers": ["', '"output_layers": ["conv", "'), "not that of a Keras model"),
        (plain.replace(history("conv_bn"), '"keras_history": ["conv_bn", 1, 0]'), "not the one output of a layer"),
        (plain.replace('"training": false', '"training": true'), "is called with training=True"),
        (plain.replace('"groups": 1', '"new_setting": 7', 1), "has new_setting 7, which MobileNetV3's has not"),
        (plain.replace('"float32"', '"int8"'), "computes in 'int8', expected a type of floats"),
    ):
        assert content != plain, message
        with h5py.File(file, "r+") as root:
            root.attrs["model_config"] = content
        refused(file, message)
    with h5py.File(file, "r+") as root:
        root.attrs["model_config"] = " " * 3_000_000
    refused(file, "attribute model_config is no text of at most")
    with h5py.File(file, "r+") as root:
        root.attrs["model_config"] = np.arange(3)
    refused(file, "attribute model_config is no single text")


def test_an_archive_that_lies_about_its_size(good, tmp_path):
    """The directory says 100 bytes; what follows is more."""
    file = tmp_path / "x.keras"
    packed = io.BytesIO()
    with zipfile.ZipFile(good / "x.keras") as whole:
        archive(packed, config__json=whole.read("config.json"), model__weights__h5=bytes(20_000_000))
    content = packed.getvalue().replace((20_000_000).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    file.write_bytes(content)
    refused(file, "cannot be read")


def with_name(raw, flags):
    """A zip archive whose one entry has this name, byte for byte."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("x" * len(raw), b"content")
    content = bytearray(content.getvalue().replace(b"x" * len(raw), raw))
    directory = content.index(b"PK\x01\x02")
    content[directory + 8 : directory + 10] = flags.to_bytes(2, "little")
    content[6:8] = flags.to_bytes(2, "little")
    return bytes(content)


@pytest.mark.parametrize(("raw", "flags"), [(b"\xff\xfe\xfa.json", 0x800), (b"a\0b\x1b[2J", 0)])
def test_zip_archives_with_broken_names(tmp_path, raw, flags):
    """Names that are not the UTF-8 that they say to be were a raw UnicodeDecodeError."""
    file = tmp_path / "x.keras"
    file.write_bytes(with_name(raw, flags))
    with pytest.raises(WeightsError, match=r"x.keras: (cannot be read: |by its name a Keras archive)") as info:
        reading.kind_of(file)
    assert "\n" not in str(info.value)


def test_h5py_is_missing(good, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"need h5py: pip install 'mnv3\[convert\]'"):
        from_keras.read(good / "x.weights.h5")
