"""Pictures with classes: folders as people have them, orders, augmentation, and what workers do."""

import random
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import Dataset

from mnv3.pictures import data
from mnv3.pictures.data import DataError, Pictures
from mnv3.train import examples
from mnv3.train.examples import Augment, TrainFiles
from mnv3.train.recipe import Recipe

NONE, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def pixels(*shape, seed=0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def write(folder, classes=("cat", "dog"), count=3, size=(8, 8), suffix=".png"):
    """Folders <class>/0.png, 1.png and so on; returns the data folder above the split."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture = pixels(*size[::-1], 3, seed=100 * label + i)
            Image.fromarray(picture.numpy()).save(folder / name / f"{i}{suffix}")
    return str(folder.parent)


def recipe(**kwargs) -> Recipe:
    return Recipe(**({"model": "mnv3_small_cifar", "augment": "none"} | kwargs))


def augment(mean=NONE, std=ONE, **kwargs) -> Augment:
    return Augment(recipe(**kwargs), mean, std)


# Folders


def test_small_pictures_are_held(tmp_path):
    folder = write(tmp_path / "train", classes=("dog", "cat", "ü ñ"))
    found = data.load(folder, "train")
    assert found.held
    assert found.classes == ["cat", "dog", "ü ñ"]
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert (found.source.shape, found.source.dtype, len(found)) == ((9, 3, 8, 8), torch.uint8, 9)
    for i, seed in enumerate([100, 101, 102, 0, 1, 2, 200, 201, 202]):
        assert torch.equal(found.source[i], pixels(8, 8, 3, seed=seed).permute(2, 0, 1))


def test_pictures_that_are_wide(tmp_path):
    assert data.load(write(tmp_path / "test", size=(12, 6)), "test").source.shape == (6, 3, 6, 12)


@pytest.mark.parametrize("size", [(9, 8), (8, 9), (97, 8)])
def test_other_sizes_are_files(tmp_path, size):
    """One of another size, or all too large."""
    folder = write(tmp_path / "train", size=size if max(size) > 96 else (8, 8))
    Image.new("RGB", size).save(tmp_path / "train" / "dog" / "9.png")
    found = data.load(folder, "train")
    assert not found.held
    assert [path.relative_to(folder).as_posix() for path in found.source[2:5]] == [
        "train/cat/2.png",
        "train/dog/0.png",
        "train/dog/1.png",
    ]
    assert found.take(torch.tensor([4, 0])).source == [found.source[4], found.source[0]]


def test_many_pictures_are_files(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "HELD_BYTES", 6 * 3 * 8 * 8)
    assert data.load(write(tmp_path / "train"), "train").held
    assert not data.load(write(tmp_path / "train", count=4), "train").held


def test_pictures_that_lie_on_their_side(tmp_path):
    """Equal sizes in their headers, but not when upright."""
    folder = write(tmp_path / "train", size=(12, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (12, 8)).save(tmp_path / "train" / "dog" / "1.png", exif=exif)
    assert not data.load(folder, "train").held


def test_grey_and_transparent_pictures(tmp_path):
    folder = write(tmp_path / "train")
    Image.fromarray(pixels(8, 8).numpy()).save(tmp_path / "train" / "cat" / "0.png")
    Image.new("RGBA", (8, 8), (9, 9, 9, 0)).save(tmp_path / "train" / "cat" / "1.png")
    found = data.load(folder, "train")
    assert torch.equal(found.source[0], pixels(8, 8).expand(3, 8, 8))
    assert (found.source[1] == 255).all(), "transparency is laid on white"


def test_what_is_passed_over(tmp_path):
    folder = write(tmp_path / "train")
    write(tmp_path / "train", classes=(".thumbnails",))
    for name in (".hidden.png", "notes.txt"):
        (tmp_path / "train" / "cat" / name).write_text("no picture")
    (tmp_path / "train" / "README.md").write_text("no class")
    found = data.load(folder, "train")
    assert (found.classes, len(found)) == (["cat", "dog"], 6)


def test_folders_in_a_class(tmp_path):
    write(tmp_path / "train" / "cat", classes=("tabby", "black"))
    found = data.load(str(tmp_path), "train")
    assert (found.classes, len(found)) == (["cat"], 6)


def test_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "pets" / "train")
    write(tmp_path / "pets" / "test")
    assert sorted(examples.splits(recipe(data="~/pets"))) == ["test", "train"]


def test_bad_folders(tmp_path):
    folder = write(tmp_path / "train")
    (tmp_path / "train" / "bird").mkdir()
    (tmp_path / "train" / "ant").mkdir()
    (tmp_path / "val" / ".git").mkdir(parents=True)
    for name, split, message in (
        (folder, "train", f"{folder}/train: no pictures in class ant, bird: add some or remove the folder"),
        (folder, "val", f"{folder}/val: expected a folder of pictures for each class"),
        (folder, "test", f"{folder}: expected a folder test in it, with a folder of pictures for each class"),
        (f"{folder}/none", "train", f"data: no folder '{folder}/none'. Allowed: cifar10, cifar100. Or a folder with"),
        ("cifra10", "train", "data: no folder 'cifra10'. Did you mean 'cifar10'"),
    ):
        with pytest.raises(DataError) as caught:
            data.load(name, split)
        assert str(caught.value).startswith(message)


@pytest.mark.parametrize("content", [b"no picture", b"", None])
@pytest.mark.parametrize("name", ["0.png", "2.png"])
def test_broken_picture_among_small_ones(tmp_path, content, name):
    folder, broken = write(tmp_path / "train"), tmp_path / "train" / "dog" / name
    broken.write_bytes(broken.read_bytes()[:120] if content is None else content)
    with pytest.raises(DataError, match=f"^{broken}: (not a picture|cannot be read)"):
        data.load(folder, "train")


def test_splits(tmp_path):
    folder = write(tmp_path / "train")
    assert list(examples.splits(recipe(data=folder))) == ["train"]
    write(tmp_path / "test", count=2)
    write(tmp_path / "val", count=1)
    found = examples.splits(recipe(data=folder, val_fraction=0.5))
    assert {name: len(pictures) for name, pictures in found.items()} == {"train": 6, "val": 2, "test": 4}
    write(tmp_path / "val", classes=("bird",))
    with pytest.raises(DataError, match=f"{folder}: train and val have different classes: bird$"):
        examples.splits(recipe(data=folder))


def test_different_classes(tmp_path):
    folder = write(tmp_path / "train", classes="abcdef")
    write(tmp_path / "test", classes="ghijkl")
    with pytest.raises(DataError, match=f"{folder}: train and test have different classes: a, b, c, d, e ...$"):
        examples.splits(recipe(data=folder))


# Validation pictures


@pytest.mark.parametrize(("fraction", "counts"), [(0.2, [2, 1]), (0.01, [1, 1]), (0.99, [9, 2]), (0.5, [5, 2])])
def test_held_out(tmp_path, fraction, counts):
    write(tmp_path / "train", classes=("cat",), count=10)
    folder = write(tmp_path / "train", classes=("dog",), count=3)
    whole = data.load(folder, "train")
    found = examples.splits(recipe(data=folder, val_fraction=fraction))
    again = examples.splits(recipe(data=folder, val_fraction=fraction, seed=1))
    assert found["val"].labels.bincount().tolist() == counts
    assert found["val"].classes == whole.classes
    for name in found:
        assert torch.equal(found[name].source, again[name].source), "the same at every seed"
    together = torch.cat([found["train"].source, found["val"].source]).flatten(1)
    assert len(together) == len(whole)
    assert {tuple(x.tolist()) for x in together} == {tuple(x.tolist()) for x in whole.source.flatten(1)}


def test_too_few_to_hold_one_out(tmp_path):
    write(tmp_path / "train", classes=("cat",), count=10)
    folder = write(tmp_path / "train", classes=("dog",), count=1)
    with pytest.raises(DataError, match="class dog: has 1 picture, too few to hold one out: set val_fraction to 0"):
        examples.splits(recipe(data=folder, val_fraction=0.1))


# CIFAR


def test_cifar_as_torchvision_gives_it(monkeypatch, tmp_path):
    calls = []

    def fake(root, train, download):
        calls.append((str(root), train, download))
        shape = (6 if train else 4, 32, 32, 3)
        return SimpleNamespace(data=pixels(*shape).numpy(), targets=[1, 0] * (shape[0] // 2), classes=["cat", "dog"])

    monkeypatch.setattr("torchvision.datasets.CIFAR10", fake)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "cifar10" / "val")  # a folder of this name is not looked into
    found = examples.splits(recipe(data="cifar10", data_dir="~/x", download=True, val_fraction=0.4))
    assert calls == [(str(tmp_path / "x"), True, True), (str(tmp_path / "x"), False, True)]
    assert {name: len(pictures) for name, pictures in found.items()} == {"train": 4, "val": 2, "test": 4}
    test = found["test"]
    assert test.held
    assert (test.labels.tolist(), test.classes) == ([1, 0, 1, 0], ["cat", "dog"])
    assert torch.equal(test.source, pixels(4, 32, 32, 3).permute(0, 3, 1, 2))
    assert test.source.is_contiguous()


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_missing(tmp_path, name):
    message = f"no {name.upper()} in {tmp_path}, or it is damaged: give its folder .data_dir., or let torchvision"
    for split in ("train", "test"):
        with pytest.raises(DataError, match=message):
            data.load(name, split, data_dir=str(tmp_path))
    with pytest.raises(DataError, match=f"{name} has no split 'val': train or test"):
        data.load(name, "val", data_dir=str(tmp_path))


def test_cifar_cannot_be_downloaded(tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(DataError, match=f"cannot download CIFAR10 to {tmp_path}: .*no route to host"):
        data.load("cifar10", "train", data_dir=str(tmp_path), download=True)


# Order


def labels(count, classes=2) -> torch.Tensor:
    return torch.arange(count) % classes


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_order_is_complete_and_disjoint(parts):
    kwargs = {"batch": 4, "parts": parts, "seed": 0}
    found = examples.order(labels(24), epoch=0, **kwargs)
    assert found.shape == (24 // (4 * parts), parts, 4)
    assert found.flatten().sort().values.tolist() == list(range(24))
    assert torch.equal(found, examples.order(labels(24), epoch=0, **kwargs))
    for other in (
        examples.order(labels(24), epoch=1, **kwargs),
        examples.order(labels(24), epoch=0, **(kwargs | {"seed": 1})),
    ):
        assert not torch.equal(found, other)
        assert other.unique().numel() == 24


@pytest.mark.parametrize(
    ("count", "batch", "parts", "shape"), [(9, 16, 1, (1, 1, 8)), (10, 8, 2, (1, 2, 4)), (24, 8, 1, (3, 1, 8))]
)
def test_order_of_an_even_number(count, batch, parts, shape):
    found = examples.order(labels(count), batch=batch, parts=parts, seed=0, epoch=0, even=True)
    assert found.shape == shape
    assert len(found.unique()) == found.numel()
    with pytest.raises(DataError, match="too few"):
        examples.order(labels(3), batch=8, parts=2, seed=0, epoch=0, even=True)


def test_order_does_not_depend_on_the_number_of_parts():
    """Two processes see together what one sees with twice the batch."""
    one, two = (examples.order(labels(32), batch=16 // parts, parts=parts, seed=3, epoch=2) for parts in (1, 2))
    assert torch.equal(one.flatten(), two.flatten())


def test_order_leaves_the_global_generators_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    examples.order(labels(10), batch=2, parts=1, seed=0, epoch=0)
    examples.order(labels(10), batch=2, parts=1, seed=0, epoch=0, balance=True)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("count", "batch", "parts", "shape"),
    [
        (33, 16, 1, (2, 1, 16)),
        (33, 16, 2, (1, 2, 16)),
        (33, 9, 4, (1, 4, 8)),
        (5, 9, 1, (1, 1, 5)),
        (5, 9, 2, (1, 2, 2)),
    ],
)
def test_what_does_not_fill_an_update(count, batch, parts, shape):
    """A last batch of one picture would be the end of batch norm."""
    epochs = [examples.order(labels(count), batch=batch, parts=parts, seed=0, epoch=epoch) for epoch in range(60)]
    assert {found.shape for found in epochs} == {shape}
    assert all(found.unique().numel() == found.numel() for found in epochs)
    assert torch.cat(epochs).unique().numel() == count, "others are left out in each epoch"


@pytest.mark.parametrize(("count", "batch", "parts"), [(1, 16, 1), (3, 16, 2), (100, 1, 1)])
@pytest.mark.parametrize("balance", [False, True])
def test_too_few_pictures(count, batch, parts, balance):
    with pytest.raises(DataError, match=f"{count} training pictures are too few: .* in each of {parts} batches"):
        examples.order(labels(count), batch=batch, parts=parts, seed=0, epoch=0, balance=balance)


def test_balance():
    uneven = torch.tensor([0] * 9000 + [1] * 900 + [2] * 100)
    kwargs = {"batch": 100, "parts": 1, "seed": 0, "balance": True}
    found = examples.order(uneven, epoch=0, **kwargs)
    assert found.shape == (100, 1, 100)
    shares = uneven[found.flatten()].bincount() / 10000
    assert shares.tolist() == pytest.approx([1 / 3] * 3, abs=0.02)
    assert torch.equal(found, examples.order(uneven, epoch=0, **kwargs))
    assert not torch.equal(found, examples.order(uneven, epoch=1, **kwargs))


# Random numbers


def draws() -> tuple:
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_seed_all():
    found = []
    for key in ((0,), (1,), (0, 1), (1, 0, 0, 0, 5), (0,)):
        examples.seed_all(*key)
        found.append(draws())
    assert found[0] == found[-1]
    for generator in zip(*found[:-1], strict=True):
        assert len(set(generator)) == 4


# Augmentation


def candidates(x, shift, flip) -> torch.Tensor:
    """Every picture that can become of x (3, H, W)."""
    height, width = x.shape[1:]
    padded = F.pad(x[None].float(), [shift] * 4, mode="reflect")[0]
    spots = range(2 * shift + 1)
    crops = [padded[:, top : top + height, left : left + width] for top in spots for left in spots]
    return torch.stack(crops + [crop.flip(2) for crop in crops if flip])


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize(("crop", "size"), [(1, (4, 5)), (2, (4, 5)), (9, (3, 4)), (0, (4, 5))])
def test_crop(crop, size, flip):
    """Each is one of the shifted and mirrored pictures, by its own draw, and every one of these comes up."""
    examples.seed_all(0)
    x = pixels(3, *size)
    possible, ways = candidates(x, min(crop, min(size) - 1), flip).unique(dim=0, return_counts=True)
    found = augment(crop=crop, flip=flip).crop(x.expand(1000, 3, *size))
    assert (found.dtype, found.shape) == (torch.float32, (1000, 3, *size))
    same = (found[:, None] == possible).flatten(2).all(2)
    assert (same.sum(1) == 1).all()
    expected = 1000 * ways / ways.sum()
    assert ((same.sum(0) - expected).abs() < 5 * expected.sqrt()).all()


def test_crop_of_different_pictures():
    examples.seed_all(0)
    x = pixels(16, 3, 4, 4)
    found = augment(crop=2).crop(x)
    for one, picture in zip(found, x, strict=True):
        assert (candidates(picture, 2, True) == one).flatten(1).all(1).any(), "pictures keep their place"
    examples.seed_all(0)
    assert torch.equal(augment(crop=2).crop(x), found)
    assert not torch.equal(augment(crop=2).crop(x), found)


def test_one_pixel():
    assert augment(crop=4).crop(pixels(2, 3, 1, 1)).equal(pixels(2, 3, 1, 1).float())


def test_no_augmentation_normalises_exactly():
    x, mean, std = pixels(5, 3, 8, 8), (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
    plain = augment(crop=0, flip=False)
    assert torch.equal(plain.crop(x), x.float())
    assert torch.equal(plain.batch(x, 8, torch.device("cpu")), x / 255)
    found = augment(mean, std, crop=0, flip=False).batch(x, 8, torch.device("cpu"))
    scaled = (x.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(found.double(), scaled, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [4, 6, 8, 11])
def test_resize(size):
    x = pixels(2, 3, 8, 6)
    found = augment(crop=0, flip=False).batch(x, size, torch.device("cpu"))
    expected = F.interpolate(x.float(), size=(size, size), mode="bilinear", antialias=True)
    assert torch.equal(found, expected / 255)
    square = x[..., :6, :].float()
    assert examples.resize(square, 6) is square


def test_normalisation_default_range():
    """Of ImageNet's mean and std: black and white become what they are for timm."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    x = torch.stack([torch.zeros(3, 4, 4), torch.full((3, 4, 4), 255)]).to(torch.uint8)
    found = augment(mean, std).batch(x, 4, torch.device("cpu"))
    for value, picture in zip((0, 1), found, strict=True):
        expected = [(value - m) / s for m, s in zip(mean, std, strict=True)]
        assert picture.mean((1, 2)).tolist() == pytest.approx(expected, abs=1e-5)


def test_erasing():
    x, cpu = pixels(64, 3, 8, 8), torch.device("cpu")
    examples.seed_all(0)
    found = augment(crop=0, flip=False, erase=0.5).batch(x, 8, cpu)
    changed = (found != x / 255).any(1)
    assert 16 < changed.flatten(1).any(1).sum() < 48
    assert changed.flatten(1).float().mean(1).max() < 0.6, "a part of each"
    examples.seed_all(0)
    assert torch.equal(augment(crop=0, flip=False, erase=0.5).batch(x, 8, cpu), found)
    assert (augment(crop=0, flip=False, erase=1).batch(x, 8, cpu) != x / 255).flatten(1).any(1).sum() > 60


@pytest.mark.parametrize("policy", ["trivial", "rand"])
def test_policies(policy):
    x, cpu = pixels(3, 16, 16).expand(12, 3, 16, 16), torch.device("cpu")
    examples.seed_all(0)
    augmented = augment(crop=0, flip=False, augment=policy)
    found = augmented.batch(x, 16, cpu)
    assert (found.dtype, found.shape) == (torch.float32, x.shape)
    assert found.flatten(1).unique(dim=0).shape[0] > 6, "each by its own draw"
    examples.seed_all(0)
    assert torch.equal(augmented.batch(x, 16, cpu), found)


def test_files_are_not_cropped_again():
    x = pixels(2, 3, 8, 8).float()
    assert torch.equal(augment().batch(x, 8, torch.device("cpu")), x / 255)


# Files


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write(folder / "train", size=(20, 14))
    Image.fromarray(pixels(30, 11, 3).numpy()).save(folder / "train" / "dog" / "9.jpg")
    found = data.load(str(folder), "train")
    assert not found.held
    return found


KEYS = [[(0, 7), (6, 8)], [(3, 7), (0, 9)], [(0, 7)]]


@pytest.mark.parametrize("policy", ["none", "trivial", "rand"])
def test_files_depend_on_index_and_seed_alone(files, policy):
    settings = recipe(augment=policy)
    dataset = TrainFiles(files, settings, augment(augment=policy).policy, 12)
    loaded = {workers: list(data.files_loader(dataset, KEYS, workers)) for workers in (0, 2)}
    for found in loaded.values():
        assert [x.shape for x in found] == [(2, 3, 12, 12), (2, 3, 12, 12), (1, 3, 12, 12)]
        assert all(x.dtype == torch.float32 and x.min() >= 0 and x.max() <= 255 for x in found)
        assert torch.equal(found[0][0], found[2][0])
        assert not torch.equal(found[0][0], found[1][1])
        assert all(map(torch.equal, found, loaded[0]))


def test_files_whole_and_unmirrored(files):
    dataset = TrainFiles(files, recipe(scale=[1, 1], flip=False), None, 14)
    assert torch.equal(dataset[0, 1], dataset[0, 1])
    sharp = np.asarray(Image.open(files.source[0]).convert("RGB")).mean((0, 1))
    means = torch.stack([dataset[0, seed].mean((1, 2)) for seed in range(20)]).mean(0)
    assert means.tolist() == pytest.approx(sharp.tolist(), abs=12)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_file(tmp_path, workers):
    """One line that names it, not a worker's traceback."""
    broken = tmp_path / "DataError: no.png"
    broken.write_bytes(b"no picture")
    good = tmp_path / "good.png"
    Image.new("RGB", (20, 20)).save(good)
    found = Pictures([good, broken], torch.tensor([0, 1]), ["a", "b"])
    batches = data.files_loader(TrainFiles(found, recipe(), None, 8), [[(0, 1)], [(1, 1)], [(0, 1)]], workers)
    assert next(batches).shape == (1, 3, 8, 8)
    with pytest.raises(DataError) as caught:
        next(batches)
    assert str(caught.value) == f"{broken}: not a picture"


def test_other_errors_of_workers_are_left_as_they_are():
    class Wrong(Dataset):
        def __getitem__(self, index):
            raise KeyError(index)

    with pytest.raises(KeyError):
        next(data.files_loader(Wrong(), [[0]], 0))


def test_real_pictures(shared, tmp_path):
    for file in sorted((shared / "images" / "cifar10_mini").glob("test/*/*.png"))[::10]:
        folder = tmp_path / "test" / file.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file.name).symlink_to(file.resolve())
    found = data.load(str(tmp_path), "test")
    assert found.source.shape == (100, 3, 32, 32)
    assert [name.split("_")[1] for name in found.classes][::3] == ["airplane", "cat", "frog", "truck"]
    assert found.labels.bincount().tolist() == [10] * 10
    means = (found.source / 255).mean((0, 2, 3))
    assert means.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.04)
