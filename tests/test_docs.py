"""What the documents say is what the code does."""

import os
import re
import shutil
import subprocess
import sys
from functools import partial

import pytest
from conftest import ROOT
from PIL import Image, ImageChops, ImageStat

from mnv3 import Arch
from mnv3.cli.main import _parser, main

README, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))
FILES = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in FILES}
MAKEFILE = (ROOT / "Makefile").read_text()


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(*texts: str) -> list[str]:
    """The lines of console blocks that are ours, without their comments."""
    found = "".join(block for text in texts for block in blocks("console", text)).splitlines()
    return list(dict.fromkeys(line.partition("#")[0].strip() for line in found if line.startswith("$ mnv3")))


def test_table_of_models_is_the_commands(capsys):
    main(["list", "--markdown"])
    table = capsys.readouterr().out
    assert f"<!-- table: weights -->\n{table}<!-- end -->\n" in TEXTS["docs/models.md"], "`make tables`"
    main(["list"])
    plain = [line.split() for line in capsys.readouterr().out.splitlines()]
    cells = [[cell.strip() for cell in row.strip("|").split("|")][:-1] for row in table.splitlines()]
    assert [cells[0], *cells[2:]] == plain, "both forms have the same figures"


def test_python_blocks(monkeypatch, tmp_path):
    """Every Python block runs as it stands, without a network: on random weights, and torch.hub from this checkout."""
    import timm
    import torch

    import mnv3

    load, timm_create, create = torch.hub.load, timm.create_model, mnv3.create_model
    optimize = partial(mnv3.deploy.optimize, candidates=["eager", "fused"])  # all of them take 20 seconds
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (300, 200), "orange").save("cat.jpg")
    Image.new("I;16", (30, 20), 4095).save("scan.png")

    def local(repo, entry, *args, trust_repo, **kwargs):
        assert repo == f"org/mnv3:v{mnv3.__version__}"
        return load(str(ROOT), entry, *args, source="local", **(kwargs | {"pretrained": False} if kwargs else kwargs))

    monkeypatch.setattr(torch.hub, "load", local)
    monkeypatch.setattr(timm, "create_model", lambda name, **kw: timm_create(name, **(kw | {"pretrained": False})))
    monkeypatch.setattr(mnv3, "create_model", lambda name, **kw: create(name, **(kw | {"pretrained": False})))
    monkeypatch.setattr(mnv3.deploy, "optimize", optimize)
    names: dict = {}
    for name, text in TEXTS.items():
        for block in blocks("python", text) if name != "README.zh-CN.md" else ():
            exec(block, names)
    assert names["model"].num_classes == 10
    assert isinstance(names["tiny"], Arch)
    assert (tmp_path / "out" / "config.json").is_file()


@pytest.mark.parametrize("line", commands(*TEXTS.values()))
def test_commands_are_understood(line):
    words = line.split()[2:]
    assert _parser().parse_args(words).command == words[0]


@pytest.mark.parametrize("name", TEXTS)
def test_links_within_the_repository(name):
    for target in re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", TEXTS[name]):
        assert ((ROOT / name).parent / target).exists(), target


def test_the_readme_is_for_a_newcomer():
    assert len(README.splitlines()) < 200, "the rest belongs in docs/"


def test_the_chinese_readme_says_what_the_other_does():
    """Its sections have the same commands, Python, figures and links, its tables the same numbers."""

    def sections(text):
        return text.split("\n## ")

    def content(section):
        lines = [line.partition("#")[0].rstrip() for block in blocks("console", section) for line in block.splitlines()]
        cells = [cell.strip() for line in section.splitlines() if line.startswith("|") for cell in line.split("|")]
        numbers = [cell for cell in cells if re.fullmatch(r"[\d./ ()%]+", cell)]
        links = set(re.findall(r"\]\(([^)#]+)", section)) - {"README.md", "README.zh-CN.md"}
        return lines, blocks("python", section), numbers, links

    assert len(sections(README)) == len(sections(CHINESE))
    for ours, theirs in zip(sections(README), sections(CHINESE), strict=True):
        assert content(ours) == content(theirs), ours.partition("\n")[0]
    table = [line for line in README.splitlines() if line.startswith("| mnv3_")]
    assert table == [line for line in CHINESE.splitlines() if line.startswith("| mnv3_")]


def test_figures_are_those_of_the_makefile():
    """Every picture of the documents has a command, which is understood; they are small."""
    lines = re.findall(r"^\t\$\(MNV3\) (.*)-o \$\(FIGURES\)/(\S+)$", MAKEFILE, re.MULTILINE)
    for words, file in lines:
        args = _parser().parse_args(["show", *words.replace("'", "").split(), "-o", file])
        assert args.command == "show"
    figures = sorted((ROOT / "docs" / "figures").iterdir())
    assert sorted(file for _, file in lines) == [path.name for path in figures]
    assert sum(path.stat().st_size for path in figures) < 1e6


@pytest.mark.slow
def test_make_figures(tmp_path):
    """They are what the commands draw now, but for the versions of libraries."""
    make = shutil.which("make") or pytest.skip("needs make")
    pytest.importorskip("captum", reason="needs pip install 'mnv3[viz]'")
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [make, "figures", f"PYTHON={sys.executable}", f"FIGURES={tmp_path}"]
    subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True, timeout=500)
    for committed in (ROOT / "docs" / "figures").iterdir():
        before, now = (Image.open(path).convert("L") for path in (committed, tmp_path / committed.name))
        assert before.size == now.size, committed.name
        assert ImageStat.Stat(ImageChops.difference(before, now)).mean[0] < 2, committed.name


def test_the_tree_is_true():
    """CONTRIBUTING.md names every room and every module."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    tree = text[text.index("    mnv3/\n") : text.index("## What holds everywhere")]
    for folder in {path.parent for path in (ROOT / "mnv3").rglob("*.py")}:
        modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "__main__"}
        missing = {name for name in modules if not re.search(rf"\b{name}\b", tree)}
        assert not missing, folder
        assert folder.name in tree
