"""mnv3 bench: real measurements of small models, and what it refuses."""

import datetime
import functools
import inspect
import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import needs
from exports import ARCH, exported, weights

import mnv3
from mnv3 import bench
from mnv3.arch import count_macs
from mnv3.cli.main import main
from mnv3.deploy import processor
from mnv3.deploy.timing import call_times


@pytest.fixture(scope="module")
def cells():
    """A model of ours in two runtimes, and one of timm."""
    needs("onnx")
    return bench.bench([str(weights()), "timm/test_resnet"], runtimes=["fused", "onnx"], size=32, seconds=0.1)


def test_cells(cells):
    """Everything is of a size that the model can have, and ratios are to the row's first runtime."""
    ours = str(weights())
    assert [(c.model, c.runtime) for c in cells] == [
        (ours, "fused"),
        (ours, "onnx"),
        ("timm/test_resnet", "onnx"),
    ]
    for cell in cells:
        first = next(c for c in cells if c.model == cell.model)
        assert 0 < cell.q1 <= cell.ms <= cell.q3
        assert cell.ratio == cell.ms / first.ms
        assert cell.images_per_s == pytest.approx(1e3 / cell.ms)
        assert cell.load_s > 0
        assert cell.memory_mb > 0
        assert (cell.file_mb is None) == (cell.runtime != "onnx")
        assert cell.limit == cells[0].limit
        assert cell.share == pytest.approx(2 * cell.macs / (1e-3 * cell.ms) / (1e9 * cell.limit.float32))
    assert cells[1].file_mb == pytest.approx(0.36, abs=0.03)
    macs = count_macs(ARCH, size=32, num_classes=10)
    assert cells[0].macs == cells[1].macs == macs
    text = bench.markdown(cells)
    assert "| model | MACs / M | fused | onnx |" in text
    assert f"| {ours} | {macs / 1e6:.1f} | {cells[0].ms:.2f} (1.00; {100 * cells[0].share:.0f} %) |" in text
    assert f"1 thread, batch 1; matrix rate: {cells[0].limit}:" in text
    assert "| timm/test_resnet | " in text
    assert "torch " + torch.__version__ in text
    record = json.loads(bench.as_json(cells))
    assert record["cells"][0]["ms"] == cells[0].ms
    assert record["cells"][0]["limit"] == asdict(cells[0].limit)
    assert record["versions"]["torch"].startswith(torch.__version__.partition("+")[0])
    datetime.date.fromisoformat(record["date"])


def test_limit():
    """It is what a product of matrices takes here, and threads stay as they were."""
    before = torch.get_num_threads()
    limit = processor.measure_limit(before + 1, seconds=0.1)
    assert torch.get_num_threads() == before
    x = torch.randn(processor.SIDE, processor.SIDE)
    ms = min(call_times(lambda x: x @ x, x, seconds=0.3))
    assert 0.1 < limit.float32 / (2 * processor.SIDE**3 / (1e6 * ms)) < 4, "a machine may be busy; the unit is 10^9"
    assert f"{limit.float32:,.0f} GFLOP/s in float32" in str(limit)
    assert ("8 bits" in str(limit)) == (limit.int8 is not None)
    assert "8 bits" not in str(processor.Limit(1.0, None))


def test_exports_are_kept(tmp_path, monkeypatch):
    needs("onnx")
    once = functools.partial(bench._cases, str(weights()), ["onnx", "openvino"], 1, 32, tmp_path)
    files = [case.file for case in once()]
    assert [Path(file).suffix for file in files] == [".onnx", ".xml"]
    monkeypatch.setattr(bench, "_write", None)
    assert [case.file for case in once()] == files
    with pytest.raises(TypeError):
        bench._cases(str(weights()), ["onnx"], 2, 32, tmp_path)


