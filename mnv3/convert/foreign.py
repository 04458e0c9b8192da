"""What a reader of another framework's files returns."""

from typing import Any, NamedTuple

from torch import Tensor

from ..arch import VARIANTS, Arch, as_arch, scale


class Foreign(NamedTuple):
    """A model out of another framework's file, in our terms.

    `create_model(arch, **options)` builds it, and loads `state_dict` strictly.
    """

    arch: str  # a registered name
    options: dict[str, Any]  # create_model's: num_classes, and width, in_chans, arch ... where they differ
    state_dict: dict[str, Tensor]  # our keys
    config: dict[str, Any]  # entries of pretrained_cfg that the file says: mean, std, input_size ...
    note: str  # what was found, in one line

    @property
    def table(self) -> Arch:
        """The network that `arch` and `options` name."""
        if "arch" in self.options:
            return as_arch(self.options["arch"])
        variant = VARIANTS[self.arch]
        return scale(variant.table, self.options.get("width", variant.width))


def named(table: Arch, pad_type: str) -> tuple[str, dict[str, Any]]:
    """The registered name for a table, and the arguments that make it this table where it is none of ours."""
    alike = sorted(VARIANTS.items(), key=lambda item: item[1].pad_type != pad_type)
    for name, variant in alike:
        padding = {} if variant.pad_type == pad_type else {"pad_type": pad_type}
        if variant.arch == table:
            return name, padding
    for name, variant in alike:
        padding = {} if variant.pad_type == pad_type else {"pad_type": pad_type}
        for width in (hundredths / 100 for hundredths in range(5, 401, 5)):
            if variant.width == 1 and scale(variant.table, width) == table:
                return name, padding | {"width": width}
    nearest = "mnv3_large" if len(table.rows) > 12 else "mnv3_small"
    return f"{nearest}_tf" if pad_type else nearest, {"arch": table.to_dict(), "width": 1.0}
