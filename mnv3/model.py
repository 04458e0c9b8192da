"""MobileNetV3 from an `Arch` table, with timm's model contract."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from timm.layers import SelectAdaptivePool2d
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from .arch import LARGE, SE_ORDERS, Arch, as_arch, scale, taps, without_hs, without_se
from .depthwise import in_graph, is_eager, is_plain
from .errors import choices
from .layers import ACTIVATION, Bottleneck, ConvNormAct, mean_to_train, pooled_conv2d
from .timm_layers import set_activation, set_norms

PAD_TYPES = ("", "same")
POOLS = ("avg", "max", "avgmax", "catavgmax", "fast", "fastavg", "fastmax", "fastavgmax", "fastcatavgmax", "")


def check_input(x: Tensor, *, in_chans: int, stride: int, batch_stats: bool) -> None:
    """Check what was given to a model.

    Args:
        x: That.
        in_chans: Channels that the model expects.
        stride: Total stride of the model.
        batch_stats: Whether batch norm takes its statistics from this batch.

    Raises:
        ValueError: `x` is not a batch of pictures that the model can take.
    """
    shape = tuple(x.shape)
    if len(shape) != 4 or shape[1] != in_chans or 0 in shape[2:]:
        wanted = f"expected a batch of shape (B, {in_chans}, H, W) with H, W of at least 1 pixel, got {shape}"
        if len(shape) == 3 and shape[0] == in_chans:
            wanted += "; for a single picture use x.unsqueeze(0)"
        elif len(shape) == 4 and shape[3] == in_chans:
            wanted += "; channels come second: use x.permute(0, 3, 1, 2)"
        raise ValueError(wanted)
    if not x.is_floating_point():
        raise ValueError(
            f"expected a float tensor, got {x.dtype}; mnv3.transforms(model) turns a picture into one, "
            "or use (x / 255 - mean) / std with the mean and std of model.pretrained_cfg"
        )
    if batch_stats and shape[0] * math.prod(-(-n // stride) for n in shape[2:]) == 1:
        raise ValueError(
            f"batch norm cannot train on one value per channel: batch 1 of {shape[2]}x{shape[3]} pixels leaves a 1x1 "
            f"map at total stride {stride}; use a batch of 2 or more, more than {stride} pixels, or model.eval()"
        )


@torch.fx.wrap
def lay_out(x: Tensor) -> Tensor:
    """Go over to channels_last, which oneDNN computes faster on a CPU (benchmarks/latency.py)."""
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x


def _whole_number(name: str, value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}={value!r}: expected a whole number of at least {least}")
    return value


def _rate(name: str, value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1:
        raise ValueError(f"{name}={value!r}: expected a number from 0 up to but not including 1")
    return value


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{name}={value!r}. {choices(str(value), [repr(a) for a in allowed])}")
    return value


class MobileNetV3(nn.Module):
    """MobileNetV3 (Howard et al. 2019, https://arxiv.org/abs/1905.02244).

    Args:
        arch: The table: 'large', 'small', an `Arch`, or the dictionary of `Arch.to_dict`.
        width: Multiplier of all channels (see `mnv3.arch.scale`).
        use_se: With False, the table without squeeze-and-excite (ablation).
        use_hs: With False, the table with ReLU in place of h-swish (ablation).
        se_order: 'act-se' (the paper), 'se-act' or 'se-act-expanded' (see `mnv3.arch.se_before_act`).
        num_classes: Outputs of the classifier; 0 for none, then `forward` returns the head's features.
        in_chans: Channels of a picture.
        global_pool: 'avg', 'max', 'avgmax', 'catavgmax' (whose head is twice as wide, so that it needs weights of its
            own), their 'fast' forms, or '' for maps (B, C, H, W) in place of vectors.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; blocks before it have linearly less.
        pad_type: '' for symmetric padding, 'same' for TensorFlow's (weights of the '_tf' variants need it).
        bn_eps: Of the batch norms, 1e-5 by default. Of pretrained weights evaluation stays the same (`set_bn_eps`).
        bn_momentum: Of the batch norms, 0.1 by default.
        norm_layer: Another norm: timm's name of one, or what makes one of a number of channels.
        act_layer: Another activation in place of h-swish (in tables without, of ReLU): timm's name, or its class.
        head_bias: With False, the head's 1x1 convolution has no bias.
        device, dtype: Where and as what to create the parameters.

    Raises:
        ValueError: A value is not allowed; the message says what is.
    """

    def __init__(
        self,
        arch: Arch | str | dict[str, Any] = LARGE,
        *,
        width: float = 1.0,
        use_se: bool = True,
        use_hs: bool = True,
        se_order: str = "act-se",
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        pad_type: str = "",
        bn_eps: float | None = None,
        bn_momentum: float | None = None,
        norm_layer: str | Callable[[int], nn.Module] | None = None,
        act_layer: str | type[nn.Module] | None = None,
        head_bias: bool = True,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        arch = scale(as_arch(arch), width)
        arch = arch if use_se else without_se(arch)
        arch = arch if use_hs else without_hs(arch)
        self.arch = arch
        self.se_order = _one_of("se_order", se_order, SE_ORDERS)
        self.pad_type = _one_of("pad_type", pad_type, PAD_TYPES)
        self.num_classes = _whole_number("num_classes", num_classes, 0)
        self.in_chans = _whole_number("in_chans", in_chans, 1)
        self.drop_rate = _rate("drop_rate", drop_rate)
        self.stride = arch.stride
        self.grad_checkpointing = False

        drop_paths = torch.linspace(0, _rate("drop_path_rate", drop_path_rate), len(arch.rows)).tolist()
        self.stem = ConvNormAct(
            in_chans, arch.stem, kernel=3, stride=arch.stem_stride, act=arch.act, pad_type=pad_type, **dd
        )
        self.blocks = nn.Sequential(
            *(
                Bottleneck(cin, row, se_order=se_order, drop_path=drop_path, pad_type=pad_type, **dd)
                for cin, row, drop_path in zip(arch.inputs, arch.rows, drop_paths, strict=True)
            )
        )
        self.last = ConvNormAct(arch.rows[-1].out, arch.last, act=arch.act, **dd)
        doubled = "cat" in _one_of("global_pool", global_pool, POOLS)
        self.head = nn.Conv2d(2 * arch.last if doubled else arch.last, arch.head, 1, bias=head_bias, **dd)
        self.act = ACTIVATION[arch.act]()
        self.classifier = nn.Linear(arch.head, num_classes, **dd) if num_classes else nn.Identity()
        self.num_features = arch.last  # channels of forward_features
        self.head_hidden_size = arch.head  # channels of forward_head(pre_logits=True)
        self.feature_info = [
            {"num_chs": tap.channels, "reduction": tap.reduction, "module": tap.module} for tap in taps(arch)
        ]
        self._set_pool(global_pool)
        set_norms(self, norm_layer, eps=bn_eps, momentum=bn_momentum)
        if act_layer is not None:
            set_activation(self, arch.act, act_layer)
        self._init_weights()

    @torch.no_grad()
    def _init_weights(self) -> None:
        """Normal weights that keep the variance of gradients (He et al. 2015, fan out); norm as PyTorch has it."""
        if self.stem.conv.weight.is_meta:  # no numbers to set, but PyTorch would take longer than for real ones
            return
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def _set_pool(self, global_pool: str) -> None:
        pool = SelectAdaptivePool2d(pool_type=_one_of("global_pool", global_pool, POOLS))
        if isinstance(self.head, nn.Conv2d) and self.head.in_channels != self.num_features * pool.feat_mult():
            raise ValueError(
                f"global_pool={global_pool!r} gives {self.num_features * pool.feat_mult()} channels, the head takes "
                f"{self.head.in_channels}: choose it when the model is made"
            )
        self.global_pool = pool
        self.global_pool.train(self.training)
        self.pooled = bool(global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """Pictures (B, in_chans, H, W) to maps (B, num_features, ceil(H / stride), ceil(W / stride))."""
        if not torch.jit.is_scripting():
            self._check_input(x)
        return self._features(x)

    def _features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.blocks, x)
        else:
            x = self.blocks(x)
        return self.last(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps of `forward_features` to logits (B, num_classes), or to head features (B, head_hidden_size).

        With global_pool='' the results are maps: (B, num_classes, H', W') and (B, head_hidden_size, H', W').
        """
        if not torch.jit.is_scripting() and self._averages(x):  # noqa: SIM108 (as below)
            x = mean_to_train(x)
        else:
            x = self.global_pool(x)
        if not torch.jit.is_scripting() and self.pooled:  # noqa: SIM108 (TorchScript compiles both sides of a ternary)
            x = pooled_conv2d(self.head, x)
        else:
            x = self.head(x)
        x = self.act(x)
        if self.drop_rate > 0.0:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        if self.pooled:
            x = x.flatten(1)
            return x if pre_logits else self.classifier(x)
        return x if pre_logits else self.classifier(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    @torch.jit.unused
    def _averages(self, x: Tensor) -> bool:
        """Whether pooling comes to `mean_to_train`: timm's own has its gradient in a layout that is slow."""
        pool = self.global_pool
        return self.training and is_eager(x) and is_plain(pool, SelectAdaptivePool2d) and pool.pool_type == "avg"

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (B, in_chans, H, W) to logits (B, num_classes); see `forward_head` for other heads."""
        if not torch.jit.is_scripting():
            self._check_input(x)
            # Only where no map leaves the model: its strides would surprise a caller's .view().
            if self.pooled and not in_graph():
                x = lay_out(x)
        return self.forward_head(self._features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps of `feature_info`, shallow to deep, and the final map of `forward_features`.

        Args:
            x: Pictures (B, in_chans, H, W).
            indices: Which maps: the last n for a number, all for None.
            norm: Accepted for timm's sake; every map has been through its own norm.
            stop_early: Do not compute past the deepest map asked for; needs `intermediates_only`.
            output_fmt: 'NCHW', the only layout.
            intermediates_only: Return the list alone.
        """
        _one_of("output_fmt", output_fmt, ("NCHW",))
        if stop_early and not intermediates_only:
            raise ValueError("stop_early=True leaves no final map: pass intermediates_only=True with it")
        take, _ = feature_take_indices(len(self.feature_info), indices)
        wanted = [self.feature_info[i]["module"] for i in take]
        self._check_input(x)
        modules = [("stem", self.stem), *((f"blocks.{i}", b) for i, b in enumerate(self.blocks)), ("last", self.last)]
        maps = {}
        for name, module in modules:
            checkpointed = self.grad_checkpointing and name.startswith("blocks")
            x = checkpoint_seq([module], x) if checkpointed else module(x)
            if name in wanted:
                maps[name] = x
            if stop_early and len(maps) == len(set(wanted)):
                break
        intermediates = [maps[name] for name in sorted(wanted, key=list(maps).index)]
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop the layers past the deepest of `indices` and, with them or on request, the head; return the indices."""
        take, deepest = feature_take_indices(len(self.feature_info), indices)
        tap = self.feature_info[deepest]
        if tap["module"] != "last":
            kept = 0 if tap["module"] == "stem" else int(tap["module"].removeprefix("blocks.")) + 1
            self.blocks = self.blocks[:kept]
            self.last = nn.Identity()
            self.num_features = tap["num_chs"]
        if prune_head or tap["module"] != "last":
            self.head, self.act = nn.Identity(), nn.Identity()
            self.head_hidden_size = self.num_features
            self.reset_classifier(0, "")
        return take

    def _check_input(self, x: Tensor) -> None:
        """Raise ValueError for what is no batch of pictures for this model; nothing is asked of a graph's variables."""
        if is_eager(x):
            norm = getattr(self.last, "norm", None)  # the deepest, the first to see a 1x1 map
            batch_stats = isinstance(norm, nn.BatchNorm2d) and norm.training
            check_input(x, in_chans=self.in_chans, stride=self.stride, batch_stats=batch_stats)

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The last linear layer, or nn.Identity where num_classes is 0."""
        return self.classifier

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier for `num_classes`, 0 for none; other pooling where `global_pool` is given."""
        self.num_classes = _whole_number("num_classes", num_classes, 0)
        if global_pool is not None:
            self._set_pool(global_pool)
        self.classifier = nn.Identity()
        if num_classes:
            like = self.stem.conv.weight
            self.classifier = nn.Linear(self.head_hidden_size, num_classes, device=like.device, dtype=like.dtype)
            nn.init.normal_(self.classifier.weight, std=0.01)
            nn.init.zeros_(self.classifier.bias)
        self.classifier.train(self.training)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass in place of keeping their activations."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that put parameters in order of depth, for layer-wise learning rates."""
        return {"stem": r"^stem", "blocks": [(r"^blocks\.(\d+)", None), (r"^last", (99999,))]}

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay beside biases and norms: none."""
        return set()
