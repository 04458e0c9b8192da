"""`mnv3 convert --calibrate`: biases of models that were read from quantised TFLite files are corrected."""

import numpy as np
import pytest
import torch
from conftest import needs
from PIL import Image
from tflite_files import built, channels_last, logits, pictures, run, tiny

import mnv3
from mnv3.convert import reading
from mnv3.convert.tflite.calibrate import _bias_step, _inputs, calibrated
from mnv3.convert.tflite.matching import read_network
from mnv3.pictures import images


def test_bias_step():
    """Means are met where they can be, and a correction that is noise is not made."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(16, 5, 64, generator=generator)
    moved = values + torch.tensor([0.5, -0.3, 0.1, 0.0, -9.0])[:, None]
    step = _bias_step(values, moved.clamp(0, 6).mean(2), 0.0, 6.0)
    torch.testing.assert_close(step[:4], torch.tensor([0.5, -0.3, 0.1, 0.0]), rtol=0, atol=0.02)
    assert step[4] < -1.5  # a dead channel is dead
    noise = torch.randn(16, 5, generator=generator)
    assert _bias_step(values, values.mean(2) + noise, -1e9, 1e9).abs().max() < noise.mean(0).abs().max()


def test_too_few_pictures(shared, tmp_path):
    with pytest.raises(ValueError, match="at least 2 pictures, found 0"):
        calibrated(shared / "weights" / "tflite" / "v3-small_224_1.0_uint8.tflite", tmp_path)


@pytest.fixture(scope="module")
def float_file(tmp_path_factory):
    """A model of ours as LiteRT Torch writes it, its input (1, H, W, C)."""
    needs("tflite")
    import litert_torch

    file, x = tmp_path_factory.mktemp("litert") / "float.tflite", pictures(count=1)
    with mnv3.deploy.packages.quiet():
        last = litert_torch.to_channel_last_io(tiny(), args=[0]).eval()
        litert_torch.convert(last, (torch.from_numpy(channels_last(x)),)).export(str(file))
    return file


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """A folder of 16 pictures."""
    folder = tmp_path_factory.mktemp("noise")
    for i in range(16):
        pixels = np.random.default_rng(i).integers(0, 256, (80, 80, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def quantise(source, file, which, x):
    """Write a file with layers of 8 bits ('layers'), with all operators of 8 bits, or with weights of 8 bits alone."""
    from ai_edge_quantizer import qtyping, quantizer

    kinds = ["ALL_SUPPORTED"] if which == "everything" else ["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"]
    with mnv3.deploy.packages.quiet():
        tool = quantizer.Quantizer(str(source))
        for kind in (qtyping.TFLOperationName[kind] for kind in kinds):
            if which == "weights":
                tool.add_dynamic_config(".*", kind, num_bits=8)
            else:
                tool.add_static_config(".*", kind, activation_num_bits=8, weight_num_bits=8)
        pairs = {"serving_default": [{"args_0": picture[None]} for picture in channels_last(x)]}
        tool.quantize(None if which == "weights" else tool.calibrate(pairs)).export_model(str(file), overwrite=True)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["layers", "everything", "weights"])
def test_int8_per_channel(float_file, noise, tmp_path, which):
    """AI Edge Quantizer's files: the import is the float model to the rounding of its weights."""
    pytest.importorskip("ai_edge_quantizer")
    model, x, file = tiny(), pictures(count=8), tmp_path / "in.tflite"
    quantise(float_file, file, which, x)
    foreign = reading.read(file)
    assert "int8 per channel" in foreign.note
    difference = np.abs(logits(built(foreign), x) - logits(model, x)).max() / np.abs(logits(model, x)).max()
    assert difference < 0.02
    if which == "everything":  # its input is int8: the step of a byte is part of it
        np.testing.assert_allclose((*foreign.config["mean"], *foreign.config["std"]), 0.5, atol=0.01)

    corrected, before = calibrated(file, noise), built(foreign)
    assert "biases corrected on 16 pictures" in corrected.note
    transform = mnv3.transforms(before)
    batch = torch.stack([transform(images.load(path)) for path in images.find(noise)])
    theirs = run(file, [picture[0] for picture in _inputs(read_network(file), batch)])
    errors = [np.abs((logits(m, batch) - theirs).mean(0)).mean() for m in (before, built(corrected))]
    if which != "weights":  # with float activations there is nothing to correct
        assert errors[1] < 0.8 * errors[0]


@pytest.mark.slow
def test_accuracy(shared):
    """Of 250 pictures, after a calibration on 64 others. `benchmarks/import_tflite.py` has the whole comparison."""
    source = shared / "weights" / "tflite" / "v3-small_224_1.0_uint8.tflite"
    files = sorted((shared / "images" / "imagenet_half").iterdir())
    models = {"plain": built(reading.read(source)), "calibrated": built(calibrated(source, files[::2]))}
    transform, unseen = mnv3.transforms(models["plain"]), files[1::2]
    labels = torch.tensor([int(path.name.split("_")[0]) + 1 for path in unseen])  # class 0 is the background
    x = torch.stack([transform(images.load(path)) for path in unseen])
    hits = {}
    for name, model in models.items():
        with torch.inference_mode():
            hits[name] = (torch.cat([model(part).argmax(1) for part in x.split(50)]) == labels).sum().item()
    assert hits["plain"] >= 172  # measured: 173
    assert hits["calibrated"] >= 181  # 182
