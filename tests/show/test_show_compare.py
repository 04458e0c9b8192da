"""mnv3 show compare: accuracies and costs are those that are stated or counted, and every name can be read."""

import json
import shutil

import figures
import pytest
from conftest import ROOT

import mnv3
from mnv3 import arch, show
from mnv3.figures import style
from mnv3.pictures.evaluate import Metrics
from mnv3.show.comparison import collect, point_rows

pytest.importorskip("matplotlib")


def test_compare(tmp_path):
    per_class = {"a": 70.0, "b": 71.0}
    Metrics(200, 70.5, 100.0, 0.7, ["a", "b"], per_class, [[70, 30], [29, 71]]).save(tmp_path / "eval.json")
    names = ["mnv3_small", "mnv3_large.tv_in1k", "torchvision/resnet18", "timm/mobilenetv2_100=72.9"]
    sources = ["mnv3_small", "mnv3_large", "torchvision/resnet18", "timm/mobilenetv2_100", "mnv3_large_075"]
    cells = [
        {"model": name, "runtime": "eager", "threads": 1, "batch": 1, "ms": 3.0 + i} for i, name in enumerate(sources)
    ]
    (tmp_path / "bench.json").write_text(json.dumps({"cells": cells}))
    points, ablations = collect([*names, f"mnv3_large_075={tmp_path / 'eval.json'}"], bench=tmp_path / "bench.json")
    assert ablations == []
    assert [(p.name, p.source, p.library, p.top1, p.ms) for p in points] == [
        ("mnv3_small.lamb_in1k", "mnv3_small", "mnv3", 67.638, 3),
        ("mnv3_large.tv_in1k", "mnv3_large", "mnv3", 74.042, 4),
        ("resnet18", "torchvision/resnet18", "torchvision", 69.758, 5),
        ("mobilenetv2_100", "timm/mobilenetv2_100", "timm", 72.9, 6),
        ("mnv3_large_075", "mnv3_large_075", "mnv3", 70.5, 7),
    ]
    assert points[0].macs == arch.count_macs(arch.SMALL)
    assert points[2].macs == pytest.approx(1.814e9, rel=1e-3)  # torchvision states as many GFLOPS
    figure = style.figure(point_rows(points))
    figures.check(figure)
    words = figures.texts(figure)
    assert {"top-1 / % (ImageNet-1k val)", "MACs / M at 224 px", "latency of one picture / ms, 1 thread"} <= set(words)
    for axis, costs in zip(figure.axes, ([p.macs / 1e6 for p in points], [p.ms for p in points]), strict=True):
        drawn = {x: y for part in axis.collections for x, y in part.get_offsets().tolist()}
        assert drawn == pytest.approx({cost: p.top1 for cost, p in zip(costs, points, strict=True)})
        assert sorted(text.get_text() for text in axis.texts) == sorted(p.name for p in points)


def test_compare_folders(trained, tmp_path):
    """A run, one with a name like NAME=TOP1, and weights whose accuracy is given."""
    shutil.copytree(trained, tmp_path / "a=b")
    weights = mnv3.save(mnv3.create_model("mnv3_small_cifar"), tmp_path / "w")
    (run, odd), _ = collect([str(trained), str(tmp_path / "a=b")], latency=False)
    (given,), _ = collect([f"{weights}=12.5"], latency=False)
    top1 = json.loads((trained / "test.json").read_text())["top1"]
    assert (run.name, run.data, run.top1) == ("trained", "noisy0 test", top1)
    assert (odd.name, given.name, given.top1, given.macs) == ("a=b", "w", 12.5, 16315392)


def test_published_figures_beside_ours():
    """The public front of CIFAR-10; models whose MACs nobody states are in the table of docs/cifar10.md alone."""
    file = ROOT / "benchmarks" / "cifar10_published.json"
    names = ["mnv3_small_cifar.cifar10", str(file)]
    points, _ = collect(names, latency=False)
    stated = {m["name"]: (m["top1"], m["macs"]) for m in json.loads(file.read_text())["models"]}
    assert {p.name: (p.top1, p.macs) for p in points[1:]} == {k: v for k, v in stated.items() if v[1]}
    assert {(p.library, p.data, p.size) for p in points[1:]} == {("published", "CIFAR-10 test", 32)}
    figures.check(show.compare(names, latency=False))


