"""Augmentation of held pictures and of files."""

import multiprocessing

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from picture_files import pixels, write
from PIL import Image
from timm.data.random_erasing import RandomErasing

from mnv3.errors import DataError
from mnv3.pictures import data
from mnv3.pictures.data import Pictures, files_loader
from mnv3.train.augment import Augment, TrainFiles, erase, resize
from mnv3.train.draws import draw
from mnv3.train.recipe import Recipe
from mnv3.train.seeds import seed_all

NONE, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def recipe(**kwargs) -> Recipe:
    return Recipe(**({"model": "mnv3_small_cifar", "augment": "none"} | kwargs))


def augment(mean=NONE, std=ONE, **kwargs) -> Augment:
    return Augment(recipe(**kwargs), mean, std)


def cropped(augmented: Augment, x) -> torch.Tensor:
    """Pictures by draws of PyTorch's global generator."""
    return augmented.crop(x, augmented.draw(len(x), x.shape[2:], 32))


def batch(augmented: Augment, x, size: int) -> torch.Tensor:
    return augmented.batch(x, size, augmented.draw(len(x), x.shape[2:], size))


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
    seed_all(0)
    x = pixels(3, *size)
    possible, ways = candidates(x, min(crop, min(size) - 1), flip).unique(dim=0, return_counts=True)
    found = cropped(augment(crop=crop, flip=flip), x.expand(1000, 3, *size))
    assert (found.dtype, found.shape) == (torch.float32, (1000, 3, *size))
    same = (found[:, None] == possible).flatten(2).all(2)
    assert (same.sum(1) == 1).all()
    expected = 1000 * ways / ways.sum()
    assert ((same.sum(0) - expected).abs() < 5 * expected.sqrt()).all()


def test_crop_of_different_pictures():
    seed_all(0)
    x = pixels(16, 3, 4, 4)
    found = cropped(augment(crop=2), x)
    for one, picture in zip(found, x, strict=True):
        assert (candidates(picture, 2, True) == one).flatten(1).all(1).any(), "pictures keep their place"
    seed_all(0)
    assert torch.equal(cropped(augment(crop=2), x), found)
    assert not torch.equal(cropped(augment(crop=2), x), found)


def test_one_pixel():
    assert cropped(augment(crop=4), pixels(2, 3, 1, 1)).equal(pixels(2, 3, 1, 1).float())


