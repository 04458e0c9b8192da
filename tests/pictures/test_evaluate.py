"""evaluate(): against a computation of its own, in any batches, order of classes and number of processes."""

import copy
import json
import math
import unicodedata
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import timm
import torch
from conftest import randomize
from PIL import Image
from torch import nn
from torchvision.transforms.functional import pil_to_tensor

import mnv3
from mnv3.pictures.data import DataError, Pictures
from mnv3.pictures.evaluate import Metrics, evaluate, probabilities
from mnv3.pictures.inputs import held_batches


class Fake(nn.Module):
    """Its logits are means of the left and the right half of each channel, so that they are known and not symmetric."""

    def __init__(self, num_classes, names=None, scale=2.0, side=8):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(scale * torch.randn(6, num_classes, generator=generator))
        self.norm, self.frozen = nn.BatchNorm1d(num_classes), nn.BatchNorm1d(num_classes)
        self.num_classes, self.in_chans, self.sizes = num_classes, 3, []
        self.pretrained_cfg = {"input_size": (3, side, side), "crop_pct": 1.0, "interpolation": "bilinear"}
        self.pretrained_cfg |= {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "num_classes": num_classes}
        self.pretrained_cfg |= {"label_names": names} if names else {}

    def forward(self, x):
        self.sizes.append(len(x))
        left, right = (half.mean((2, 3)) for half in x.chunk(2, dim=3))
        return self.norm(torch.cat([left, right], 1) @ self.weight)


