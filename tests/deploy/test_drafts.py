"""A disk without room: one line that says so and what to do, and nothing is left there."""

import errno
import re

import pytest
from conftest import needs, randomize

import mnv3
from mnv3.cli import main
from mnv3.deploy import FORMATS, drafts, export, quantize
from mnv3.errors import ExportError

resource = pytest.importorskip("resource", reason="needs limits on the size of files")
FAST = ("pt2", "torchscript", "onnx")


@pytest.fixture(scope="module")
def net():
    return randomize(mnv3.create_model("mnv3_small_cifar"))


@pytest.fixture
def limit():
    """Files cannot grow beyond a number of bytes, which programs see as they see a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def line(file):
    return rf"no space left in {re.escape(str(file.parent))}, or in .*: nothing was written; make room for [\d.]+ MB"


@pytest.mark.parametrize(
    "to",
    [pytest.param(to, marks=() if to in FAST else pytest.mark.slow) for to in FORMATS],
)
def test_every_format(net, tmp_path, limit, to):
    """PyTorch's and LiteRT's own writers end the process; OpenVINO's and pnnx say nothing."""
    needs(to)
    file = tmp_path / f"net{FORMATS[to].suffix}"
    limit(1_000_000)
    with pytest.raises(OSError, match=line(file)) as caught:
        export(net, file, to=to)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(file))
    assert not list(tmp_path.iterdir())


def test_8_bits(net, noisy, tmp_path, limit):
    needs("onnx", int8=True)
    limit(300_000)
    with pytest.raises(OSError, match=line(tmp_path / "net.onnx")):
        quantize(net, tmp_path / "net.onnx", to="onnx", calibrate=noisy / "test", force=True)
    assert not list(tmp_path.iterdir())


def test_the_command_says_it_in_one_line(net, tmp_path, limit, capsys):
    folder, file = mnv3.save(net, tmp_path / "net"), tmp_path / "out" / "net.pt2"
    limit(1_000_000)
    assert main.main(["export", str(folder), "--to", "pt2", "-o", str(file)]) == 1
    error = capsys.readouterr().err
    assert re.match(rf"mnv3: {re.escape(str(file))}: {line(file)}", error)
    assert error.count("\n") == 1
    assert not list(file.parent.iterdir())


def test_other_failures_stay_what_they_are(tmp_path):
    def fail(error):
        with drafts.draft(tmp_path / "net.onnx", room=1000) as new:
            new.write_bytes(b"half")
            raise error

    for error in (ExportError("onnx: the exporter failed"), PermissionError(errno.EACCES, "no"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught:
            fail(error)
        assert caught.value is error
    assert not list(tmp_path.iterdir())
