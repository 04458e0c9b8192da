"""Folders of pictures as people have them: names of splits, links, one folder too many, what is not read."""

import os
import shutil
import sys
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from mnv3.pictures import class_folders, data, formats, images
from mnv3.pictures.data import DataError
from mnv3.train.recipe import Recipe
from mnv3.train.splits import load_splits

COLOURS = ("blue", "green", "red")


def write(folder: Path, classes=COLOURS, count=2) -> Path:
    """A split of plain pictures; returns the data folder above it."""
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", (8, 8), name if name in COLOURS else "black").save(folder / name / f"{i}.png")
    return folder.parent


def splits(folder: Path, **kwargs) -> dict[str, data.Pictures]:
    return load_splits(Recipe(model="mnv3_small_cifar", data=str(folder), **kwargs))


def refused(folder: Path, **kwargs) -> str:
    with pytest.raises(DataError) as caught:
        splits(folder, **kwargs)
    return str(caught.value)


# Names of splits


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_validation_by_any_of_its_names(tmp_path, name, caplog):
    """As Roboflow and others export it; nothing of train is held out then (F2-04)."""
    write(tmp_path / "train")
    write(tmp_path / name, count=1)
    found = splits(tmp_path, val_fraction=0.5)
    assert {split: len(pictures) for split, pictures in found.items()} == {"train": 6, "val": 3}
    assert len(data.load(str(tmp_path), "val")) == 3
    assert not caplog.records


def test_two_folders_for_validation(tmp_path):
    for name in ("train", "val", "valid"):
        write(tmp_path / name)
    expected = f"{tmp_path}: val and valid are both read as val: put their pictures into one, or rename the other"
    assert refused(tmp_path) == expected
    shutil.rmtree(tmp_path / "valid")
    (tmp_path / "valid").symlink_to("val")
    assert list(splits(tmp_path)) == ["train", "val"], "two names of one folder"


def test_sisters_that_are_not_read_are_named(tmp_path, caplog):
    """Another split, and a class that lies beside train; not what holds no pictures, nor a run of ours."""
    for name in ("train", "test", "dev", ".cache", "__MACOSX"):
        write(tmp_path / name)
    write(tmp_path / "yellow")
    (tmp_path / "notes").mkdir()
    write(tmp_path / "runs" / "folder")
    (tmp_path / "runs" / "folder" / "recipe.yaml").write_text("model: mnv3_small\n")
    assert list(splits(tmp_path)) == ["train", "test"]
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{tmp_path}: not read: dev, yellow (only train, val or valid or validation, test are)"
    )


def test_where_the_split_may_be(tmp_path):
    """One folder above, one below, or in capitals."""
    for given, split, message in (
        (write(tmp_path / "a" / "pets" / "train").parent, "train", ". There is one in {0}/pets: give that"),
        (write(tmp_path / "b" / "train") / "train", "train", ". If this is it, give {0.parent}"),
        (write(tmp_path / "c" / "Train"), "train", ". Train is there: rename it to train"),
        (write(tmp_path / "d" / "Valid"), "val", ". Valid is there: rename it to valid"),
    ):
        with pytest.raises(DataError) as caught:
            data.load(str(given), split)
        expected = f"{given}: expected a folder {split} in it, with a folder of pictures for each class"
        assert str(caught.value) == expected + message.format(given)


# One folder too many


def test_train_in_train(tmp_path):
    """As zip files unpack: one class, loss 0 and 100 % without this (F2-06)."""
    write(tmp_path / "train" / "train")
    message = (
        f"{tmp_path}/train: has train in the place of classes, one folder too many: give {tmp_path}/train as the data"
    )
    assert refused(tmp_path, val_fraction=0.1) == message
    assert list(splits(tmp_path / "train")) == ["train"], "what it says works"
    write(tmp_path / "train" / "val")
    assert refused(tmp_path) == message.replace("has train in", "has train, val in")
    assert list(splits(tmp_path / "train")) == ["train", "val"]


@pytest.mark.parametrize("name", ["val", "valid"])
def test_train_in_train_and_val_in_val(tmp_path, name):
    write(tmp_path / "train" / "train")
    write(tmp_path / name / name)
    for split in ("train", name):
        folder = tmp_path / split
        message = (
            f"{folder}: has {split} in the place of classes, one folder too many: move what is in {folder}/{split}"
        )
        with pytest.raises(DataError) as caught:
            data.load(str(tmp_path), "val" if split == name else split)
        assert str(caught.value) == f"{message} up into {folder}"
        for path in (folder / split).iterdir():
            path.rename(folder / path.name)
        (folder / split).rmdir()
    assert list(splits(tmp_path)) == ["train", "val"], "what it says works"


def test_classes_that_are_called_like_splits(tmp_path):
    """A train is a vehicle."""
    assert splits(write(tmp_path / "train", classes=("bus", "train")))["train"].classes == ["bus", "train"]
    assert splits(write(tmp_path / "more" / "train", classes=("test", "train")))["train"].classes == ["test", "train"]


def test_one_class(tmp_path):
    folder = tmp_path / "train"
    write(folder, classes=("cat",))
    assert refused(tmp_path) == f"{folder}: has one class, cat, and training needs two or more"
    write(folder / "cat", classes=("tabby", "black"))
    assert refused(tmp_path).endswith(
        f". If black, tabby are the classes, move them from {folder}/cat up into {folder}"
    )
    assert data.load(str(tmp_path), "train").classes == ["cat"], "there is nothing to learn, but to look at"


# Links


