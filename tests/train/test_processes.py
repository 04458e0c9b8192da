"""Several processes."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from trainings import last, log, same, tensors

import mnv3
from mnv3.errors import DataError, TrainingStopped
from mnv3.train import launcher, processes
from mnv3.train.finetune import Training, finetune


@pytest.fixture
def torchrun():
    """The beginning of a command that runs in two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]


@pytest.mark.slow
def test_two_processes(plain, tmp_path, coloured, torchrun):
    (tmp_path / "r.yaml").write_text(dataclasses.replace(plain, ema=0.9, batch_size=8).to_yaml())

    def command(*args):
        done = subprocess.run([*torchrun, "-m", "mnv3", *args], capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    assert command("finetune", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "run")).count("wrote") == 1
    assert log(tmp_path / "run")[-1]["updates"] == "6"  # of 48 pictures, 8 for each process
    command("eval", str(tmp_path / "run"), "--data", str(coloured), "--json", str(tmp_path / "two.json"))
    one = mnv3.evaluate(mnv3.load_checkpoint(tmp_path / "run"), mnv3.data.load(str(coloured), "test"))
    one.save(tmp_path / "one.json")
    assert (tmp_path / "one.json").read_text() == (tmp_path / "two.json").read_text()


@pytest.mark.slow
def test_processes_see_different_pictures_and_end_with_the_same_buffers(plain, tmp_path, torchrun):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    (tmp_path / "r.yaml").write_text(dataclasses.replace(plain, ema=0.9, batch_size=8).to_yaml())
    done = subprocess.run([*torchrun, str(script), str(tmp_path)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for epoch in (0, 1):
        a, b = first["order"][epoch], second["order"][epoch]
        assert sorted([*a, *b]) == list(range(48))
    assert first["order"][0] != first["order"][1]
    assert same(first["raw"], second["raw"])
    assert same(first["ema"], second["ema"])


# Those that the helper starts itself


@pytest.mark.parametrize(
    ("cores", "options", "count"),
    [
        (1, {}, 1),
        (2, {}, 2),
        (8, {}, 4),
        (6, {"batch_size": 192}, 6),
        (2, {"batch_size": 48}, 1),
        (2, {"batch_size": 66, "mixup": 0.2}, 1),
        (4, {"batch_size": 129}, 3),
    ],
)
def test_auto_leaves_batch_norm_enough_pictures(plain, tmp_path, monkeypatch, cores, options, count):
    monkeypatch.setattr(processes, "processors", lambda: cores)
    chosen = dataclasses.replace(plain, processes="auto", **{"batch_size": 128} | options)
    assert launcher.settled(chosen, tmp_path, resume=False).processes == count


def test_auto_goes_on_with_as_many_as_before(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "processors", lambda: 2)
    chosen = dataclasses.replace(plain, processes="auto", batch_size=96)
    (tmp_path / "recipe.yaml").write_text(dataclasses.replace(chosen, processes=3).to_yaml())
    assert launcher.settled(chosen, tmp_path, resume=True).processes == 3
    assert launcher.settled(chosen, tmp_path, resume=False).processes == 2
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert launcher.settled(chosen, tmp_path, resume=False).processes == 4, "those that torchrun has started"


def test_another_number_than_a_launcher_started(plain, tmp_path):
    with pytest.raises(ValueError, match="processes: 2, but 1 were started"):
        Training(dataclasses.replace(plain, processes=2), tmp_path / "run")


@pytest.mark.slow
def test_two_make_the_updates_of_one(plain, tmp_path):
    """Where batch norm takes no statistics: the same pictures, augmented alike, and the mean of the gradients."""
    options = {"freeze_epochs": 2, "erase": 0.5, "ema": 0.9}
    one, two = (finetune(plain, out=tmp_path / str(n), processes=n, **options) for n in (1, 2))
    assert "processes: 2" in (two / "recipe.yaml").read_text()
    torch.testing.assert_close(tensors(one), tensors(two), rtol=1e-4, atol=1e-6)
    for a, b in zip(log(one), log(two), strict=True):
        assert a["updates"] == b["updates"]
        assert float(a["train_loss"]) == pytest.approx(float(b["train_loss"]), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_two_that_are_stopped_go_on_to_the_same_bits(plain, tmp_path, number):
    """Ctrl-C saves after the update; where the first process is killed, the others save and end."""
    options = {"ema": 0.9, "erase": 0.5, "cutmix": 1.0}
    (tmp_path / "r.yaml").write_text(dataclasses.replace(plain, processes=2, epochs=24, **options).to_yaml())
    whole, cut = tmp_path / "whole", tmp_path / "cut"

    def command(out, *more):
        arguments = ["-m", "mnv3", "finetune", str(tmp_path / "r.yaml"), "--out", str(out), *more]
        return subprocess.Popen([sys.executable, *arguments], stderr=subprocess.PIPE, text=True)

    process = command(cut)
    while process.poll() is None and not (cut / "checkpoints" / "last-6").exists():
        time.sleep(0.01)
    os.kill(process.pid, number)
    if number == signal.SIGINT:
        error = process.communicate(timeout=100)[1]
        assert process.returncode == 130
        assert error.splitlines()[-1] == f"mnv3: interrupted: saved in {cut}, go on with --resume"
    process.wait()
    until = time.monotonic() + 60
    while (cut / ".lock").exists() and time.monotonic() < until:
        time.sleep(0.05)
    stopped_at = int(last(cut).name[5:])
    assert 6 <= stopped_at < 72
    assert command(whole).wait(timeout=300) == 0
    assert command(cut, "--resume").wait(timeout=300) == 0
    assert same(tensors(whole), tensors(cut))
    assert same(tensors(whole, "ema"), tensors(cut, "ema"))
    assert same(load_file(whole / "model.safetensors"), load_file(cut / "model.safetensors"))


@pytest.mark.slow
def test_an_error_of_two_is_that_of_one(plain, tmp_path, capfd):
    with pytest.raises(DataError, match="no folder"):
        finetune(plain, out=tmp_path / "run", processes=2, data="nowhere")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "holiday.jpg").touch()
    with pytest.raises(FileExistsError, match="not empty: choose another folder"):
        finetune(plain, out=tmp_path / "full", processes=2)
    assert "Traceback" not in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_one_of_two_that_is_killed(plain, tmp_path, monkeypatch, capfd):
    start = launcher._start

    def killing(place, rank, world):
        child = start(place, rank, world)
        if rank == 1:
            child.kill()
        return child

    monkeypatch.setattr(launcher, "_start", killing)
    monkeypatch.setattr(launcher, "GRACE", 1)
    message = r"process 2 of 2 ended by signal 9 \(memory may have run out\): .*--resume"
    with pytest.raises(TrainingStopped, match=message):
        finetune(plain, out=tmp_path / "run", processes=2)
    assert "Traceback" not in capfd.readouterr().err


SCRIPT = """
import sys, torch
from mnv3 import recipe
from mnv3.train.finetune import Training
folder = sys.argv[1]
training = Training(recipe.load(f"{folder}/r.yaml"), __import__("pathlib").Path(folder) / "run")
order = [training.batches.order(epoch)[:, training.rank :: training.world].flatten().tolist() for epoch in (0, 1)]
training.run()
state = {"order": order, "raw": training.raw.state_dict(), "ema": training.ema.module.state_dict()}
torch.save(state, f"{folder}/{training.rank}.pt")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""
