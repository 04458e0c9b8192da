"""mnv3 show run: what is drawn is what the run's files and its model's answers say."""

import csv
import json
import math
from functools import partial

import figures
import numpy as np
import pytest
import torch
from PIL import Image

from mnv3 import show
from mnv3.figures import charts, style
from mnv3.show.calibration import calibration
from mnv3.show.training import worst_mistakes
from mnv3.train.results import read

pytest.importorskip("matplotlib")


def test_run(trained):
    figure = show.run(trained)
    figures.check(figure)
    test = json.loads((trained / "test.json").read_text())
    words = figures.texts(figure)
    assert f"mnv3_small_cifar, noisy0, 2 epochs, top-1 {test['top1']:.2f} % of 30 test pictures" in words
    by_label = {axis.get_ylabel(): axis for axis in figure.axes if axis.get_ylabel()}
    log = list(csv.DictReader((trained / "log.csv").open()))
    for label, keys in (
        ("cross-entropy / nats", ["train_loss", "val_loss"]),
        ("learning rate", ["lr"]),
        ("validation top-1 / %", ["val_top1"]),
    ):
        drawn = [line.get_ydata().tolist() for line in by_label[label].lines]
        assert drawn == [[float(line[key]) for line in log] for key in keys]
    matrix = np.array(test["confusion"])
    assert np.allclose(figures.picture(by_label["true class"]), 100 * matrix / matrix.sum(1, keepdims=True))
    for share in test["per_class"].values():
        assert f"{share:.1f}" in words


def test_answers_are_the_evaluations(trained):
    """Predictions made again give test.json; calibration and mistakes are counted one by one."""
    results = read(trained)
    probs, labels = results.answers.probs, results.answers.labels
    matrix = np.zeros((3, 3), dtype=int)
    for p, label in zip(probs, labels, strict=True):
        matrix[label, p.argmax()] += 1
    assert matrix.tolist() == results.test.confusion
    wrong = [
        (-max(p.tolist()), i, label.item(), p.argmax().item())
        for i, (p, label) in enumerate(zip(probs, labels, strict=True))
        if p.argmax() != label
    ]
    expected = [(i, label, answer, pytest.approx(-sure)) for sure, i, label, answer in sorted(wrong)]
    assert worst_mistakes(results.answers, 1000) == expected
    assert len(wrong) > 3


def test_run_with_large_pictures(trained, tmp_path):
    """Of several sizes, so that they are read from their files; and none for some of the mistakes."""
    rng = np.random.default_rng(0)
    for i, name in enumerate(("bright", "dark", "middle & <b>")):
        (tmp_path / "test" / name).mkdir(parents=True)
        for j in range(3):
            pixels = rng.normal(100 + 20 * i, 30, (120, 150 + 10 * j, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "test" / name / f"{j}.jpg")
    figure = show.run(trained, what=["mistakes"], data=str(tmp_path))
    figures.check(figure)
    drawn = [figures.picture(axis) for axis in figure.axes if axis.images]
    assert len(drawn) > 2
    assert all(max(picture.shape) <= 160 for picture in drawn)


@pytest.mark.filterwarnings("ignore:Glyph")  # where no font has it
def test_many_classes_and_odd_names():
    """A hundred classes are not named along the axes; a dollar is a dollar; a long name is cut off."""
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, 9, (100, 100)).tolist()
    names = [f"a rather long name of a class, {i}" for i in range(100)]
    names[int(np.argmin([row[i] / sum(row) for i, row in enumerate(matrix)]))] = "$\\nope$ 猫"

    charts_of_it = (charts.draw_confusion, charts.draw_class_accuracies)
    panels = [partial(draw, matrix=matrix, classes=names) for draw in charts_of_it]
    figure = style.figure([style.Row(6, [panel]) for panel in panels])
    figures.check(figure)
    words = figures.texts(figure)
    assert "a rather long name …" in words
    assert "$\\nope$ 猫" in words
    (axis,) = (axis for axis in figure.axes if axis.get_title("left") == "the worst 30 of 100 classes")
    assert len(axis.get_yticklabels()) == 30


