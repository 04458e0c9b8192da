"""Names that nobody should choose, where they leave: on a terminal, in Markdown, HTML and pictures."""

import io
import json
import unicodedata
from functools import partial
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import torch
from conftest import ROOT

import mnv3
from mnv3 import text
from mnv3.catalog import find
from mnv3.errors import one_line
from mnv3.hub import cards
from mnv3.show.run_report import template_environment

GOOD = ["airplane", "naïve café", "山水 画", "نیم‌فاصله", "👩‍👩‍👧", "a-b_c.d (1)", "50 % + 3"]
BAD = [
    "\x1b[2J\x1b]0;title\x07cat",
    "cat\nmnv3: all is well",
    "cat\r dog",
    "a\x9b31mb",
    "\u202egnp.exe",
    "a\u2028b\u200bc\ufeff",
    "not utf-8 \udcff\udc80",
    "nul\x00 \x7f \ufffe",
    "<script>alert(1)</script>",
    "<!-- a -- b -->]]>&amp;&#27;",
    "| a | b |",
    "[click](javascript:alert(1)) ![x](http://a/b.png)",
    "https://evil.example www.evil.example",
    "# heading",
    "- item",
    "1. item",
    "=== ---",
    "`code` **bold** _it_ ~~no~~ $x^2$",
    "\\",
]


def visible(text):
    """Whether a terminal only shows it."""
    return not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp", "Cn") or c in "\u202e\u200b\ufeff" for c in text)


@pytest.mark.parametrize("name", [*GOOD, *BAD])
def test_terminal(name):
    shown = text.terminal(name)
    assert visible(shown)
    assert text.terminal(shown) == shown
    assert visible(one_line(ValueError(f"{name}: no such class")))


@pytest.mark.parametrize("name", GOOD)
def test_good_names_are_as_they_are(name):
    assert text.terminal(name) == text.drawable(name) == text.printable(name) == name


def test_what_was_there_can_be_told():
    assert text.terminal("\x1b[2J \u202e \udcff") == r"\x1b[2J \u202e \udcff"


@pytest.mark.parametrize("name", [*GOOD, *BAD])
def test_markdown(name):
    """As a reader of CommonMark and GitHub's tables sees it: the name, and no markup."""
    from markdown_it import MarkdownIt

    reader = MarkdownIt("gfm-like", {"linkify": False})
    for source in (f"{text.markdown(name)} x", f"x {text.markdown(name)}", f"x\n{text.markdown(name)}"):
        (paragraph,) = [token for token in reader.parse(source) if token.type == "inline"]
        assert {child.type for child in paragraph.children} <= {"text", "softbreak", "text_special"}
        assert text.drawable(name).strip() in "".join(child.content for child in paragraph.children)
    table = text.markdown_table([("class", "top-1"), (text.markdown(name), "1.0")], "<>")
    cells = [token for token in reader.parse(table) if token.type == "inline"]
    assert len(cells) == 4
    assert "".join(child.content for child in cells[2].children).strip() == text.drawable(name).strip()


@pytest.mark.parametrize("name", [*GOOD, *BAD])
def test_html(name):
    seen, tags = [], []
    reader = HTMLParser()
    reader.handle_data = seen.append
    reader.handle_starttag = lambda tag, attributes: tags.append((tag, attributes))
    reader.handle_comment = reader.handle_decl = reader.unknown_decl = lambda data: pytest.fail(data)
    template = template_environment().from_string('<p title="{{ name }}">{{ name }}</p>')
    reader.feed(template.render(name=name))
    reader.close()
    ((tag, ((_, title),)),) = tags
    assert (tag, "".join(seen)) == ("p", title)
    assert not any(unicodedata.category(c) == "Cs" or (unicodedata.category(c) == "Cc" and c != "\n") for c in title)
    title.encode()


def test_pictures(tmp_path):
    """SVGs are well-formed, and no class ends in an error of matplotlib."""
    pytest.importorskip("matplotlib")
    from mnv3.figures import charts, style

    draw = partial(charts.draw_confusion, matrix=torch.eye(len(BAD), dtype=torch.int).tolist(), classes=BAD)
    for ending in style.ENDINGS:
        style.figure([style.Row(4.0, [draw])], title=BAD[7], path=tmp_path / f"x{ending}")
    ElementTree.parse(tmp_path / "x.svg")
    assert text.well_formed("<a>\x1b\x00é</a>".encode()) == "<a>\ufffd\ufffdé</a>".encode()


def test_predictions_and_tables(run, tmp_path):
    from PIL import Image

    labels = [*BAD[:7], "cat", "dog", "owl"]
    model = mnv3.create_model("mnv3_small_cifar", num_classes=10)
    folder = mnv3.save(model, tmp_path / "net", label_names=labels)
    picture = tmp_path / "a\x1b[2Jb.png"
    Image.new("RGB", (32, 32)).save(picture)
    Image.new("RGB", (32, 32)).save(tmp_path / "other.png")
    status, out, _ = run("predict", picture, tmp_path / "other.png", "--checkpoint", folder, "--topk", "10")
    assert status == 0
    lines = out.splitlines()
    assert len(lines) == 22
    assert all(map(visible, lines))
    assert sum(r"\x1b[2J\x1b]0;title\x07cat" in line for line in lines) == 2
    status, out, _ = run("predict", picture, "--checkpoint", folder, "--topk", "10", "--json")
    assert sorted(entry["label"] for entry in json.loads(out)["topk"]) == sorted(labels), "JSON has its own escapes"


def test_tensors_with_names_of_this_kind(run, tmp_path):
    torch.save({name: torch.zeros(1) for name in BAD[:4]}, tmp_path / "x.pth")
    status, _, err = run("convert", tmp_path / "x.pth", tmp_path / "out", "--arch", "mnv3_small")
    assert status == 1
    assert len(err.splitlines()) == 1
    assert visible(err.rstrip("\n"))
    assert r"\x1b[2J" in err


def test_notices_are_lines(run, tmp_path, monkeypatch):
    import logging

    from mnv3.cli.main import _set_up_output

    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    _set_up_output(False)
    logging.getLogger("mnv3").warning("class %s is empty", BAD[0] + "\n")
    assert stream.getvalue() == "mnv3: class \\x1b[2J\\x1b]0;title\\x07cat\\n is empty\n"


def test_cards(tmp_path):
    """Classes of a test.json are input: they are named, and are no markup."""
    record = find("mnv3_small_cifar")
    metrics = json.loads((ROOT / "weights" / record.name / "test.json").read_text())
    name = "<img src=x onerror=alert(1)> | [a](b)\n\n# c"
    metrics["classes"][3], metrics["per_class"][name] = name, 0.0
    del metrics["per_class"]["cat"]
    (tmp_path / "test.json").write_text(json.dumps(metrics))
    card = cards.card(record, tmp_path)
    (row,) = [line for line in card.splitlines() if "lowest by class" in line]
    assert r"\<img src=x onerror=alert(1)\> \| \[a\](b)" in row
    assert "\n# c" not in card
