"""Depthwise convolution with a faster weight gradient on x86; output and input gradient are PyTorch's own.

oneDNN's depthwise kernel for weight gradients takes kernels up to 3 wide, on maps at least as large as the kernel. The
rest goes to its kernel for general groups, which computes 16 x 16 pairs of channels to use 16: for a 5x5 kernel that
takes 5 to 20 times as long as the forward pass. The three ways here reach the same sums through fast kernels.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

X86 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
CHUNK = 2**20  # elements of x to work on at a time: bounds the memory of the copies
PRODUCT_PIXELS = 32  # largest map for grad_by_product, whose work and memory grow with the square of it


def in_graph() -> bool:
    """True while a graph is being recorded (trace, export, compile) that should show the plain operators."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


def is_eager(x: Any) -> bool:
    """Whether `x` is computed now, and not recorded into a graph, torch.fx's included."""
    return isinstance(x, Tensor) and not in_graph()


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling `module` comes to `kind.forward` alone, so that an equal operator may take its place.

    It does not where a hook looks on (a profiler's, a pruning's, Grad-CAM's), where `forward` was replaced, or where
    the module is another one by now (quantised, parametrised, frozen).
    """
    if type(module) is not kind or "forward" in module.__dict__:
        return False
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return not (hooks or _has_any_global_hook())


def stock_grads(grad: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int], mask: list[bool]):
    """PyTorch's own gradients for (x, weight, bias), those that `mask` asks for."""
    none = None, stride, padding, [1, 1], False, [0, 0]  # bias, dilation 1, not transposed
    return torch.ops.aten.convolution_backward(grad, x, weight, *none, weight.shape[0], mask)


def grad_5x3(grad: Tensor, x: Tensor, stride: list[int], padding: list[int]) -> Tensor:
    """Weight gradient (C, 1, 5, 3) of a kernel 5 high and 3 wide."""
    weight = x.new_empty(1).expand(x.shape[1], 1, 5, 3)  # only its shape is read
    return stock_grads(grad, x, weight, stride, padding, [False, True, False])[1]


def grad_by_windows(grad: Tensor, x: Tensor) -> Tensor:
    """Weight gradient (C, 1, 5, 5) at stride 1, from the kernel's columns 0-2 and its columns 2-4.

    The first need two zeros before every row of x, the second two zeros after it. Both are views of one copy in
    channels_last, because the zeros before a row come after the last one.
    """
    batch, channels, height, width = x.shape
    size = batch * height * (width + 2) * channels
    padded = x.new_empty(size + 2 * channels)
    rows = padded[:size].view(batch, height, width + 2, channels)
    rows[:, :, 2:] = x.permute(0, 2, 3, 1)
    rows[:, :, :2] = 0
    padded[size:] = 0
    moved = padded[2 * channels :].view(rows.shape)
    first, last = (grad_5x3(grad, view.permute(0, 3, 1, 2), [1, 1], [2, 0]) for view in (rows, moved))
    return torch.cat((first[:, 0, :, :2], last[:, 0]), 2)[:, None]  # contiguous, as DDP wants gradients


def grad_by_pairs(grad: Tensor, x: Tensor) -> Tensor:
    """Weight gradient (C, 1, 5, 5) at stride 2, from the even and the odd columns of x.

    Two neighbouring columns of C channels are one of 2 C channels, in channels_last a mere view. The kernel at output
    column u reads the even columns of pairs u-1, u, u+1 (with its columns 0, 2, 4) and the odd ones of u-1, u (1, 3).
    """
    if x.shape[3] % 2:  # zeros complete the last pair and add nothing
        x = F.pad(x, (0, 1))
    batch, channels, height, width = x.shape
    pairs = x.permute(0, 2, 3, 1).reshape(batch, height, width // 2, 2 * channels).permute(0, 3, 1, 2)
    taps = grad_5x3(torch.cat((grad, grad), 1), pairs, [2, 1], [2, 1])
    return torch.stack((taps[:channels], taps[channels:]), -1).reshape(channels, 1, 5, 6)[..., :5]


def grad_by_product(grad: Tensor, x: Tensor, kernel: int, stride: int) -> Tensor:
    """Weight gradient (C, 1, k, k) from the products of all input with all output pixels, summed over the batch."""
    batch, channels, height, width = x.shape

    def batch_last(maps: Tensor) -> Tensor:  # (H W, C, B), by transposing a matrix, which PyTorch does in blocks
        return maps.permute(0, 2, 3, 1).reshape(batch, -1).t().contiguous().view(-1, channels, batch)

    products = torch.bmm(batch_last(x).transpose(0, 1), batch_last(grad).permute(1, 2, 0))  # (C, H W, out pixels)
    # which tap joins which two pixels: the patches of pictures with one pixel lit
    lit = torch.eye(height * width, dtype=x.dtype).view(-1, 1, height, width)
    joins = F.unfold(lit, kernel, padding=kernel // 2, stride=stride)  # (H W, k k, out pixels)
    return (products.reshape(channels, -1) @ joins.transpose(1, 2).flatten(0, 1)).view(channels, 1, kernel, kernel)


def weight_grad(grad: Tensor, x: Tensor, kernel: int, stride: int) -> Tensor | None:
    """The weight gradient by the fastest way for this map; None where that is PyTorch's own."""
    height, width = x.shape[2:]
    if min(height, width) < kernel:
        way = partial(grad_by_product, kernel=kernel, stride=stride) if height * width <= PRODUCT_PIXELS else None
    else:
        way = {(5, 1): grad_by_windows, (5, 2): grad_by_pairs}.get((kernel, stride))
    if way is None or x.numel() == 0:
        return None
    parts = -(-x.numel() // CHUNK)
    return sum(way(*part) for part in zip(grad.chunk(parts), x.chunk(parts), strict=True))


def input_grad(grad: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Input gradient: PyTorch's own, but for bfloat16 at stride 2, where oneDNN's kernel is 50 to 300 times slower.

    There it is the forward pass of the mirrored kernel at stride 1, over a map with the gradient on its even pixels.
    """
    side = weight.shape[-1]
    if stride == 1 or x.dtype != torch.bfloat16:
        return stock_grads(grad, x, weight, [stride] * 2, [side // 2] * 2, [True, False, False])[0]
    batch, channels, height, width = x.shape
    spread = grad.new_zeros(batch, height, width, channels).permute(0, 3, 1, 2)  # of the gradient, for vmap
    spread[:, :, ::2, ::2] = grad
    return F.conv2d(spread, weight.flip(2, 3), None, 1, side // 2, 1, weight.shape[0])


class DepthwiseFunction(torch.autograd.Function):
    """F.conv2d with `weight_grad` in its backward pass."""

    generate_vmap_rule = True  # for torch.func

    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: int) -> Tensor:
        return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, weight.shape[0])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        x, weight, ctx.stride = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def jvp(ctx: Any, x_tangent: Tensor, weight_tangent: Tensor, _: None) -> Tensor:
        (x, weight), conv = ctx.saved_tensors, DepthwiseFunction.forward
        return conv(x_tangent, weight, ctx.stride) + conv(x, weight_tangent, ctx.stride)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        kernel, stride, grad_x, grad_weight = weight.shape[-1], ctx.stride, None, None
        if ctx.needs_input_grad[0]:
            grad_x = input_grad(grad, x, weight, stride)
        if ctx.needs_input_grad[1]:
            if not torch.is_grad_enabled():  # with create_graph, stock alone: it can be differentiated
                with torch.autocast("cpu", enabled=False):
                    grad_weight = weight_grad(grad, x, kernel, stride)
            if grad_weight is None:
                grad_weight = stock_grads(grad, x, weight, [stride] * 2, [kernel // 2] * 2, [False, True, False])[1]
        return grad_x, grad_weight, None


def depthwise_conv2d(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Convolve x (B, C, H, W) with weight (C, 1, k, k), k odd, padding k // 2: to (B, C, H / stride, W / stride).

    Only float32 and bfloat16 on an x86 processor take the faster ways; all else is F.conv2d.
    """
    if not (torch.is_grad_enabled() and weight.requires_grad and X86 and x.device.type == "cpu"):
        return DepthwiseFunction.forward(x, weight, stride)
    if torch.is_autocast_enabled("cpu") and x.dtype != torch.float64:
        x, weight = (tensor.to(torch.get_autocast_dtype("cpu")) for tensor in (x, weight))
    ours = x.dtype in (torch.float32, torch.bfloat16) and x.dim() == 4
    return (DepthwiseFunction.apply if ours else DepthwiseFunction.forward)(x, weight, stride)


def convolve(conv: nn.Module, x: Tensor) -> Tensor:
    """`conv(x)`, by `depthwise_conv2d` where gradients are wanted and it covers `conv`."""
    if torch.is_grad_enabled() and not in_graph() and is_plain(conv, nn.Conv2d) and _covers(conv):
        return depthwise_conv2d(x, conv.weight, conv.stride[0])
    return conv(x)


def _covers(conv: nn.Conv2d) -> bool:
    """Square depthwise kernels, stride 1 or 2, padding k // 2, no dilation, no bias."""
    side, step = conv.kernel_size[0], conv.stride[0]
    depthwise = conv.groups == conv.in_channels == conv.out_channels and conv.bias is None and side % 2 == 1
    given = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.padding_mode)
    return depthwise and given == ((side,) * 2, (step,) * 2, (side // 2,) * 2, (1, 1), "zeros")
