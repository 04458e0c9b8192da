"""push, pull and verify with the real client, through a local server that takes what it sends and can misbehave."""

import dataclasses
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import traceback
from functools import partial

import pytest
import timm
import torch
from conftest import ROOT, randomize
from hub_server import HubServer
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file, save_file

import mnv3
from mnv3 import WeightsError, catalog
from mnv3.catalog import find
from mnv3.cli.main import main
from mnv3.errors import PublishError
from mnv3.files import checkpoint, fetch
from mnv3.hub import publish, verify

NAME = "mnv3_small_cifar.cifar10"
REPO = f"org/{NAME}"
SHIPPED = ROOT / "weights" / NAME
RECORD = find("mnv3_small_cifar")
SHA256, TOP1 = RECORD.sha256[:12], f"{RECORD.top1:.2f}"
NAMES = {"README.md", "config.json", "model.safetensors", "golden.safetensors", "recipe.yaml", "log.csv", "test.json"}
READS = ("/paths-info/", "/api/validate-yaml")  # POST requests that change nothing


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(SHIPPED, tmp_path / "weights" / NAME)


@pytest.fixture
def server(tmp_path, monkeypatch, no_waiting):
    """An empty Hub, and a token that may write to `org` and `me`."""
    (tmp_path / "served").mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # plain LFS over HTTP
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    with HubServer(tmp_path / "served") as server:
        server.tokens = {"hf_writer": {"org", "me"}, "hf_reader": set()}
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture
def checked(monkeypatch):
    """Weights folders are right without being loaded: for tests of what comes after that."""
    for module in (publish, verify):
        monkeypatch.setattr(module, "check", lambda *args, **kwargs: verify.Check("", RECORD, RECORD.sha256, 244, 0.0))


