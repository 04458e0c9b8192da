"""predict(): order, batches, labels, bad files; and agreement with timm on real pictures."""

import copy
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from conftest import randomize
from PIL import Image
from torch import nn

import mnv3
from mnv3.pictures.inference import answered, for_inference
from mnv3.pictures.inputs import Preprocessing


@pytest.fixture(scope="module")
def model():
    return randomize(timm.create_model("mnv3_small_cifar.cifar10"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five pictures and two files that are none."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    for name in ("a.png", "b.png", "d.png", "ü ñ.png", "f.png"):
        Image.fromarray(torch.randint(0, 256, (40, 50, 3), dtype=torch.uint8, generator=generator).numpy()).save(
            folder / name
        )
    (folder / "c.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("not looked at")
    return folder


def test_order_and_batches(model, folder):
    results = {size: list(mnv3.predict(model, [folder], batch_size=size)) for size in (1, 2, 32)}
    for found in results.values():
        assert [p.file.name for p in found] == sorted(path.name for path in folder.glob("*.png"))
        assert [p.file.name for p in found if p.error] == ["c.png"]
        assert [p.error for p in found if p.error] == [f"{folder / 'c.png'}: not a picture"]
        assert [p.topk for p in found if p.error] == [[]]
        for one, other in zip(found, results[1], strict=True):
            assert [e["index"] for e in one.topk] == [e["index"] for e in other.topk]
            assert [e["prob"] for e in one.topk] == pytest.approx([e["prob"] for e in other.topk], abs=1e-5)


def test_a_bad_file_anywhere_in_a_batch(model, folder, tmp_path):
    good, bad = folder / "a.png", tmp_path / "none.png"
    alone = [entry["prob"] for entry in next(mnv3.predict(model, good)).topk]
    for files in ([bad], [bad, bad, bad], [bad, good], [good, bad], [good, bad, good, bad, bad, good]):
        for size in (1, 2, 6):
            found = list(mnv3.predict(model, files, batch_size=size))
            assert [p.file for p in found] == files
            assert [p.error for p in found] == [f"{bad}: no such file" if file == bad else None for file in files]
            for p in found:
                assert [e["prob"] for e in p.topk] == pytest.approx([] if p.error else alone, abs=1e-5)


def test_pictures_of_any_shape(model, tmp_path):
    sizes = [(1, 1), (20000, 1), (1, 20000), (31, 900), (3000, 2)]
    for i, size in enumerate(sizes):
        Image.new("RGB", size, "red").save(tmp_path / f"{i}.png")
    found = list(mnv3.predict(model, tmp_path))
    assert [p.error for p in found] == [None] * 5
    probs = [[entry["prob"] for entry in p.topk] for p in found]
    assert probs == [pytest.approx(probs[0], abs=1e-4)] * 5, "all are red"


def test_probabilities(model, folder):
    (found,) = mnv3.predict(model, [folder / "a.png"], topk=100)
    assert len(found.topk) == 10
    probs = [entry["prob"] for entry in found.topk]
    assert probs == sorted(probs, reverse=True)
    assert sum(probs) == pytest.approx(1, abs=1e-5)
    assert sorted(entry["index"] for entry in found.topk) == list(range(10))
    assert found.topk[0]["label"] == mnv3.class_names(model)[found.topk[0]["index"]]
    x = mnv3.transforms(model)(mnv3.images.load(folder / "a.png"))[None]
    assert model(x).argmax().item() == found.topk[0]["index"]


def test_training_mode_is_restored_and_not_used(model, folder):
    expected = list(mnv3.predict(model, [folder / "a.png"]))
    model.train()
    assert list(mnv3.predict(model, [folder / "a.png"])) == expected
    assert model.training
    model.blocks.eval()  # frozen, as people do for fine-tuning
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert list(mnv3.predict(model, [folder / "a.png"])) == expected
    assert model.training
    assert not model.blocks[0].depthwise.norm.training
    assert model.stem.norm.training
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    predictions = mnv3.predict(model, [folder / "a.png"] * 2, batch_size=1)
    next(predictions)
    assert model.training, "also between two pictures"
    model.eval()


def test_any_iterable_of_paths(model, folder):
    assert len(list(mnv3.predict(model, (str(path) for path in [folder / "a.png", folder / "f.png"])))) == 2
    assert list(mnv3.predict(model, [])) == []
    for single in (folder / "a.png", str(folder / "a.png")):
        assert [p.file for p in mnv3.predict(model, single)] == [folder / "a.png"]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"topk": 0}, "topk=0: expected a whole number of at least 1"),
        ({"topk": 2.5}, r"topk=2\.5"),
        ({"batch_size": 0}, "batch_size=0: expected a whole number of at least 1"),
    ],
)
def test_bad_values(model, kwargs, message):
    with pytest.raises(ValueError, match=message):
        mnv3.predict(model, [], **kwargs)


