"""The paper's table of a network, row by row with what each costs: `mnv3 info` and `mnv3.show.arch` print it."""

from collections.abc import Iterator
from dataclasses import dataclass

from .arch import Arch, Cost, costs


@dataclass(frozen=True)
class TableRow:
    """A row of Table 1 or 2 of the paper, of any network."""

    cost: Cost  # its name, the sizes of its maps, its output channels; parameters, MACs and activations
    in_chans: int
    operator: str
    kernel: int | None = None
    exp: int | None = None  # channels inside of a bottleneck
    se: bool = False
    act: str | None = None  # 'RE' or 'HS'
    stride: int | None = None  # of the row that the paper prints, dilated or not
    dilation: int = 1


def table_rows(arch: Arch, *, size: int = 224, in_chans: int = 3, num_classes: int = 1000) -> Iterator[TableRow]:
    """The rows from the stem to the classifier.

    Args:
        arch: The network.
        size: Pixels along a side of a picture.
        in_chans: Channels of a picture.
        num_classes: Outputs of the classifier; 0 for none.
    """
    for cost in costs(arch, size=size, in_chans=in_chans, num_classes=num_classes):
        if cost.part == "stem":
            yield TableRow(cost, in_chans, "conv2d", 3, act=arch.act, stride=arch.stem_stride)
        elif cost.part == "last":
            yield TableRow(cost, in_chans, "conv2d", 1, act=arch.act, stride=1)
        elif cost.part == "head":
            yield TableRow(cost, in_chans, "pool, conv2d", 1, act=arch.act)
        elif cost.part == "classifier":
            yield TableRow(cost, in_chans, "linear")
        else:
            row = arch.rows[int(cost.part.removeprefix("blocks."))]
            columns = (row.kernel, row.exp, row.se, row.act, row.stride, row.dilation)
            yield TableRow(cost, in_chans, "bneck", *columns)
        in_chans = cost.channels
