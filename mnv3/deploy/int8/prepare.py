"""A model made ready for 8 bits, alike for every runtime, and the check that a file has them.

Three things make MobileNetV3 lose its accuracy: maps whose channels differ a hundredfold in range, where ReLU lets them
be evened out (`_equalise`); the few layers where it does not (h-swish has a scale of its own), which stay in float; and
channels next to dead, whose bias, in steps of a tiny weight scale, overflows 32 bits (`_raise_weights`).
"""

import copy
import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...hooks import watching
from ...layers import Bottleneck, ConvNormAct, SqueezeExcite, evaluating
from ..writers import Graph, write_onnx

SENSITIVE = 22.0  # dB of signal to noise at the logits below which a layer's activations are not quantised
FLOAT_SHARE = 0.03  # of the weights at most may stay in float: 4 bytes in place of 1 leave the file below 30 %
FLOAT_LAYERS = 6
PICTURES = 64  # to measure ranges and sensitivity on


class Layer(NamedTuple):
    """A convolution or linear layer of a file."""

    name: str
    weights: int  # how many
    eight_bits: bool  # whether it computes with them


def prepare(model: nn.Module, batches: list[Tensor], *, outputs: bool = True) -> tuple[nn.Module, list[str]]:
    """A copy of `model` that quantises well, and the names of layers to leave in float.

    Args:
        model: As `deployable` gives it; the copy has equal outputs to 1e-4.
        batches: Pictures (B, C, H, W) to measure ranges and sensitivity on.
        outputs: Whether the runtime quantises what layers give, and not only what they read.
    """
    pictures = torch.cat(list(batches))
    pictures = pictures[:: math.ceil(len(pictures) / PICTURES)]  # from all batches: each may be of one class
    model = copy.deepcopy(model)
    with evaluating(model), torch.inference_mode(False), torch.no_grad():
        _equalise(model, pictures)
        _raise_weights(model, pictures)
        return model, _sensitive(model, pictures, outputs=outputs)


