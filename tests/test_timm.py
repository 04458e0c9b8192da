"""`python -m mnv3.timm`: a script that knows only timm has our models, in every process that it starts."""

import json
import multiprocessing
import subprocess
import sys

import pytest
from conftest import ROOT

from mnv3 import timm as runner

SCRIPT = '''
import argparse
import json
import os

import timm
from helper_beside import HELPER
from torch.utils.data import DataLoader, Dataset

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--method")
parser.add_argument("--out", required=True)


class Features(Dataset):
    """How many features the model has, counted in a worker."""

    def __init__(self, name):
        self.name = name

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return timm.create_model(self.name).num_features


def main():
    args = parser.parse_args()
    here = timm.create_model(args.model).num_features
    workers = {"num_workers": 1, "multiprocessing_context": args.method} if args.method else {}
    loader = DataLoader(Features(args.model), **workers)
    (worker,) = [int(batch) for batch in loader]
    rank = os.environ.get("RANK", "0")
    with open(f"{args.out}{rank}", "w") as file:
        json.dump([__name__, os.path.basename(__file__), HELPER, here, worker], file)


if __name__ == "__main__":
    main()
'''
ANSWER = ["__main__", "script.py", "beside", 576, 576]


@pytest.fixture
def script(tmp_path):
    """The script in a folder of its own, with a file that it imports."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "helper_beside.py").write_text('HELPER = "beside"\n')
    (folder / "script.py").write_text(SCRIPT)
    return str(folder / "script.py")


def test_a_script_is_run_as_python_runs_it(script, tmp_path, monkeypatch):
    for name, value in {"argv": [*sys.argv], "path": [*sys.path], "modules": {**sys.modules}}.items():
        monkeypatch.setattr(sys, name, value)
    monkeypatch.delenv(runner.SCRIPT, raising=False)
    runner.main([script, "--model", "mnv3_small", "--out", str(tmp_path / "answer")])
    assert json.loads((tmp_path / "answer0").read_text()) == ANSWER


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "method", "processes"),
    [
        (["mnv3.timm"], "forkserver", 1),
        (["torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "mnv3.timm"], "spawn", 2),
    ],
    ids=["fork server", "torchrun and spawn"],
)
def test_every_process_knows_the_models(script, tmp_path, command, method, processes):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"needs a system with {method}")
    arguments = [script, "--model", "mnv3_small", "--method", method, "--out", str(tmp_path / "answer")]
    environment = {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-m", *command, *arguments], cwd=tmp_path, env=environment, capture_output=True, timeout=300
    )
    assert result.returncode == 0, result.stderr.decode()
    assert [json.loads(file.read_text()) for file in sorted(tmp_path.glob("answer*"))] == [ANSWER] * processes


@pytest.mark.parametrize("arguments", [[], ["nowhere.py", "--model", "mnv3_small"]])
def test_a_script_that_is_not_there(arguments):
    with pytest.raises(SystemExit) as stopped:
        runner.main(arguments)
    assert str(stopped.value).endswith("Usage: python -m mnv3.timm SCRIPT [ARGS], train.py of timm's for instance")
