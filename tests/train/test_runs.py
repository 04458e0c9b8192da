"""The folder of a run: other pictures, other processes, full disks, damage, and folders of mnv3 0.1.0."""

import dataclasses
import json
import resource
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from PIL import Image
from trainings import Killed, last, same, tensors

import mnv3
from mnv3.errors import TrainingStopped, WeightsError
from mnv3.pictures import data
from mnv3.train.finetune import Training, finetune
from mnv3.train.folder_lock import locked
from mnv3.train.inventory import difference, inventory
from mnv3.train.recipe import Recipe
from mnv3.train.run_folder import STATE_KEYS, Run

pytestmark = pytest.mark.usefixtures("no_charts")


@pytest.fixture(scope="module")
def cut(noisy, tmp_path_factory):
    """A recipe, a run of it that was killed in its second epoch of two, and one that was not."""
    fields = {"model": "mnv3_small_cifar", "size": 16, "batch_size": 8, "epochs": 2, "precision": "no", "workers": 0}
    chosen, folder = Recipe(**fields, data=str(noisy), ema=0.9), tmp_path_factory.mktemp("runs")
    whole, update = finetune(chosen, out=folder / "whole"), Training._update

    def killed(self, *args):
        if self.epoch == 1:
            raise Killed
        update(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "_update", killed)
        with pytest.raises(Killed):
            finetune(chosen, out=folder / "cut")
    return chosen, folder / "cut", whole


@pytest.fixture
def begun(cut, noisy, tmp_path):
    """The recipe, the run and its pictures, copied to be spoilt."""
    chosen, folder, _ = cut
    pictures, run = shutil.copytree(noisy, tmp_path / "pictures"), shutil.copytree(folder, tmp_path / "run")
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(noisy), str(pictures)))
    return dataclasses.replace(chosen, data=str(pictures)), run, pictures


def refusal(kind, chosen, run) -> str:
    """What resuming says, which changes nothing."""
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(kind) as caught:
        finetune(chosen, out=run, resume=True)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Other pictures


def rename(pictures):
    for split in ("train", "val", "test"):
        (pictures / split / "bright").rename(pictures / split / "zbright")


def add_class(pictures):
    for split in ("train", "val", "test"):
        shutil.copytree(pictures / split / "dark", pictures / split / "new")


def remove(pictures):
    (pictures / "train" / "dark" / "3.png").unlink()


def repaint(pictures):
    Image.new("RGB", (16, 16), "red").save(pictures / "train" / "dark" / "3.png")


def change_val(pictures):
    (pictures / "val" / "bright" / "0.png").unlink()


def enlarge(pictures):
    Image.new("RGB", (120, 16), "red").save(pictures / "train" / "dark" / "3.png")


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (rename, "class bright is gone, class zbright is new"),
        (add_class, "class new is new"),
        (remove, "train: class dark had 8 pictures and has 7"),
        (repaint, "train: class dark has other pictures (pixels differ)"),
        (change_val, "val: class bright had 3 pictures and has 2"),
        (enlarge, "train: the pictures were held in memory (small ones, all of one size) and are read file by file"),
    ],
)
def test_resume_refuses_other_pictures(begun, change, difference):
    chosen, run, pictures = begun
    change(pictures)
    message = refusal(ValueError, chosen, run)
    assert f"{run} was trained on other pictures: {difference}: put the pictures back" in message
    assert f"--set checkpoint={run / 'checkpoints' / 'best.safetensors'}" in message


def test_start_from_the_weights_of_a_run_on_other_pictures(begun, tmp_path):
    chosen, run, pictures = begun
    add_class(pictures)
    best = run / "checkpoints" / "best.safetensors"
    again = finetune(chosen, checkpoint=str(best), epochs=1, out=tmp_path / "again")
    assert mnv3.class_names(mnv3.load_checkpoint(again)) == ["bright", "dark", "middle & <b>", "new"]


def test_pictures_elsewhere_and_another_test_set_are_no_others(begun, cut):
    """What is learnt from is the same; the test pictures are looked at in the end."""
    chosen, run, pictures = begun
    (pictures / "test" / "dark" / "0.png").unlink()
    assert same(tensors(finetune(chosen, out=run, resume=True)), tensors(cut[2]))


