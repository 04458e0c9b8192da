"""The network as oneDNN likes it: convolution and activation in one call, with weights laid out beforehand.

PyTorch's own F.conv2d reorders the weights of a convolution in every call, which at batch 1 takes a third of the time.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .folding import fuse
from .layers import Conv2dSame, ConvNormAct, evaluating

UNARY = {nn.ReLU: "relu", nn.Hardswish: "hardswish", nn.Identity: "none"}


def available() -> bool:
    """Whether this PyTorch has the operators, which torch.compile's CPU code calls too."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


class PackedConv(nn.Module):
    """Convolution, bias and activation of a fused `ConvNormAct`, for inference in float32 on this CPU.

    TensorFlow's padding of even sides, one pixel fewer before than after, is the operator's own padding with a row and
    a column of zeros before the kernel: no padded copy of the map is made.
    """

    def __init__(self, layer: ConvNormAct, shape: tuple[int, ...]) -> None:
        super().__init__()
        conv, act = layer.conv, layer.act
        self._layer, self._same = layer, isinstance(conv, Conv2dSame)
        if type(conv) not in (nn.Conv2d, Conv2dSame) or not isinstance(layer.norm, nn.Identity):
            kinds = " and ".join(type(module).__name__ for module in (conv, layer.norm))
            raise ValueError(
                f"{kinds} in a layer of this model: oneDNN's convolution is plain, with a batch norm folded"
            )
        unary = next((name for kind, name in UNARY.items() if isinstance(act, kind)), None)
        if unary is None:
            raise ValueError(f"act_layer={type(act).__name__}: oneDNN's convolution has only ReLU and h-swish after it")
        weight, padding = conv.weight.detach(), list(conv.padding)
        if self._same:
            weight, padding = F.pad(weight, [1, 0, 1, 0]), [side // 2 for side in conv.kernel_size]
        where = (padding, list(conv.stride), list(conv.dilation), conv.groups)
        weight = weight.contiguous(memory_format=torch.channels_last)
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *where, list(shape))
        self._call = packed, conv.bias.detach(), *where, unary, [], ""

    def forward(self, x: Tensor) -> Tensor:
        if self._same and (x.shape[-2] % 2 or x.shape[-1] % 2):
            return self._layer(x)
        return torch.ops.mkldnn._convolution_pointwise(x, *self._call)


def pack(model: nn.Module, x: Tensor) -> nn.Module:
    """A copy of `model` in eval mode for float32 pictures on the CPU, laid out for the shape of `x`.

    Other shapes give the same logits, if more slowly. The copy cannot be pickled, copied, exported or trained.

    Args:
        model: A MobileNetV3.
        x: Pictures (B, C, H, W).
    """
    return lay_out(fuse(model), x)


def lay_out(fused: nn.Module, x: Tensor) -> nn.Module:
    """What `pack` does to the copy that `fuse` made: in place, or not at all if it raises ValueError."""
    shapes: dict[str, tuple[int, ...]] = {}
    layers = {name: layer for name, layer in fused.named_modules() if isinstance(layer, ConvNormAct)}

    def note(name: str) -> Callable[..., None]:
        def hook(layer: ConvNormAct, args: tuple[Tensor]) -> None:
            shapes[name] = (len(x), *args[0].shape[1:])

        return hook

    hooks = [layer.register_forward_pre_hook(note(name)) for name, layer in layers.items()]
    with evaluating(fused):
        fused(x[:1])
    for hook in hooks:
        hook.remove()
    packed = {name: PackedConv(layer, shapes[name]) for name, layer in layers.items()}
    for name, layer in packed.items():
        fused.set_submodule(name, layer)
    return fused
