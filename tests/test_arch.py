"""The tables against the paper, and the arithmetic against built models."""

import json

import pytest
import timm

from mnv3 import arch
from mnv3.model import MobileNetV3

# Tables 1 and 2 of https://arxiv.org/abs/1905.02244v5, from the paper: input, operator, exp size, #out, SE, NL, s.
LARGE = """
112^2 x 16 | bneck, 3x3 | 16  | 16  | - | RE | 1
112^2 x 16 | bneck, 3x3 | 64  | 24  | - | RE | 2
56^2 x 24  | bneck, 3x3 | 72  | 24  | - | RE | 1
56^2 x 24  | bneck, 5x5 | 72  | 40  | x | RE | 2
28^2 x 40  | bneck, 5x5 | 120 | 40  | x | RE | 1
28^2 x 40  | bneck, 5x5 | 120 | 40  | x | RE | 1
28^2 x 40  | bneck, 3x3 | 240 | 80  | - | HS | 2
14^2 x 80  | bneck, 3x3 | 200 | 80  | - | HS | 1
14^2 x 80  | bneck, 3x3 | 184 | 80  | - | HS | 1
14^2 x 80  | bneck, 3x3 | 184 | 80  | - | HS | 1
14^2 x 80  | bneck, 3x3 | 480 | 112 | x | HS | 1
14^2 x 112 | bneck, 3x3 | 672 | 112 | x | HS | 1
14^2 x 112 | bneck, 5x5 | 672 | 160 | x | HS | 2
7^2 x 160  | bneck, 5x5 | 960 | 160 | x | HS | 1
7^2 x 160  | bneck, 5x5 | 960 | 160 | x | HS | 1
"""
SMALL = """
112^2 x 16 | bneck, 3x3 | 16  | 16  | x | RE | 2
56^2 x 16  | bneck, 3x3 | 72  | 24  | - | RE | 2
28^2 x 24  | bneck, 3x3 | 88  | 24  | - | RE | 1
28^2 x 24  | bneck, 5x5 | 96  | 40  | x | HS | 2
14^2 x 40  | bneck, 5x5 | 240 | 40  | x | HS | 1
14^2 x 40  | bneck, 5x5 | 240 | 40  | x | HS | 1
14^2 x 40  | bneck, 5x5 | 120 | 48  | x | HS | 1
14^2 x 48  | bneck, 5x5 | 144 | 48  | x | HS | 1
14^2 x 48  | bneck, 5x5 | 288 | 96  | x | HS | 2
7^2 x 96   | bneck, 5x5 | 576 | 96  | x | HS | 1
7^2 x 96   | bneck, 5x5 | 576 | 96  | x | HS | 1
"""


@pytest.mark.parametrize(("table", "paper"), [(arch.LARGE, LARGE), (arch.SMALL, SMALL)], ids=["large", "small"])
def test_table_is_the_papers(table, paper):
    blocks = [cost for cost in arch.costs(table) if cost.part.startswith("blocks")]
    printed = [
        f"{cost.size}^2 x {cin} | bneck, {row.kernel}x{row.kernel} | {row.exp} | {row.out} | {'x' if row.se else '-'} "
        f"| {row.act} | {row.stride}"
        for cost, cin, row in zip(blocks, table.inputs, table.rows, strict=True)
    ]
    assert [line.split() for line in printed] == [line.split() for line in paper.strip().splitlines()]


def test_ends_of_the_tables():
    assert (arch.LARGE.stem, arch.LARGE.last, arch.LARGE.head, arch.LARGE.stride) == (16, 960, 1280, 32)
    assert (arch.SMALL.stem, arch.SMALL.last, arch.SMALL.head, arch.SMALL.stride) == (16, 576, 1024, 32)


@pytest.mark.parametrize(
    ("channels", "rounded"), [(18, 24), (5.6, 8), (0.1, 8), (12, 16), (30, 32), (40, 40), (36, 40), (180, 184)]
)
def test_round8(channels, rounded):
    assert arch.round8(channels) == rounded


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [
        ("mnv3_large", 5_483_032, 216_589_760),  # paper: 5.4 M, 219 M
        ("mnv3_small", 2_542_856, 56_510_400),  # paper: 2.5 M, 56 M
        ("mnv3_large_075", 3_993_528, 154_560_624),  # paper: 4.0 M, 155 M
        ("mnv3_small_075", 2_041_872, 43_399_344),  # paper: 2.0 M, 44 M
        ("mnv3_small_050", 1_593_224, 24_188_688),
        ("mnv3_large_minimal", 3_924_288, 209_136_704),  # TensorFlow's README: 3.9 M, 209 M
        ("mnv3_small_minimal", 2_044_736, 52_288_448),
        ("mnv3_large_cifar", 4_214_842, 60_358_016),
        ("mnv3_small_cifar", 1_528_106, 16_315_392),
    ],
)
def test_totals(name, params, macs):
    variant = arch.VARIANTS[name]
    assert arch.count_params(variant.arch, num_classes=variant.num_classes) == params
    assert arch.count_macs(variant.arch, size=variant.size, num_classes=variant.num_classes) == macs


