"""mnv3 demo in a browser: the answers of ONNX Runtime in Python, no foreign request, a sentence for each failure."""

import dataclasses
import json
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from browser import Browser
from PIL import Image, ImageCms, ImageDraw
from runtime_web import dist_or_skip

import mnv3
from mnv3.demo import runtime_files, server, site

pytest.importorskip("onnxruntime", reason="needs pip install 'mnv3[deploy]'")
pytest.importorskip("onnxscript", reason="needs pip install 'mnv3[deploy]'")
pytestmark = pytest.mark.slow
ANSWER = """(async () => {
  const end = Date.now() + 30000;
  while (Date.now() < end && !state.problem && (!state.answer || state.answer === before)) {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  return state.problem ? document.getElementById("problem").textContent : Array.from(state.answer);
})()"""
DRAW = """const canvas = document.createElement("canvas"); canvas.width = canvas.height = 64;
canvas.getContext("2d").fillRect(9, 9, 30, 20);
const blob = await new Promise((resolve) => canvas.toBlob(resolve));
const data = new DataTransfer(); data.items.add(new File([blob], "drawn.png", {type: "image/png"}));"""


class Plain(SimpleHTTPRequestHandler):
    """A server that knows nothing of this page, such as `python -m http.server`; or a CDN, open to all origins."""

    def end_headers(self):
        self.send_header("Access-Control-Allow-Origin", "*")
        super().end_headers()

    def log_message(self, *args):
        pass


@contextmanager
def serving(running):
    """A server in a thread; gives its address."""
    threading.Thread(target=running.serve_forever, daemon=True).start()
    with running:
        yield server.url_of(running)
        running.shutdown()


def plain(folder):
    return serving(ThreadingHTTPServer((server.HOST, 0), partial(Plain, directory=str(folder))))


@pytest.fixture(scope="module")
def browser():
    with Browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """The page of weights that ship with mnv3."""
    model = mnv3.create_model("mnv3_small_cifar.cifar10", pretrained=True)
    return site.write(model, tmp_path_factory.mktemp("cifar") / "site", runtime=dist_or_skip())


@pytest.fixture(scope="module")
def logits(tmp_path_factory):
    """The page of a file that gives logits for three normalised pictures."""
    folder = tmp_path_factory.mktemp("logits")
    model = mnv3.create_model("mnv3_small_cifar.cifar10", pretrained=True)
    mnv3.deploy.export(model, folder / "net.onnx", to="onnx", batch=3)
    return site.write(folder / "net.onnx", folder / "site", runtime=dist_or_skip())


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Pictures as people have them: large, transparent, turned, grey, wide, tall, and with a profile of colours."""
    folder, rng = tmp_path_factory.mktemp("drawn"), np.random.default_rng(0)
    sky = np.linspace((90, 140, 230), (210, 230, 250), 90).repeat(120, 0).reshape(90, 120, 3)
    ship = Image.fromarray((sky + rng.normal(0, 6, sky.shape)).clip(0, 255).astype(np.uint8))
    ImageDraw.Draw(ship).polygon([(15, 60), (105, 55), (90, 75), (30, 75)], fill=(70, 60, 60))
    ship.save(folder / "ship.png")
    ship.resize((2100, 1500)).save(folder / "large.jpg", quality=92)
    ship.convert("L").save(folder / "grey.png")
    clear = ship.convert("RGBA")
    clear.putalpha(Image.fromarray(np.linspace(0, 255, 90).repeat(120).reshape(90, 120).astype(np.uint8)))
    clear.save(folder / "clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    ship.save(folder / "turned.jpg", exif=exif)
    ship.resize((108, 240)).save(folder / "tall.png")
    swapped = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = swapped.index(b"rXYZ"), swapped.index(b"bXYZ")
    swapped[red], swapped[blue] = swapped[blue], swapped[red]  # it says that red is blue, which mnv3 does not read
    ship.save(folder / "profile.png", icc_profile=bytes(swapped))
    ship.resize((900, 60)).save(folder / "wide.webp", lossless=True)
    return folder


def give(browser, *files):
    """The page's answer to each file that is chosen: probabilities, or a sentence."""
    for file in files:
        browser.evaluate("state.problem = null; window.before = state.answer; 1")
        chosen = browser.call("Runtime.evaluate", expression="document.getElementById('file')")["result"]["objectId"]
        browser.call("DOM.setFileInputFiles", files=[str(file)], objectId=chosen)
        yield browser.evaluate(ANSWER)


def ready(browser):
    """Device, threads and whether the page may have several; None where there is no network."""
    return browser.evaluate("state.network.then((n) => n && [n.device, n.threads, crossOriginIsolated])")


def in_python(folder, files):
    model = mnv3.deploy.load(folder / "model.onnx")
    for prediction in mnv3.predict(model, files, topk=model.num_classes, exact=True):
        assert not prediction.error
        order = {entry["index"]: entry["prob"] for entry in prediction.topk}
        yield np.array([order[i] for i in range(model.num_classes)])