@pytest.fixture
def published(server, folder):
    """The server, with the folder in its repository."""
    (server.folder / REPO).mkdir(parents=True)
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    server.commit(REPO, "main", files | {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
    return server


def writes(server):
    """The requests so far that could change something."""
    paths = [path for method in ("POST", "PUT", "DELETE") for path in server.asked(method)]
    return [path for path in paths if not any(part in path for part in READS)]


def uploads(server):
    return [path.rpartition("/")[2] for path in server.asked("PUT")]


def content(server, repo=REPO, revision="main"):
    _, folder = server.snapshot(repo, revision)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def refused(message, source, error=PublishError, **kwargs):
    with pytest.raises(error, match=message) as info:
        publish.push(source, **kwargs)
    text = str(info.value)
    assert "\n" not in text
    whole = "".join(traceback.format_exception(info.value))
    assert os.environ.get("HF_TOKEN") is None or os.environ["HF_TOKEN"] not in whole, "no token in a message"
    return text


# --- what goes right


def test_push_pull_and_timms_door(server, folder, tmp_path, monkeypatch):
    done = publish.push(folder)
    assert set(done.sent) == NAMES
    assert server.commits(REPO)[1:] == [done.commit], "one commit, after the Hub's own first one"
    assert set(content(server)) == NAMES | {".gitattributes"}
    for name in NAMES:
        assert content(server)[name] == (folder / name).read_bytes(), name
    pulled = publish.pull(REPO, tmp_path / "pulled")
    assert {file.name for file in pulled.iterdir()} == NAMES
    assert not any(file.is_symlink() for file in pulled.iterdir())
    golden = load_file(pulled / "golden.safetensors")
    monkeypatch.setattr(fetch, "LOCAL_WEIGHTS", ())  # not those of the checkout
    download = partial(timm.models._hub.hf_hub_download, endpoint=server.url, cache_dir=tmp_path / "cache")
    monkeypatch.setattr(timm.models._hub, "hf_hub_download", download)  # by which timm reads config.json
    model = timm.create_model(f"hf-hub:{REPO}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(golden["inputs"]), golden["outputs"], rtol=1e-4, atol=1e-4)
        assert torch.equal(mnv3.load_checkpoint(pulled).eval()(golden["inputs"]), model(golden["inputs"]))
    assert str(verify.verify(REPO)).startswith(f"{REPO}: ok, {NAME}, sha256 {SHA256}, 244 tensors, golden logits ")
    assert str(verify.verify(pulled)).startswith(f"{pulled}: ok")
    server.requests.clear()
    assert mnv3.create_model(NAME, pretrained=True).num_classes == 10
    assert all(REPO in path for path in server.asked("HEAD"))


def test_twice_is_once(server, folder, checked):
    first = publish.push(folder)
    server.requests.clear()
    second = publish.push(folder)
    assert second == dataclasses.replace(first, sent=())
    assert writes(server) == []
    assert len(server.commits(REPO)) == 2
    assert "has it all" in str(second)


def test_what_changed_is_one_commit_of_that(server, folder, checked, published, monkeypatch):
    (folder / "log.csv").write_text("another\n")
    server.requests.clear()
    assert publish.push(folder).sent == ("log.csv",)
    assert uploads(server) == []
    assert len(server.commits(REPO)) == 2
    assert set(content(server)) == NAMES | {".gitattributes"}


def test_another_repository_has_a_card_of_its_own(server, folder, monkeypatch):
    before = (folder / "README.md").read_bytes()
    publish.push(folder, repo="me/mine")
    assert b'"hf-hub:me/mine"' in content(server, "me/mine")["README.md"]
    assert (folder / "README.md").read_bytes() == before
    assert publish.push(folder, repo="me/mine").sent == ()
    verify.verify("me/mine")
    monkeypatch.setenv("MNV3_NAMESPACE", "me")
    assert publish.push(folder).repo == f"me/{NAME}"
    assert publish.push(folder, repo="me/mine").repo == "me/mine"
    monkeypatch.setattr(fetch, "LOCAL_WEIGHTS", ())
    server.requests.clear()
    mnv3.create_model(NAME, pretrained=True)
    assert all(f"/me/{NAME}/" in path for path in server.asked("HEAD")), "loading follows it too"


def test_a_branch(server, folder, checked, published, tmp_path):
    main = content(server)
    (folder / "log.csv").write_text("newer\n")
    assert publish.push(folder, revision="next").branch == "next"
    assert content(server) == main
    assert content(server, revision="next")["log.csv"] == b"newer\n"
    assert publish.push(folder, revision="next").sent == ()
    pulled = publish.pull(REPO, tmp_path / "pulled", revision="next")
    assert (pulled / "log.csv").read_text() == "newer\n"
    assert "ok" in str(verify.verify(f"{REPO}@next"))
    publish.push(folder, repo="me/new", revision="next")
    assert set(content(server, "me/new")) == {".gitattributes"}
    assert set(content(server, "me/new", "next")) == NAMES | {".gitattributes"}


def test_private(server, folder, checked, monkeypatch, tmp_path):
    publish.push(folder, private=True)
    assert server.private == {REPO}
    assert publish.push(folder, private=True).sent == ()
    publish.pull(REPO, tmp_path / "mine")
    publish.push(folder, repo="me/open")
    refused("me/open exists and is public: --private is for a new repository", folder, repo="me/open", private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    with pytest.raises(WeightsError, match=f"no repository {REPO} on .*or it is private and HF_TOKEN does not open it"):
        publish.pull(REPO, tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


def test_dry_run_changes_nothing(server, folder, checked, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    dry = publish.push(folder, dry_run=True)
    assert set(dry.sent) == NAMES
    assert re.fullmatch(f"{folder}: would push .*README.md.* to {REPO} at main, which would be made", str(dry))
    assert writes(server) == []
    assert not any(server.folder.iterdir())
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    publish.push(folder)
    (folder / "log.csv").write_text("another\n")
    server.requests.clear()
    assert publish.push(folder, dry_run=True).sent == ("log.csv",)
    assert publish.push(folder, dry_run=True, revision="next").commit is None
    assert writes(server) == []


def test_other_files_stay_where_they_are(server, folder, checked):
    (folder / "notes.txt").write_text("mine")
    (folder / ".env").write_text("HF_TOKEN=hf_secret")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(print))
    (folder / "checkpoints").mkdir()
    (folder / "link").symlink_to("/etc/passwd")
    done = publish.push(folder)
    assert done.left_out == (".env", "checkpoints", "link", "notes.txt", "pytorch_model.bin")
    assert set(content(server)) == NAMES | {".gitattributes"}
    assert str(done).endswith("left out: .env, checkpoints, link, notes.txt, pytorch_model.bin")


def test_files_of_others_in_the_repository_stay(server, folder, checked, published):
    server.commit(REPO, "main", {"model.onnx": b"by hand", "README.md": b"edited on the web"})
    assert publish.push(folder).sent == ("README.md",)
    assert content(server)["model.onnx"] == b"by hand"


# --- what breaks on the way


@pytest.mark.parametrize(
    ("kind", "files"),
    [
        ("cut-upload", "/lfs/*"),
        ("cut-upload", "*/commit/main"),
        ("cut-upload", "*/preupload/*"),
        ("cut-upload", "*/objects/batch"),
        ("busy", "/lfs/*"),
        ("busy", "*/commit/main"),
        ("busy", "*/verify"),
        ("limited", "*/commit/main"),
        ("limited", "*/preupload/*"),
        ("portal", "*/preupload/*"),
        ("portal", "*/commit/main"),
        ("forbidden", "*/commit/main"),
        ("no-answer", "*/create"),
    ],
)
def test_a_break_leaves_what_was_there(server, folder, checked, kind, files):
    """A second push completes it, and does not send again what has arrived."""
    server.inject(kind, files=files)
    text = refused(".", folder)
    assert server.url in text
    assert not (server.folder / REPO).is_dir() or set(content(server)) == {".gitattributes"}
    arrived = set(server.objects.get(REPO, {}))
    server.recover()
    publish.push(folder)
    assert set(content(server)) == NAMES | {".gitattributes"}
    assert len(server.commits(REPO)) == 2
    assert len(uploads(server)) == 2 - len(arrived)
    assert not arrived & set(uploads(server))


def test_an_update_that_breaks_leaves_the_old_version(server, folder, checked, published):
    before = content(server)
    (folder / "log.csv").write_text("another\n")
    server.inject("cut-upload", files="*/commit/main")
    refused("cannot publish to http://127.0.0.1.*run it again, what has arrived is not sent twice", folder)
    assert content(server) == before
    server.recover()
    publish.push(folder)
    assert content(server) == before | {"log.csv": b"another\n"}


def test_a_commit_whose_answer_is_lost(server, folder, checked):
    server.inject("no-answer", files="*/commit/main")
    refused("run it again", folder)
    server.recover()
    assert publish.push(folder).sent == ()
    assert len(server.commits(REPO)) == 2, "no second commit"


def test_a_short_break_is_got_over(server, folder, checked):
    server.inject("cut-upload", files="/lfs/*", times=1)
    server.inject("busy", files="*/preupload/*", times=2)
    publish.push(folder)
    assert set(content(server)) == NAMES | {".gitattributes"}


def test_somebody_else_commits_meanwhile(server, folder, checked, published, monkeypatch):
    (folder / "log.csv").write_text("another\n")
    real = HfApi.preupload_lfs_files

    def meanwhile(*args, **kwargs):
        server.commit(REPO, "main", {"log.csv": b"theirs"})
        return real(*args, **kwargs)

    monkeypatch.setattr(HfApi, "preupload_lfs_files", meanwhile)
    refused("was changed meanwhile .HTTP 412.: look at what is there", folder)
    assert content(server)["log.csv"] == b"theirs"


def test_a_gitignore_that_keeps_files_out_is_noticed(server, folder, checked, monkeypatch):
    from huggingface_hub import _commit_api

    publish.push(folder)
    (folder / "log.csv").write_text("another\n")
    (folder / "recipe.yaml").write_text((folder / "recipe.yaml").read_text() + "# a comment\n")
    real = _commit_api._validate_preupload_info

    def ignoring(info):
        for file in real(info)["files"]:
            file["shouldIgnore"] = file["path"] == "log.csv"
        return info

    monkeypatch.setattr(_commit_api, "_validate_preupload_info", ignoring)
    refused(f"{REPO} took the commit without log.csv: does its .gitignore say so", folder)


# --- what the Hub refuses


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "no token: set HF_TOKEN, or run `hf auth login`, with a token that may write"),
        ("hf_wrong", "http://127.0.0.1:.* refuses the token of HF_TOKEN or `hf auth login`: get a new one"),
        ("hf_reader", r"the token may not write to org on http://.* \(HTTP 403\).* by --repo or MNV3_NAMESPACE"),
        ("hf_a hf_b", "has characters that none has: copy it again"),
        ("hf_a\x01b", "has characters that none has: copy it again"),
    ],
)
def test_tokens(server, folder, checked, monkeypatch, token, message):
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    refused(message, folder)
    assert not any(server.folder.iterdir())


def test_a_token_that_may_only_read_an_existing_repository(server, folder, checked, published, monkeypatch):
    (folder / "log.csv").write_text("another\n")
    before = content(server)
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    refused(r"may not write to org on .*HTTP 403", folder)
    assert content(server) == before


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("bad-token", "refuses the token"),
        ("busy", r"is in trouble \(HTTP 503\). Nothing is published by halves"),
        ("limited", r"too many requests \(HTTP 429\): wait 57 seconds"),
        ("gated-403", "is gated or disabled for this token"),
        ("portal", "does not answer as the Hub does: is there a login page"),
    ],
)
def test_servers_that_refuse(server, folder, checked, fault, message):
    server.inject(fault)
    refused(message, folder)
    assert not any(server.folder.iterdir())