def test_inventory_of_files(tmp_path):
    """Names count, and where the folder lies does not."""
    for name in ("b/2.png", "a/1.png", "a/deep/1.png", "b/1.png"):
        file = tmp_path / "one" / "train" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (100, 100)).save(file)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one, two = (inventory({"train": data.load(str(tmp_path / name), "train")}) for name in ("one", "two"))
    assert json.loads(json.dumps(one)) == two
    assert difference(one, two) is None
    (tmp_path / "two" / "train" / "b" / "2.png").rename(tmp_path / "two" / "train" / "b" / "3.png")
    two = inventory({"train": data.load(str(tmp_path / "two"), "train")})
    assert difference(one, two) == "train: class b has other pictures (names of files differ)"
    assert difference(one | {"classes": ["b", "a"]}, one) == "the order of the classes has changed"
    assert difference(one, one | {"val": one["train"]}) == "there were no val pictures"


def test_a_run_of_0_1_0_goes_on_with_a_notice(begun, cut, caplog):
    """It has no data.json, no digests, and the best accuracy in its state."""
    chosen, run, pictures = begun
    (run / "data.json").unlink()
    file = last(run) / "state.pt"
    state = torch.load(file)
    del state["sha256"]
    torch.save(state | {"best": state["history"][-1]["val_top1"]}, file)
    old = shutil.copytree(run, run.with_name("old"))
    assert same(tensors(finetune(chosen, out=run, resume=True)), tensors(cut[2]))
    assert "does not say which pictures it was trained on" in caplog.text
    assert (run / "data.json").is_file()
    remove(pictures)
    for name in ("train", "val", "test"):
        shutil.rmtree(pictures / name / "dark")
    assert "the pictures have changed" in refusal(ValueError, chosen, old)


# Other processes


@pytest.fixture
def holder(tmp_path):
    """Start a process that holds a folder, and has a child that outlives it."""
    code = """
import os, sys, time
from pathlib import Path
from mnv3.train.folder_lock import locked
with locked(Path(sys.argv[1])):
    child = os.fork()
    if child: print(child, flush=True)
    time.sleep(100)
"""
    started = []

    def start(folder):
        process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
        started.append((process, int(process.stdout.readline())))
        return process

    yield start
    for process, child in started:
        process.kill()
        process.wait()
        subprocess.run(["kill", "-9", str(child)], check=False)


def test_two_trainings_in_one_folder(begun, holder, tmp_path):
    chosen, run, _ = begun
    process = holder(run)
    assert f"{run} is in use by process {process.pid} on " in refusal(FileExistsError, chosen, run)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with locked(run):  # the child lives on
        assert f"process {process.pid} " not in (run / ".lock").read_text()
        with pytest.raises(FileExistsError, match="in use"), locked(run):
            pass
    assert not (run / ".lock").exists()


def test_the_lock_of_a_new_folder_leaves_nothing(tmp_path):
    with locked(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / ".lock").is_file()
    assert not (tmp_path / "a").exists()
    with locked(tmp_path / "a"):
        (tmp_path / "a" / "file").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]
    with pytest.raises(FileExistsError, match="is a file"), locked(tmp_path / "a" / "file"):
        pass


# Disks and damage