def test_calibration_by_hand():
    generator = torch.Generator().manual_seed(0)
    probs = torch.randn(500, 4, generator=generator).mul(2).softmax(1)
    labels = torch.randint(0, 4, (500,), generator=generator)
    bins = [[] for _ in range(15)]
    for p, label in zip(probs.double().tolist(), labels.tolist(), strict=True):
        sure = max(p)
        bins[math.ceil(sure * 15) - 1].append((sure, p.index(sure) == label))
    ece = sum(abs(sum(s for s, _ in b) - sum(r for _, r in b)) for b in bins) / 500
    result = calibration(probs, labels)
    assert result.ece == pytest.approx(ece)
    assert result.count.tolist() == [len(b) for b in bins]
    assert result.confidence[7] == pytest.approx(np.mean([sure for sure, _ in bins[7]]))
    assert result.centres[7] == 0.5
    for share, b in zip(result.accuracy, bins, strict=True):
        assert np.isnan(share) if not b else share == pytest.approx(np.mean([right for _, right in b]))
    perfect = calibration(torch.eye(4), torch.arange(4))
    assert perfect.ece == 0
    assert perfect.count[-1] == 4


def test_wilson_by_its_equation():
    """Its ends are where the normal interval of the true share just holds what was seen."""
    for hits, count in ((0, 10), (3, 10), (10, 10), (821, 1000)):
        for end in charts.wilson_interval(hits, count):
            if 0 < end < 1:
                assert abs(hits / count - end) == pytest.approx(1.96 * math.sqrt(end * (1 - end) / count))
        low, high = charts.wilson_interval(hits, count)
        assert 0 <= low <= hits / count <= high <= 1


def test_run_that_is_not_whole(copied):
    """Each file that is missing or damaged is named, and what can be drawn without it."""

    def fault(folder=copied, what=("curves", "confusion")):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            read(folder, what=what)
        return str(error.value)

    (copied / "test.json").write_text("[]")
    assert "not what `mnv3 finetune` writes" in fault()
    (copied / "test.json").unlink()
    assert "no test.json: there were no test pictures" in fault()
    (copied / "config.json").unlink()
    assert "is not finished (2 of 2 epochs): go on with `mnv3 finetune --resume`" in fault()
    assert len(read(copied, what=["curves"]).history) == 2
    (copied / "log.csv").write_text("epoch,lr\n1,many\n")
    assert "not the log of a training" in fault(what=["curves"])
    (copied / "log.csv").unlink()
    assert "no epoch is done yet" in fault()
    (copied / "recipe.yaml").unlink()
    assert "is no run's folder: it has no recipe.yaml" in fault()
    assert "no such folder" in fault(copied / "none")


def test_run_whose_pictures_are_gone(copied, noisy, fails, tmp_path, caplog):
    """The message says how to go on, and both ways work; other pictures than those of test.json are noticed."""
    recipe = (copied / "recipe.yaml").read_text()
    (copied / "recipe.yaml").write_text(recipe.replace(str(noisy), "/nowhere"))
    message = fails("show", "run", copied, "-o", tmp_path / "x.png")
    assert "gone" in message
    assert "--what curves,confusion" in message
    assert not (tmp_path / "x.png").exists()
    assert read(copied, what=["curves", "confusion"]).answers is None
    test = json.loads((copied / "test.json").read_text())
    (copied / "test.json").write_text(json.dumps(test | {"top1": 99.0}))
    assert len(read(copied, data=str(noisy)).answers.labels) == 30
    assert "but test.json has 99.00 %" in caplog.text


def test_parts_that_there_are_not(fails, trained, tmp_path):
    out = ("-o", tmp_path / "x.png")
    assert "expected some of curves, confusion" in fails("show", "run", trained, "--what", "curve", *out)


def test_an_edge_belongs_to_the_bin_below():
    probs = torch.tensor([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]])
    assert calibration(probs, torch.zeros(3, dtype=torch.long), bins=4).count.tolist() == [0, 1, 1, 1]
