"""The command starts fast: help, tables and refusals need neither torch nor timm."""

import subprocess
import sys

import pytest
from conftest import ROOT

HEAVY = ("torch", "timm", "numpy", "huggingface_hub")
REFUSED = {
    ("info", "mnv3_smal"): "unknown model 'mnv3_smal'",
    ("predict", "a.png", "--model", "mnv3_smal"): "unknown model 'mnv3_smal'",
    ("eval", "mnv3_smal", "--data", "cifar10"): "unknown model 'mnv3_smal'",
    ("export", "mnv3_smal", "--to", "onnx"): "unknown model 'mnv3_smal'",
    ("finetune", "none"): "no recipe 'none'",
    ("finetune", "cifar10_small", "--set", "epochs=0"): "epochs",
    ("finetune", "cifar10_small", "--set", "model=mnv3_smal"): "unknown model 'mnv3_smal'",
    ("predict", "--resume", "a.png"): "--resume and --force are for --out FILE",
    ("recipes", "none"): "no recipe 'none'",
}


def start(*arguments):
    """The command as `python -m mnv3`, and which of the heavy packages it imported."""
    code = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print(*[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr))\n"
        "sys.argv[0], sys.orig_argv = '-m', ['python', '-m', 'mnv3']\n"
        "import mnv3\n"
        "sys.argv[0] = 'mnv3'\n"
        "from mnv3.cli import main\n"
        "sys.exit(main())\n"
    )
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    *lines, imported = result.stderr.splitlines()
    return result.returncode, result.stdout, "\n".join(lines), imported.split()


@pytest.mark.parametrize(
    "arguments", [["--help"], ["predict", "--help"], ["list"], ["info", "mnv3_small"], ["recipes"]]
)
def test_help_and_tables(arguments):
    status, out, _, imported = start(*arguments)
    assert (status, imported) == (0, [])
    assert out


@pytest.mark.parametrize("arguments", REFUSED, ids=" ".join)
def test_refusals(arguments):
    status, _, err, imported = start(*arguments)
    assert (status, imported) == (1, [])
    assert REFUSED[arguments] in err


def test_names_come_on_first_use():
    """In the command's own process too, for whoever imports mnv3 there."""
    code = (
        "import sys; sys.argv[0] = 'mnv3'\nimport mnv3\nassert 'torch' not in sys.modules\nprint(mnv3.fuse, mnv3.load)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.stdout.startswith("<function fuse"), result.stderr