@pytest.mark.parametrize("repo", ["mine", "a/b/c", "org/na me", "org/", "/x", "../../etc"])
def test_names_of_repositories(server, folder, checked, repo):
    refused("is no repository's name: expected NAMESPACE/NAME", folder, repo=repo)
    assert writes(server) == []


def test_offline(server, folder, checked, tmp_path, monkeypatch):
    publish.push(folder)
    publish.pull(REPO, tmp_path / "one")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    server.requests.clear()
    refused("HF_HUB_OFFLINE is set: unset it to publish", folder)
    publish.pull(REPO, tmp_path / "two")  # from the cache
    assert "ok" in str(verify.verify(REPO))
    with pytest.raises(
        WeightsError, match="HF_HUB_OFFLINE is set and the weights folder of me/other at main is not in"
    ):
        publish.pull("me/other", tmp_path / "three")
    assert server.requests == []


def test_nobody_listens(server, folder, checked, published, tmp_path, monkeypatch):
    verify.verify(REPO)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    refused(r"cannot publish to http://127.0.0.1:1: .*refused", folder)
    with pytest.raises(WeightsError, match="cannot fetch the weights folder .*refused"):
        verify.verify(REPO)  # what the cache has says nothing of what the Hub has
    with pytest.raises(WeightsError, match="cannot fetch the weights folder .*refused"):
        publish.pull(REPO, tmp_path / "out")


