"""torch.hub from a copy that is not installed, beside modules with common names, without a network."""

import shutil
import subprocess
import sys
import textwrap
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import mnv3
from mnv3.timm_models import VARIANTS

ENTRIES = {"mobilenetv3_large", "mobilenetv3_small", "transforms", *VARIANTS}


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """What torch.hub downloads: the repository and nothing installed."""
    folder = tmp_path_factory.mktemp("hub") / "org_mnv3_main"
    shutil.copytree(ROOT / "mnv3", folder / "mnv3", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "weights", folder / "weights")
    shutil.copy(ROOT / "hubconf.py", folder)
    return folder


def run(code: str, cwd: Path, *, python_path: str = "") -> subprocess.CompletedProcess:
    """Code in a fresh interpreter, elsewhere, where mnv3 is not installed and no socket can be opened."""
    offline = """
        import socket
        def no_network(*args): raise OSError("no network")
        socket.socket.connect = socket.create_connection = no_network
    """
    script = textwrap.dedent(offline) + textwrap.dedent(code)
    env = {"PATH": "", "HOME": str(cwd), "PYTHONPATH": python_path, "HF_HUB_OFFLINE": "1", "GITHUB_TOKEN": ""}
    command = [sys.executable, "-W", "error::UserWarning", "-c", script]
    return subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120
    )


@pytest.fixture
def hubconf():
    spec = spec_from_file_location("hubconf", ROOT / "hubconf.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_entries_are_listed(hubconf):
    public = {name for name, value in vars(hubconf).items() if callable(value) and not name.startswith("_")}
    assert public == ENTRIES  # what torch.hub.list shows
    assert all(getattr(hubconf, name).__doc__ for name in ENTRIES)  # what torch.hub.help shows


def test_dependencies_are_importable_modules(hubconf):
    assert all(find_spec(name) for name in hubconf.dependencies)


@pytest.mark.parametrize("entry", sorted(ENTRIES - {"transforms"}))
def test_every_entry_builds_its_model(entry):
    model = torch.hub.load(str(ROOT), entry, source="local", num_classes=3)
    assert model.num_classes == 3
    assert model.arch == VARIANTS[entry.replace("mobilenetv3", "mnv3")].arch


def test_transforms_entry():
    by_name = torch.hub.load(str(ROOT), "transforms", "mnv3_large.tv2_in1k", source="local")
    assert str(by_name) == str(mnv3.transforms("mnv3_large.tv2_in1k"))
    model = torch.hub.load(str(ROOT), "mnv3_small_cifar", source="local")
    assert "32" in str(torch.hub.load(str(ROOT), "transforms", model, source="local"))


def test_from_another_folder_next_to_decoys(copy, tmp_path):
    for name in ("model", "utils", "layers", "hub", "catalog", "arch"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('the decoy was imported')")
    (tmp_path / "mnv3").mkdir()
    (tmp_path / "mnv3" / "__init__.py").write_text("raise RuntimeError('the old mnv3 was imported')")
    result = run(
        f"""
        import torch
        model = torch.hub.load({str(copy)!r}, "mobilenetv3_small", source="local", trust_repo=True)
        transform = torch.hub.load({str(copy)!r}, "transforms", model, source="local", trust_repo=True)
        from PIL import Image
        x = transform(Image.new("RGB", (300, 200)))[None]
        import mnv3
        print(tuple(model.eval()(x).shape), mnv3.__file__)
        for tag in (True, "ra"):
            try:
                torch.hub.load({str(copy)!r}, "mobilenetv3_large", source="local", pretrained=tag)
            except (RuntimeError, ValueError) as error:
                print(error)
        """,
        tmp_path,
        python_path=str(tmp_path),  # as an older version in site-packages would be found
    )
    assert result.returncode == 0, result.stderr
    loaded, offline, unknown = result.stdout.splitlines()
    assert loaded == f"(1, 1000) {copy}/mnv3/__init__.py"
    assert "HF_HUB_OFFLINE is set and model.safetensors of timm/mobilenetv3_large_100.ra_in1k" in offline
    assert "unknown tag 'ra' of mnv3_large" in unknown


def test_a_second_copy_of_other_code_is_refused(copy, tmp_path):
    """It would run the first one's code: Python has one `mnv3`. An equal copy may come from anywhere."""
    equal, other = tmp_path / "equal", tmp_path / "org_mnv3_next"
    for folder in (equal, other):
        shutil.copytree(copy, folder, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    version = other / "mnv3" / "version.py"
    version.write_text(version.read_text().replace('__version__ = "', '__version__ = "9.'))
    load = 'torch.hub.load({!r}, "mnv3_small_cifar", source="local", trust_repo=True)\n'
    first, second, third = (load.format(str(folder)) for folder in (copy, equal, other))
    result = run(f"import torch\n{first}{second}print('equal')\n{third}", tmp_path)
    assert result.stdout == "equal\n"
    assert result.stderr.splitlines()[-1] == (
        f"ImportError: mnv3 {mnv3.__version__} from {copy}/mnv3 is loaded already, and {other}/mnv3 has other code "
        f"(mnv3 9.{mnv3.__version__}): load that one in a Python process of its own"
    )


def test_missing_dependency_is_torch_hubs_own_message(copy, tmp_path):
    """hubconf.py is imported before torch.hub looks at `dependencies` (report D2)."""
    result = run(
        f"""
        import importlib.machinery, torch
        real = importlib.machinery.PathFinder.find_spec
        for missing in ("timm", "safetensors", "huggingface_hub"):
            importlib.machinery.PathFinder.find_spec = (
                lambda name, *args: None if name.split(".")[0] == missing else real(name, *args)
            )
            try:
                torch.hub.load({str(copy)!r}, "mobilenetv3_small", source="local")
            except RuntimeError as error:
                print(error)
        """,
        tmp_path,
    )
    expected = [f"Missing dependencies: {name}" for name in ("timm", "safetensors", "huggingface_hub")]
    assert result.stdout.splitlines() == expected, result.stderr
