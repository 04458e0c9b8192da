"""Every test runs without a network (127.0.0.1 excepted) and with caches of its own."""

import os
import shutil
import socket
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

_CACHE = tempfile.TemporaryDirectory(prefix="mnv3-tests-")
# before the first import of huggingface_hub and torch.hub, which read these once; subprocesses inherit them
os.environ.update(HF_HOME=f"{_CACHE.name}/hf", TORCH_HOME=f"{_CACHE.name}/torch", HF_HUB_DISABLE_TELEMETRY="1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads that wait for a busy machine are slower than one
for _name in ("HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_CACHE", "GITHUB_TOKEN", "MNV3_NAMESPACE"):
    os.environ.pop(_name, None)

import pytest  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402

import mnv3  # noqa: E402
from mnv3.cli.main import main  # noqa: E402
from mnv3.model import MobileNetV3  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@pytest.fixture(autouse=True, scope="session")
def _no_network():
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in LOOPBACK:
            raise OSError(f"the tests have no network: {address}")
        return connect(self, address)

    socket.socket.connect = guarded
    yield
    socket.socket.connect = connect


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real weights and pictures, beside the checkout where there are any."""
    folder = ROOT.parent / "shared"
    if not (folder / "weights").is_dir():
        pytest.skip("needs ../shared with real weights and pictures")
    return folder


@pytest.fixture
def no_waiting(monkeypatch):
    """The Hub client's retries without the pauses between them."""
    quick = SimpleNamespace(sleep=lambda seconds: None, time=time.time)
    monkeypatch.setattr("huggingface_hub.file_download.time", quick)
    monkeypatch.setattr("huggingface_hub.utils._http.time", quick)


def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random weights and batch norm statistics that are not the trivial ones, so that no mistake cancels out."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if name.endswith("running_var"):
                values = values.sigmoid() + 0.5
            elif tensor.ndim == 1 and name.endswith("weight"):
                values = 1 + 0.2 * values
            elif tensor.ndim == 1:
                values = 0.2 * values
            else:
                values = values / tensor[0].numel() ** 0.5
            tensor.copy_(values)
    return model.eval()


def with_distinct_logits(name: str = "mnv3_small_cifar", **kwargs) -> torch.nn.Module:
    """A model with random weights and logits that are far apart."""
    model = randomize(mnv3.create_model(name, **kwargs))
    with torch.no_grad():
        model.classifier.weight *= 4
    return model


def needs(to: str, *, int8: bool = False) -> None:
    """Skip the test where the packages of a format are missing."""
    entry = mnv3.deploy.FORMATS[to]
    for module in entry.runtime + entry.writers + (entry.int8_writers if int8 else ()):
        pytest.importorskip(module, reason=f"needs pip install 'mnv3[{entry.extra}]'")


def write_noisy(root: Path, classes: dict, counts: dict, sd: float) -> Path:
    """Folders of noisy pictures of 16 px, from a grey level or colour for each class and a number for each split."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for name, colour in classes.items():
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.normal(colour, sd, (16, 16, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def noisy(tmp_path_factory):
    """Three classes that are hard to tell apart."""
    classes, counts = {"bright": 140, "dark": 110, "middle & <b>": 125}, {"train": 8, "val": 3, "test": 10}
    return write_noisy(tmp_path_factory.mktemp("noisy"), classes, counts, 30)


@pytest.fixture(scope="session")
def trained(noisy, tmp_path_factory):
    """A run of two short epochs."""
    recipe = mnv3.recipe.Recipe(model="mnv3_small_cifar", data=str(noisy), size=16, batch_size=8, epochs=2, workers=0)
    return mnv3.finetune(recipe, out=tmp_path_factory.mktemp("runs") / "trained")


@pytest.fixture(scope="session")
def coloured(tmp_path_factory):
    """Three classes that a short training learns."""
    classes = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (200, 40, 40)}
    return write_noisy(tmp_path_factory.mktemp("coloured"), classes, {"train": 16, "val": 3, "test": 4}, 40)


@pytest.fixture(scope="session")
def plain(coloured):
    """The least recipe: two epochs of three updates in float32."""
    fields = {"model": "mnv3_small_cifar", "data": str(coloured), "size": 16, "batch_size": 16, "lr": 0.05}
    return mnv3.recipe.Recipe(**fields, epochs=2, precision="no", workers=0)


@pytest.fixture
def few(tmp_path, coloured):
    """Three training pictures of each class, as a recipe's data."""
    for split in ("train", "val"):
        shutil.copytree(coloured / "val", tmp_path / "few" / split)
    return str(tmp_path / "few")


@pytest.fixture
def no_charts(monkeypatch):
    """Trainings do not draw their curves and confusion, which takes longer than a small training."""
    charts = SimpleNamespace(curves=lambda history, file: file.touch(), confusion=lambda *args: args[-1].touch())
    monkeypatch.setattr("mnv3.train.results.charts", charts)


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of that run, to be spoilt."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in ("recipe.yaml", "log.csv", "config.json", "model.safetensors", "test.json"):
        (folder / name).write_bytes((trained / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def small():
    return MobileNetV3("small")


@pytest.fixture(scope="module")
def timm_small():
    return randomize(timm.create_model("mobilenetv3_small_100")).state_dict()


def command_runner(capture):
    """A function that runs a command: status, standard output, standard error, by `capsys` or `capfd`."""

    def run(*args):
        capture.readouterr()
        try:
            status = main([str(arg) for arg in args])
        except SystemExit as error:
            status = error.code
        return status, *capture.readouterr()

    return run


@pytest.fixture
def run(capsys):
    """Status, standard output, standard error of a command."""
    return command_runner(capsys)


@pytest.fixture
def fails(run):
    """A command ends with one line on stderr, and status 1."""

    def fails(*args):
        status, out, err = run(*args)
        assert (status, out) == (1, "")
        assert err.startswith("mnv3: ")
        assert err.count("\n") == 1, err
        return err

    return fails


@pytest.fixture(scope="session", params=list(mnv3.timm_models.VARIANTS))
def arch_name(request) -> str:
    """Every registered name."""
    return request.param