def held(count=50, classes=4, size=(8, 8), names=None) -> Pictures:
    generator = torch.Generator().manual_seed(0)
    colors = (
        torch.rand(count, 3, 1, 2, generator=generator).repeat_interleave(size[1] // 2, 3).expand(-1, -1, size[0], -1)
    )
    noise = torch.rand(count, 3, *size, generator=generator)
    labels = torch.randint(0, classes, (count,), generator=generator)
    source = ((0.8 * colors + 0.2 * noise) * 255).to(torch.uint8)
    return Pictures(source, labels, names or [f"kind {i}" for i in range(classes)])


def write(pictures, folder) -> Pictures:
    """The same as files, which have one larger among them so that they are not held."""
    files = []
    for i, picture in enumerate(pictures.source):
        files.append(folder / f"{i}.png")
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(files[-1])
    return Pictures(files, pictures.labels, pictures.classes)


def by_hand(model, pictures, flip=False) -> dict:
    """Metrics in loops and float64, one picture at a time, with the preprocessing for PIL pictures."""
    model, transform = copy.deepcopy(model).double().eval(), mnv3.transforms(model)
    classes = len(pictures.classes)
    confusion, loss, top5 = [[0] * classes for _ in range(classes)], 0.0, 0
    for picture, y in zip(pictures.source, pictures.labels.tolist(), strict=True):
        x = transform(Image.fromarray(picture.permute(1, 2, 0).numpy())).double()
        views = [x, x.flip(2)] if flip else [x]
        probs = []
        for view in views:
            exps = [math.exp(value) for value in model(view[None])[0].tolist()]
            probs.append([value / sum(exps) for value in exps])
        mean = [sum(values) / len(values) for values in zip(*probs, strict=True)]
        ranking = sorted(range(classes), key=lambda i: -mean[i])
        confusion[y][ranking[0]] += 1
        top5 += y in ranking[:5]
        loss -= math.log(mean[y])
    count = len(pictures)
    rows = {name: (row[i], sum(row)) for i, (name, row) in enumerate(zip(pictures.classes, confusion, strict=True))}
    return {
        "count": count,
        "top1": 100 * sum(hits for hits, _ in rows.values()) / count,
        "top5": 100 * top5 / count,
        "loss": loss / count,
        "classes": pictures.classes,
        "per_class": {name: 100 * hits / total for name, (hits, total) in rows.items() if total},
        "confusion": confusion,
    }


def assert_equal(metrics, expected):
    found = asdict(metrics) if isinstance(metrics, Metrics) else metrics
    expected = dict(asdict(expected) if isinstance(expected, Metrics) else expected)
    assert found["loss"] == pytest.approx(expected.pop("loss"), rel=1e-5)
    for name, value in expected.items():
        assert found[name] == (pytest.approx(value) if name in ("top1", "top5", "per_class") else value)


@pytest.mark.parametrize(("classes", "tta"), [(2, "none"), (4, "flip"), (5, "none"), (9, "flip"), (9, "none")])
def test_metrics(classes, tta):
    model, pictures = Fake(classes), held(classes=classes)
    found = evaluate(model, pictures, tta=tta)
    assert_equal(found, by_hand(model, pictures, flip=tta == "flip"))
    assert 0 < found.top1 < 100
    assert (found.top5 == 100) == (classes <= 5)
    assert sum(map(sum, found.confusion)) == found.count == 50
    assert found.top1 == pytest.approx(100 * sum(found.confusion[i][i] for i in range(classes)) / 50)


def test_a_class_without_pictures():
    pictures = held(classes=3, names=["a", "b", "c"])
    some = pictures.take((pictures.labels != 1).nonzero().flatten())
    found = evaluate(Fake(3), some)
    assert_equal(found, by_hand(Fake(3), some))
    assert list(found.per_class) == ["a", "c"]
    assert found.confusion[1] == [0, 0, 0]


@pytest.mark.parametrize(("batch_size", "tta"), [(1, "none"), (7, "flip"), (49, "none"), (50, "none"), (64, "flip")])
def test_batches(batch_size, tta):
    model = Fake(4)
    assert_equal(evaluate(model, held(), batch_size=batch_size, tta=tta), evaluate(Fake(4), held(), tta=tta))
    assert max(model.sizes) == min(batch_size, 50)
    assert sum(model.sizes) == 50 * (1 + (tta == "flip"))


def test_a_real_model_in_any_batches():
    model = randomize(timm.create_model("mnv3_small_cifar", num_classes=4))
    pictures = held(20, size=(32, 32))
    assert_equal(evaluate(model, pictures, batch_size=1), evaluate(model, pictures, batch_size=64))


@pytest.mark.parametrize("fails", [False, True])
def test_modes_are_restored(fails):
    model, pictures = Fake(4).train(), held()
    model.frozen.eval()
    model.norm.running_mean += 1
    before = {name: value.clone() for name, value in model.state_dict().items()}
    if fails:
        model.weight = nn.Parameter(torch.zeros(5, 4))
        with pytest.raises(RuntimeError):
            evaluate(model, pictures)
    else:
        evaluate(model, pictures)
        torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert (model.training, model.norm.training, model.frozen.training) == (True, True, False)


def test_it_is_the_eval_mode_that_counts():
    model = Fake(4)
    assert evaluate(model.train(), held()) == evaluate(model.eval(), held())


def test_mirror_images():
    model, pictures = Fake(4), held()
    mirrored = Pictures(pictures.source.flip(3), pictures.labels, pictures.classes)
    assert_equal(evaluate(model, pictures, tta="flip"), evaluate(model, mirrored, tta="flip"))
    assert evaluate(model, pictures).loss != pytest.approx(evaluate(model, mirrored).loss, rel=1e-3)


def test_certain_models():
    """Probabilities that float32 has no number for."""
    model, pictures = Fake(4, scale=1e4), held()
    found = evaluate(model, pictures, tta="flip")
    assert math.isfinite(found.loss)
    assert found.loss > 100


def test_unknown_tta():
    with pytest.raises(ValueError, match="tta='five': expected one of none, flip"):
        evaluate(Fake(4), held(), tta="five")


# Classes


def test_number_of_classes():
    with pytest.raises(DataError, match="the model has 4 classes and the pictures 3: kind 0, kind 1, kind 2"):
        evaluate(Fake(4), held(classes=3))
    with pytest.raises(DataError, match="the model has 0 classes and the pictures 4"):
        evaluate(timm.create_model("mnv3_small_cifar", num_classes=0), held())


@pytest.mark.parametrize("channels", [1, 4])
def test_channels(channels):
    model = timm.create_model("mnv3_small_cifar", num_classes=4, in_chans=channels)
    with pytest.raises(DataError, match=f"takes pictures of in_chans={channels}: these are RGB"):
        evaluate(model, held())


def test_classes_in_another_order():
    names, folders = ["truck", "cat", "ape", "dog"], ["ape", "cat", "dog", "truck"]
    pictures = held(names=folders)
    reordered = Pictures(pictures.source, torch.tensor([2, 1, 3, 0])[pictures.labels], names)
    found = evaluate(Fake(4, names), pictures)
    assert found == evaluate(Fake(4), reordered)
    assert (found.classes, list(found.per_class)) == (names, names)
    assert_equal(found, by_hand(Fake(4), reordered))
    assert found != evaluate(Fake(4), pictures)


def test_unicode_forms_of_the_names_do_not_matter():
    """Weights of names that macOS had decomposed sort their classes in another way than the composed names do."""
    names = ["caf\u0065\u0301", "cafz", "dog", "u"]
    folders = sorted(unicodedata.normalize("NFC", name) for name in names)
    assert folders[:2] == ["cafz", "caf\u00e9"]
    found = evaluate(Fake(4, names), held(names=folders))
    assert found.classes == ["caf\u00e9", "cafz", "dog", "u"]
    assert found == evaluate(Fake(4, found.classes), held(names=folders))


@pytest.mark.parametrize("names", [None, ["a", "b", "c", "d"], ["a", "b"]])
def test_other_names_are_taken_in_the_order_of_the_folders(names):
    found = evaluate(Fake(4, names), held())
    assert found.classes == held().classes
    assert found == evaluate(Fake(4), held())


# Where the pictures come from


def test_held_and_files_give_the_same(tmp_path):
    """The way by whole batches is the preprocessing for PIL pictures, and that of files."""
    model, pictures = Fake(4), held()
    files = write(pictures, tmp_path)
    found = evaluate(model, pictures, batch_size=16)
    for workers in (0, 2):
        assert_equal(evaluate(model, files, batch_size=16, workers=workers), found)


def test_held_inputs_to_the_last_bit():
    model, pictures = Fake(4), held(5)
    (found,) = held_batches(pictures, model.pretrained_cfg, [list(range(5))])
    expected = [mnv3.transforms(model)(Image.fromarray(p.permute(1, 2, 0).numpy())) for p in pictures.source]
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("cfg", "size"),
    [({"crop_pct": 0.5}, (8, 8)), ({}, (16, 16)), ({}, (8, 14)), ({"interpolation": "bicubic"}, (10, 8))],
)
def test_pictures_that_the_preprocessing_changes(cfg, size):
    model, pictures = Fake(4), held(12, size=size)
    model.pretrained_cfg |= cfg
    for workers in (0, 2):
        assert_equal(evaluate(model, pictures, workers=workers, batch_size=5), by_hand(model, pictures))


