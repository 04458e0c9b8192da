"""mnv3 demo without a browser: what the folder holds, what is refused, what the texts say."""

import json
import re
import urllib.request
from html.parser import HTMLParser
from threading import Thread

import pytest
from conftest import ROOT, randomize
from runtime_web import dist_or_skip

import mnv3
from mnv3.demo import runtime_files, server, site

pytest.importorskip("onnxruntime", reason="needs pip install 'mnv3[deploy]'")
pytest.importorskip("onnxscript", reason="needs pip install 'mnv3[deploy]'")
CLASSES = ["plain", "</script><b>", "a & \"b\" 'c'", "\u202egnp.exe", "中文"]


class Page(HTMLParser):
    """A page's tags, what they name, and the JSON in its scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.data, self.texts, self.urls, self.policy, self.open = [], {}, [], [], "", None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.open = attrs.get("id") if tag == "script" else None
        self.texts += [attrs["data-text"]] if "data-text" in attrs else []
        self.urls += [attrs[name] for name in ("src", "href") if name in attrs]
        if attrs.get("http-equiv") == "Content-Security-Policy":
            self.policy = attrs["content"]

    def handle_data(self, data):
        if self.open:
            self.data[self.open] = json.loads(data)
            self.open = None


def page_of(folder):
    return Page((folder / "index.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A page with its runtime beside it, of a model with odd names for its classes and pictures of one channel."""
    dist = tmp_path_factory.mktemp("package") / "dist"
    dist.mkdir()
    for name in runtime_files.NAMES:
        (dist / name).write_bytes(f"/*! ONNX Runtime Web v9.8.7 */ {name}".encode())
    model = randomize(mnv3.create_model("mnv3_small_cifar", num_classes=len(CLASSES), in_chans=1, width=0.35))
    model.pretrained_cfg |= {"label_names": CLASSES}
    folder = tmp_path_factory.mktemp("local") / "new" / "site"
    return site.write(model, folder, runtime=dist.parent, webgpu=True, half=True)


@pytest.fixture(scope="module")
def network(local):
    """Its ONNX file."""
    return local / "model.onnx"


@pytest.fixture(scope="module")
def remote(network, tmp_path_factory):
    """A page of an ONNX file, with its runtime on the CDN."""
    return site.write(network, tmp_path_factory.mktemp("remote") / "site")


def test_what_the_folder_holds(remote, network):
    assert {file.name for file in remote.iterdir()} == {"index.html", "demo.css", "demo.js", "resize.js", "model.onnx"}
    assert (remote / "model.onnx").read_bytes() == network.read_bytes()
    page = page_of(remote)
    assert all((remote / url).is_file() or url.startswith("data:") for url in page.urls)
    assert page.policy.startswith("default-src 'none';")
    assert f"connect-src 'self' {runtime_files.CDN};" in page.policy
    assert list(page.data["model"]["runtime"]) == ["wasm"]


def test_a_page_that_asks_no_other_server(local):
    page, text = page_of(local), (local / "index.html").read_text(encoding="utf-8")
    model = page.data["model"]
    files = [model["network"], *(file for files in model["runtime"].values() for file in files.values())]
    assert len(files) == 7
    for file in files:
        content = (local / file["url"]).read_bytes()
        assert runtime_files.page_file(file["url"], content) == runtime_files.PageFile(**file)
    assert "connect-src 'self';" in page.policy
    assert "ONNX Runtime Web 9.8.7" in text
    assert not re.search("https?://(?!www.w3.org/2000/svg|localhost:8000)", text)


def test_a_model_takes_bytes_and_gives_probabilities(local):
    model = page_of(local).data["model"]
    assert (model["input"]["normalize"], model["softmax"]) == (None, False)
    assert (model["input"]["channels"], model["input"]["size"], model["input"]["batch"]) == (1, 32, 1)
    model = mnv3.create_model("mnv3_small_cifar", num_classes=len(CLASSES), in_chans=1, width=0.35)
    assert (local / "model.onnx").stat().st_size < 3 * sum(p.numel() for p in model.parameters())  # half=True


def test_what_a_file_does_not_do_the_page_does():
    """Normalisation and softmax of a file in 8 bits, for instance, with a batch that is fixed, and no names."""
    metadata = {
        "input_size": [3, 24, 24],
        "num_classes": 7,
        "label_names": None,
        "dynamic": ["size"],
        "batch": 3,
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.2, 0.1],
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "crop_mode": "border",
        "normalize": False,
        "softmax": False,
    }
    network = runtime_files.page_file("model.onnx", b"")
    page = Page(site.render(metadata, network, {"wasm": runtime_files.PUBLISHED["wasm"]}))
    assert page.data["model"]["softmax"] is True
    assert page.data["model"]["labels"] is None
    assert "details" not in page.tags
    assert page.data["model"]["input"] | {"columns_first": None} == {
        "columns_first": None,
        "size": 24,
        "channels": 3,
        "batch": 3,
        "scaled": 26,
        "mode": "border",
        "interpolation": "bicubic",
        "fill": [128, 102, 76],
        "normalize": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]},
    }


def test_names_of_classes_are_text(local):
    page = page_of(local)
    assert page.data["model"]["labels"] == [*CLASSES[:3], "\N{REPLACEMENT CHARACTER}gnp.exe", "中文"]
    assert page.tags.count("script") == 4
    assert "b" not in page.tags


