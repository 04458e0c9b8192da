"""Pictures as people have them."""

import io
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps, features
from torchvision.transforms.functional import pil_to_tensor

from mnv3 import images
from mnv3.images import PictureError


@pytest.fixture
def photo() -> Image.Image:
    """A picture with detail in every channel, not symmetric in any way."""
    ramp = torch.linspace(0, 255, 60 * 40).reshape(40, 60)
    pixels = torch.stack([ramp, ramp.flip(1) / 2, (ramp * 3) % 256], -1)
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def save(picture, path, **kwargs):
    picture.save(path, **kwargs)
    return path


def difference(a, b) -> float:
    assert a.size == b.size
    return (pil_to_tensor(a).float() - pil_to_tensor(b).float()).abs().max().item()


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".tiff", ".gif", ".ppm"])
def test_formats(photo, tmp_path, suffix):
    loaded = images.load(save(photo, tmp_path / f"x{suffix}", **({"lossless": True} if suffix == ".webp" else {})))
    assert (loaded.mode, loaded.size) == ("RGB", photo.size)
    assert difference(loaded, photo) <= (0 if suffix != ".gif" else 60)


@pytest.mark.parametrize("mode", ["L", "P", "1", "YCbCr", "CMYK", "LAB"])
def test_modes(photo, tmp_path, mode):
    if mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        changed = ImageCms.applyTransform(photo, ImageCms.buildTransform(srgb, lab, "RGB", "LAB"))
    else:
        changed = photo.convert(mode)
    path = save(
        changed,
        tmp_path / ("x.jpg" if mode in ("CMYK", "YCbCr") else "x.tiff"),
        **({"quality": 100} if mode == "CMYK" else {}),
    )
    loaded = images.load(path)
    assert loaded.mode == "RGB"
    if mode in ("L", "CMYK", "1"):
        expected = Image.open(path).convert("RGB")
        assert difference(loaded, expected) == 0


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(tmp_path, mode):
    picture = Image.new("RGBA", (4, 1), (200, 0, 0, 0))
    picture.putpixel((0, 0), (200, 0, 0, 255))
    if mode == "RGBA":
        picture.putpixel((1, 0), (200, 0, 0, 128))
    loaded = images.load(save(picture.convert(mode), tmp_path / "x.png"))
    assert loaded.getpixel((3, 0)) == (255, 255, 255), "what is hidden stays hidden"
    assert loaded.getpixel((0, 0)) != (255, 255, 255)
    if mode == "RGBA":
        assert loaded.getpixel((1, 0)) == (227, 127, 127)


