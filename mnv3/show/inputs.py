"""A picture as a model sees it, and as a reader should."""

import os

import numpy as np
from PIL import Image
from torch import Tensor, nn

from ..factory import transforms
from ..files.saving import unwrapped
from ..model import MobileNetV3
from ..pictures import images
from ..pictures.inputs import check_channels

VIEW = 448  # pixels along a side of a picture that is shown, at least


def of(model: nn.Module) -> MobileNetV3:
    """The model, if one can look into it.

    Raises:
        ValueError: It is an exported file, another library's, or does not take RGB.
    """
    model = unwrapped(model)
    if not isinstance(model, MobileNetV3):
        raise ValueError(f"{type(model).__name__}: only mnv3's models in PyTorch can be looked into, no exported file")
    check_channels(model)
    return model


def picture(file: str | os.PathLike | Image.Image, model: MobileNetV3) -> tuple[Tensor, np.ndarray]:
    """The model's input (1, 3, H, W), and the same part of the picture as it was, uint8 (kH, kW, 3).

    Raises:
        PictureError: The file cannot be read.
    """
    loaded = file.convert("RGB") if isinstance(file, Image.Image) else images.load(file)
    size = model.pretrained_cfg["input_size"]
    larger = (3, *(side * max(1, -(-VIEW // max(size[1:]))) for side in size[1:]))
    plain = transforms(model, input_size=larger, mean=(0.0,) * 3, std=(1.0,) * 3)
    place = next(model.parameters())
    view = plain(loaded).clamp(0, 1).permute(1, 2, 0).mul(255).round().byte().numpy()
    return transforms(model)(loaded)[None].to(place), view