def test_no_classifier():
    with pytest.raises(ValueError, match="no classifier"):
        mnv3.predict(timm.create_model("mnv3_small_cifar", num_classes=0), [])
    with pytest.raises(ValueError, match="takes pictures of in_chans=4: files are read as RGB or grey"):
        mnv3.predict(timm.create_model("mnv3_small_cifar", in_chans=4), [])


def test_grey(folder):
    """A model of one channel sees the pictures as timm's readers give them to it (img_mode='L')."""
    model = randomize(timm.create_model("mnv3_small_cifar", in_chans=1))
    data = timm.data.ImageDataset(str(folder), reader="", input_img_mode="L")
    found = [p for p in mnv3.predict(model, folder, topk=10) if not p.error]
    config = {"mean": (sum((0.4914, 0.4822, 0.4465)) / 3,), "std": (sum((0.2470, 0.2435, 0.2616)) / 3,)}
    data.transform = timm.data.create_transform((1, 32, 32), interpolation="bilinear", crop_pct=1.0, **config)
    for prediction in found:
        with torch.inference_mode():
            probs = model(data.transform(Image.open(prediction.file).convert("L"))[None]).softmax(1)[0]
        assert [entry["prob"] for entry in prediction.topk] == pytest.approx(
            probs.sort(descending=True).values.tolist()
        )
    assert len(found) == 5


def test_half_precision_and_fused_models(model, folder):
    expected = [e["index"] for e in next(mnv3.predict(model, folder / "a.png")).topk]
    for other in (copy.deepcopy(model).bfloat16(), mnv3.fuse(copy.deepcopy(model).eval())):
        found = next(mnv3.predict(other, folder / "a.png"))
        assert found.topk[0]["index"] == expected[0]
        assert json.dumps(found.topk)


def test_labels_of_the_configuration(folder, tmp_path):
    names = [f"kind {i}" for i in range(10)]
    source = mnv3.save(timm.create_model("mnv3_small_cifar"), tmp_path / "net", label_names=names)
    loaded = mnv3.load_checkpoint(source)
    assert mnv3.class_names(loaded) == names
    (found,) = mnv3.predict(loaded, [folder / "a.png"], topk=1)
    assert found.topk[0]["label"] == f"kind {found.topk[0]['index']}"
    assert mnv3.class_names(mnv3.load_checkpoint(source, num_classes=4)) is None


def test_imagenet_21k_names():
    names = mnv3.class_names(mnv3.create_model("mnv3_large.miil_in21k", device="meta"))
    assert len(names) == 11221
    assert len(set(names)) > 10900  # some synsets share their words
    assert all(names)


def test_real_pictures_as_timm_sees_them(shared):
    source = shared / "weights" / "hub" / "timm" / "tf_mobilenetv3_small_100.in1k"
    pictures = sorted((shared / "images" / "imagenet_half").glob("*.jpg"))[::60]
    file = {"file": str(source / "model.safetensors")}
    reference = timm.create_model("tf_mobilenetv3_small_100", pretrained=True, pretrained_cfg_overlay=file).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(reference))
    found = list(mnv3.predict(mnv3.load_checkpoint(source), pictures, topk=1))
    for prediction, path in zip(found, pictures, strict=True):
        with torch.inference_mode():
            probs = reference(transform(Image.open(path).convert("RGB"))[None]).softmax(1)[0]
        assert prediction.topk[0]["index"] == probs.argmax()
        assert prediction.topk[0]["prob"] == pytest.approx(probs.max().item(), abs=1e-4)
    assert found[0].topk[0]["label"] == "tench"


def test_the_names_of_the_pictures(shared):
    """The data set's file names have the class and its name: all 1000 stand where they should."""
    names = mnv3.class_names(timm.create_model("mnv3_small.lamb_in1k", device="meta"))
    assert len(names) == 1000
    assert (names[0], names[1], names[999]) == ("tench", "goldfish", "toilet tissue")
    for path in (shared / "images" / "imagenet_half").glob("*.jpg"):
        number, _, words = path.stem.split("_", 2)
        first = names[int(number)].replace("'", "").lower().split()[0]
        assert first in words.replace("'", "").lower()


def test_no_numbers_are_no_answer(folder, tmp_path):
    """Of a model, and of an exported file."""
    model, pictures = randomize(mnv3.create_model("mnv3_small_cifar", width=0.35)), [folder / "a.png", folder / "b.png"]
    mnv3.deploy.export(model, tmp_path / "net.torchscript", to="torchscript")
    exported = mnv3.deploy.load(tmp_path / "net.torchscript")
    run = exported.run
    for value in (float("nan"), float("inf"), -float("inf")):
        exported.__dict__["run"] = lambda x, value=value: run(x) * value
        with torch.no_grad():
            model.classifier.bias[3] = value
        for wrong in (model, exported):
            with pytest.raises(mnv3.WeightsError, match=r"^for 2 of 2 pictures the model gives NaN or infinity"):
                list(mnv3.predict(wrong, pictures))


