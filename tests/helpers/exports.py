"""A small network, and its files of every format and of 8 bits, each written once a session.

Who changes a network or a file works on a copy.
"""

import copy
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import needs, with_distinct_logits
from PIL import Image

import mnv3
from mnv3.deploy import FORMATS, QuantizeReport, Report, export, quantize
from mnv3.deploy.int8 import prepare

Logits = Callable[[torch.Tensor], torch.Tensor]
NAMES = [f"kind {i}" for i in range(10)]
# every kind of block: with and without expansion, squeeze-and-excite and residual, of both activations
ARCH = mnv3.Arch(
    stem=8,
    rows=(
        mnv3.Bneck(3, 8, 8, True, "RE", 1),
        mnv3.Bneck(3, 24, 16, False, "RE", 2),
        mnv3.Bneck(5, 32, 16, True, "HS", 1),
        mnv3.Bneck(5, 48, 24, True, "HS", 2),
    ),
    last=64,
    head=1024,
    stem_stride=1,
)
_FOLDER = tempfile.TemporaryDirectory(prefix="mnv3-exports-")


def folder(name: str) -> Path:
    """A new empty folder for the session."""
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=_FOLDER.name))


@functools.cache
def weights() -> Path:
    """A weights folder of the network."""
    return mnv3.save(with_distinct_logits("mnv3_small_cifar", arch=ARCH), folder("weights") / "net", label_names=NAMES)


@functools.cache
def net() -> mnv3.MobileNetV3:
    """The network itself, of 10 classes for pictures of 32 px."""
    return mnv3.load_checkpoint(weights()).eval()


@functools.cache
def exported(to: str, *, whole: bool = False) -> tuple[Path, Report]:
    """The file of a format, alone in its folder, and the report on it.

    Args:
        to: The format.
        whole: With normalisation, softmax and float16 weights; otherwise with all that can be dynamic, or a batch of 2.
    """
    needs(to)
    entry = FORMATS[to]
    options = {"dynamic": entry.dynamic, "batch": 1 if entry.dynamic or not entry.batches else 2}
    if whole:
        options = {"normalize": True, "softmax": True, "half": entry.half}
    file = folder(to) / f"net{entry.suffix}"
    return file, export(net(), file, to=to, **options)


def pixels(count: int, height: int = 32, width: int = 32, channels: int = 3) -> torch.Tensor:
    """A batch of so many pictures, always the same."""
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(1))


def close(model: Logits, reference: Logits, x: torch.Tensor, atol: float = 1e-4) -> None:
    """Both give the same logits."""
    with torch.inference_mode():
        torch.testing.assert_close(model(x), reference(x), rtol=0, atol=atol)


@functools.cache
def photos() -> Path:
    """Five files, larger than the network takes."""
    root = folder("photos")
    for i, x in enumerate(torch.rand(5, 6, 7, 3, generator=torch.Generator().manual_seed(2))):
        Image.fromarray((x * 255).byte().numpy()).resize((50, 40), Image.Resampling.BICUBIC).save(root / f"{i}.png")
    return root


FLOATS = ("blocks.1.depthwise.conv", "blocks.0.se.excite")  # layers that stay in float in the files of `quantized`


@functools.cache
def pictures() -> Path:
    """100 pictures of soft colours, in two folders."""
    root = folder("pictures")
    for i, x in enumerate(torch.rand(100, 4, 4, 3, generator=torch.Generator().manual_seed(0))):
        (root / f"class {i % 2}").mkdir(exist_ok=True)
        picture = Image.fromarray((x * 255).byte().numpy()).resize((32, 32), Image.Resampling.BICUBIC)
        picture.save(root / f"class {i % 2}" / f"{i}.png")
    return root


@functools.cache
def fading() -> mnv3.MobileNetV3:
    """The network with a channel that is nearly dead and one that is: their weights have next to no scale."""
    model = copy.deepcopy(net())
    layer = model.blocks[2].depthwise
    with torch.no_grad():
        for channel, weight, bias in ((0, 1e-9, 5.0), (1, 0.0, 0.0)):
            layer.conv.weight[channel] = weight
            layer.norm.bias[channel] = bias
            layer.norm.running_mean[channel] = 0.0
    return model


@functools.cache
def quantized(to: str) -> QuantizeReport:
    """The report on the 8-bit file of a format, made of `fading` and `pictures`, with FLOATS in float."""
    needs(to, int8=True)
    file = folder(f"{to}-int8") / f"net{FORMATS[to].suffix}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "_sensitive", lambda *_, **__: list(FLOATS))
        return quantize(fading(), file, to=to, calibrate=pictures(), force=True)
