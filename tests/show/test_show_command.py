"""The files that `mnv3 show` writes, its arguments and its faults."""

import os
import subprocess
import sys
from xml.etree import ElementTree

import matplotlib
import pytest
from conftest import ROOT
from PIL import Image

from mnv3 import show
from mnv3.arch import Arch, Bneck
from mnv3.cli.main import main

SHIP = ROOT / "docs" / "ship.jpg"
TINY = Arch(16, (Bneck(3, 16, 16, False, "RE", 1), Bneck(5, 96, 40, True, "HS", 2)), 240, 256)


def test_files(tmp_path):
    """PNG or SVG by the ending; the same figure is the same file; on black it is black; no setting is left changed."""
    before = dict(matplotlib.rcParams)
    for name in ("a.png", "b.png", "a.svg", "b.svg"):
        show.arch(TINY, path=tmp_path / name)
    show.arch(TINY, path=tmp_path / "dark.png", dark=True)
    assert dict(matplotlib.rcParams) == before
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert ElementTree.parse(tmp_path / "a.svg").getroot().tag.endswith("}svg")
    assert Image.open(tmp_path / "a.png").width == 1245
    assert Image.open(tmp_path / "a.png").convert("L").getpixel((2, 2)) == 255
    assert Image.open(tmp_path / "dark.png").convert("L").getpixel((2, 2)) < 40
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.slow
def test_no_display_and_no_pyplot(tmp_path):
    code = "import mnv3, sys; mnv3.show.arch('mnv3_small', path='a.png'); print('matplotlib.pyplot' in sys.modules)"
    env = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "MPLBACKEND")}
    env |= {"PYTHONPATH": str(ROOT), "MPLBACKEND": "TkAgg"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert result.stdout == "False\n", result.stderr
    assert (tmp_path / "a.png").is_file()


@pytest.mark.parametrize(("module", "args"), [("matplotlib", ["arch", "mnv3_small"]), ("captum.attr", ["why", SHIP])])
def test_missing_packages(fails, monkeypatch, tmp_path, module, args):
    monkeypatch.setitem(sys.modules, module, None)
    assert "pip install 'mnv3[viz]'" in fails("show", *args, "-o", tmp_path / "x.png")


def test_commands(run, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ablation.json").write_text(
        '[{"variant": "none", "top1": [1], "mean": 1, "sd": null, "macs": 1, "latency_ms": 1}]'
    )
    for args, file in (
        (["arch", "mnv3_small_cifar.cifar10", "--size", "96", "--block", "2"], "mnv3_small_cifar.cifar10.png"),
        (["arch", trained, "--block", "0"], "trained.png"),
        (["features", SHIP, "--what", "gates"], "ship.features.png"),
        (["why", SHIP, "--class", "2", "--model", trained, "--dark"], "ship.why.png"),
        (["run", trained, "--what", "curves", "-o", "other.svg"], "other.svg"),
        (["compare", "ablation.json"], "compare.png"),
    ):
        assert run("show", *args) == (0, f"wrote {file}\n", "")
        assert (tmp_path / file).stat().st_size > 5000


@pytest.mark.parametrize("args", [("show", "--debug", "arch"), ("show", "arch", "--debug")])
def test_debug_shows_the_traceback(args):
    with pytest.raises(ValueError, match="unknown model"):
        main([*args, "mnv3_smal"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["arch", "mnv3_smal", "-o", "OUT/x.png"], "unknown model 'mnv3_smal'. Did you mean 'mnv3_small"),
        (["arch", "mnv3_small", "--block", "11", "-o", "OUT/x.png"], "block=11: expected a row from 0 to 10"),
        (["arch", "mnv3_small", "-o", "OUT/x.gif"], "unknown ending '.gif'"),
        (["arch", "mnv3_small", "-o", "OUT/none/x.png"], "there is no such folder to write to"),
        (["arch", "mnv3_small", "-o", "/proc/self/x.png"], "/proc/self/x.png: "),
        (["why", "OUT/none.jpg", "-o", "OUT/x.png"], "none.jpg: no such file"),
        (["why", "FILE", "-o", "OUT/x.png"], "not a picture"),
        (["features", "FILE", "-o", "OUT/x.png"], "not a picture"),
        (
            ["why", SHIP, "--model", "mnv3_small_cifar", "--class", "shipp", "-o", "OUT/x.png"],
            "no class 'shipp'. Did you mean 'ship'",
        ),
        (
            ["why", SHIP, "--model", "mnv3_small_cifar", "--class", "10", "-o", "OUT/x.png"],
            "class 10: the model has classes 0 to 9",
        ),
        (["why", SHIP, "--model", "mnv3_large_minimal", "-o", "OUT/x.png"], "no pretrained weights"),
    ],
)
def test_faults_are_one_line(fails, tmp_path, args, message):
    (tmp_path / "file.png").write_bytes(b"no picture")
    args = [str(a).replace("OUT", str(tmp_path)).replace("FILE", str(tmp_path / "file.png")) for a in args]
    assert message in fails("show", *args)
    assert [path.name for path in tmp_path.iterdir()] == ["file.png"]
