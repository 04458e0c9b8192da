"""Pictures as people have them."""

import io
import os
import random
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError, features
from torchvision.transforms.functional import pil_to_tensor

from mnv3.pictures import deep, images
from mnv3.pictures.images import PictureError


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


# Numbers of 12, 16 and 32 bits

TIFF_TYPES = {1: "B", 2: "s", 3: "H", 4: "I", 8: "h", 9: "i", 11: "f"}
RAMP = np.arange(256)
PNG = b"\x89PNG\r\n\x1a\n"


def write_tiff(path, values, bits, tags=(), *, order="<"):
    """A grey TIFF by hand, its numbers packed as they are; `tags` are (number, type, value), as TIFF 6.0 has them."""
    height, width = values.shape
    if bits == 12:
        pairs = values.astype(np.uint32).reshape(-1, 2)
        words = (pairs[:, 0] << 12 | pairs[:, 1])[:, None]
        content = ((words >> [16, 8, 0]) & 255).astype(np.uint8).tobytes()
    else:
        content = values.astype(values.dtype.newbyteorder(order)).tobytes()
    found = {256: (4, width), 257: (4, height), 258: (3, bits), 259: (3, 1), 262: (3, 1), 273: (4, 8), 277: (3, 1)}
    found |= {278: (4, height), 279: (4, len(content))} | {number: (kind, value) for number, kind, value in tags}
    directory = struct.pack(order + "H", len(found))
    for number, (kind, value) in sorted(found.items()):
        directory += struct.pack(order + "HHI", number, kind, 1) + struct.pack(order + TIFF_TYPES[kind], value).ljust(
            4, b"\0"
        )
    start = b"II*\0" if order == "<" else b"MM\0*"
    path.write_bytes(start + struct.pack(order + "I", 8 + len(content)) + content + directory + b"\0" * 4)
    return path


def grey_of(path) -> np.ndarray:
    loaded = np.asarray(images.load(path))
    assert (loaded == loaded[..., :1]).all()
    return loaded[..., 0]


def chunks(*named) -> bytes:
    """Chunks of a PNG, from names and contents."""
    return b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in named
    )


def png_16(path, values, *more):
    """A 16-bit grey PNG with more chunks after its header."""
    data = io.BytesIO()
    Image.fromarray(values.astype(np.uint16)).save(data, "png")
    path.write_bytes(data.getvalue()[:33] + chunks(*more) + data.getvalue()[33:])
    return path


@pytest.fixture
def says(monkeypatch, caplog):
    """What is logged, with nothing said before."""
    monkeypatch.setattr(deep, "_warned", set())
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_gain_does_not_depend_on_the_picture(tmp_path, suffix):
    """256 of 65535 was black and 255 white: two exposures a count apart were 255-fold apart (F2-07)."""
    for peak in (200, 255, 256, 300, 1000, 4095, 65535):
        ramp = np.linspace(0, peak, 64).round().astype(np.uint16).reshape(8, 8)
        found = grey_of(save(Image.fromarray(ramp), tmp_path / f"{peak}{suffix}"))
        assert np.array_equal(found, (ramp / 257 + 0.5).astype(np.uint8))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("bits", "dtype", "tags", "black", "white"),
    [
        (16, "u2", (), 0, 65535),
        (12, "u2", (), 0, 4095),
        (16, "u2", [(341, 3, 4095)], 0, 4095),
        (16, "u2", [(340, 3, 1000), (341, 3, 3000)], 1000, 3000),
        (16, "u2", [(280, 3, 1000), (281, 3, 3000)], 0, 65535),  # statistics, says TIFF 6.0
        (16, "u2", [(341, 3, 0)], 0, 65535),  # nonsense
        (16, "u2", [(341, 2, b"dull")], 0, 65535),
        (16, "u2", [(262, 3, 0)], 65535, 0),  # white is zero
        (16, "i2", [(339, 3, 2)], 0, 32767),
        (16, "i2", [(339, 3, 2), (340, 8, -1000), (341, 8, 3000)], -1000, 3000),
        (32, "i4", [(339, 3, 2)], 0, 2**31 - 1),
        (32, "u4", [(339, 3, 1)], 0, 2**32 - 1),
        (32, "u4", [(339, 3, 1), (341, 4, 4095)], 0, 4095),
        (32, "f4", [(339, 3, 3)], 0, 1),
        (32, "f4", [(339, 3, 3), (340, 11, -1000.0), (341, 11, 3000.0)], -1000, 3000),
    ],
)
def test_tiff_by_its_type_and_tags(tmp_path, bits, dtype, tags, black, white, order):
    """A ramp from black to white is one in 8 bits too, whatever the file calls them."""
    exact = black + RAMP / 255 * (white - black)
    values = (exact if dtype == "f4" else exact.round()).astype(dtype).reshape(16, 16)
    path = write_tiff(tmp_path / "x.tiff", values, bits, tags, order=order)
    try:
        with Image.open(path):
            pass
    except UnidentifiedImageError:
        with pytest.raises(PictureError, match="not a picture"):
            images.load(path)
        assert order == ">"
        assert (262, 3, 0) in tags or dtype == "u4" or bits == 12, "Pillow has no such mode"
        return
    assert np.abs(grey_of(path).astype(int).flatten() - RAMP).max() <= (1 if abs(white - black) < 5000 else 0)


