"""MobileNetV3 as data: Tables 1 and 2 of the paper, and the functions that derive every variant from them.

Source: Howard et al., "Searching for MobileNetV3", https://arxiv.org/abs/1905.02244. A table row is one block;
row i is `model.blocks[i]` and `blocks.i.*` in a state dict. Everything that can be computed from a table
(channels, parameters, MACs, feature taps) is computed here by arithmetic, without building a model.
Standard library only.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from math import prod
from typing import Any, NamedTuple

from .errors import choices

ACTIVATIONS = ("RE", "HS")  # the paper's column NL: ReLU and h-swish
SE_ORDERS = ("act-se", "se-act", "se-act-expanded")


def round8(channels: float) -> int:
    """The nearest multiple of 8, at least 8, and not below 90 % of `channels` (the rule of the TensorFlow code)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def se_before_act(se_order: str, *, expands: bool) -> bool:
    """Whether a block's squeeze-and-excite stands before its activation.

    'act-se' is the paper's order. 'se-act' has it before, as some early ports do; 'se-act-expanded' has it before only
    in blocks that expand, as the published weights of https://github.com/d-li14/mobilenetv3.pytorch do.
    """
    return se_order == "se-act" or (se_order == "se-act-expanded" and expands)


def check_activation(act: str) -> None:
    """Raise ValueError unless `act` is one of the paper's two activations."""
    if act not in ACTIVATIONS:
        raise ValueError(f"unknown activation {act!r}. {choices(str(act), ACTIVATIONS)}")


@dataclass(frozen=True)
class Bneck:
    """One row of the table, in the paper's columns: kernel, exp size, #out, SE, NL, s.

    A `dilation` above 1 takes the place of the stride, as in the paper's networks for dense prediction.
    """

    kernel: int
    exp: int
    out: int
    se: bool
    act: str
    stride: int
    dilation: int = 1

    def __post_init__(self) -> None:
        for name in ("kernel", "exp", "out", "stride", "dilation"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"block {name}={value!r}: expected a whole number of at least 1")
        if self.kernel % 2 == 0:
            raise ValueError(f"block kernel={self.kernel}: expected an odd number")
        if self.stride > 2:
            raise ValueError(f"block stride={self.stride}: expected 1 or 2")
        if not isinstance(self.se, bool):
            raise ValueError(f"block se={self.se!r}: expected True or False")
        check_activation(self.act)

    @property
    def step(self) -> int:
        """Pixels from one position of the depthwise kernel to the next."""
        return self.stride if self.dilation == 1 else 1

    @property
    def squeeze(self) -> int:
        """Width of the squeeze-and-excite bottleneck: a quarter of the expansion, rounded to 8 (section 5.3)."""
        return round8(self.exp / 4)