def test_half_precision():
    model, pictures = Fake(4), held()
    expected = evaluate(model, pictures, tta="flip")
    found = evaluate(model.bfloat16(), pictures, tta="flip")
    assert found.loss == pytest.approx(expected.loss, rel=0.05)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_picture(tmp_path, workers):
    """Among files that are too many or too large to be held; one line that names it."""
    files, model = write(held(8), tmp_path), Fake(4).train()
    files.source[5].write_bytes(files.source[5].read_bytes()[:60])
    with pytest.raises(DataError) as caught:
        evaluate(model, files, batch_size=3, workers=workers)
    assert str(caught.value).startswith(f"{tmp_path / '5.png'}: ")
    assert "\n" not in str(caught.value)
    assert model.training


# Several processes


class Recorder(SimpleNamespace):
    """Stands for accelerate in one of several processes; keeps what it would add up over them."""

    device = torch.device("cpu")

    def reduce(self, tensor):
        self.parts.append(tensor)
        return self.total.pop(0) if self.total else tensor


@pytest.mark.parametrize(("count", "world"), [(50, 2), (5, 3), (2, 3), (1, 2)])
def test_processes_see_every_picture_once(tmp_path, count, world):
    """Also where there are fewer pictures than processes, held or not."""
    pictures = held(count)
    for source in (pictures, write(pictures, tmp_path)):
        model, parts = Fake(4), []
        for rank in range(world):
            recorder = Recorder(process_index=rank, num_processes=world, parts=[], total=[])
            evaluate(model, source, batch_size=8, workers=0, accelerator=recorder)
            parts.append(recorder.parts)
        assert sum(model.sizes) == count
        total = [sum(tensors) for tensors in zip(*parts, strict=True)]
        recorder = Recorder(process_index=0, num_processes=world, parts=[], total=total)
        assert_equal(evaluate(model, source, workers=0, accelerator=recorder), evaluate(Fake(4), pictures))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_numbers_are_no_answer(value):
    """Also where the loss is a number, and in all processes alike."""
    pictures, model = held(50), Fake(4)
    model.norm.bias.data[3] = value
    message = r"^for 50 of 50 pictures the model gives NaN or infinity: its weights are damaged"
    with pytest.raises(mnv3.WeightsError, match=message):
        evaluate(model, pictures)
    with pytest.raises(mnv3.WeightsError, match="of 50 pictures the model gives NaN or infinity"):
        probabilities(model, pictures)
    confusion, sums = torch.zeros(4, 4, dtype=torch.long), torch.tensor([1.0, 2.0, 50.0])
    fine = Recorder(process_index=0, num_processes=2, parts=[], total=[confusion, sums])
    with pytest.raises(mnv3.WeightsError, match=message):
        evaluate(Fake(4), pictures, accelerator=fine)


