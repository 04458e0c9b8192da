"""The package as a whole: what is imported, where, what the wheel has, what the documents say."""

import ast
import re
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT

import mnv3

STANDARD_LIBRARY_ONLY = {"text", "version", "errors", "arch", "catalog", "files.atomic"}
HEAVY = {
    "torchvision.models",
    "tqdm",
    "matplotlib",
    "captum",
    "onnx",
    "accelerate",
    "yaml",
    "tensorflow",
    "h5py",
    "keras",
}


def modules():
    for path in sorted((ROOT / "mnv3").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT / "mnv3").with_suffix("").parts).removesuffix(".__init__")
        yield name, path


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module:
                yield node.level, node.module
            else:
                yield from ((node.level, alias.name) for alias in node.names)


def test_order_of_rooms():
    """No import runs up, and none in a circle: the contracts of setup.cfg."""
    result = subprocess.run(["lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("name", sorted(STANDARD_LIBRARY_ONLY))
def test_standard_library_only(name):
    for level, module in imports(ROOT / "mnv3" / f"{name.replace('.', '/')}.py"):
        assert level or module.split(".")[0] in sys.stdlib_module_names, module


def test_no_file_is_long():
    assert not {name: lines for name, path in modules() if (lines := len(path.read_text().splitlines())) > 370}


def python(code, cwd, *options, path=ROOT):
    """Code in a fresh interpreter, somewhere else."""
    env = {"PYTHONPATH": str(path), "HOME": str(cwd)}
    command = [sys.executable, *options, "-c", code]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def test_import_has_no_side_effect(tmp_path):
    """No network, seed, thread count, or heavy optional package; nothing warned of; nothing of timm's replaced."""
    code = f"""
import socket, sys
def no_network(*args): raise OSError("no network")
socket.socket.connect = no_network
import torch, timm
before = torch.initial_seed(), torch.get_num_threads(), torch.backends.cudnn.benchmark, torch.is_grad_enabled()
state = torch.get_rng_state()
theirs = dict(timm.models._registry._model_entrypoints)
import mnv3, importlib
after = torch.initial_seed(), torch.get_num_threads(), torch.backends.cudnn.benchmark, torch.is_grad_enabled()
assert before == after
assert torch.equal(state, torch.get_rng_state())
after = timm.models._registry._model_entrypoints
assert all(after[name] is theirs[name] for name in theirs)
importlib.reload(mnv3.timm_models)
print(timm.create_model("mnv3_small").num_features)
print(sorted({HEAVY!r} & set(sys.modules)))
"""
    result = python(code, tmp_path, "-W", "error", "-W", "ignore::DeprecationWarning")
    assert result.returncode == 0, result.stderr
    from_timm = {"torchvision.models", "tqdm", "yaml"}  # timm and the Hub client import these themselves
    features, imported = result.stdout.splitlines()
    assert features == "576"
    assert set(ast.literal_eval(imported)) <= from_timm


def test_registration_is_all_or_nothing(tmp_path):
    """Another package has one of the names (report C18)."""
    code = """
import timm
from timm.models import register_model
def mnv3_small(pretrained=False, **kwargs): pass
register_model(mnv3_small)
try:
    import mnv3
except ImportError as error:
    print(error)
print(timm.list_models("mnv3_*"))
"""
    result = python(code, tmp_path)
    message, names = result.stdout.splitlines()
    assert message.startswith("timm's registry has mnv3_small from __main__ already; mnv3 has registered nothing")
    assert names == "['mnv3_small']"


@pytest.mark.slow
def test_wheel(tmp_path):
    """The wheel has every module, and works from elsewhere without the checkout."""
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(build, check=True, cwd=tmp_path, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    expected = {str(path.relative_to(ROOT)) for _, path in modules()}
    expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "mnv3" / "train" / "recipes").glob("*.yaml")}
    expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "mnv3").rglob("templates/*")}
    expected |= {f"mnv3/{path.relative_to(ROOT)}" for path in (ROOT / "weights").rglob("*") if path.is_file()}
    assert expected <= names
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)
    requires = re.findall(r"^Requires-Dist: ([\w-]+)(?![^\n]*extra)", metadata, re.MULTILINE)
    assert sorted(requires) == ["huggingface_hub", "safetensors", "timm", "torch"]
    extras = set(re.findall(r"^Provides-Extra: (\w+)", metadata, re.MULTILINE))
    runtimes = {"deploy", "executorch", "litert", "ncnn", "coreml"}
    assert extras == {"test", "finetune", "viz", "convert", "all"} | runtimes
    code = "from mnv3.cli import main; main(['list', '--json'])"
    result = python(code, tmp_path, path=tmp_path / "site")
    assert len(result.stdout.splitlines()) > 15, result.stderr
    code = "from mnv3.cli import main; main(['recipes'])"
    assert "cifar10_small" in python(code, tmp_path, path=tmp_path / "site").stdout
    code = "import timm, mnv3; print(timm.create_model('mnv3_small_cifar', pretrained=True).num_classes)"
    assert python(code, tmp_path, path=tmp_path / "site").stdout == "10\n"  # and no network


def documents():
    return [ROOT / "README.md", ROOT / "hubconf.py", *sorted((ROOT / "docs").glob("*.md"))]


def test_torch_hub_examples_name_a_version_and_trust():
    """Without them torch.hub asks the network for the default branch, and asks the user to trust it (D6, D9, D10)."""
    calls = [call for path in documents() for call in re.findall(r"torch\.hub\.load\((.*)\)", path.read_text())]
    assert calls
    for call in calls:
        assert re.match(r"""["']org/mnv3:v[\d.]+["']""", call) or "source=" in call, call
        assert "trust_repo=True" in call or "source=" in call, call


def test_no_other_host_is_written_down():
    """All traffic follows HF_ENDPOINT (report E2)."""
    for _, path in modules():
        assert "https://huggingface.co" not in path.read_text(), path.name


def test_version_is_the_changelogs():
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    assert newest == mnv3.__version__


def test_every_public_name_is_documented():
    for name in mnv3.__all__:
        value = getattr(mnv3, name)
        assert name == "CATALOG" or value.__doc__, name