@pytest.mark.parametrize("suffix", [".png", ".tiff", "-big-endian.tiff", ".pgm"])
def test_16_bit_grey_is_scaled_not_clipped(photo, tmp_path, suffix):
    """Also a dark one, whose brightest pixel is not the white of the format."""
    for grey in (photo.convert("L"), photo.convert("L").point(lambda value: value // 4)):
        deep = np.asarray(grey).astype(np.uint16) * 257
        picture, path = Image.fromarray(deep), tmp_path / f"x{suffix}"
        if "big-endian" in suffix:
            picture = Image.frombytes("I;16B", grey.size, deep.astype(">u2").tobytes())
        if suffix == ".pgm":
            path.write_bytes(b"P5 60 40 65535\n" + deep.astype(">u2").tobytes())
        else:
            save(picture, path)
        assert Image.open(path).mode.startswith("I")
        assert difference(images.load(path), grey.convert("RGB")) == 0


@pytest.mark.parametrize(
    ("dtype", "white"), [("int32", 255), ("int32", 65535), ("int32", 2**31 - 1), ("float32", 1), ("float32", 255)]
)
def test_32_bit_numbers(tmp_path, dtype, white):
    """No such file says what its white is: the least usual number is taken that holds its brightest pixel."""
    ramp = np.arange(256).reshape(16, 16)
    deep = Image.fromarray((ramp * (white / 255)).astype(dtype))
    loaded = images.load(save(deep, tmp_path / "x.tiff"))
    assert np.abs(np.asarray(loaded)[..., 0] - ramp).max() <= (0 if white in (1, 255) else 1)


@pytest.mark.parametrize("values", [[0, 0], [-5, -1], [np.nan, 1], [np.inf, 0]])
def test_odd_numbers_are_no_error(tmp_path, values):
    path = save(Image.fromarray(np.array([values], dtype=np.float32)), tmp_path / "x.tiff")
    assert images.load(path).mode == "RGB"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(photo, tmp_path, orientation):
    """Every orientation of a camera gives the upright picture."""
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = photo.transpose(turns[orientation]) if orientation > 1 else photo
    exif = Image.Exif()
    exif[0x0112] = orientation
    for suffix in (".png", ".webp", ".tiff"):
        kwargs = {"lossless": True} if suffix == ".webp" else {}
        loaded = images.load(save(stored, tmp_path / f"x{suffix}", exif=exif, **kwargs))
        assert difference(loaded, photo) == 0
    upright = images.load(save(photo, tmp_path / "upright.jpg", quality=95, subsampling=0))
    for name, kwargs in (("x.jpg", {}), ("two.mpo", {"save_all": True, "append_images": [stored]})):
        loaded = images.load(save(stored, tmp_path / name, exif=exif, quality=95, subsampling=0, **kwargs))
        assert (pil_to_tensor(loaded).float() - pil_to_tensor(upright).float()).abs().mean() < 3


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_no_reason_to_refuse_a_picture(photo, tmp_path):
    for junk in (b"Exif\0\0junk", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12"):
        loaded = images.load(save(photo, tmp_path / "x.jpg", exif=junk))
        assert loaded.size == photo.size


def test_one_pixel(tmp_path):
    assert images.load(save(Image.new("RGB", (1, 1), "red"), tmp_path / "x.png")).size == (1, 1)


def test_huge_pictures_are_read_without_a_warning(tmp_path):
    path = save(Image.new("L", (12000, 9000), 128), tmp_path / "x.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert images.load(path).size == (12000, 9000)


def test_threads_leave_the_warning_filters_as_they_were(photo, tmp_path):
    path = save(photo, tmp_path / "x.png")
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(images.load, [path] * 1000))
    assert list(warnings.filters) == before


@pytest.mark.parametrize("size", [(20000, 1), (1, 20000), (5000, 40)])
def test_strips_are_cropped_around_the_middle(tmp_path, size):
    """Resizing 20000x1 pixels to 256 high would take 15 GB."""
    picture = Image.new("RGB", size, "black")
    middle = (size[0] // 2, size[1] // 2)
    picture.putpixel(middle, (255, 0, 0))
    loaded = images.load(save(picture, tmp_path / "x.png"))
    assert max(loaded.size) == images.MAX_ASPECT * min(loaded.size)
    assert (255, 0, 0) in loaded.crop(
        (loaded.width // 2 - 1, loaded.height // 2 - 1, loaded.width // 2 + 2, loaded.height // 2 + 2)
    ).get_flattened_data()


def test_ordinary_panoramas_are_whole(tmp_path):
    assert images.load(save(Image.new("RGB", (800, 100)), tmp_path / "x.png")).size == (800, 100)


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    path = save(frames[0], tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert images.load(path).getpixel((0, 0)) == (255, 0, 0)


def truncated_jpeg(photo):
    data = io.BytesIO()
    photo.resize((600, 400)).save(data, "jpeg")
    return data.getvalue()[: len(data.getvalue()) // 2]


def broken_avif(photo):
    data = io.BytesIO()
    photo.save(data, "avif")
    return data.getvalue()[:-100]


def bomb(_):
    data = io.BytesIO()
    Image.new("1", (20000, 20000)).save(data, "png")
    return data.getvalue()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda _: b"just text", "not a picture"),
        (lambda _: b"", r"not a picture \(the file is empty\)"),
        (lambda _: b"\xff\xd8\xff\xe0" + b"\0" * 100, "not a picture|cannot be read"),
        (truncated_jpeg, "cannot be read: .*truncated"),
        (broken_avif, "cannot be read: ."),
        (lambda _: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "not a picture"),
        (lambda _: b"\x89HDF\r\n\x1a\n" + b"\0" * 100, "not a picture"),
        (bomb, "cannot be read: .*decompression bomb"),
    ],
    ids=["text", "empty", "jpeg header only", "truncated", "avif", "eps", "hdf5", "bomb"],
)
def test_bad_files_are_named_with_a_reason(photo, tmp_path, make, reason):
    if make is broken_avif and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    path = tmp_path / "x.jpg"
    path.write_bytes(make(photo))
    with pytest.raises(PictureError, match=rf"/x\.jpg: .*({reason})"):
        images.load(path)


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(PictureError, match=r"/none\.jpg: no such file"):
        images.load(tmp_path / "none.jpg")
    with pytest.raises(PictureError) as caught:
        images.load(tmp_path)
    assert str(caught.value) == f"{tmp_path}: cannot be read: Is a directory"


def test_find(photo, tmp_path):
    hidden = (".hidden.png", "._a.jpg", ".thumbnails/a.png", "sub/.cache/a.jpg")
    none = ("notes.txt", "sub/data.json", "data.h5", "clip.mpg", "figure.eps", "none")
    for name in ("b.PNG", "a.jpg", "sub/c.webp", "sub/deep/d.jpeg", *hidden, *none):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    found = [path.relative_to(tmp_path).as_posix() for path in images.find([tmp_path])]
    assert found == ["a.jpg", "b.PNG", "sub/c.webp", "sub/deep/d.jpeg"]
    named = list(images.find([tmp_path / "notes.txt", str(tmp_path / "sub"), "nowhere.png", tmp_path / ".hidden.png"]))
    assert [path.name for path in named] == ["notes.txt", "c.webp", "d.jpeg", "nowhere.png", ".hidden.png"]
    assert [path.name for path in images.find(tmp_path / ".thumbnails")] == ["a.png"]
    assert [path.name for path in images.find(str(tmp_path / "a.jpg"))] == ["a.jpg"], "a single path, not its letters"
    assert list(images.find([tmp_path / "a.jpg"] * 2)) == [tmp_path / "a.jpg"] * 2


def test_what_is_loaded_is_what_timm_would_see(photo, tmp_path):
    path = save(photo, tmp_path / "x.jpg")
    assert difference(images.load(path), ImageOps.exif_transpose(Image.open(path)).convert("RGB")) == 0
