"""Put faults into a copy of the package, one at a time, and see whether the tests catch them.

    python tests/helpers/faults.py [NUMBER ...]

A fault is a file, a text in it, what takes its place, and the tests (of the default suite) that are to fail. Torch and
timm are imported once, and every fault has a forked process. Prints a line for each, and how many were caught.
"""

# ruff: noqa: E501

import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 600  # seconds for the tests of a fault
# fmt: off
FAULTS = [
    # the network
    ("arch.py", 'Bneck(3, 64, 24, False, "RE", 2)', 'Bneck(3, 64, 24, False, "RE", 1)', "test_arch.py"),
    ("layers.py", "half - 1 + odd_width, half, half - 1 + odd_height, half",
     "half, half - 1 + odd_width, half, half - 1 + odd_height", "test_parity.py"),
    ("layers.py", "BN_EPS = 1e-5", "BN_EPS = 1e-3", "test_parity.py test_model.py"),
    ("layers.py", "norm.running_var.add_(norm.eps - eps)", "norm.running_var.add_(eps - norm.eps)", "test_contract.py deploy/test_fuse.py"),
    ("layers.py", "conv.weight.flatten(1), conv.bias)", "conv.weight.flatten(1))", "test_parity.py test_model.py"),
    ("model.py", "2 / fan_out", "1 / fan_out", "test_model.py"),
    ("model.py", "training=self.training", "training=True", "test_model.py test_contract.py"),
    ("depthwise.py", "padding=kernel // 2, stride=stride)", "padding=kernel // 2, stride=1)", "test_depthwise.py"),
    ("timm_models.py", "        set_bn_eps(model, bn_eps)", "        pass", "test_contract.py"),
    ("folding.py", "if model.training:", "if False:", "deploy/test_fuse.py"),
    # files
    ("files/conversion.py", "(eps - BN_EPS)", "(BN_EPS - eps)", "test_parity.py convert"),
    ("files/conversion.py", "converted[key][1:]", "converted[key][:-1]", "convert files"),
    ("files/conversion.py", "if model.se_order not in orders:", "if False:", "convert files"),
    ("files/checkpoint.py", "weights_only=True", "weights_only=False", "files"),
    ("files/fetch.py", "file.is_file() and digest(file) == record.sha256", "file.is_file()", "files/test_hub.py"),
    ("files/saving.py", "deepcopy(model).eval()", "deepcopy(model)", "files"),
    ("files/saving.py", "value.half() if value.ndim > 1", "value.half() if value.ndim > 0", "files/test_files.py"),
    ("files/wrappers.py", "averaged if averaged and use_ema is not False", "averaged if averaged", "files"),
    ("factory.py", "names and len(names) == model.num_classes", "names", "files pictures"),
    # pictures
    ("pictures/evaluate.py", "y * classes + logits.argmax(1)", "logits.argmax(1) * classes + y",
     "pictures/test_evaluate.py"),
    ("pictures/evaluate.py", "known.index(name) for name in given", "given.index(name) for name in known",
     "pictures/test_evaluate.py"),
    ("pictures/predict.py", ".softmax(1).topk(topk)", ".topk(topk)", "pictures/test_predict.py"),
    ("pictures/images.py", "UPRIGHT.get(_orientation(picture))", "None", "pictures/test_images.py"),
    ("pictures/class_folders.py", "names = sorted(by_class)", "names = list(by_class)[::-1]", "pictures"),
    ("pictures/prediction_files.py", "lines.truncate(end)", "pass", "pictures/test_prediction_files.py"),
    # train
    ("train/optimizers.py", "(self.updates + 1) / self.warmup", "self.updates / self.warmup", "train"),
    ("train/finetune.py", "loss = loss / recipe.accumulate", "loss = loss * 1", "train"),
    ("train/finetune.py", "self.optimizer.zero_grad()", "None", "train"),
    ("train/finetune.py", "self.ema.update(self.raw, step=self.scheduler.updates)", "self.ema.update(self.raw)", "train"),
    ("train/ingredients.py", "* temperature * temperature", "* temperature", "train"),
    ("train/augment.py", "torch.rand(batch, 1) < 0.5", "torch.rand(1) < 0.5", "train"),
    ("train/batches.py", "1 / torch.bincount(labels).double()[labels]", "torch.bincount(labels).double()[labels]", "train"),
    ("train/run_folder.py", "digest(checkpoint / name) != expected", "False", "train/test_runs.py"),
    # deploy
    ("deploy/exporter.py", "-mean / std", "mean / std", "deploy"),
    ("deploy/parity.py", "difference <= tolerance * max(largest, 1.0)", "difference <= 1e9", "deploy"),
    ("deploy/runtime.py", "clamp(min=torch.finfo(y.dtype).tiny).log()", "clamp(min=torch.finfo(y.dtype).tiny)", "deploy"),
    ("deploy/seal.py", "if digests != expected:", "if False:", "deploy"),
    # convert
    ("convert/tensorflow.py", "bn_eps=bn_eps)", "bn_eps=1e-5)", "convert"),
    ("convert/tflite/file.py", "self.zero_point.astype(kind)", "0 * self.zero_point.astype(kind)", "convert"),
    ("convert/slim.py", "names = last | averages", "names = averages | last", "convert"),
    # hub, show, command
    ("hub/publish.py", "parent_commit=self.head", "parent_commit=None", "hub"),
    ("hub/cards.py", "value / 100", "value", "hub"),
    ("show/calibration.py", "np.ceil(confidence * bins).astype(int) - 1", "np.floor(confidence * bins).astype(int)", "show"),
    ("show/gradcam.py", "logits.argmax(1) if index is None", "logits.argmin(1) if index is None", "show"),
    ("figures/charts.py", "share + weight / 2", "share - weight / 2", "show"),
    ("cli/arguments.py", "if value < 1:", "if value < 0:", "cli"),
]
# fmt: on


def tests_pass(folder: Path, tests: str) -> bool | None:
    """Whether the tests pass in this copy; None if they take too long."""
    child = os.fork()
    if not child:
        os.setsid()
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        import pytest

        paths = [f"tests/{name}" for name in tests.split()]
        os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *paths]) == pytest.ExitCode.OK) ^ 1)
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.2)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def main(numbers: list[int]) -> None:
    """Try the faults of these numbers, or all."""
    import timm  # noqa: F401 (once, for all)
    import torchvision  # noqa: F401

    os.environ.update(OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1")
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "mnv3"
        skipped = shutil.ignore_patterns(".git", "__pycache__", "*.egg-info")
        shutil.copytree(ROOT, copy, ignore=skipped)
        if (ROOT.parent / "shared").exists():
            (copy.parent / "shared").symlink_to(ROOT.parent / "shared")
        os.environ["PYTHONPATH"] = str(copy)
        for number in numbers or range(len(FAULTS)):
            name, old, new, tests = FAULTS[number]
            file = copy / "mnv3" / name
            text = file.read_text(encoding="utf-8")
            assert old in text, f"{name} has no {old!r} any more: name the fault as the code now has it"
            file.write_text(text.replace(old, new), encoding="utf-8")
            start = time.monotonic()
            results.append(tests_pass(copy, tests) is not True)
            file.write_text(text, encoding="utf-8")
            outcome = "caught" if results[-1] else "MISSED"
            print(f"{number:2} {outcome} in {time.monotonic() - start:5.1f} s: {name}: {new.strip()}", flush=True)
    print(f"{sum(results)} of {len(results)} faults caught")


if __name__ == "__main__":
    main([int(number) for number in sys.argv[1:]])