def check_answers(browser, folder, files, tolerance=1e-3):
    """The same classes in the same order as in Python, and nothing to complain of."""
    for file, answer, expected in zip(files, give(browser, *files), in_python(folder, files), strict=True):
        assert not isinstance(answer, str), (file.name, answer)
        assert np.abs(np.array(answer) - expected).max() < tolerance, file.name
        assert (np.argsort(-np.array(answer))[:5] == np.argsort(-expected)[:5]).all(), file.name
    assert browser.complaints() == []


def check_requests(browser, *addresses):
    allowed = (*addresses, *(f"blob:{address}" for address in addresses), "data:")
    assert [url for url in browser.requests() if not url.startswith(allowed)] == []


def test_real_pictures(browser, shared, tmp_path):
    """Twenty, half of them in other sizes, formats and orientations."""
    model = mnv3.load_checkpoint(shared / "weights/hub/timm/tf_mobilenetv3_small_100.in1k")
    folder = site.write(model, tmp_path / "site", runtime=dist_or_skip())
    files = sorted((shared / "images/imagenet_half").iterdir())[::25][:20]
    for i, file in enumerate(files[10:]):
        picture = Image.open(file).convert("RGB")
        width, height = picture.size
        sizes = [(width * 2 + i, height * 2 - i), (width // 2 + i, height // 2), (width + 61 * i, height + 40)]
        picture = picture.resize(sizes[i % 3], Image.Resampling.LANCZOS)
        files[10 + i] = tmp_path / f"{i}.{('jpg', 'png', 'webp')[i % 3]}"
        picture.save(files[10 + i])
    with serving(server.server(folder)) as url:
        browser.open(url, width=1280)
        device, threads, isolated = ready(browser)
        assert (device, isolated) == ("wasm", True)
        assert threads >= 1
        check_answers(browser, folder, files)
        check_requests(browser, url)


def test_drawn_pictures(browser, cifar, logits, drawn):
    """Also by a server that does not let the page have threads, and with what the file leaves to the page."""
    files = sorted(drawn.iterdir())
    for folder in (cifar, logits):
        with plain(folder) as url:
            browser.open(url, width=1280)
            assert ready(browser) == ["wasm", 1, False]
            check_answers(browser, folder, files)
            check_requests(browser, url)


def test_dropped_and_pasted(browser, cifar):
    with serving(server.server(cifar)) as url:
        browser.open(url, width=1280)
        ready(browser)
        answers = []
        for event in ("DragEvent('drop', {dataTransfer: data,", "ClipboardEvent('paste', {clipboardData: data,"):
            send = f"{DRAW} window.before = state.answer; document.body.dispatchEvent(new {event} bubbles: true}}));"
            browser.evaluate(f"(async () => {{ {send} }})()")
            answers.append(browser.evaluate(ANSWER))
        assert len(answers[0]) == 10
        assert answers[0] == answers[1]
        assert browser.complaints() == []


@pytest.mark.parametrize("language", ["en-GB", "zh-CN"])
def test_two_languages_two_widths_light_and_dark(browser, cifar, drawn, language):
    """Nothing is wider than the window or too small to read; everything has a name; the answer is told."""
    texts = json.loads((site.TEMPLATES / site.TEXTS).read_text(encoding="utf-8"))
    told, other = (texts[code] for code in (("en", "zh") if language == "en-GB" else ("zh", "en")))
    define = f"Object.defineProperty(navigator, 'language', {{value: '{language}'}})"
    script = browser.call("Page.addScriptToEvaluateOnNewDocument", source=define)["identifier"]
    with serving(server.server(cifar)) as url:
        for width, dark in ((375, False), (375, True), (1280, True)):
            browser.open(url, width=width, dark=dark)
            ready(browser)
            assert browser.evaluate("document.querySelector('h1').textContent") == told["title"]
            list(give(browser, drawn / "ship.png"))
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
            sizes = "Array.from(document.querySelectorAll('body *'), (e) => parseFloat(getComputedStyle(e).fontSize))"
            assert browser.evaluate(f"Math.min(...{sizes})") >= 12
            assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == (
                "rgb(22, 25, 29)" if dark else "rgb(255, 255, 255)"
            )
            assert browser.evaluate("document.querySelectorAll('#results li').length") == 5
            status = browser.evaluate("document.getElementById('status').textContent")
            assert status.startswith(browser.evaluate("labelOf(state.answer.indexOf(Math.max(...state.answer)))"))
        nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
        named = {"button", "image", "link", "checkbox", "heading", "DisclosureTriangle", "textbox"}
        for node in nodes:
            if not node["ignored"] and node["role"]["value"] in named:
                assert node["name"]["value"], node
        assert browser.evaluate("document.getElementById('picture').alt") == told["picture"]
        assert press_tab(browser, 3) == ["language", "file", "summary"]
        browser.evaluate("document.getElementById('language').click()")
        assert browser.evaluate("document.querySelector('h1').textContent") == other["title"]
        assert browser.evaluate("document.getElementById('likely').textContent") == other["likely"]
        browser.open(url, width=375)  # remembered
        assert browser.evaluate("document.querySelector('h1').textContent") == other["title"]
        browser.evaluate("localStorage.clear()")
        assert browser.complaints() == []
    browser.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script)


def test_a_phone_offers_its_camera(browser, cifar):
    with serving(server.server(cifar)) as url:
        for touch, display in ((True, "block"), (False, "none")):
            browser.call("Emulation.setTouchEmulationEnabled", enabled=touch)
            browser.open(url, width=375)
            ready(browser)
            assert browser.evaluate("getComputedStyle(document.querySelector('#camera + label')).display") == display
        assert browser.evaluate("document.getElementById('camera').getAttribute('capture')") == "environment"


def press_tab(browser, count):
    """What has the focus after each key."""
    focused = []
    browser.evaluate("document.activeElement.blur()")
    for _ in range(count):
        for kind in ("keyDown", "keyUp"):
            browser.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        focused.append(browser.evaluate("document.activeElement.id || document.activeElement.localName"))
    return focused


def test_from_the_cdn(browser, cifar, drawn, tmp_path, monkeypatch):
    """The runtime from another origin, by its digests; none from there that is another file."""
    dist = dist_or_skip()
    copy = tmp_path / "dist"
    copy.mkdir()
    for file in runtime_files.PUBLISHED["wasm"].values():
        name = file.url.removeprefix(runtime_files.CDN)
        (copy / name).write_bytes((dist / name).read_bytes())
    with plain(copy) as cdn:
        published = {
            part: dataclasses.replace(file, url=file.url.replace(runtime_files.CDN, cdn))
            for part, file in runtime_files.PUBLISHED["wasm"].items()
        }
        monkeypatch.setattr(runtime_files, "CDN", cdn)
        monkeypatch.setitem(runtime_files.PUBLISHED, "wasm", published)
        folder = site.write(cifar / "model.onnx", tmp_path / "site")
        with serving(server.server(folder)) as url:
            browser.open(url, width=1280)
            assert ready(browser)[2]
            check_answers(browser, folder, [drawn / "ship.png"])
            check_requests(browser, url, cdn)
            (copy / "ort.wasm.min.mjs").write_bytes(b"alert(1)")
            browser.call("Network.setCacheDisabled", cacheDisabled=True)
            browser.open(url, width=1280)
            assert ready(browser) is None
            problem = browser.evaluate("document.getElementById('problem').textContent")
            assert problem.startswith(
                "ort.wasm.min.mjs could not be loaded, or is not the file that belongs to this page"
            )


def test_a_sentence_for_what_goes_wrong(browser, cifar, drawn, tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    for file in cifar.iterdir():
        (folder / file.name).symlink_to(file)
    problem = "document.getElementById('problem').textContent"
    browser.open(folder / "index.html", width=375)
    assert ready(browser) is None
    assert browser.evaluate(problem).startswith("This page was opened as a file")
    with serving(server.server(folder)) as url:
        (tmp_path / "notes.txt").write_text("no picture")
        (tmp_path / "cut.png").write_bytes((drawn / "ship.png").read_bytes()[:40])
        browser.open(url, width=375)
        ready(browser)
        said = list(give(browser, tmp_path / "notes.txt", tmp_path / "cut.png", drawn / "ship.png"))
        assert said[0].startswith("That is no picture.")
        assert said[1].startswith("cut.png cannot be read as a picture by this browser.")
        assert len(said[2]) == 10
        (folder / "model.onnx").unlink()
        browser.open(url, width=375)
        assert ready(browser) is None
        assert browser.evaluate(problem).startswith("model.onnx could not be loaded")
        lacks = "WebAssembly.validate = () => false"
        script = browser.call("Page.addScriptToEvaluateOnNewDocument", source=lacks)["identifier"]
        browser.open(url, width=375)
        assert ready(browser) is None
        assert browser.evaluate(problem).startswith("This browser cannot run the network: it has no WebAssembly SIMD.")
        browser.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script)


def test_where_the_graphics_processor_cannot(browser, cifar, tmp_path):
    """WebGPU on request; the page goes on without where it fails."""
    folder = site.write(cifar / "model.onnx", tmp_path / "site", runtime=dist_or_skip(), webgpu=True)
    script = browser.call(
        "Page.addScriptToEvaluateOnNewDocument",
        source="Object.defineProperty(navigator, 'gpu', {value: {requestAdapter: async () => null}})",
    )["identifier"]
    with serving(server.server(folder)) as url:
        browser.open(url, width=1280)
        ready(browser)
        assert not browser.evaluate("document.getElementById('gpu').hidden")
        browser.evaluate("document.querySelector('#gpu input').click()")
        assert ready(browser)[0] == "wasm"
        assert browser.evaluate("document.querySelector('#gpu input').checked") is False
        assert "does not run this network" in browser.evaluate("document.getElementById('problem').textContent")
    browser.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script)
