"""Several processes."""

import dataclasses
import socket
import subprocess
import sys

import pytest
import torch
from trainings import log, same

import mnv3


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