def test_a_server_without_xet(server, folder, checked, monkeypatch):
    pytest.importorskip("hf_xet")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    refused("did not take the files by Xet .*try HF_HUB_DISABLE_XET=1", folder)
    assert set(content(server)) == {".gitattributes"}


def test_a_card_that_the_hub_refuses(server, folder, monkeypatch):
    record = dataclasses.replace(RECORD, license=["a", "list"])
    monkeypatch.setattr(publish, "check", lambda *args, **kwargs: verify.Check("", record, "", 0, 0.0))
    (folder / "README.md").write_text(mnv3.hub.cards.card(record, folder))
    refused(f'{server.url} refuses it: Invalid metadata in README.md. - "license" must be a string', folder)
    assert set(content(server)) == {".gitattributes"}


# --- folders that disagree with the catalog


def edited(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        place = config if key in config else config["pretrained_cfg"]
        place[key] = value
    (folder / "config.json").write_text(json.dumps(config))


def other_weights(folder):
    state = load_file(folder / "model.safetensors")
    state["classifier.bias"][0] += 1
    save_file(state, folder / "model.safetensors")


def other_golden(folder, **changes):
    golden = load_file(folder / "golden.safetensors")
    golden |= {key: change(golden) for key, change in changes.items()}
    save_file({key: value for key, value in golden.items() if value is not None}, folder / "golden.safetensors")


DISAGREEING = {
    "hash": (
        other_weights,
        f"model.safetensors is not that of {NAME} in the catalog: expected sha256 {SHA256}, found",
    ),
    "a web page": (lambda f: (f / "model.safetensors").write_text("<html>"), "expected sha256 .*a web page"),
    "a pickle": (
        lambda f: (f / "model.safetensors").write_bytes(pickle.dumps(os.getcwd)),
        "expected sha256 .* a pickle",
    ),
    "card": (
        lambda f: (f / "README.md").write_text("# Mine"),
        "README.md is not the card of .*: `mnv3 card .*` writes it",
    ),
    "figure in the card": (
        lambda f: (f / "README.md").write_text((f / "README.md").read_text().replace(TOP1, "99.85")),
        "README.md is not the card",
    ),
    "metrics": (
        lambda f: (f / "test.json").write_text((f / "test.json").read_text().replace(f"{RECORD.top1}", "92.0")),
        f"test.json has a top-1 of 92.0 %, the catalog {TOP1} %",
    ),
    "architecture": (
        partial(edited, architecture="mnv3_large_cifar"),
        "model.safetensors is not that of mnv3_large_cifar",
    ),
    "another family": (
        partial(edited, architecture="resnet50"),
        "config.json names resnet50.cifar10, which the catalog",
    ),
    "no tag": (partial(edited, tag=None), "config.json names mnv3_small_cifar.None, which the catalog"),
    "mean": (
        partial(edited, mean=[0.5, 0.5, 0.5]),
        r"config.json has pretrained_cfg.mean: \[0.5, 0.5, 0.5\], the catalog",
    ),
    "labels": (
        partial(edited, label_names=["x"] * 10),
        "config.json has label_names: .*'x'.*, the catalog .*'airplane'",
    ),
    "classes": (
        partial(edited, num_classes=11),
        "config.json has num_classes: 11, the catalog 10: mend the one that is",
    ),
    "a giant": (
        partial(edited, model_args={"width": 1e6, "in_chans": 3, "global_pool": "avg"}),
        "config.json: model_args: width 1000000.0: expected a number from 0.01 to 64",
    ),
    "config": (lambda f: (f / "config.json").write_text("{"), "config.json: cannot be read"),
    "no configuration in it": (
        lambda f: (f / "config.json").write_text('{"architecture": "mnv3_small_cifar", "pretrained_cfg": []}'),
        "config.json: pretrained_cfg: expected names with values, found list",
    ),
    "golden outputs": (
        partial(other_golden, outputs=lambda g: g["outputs"] + 0.01),
        "logits differ from those of golden",
    ),
    "golden NaN": (partial(other_golden, outputs=lambda g: g["outputs"] * float("nan")), "logits differ from those of"),
    "golden shape": (
        partial(other_golden, outputs=lambda g: g["outputs"][:, :5].clone()),
        "outputs of shape .2, 5., the",
    ),
    "golden without inputs": (partial(other_golden, inputs=lambda g: None), "golden.safetensors has no inputs"),
    "golden with nothing": (partial(other_golden, inputs=lambda g: g["inputs"][:0].clone()), "has no inputs"),
    "golden giant": (partial(other_golden, inputs=lambda g: torch.zeros(1, 3, 1300, 1300)), "has no inputs"),
    "golden gone": (lambda f: (f / "golden.safetensors").unlink(), "has no golden.safetensors: mnv3.save writes it"),
    "golden cut": (
        lambda f: (f / "golden.safetensors").write_bytes(b"\0" * 4),
        "golden.safetensors: not a safetensors",
    ),
    "card gone": (lambda f: (f / "README.md").unlink(), "has no README.md: `mnv3 card .*` writes it"),
}


@pytest.mark.parametrize("what", DISAGREEING)
def test_a_folder_that_disagrees_is_not_pushed(server, folder, what):
    change, message = DISAGREEING[what]
    change(folder)
    text = refused(message, folder, WeightsError)
    assert str(folder) in text
    assert "/tmp/tmp" not in text.replace(str(folder), ""), "not the name of the copy that was looked at"
    assert server.requests == [], "found before anything is asked"


@pytest.mark.parametrize("name", ["model.safetensors", "log.csv"])
def test_symbolic_links_are_refused(server, folder, tmp_path, name):
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    refused(f"{name} is a symbolic link: put the file itself there", folder, WeightsError)
    assert server.requests == []


def test_a_folder_behind_a_link_is_a_folder(server, folder, checked, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert set(publish.push(tmp_path / "link").sent) == NAMES


def test_what_is_pushed_is_what_was_checked(server, folder, monkeypatch):
    """A training may write into the folder meanwhile."""
    real = publish.check

    def then_changed(*args, **kwargs):
        result = real(*args, **kwargs)
        other_weights(folder)
        return result

    monkeypatch.setattr(publish, "check", then_changed)
    publish.push(folder)
    assert checkpoint.digest(server.snapshot(REPO, "main")[1] / "model.safetensors") == RECORD.sha256


def test_weights_of_others_are_not_pushed(server, folder, monkeypatch, tmp_path):
    record = find("mnv3_small_050")
    model = randomize(mnv3.create_model(record.name))
    saved = mnv3.save(model, tmp_path / "net")
    (saved / "README.md").write_text("")
    record = dataclasses.replace(record, sha256=mnv3.files.checkpoint.digest(saved / "model.safetensors"))
    monkeypatch.setattr(verify, "CATALOG", (record,))
    refused("mnv3_small_050.lamb_in1k is published by its authors, at timm/mobilenetv3_small_050", saved, WeightsError)
    with pytest.raises(WeightsError, match="no weights folder at"):
        publish.push(tmp_path / "nothing")
    assert server.requests == []


# --- pull


def test_pull_by_name_and_again(server, folder, checked, published, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "LOCAL_WEIGHTS", ())
    monkeypatch.chdir(tmp_path / "served")
    out = publish.pull(NAME)
    assert out == tmp_path / "served" / NAME
    before = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    assert publish.pull(NAME) == out, "the same files: nothing to do"
    assert {file.name: file.stat().st_mtime_ns for file in out.iterdir()} == before
    (out / "log.csv").write_text("mine")
    with pytest.raises(FileExistsError, match="exists: choose another folder, or replace it"):
        publish.pull(NAME)
    assert (out / "log.csv").read_text() == "mine"
    publish.pull(NAME, exist_ok=True)
    assert (out / "log.csv").read_bytes() == (folder / "log.csv").read_bytes()
    (out / "thesis.tex").write_text("years of work")
    (out / "log.csv").write_text("mine")
    with pytest.raises(FileExistsError, match="not only a weights folder and is not replaced: it has thesis.tex"):
        publish.pull(NAME, exist_ok=True)


def test_pull_of_what_ships_needs_no_network(server, tmp_path):
    publish.pull(NAME, tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == NAMES
    assert server.requests == []


@pytest.mark.parametrize("fault", ["corrupt", "cut", "portal"])
def test_pull_of_a_damaged_file(server, folder, checked, published, tmp_path, fault):
    server.inject(fault, files="model.safetensors")
    with pytest.raises(WeightsError) as info:
        publish.pull(REPO, tmp_path / "out")
    assert "\n" not in str(info.value)
    assert not any(path.name.startswith((".out", "out")) for path in tmp_path.iterdir())
    server.recover()
    publish.pull(REPO, tmp_path / "out")


@pytest.mark.parametrize("name", ["model.safetensors", "golden.safetensors", "config.json"])
def test_a_file_that_arrives_damaged_once(server, folder, checked, published, tmp_path, name):
    """Whichever it is: fetched again, not kept, not delivered."""
    server.inject("corrupt", files=name, times=1)
    out = publish.pull(REPO, tmp_path / "out")
    assert server.asked("GET").count(f"/{REPO}/resolve/{server.commits(REPO)[-1]}/{name}") == 2
    assert {file.name: file.read_bytes() for file in out.iterdir()} == {n: content(server)[n] for n in NAMES}
    for cached in (tmp_path / "cache").rglob(name):
        cached.resolve().write_bytes(b"damaged on the disk")
    publish.pull(REPO, tmp_path / "again")
    assert (tmp_path / "again" / name).read_bytes() == content(server)[name]


def test_a_file_that_always_arrives_damaged(server, folder, checked, published, tmp_path):
    server.inject("corrupt", files="config.json")
    message = rf"config.json of {REPO} arrived damaged twice .*removed: expected git hash \w{{12}}, found \w{{12}} in "
    with pytest.raises(WeightsError, match=message):
        publish.pull(REPO, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    server.recover()
    assert (publish.pull(REPO, tmp_path / "out") / "config.json").read_bytes() == content(server)["config.json"]


def test_silent_servers_and_the_commands(run, server, folder, checked, published, tmp_path, monkeypatch):
    """One line of what is waited for, and one of what became of it."""
    monkeypatch.setenv("MNV3_TIMEOUT", "0.5")
    server.inject("silent")
    for command in (("pull", REPO, tmp_path / "out"), ("verify", REPO), ("push", folder)):
        status, _, err = run(*command)
        assert status == 1
        lines = [line for line in err.splitlines() if line.startswith("mnv3: ")]
        assert len(lines) == 2, err
        assert lines[0].startswith(f"mnv3: waiting for {server.url} (")
        assert f"no answer from {server.url} within 0.5 s (" in lines[1]
    assert not (tmp_path / "out").exists()


def test_pull_of_a_hostile_repository(server, tmp_path, folder):
    """Other names are not fetched; pickles are not taken; another model is refused."""
    publish.push(folder)
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    server.commit(REPO, "main", {"pytorch_model.bin": pickle.dumps(Evil()), "hubconf.py": b"import os", "a/b": b""})
    publish.pull(REPO, tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == NAMES
    server.commit(REPO, "main", {}, {"model.safetensors"})
    with pytest.raises(WeightsError, match=f"{REPO} at .* has no model.safetensors"):
        publish.pull(REPO, tmp_path / "second")
    server.commit(REPO, "main", {"model.safetensors": pickle.dumps(Evil())})
    with pytest.raises(WeightsError, match="arrived damaged twice"):
        publish.pull(REPO, tmp_path / "second")
    foreign = tmp_path / "served" / "o" / "r"
    foreign.mkdir(parents=True)
    shutil.copy(folder / "model.safetensors", foreign)
    (foreign / "config.json").write_text(json.dumps({"architecture": "resnet50", "pretrained_cfg": {}}))
    with pytest.raises(WeightsError, match="holds 'resnet50'"):
        publish.pull("o/r", tmp_path / "second")
    assert not marker.exists()
    assert not (tmp_path / "second").exists()


def test_pull_of_timms(server, tmp_path, monkeypatch):
    """Its own layout, without golden logits; and a file of torchvision's becomes a weights folder."""
    theirs = randomize(timm.create_model("mobilenetv3_small_050"))
    record = find("mnv3_small_050")
    timm.models.save_for_hf(theirs, str(server.folder / record.repo), safe_serialization=True)
    record = dataclasses.replace(record, sha256=checkpoint.digest(server.folder / record.repo / "model.safetensors"))
    for module in (fetch, verify, catalog):
        monkeypatch.setattr(module, "CATALOG", (record,))
    x = torch.randn(1, 3, 64, 64)
    for source in (record.repo, record.name):
        assert str(verify.verify(source)).endswith("no golden logits")
        model = mnv3.load_checkpoint(publish.pull(source, tmp_path / source.replace("/", "-"))).eval()
        with torch.no_grad():
            torch.testing.assert_close(model(x), theirs.eval()(x), rtol=1e-4, atol=1e-4)


def test_pull_of_a_url(server, tmp_path, monkeypatch):
    import torchvision

    theirs = randomize(torchvision.models.mobilenet_v3_small())
    file = server.folder / "m.pth"
    torch.save(theirs.state_dict(), file)
    record = find("mnv3_small", "tv_in1k")
    record = dataclasses.replace(record, url=f"{server.url}/m.pth", sha256=checkpoint.digest(file))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    for module in (fetch, verify, catalog):
        monkeypatch.setattr(module, "CATALOG", (record,))
    monkeypatch.setattr(publish, "create_model", partial(mnv3.create_model, pretrained_cfg_overlay={"url": record.url}))
    monkeypatch.setattr(verify, "create_model", publish.create_model)
    out = publish.pull(record.name, tmp_path / "out")
    assert {file.name for file in out.iterdir()} == {"config.json", "model.safetensors", "golden.safetensors"}
    with pytest.raises(ValueError, match="which has none"):
        publish.pull(record.name, tmp_path / "other", revision="x")
    assert f"ok, {record.name}, sha256 {record.sha256[:12]}" in str(verify.verify(record.name))


# --- verify


def test_verify_finds_what_a_repository_has_wrong(server, folder):
    publish.push(folder)
    other_golden(folder, outputs=lambda g: g["outputs"] + 1)
    server.commit(REPO, "main", {"golden.safetensors": (folder / "golden.safetensors").read_bytes()})
    with pytest.raises(WeightsError, match=f"^{REPO}: the model's logits differ from those of golden.safetensors by 1"):
        verify.verify(REPO)
    edited(folder, crop_pct=0.875)
    server.commit(REPO, "main", {"config.json": (folder / "config.json").read_bytes()})
    with pytest.raises(WeightsError, match=f"^{REPO}: config.json has pretrained_cfg.crop_pct: 0.875, the catalog 1.0"):
        verify.verify(REPO)
    other_weights(folder)
    server.commit(REPO, "main", {"model.safetensors": (folder / "model.safetensors").read_bytes()})
    with pytest.raises(WeightsError, match=f"expected sha256 {SHA256}, found"):
        verify.verify(REPO)


# --- the commands


@pytest.fixture
def run(capsys):
    def run(*args):
        status = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert "hf_writer" not in captured.out + captured.err
        return status, captured.out, captured.err

    return run


def test_the_commands(run, server, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "LOCAL_WEIGHTS", (folder.parent,))
    status, out, err = run("push", "--all", "--dry-run")
    assert (status, err) == (0, "")
    assert out.startswith(f"{folder}: would push config.json, ")
    status, out, err = run("push", folder)
    assert (status, err) == (0, "")
    assert out.startswith(f"{folder}: pushed config.json, ")
    assert run("push", "--all")[1].startswith(f"{folder}: {REPO} at main has it all")
    status, out, err = run("pull", REPO, tmp_path / "out")
    assert (status, err) == (0, "")
    assert out.startswith(f"wrote {tmp_path / 'out'}: try ")
    status, out, err = run("pull", REPO, folder.parent)
    assert status == 1
    assert err.count("\n") == 1
    status, out, err = run("verify")
    assert (status, out.count("\n"), err) == (0, 1, "")
    status, out, err = run("verify", folder, REPO, "me/nothing", tmp_path, "mnv3_lagre")
    assert (status, out.count("ok"), err.count("\n")) == (1, 2, 3)
    assert "no repository me/nothing" in err
    assert f"{tmp_path} is no weights folder: it has no config.json" in err
    assert "Did you mean 'mnv3_large'" in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "give folders to push, or --all"),
        (["--all", SHIPPED], "give folders to push, or --all"),
        (["--all", "--repo", "me/x"], "--repo me/x is for one folder, and there are 3: set MNV3_NAMESPACE"),
        (["nothing/here"], "no weights folder at nothing/here"),
        (["README.md"], "no weights folder at README.md"),
    ],
)
def test_wrong_use(run, args, message):
    status, out, err = run("push", *args)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert message in err


def test_a_refusal_is_one_line(run, server, folder, checked, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    status, out, err = run("push", folder)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("mnv3: the token may not write to org")


@pytest.mark.parametrize("command", ["push", "pull", "verify", "card"])
def test_help(run, command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: mnv3 {command} ")


def test_no_weights_ship(run, monkeypatch, tmp_path):
    monkeypatch.setattr(fetch, "LOCAL_WEIGHTS", (tmp_path,))
    assert "no weights ship with this copy of mnv3" in run("verify")[2]


@pytest.mark.slow
def test_in_processes_of_their_own(server, folder, tmp_path):
    """As a user has it: the environment alone says where; and the published card's own lines load it."""
    pytest.importorskip("transformers")
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}

    def process(*command):
        return subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
        )

    for expected in ("pushed", "has it all"):
        result = process("-m", "mnv3", "push", str(folder), "--repo", "me/mine")
        assert result.returncode == 0, result.stderr
        assert expected in result.stdout
        assert result.stderr == ""
    assert "ok" in process("-m", "mnv3", "verify", "me/mine").stdout
    card = ModelCard(content(server, "me/mine")["README.md"].decode())
    timms, _, transformers = re.findall(r"^```python\n(.*?)^```", card.text, re.MULTILINE | re.DOTALL)
    check = """
from pathlib import Path
from safetensors.torch import load_file
golden = load_file(GOLDEN)
outputs = model.eval()(golden["inputs"])
print(float((getattr(outputs, "logits", outputs) - golden["outputs"]).abs().max()) < 1e-4)
"""
    for block in (timms, transformers):
        result = process("-c", block + check.replace("GOLDEN", repr(str(folder / "golden.safetensors"))))
        assert result.stdout == "True\n", result.stderr
    assert any("/me/mine/resolve/" in path for path in server.asked("GET"))