def test_large_jpegs_are_decoded_smaller(model, tmp_path, monkeypatch):
    """At 1/8 of 1,600 x 1,200 pixels a model of 32 px has all that it needs; `exact` decodes everything."""
    generator = torch.Generator().manual_seed(0)
    small = Image.fromarray(torch.randint(0, 256, (6, 8, 3), dtype=torch.uint8, generator=generator).numpy())
    for name, size in (("a.jpg", (1600, 1200)), ("b.jpg", (80, 60)), ("c.png", (1600, 1200))):
        small.resize(size, Image.Resampling.BICUBIC).save(tmp_path / name, quality=95)
    loaded = {}
    load = mnv3.images.load

    def recording(path, **options):
        loaded[path.name] = load(path, **options).size
        return load(path, **options)

    monkeypatch.setattr(mnv3.images, "load", recording)
    reduced = list(mnv3.predict(model, tmp_path, topk=10))
    assert loaded == {"a.jpg": (200, 150), "b.jpg": (80, 60), "c.png": (1600, 1200)}
    exact = list(mnv3.predict(model, tmp_path, topk=10, exact=True))
    assert loaded["a.jpg"] == (1600, 1200)
    for one, other in zip(reduced, exact, strict=True):
        probs = [{entry["index"]: entry["prob"] for entry in prediction.topk} for prediction in (one, other)]
        assert probs[0] == pytest.approx(probs[1], abs=0.02)
    assert reduced[1:] == exact[1:]


def test_reading_ahead_is_bounded(model, folder):
    """However many files there are: three batches are computed or wait for it, one is read, and one for each worker."""
    asked = []

    def endless():
        while True:
            asked.append(folder / "a.png")
            yield asked[-1]

    predictions = mnv3.predict(model, endless(), batch_size=3, workers=2)
    for _ in range(4):
        next(predictions)
    assert len(asked) <= 3 * 3 + 3 + 2 + 1


def test_whole_batches(model, folder):
    """In them no bit depends on which pictures come together."""
    files = sorted(folder.glob("[abdf].png"))
    expected = {p.file: p for p in mnv3.predict(model, files, batch_size=4, whole_batches=True)}
    for some in (files[:1], files[1:3], files[::-1], [folder / "c.png", files[2]]):
        found = mnv3.predict(model, some, batch_size=4, whole_batches=True)
        assert all(p == expected[p.file] for p in found if not p.error)


def test_threads_are_left_as_they_were(model, folder):
    """Each worker computes with one thread; neither this thread nor one that starts afterwards does."""

    def threads(*_):
        return torch.get_num_threads()

    before = threads()
    torch.set_num_threads(3)
    hooked = copy.deepcopy(model)
    hooked.classifier.register_forward_hook(lambda *_: None)
    try:
        for network, of_network in ((model, 1), (hooked, 3)):  # a model that is watched computes in this thread
            for batch, computing in answered(network, range(9), threads, threads, batch_size=2, workers=2):
                assert computing == of_network
                assert {reading for _, reading in batch} == {1}
            assert threads() == 3
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(threads).result() == 3
        predictions = mnv3.predict(model, [folder / "a.png"] * 9, batch_size=1)
        next(predictions)
        predictions.close()  # whoever asked has stopped
        assert threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("act_layer", [None, "silu"])
def test_the_network_in_threads(act_layer):
    """Folded, packed where oneDNN has the activation, in several threads: the logits are the model's."""
    model = randomize(mnv3.create_model("mnv3_small_cifar", act_layer=act_layer)).eval()
    network, of_threads = for_inference(model, 4)
    assert of_threads
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    x = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(network(x), model(x), atol=1e-4, rtol=1e-4)
    model.bfloat16()
    assert for_inference(model, 4) == (model, False)


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("mnv3_small_cifar", {}, (40, 50)),
        ("mnv3_small.lamb_in1k", {}, (300, 260)),
        ("mnv3_large.tv2_in1k", {}, (500, 375)),
        ("mnv3_small_cifar", {"in_chans": 1}, (33, 70)),
    ],
)
def test_preprocessing_in_two_parts(name, options, size):
    """Pictures in 8 bits, then numbers of a batch: the same bits as of the whole transform, picture by picture."""
    transform = mnv3.transforms(mnv3.create_model(name, device="meta", **options))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, *size, 3), dtype=torch.uint8, generator=generator)
    pictures = [Image.fromarray(one.numpy()) for one in pixels]
    preprocessing = Preprocessing(transform)
    parts = [preprocessing.picture(picture) for picture in pictures]
    assert {part.dtype for part in parts} == {torch.uint8}
    assert torch.equal(preprocessing.batch(parts), torch.stack([transform(picture) for picture in pictures]))
    other = Preprocessing(lambda picture: transform(picture) * 2)
    assert torch.equal(other.batch([other.picture(pictures[0])])[0], transform(pictures[0]) * 2)