@dataclass(frozen=True)
class Arch:
    """A network: stem convolution, rows, last 1x1 convolution before the pool, head 1x1 after it.

    stem, last, head are channels; `act` is the activation of all three (h-swish in the paper).
    """

    stem: int
    rows: tuple[Bneck, ...]
    last: int
    head: int
    stem_stride: int = 2
    act: str = "HS"

    def __post_init__(self) -> None:
        for name in ("stem", "last", "head"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"arch {name}={value!r}: expected a whole number of at least 1")
        if self.stem_stride not in (1, 2):
            raise ValueError(f"arch stem_stride={self.stem_stride!r}: expected 1 or 2")
        if not self.rows or not all(isinstance(row, Bneck) for row in self.rows):
            raise ValueError("arch rows: expected a tuple of at least one Bneck")
        check_activation(self.act)

    @property
    def inputs(self) -> list[int]:
        """Input channels of every row."""
        return [self.stem, *(row.out for row in self.rows[:-1])]

    @property
    def stride(self) -> int:
        """Total stride: a picture of n pixels leaves the last row as a map of ceil(n / stride)."""
        return self.stem_stride * prod(row.step for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for config.json; `as_arch` reads it back."""
        return asdict(self) | {"rows": [list(asdict(row).values()) for row in self.rows]}


LARGE = Arch(stem=16, rows=(  # Table 1
    #     k  exp  out   SE     NL   s       input
    Bneck(3, 16, 16, False, "RE", 1),     # 112^2 x 16
    Bneck(3, 64, 24, False, "RE", 2),     # 112^2 x 16
    Bneck(3, 72, 24, False, "RE", 1),     # 56^2 x 24
    Bneck(5, 72, 40, True, "RE", 2),      # 56^2 x 24
    Bneck(5, 120, 40, True, "RE", 1),     # 28^2 x 40
    Bneck(5, 120, 40, True, "RE", 1),     # 28^2 x 40
    Bneck(3, 240, 80, False, "HS", 2),    # 28^2 x 40
    Bneck(3, 200, 80, False, "HS", 1),    # 14^2 x 80
    Bneck(3, 184, 80, False, "HS", 1),    # 14^2 x 80
    Bneck(3, 184, 80, False, "HS", 1),    # 14^2 x 80
    Bneck(3, 480, 112, True, "HS", 1),    # 14^2 x 80
    Bneck(3, 672, 112, True, "HS", 1),    # 14^2 x 112
    Bneck(5, 672, 160, True, "HS", 2),    # 14^2 x 112
    Bneck(5, 960, 160, True, "HS", 1),    # 7^2 x 160
    Bneck(5, 960, 160, True, "HS", 1),    # 7^2 x 160
), last=960, head=1280)  # fmt: skip

SMALL = Arch(stem=16, rows=(  # Table 2
    #     k  exp  out   SE     NL   s       input
    Bneck(3, 16, 16, True, "RE", 2),      # 112^2 x 16
    Bneck(3, 72, 24, False, "RE", 2),     # 56^2 x 16
    Bneck(3, 88, 24, False, "RE", 1),     # 28^2 x 24
    Bneck(5, 96, 40, True, "HS", 2),      # 28^2 x 24
    Bneck(5, 240, 40, True, "HS", 1),     # 14^2 x 40
    Bneck(5, 240, 40, True, "HS", 1),     # 14^2 x 40
    Bneck(5, 120, 48, True, "HS", 1),     # 14^2 x 40
    Bneck(5, 144, 48, True, "HS", 1),     # 14^2 x 48
    Bneck(5, 288, 96, True, "HS", 2),     # 14^2 x 48
    Bneck(5, 576, 96, True, "HS", 1),     # 7^2 x 96
    Bneck(5, 576, 96, True, "HS", 1),     # 7^2 x 96
), last=576, head=1024)  # fmt: skip


def as_arch(arch: "Arch | str | dict[str, Any]") -> Arch:
    """An Arch from itself, from 'large' or 'small', or from the dictionary of `Arch.to_dict` or `dataclasses.asdict`.

    Raises:
        ValueError: The name is unknown, or the dictionary is not such a one.
    """
    if isinstance(arch, Arch):
        return arch
    if isinstance(arch, dict):
        try:
            rows = (Bneck(**row) if isinstance(row, dict) else Bneck(*row) for row in arch["rows"])
            return Arch(**(arch | {"rows": tuple(rows)}))
        except (TypeError, KeyError) as error:
            known = ", ".join(f.name for f in fields(Arch))
            raise ValueError(f"arch table: {error}. Expected the keys {known}; see Arch.to_dict") from None
    tables = {"large": LARGE, "small": SMALL}
    if not isinstance(arch, str) or arch not in tables:
        raise ValueError(f"unknown arch {arch!r}. {choices(str(arch), tables)} Or pass an Arch of your own")
    return tables[arch]


def scale(arch: Arch, width: float) -> Arch:
    """Every layer `width` times as wide, as TensorFlow's and timm's published narrow models have it.

    Outputs are rounded to 8, expansions follow from the rounded input by the row's exact ratio. The stem keeps its
    width below 0.75 (timm's rule for its 0.5 Small) and the head below 1.

    Raises:
        ValueError: `width` is not a positive number.
    """
    if isinstance(width, bool) or not isinstance(width, (int, float)) or not 0 < width <= 64:
        raise ValueError(f"width={width!r}: expected a number above 0 and at most 64 (1.0 is the paper's width)")
    if width == 1:
        return arch
    stem = channels = arch.stem if width < 0.75 else round8(width * arch.stem)
    rows = []
    for row, row_in in zip(arch.rows, arch.inputs, strict=True):
        rows.append(replace(row, exp=round8(channels * row.exp / row_in), out=round8(width * row.out)))
        channels = rows[-1].out
    head = arch.head if width < 1 else round8(width * arch.head)
    return replace(arch, stem=stem, rows=tuple(rows), last=round8(width * arch.last), head=head)


def scale_torchvision(arch: Arch, width: float) -> Arch:
    """As `scale`, by torchvision's rule for `width_mult`: every printed number times `width`, rounded to 8."""
    rows = tuple(replace(row, exp=round8(width * row.exp), out=round8(width * row.out)) for row in arch.rows)
    last = 6 * rows[-1].out
    return replace(arch, stem=round8(width * arch.stem), rows=rows, last=last, head=round8(width * arch.head))


def minimal(arch: Arch) -> Arch:
    """The 'minimalistic' variant of the TensorFlow release: no SE, no h-swish, no 5x5 kernels.

    Source: https://github.com/tensorflow/models/blob/master/research/slim/nets/mobilenet/README.md
    """
    rows = tuple(replace(row, kernel=3) for row in arch.rows)
    return without_hs(without_se(replace(arch, rows=rows)))


def without_se(arch: Arch) -> Arch:
    """No squeeze-and-excite anywhere (ablation)."""
    return replace(arch, rows=tuple(replace(row, se=False) for row in arch.rows))


def without_hs(arch: Arch) -> Arch:
    """ReLU in place of every h-swish (ablation)."""
    return replace(arch, act="RE", rows=tuple(replace(row, act="RE") for row in arch.rows))


def with_strides(arch: Arch, strides: tuple[int, ...]) -> Arch:
    """Other strides for the stem and for the rows that halve the map in `arch`, in that order.

    Raises:
        ValueError: There are not exactly as many strides as the stem and those rows.
    """
    halving = _halving_rows(arch)
    if len(strides) != len(halving) + 1:
        raise ValueError(f"strides={strides}: expected {len(halving) + 1} numbers, for the stem and rows {halving}")
    rows = list(arch.rows)
    for i, stride in zip(halving, strides[1:], strict=True):
        rows[i] = replace(rows[i], stride=stride)
    return replace(arch, stem_stride=strides[0], rows=tuple(rows))


def cifar(arch: Arch) -> Arch:
    """For 32x32 pictures: the same rows, total stride 8 in place of 32, so that the last map is 4x4."""
    return with_strides(arch, (1, 2, 1, 2, 2))


def dilate(arch: Arch) -> Arch:
    """Half the total stride, for dense prediction: from the last halving row on, kernels dilated by 2 (again, by 4).

    Section 6.4 of the paper; the same network as torchvision's `dilated=True`.
    """
    start = [i for i, row in enumerate(arch.rows) if row.step == 2][-1]
    tail = (replace(row, dilation=2 * row.dilation) for row in arch.rows[start:])
    return replace(arch, rows=(*arch.rows[:start], *tail))


def reduce_tail(arch: Arch) -> Arch:
    """Half the channels from the last halving row's output on, for dense prediction (section 6.4 of the paper).

    The same network as torchvision's `reduced_tail=True`.
    """
    start = _halving_rows(arch)[-1]
    first = replace(arch.rows[start], out=arch.rows[start].out // 2)
    rest = (replace(row, exp=row.exp // 2, out=row.out // 2) for row in arch.rows[start + 1 :])
    return replace(arch, rows=(*arch.rows[:start], first, *rest), last=arch.last // 2, head=arch.head // 2)


def _halving_rows(arch: Arch) -> list[int]:
    return [i for i, row in enumerate(arch.rows) if row.stride == 2]


class Tap(NamedTuple):
    """A feature map to take: after which module, how many channels, at which total stride."""

    module: str
    channels: int
    reduction: int


def taps(arch: Arch) -> list[Tap]:
    """The last module before every halving, dilated or not, and the last convolution, shallow to deep, as in timm."""
    reduction, module, channels = arch.stem_stride, "stem", arch.stem
    maps = []
    for i, row in enumerate(arch.rows):
        if row.stride > 1:
            maps.append(Tap(module, channels, reduction))
            reduction *= row.step
        module, channels = f"blocks.{i}", row.out
    return [*maps, Tap("last", arch.last, reduction)]


class Cost(NamedTuple):
    """What one part of the network costs for one picture."""

    part: str
    size: int  # pixels along a side of the map that it reads
    out_size: int  # pixels along a side of the map that it writes
    channels: int  # channels that it writes
    params: int
    macs: int  # multiply-accumulates of convolutions and linear layers
    activations: int  # values that these layers write (Radosavovic et al. 2020, https://arxiv.org/abs/2003.13678)


def costs(arch: Arch, *, size: int = 224, in_chans: int = 3, num_classes: int = 1000) -> Iterator[Cost]:
    """Parameters, MACs and activations of every part, in order, for a picture (in_chans, size, size)."""

    def conv(k: int, cin: int, cout: int, groups: int, out_size: int, shifts: int = 2) -> tuple[int, int, int]:
        """Batch norm has a scale and a shift per channel, a layer with a bias one of the two."""
        weights, pixels = k * k * cin * cout // groups, out_size**2
        return weights + shifts * cout, weights * pixels, cout * pixels

    def part(name: str, size: int, out_size: int, channels: int, *layers: tuple[int, int, int]) -> Cost:
        return Cost(name, size, out_size, channels, *map(sum, zip(*layers, strict=True)))

    out = -(-size // arch.stem_stride)
    yield part("stem", size, out, arch.stem, conv(3, in_chans, arch.stem, 1, out))
    for i, (row, cin) in enumerate(zip(arch.rows, arch.inputs, strict=True)):
        size, out = out, -(-out // row.step)
        layers = [conv(1, cin, row.exp, 1, size)] if row.exp != cin else []
        layers.append(conv(row.kernel, row.exp, row.exp, row.exp, out))
        if row.se:
            layers += [conv(1, row.exp, row.squeeze, 1, 1, 1), conv(1, row.squeeze, row.exp, 1, 1, 1)]
        layers.append(conv(1, row.exp, row.out, 1, out))
        yield part(f"blocks.{i}", size, out, row.out, *layers)
    yield part("last", out, out, arch.last, conv(1, arch.rows[-1].out, arch.last, 1, out))
    yield part("head", 1, 1, arch.head, conv(1, arch.last, arch.head, 1, 1, 1))
    if num_classes:
        yield part("classifier", 1, 1, num_classes, conv(1, arch.head, num_classes, 1, 1, 1))


def count_params(arch: Arch, *, in_chans: int = 3, num_classes: int = 1000) -> int:
    """Trainable parameters."""
    return sum(cost.params for cost in costs(arch, in_chans=in_chans, num_classes=num_classes))


def count_macs(arch: Arch, *, size: int = 224, in_chans: int = 3, num_classes: int = 1000) -> int:
    """Multiply-accumulates for one picture of `size` x `size` pixels."""
    return sum(cost.macs for cost in costs(arch, size=size, in_chans=in_chans, num_classes=num_classes))


class Variant(NamedTuple):
    """A registered name: its table before `width`, and what it is built with."""

    table: Arch
    width: float = 1.0
    pad_type: str = ""  # 'same' where TensorFlow's weights exist: they need its asymmetric padding
    num_classes: int = 1000
    size: int = 224  # pixels

    @property
    def arch(self) -> Arch:
        """The table at the variant's width."""
        return scale(self.table, self.width)


VARIANTS: dict[str, Variant] = {
    "mnv3_large": Variant(LARGE),
    "mnv3_small": Variant(SMALL),
    "mnv3_large_075": Variant(LARGE, width=0.75),
    "mnv3_small_075": Variant(SMALL, width=0.75),
    "mnv3_small_050": Variant(SMALL, width=0.5),
    "mnv3_large_minimal": Variant(minimal(LARGE)),
    "mnv3_small_minimal": Variant(minimal(SMALL)),
    "mnv3_large_tf": Variant(LARGE, pad_type="same"),
    "mnv3_small_tf": Variant(SMALL, pad_type="same"),
    "mnv3_large_075_tf": Variant(LARGE, width=0.75, pad_type="same"),
    "mnv3_small_075_tf": Variant(SMALL, width=0.75, pad_type="same"),
    "mnv3_large_minimal_tf": Variant(minimal(LARGE), pad_type="same"),
    "mnv3_small_minimal_tf": Variant(minimal(SMALL), pad_type="same"),
    "mnv3_large_cifar": Variant(cifar(LARGE), num_classes=10, size=32),
    "mnv3_small_cifar": Variant(cifar(SMALL), num_classes=10, size=32),
}