def test_a_full_disk_is_one_line_and_what_was_trained_stays(begun, cut, monkeypatch):
    """A limit on the size of files in place of a disk; the second epoch's checkpoint is too large for it."""
    chosen, run, _ = begun
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = Training._save

    def full(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
        save(self)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_save", full)
        try:
            with pytest.raises(TrainingStopped) as caught:
                finetune(chosen, out=run, resume=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    expected = f"{run / 'checkpoints' / 'last-6'} cannot be written: File too large: make room or allow it, then go on"
    assert str(caught.value).startswith(expected)
    assert last(run).name == "last-3"
    assert not list(run.rglob(".*"))
    assert same(tensors(finetune(chosen, out=run, resume=True)), tensors(cut[2]))


def test_a_run_killed_before_its_recipe_was_written_starts(begun, cut):
    chosen, run, _ = begun
    shutil.rmtree(run)
    (run / "checkpoints" / ".draft-3").mkdir(parents=True)
    for name in (".recipe.yaml.123", ".lock"):
        (run / name).touch()
    (run / "checkpoints" / ".best.safetensors.99").touch()
    assert same(tensors(finetune(chosen, out=run)), tensors(cut[2]))
    assert not list(run.rglob(".*"))


def test_hidden_files_of_the_user_are_no_drafts(begun):
    chosen, run, _ = begun
    shutil.rmtree(run)
    run.mkdir()
    (run / ".gitignore").touch()
    assert "is not empty" in refusal(FileExistsError, chosen, run)


def test_a_state_that_lacks_something(begun):
    chosen, run, _ = begun
    file = last(run) / "state.pt"
    state = torch.load(file)
    for key in STATE_KEYS:
        message = f"{file}: {key} is missing or of another type: put it back, or remove {last(run)} to start again"
        for spoilt in ({name: value for name, value in state.items() if name != key}, state | {key: "many"}):
            torch.save(spoilt, file)
            with pytest.raises(WeightsError) as caught:
                Run(run).read(last(run), world=1, updates=3, has_val=True)
            assert str(caught.value) == message
    assert refusal(WeightsError, chosen, run) == message


def test_a_state_of_another_training(begun):
    chosen, run, _ = begun
    file = last(run) / "state.pt"
    state = torch.load(file)
    for optimizer in ([], {"state": {}, "param_groups": []}, {"param_groups": 3}):
        torch.save(state | {"optimizer": optimizer}, file)
        assert str(last(run)) in refusal(WeightsError, chosen, run)
    torch.save(state | {"world": 2}, file)
    assert "was trained by 2 processes, not 1" in refusal(ValueError, chosen, run)


def test_weights_of_a_checkpoint_that_are_missing_or_damaged(begun):
    chosen, run, _ = begun
    for name in ("model.safetensors", "ema.safetensors"):
        file = last(run) / name
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)
        assert f"{file}: is missing or damaged" in refusal(WeightsError, chosen, run)
        file.unlink()
        assert f"{file}: is missing or damaged" in refusal(WeightsError, chosen, run)
        content[-5] ^= 1
        file.write_bytes(content)
    state = torch.load(last(run) / "state.pt")
    torch.save(state | {"sha256": {}}, last(run) / "state.pt")  # as of 0.1.0
    (last(run) / "ema.safetensors").unlink()
    assert "does not fit this training (no 'ema')" in refusal(WeightsError, chosen, run)


def test_a_flipped_bit_of_the_state(begun):
    """torch.load does not look at the sums of the archive."""
    chosen, run, _ = begun
    file = last(run) / "state.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert str(file) in refusal(WeightsError, chosen, run)


def test_best_weights_that_are_missing(begun):
    chosen, run, _ = begun
    (run / "checkpoints" / "best.safetensors").unlink()
    message = refusal(WeightsError, chosen, run)
    assert f"{run / 'checkpoints' / 'best.safetensors'} is missing, the best weights so far: put it back" in message


def test_best_weights_of_another_training(begun):
    chosen, run, _ = begun
    mnv3.save(mnv3.create_model("mnv3_small_cifar", num_classes=4), run.with_name("other"))
    finished = shutil.copytree(run, run.with_name("finished"))
    finetune(chosen, out=finished, resume=True)
    shutil.copy(run.with_name("other") / "model.safetensors", finished / "checkpoints" / "best.safetensors")
    with pytest.raises(WeightsError, match="best.safetensors is not of this training, put it back: .*size mismatch"):
        finetune(chosen, out=finished, resume=True)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"classes": 3}', '{"classes": ["bright"], "train": 1}', "\0"])
def test_a_damaged_data_json(begun, text):
    chosen, run, _ = begun
    (run / "data.json").write_text(text)
    message = refusal((WeightsError, ValueError), chosen, run)
    assert str(run) in message
