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


def inspectable(model: nn.Module) -> MobileNetV3:
    """The model that is to be looked into, without what `torch.compile` and the like wrap around it.

    Raises:
        ValueError: It is an exported file, another library's, or does not take RGB.
    """
    model = unwrapped(model)
    if not isinstance(model, MobileNetV3):
        raise ValueError(f"{type(model).__name__}: only mnv3's models in PyTorch can be looked into, no exported file")
    check_channels(model)
    return model


def input_and_view(picture: str | os.PathLike[str] | Image.Image, model: MobileNetV3) -> tuple[Tensor, np.ndarray]:
    """A picture preprocessed for a model, and the same part of it to be shown.

    Args:
        picture: A file, or a PIL picture.
        model: One of ours, on any device.

    Returns:
        The model's input (1, 3, H, W), and the view, uint8 (kH, kW, 3), k times as large.

    Raises:
        PictureError: The file cannot be read.
    """
    loaded = picture.convert("RGB") if isinstance(picture, Image.Image) else images.load(picture)
    size = model.pretrained_cfg["input_size"]
    larger = (3, *(side * max(1, -(-VIEW // max(size[1:]))) for side in size[1:]))
    plain = transforms(model, input_size=larger, mean=(0.0,) * 3, std=(1.0,) * 3)
    view = plain(loaded).clamp(0, 1).permute(1, 2, 0).mul(255).round().byte().numpy()
    return transforms(model)(loaded)[None].to(next(model.parameters())), view
