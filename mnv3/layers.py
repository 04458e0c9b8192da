"""The three layers of MobileNetV3: convolution with norm and activation, squeeze-and-excite, and the bottleneck.

Shapes are (B, C, H, W) throughout. Every layer can be scripted, traced, exported and compiled. Convolutions and norms
are PyTorch's own modules, which counters, quantisers and torch.fx know by their type; where eager mode has a faster way
than to call them, the layer around them takes it (see `depthwise.is_plain`), equal to rounding.
"""

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn.utils import prune
from torchvision.ops.misc import FrozenBatchNorm2d

from .arch import Bneck, se_before_act
from .depthwise import convolve, in_graph, is_eager, is_plain
from .errors import WeightsError

BN_EPS = 1e-5  # of all weights: files/conversion.py folds another source's eps into the running variance


class Hardswish(nn.Hardswish):
    """nn.Hardswish; in training not in place, as its backward pass needs the input, which would be copied first."""

    def forward(self, x: Tensor) -> Tensor:
        return F.hardswish(x, inplace=self.inplace and not self.training)


NORMS = (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)  # the latter is what timm and torchvision freeze one to
ACTIVATION = {"RE": nn.ReLU, "HS": Hardswish}


class Conv2dSame(nn.Conv2d):
    """A convolution of stride 2 with TensorFlow's 'SAME' padding: k // 2 pixels, but one fewer before an even side."""

    def pad(self, x: Tensor) -> Tensor:
        """The zeros around `x` alone."""
        height, width, half = x.shape[-2], x.shape[-1], self.kernel_size[0] // 2
        # n % 2, in the form that lets torch.export see the output size: (n + 1) // 2
        odd_height, odd_width = (height + 1) // 2 * 2 - height, (width + 1) // 2 * 2 - width
        return F.pad(x, [half - 1 + odd_width, half, half - 1 + odd_height, half])

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.pad(x), self.weight, self.bias, self.stride, (0, 0), self.dilation, self.groups)


def batch_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """`norm(x)`, in evaluation straight by the operator: the module's bookkeeping takes 3 us, 46 times a pass."""
    if norm.training or not is_plain(norm, nn.BatchNorm2d) or norm.running_mean is None:
        return norm(x)
    training, momentum, use_cudnn = False, 0.0, True
    statistics = norm.running_mean, norm.running_var
    return torch.batch_norm(x, norm.weight, norm.bias, *statistics, training, momentum, norm.eps, use_cudnn)


def pooled_conv2d(conv: nn.Module, x: Tensor) -> Tensor:
    """`conv(x)` of a 1x1 convolution for a pooled (B, C, 1, 1) map, as a matrix product, which costs less to start.

    Graphs that other tools read keep the convolution, but for torch.fx's, which has to be equal to the last bit.
    """
    if in_graph() or not is_plain(conv, nn.Conv2d):
        return conv(x)
    return F.linear(x.flatten(1), conv.weight.flatten(1), conv.bias)[..., None, None]


_lock = threading.Lock()
_evaluated: WeakKeyDictionary[nn.Module, tuple[int, bool]] = WeakKeyDictionary()  # how often now, and the mode before


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluate in the block: `model.eval()` and no gradients; afterwards every module has its own mode again.

    Where several threads evaluate one model at once, the last to finish restores the modes.
    """
    modules = list(model.modules())  # a frozen batch norm has its own mode
    with _lock:
        for module in modules:
            count, mode = _evaluated.get(module, (0, module.training))
            _evaluated[module] = count + 1, mode
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        with _lock:
            for module in modules:
                count, mode = _evaluated.pop(module)
                if count > 1:
                    _evaluated[module] = count - 1, mode
                else:
                    module.training = mode


def finite(logits: Tensor) -> Tensor:
    """Check that logits are finite, and return them.

    Args:
        logits: Of shape (B, classes).

    Raises:
        WeightsError: Some are NaN or infinite.
    """
    if wrong := (~logits.isfinite()).any(1).sum().item():
        raise nonfinite_error(wrong, len(logits))
    return logits


def nonfinite_error(wrong: int, count: int) -> WeightsError:
    """The error for a model whose logits are NaN or infinite for `wrong` of `count` pictures."""
    return WeightsError(
        f"for {wrong} of {count} pictures the model gives NaN or infinity: "
        "its weights are damaged, or their numbers too large for its precision"
    )


def full_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a model, with `num_batches_tracked` = 0 for its frozen norms, which have no such counter."""
    frozen = [name for name, module in model.named_modules() if isinstance(module, FrozenBatchNorm2d)]
    return dict(model.state_dict()) | {f"{name}.num_batches_tracked": torch.tensor(0) for name in frozen}


def check_own_weights(model: nn.Module) -> None:
    """Raise ValueError if a parameter is not its layer's own: pruning and parametrizations compute it in each call."""
    for name, module in model.named_modules():
        hooks = [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, prune.BasePruningMethod)]
        computed = [("prune.remove", hook._tensor_name) for hook in hooks]
        computed += [("parametrize.remove_parametrizations", key) for key in getattr(module, "parametrizations", ())]
        for remove, key in computed:
            raise ValueError(
                f"{name}.{key} is computed anew in every call: torch.nn.utils.{remove}(layer, {key!r}) first"
            )


