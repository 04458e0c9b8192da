"""Pictures with classes, from folders as people have them and from CIFAR."""

from urllib.error import URLError

import pytest
import torch
from picture_files import pixels, write
from PIL import Image
from torch.utils.data import Dataset

from mnv3.pictures import data
from mnv3.pictures.data import DataError


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


@pytest.mark.parametrize(("content", "name"), [(b"no picture", "0.png"), (b"", "2.png"), (None, "2.png")])
def test_broken_picture_among_small_ones(tmp_path, content, name):
    folder, broken = write(tmp_path / "train"), tmp_path / "train" / "dog" / name
    broken.write_bytes(broken.read_bytes()[:120] if content is None else content)
    with pytest.raises(DataError, match=f"^{broken}: (not a picture|cannot be read)"):
        data.load(folder, "train")


# CIFAR


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_missing(tmp_path, name):
    message = f"no {name.upper()} in {tmp_path}, or it is damaged: give its folder .data_dir., or let torchvision"
    with pytest.raises(DataError, match=message):
        data.load(name, "train", data_dir=str(tmp_path))
    with pytest.raises(DataError, match=f"{name} has no split 'val': train or test"):
        data.load(name, "val", data_dir=str(tmp_path))


def test_cifar_cannot_be_downloaded(tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(DataError, match=f"cannot download CIFAR10 to {tmp_path}: .*no route to host"):
        data.load("cifar10", "train", data_dir=str(tmp_path), download=True)


# Workers


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