def test_png_of_16_bits(tmp_path):
    """sBIT says how many bits a sample had before it was scaled to 16 (PNG, 11.3.2.7): white stays where it is."""
    values = (RAMP * 257).reshape(16, 16)
    for more in ((), [(b"sBIT", bytes([12]))]):
        assert np.array_equal(grey_of(png_16(tmp_path / "x.png", values, *more)).flatten(), RAMP)
    found = grey_of(png_16(tmp_path / "x.png", values, (b"tRNS", struct.pack(">H", 100 * 257)))).flatten()
    assert np.array_equal(found, np.where(RAMP == 100, 255, RAMP)), "what is transparent is white"


@pytest.mark.parametrize("white", [4095, 65535])
def test_pgm_says_its_white(tmp_path, white):
    values = (RAMP / 255 * white).round().astype(">u2")
    (tmp_path / "x.pgm").write_bytes(b"P5 16 16 %d\n" % white + values.tobytes())
    assert np.array_equal(grey_of(tmp_path / "x.pgm").flatten(), RAMP)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colours_of_16_bits(tmp_path, mode):
    """Pillow takes the upper 8 bits of each."""
    channels = {"RGB": 3, "RGBA": 4, "LA": 2}[mode]
    values = np.repeat((RAMP * 257).astype(">u2")[:, None], channels, 1)
    if channels != 3:
        values[:, -1] = 65535
    kind = {"RGB": 2, "RGBA": 6, "LA": 4}[mode]
    rows = b"".join(b"\0" + row.tobytes() for row in values.reshape(16, 16 * channels))
    header = struct.pack(">IIBBBBB", 16, 16, 16, kind, 0, 0, 0)
    content = chunks((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    (tmp_path / "x.png").write_bytes(PNG + content)
    assert np.array_equal(grey_of(tmp_path / "x.png").flatten(), RAMP)


def test_numbers_that_do_not_fit_their_type_are_said_once(tmp_path, says):
    """Numbers of a 12-bit sensor in a file of 16 bits without a word: nearly black, and said so."""
    for i in range(2):
        path = save(Image.fromarray(np.full((4, 4), 4095, np.uint16)), tmp_path / f"{i}.png")
        assert grey_of(path).max() == 16
        save(Image.fromarray(np.full((4, 4), 300, np.float32)), tmp_path / f"{i}.tiff")
        assert grey_of(tmp_path / f"{i}.tiff").max() == 255
    advice = "a file has to say so where another number is white (docs/pictures.md); said once"
    assert says() == [
        f"{tmp_path}/0.png: nearly black, its numbers end at 4095, and 65535 is white: {advice}",
        f"{tmp_path}/0.tiff: has numbers up to 300, but 1 is white: {advice}",
    ]


def test_the_tag_that_the_docs_advise(tmp_path, says):
    deep_picture = Image.fromarray((RAMP / 255 * 4095).round().astype(np.uint16).reshape(16, 16))
    path = save(deep_picture, tmp_path / "x.tiff", tiffinfo={341: 4095})
    assert np.abs(grey_of(path).flatten().astype(int) - RAMP).max() <= 0
    assert says() == []


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


def test_large_pictures_are_read_without_a_warning(photo, tmp_path, monkeypatch):
    path = save(photo, tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60 * 40 - 1)  # Pillow warns above, and refuses twice as many
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert images.load(path).size == photo.size


def test_threads_leave_the_warning_filters_as_they_were(photo, tmp_path):
    path = save(photo, tmp_path / "x.png")
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(images.load, [path] * 200))
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


def png_header(width, height) -> bytes:
    """A PNG of one byte of content."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return PNG + chunks((b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b""))


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
        (lambda _: png_header(20000, 20000), "cannot be read: .*decompression bomb"),
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


@pytest.mark.parametrize("size", [(1, 170_000_000), (100_001, 10), (11_000, 10_001)])
def test_too_large_by_the_header(tmp_path, size):
    """The first took 4.9 GB."""
    (tmp_path / "x.png").write_bytes(png_header(*size))
    for read in (images.load, images.size):
        with pytest.raises(PictureError) as caught:
            read(tmp_path / "x.png")
        assert str(caught.value) == (
            f"{tmp_path}/x.png: cannot be read: {size[0]} x {size[1]} pixels are too many: of a PNG, up to 110,000,000 "
            "are read, and 100,000 along a side; make it smaller first"
        )


@pytest.mark.parametrize("size", [(1, 170_000_000), (5000, 16)])
def test_icons_that_hold_something_else(tmp_path, size):
    """Pillow decodes it in Image.open, and says afterwards that its size is another one."""
    small, path = io.BytesIO(), tmp_path / "x.ico"
    Image.new("RGB", (16, 16)).save(small, "png")
    for content, good in ((small.getvalue(), True), (png_header(*size), False)):
        path.write_bytes(struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(content), 22) + content)
        if good:
            assert images.load(path).size == (16, 16)
        else:
            with pytest.raises(PictureError, match=r"x\.ico: cannot be read: an icon of more than 4096 pixels"):
                images.load(path)


def test_jpeg_with_scans_without_end(photo, tmp_path):
    """Each of a few bytes goes over all of a picture."""
    content = save(photo, tmp_path / "x.jpg", progressive=True).read_bytes()
    assert images.load(tmp_path / "x.jpg").size == photo.size
    last = content.rindex(b"\xff\xda")
    (tmp_path / "x.jpg").write_bytes(content[:-2] + content[last:-2] * 200 + content[-2:])
    with pytest.raises(PictureError, match=r"x\.jpg: cannot be read: a JPEG of 2\d\d scans, of at most 100"):
        images.load(tmp_path / "x.jpg")


def test_formats_that_pillow_decodes_in_python(tmp_path):
    (tmp_path / "x.pgm").write_bytes(b"P5 4000 2001 4095\n")
    with pytest.raises(PictureError, match="of a PPM, up to 8,000,000 are read"):
        images.load(tmp_path / "x.pgm")
    (tmp_path / "y.pgm").write_bytes(b"P5 4000 2001 255\n" + bytes(4000 * 2001))
    assert images.load(tmp_path / "y.pgm").size == (4000, 2001)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4", "a Git LFS pointer: run `git lfs pull`"),
        (b"\n<!DOCTYPE html><html>", "an HTML page"),
        (b"\xef\xbb\xbf<svg>", "an SVG drawing"),
        (b"%PDF-1.7", "a PDF document"),
        (b"PK\x03\x04abc", "a zip file"),
    ],
)
def test_what_a_file_is_that_is_no_picture(tmp_path, content, what):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(PictureError) as caught:
        images.load(tmp_path / "x.jpg")
    assert str(caught.value) == f"{tmp_path}/x.jpg: not a picture ({what})"


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A file with bytes changed, cut off or put in, mostly in its header."""
    data = bytearray(data)
    how = rng.randrange(4)
    for _ in range(rng.choice((1, 1, 2, 8))):
        place = rng.randrange(len(data) if rng.random() < 0.5 else min(len(data), 80))
        if how == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif how == 1:
            data[place : place + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\1\0\0"))
        elif how == 2:
            data = data[: max(1, place)]
        else:
            data[place:place] = rng.randbytes(rng.choice((1, 4, 40)))
    return bytes(data)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif", "tiff", "bmp", "ico", "ppm"])
def test_damaged_files(photo, tmp_path, kind):
    """A picture, or one line that names the file."""
    rng, original, path = random.Random(kind), io.BytesIO(), tmp_path / "x.png"
    photo.save(original, kind)
    refused = []
    for _ in range(120):
        path.write_bytes(mutated(original.getvalue(), rng))
        try:
            assert images.load(path).mode == "RGB"
        except PictureError as error:
            refused.append(str(error))
    assert 0 < len(refused) < 120
    assert all(message.startswith(f"{path}: ") and message.isprintable() for message in refused)


def test_large_pictures_are_converted_part_by_part(tmp_path, monkeypatch):
    """And give the same as whole."""
    rng = np.random.default_rng(0)
    for mode in ("RGBA", "LA", "P", "CMYK", "1", "I;16"):
        pixels = rng.integers(0, 65536, (37, 53, 4))
        whole = Image.fromarray((pixels >> 8).astype(np.uint8), "RGBA")
        whole = Image.fromarray(pixels[..., 0].astype(np.uint16)) if mode == "I;16" else whole.convert(mode)
        path = save(whole, tmp_path / f"{mode[0]}.tiff")
        monkeypatch.setattr(images, "PART", 2**20)
        expected = images.load(path)
        monkeypatch.setattr(images, "PART", 200)
        assert difference(images.load(path), expected) == 0


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(PictureError, match=r"/none\.jpg: no such file"):
        images.load(tmp_path / "none.jpg")
    with pytest.raises(PictureError) as caught:
        images.load(tmp_path)
    assert str(caught.value) == f"{tmp_path}: a folder, not a picture"
    os.mkfifo(tmp_path / "fifo.png")
    for path in (tmp_path / "fifo.png", "/dev/zero"):
        with pytest.raises(PictureError, match="a FIFO or device, not a picture"):
            images.load(path)
        with pytest.raises(PictureError, match="a FIFO or device, not a picture"):
            images.size(path)


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


def test_files_come_in_the_order_of_their_paths(tmp_path):
    """One by one, though they are not sorted as a whole: a folder stands where its name does."""
    for name in ("b.png", "a/z.png", "a.png", "a b/c/x.png", "a b/a.png", "a/b/y.png", "b/1.png", "B.png", "a-.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list(images.find(tmp_path)) == sorted(tmp_path.rglob("*.png"))
