"""What the documents say is what the code does."""

import re

import pytest
from conftest import ROOT

from mnv3 import Arch, cli

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_table_of_models_is_the_commands(capsys):
    cli.main(["list", "--markdown"])
    table = capsys.readouterr().out
    assert f"`mnv3 list --markdown`; tests/test_docs.py compares -->\n{table}\n" in README, (
        "paste the output of `mnv3 list --markdown` into README.md"
    )
    cli.main(["list"])
    plain = [line.split() for line in capsys.readouterr().out.splitlines()]
    cells = [[cell.strip() for cell in row.strip("|").split("|")][:-1] for row in table.splitlines()]
    assert [cells[0], *cells[2:]] == plain, "both forms have the same figures"


def test_python_blocks(monkeypatch, tmp_path):
    """Every Python block runs as it stands, without a network: on random weights, and torch.hub from this checkout."""
    import timm
    import torch
    from PIL import Image

    import mnv3

    load, timm_create, create = torch.hub.load, timm.create_model, mnv3.create_model
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (300, 200), "orange").save("cat.jpg")

    def local(repo, entry, *args, trust_repo, **kwargs):
        assert repo == f"org/mnv3:v{mnv3.__version__}"
        return load(str(ROOT), entry, *args, source="local", **(kwargs | {"pretrained": False} if kwargs else kwargs))

    monkeypatch.setattr(torch.hub, "load", local)
    monkeypatch.setattr(timm, "create_model", lambda name, **kw: timm_create(name, **(kw | {"pretrained": False})))
    monkeypatch.setattr(mnv3, "create_model", lambda name, **kw: create(name, **(kw | {"pretrained": False})))
    names: dict = {}
    for block in blocks("python"):
        exec(block, names)
    assert names["model"].num_classes == 10
    assert isinstance(names["tiny"], Arch)
    assert (tmp_path / "out" / "config.json").is_file()


@pytest.mark.parametrize(
    "line", [line for line in "".join(blocks("console")).splitlines() if line.startswith("$ mnv3")]
)
def test_commands_are_understood(line):
    words = line.partition("#")[0].split()[2:]
    assert cli._parser().parse_args(words).command == words[0]


def test_links_within_the_repository():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
