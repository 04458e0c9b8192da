"""A model out of another framework's file, which all readers return."""

from typing import Any, NamedTuple

from torch import Tensor, nn

from ..arch import VARIANTS, Arch, as_arch, scale
from ..factory import create_model
from ..files.conversion import convert_state_dict


class Foreign(NamedTuple):
    """A model out of another framework's file, in our terms.

    Attributes:
        arch: A registered name.
        options: Arguments of `create_model`: num_classes, and width, in_chans, arch ... where they differ.
        state_dict: The weights by our keys.
        config: Entries of pretrained_cfg that the file says: mean, std, input_size ...
        note: What the file holds, in one line.
    """

    arch: str
    options: dict[str, Any]
    state_dict: dict[str, Tensor]
    config: dict[str, Any]
    note: str

    @property
    def table(self) -> Arch:
        """The network that `arch` and `options` name."""
        if "arch" in self.options:
            return as_arch(self.options["arch"])
        variant = VARIANTS[self.arch]
        return scale(variant.table, self.options.get("width", variant.width))

    def build(self, *, tag: str | None = None, drop_background: bool = False) -> nn.Module:
        """The model with these weights.

        Args:
            tag: Of the published weights that these are; their preprocessing and names of classes come with it.
            drop_background: Leave out class 0 of the classifier.
        """
        options = self.options | {"num_classes": max(self.options["num_classes"] - drop_background, 0)}
        name, cfg = (f"{self.arch}.{tag}", {}) if tag else (self.arch, self.config)
        model = create_model(name, pretrained_cfg_overlay=cfg, **options)
        model.load_state_dict(convert_state_dict(self.state_dict, model, drop_background=drop_background))
        return model


def named(table: Arch, pad_type: str) -> tuple[str, dict[str, Any]]:
    """The registered name for a table, and the arguments that make it this table where it is none of ours.

    Args:
        table: Of the network.
        pad_type: '' for symmetric padding, 'same' for TensorFlow's.
    """
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