def test_linked_folders_are_followed(tmp_path):
    """Where torchvision's ImageFolder reads as many (F2-05)."""
    from torchvision.datasets import ImageFolder

    write(tmp_path / "train", count=6)
    for name in COLOURS:
        write(tmp_path / "store", classes=(f"{name}2",), count=10)
        (tmp_path / "train" / name / "batch2").symlink_to(tmp_path / "store" / f"{name}2")
    found = data.load(str(tmp_path), "train")
    assert (len(found), found.labels.bincount().tolist()) == (48, [16] * 3)
    assert len(ImageFolder(tmp_path / "train")) == 48
    (tmp_path / "linked").symlink_to(tmp_path / "train")
    assert len(list(images.find(tmp_path / "linked"))) == 48


def test_links_in_circles(tmp_path, caplog):
    """To itself, to what is above it, to one that leads back, and a second link to the same pictures."""
    write(tmp_path / "train")
    blue = tmp_path / "train" / "blue"
    (blue / "again").symlink_to(blue)
    (blue / "above").symlink_to(tmp_path / "train")
    (blue / "self").symlink_to("self")
    other = tmp_path / "other"
    write(other, classes=("sea",))
    (other / "sea" / "back").symlink_to(blue)
    for name in ("sea", "sea2"):
        (blue / name).symlink_to(other / "sea")
    found = data.load(str(tmp_path), "train")
    assert found.labels.bincount().tolist() == [4, 2, 2], "no picture of another class, none twice"
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{tmp_path}/train: passed over: links to folders that are read already: 4; broken links: 1"
    )


# What is passed over


def test_what_is_passed_over_is_said_once(tmp_path, caplog):
    write(tmp_path / "train")
    for name in COLOURS:
        (tmp_path / "train" / name / "notes.txt").write_text("")
        (tmp_path / "train" / name / "._0.png").write_text("macOS's")
    (tmp_path / "train" / "red" / "Thumbs.db").write_text("")
    (tmp_path / "train" / "red" / "label").write_text("")
    (tmp_path / "train" / "red" / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "train" / "red" / "fifo.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "train" / "loose.png")
    assert len(data.load(str(tmp_path), "train")) == 6
    (record,) = caplog.records
    assert sorted(record.getMessage().removeprefix(f"{tmp_path}/train: passed over: ").split("; ")) == [
        "FIFOs and devices: 1",
        "broken links: 1",
        "pictures in no class's folder: 1",
        "without a picture's ending: 4 (3 .txt, 1 without one)",
    ]
    caplog.clear()
    assert len(list(images.find([tmp_path / "train" / "red", tmp_path / "train" / "blue"]))) == 4
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        f"{tmp_path}/train/red",
        f"{tmp_path}/train/blue",
    ]


def test_formats_that_want_a_package(tmp_path, caplog, monkeypatch):
    """The photos of a phone (F2-19): named with their package, or read where it is there."""
    for name in ("OPEN", "EXTENSION", "ID"):
        monkeypatch.setattr(Image, name, getattr(Image, name).copy())
    for kind in ("HEIF", "AVIF"):
        Image.OPEN.pop(kind, None)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # so that it cannot be imported
    monkeypatch.setitem(sys.modules, "pillow_avif", None)
    formats._register.cache_clear()
    write(tmp_path / "train")
    red = tmp_path / "train" / "red"
    for i, ending in enumerate(("heic", "HEIC", "avif")):
        (red / f"{i}.{ending}").write_bytes(b"\0\0\0\x18ftyp" + ending.lower().encode())
    assert len(data.load(str(tmp_path), "train")) == 6
    (record,) = caplog.records
    heic = ".heic: 2 (HEIC needs `pip install pillow-heif`)"
    avif = ".avif: 1 (AVIF needs `pip install pillow-avif-plugin`)"
    assert record.getMessage() == f"{tmp_path}/train: passed over: {heic}; {avif}"
    for path in red.glob("*.png"):
        path.unlink()
    assert refused(tmp_path).startswith(f"{tmp_path}/train: no pictures in class red (passed over {heic}; {avif})")
    with pytest.raises(images.PictureError, match=r"0\.heic: not a picture \(HEIC, which needs `pip install pillow-h"):
        images.load(red / "0.heic")

    def register():
        Image.register_open("HEIF", lambda file, name: Image.new("RGB", (8, 8), "red"), lambda start: True)
        Image.register_extension("HEIF", ".heic")

    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=register))
    formats._register.cache_clear()
    assert len(data.load(str(tmp_path), "train")) == 6, "two of them in HEIC"


def test_only_the_first_process_says_it(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    write(tmp_path / "train")
    write(tmp_path / "dev")
    (tmp_path / "train" / "red" / "notes.txt").write_text("")
    splits(tmp_path)
    assert not caplog.records


def test_many_endings_are_cut_off(tmp_path, caplog):
    for i in range(7):
        (tmp_path / f"x.{i}").write_text("")
    assert list(images.find(tmp_path)) == []
    assert caplog.records[0].getMessage() == (
        f"{tmp_path}: passed over: without a picture's ending: 7 (1 .0, 1 .1, 1 .2, 1 .3, 1 .4 ...)"
    )


# Names of classes


def test_unicode_forms_of_a_name_are_one_class(tmp_path):
    """macOS decomposes names, others do not (F2-20)."""
    names = ["café", "naïve", "über"]
    write(tmp_path / "train", classes=[unicodedata.normalize("NFC", name) for name in names])
    write(tmp_path / "val", classes=[unicodedata.normalize("NFD", name) for name in names])
    write(tmp_path / "val", classes=[unicodedata.normalize("NFC", names[0])], count=1)
    found = splits(tmp_path)
    assert found["train"].classes == found["val"].classes == [class_folders.composed(name) for name in names]
    assert found["val"].labels.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert torch.equal(found["train"].labels, torch.tensor([0, 0, 1, 1, 2, 2]))
