"""mnv3 bench: real measurements of small models, and what it refuses."""

import json

import pytest
import torch
from conftest import needs

import mnv3
from mnv3 import bench
from mnv3.arch import VARIANTS, count_macs
from mnv3.cli import main


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    needs("onnx")
    file = tmp_path_factory.mktemp("exported") / "net.onnx"
    mnv3.deploy.export(mnv3.create_model("mnv3_small_cifar"), file, to="onnx")
    return file


def test_cells(exported):
    """Everything is of a size that the model can have, and ratios are to the row's first runtime."""
    models = ["mnv3_small_cifar", "timm/mobilenetv3_small_050", str(exported)]
    cells = bench.bench(models, runtimes=["eager", "fused", "onnx"], size=32, seconds=0.3)
    assert [(c.model, c.runtime) for c in cells] == [
        ("mnv3_small_cifar", "eager"),
        ("mnv3_small_cifar", "fused"),
        ("mnv3_small_cifar", "onnx"),
        ("timm/mobilenetv3_small_050", "eager"),
        ("timm/mobilenetv3_small_050", "onnx"),
        (str(exported), "onnx"),
    ]
    by_key = {(c.model, c.runtime): c for c in cells}
    for cell in cells:
        first = next(c for c in cells if c.model == cell.model)
        assert 0 < cell.q1 <= cell.ms <= cell.q3
        assert cell.ratio == cell.ms / first.ms
        assert cell.images_per_s == pytest.approx(1e3 / cell.ms)
        assert cell.load_s > 0
        assert cell.memory_mb > 0
        assert (cell.file_mb is None) == (cell.runtime != "onnx")
    assert by_key["mnv3_small_cifar", "onnx"].file_mb == pytest.approx(6.1, abs=0.3)
    macs = count_macs(VARIANTS["mnv3_small_cifar"].arch, size=32, num_classes=10)
    assert by_key["mnv3_small_cifar", "eager"].macs == macs
    assert by_key[str(exported), "onnx"].macs is None
    text = bench.markdown(cells)
    assert "| model | MACs / M | eager | fused | onnx |" in text
    assert f"| mnv3_small_cifar | {macs / 1e6:.1f} | {cells[0].ms:.2f} (1.00) |" in text
    assert "torch " + torch.__version__ in text
    assert json.loads(bench.as_json(cells))["cells"][0]["ms"] == cells[0].ms


@pytest.mark.slow
def test_every_runtime_with_threads_and_batches():
    for to in mnv3.deploy.FORMATS.keys() & set(bench.RUNTIMES):
        needs(to)
    found = bench.bench(["mnv3_small_cifar"], runtimes=bench.RUNTIMES, batches=[1, 3], size=32, seconds=0.1)
    assert [c.runtime for c in found if c.batch == 1] == list(bench.RUNTIMES)
    assert [c.runtime for c in found if c.batch == 3] == [name for name in bench.RUNTIMES if name != "ncnn"]
    assert all(c.choice for c in found if c.runtime == "optimize")


def test_command(tmp_path, capsys):
    files = {name: tmp_path / f"bench.{name}" for name in ("json", "markdown", "png")}
    options = [arg for name, file in files.items() for arg in (f"--{name}", str(file))]
    assert (
        main.main(["bench", "mnv3_small_cifar", "--runtimes", "fused", "--size", "32", "--seconds", "1", *options]) == 0
    )
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
    assert main.main(["bench", *args]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_file_of_another_batch_or_size(exported):
    with pytest.raises(ValueError, match="takes 1 pictures at a time, not 2"):
        bench.bench([str(exported)], batches=[2], size=32)
    with pytest.raises(ValueError, match="takes pictures of 32 px: give --size"):
        bench.bench([str(exported)])


def test_a_process_that_fails_is_reported(monkeypatch):
    case = bench.Case("mnv3_small_cifar", "onnx", 1, 1, 32, "/nowhere/net.onnx")
    with pytest.raises(mnv3.errors.ExportError, match="mnv3_small_cifar in onnx: "):
        bench._measure([case], 0.1, {"mnv3_small_cifar": None})


def test_names():
    assert type(bench.build("torchvision/mobilenet_v3_small")).__module__.startswith("torchvision")
    assert type(bench.build("resnet18")).__module__.startswith("timm")
    assert type(bench.build("mnv3_small_cifar")).__module__.startswith("mnv3")


def test_no_branch_is_zero():
    """timm's ResNets start with branches that give 0: LiteRT leaves them out, and would look ten times as fast."""
    for name in ("timm/resnet18", "torchvision/resnet18"):
        assert all(p.any() for key, p in bench.build(name).named_parameters() if key.endswith("weight"))