@pytest.mark.slow
def test_every_other_runtime():
    runtimes = [name for name in bench.RUNTIMES if name not in ("fused", "onnx")]
    for to in mnv3.deploy.FORMATS.keys() & set(runtimes):
        needs(to)
    file = str(exported("pt2")[0])
    cells = bench.bench([str(weights()), file], runtimes=runtimes, size=32, seconds=0.1)
    assert [cell.runtime for cell in cells] == [*runtimes, "pt2"]
    assert (cells[-1].model, cells[-1].macs, cells[-1].ratio) == (file, None, 1)
    assert [cell.runtime for cell in cells if cell.choice] == ["optimize"]


def test_what_a_model_cannot_do_is_left_out(tmp_path):
    def runtimes(model, batch):
        return [case.runtime for case in bench._cases(model, ["fused", "eager", "ncnn"], batch, 32, tmp_path)]

    assert runtimes("mnv3_small_cifar", 3) == ["fused", "eager"]
    assert runtimes("timm/test_resnet", 3) == ["eager"]


def test_command(cells, tmp_path, capsys, monkeypatch):
    def measured(*args, **kwargs):
        given.update(signature.bind(*args, **kwargs).arguments)
        return cells

    given, signature = {}, inspect.signature(bench.bench)
    monkeypatch.setattr(bench, "bench", measured)
    files = {name: tmp_path / f"bench.{name}" for name in ("json", "markdown", "png")}
    options = [arg for name, file in files.items() for arg in (f"--{name}", str(file))]
    assert main(["bench", "mnv3_small", "--runtimes", "fused,onnx", "--threads", "1,2", "--size", "32", *options]) == 0
    assert given == {
        "models": ["mnv3_small"],
        "runtimes": ["fused", "onnx"],
        "threads": [1, 2],
        "batches": [1],
        "size": 32,
        "seconds": 3,
    }
    assert capsys.readouterr().out == files["markdown"].read_text()
    assert json.loads(files["json"].read_text())["machine"] in files["markdown"].read_text()
    assert files["png"].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["mnv3_smal"], "no model 'mnv3_smal' in mnv3, timm or torchvision. Did you mean 'mnv3_small'"),
        (["timm/nothing"], "no model 'timm/nothing'"),
        (["torchvision/fasterrcnn_resnet50_fpn"], "no model 'torchvision/fasterrcnn_resnet50_fpn'"),
        (["--runtimes", "eagre"], "runtimes: 'eagre' is unknown. Did you mean 'eager'"),
        (["--threads", "1,x"], "--threads 1,x: expected whole numbers"),
        (["--batch", "0"], "--batch 0: expected whole numbers"),
        (["--size", "100000"], "size=100000: expected a whole number of pixels from 1 to 4096"),
        (["--batch", "1,100000"], "batch=100000: expected a whole number from 1 to 1337 pictures of 224 px"),
    ],
)
def test_refused(args, message, capsys):
    assert main(["bench", *args]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_file_of_another_batch_or_size():
    file, _ = exported("onnx", whole=True)
    with pytest.raises(ValueError, match="takes 1 pictures at a time, not 2"):
        bench.bench([str(file)], batches=[2], size=32)
    with pytest.raises(ValueError, match="takes pictures of 32 px: give --size"):
        bench.bench([str(file)])


def test_a_process_that_fails_is_reported():
    case = bench.Case("mnv3_small_cifar", "onnx", 1, 1, 32, "/nowhere/net.onnx")
    with pytest.raises(mnv3.errors.ExportError, match="mnv3_small_cifar in onnx: "):
        bench._measure([case], 0.1, {"mnv3_small_cifar": None}, processor.Limit(1.0, None))


def test_names():
    assert type(bench.build("torchvision/mobilenet_v3_small")).__module__.startswith("torchvision")
    assert type(bench.build("resnet18")).__module__.startswith("timm")
    assert type(bench.build("mnv3_small_cifar")).__module__.startswith("mnv3")


def test_no_branch_is_zero():
    """timm's ResNets start with branches that give 0: LiteRT leaves them out, and would look ten times as fast."""
    for name in ("timm/resnet18", "torchvision/resnet18"):
        assert all(p.any() for key, p in bench.build(name).named_parameters() if key.endswith("weight"))