def layers_with_weights(model: nn.Module) -> dict[str, nn.Module]:
    """The convolutions and linear layers, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}


def _equalise(model: nn.Module, pictures: Tensor) -> None:
    """Scale the channels before each ReLU to one range, and the weights that read them back: the same function.

    Per-channel weight scales make it free in front of a depthwise convolution; a projection sums over the channels, so
    it takes half of the difference (the square root).
    """
    pairs = []
    for block in (m for m in model.modules() if isinstance(m, Bottleneck)):
        last = block.act if isinstance(block.depthwise.act, nn.Identity) else block.depthwise.act
        if isinstance(block.expand, ConvNormAct):
            pairs.append((block.expand, block.expand.act, [block.depthwise.conv], 1.0))
        squeeze = [block.se.squeeze] if isinstance(block.se, SqueezeExcite) else []
        pairs.append((block.depthwise, last, [block.project.conv, *squeeze], 0.5))
    pairs = [pair for pair in pairs if isinstance(pair[1], nn.ReLU)]
    with watching([act for _, act, _, _ in pairs], lambda _, out: out.amax((0, 2, 3))) as peaks:
        model(pictures)
    for source, act, readers, power in pairs:
        scale = (peaks[act] / peaks[act].max().clamp(min=1e-30)) ** power
        scale = torch.where(scale > 1e-4, scale, 1.0)  # a dead channel has no range to even out
        source.conv.weight.div_(scale[:, None, None, None])
        source.conv.bias.div_(scale)
        for reader in readers:
            depthwise = reader.groups > 1
            reader.weight.mul_(scale[:, None, None, None] if depthwise else scale[None, :, None, None])


def _raise_weights(model: nn.Module, pictures: Tensor) -> None:
    """Give every output channel one weight of at least 1e-4 of its bias (1e-6 of the layer's peak) over the input's.

    It changes an output by less than that share, and bounds bias / (input scale * weight scale) by 255 * 127 * 1e4,
    which 32 bits hold; it also leaves no channel of zeros, whose scale would be 0. LiteRT folds the 3 of the hard
    sigmoid into the bias before it: with gates that hardly move (weights of 1e-5) that alone overflowed.
    """
    gates = {m.excite for m in model.modules() if isinstance(m, SqueezeExcite)}
    layers = layers_with_weights(model).values()
    with watching(layers, lambda x, out: (x.abs().max(), out.abs().max())) as peaks:
        model(pictures)
    for layer in layers:
        inputs, outputs = (peak.clamp(min=1e-6) for peak in peaks[layer])
        rows = layer.weight.flatten(1)
        bias = layer.bias.abs() if layer.bias is not None else torch.zeros(len(rows))
        least = 1e-4 * torch.maximum(bias + (3 if layer in gates else 0), 0.01 * outputs) / inputs
        largest, column = rows.abs().max(1)
        low = largest < least
        rows[low, column[low]] = least[low]
        layer.weight.copy_(rows.view_as(layer.weight))


def _fake_quantise(x: Tensor) -> Tensor:
    """Round a tensor to the 256 values that 8 bits can have in its range."""
    scale = ((x.max().clamp(min=0) - x.min().clamp(max=0)) / 255).clamp(min=1e-12)
    return (x / scale).round() * scale


def _sensitive(model: nn.Module, pictures: Tensor, *, outputs: bool) -> list[str]:
    """Names of the few layers whose activations 8 bits per tensor cannot hold, measured one layer at a time."""
    expected = model(pictures)
    rectified = {m.conv for m in model.modules() if isinstance(m, ConvNormAct) and isinstance(m.act, nn.ReLU)}
    measured = []
    for name, layer in layers_with_weights(model).items():
        hooks = [layer.register_forward_pre_hook(lambda _, x: (_fake_quantise(x[0]),))]
        if outputs:  # ReLU becomes part of the layer, and what it cuts off needs no range
            cut = Tensor.relu if layer in rectified else Tensor.clone
            hooks.append(layer.register_forward_hook(lambda _, x, out, cut=cut: _fake_quantise(cut(out))))
        noise = (model(pictures) - expected).square().mean().clamp(min=1e-30)
        for hook in hooks:
            hook.remove()
        measured.append((10 * math.log10((expected.var() / noise).item()), name, layer.weight.numel()))
    room = FLOAT_SHARE * sum(size for _, _, size in measured)
    names = []
    for decibels, name, size in sorted(measured):
        if decibels < SENSITIVE and size <= room and len(names) < FLOAT_LAYERS:
            names.append(name)
            room -= size
    return names


def clip(model: nn.Module) -> None:
    """Put a clip to -3 before each h-swish, which is 0 from there on: ranges need not hold what it cuts off."""
    for layer in model.modules():
        if isinstance(layer, ConvNormAct) and isinstance(layer.act, nn.Hardswish):
            layer.act = nn.Sequential(nn.Hardtanh(-3.0, 1e30), layer.act)


def write_plain(model: nn.Module, batches: list[Tensor], file: Path) -> None:
    """Write the float model as ONNX for any batch, for a tool to quantise."""
    example = batches[0][:1]
    write_onnx(Graph(model=model, example=example, dynamic=("batch",), half=False, metadata={"stride": 1}), file)


def check_layers(file: Path, layers: list[Layer]) -> list[str]:
    """The names of a file's layers that compute in float.

    Raises:
        ValueError: They are more than an 8-bit model has.
    """
    floats = [layer for layer in layers if not layer.eight_bits]
    share = sum(layer.weights for layer in floats) / max(sum(layer.weights for layer in layers), 1)
    names = [layer.name for layer in floats]
    if not layers or len(floats) > FLOAT_LAYERS or share > FLOAT_SHARE:
        raise ValueError(
            f"{file}: not an 8-bit model: {len(floats)} of {len(layers)} layers compute in float, with "
            f"{100 * share:.1f} % of the weights: {', '.join(names[:3])}"
        )
    return names
