"""mnv3 report: one file that says what the run's files say, needs nothing else, and fits a phone."""

import base64
import html
import io
import json
import re
from html.parser import HTMLParser

import pytest
from browser import Browser
from PIL import Image, ImageStat

import mnv3
from mnv3 import arch
from mnv3.cli.main import main

pytest.importorskip("matplotlib")
pytest.importorskip("captum", reason="needs pip install 'mnv3[viz]'")


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, text):
        super().__init__()
        self.words, self.links, self.pictures, self.ids, self.open = [], [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)
        assert tag not in ("script", "link", "iframe", "object")
        assert not any(name.startswith("on") for name in attrs)
        self.links += [attrs[name] for name in ("href", "src", "srcset") if name in attrs]
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag == "img":
            assert attrs["alt"]
        if tag in ("img", "source"):
            kind, _, content = attrs.get("src", attrs.get("srcset")).partition(",")
            assert kind == "data:image/png;base64"
            self.pictures.append((attrs.get("media"), Image.open(io.BytesIO(base64.b64decode(content)))))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += [data.strip()] if data.strip() and self.open[-1:] != ["style"] else []


@pytest.fixture(scope="module")
def page(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    models = ["mnv3_small_cifar.cifar10=92.66", "mnv3_large_cifar.cifar10=94.29"]
    assert mnv3.show.report(trained, path, compare=models) == path
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return path


def test_it_says_what_the_run_says(page, trained):
    content, test = Page(page.read_text()), json.loads((trained / "test.json").read_text())
    model = mnv3.load_checkpoint(trained)
    facts = dict(zip(content.words[2::2], content.words[3::2], strict=False))
    assert content.words[0] == content.words[1] == "mnv3_small_cifar on noisy0"
    assert facts["top-1"] == f"{test['top1']:.2f} %"
    assert facts["test pictures"] == "30"
    assert facts["parameters"] == f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M"
    assert facts["epochs"] == "2"
    sections = ["training", "test", "mistakes", "network", "sees", "comparison", "recipe"]
    assert content.ids == sections
    assert [link for link in content.links if not link.startswith("data:")] == [f"#{name}" for name in sections]
    for cost in arch.costs(model.arch, size=16, num_classes=3):
        start = content.words.index(cost.part)
        assert f"{cost.macs / 1e6:,.2f}" in content.words[start : start + 11]
    assert html.unescape((trained / "recipe.yaml").read_text()).strip() in content.words


def test_every_figure_is_there_on_white_and_on_black(page):
    pictures = Page(page.read_text()).pictures
    assert len(pictures) > 20
    for (dark, black), (light, white) in zip(pictures[::2], pictures[1::2], strict=True):
        assert (dark, light) == ("(prefers-color-scheme: dark)", None)
        assert black.size == white.size
        assert black.convert("L").getpixel((1, 1)) < 40
        assert white.convert("L").getpixel((1, 1)) == 255


def test_names_are_text(page):
    """The class 'middle & <b>' and the like are no tags."""
    text = page.read_text()
    assert "<b>" not in text
    assert "middle &amp; &lt;b&gt;" in text


def test_nothing_from_outside(page):
    text = re.sub(r"base64,[\w+/=]+", "", page.read_text())
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in text
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)


def test_without_test_pictures(copied, noisy, capsys):
    """Parts that cannot be drawn are left out, and the report says so."""
    recipe = (copied / "recipe.yaml").read_text().replace(str(noisy), "/nowhere")
    (copied / "recipe.yaml").write_text(recipe)
    assert main(["report", str(copied)]) == 0
    assert capsys.readouterr().out == f"wrote {copied / 'report.html'}\n"
    content = Page((copied / "report.html").read_text())
    assert content.ids == ["training", "test", "network", "recipe"]
    assert any("are gone (data: no folder '/nowhere'" in word for word in content.words)
    (copied / "test.json").unlink()
    assert main(["report", str(copied)]) == 0
    content = Page((copied / "report.html").read_text())
    assert content.ids == ["training", "network", "recipe"]
    assert any("there were no test pictures" in word for word in content.words)


@pytest.mark.parametrize(
    ("gone", "args", "message"),
    [
        ("config.json", [], "is not finished (2 of 2 epochs)"),
        ("log.csv", [], "no epoch is done yet"),
        ("recipe.yaml", [], "is no run's folder"),
        (None, ["-o", "x.pdf"], "unknown ending '.pdf'"),
        (None, ["-o", "none/x.html"], "there is no such folder to write to"),
        (None, ["-o", "/proc/self/x.html"], "/proc/self/x.html: "),
        (None, ["--compare", "mnv3_smal"], "Did you mean 'mnv3_small"),
        (None, ["--compare", "mnv3_small"], "accuracies on different pictures"),
    ],
)
def test_faults_are_one_line(copied, capsys, monkeypatch, gone, args, message):
    monkeypatch.chdir(copied.parent)
    if gone:
        (copied / gone).unlink()
    before = sorted(copied.rglob("*"))
    assert main(["report", "copy", *args]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert sorted(copied.rglob("*")) == before


@pytest.mark.slow
def test_in_a_browser(page, tmp_path):
    """No complaint, no request, no line that is too wide for a phone, all pictures seen, text large enough."""
    with Browser() as browser:
        screenshots = {}
        for width in (375, 1280):
            for dark in (False, True):
                browser.open(page, width=width, dark=dark)
                assert browser.complaints() == []
                assert [url for url in browser.requests() if not url.startswith("data:")] == [page.as_uri()]
                assert browser.evaluate("document.documentElement.scrollWidth") <= width
                broken = browser.evaluate("[...document.images].filter(i => !(i.complete && i.naturalWidth)).length")
                assert broken == 0
                assert browser.evaluate("Math.max(...[...document.images].map(i => i.width))") > 330
                least = "Math.min(...[...document.querySelectorAll('td, dt, dd, p, a')].map(" + (
                    "e => parseFloat(getComputedStyle(e).fontSize)))"
                )
                assert browser.evaluate(least) >= 12
                browser.screenshot(tmp_path / "page.png")
                screenshots[width, dark] = Image.open(tmp_path / "page.png").convert("L")
        columns = "new Set([...document.querySelectorAll('#training figure')].map(f => f.offsetLeft)).size"
        assert browser.evaluate(columns) > 1  # side by side where there is room
        browser.open(page, width=375)
        assert browser.evaluate(columns) == 1
        assert browser.evaluate("document.body.innerText.includes('top-1')")
        browser.evaluate("document.querySelector('nav a').click()")
        assert browser.evaluate("scrollY > 0")
    for (_, dark), picture in screenshots.items():
        level = ImageStat.Stat(picture).mean[0]
        assert level < 90 if dark else level > 170


@pytest.mark.slow
def test_the_browser_would_complain(tmp_path):
    """What the test above finds, it can find: a script, a request and a wide line are noticed."""
    path = tmp_path / "bad.html"
    path.write_text(
        '<meta name="viewport" content="width=device-width"><p style="width: 900px">wide</p><img src="http://127.0.0.1:9/x.png"><script>console.log(1)</script>'
    )
    with Browser() as browser:
        browser.open(path, width=375)
        assert browser.complaints()
        assert "http://127.0.0.1:9/x.png" in browser.requests()
        assert browser.evaluate("document.documentElement.scrollWidth") > 375