@pytest.mark.parametrize("width", [0.1, 0.35, 0.5, 0.75, 1.0, 1.25, 1.4])
@pytest.mark.parametrize("table", [arch.LARGE, arch.SMALL], ids=["large", "small"])
def test_arithmetic_is_the_built_model(table, width):
    scaled = arch.scale(table, width)
    model = MobileNetV3(table, width=width, num_classes=7, in_chans=4, device="meta")
    assert arch.count_params(scaled, in_chans=4, num_classes=7) == sum(p.numel() for p in model.parameters())
    for cost in arch.costs(scaled, in_chans=4, num_classes=7):
        assert cost.params == sum(p.numel() for p in model.get_submodule(cost.part).parameters()), cost.part
    widths = [c for row in scaled.rows for c in (row.exp, row.out, row.squeeze)] + [scaled.stem, scaled.last]
    assert all(c > 0 and c % 8 == 0 for c in widths)


@pytest.mark.parametrize(
    ("table", "name"),
    [
        (arch.LARGE, "mobilenetv3_large_100"),
        (arch.scale(arch.LARGE, 0.75), "mobilenetv3_large_075"),
        (arch.SMALL, "mobilenetv3_small_100"),
        (arch.scale(arch.SMALL, 0.75), "mobilenetv3_small_075"),
        (arch.scale(arch.SMALL, 0.5), "mobilenetv3_small_050"),
        (arch.minimal(arch.LARGE), "tf_mobilenetv3_large_minimal_100"),
    ],
)
def test_taps_are_timms(table, name):
    info = timm.create_model(name).feature_info
    assert [(tap.channels, tap.reduction) for tap in arch.taps(table)] == [(f["num_chs"], f["reduction"]) for f in info]


def test_narrow_projection_of_d_li14_issue_14():
    """A 40-wide stage is 32 wide at width 0.75."""
    outs = {row.out for row in arch.scale(arch.SMALL, 0.75).rows}
    assert 32 in outs
    assert 40 not in {row.out for row in arch.scale(arch.SMALL, 0.75).rows[3:6]}


def test_minimal_has_nothing_but_3x3_and_relu():
    for table in (arch.LARGE, arch.SMALL):
        rows = arch.minimal(table).rows
        assert {(row.kernel, row.se, row.act) for row in rows} == {(3, False, "RE")}
        assert arch.minimal(table).act == "RE"


def test_table_survives_json():
    for variant in arch.VARIANTS.values():
        assert arch.as_arch(json.loads(json.dumps(variant.arch.to_dict()))) == variant.arch


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: arch.Bneck(3, 16, 16, False, "swish", 1), "unknown activation 'swish'.*Allowed: RE, HS"),
        (lambda: arch.Bneck(4, 16, 16, False, "RE", 1), "kernel=4: expected an odd number"),
        (lambda: arch.Bneck(3, 0, 16, False, "RE", 1), "exp=0: expected a whole number of at least 1"),
        (lambda: arch.Bneck(3, 16, 2.5, False, "RE", 1), r"out=2\.5: expected a whole number"),
        (lambda: arch.Bneck(3, 16, 16, "yes", "RE", 1), "se='yes': expected True or False"),
        (lambda: arch.Bneck(3, 16, 16, False, "RE", 3), "stride=3: expected 1 or 2"),
        (lambda: arch.Arch(stem=16, rows=(), last=8, head=8), "rows: expected a tuple of at least one Bneck"),
        (lambda: arch.Arch(stem=-1, rows=arch.SMALL.rows, last=8, head=8), "stem=-1"),
        (lambda: arch.scale(arch.LARGE, 0), "width=0: expected a number above 0"),
        (lambda: arch.scale(arch.LARGE, -1), "width=-1: expected a number above 0"),
        (lambda: arch.scale(arch.LARGE, float("nan")), "width=nan: expected a number above 0"),
        (lambda: arch.scale(arch.LARGE, "0.5"), "width='0.5': expected a number above 0"),
        (lambda: arch.as_arch("medium"), "unknown arch 'medium'.*large, small"),
        (lambda: arch.as_arch({"stem": 16}), "arch table: 'rows'. Expected the keys stem, rows, last, head"),
        (lambda: arch.with_strides(arch.LARGE, (1, 1)), r"expected 5 numbers, for the stem and rows \[1, 3, 6, 12\]"),
    ],
)
def test_bad_tables_say_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()