@torch.no_grad()
def set_bn_eps(model: nn.Module, eps: float) -> nn.Module:
    """Give every batch norm another eps and shift its running variance, so that evaluation stays the same.

    Training does not: weights of TensorFlow and torchvision were trained with 1e-3, and have channels of less variance
    than that, which 1e-5 would blow up. Going back to `BN_EPS` is always possible.

    Args:
        model: Changed in place, and returned.
        eps: Above 0.

    Raises:
        ValueError: `eps` is not above 0, or so large that a variance would have to be negative.
    """
    if not eps > 0:
        raise ValueError(f"eps={eps!r}: expected a number above 0")
    norms = [module for module in model.modules() if isinstance(module, NORMS)]
    tracking = [norm for norm in norms if norm.running_var is not None]
    for norm in tracking:
        least = (norm.running_var + norm.eps).min().item()
        if least < 0.999 * eps:  # not for rounding alone
            raise ValueError(f"eps={eps!r}: a batch norm has a channel of variance + eps {least:.2g}, which is less")
    for norm in tracking:
        norm.running_var.add_(norm.eps - eps).clamp_(min=0)
    for norm in norms:
        norm.eps = eps
    return model


def with_default_eps(model: nn.Module) -> nn.Module:
    """The model, or a copy that evaluates alike, with `BN_EPS` in every batch norm, as weights folders have it."""
    if all(module.eps == BN_EPS for module in model.modules() if isinstance(module, NORMS)):
        return model
    return set_bn_eps(copy.deepcopy(model), BN_EPS)


class ConvNormAct(nn.Module):
    """Convolution without bias, batch norm, activation: (B, in_chans, H, W) to (B, out_chans, H / stride, W / stride).

    `act` is 'RE', 'HS', or None for a linear layer; `pad_type` is '' or 'same', TensorFlow's padding.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        act: str | None = None,
        pad_type: str = "",
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        same = pad_type == "same" and stride > 1  # at stride 1 'SAME' is the symmetric padding
        self.depthwise = groups > 1
        self.conv = (Conv2dSame if same else nn.Conv2d)(
            in_chans,
            out_chans,
            kernel,
            stride,
            padding=0 if same else dilation * (kernel // 2),
            dilation=dilation,
            groups=groups,
            bias=False,
            **dd,
        )
        self.norm = nn.BatchNorm2d(out_chans, eps=BN_EPS, **dd)
        self.act = ACTIVATION[act](inplace=True) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting() or not isinstance(x, Tensor):  # a variable of torch.fx
            return self.act(self.norm(self.conv(x)))
        x = convolve(self.conv, x) if self.depthwise else self.conv(x)
        return self.act(batch_norm(self.norm, x))


def mean_to_train(x: Tensor) -> Tensor:
    """Spatial mean (B, C, 1, 1) as a sum, whose gradient is no map to write. Float16 has no room for a sum."""
    if x.dtype == torch.float16:
        return x.mean((2, 3), keepdim=True)
    return x.sum((2, 3), keepdim=True) * (1 / (x.shape[2] * x.shape[3]))


class SqueezeExcite(nn.Module):
    """x * hard_sigmoid(excite(relu(squeeze(mean(x))))), section 5.3 of the paper: without norms, on the wide map."""

    def __init__(self, channels: int, squeeze: int, *, device=None, dtype=None) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.squeeze = nn.Conv2d(channels, squeeze, 1, **dd)
        self.act = nn.ReLU()
        self.excite = nn.Conv2d(squeeze, channels, 1, **dd)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        gate = self.mean(x)  # (B, C, 1, 1)
        if torch.jit.is_scripting():
            gate = self.excite(self.act(self.squeeze(gate)))
        else:
            gate = pooled_conv2d(self.excite, self.act(pooled_conv2d(self.squeeze, gate)))
        return x * self.gate(gate)

    def mean(self, x: Tensor) -> Tensor:
        """Spatial mean."""
        if self.training and not torch.jit.is_scripting() and is_eager(x):
            return mean_to_train(x)
        return x.mean((2, 3), keepdim=True)


class Bottleneck(nn.Module):
    """One row of the table: expand, depthwise, activation, squeeze-excite, project; a shortcut where shapes allow.

    `se_order` is one of `arch.SE_ORDERS`; see `arch.se_before_act`.
    """

    def __init__(
        self,
        in_chans: int,
        row: Bneck,
        *,
        se_order: str = "act-se",
        drop_path: float = 0.0,
        pad_type: str = "",
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        expands = row.exp != in_chans
        se_first = row.se and se_before_act(se_order, expands=expands)
        self.has_shortcut = row.stride == 1 and in_chans == row.out
        self.expand = ConvNormAct(in_chans, row.exp, act=row.act, **dd) if expands else nn.Identity()
        self.depthwise = ConvNormAct(
            row.exp,
            row.exp,
            kernel=row.kernel,
            stride=row.step,
            dilation=row.dilation,
            groups=row.exp,
            act=None if se_first else row.act,
            pad_type=pad_type,
            **dd,
        )
        self.se = SqueezeExcite(row.exp, row.squeeze, **dd) if row.se else nn.Identity()
        self.act = ACTIVATION[row.act](inplace=True) if se_first else nn.Identity()
        self.project = ConvNormAct(row.exp, row.out, **dd)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x  # (B, in, H, W)
        x = self.expand(x)  # (B, exp, H, W)
        x = self.depthwise(x)  # (B, exp, H/s, W/s)
        x = self.act(self.se(x))
        x = self.drop_path(self.project(x))  # (B, out, H/s, W/s)
        return x + shortcut if self.has_shortcut else x
