"""The pictures of a recipe by split, and what is held out."""

from types import SimpleNamespace

import pytest
import torch
from picture_files import pixels, write

from mnv3.errors import DataError
from mnv3.pictures import data
from mnv3.train.recipe import Recipe
from mnv3.train.splits import load_splits


def recipe(**kwargs) -> Recipe:
    return Recipe(model="mnv3_small_cifar", **kwargs)


def test_splits(tmp_path):
    folder = write(tmp_path / "train")
    assert list(load_splits(recipe(data=folder))) == ["train"]
    write(tmp_path / "test", count=2)
    write(tmp_path / "val", count=1)
    found = load_splits(recipe(data=folder, val_fraction=0.5))
    assert {name: len(pictures) for name, pictures in found.items()} == {"train": 6, "val": 2, "test": 4}
    write(tmp_path / "val", classes=("bird",))
    with pytest.raises(DataError, match=f"{folder}: train and val have different classes: bird$"):
        load_splits(recipe(data=folder))


def test_different_classes(tmp_path):
    folder = write(tmp_path / "train", classes="abcdef")
    write(tmp_path / "test", classes="ghijkl")
    with pytest.raises(DataError, match=f"{folder}: train and test have different classes: a, b, c, d, e ...$"):
        load_splits(recipe(data=folder))


def test_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "pets" / "train")
    write(tmp_path / "pets" / "test")
    assert sorted(load_splits(recipe(data="~/pets"))) == ["test", "train"]


@pytest.mark.parametrize(("fraction", "counts"), [(0.2, [2, 1]), (0.01, [1, 1]), (0.99, [9, 2]), (0.5, [5, 2])])
def test_held_out(tmp_path, fraction, counts):
    write(tmp_path / "train", classes=("cat",), count=10)
    folder = write(tmp_path / "train", classes=("dog",), count=3)
    whole = data.load(folder, "train")
    found = load_splits(recipe(data=folder, val_fraction=fraction))
    again = load_splits(recipe(data=folder, val_fraction=fraction, seed=1))
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
        load_splits(recipe(data=folder, val_fraction=0.1))


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
    found = load_splits(recipe(data="cifar10", data_dir="~/x", download=True, val_fraction=0.4))
    assert calls == [(str(tmp_path / "x"), True, True), (str(tmp_path / "x"), False, True)]
    assert {name: len(pictures) for name, pictures in found.items()} == {"train": 4, "val": 2, "test": 4}
    test = found["test"]
    assert test.held
    assert (test.labels.tolist(), test.classes) == ([1, 0, 1, 0], ["cat", "dog"])
    assert torch.equal(test.source, pixels(4, 32, 32, 3).permute(0, 3, 1, 2))
    assert test.source.is_contiguous()
