"""mnv3 show arch: the table says what the layers of the model say, and the picture has all of it."""

from collections import Counter

import figures
import pytest
import timm
import torch
from torch import nn

import mnv3
from mnv3 import arch, show
from mnv3.arch import VARIANTS
from mnv3.show.network import cells
from mnv3.table import table_rows

pytest.importorskip("matplotlib")
COSTS = {"params": (1e3, ",.1f"), "macs": (1e6, ",.2f"), "activations": (250, ",.1f")}


def counted(model, size):
    """Parameters, MACs and activations by part, by looking at every layer that runs; no number is computed."""
    costs = {name: Counter() for name in COSTS}

    def part_of(name):
        return ".".join(name.split(".")[: 2 if name.startswith("blocks") else 1])

    def count(name, layer, y):
        positions = y[0, 0].numel() if y.ndim == 4 else 1
        costs["activations"][part_of(name)] += y[0].numel()
        costs["macs"][part_of(name)] += layer.weight.numel() * positions

    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(lambda layer, x, y, name=name: count(name, layer, y))
    for name, parameter in model.named_parameters():
        costs["params"][part_of(name)] += parameter.numel()
    with torch.inference_mode():
        model.eval()(torch.zeros(1, 3, size, size))
    return costs


@pytest.mark.parametrize("name", ["mnv3_large", "mnv3_small_050", "mnv3_large_minimal", "mnv3_small_cifar"])
def test_table_is_what_the_layers_say(name):
    variant = VARIANTS[name]
    costs = counted(mnv3.create_model(name), variant.size)
    for row in table_rows(variant.arch, size=variant.size, num_classes=variant.num_classes):
        texts = cells(row)
        for cost, (unit, form) in COSTS.items():
            assert texts[cost] == format(costs[cost][row.cost.part] / unit, form), (row.cost.part, cost)


def test_columns_are_those_of_the_paper():
    """Some rows of its Table 1."""
    rows = {row.cost.part: list(cells(row).values())[1:8] for row in table_rows(arch.LARGE)}
    assert rows["stem"] == ["224² × 3", "conv 3×3", "-", "16", "-", "HS", "2"]
    assert rows["blocks.3"] == ["56² × 24", "bneck 5×5", "72", "40", "✓", "RE", "2"]
    assert rows["blocks.12"] == ["14² × 112", "bneck 5×5", "672", "160", "✓", "HS", "2"]
    assert rows["last"] == ["7² × 160", "conv 1×1", "-", "960", "-", "HS", "1"]
    assert rows["head"] == ["1² × 960", "pool, conv 1×1", "-", "1280", "-", "HS", "-"]
    assert rows["classifier"] == ["1² × 1280", "linear", "-", "1000", "-", "-", "-"]


def test_activations_are_those_that_timm_publishes():
    """Of its results/model_metadata-in1k.csv, in millions."""
    for table, published in ((arch.LARGE, 4.41), (arch.SMALL, 1.42)):
        assert sum(cost.activations for cost in arch.costs(table)) / 1e6 == pytest.approx(published, abs=0.005)
    theirs = counted(timm.create_model("mobilenetv3_large_100"), 224)
    assert theirs["activations"].total() == sum(cost.activations for cost in arch.costs(arch.LARGE))


@pytest.mark.parametrize("name", ["mnv3_large_minimal", "mnv3_small_cifar"])
def test_a_figure_has_every_line_and_the_total(name):
    variant = VARIANTS[name]
    figure = show.arch(name)
    figures.check(figure)
    words = figures.texts(figure)
    rows = list(table_rows(variant.arch, size=variant.size, num_classes=variant.num_classes))
    for row in rows:
        texts = list(cells(row).values())
        start = words.index(row.cost.part, words.index("resolution"))
        assert words[start : start + len(texts)] == texts
    for cost, (unit, form) in COSTS.items():
        assert format(sum(getattr(row.cost, cost) for row in rows) / unit, form) in words
    squeezes = name == "mnv3_small_cifar"
    assert (
        "pool" in words
    ) == squeezes  # a block's picture, of which the order of activation and squeeze is the paper's
    assert ("depthwise 5×5, stride 2,\nh-swish" in words) == squeezes


def test_tables_and_models():
    """A table in the dark, dilated; a model with other channels and order, and one of its blocks."""
    figure = show.arch(arch.dilate(arch.reduce_tail(arch.SMALL)), size=96, dark=True)
    figures.check(figure)
    assert {"d2", "96² × 3"} <= set(figures.texts(figure))
    model = mnv3.create_model("mnv3_small", se_order="se-act", num_classes=0, in_chans=1)
    figure = show.arch(model, block=3)
    figures.check(figure)
    words = figures.texts(figure)
    assert {"blocks.3", "depthwise 5×5, stride 2", "h-swish", "24 → 96, hard σ", "224² × 1"} <= set(words)
    assert "classifier" not in words
