"""A disk without room: one line that says so and what to do, and nothing is left there, nor by who was killed."""

import errno
import multiprocessing
import os
import re
import signal

import pytest
from conftest import needs
from exports import net, weights

from mnv3.cli.main import main
from mnv3.deploy import FORMATS, export, quantize, writing
from mnv3.errors import ExportError

resource = pytest.importorskip("resource", reason="needs limits on the size of files")
SLOW = ("openvino", "executorch", "tflite", "coreml")


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
    [pytest.param(to, marks=pytest.mark.slow if to in SLOW else ()) for to in FORMATS],
)
def test_every_format(tmp_path, limit, to):
    """PyTorch's and LiteRT's own writers end the process; OpenVINO's and pnnx say nothing."""
    needs(to)
    file = tmp_path / f"net{FORMATS[to].suffix}"
    net()
    limit(100_000)
    with pytest.raises(OSError, match=line(file)) as caught:
        export(net(), file, to=to)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(file))
    assert not list(tmp_path.iterdir())


def test_8_bits(noisy, tmp_path, limit):
    needs("onnx", int8=True)
    net()
    limit(50_000)
    with pytest.raises(OSError, match=line(tmp_path / "net.onnx")):
        quantize(net(), tmp_path / "net.onnx", to="onnx", calibrate=noisy / "test", force=True)
    assert not list(tmp_path.iterdir())


def test_the_command_says_it_in_one_line(tmp_path, limit, capsys):
    folder, file = weights(), tmp_path / "out" / "net.pt2"
    limit(100_000)
    assert main(["export", str(folder), "--to", "pt2", "-o", str(file)]) == 1
    error = capsys.readouterr().err
    assert re.match(rf"mnv3: {re.escape(str(file))}: {line(file)}", error)
    assert error.count("\n") == 1
    assert not list(file.parent.iterdir())


def test_a_writer_that_does_not_say_why(tmp_path, limit):
    """As OpenVINO's, which removes what it wrote: there is no room for so much."""
    limit(100_000)
    file = tmp_path / "net.xml"
    for room, error, said in ((1_000_000, OSError, line(file)), (1000, RuntimeError, "cannot save")):
        with pytest.raises(error, match=said), writing.new_export(file, room=room):
            raise RuntimeError("cannot save")
    assert not list(tmp_path.iterdir())


def test_other_failures_stay_what_they_are(tmp_path):
    def fail(error):
        with writing.new_export(tmp_path / "net.onnx", room=1000) as draft:
            draft.write_bytes(b"half")
            raise error

    for error in (ExportError("onnx: the exporter failed"), PermissionError(errno.EACCES, "no"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught:
            fail(error)
        assert caught.value is error
    assert not list(tmp_path.iterdir())


def test_the_draft_of_a_killed_export_goes(tmp_path):
    def killed():
        with writing.new_export(tmp_path / "net.onnx", room=1000) as draft:
            draft.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join(timeout=60)
    assert [path.name.startswith(".net.onnx.") for path in tmp_path.iterdir()] == [True]
    with writing.new_export(tmp_path / "net.onnx", room=1000) as draft:
        draft.write_bytes(b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