def test_no_augmentation_normalises_exactly():
    x, mean, std = pixels(5, 3, 8, 8), (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
    plain = augment(crop=0, flip=False)
    assert torch.equal(cropped(plain, x), x.float())
    assert torch.equal(batch(plain, x, 8), x / 255)
    found = batch(augment(mean, std, crop=0, flip=False), x, 8)
    scaled = (x.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(found.double(), scaled, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [4, 6, 8, 11])
def test_resize(size):
    x = pixels(2, 3, 8, 6)
    found = batch(augment(crop=0, flip=False), x, size)
    expected = F.interpolate(x.float(), size=(size, size), mode="bilinear", antialias=True)
    assert torch.equal(found, expected / 255)
    square = x[..., :6, :].float()
    assert resize(square, 6) is square


def test_normalisation_default_range():
    """Of ImageNet's mean and std: black and white become what they are for timm."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    x = torch.stack([torch.zeros(3, 4, 4), torch.full((3, 4, 4), 255)]).to(torch.uint8)
    found = batch(augment(mean, std), x, 4)
    for value, picture in zip((0, 1), found, strict=True):
        expected = [(value - m) / s for m, s in zip(mean, std, strict=True)]
        assert picture.mean((1, 2)).tolist() == pytest.approx(expected, abs=1e-5)


def test_erasing():
    x = pixels(64, 3, 8, 8)
    seed_all(0)
    found = batch(augment(crop=0, flip=False, erase=0.5), x, 8)
    changed = (found != x / 255).any(1)
    assert 16 < changed.flatten(1).any(1).sum() < 48
    assert changed.flatten(1).float().mean(1).max() < 0.6, "a part of each"
    seed_all(0)
    assert torch.equal(batch(augment(crop=0, flip=False, erase=0.5), x, 8), found)
    assert (batch(augment(crop=0, flip=False, erase=1), x, 8) != x / 255).flatten(1).any(1).sum() > 60


@pytest.mark.parametrize("size", [8, 32])
def test_boxes_are_those_of_timm(size):
    """The same shares of pictures, areas, sides and places, and noise of mean 0 and deviation 1."""
    seed_all(0)
    count = 4000
    ours = torch.zeros(count, 3, size, size)
    erase(ours, draw(recipe(erase=0.6), count, (size, size), size))
    theirs = RandomErasing(0.6, mode="pixel", device="cpu")(torch.zeros(count, 3, size, size))

    def facts(x):
        changed = (x != 0).any(1)
        some, pixels = changed.flatten(1).any(1), x[x != 0]
        height, width = (changed[some].any(axis).sum(1).double() for axis in (2, 1))
        assert torch.equal(changed[some].sum((1, 2)), (height * width).long()), "a box"
        middle = torch.stack([changed[some].any(axis).double() @ torch.arange(size).double() for axis in (2, 1)])
        means = [some.double().mean(), *(v.mean() for v in (height, width, height * width, (height / width).log()))]
        spread = [height.std(), width.std(), (height * width).std(), *(middle / torch.stack((height, width))).std(1)]
        return torch.stack([*means, *spread, *(middle / torch.stack((height, width))).mean(1), pixels.std()])

    torch.testing.assert_close(facts(ours), facts(theirs), rtol=0.06, atol=0.03)
    assert abs(ours[ours != 0].mean()) < 0.02


def test_several_processes_make_the_pictures_of_one():
    x, augmented = pixels(12, 3, 8, 8), augment(erase=0.5)
    draws = augmented.draw(12, (8, 8), 8, torch.Generator().manual_seed(0))
    whole = augmented.batch(x, 8, draws)
    parts = [augmented.batch(x[start : start + 4], 8, draws.part(start, start + 4)) for start in (0, 4, 8)]
    assert torch.equal(torch.cat(parts), whole)
    assert len(draws.erased) > 3


@pytest.mark.parametrize("size", [8, 12])
def test_on_a_device_without_a_look_at_it(size):
    """All is on the device but the draws: 'meta' has no numbers, and no operator takes tensors of two devices."""
    meta = torch.device("meta")
    augmented = Augment(recipe(erase=0.9), NONE, ONE, meta)
    draws = augmented.draw(6, (8, 8), size)
    found = augmented.batch(pixels(6, 3, 8, 8).to(meta), size, draws)
    assert (found.shape, found.device) == ((6, 3, size, size), meta)
    assert {value.device.type for value in vars(draws).values() if torch.is_tensor(value)} == {"cpu"}


@pytest.mark.parametrize("policy", ["trivial", "rand"])
def test_policies(policy):
    x = pixels(3, 16, 16).expand(12, 3, 16, 16)
    seed_all(0)
    augmented = augment(crop=0, flip=False, augment=policy)
    found = batch(augmented, x, 16)
    assert (found.dtype, found.shape) == (torch.float32, x.shape)
    assert found.flatten(1).unique(dim=0).shape[0] > 6, "each by its own draw"
    seed_all(0)
    assert torch.equal(batch(augmented, x, 16), found)


def test_files_are_not_cropped_again():
    x = pixels(2, 3, 8, 8).float()
    assert torch.equal(batch(augment(), x, 8), x / 255)


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
    loaded = {workers: list(files_loader(dataset, KEYS, workers)) for workers in (0, 2)}
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
    batches = files_loader(TrainFiles(found, recipe(), None, 8), [[(0, 1)], [(1, 1)], [(0, 1)]], workers)
    assert next(batches).shape == (1, 3, 8, 8)
    with pytest.raises(DataError) as caught:
        next(batches)
    assert str(caught.value) == f"{broken}: not a picture"
    assert not multiprocessing.active_children(), "they would be waited for, ten seconds, at any time later"