def test_replaces_only_a_page_of_its_own(network, tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    site.write(network, folder)  # an empty one, which is nobody's
    with pytest.raises(FileExistsError, match="exists: choose another folder, or replace it"):
        site.write(network, folder)
    (folder / "model.onnx").write_bytes(b"old")
    site.write(network, folder, exist_ok=True)
    assert (folder / "model.onnx").read_bytes() == network.read_bytes()
    (folder / "index.html").unlink()
    with pytest.raises(FileExistsError, match="is no page of mnv3 and is not replaced: it has no index.html"):
        site.write(network, folder, exist_ok=True)
    (folder / "thesis.txt").touch()
    with pytest.raises(FileExistsError, match="is no page of mnv3 and is not replaced: it has thesis.txt"):
        site.write(network, folder, exist_ok=True)
    with pytest.raises(FileExistsError, match="is a file or link"):
        site.write(network, folder / "thesis.txt", exist_ok=True)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("net.onnx", ["--runtime", "nowhere"], "--runtime nowhere: no such folder: expected the dist folder"),
        ("net.onnx", ["--runtime", "."], "--runtime .: it has no ort.wasm.min.mjs: expected the dist folder"),
        ("net.onnx", ["--half"], "net.onnx is written already: --half is for weights"),
        ("net.onnx", ["--port", "8080"], "--port is for --serve"),
        ("net.onnx", ["--serve", "--port", "70000"], "--port 70000: expected a number up to 65535"),
        ("damaged.onnx", [], "damaged.onnx: no SHA-256 at its end"),
        ("mnv3_smal", [], "Did you mean 'mnv3_small"),
    ],
)
def test_errors_are_one_line(fails, network, tmp_path, monkeypatch, model, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.onnx").write_bytes(network.read_bytes())
    (tmp_path / "damaged.onnx").write_bytes(network.read_bytes()[:-1])
    before = sorted(tmp_path.iterdir())
    assert message in fails("demo", model, *options)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("interpolation", "random", "interpolation='random': one of nearest, box"),
        ("input_size", [3, 32, 48], "takes pictures of 48 x 32 pixels: a page needs square ones"),
    ],
)
def test_what_the_page_cannot_do(field, value, message):
    metadata = {"input_size": [3, 32, 32], "interpolation": "bilinear"}
    with pytest.raises(ValueError, match=message):
        site.preprocessing(metadata | {field: value})


def test_files_of_other_formats(network, tmp_path):
    exported = mnv3.deploy.load(network)
    exported.metadata["format"] = "pt2"
    with pytest.raises(ValueError, match="a page runs ONNX files, and this one is pt2: give the weights, or"):
        site.write(exported, tmp_path / "site")
    with pytest.raises(ValueError, match="net.tflite: expected a model, or an ONNX file"):
        site.write("net.tflite", tmp_path / "site")
    assert not list(tmp_path.iterdir())


def test_the_command(run, network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = run("demo", network)
    size = sum(file.stat().st_size for file in (tmp_path / "site").iterdir())
    assert (status, out) == (0, f"wrote {tmp_path / 'site'}: {size / 1e6:.1f} MB\n")


def test_serving_until_it_is_interrupted(run, network, tmp_path, monkeypatch):
    """The page, its headers, and nothing that is left."""
    monkeypatch.chdir(tmp_path)
    answers = []

    def one_look(self):
        Thread(target=self.handle_request).start()
        with urllib.request.urlopen(server.url_of(self), timeout=10) as answer:
            answers.append((answer.headers, answer.read()))
        raise KeyboardInterrupt

    monkeypatch.setattr(server.ThreadingHTTPServer, "serve_forever", one_look)
    monkeypatch.setattr("mnv3.cli.demo.PORT", 0)
    status, out, err = run("demo", network, "--serve")
    assert (status, err) == (0, "")
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/ \(Ctrl-C ends it\)\n", out)
    headers, content = answers[0]
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert b"<h1" in content
    assert not list(tmp_path.iterdir())


def test_a_port_that_is_taken(fails, network):
    with server.server(".") as running:
        assert f"--port {running.server_port}: " in fails("demo", network, "--serve", "--port", running.server_port)


def test_digests_of_the_cdn_are_those_of_npm():
    dist = dist_or_skip()
    for files in runtime_files.PUBLISHED.values():
        for file in files.values():
            content = (dist / file.url.removeprefix(runtime_files.CDN)).read_bytes()
            assert runtime_files.page_file(file.url, content) == file
    assert runtime_files.version_of(dist) == runtime_files.VERSION


def test_both_languages_say_the_same(local):
    """The same keys and blanks in both, all of them used, and none used that is not there."""
    page = page_of(local)
    english, chinese = (page.data["texts"][language] for language in ("en", "zh"))
    assert list(english) == list(chinese)
    for key, text in english.items():
        assert sorted(re.findall(r"\{\w+\}", text)) == sorted(re.findall(r"\{\w+\}", chinese[key])), key
    script = (local / "demo.js").read_text(encoding="utf-8")
    used = set(page.texts) | set(re.findall(r'(?:say|Problem)\("(\w+)"|= (?:network \? )?\["(\w+)"', script))
    used = {key for keys in used for key in ([keys] if isinstance(keys, str) else keys) if key}
    assert used | {"wasm", "webgpu"} == set(english)


def test_templates_are_in_the_wheel():
    lines = (ROOT / "setup.cfg").read_text().splitlines()
    assert "    mnv3.demo" in lines
    assert "mnv3.demo = templates/*" in lines
