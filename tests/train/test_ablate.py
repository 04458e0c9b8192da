"""What squeeze-and-excite and h-swish are worth."""

import json
import random
from functools import partial

import pytest

from mnv3.deploy.timing import interleaved
from mnv3.train.ablate import ablate, difference


@pytest.mark.parametrize("count", [2, 3, 5, 11])
def test_intervals_are_scipys(count):
    stats = pytest.importorskip("scipy.stats", reason="needs SciPy to compare with")
    rng = random.Random(count)
    one, other = ([90 + rng.random() for _ in range(count)] for _ in range(2))
    low, high = stats.ttest_rel(one, other).confidence_interval(0.95)
    assert difference(one, other) == pytest.approx(((low + high) / 2, (high - low) / 2), rel=1e-3)


@pytest.mark.usefixtures("no_charts")
def test_ablation(plain, tmp_path, monkeypatch):
    monkeypatch.setattr("mnv3.train.ablate.interleaved", partial(interleaved, rounds=1, seconds=0.01))
    (tmp_path / "short.yaml").write_text(plain.to_yaml())
    file, variants = tmp_path / "short.yaml", ("none", "hs", "se-first")
    options = {"epochs": 1, "batch_size": 48}
    text = ablate(file, out=tmp_path / "a", seeds=(0, 1), variants=variants, **options)
    rows = json.loads((tmp_path / "a" / "ablation.json").read_text())
    by_name = {row["variant"]: row for row in rows}
    assert tuple(by_name) == variants
    assert by_name["none"]["params"] == by_name["hs"]["params"] < by_name["se-first"]["params"]
    assert by_name["none"]["macs"] == by_name["hs"]["macs"]
    for row in rows:
        assert row["mean"] == pytest.approx(sum(row["top1"]) / 2)
        assert row["sd"] == pytest.approx(abs(row["top1"][0] - row["top1"][1]) / 2**0.5)
        assert row["difference"][0] == pytest.approx(row["mean"] - by_name["none"]["mean"])
    assert len(text.splitlines()) == 2 + len(variants)
    assert (tmp_path / "a" / "ablation.md").read_text() == text
    config = json.loads((tmp_path / "a" / "se-first-seed1" / "config.json").read_text())
    assert config["model_args"]["se_order"] == "se-act"
    again = ablate(file, out=tmp_path / "a", seeds=(0,), variants=("none",), **options)  # which is done already
    assert f"{by_name['none']['top1'][0]:.2f}" in again
