"""Pictures become the same input in the page as in Python, to the bit: resize.js against timm on Pillow."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from timm.data.transforms_factory import transforms_imagenet_eval

from mnv3.demo.site import FILTERS, TEMPLATES, preprocessing
from mnv3.pictures import images

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# width and height of a picture; side, share and kind of the crop
SHAPES = [
    (61, 47, 32, 0.875, "center"),  # smaller in both directions, with odd rests
    (47, 62, 32, 0.9, "center"),
    (20, 13, 24, 1.0, "center"),  # larger
    (32, 32, 32, 1.0, "center"),  # as it is
    (300, 12, 16, 0.5, "center"),  # a strip, of which the middle is read
    (23, 90, 16, 0.9, "center"),  # tall: columns first
    (40, 30, 24, 0.6, "squash"),  # not tall, but only columns become shorter
    (51, 33, 24, 0.75, "squash"),
    (50, 31, 24, 1.0, "border"),  # padded
    (31, 50, 25, 0.8, "border"),
    (15, 28, 24, 0.875, "border"),
]
PROGRAM = """
const fs = require("fs"), source = fs.readFileSync(process.argv[1], "utf8");
const preprocess = new Function(source + "; return preprocess")();
const results = JSON.parse(fs.readFileSync(0, "utf8")).map(({width, height, rgba, input}) => {
  const bytes = Uint8ClampedArray.from(Buffer.from(rgba, "hex"));
  const readRows = (top, count) => bytes.slice(top * width * 4, (top + count) * width * 4);
  return Buffer.from(preprocess(width, height, readRows, input)).toString("hex");
});
console.log(JSON.stringify(results));
"""


def cases():
    for i, shape in enumerate(SHAPES):
        for name in FILTERS if i < 3 else (FILTERS[i % len(FILTERS)], "bicubic"):
            yield shape, name, 1 if i % 3 == 1 else 3


def test_every_filter_crop_and_size(tmp_path):
    if not shutil.which("node"):
        pytest.skip("needs node")
    rng, asked, expected = np.random.default_rng(0), [], []
    for (width, height, size, crop_pct, crop_mode), interpolation, channels in cases():
        picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        mean = MEAN if channels == 3 else [0.449]
        options = {"crop_pct": crop_pct, "crop_mode": crop_mode, "interpolation": interpolation, "mean": mean}
        metadata = options | {"input_size": [channels, size, size], "dynamic": [], "batch": 1, "std": STD[:channels]}
        case = {"width": width, "height": height, "rgba": picture.convert("RGBA").tobytes().hex()}
        asked.append(case | {"input": preprocessing(metadata | {"normalize": True})})
        picture.save(tmp_path / "picture.png")
        read = images.load(tmp_path / "picture.png").convert("L" if channels == 1 else "RGB")
        expected.append(transforms_imagenet_eval(size, **options, normalize=False)(read).numpy())
    command = ["node", "-e", PROGRAM, str(TEMPLATES / "resize.js")]
    result = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    for case, answer, reference in zip(cases(), json.loads(result.stdout), expected, strict=True):
        pixels = np.frombuffer(bytes.fromhex(answer), np.uint8).reshape(reference.shape)
        assert (pixels == reference).all(), (case, np.abs(pixels.astype(int) - reference).max())