@pytest.mark.slow
def test_compare_measures(tmp_path):
    points, _ = collect(["mnv3_small_cifar", "mnv3_large_cifar"], seconds=0.3)
    assert 0 < points[0].ms < points[1].ms


def test_names_of_all_models_have_room():
    names = [record.name for record in mnv3.CATALOG if record.top1 and record.data == "ImageNet-1k val"]
    figures.check(show.compare([*names, "torchvision/resnet18"], latency=False))


def test_ablation(tmp_path):
    rows = [
        {"variant": "none", "top1": [70.0, 71.0], "mean": 70.5, "sd": 0.7071, "macs": 1, "latency_ms": 2.0},
        {"variant": "both", "top1": [72.0, 75.0], "mean": 73.5, "sd": 2.1213, "macs": 1, "latency_ms": 2.5},
    ]
    (tmp_path / "ablation.json").write_text(json.dumps(rows))
    figure = show.compare([str(tmp_path)])
    figures.check(figure)
    axis = figure.axes[0]
    assert [bar.get_width() for bar in axis.patches] == [70.5, 73.5]
    ends = [part.get_segments()[0][:, 0].tolist() for part in axis.collections]
    assert ends == [pytest.approx([row["mean"] - row["sd"], row["mean"] + row["sd"]]) for row in rows]
    dots = [line.get_xdata().tolist() for line in axis.lines if line.get_marker() == "o"]
    assert dots == [row["top1"] for row in rows]
    assert {"neither", "both (the paper's)", "2.50"} <= set(figures.texts(figure))


@pytest.fixture(scope="module")
def odd_files(tmp_path_factory):
    """Files that say nothing or the wrong thing, by what they are called in the table below."""
    folder = tmp_path_factory.mktemp("odd")
    contents = {
        "bad": [],
        "empty": {"cells": []},
        "ablation": [{"variant": "none"}],
        "published": {"data": "x", "size": 32, "models": [{"name": "a", "top1": 170, "macs": 1, "source": "x"}]},
    }
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    weights = mnv3.save(mnv3.create_model("mnv3_small_cifar"), folder / "w")
    files = {name.upper(): folder / f"{name}.json" for name in contents}
    return files | {"WEIGHTS": weights, "ABLATION": folder}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["mnv3_smal"], "Did you mean 'mnv3_small"),
        (["mnv3_small.x"], "unknown tag 'x'"),
        (["mnv3_large_minimal"], "no pretrained weights are published"),
        (["mnv3_large.miil_in21k"], "no top-1 is published"),
        (["timm/resnet18"], "give it, as in timm/resnet18=71.5"),
        (["timm/resnet19=70"], "no model 'timm/resnet19'"),
        (["mnv3_small=170"], "expected a top-1 from 0 to 100"),
        (["mnv3_small=none.json"], "no such file, and no number"),
        (["mnv3_small=BAD"], "no top-1 in it"),
        (["mnv3_small", "mnv3_small_cifar"], "accuracies on different pictures"),
        (["mnv3_small", "--bench", "BAD"], "not what `mnv3 bench --json` writes"),
        (["mnv3_small", "--bench", "EMPTY"], "has no mnv3_small.lamb_in1k in eager with 1 thread"),
        (["mnv3_small", "--bench", "none.json"], "none.json: no such file"),
        (["WEIGHTS"], "no test.json of a run in it: give its top-1"),
        (["net.onnx=50"], "the MACs of an exported file cannot be counted"),
        (["ABLATION"], "not what `mnv3 ablate` writes"),
        (["BAD", "--no-latency"], "not a file of published figures"),
        (["none.json", "--no-latency"], "none.json: no such file"),
        (["PUBLISHED", "--no-latency"], "expected a top-1 from 0 to 100 per cent"),
        (["mnv3_small_cifar", str(ROOT / "benchmarks" / "cifar10_published.json")], "has no latency to measure"),
    ],
)
def test_what_cannot_be_compared(fails, odd_files, tmp_path, args, message):
    args = [str(odd_files[a]) if a in odd_files else a.replace("BAD", str(odd_files["BAD"])) for a in args]
    assert message in fails("show", "compare", *args, "-o", tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