# Files


def test_save_and_load(tmp_path):
    metrics, file = evaluate(Fake(4), held(names=["a", "b", "ü", "d"])), tmp_path / "test.json"
    metrics.save(file)
    assert Metrics.load(file) == metrics
    assert [path.name for path in tmp_path.iterdir()] == ["test.json"]
    values = json.loads(file.read_text())
    assert values == asdict(metrics)
    del values["classes"]  # as mnv3 0.1.0 wrote it
    file.write_text(json.dumps(values))
    assert Metrics.load(file) == metrics


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"top1": 101}, "an accuracy is no percentage"),
        ({"per_class": {"a": -1}}, "an accuracy is no percentage"),
        ({"loss": math.nan}, "the loss is not finite"),
        ({"confusion": [[1, 2]]}, "confusion has not a row and a column for each class"),
        ({"confusion": [[9, 0], [2, -1]]}, "confusion does not add up to count"),
        ({"count": 11}, "confusion does not add up to count"),
        ({"per_class": {"c": 50}}, "per_class has 'c', which is not in classes"),
        ({"top5": "high"}, "could not convert string to float"),
        ({"per_class": [1]}, "AttributeError"),
        ({"confusion": 3}, "TypeError"),
        ({"count": 1e999}, "OverflowError"),
        (b"", "JSONDecodeError"),
        (b"[]", "TypeError"),
        (b"{}", "KeyError"),
        (b"[" * 100_000, "RecursionError"),
        (b"\xff", "UnicodeDecodeError"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_files_that_hold_no_metrics(tmp_path, change, problem):
    file, good = tmp_path / "test.json", {"count": 10, "top1": 80, "top5": 100, "loss": 0.5, "classes": ["a", "b"]}
    good |= {"per_class": {"a": 80, "b": 80}, "confusion": [[4, 1], [1, 4]]}
    with pytest.raises(FileNotFoundError):
        Metrics.load(file)
    file.write_text(json.dumps(good))
    Metrics.load(file)
    file.write_bytes(change if isinstance(change, bytes) else json.dumps(good | change).encode())
    with pytest.raises(ValueError, match=r"test.json: cannot be read as metrics of `mnv3 eval`: ") as caught:
        Metrics.load(file)
    assert problem in str(caught.value)


def test_real_pictures(shared):
    """A classifier by the nearest mean colours of few pictures knows most of them again."""
    files = sorted((shared / "images" / "cifar10_mini").glob("test/*/*.png"))[::25]
    classes = sorted({file.parent.name for file in files})
    pictures = Pictures(files, torch.tensor([classes.index(file.parent.name) for file in files]), classes)
    source = torch.stack([pil_to_tensor(Image.open(file)) for file in files])
    model = Fake(10, side=32)
    mean, std = (torch.tensor(model.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    x = torch.cat([half.mean((2, 3)) for half in ((source / 255 - mean) / std).chunk(2, dim=3)], 1)
    means = torch.stack([x[pictures.labels == label].mean(0) for label in range(10)])
    with torch.no_grad():
        model.weight.copy_(means.T)
        model.norm.running_mean.copy_(means.square().sum(1) / 2)
    found = evaluate(model, pictures, workers=0, batch_size=16)
    assert_equal(found, evaluate(model, Pictures(source, pictures.labels, classes)))
    assert_equal(found, by_hand(model, Pictures(source, pictures.labels, classes)))
    nearest = torch.cdist(x, means).argmin(1)
    assert found.top1 == pytest.approx(100 * (nearest == pictures.labels).float().mean().item())
    assert 30 < found.top1 < 100
