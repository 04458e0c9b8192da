"""From HF_ENDPOINT to logits with the real client, through a local server that can misbehave."""

import dataclasses
import json
import multiprocessing
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
from functools import partial
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
import torchvision
from conftest import ROOT, randomize
from hub_server import HubServer

import mnv3
from mnv3 import WeightsError
from mnv3.catalog import find
from mnv3.files import fetch
from mnv3.timm_models import mnv3_small_050

TINY = mnv3.Arch(stem=8, rows=(mnv3.Bneck(3, 16, 8, True, "HS", 2),), last=16, head=16)
REPO = "timm/mobilenetv3_small_050.lamb_in1k"
RECORD = find("mnv3_small_050")


def real_sha(monkeypatch, sha256, **changes):
    """The catalog as if the server's file were the published one."""
    record = dataclasses.replace(RECORD, sha256=sha256, **changes)
    monkeypatch.setattr(fetch, "CATALOG", (record,))
    return record


@pytest.fixture(scope="session")
def theirs():
    """timm's model with random weights, in place of the published ones."""
    return randomize(timm.create_model("mobilenetv3_small_050"))


@pytest.fixture
def server(tmp_path, theirs, monkeypatch):
    """A Hub with timm's repository, and an empty cache."""
    folder = tmp_path / "served" / REPO
    timm.models.save_for_hf(theirs, str(folder), safe_serialization=True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with HubServer(tmp_path / "served") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        server.file = folder / "model.safetensors"
        server.sha256 = mnv3.files.checkpoint.digest(server.file)
        server.cache = tmp_path / "cache"
        real_sha(monkeypatch, server.sha256)
        yield server


def load(**kwargs):
    return timm.create_model("mnv3_small_050", pretrained=True, **kwargs).eval()


def cached(server):
    """Every file of weights in the cache under a name by which it would be found."""
    files = [path for path in server.cache.rglob("*") if path.is_file() and path.stat().st_size > 1000]
    return [path for path in files if path.suffix != ".incomplete"]  # some versions of the client keep it, to resume


def fails(message, **kwargs):
    with pytest.raises(WeightsError, match=message) as info:
        load(**kwargs)
    assert "\n" not in str(info.value)
    return str(info.value)


def same_logits(model, reference):
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(model(x), reference(x), rtol=1e-4, atol=1e-4)


# --- what goes right


@pytest.mark.parametrize("redirect", [False, True], ids=["direct", "from a CDN"])
def test_the_whole_way(server, theirs, redirect):
    server.redirect = redirect
    model = load()
    same_logits(model, theirs)
    assert all(f"/resolve/{RECORD.revision}/" in path for path in server.asked("HEAD")), (
        "the pinned revision is asked for"
    )
    assert "state_dict" not in model.pretrained_cfg
    assert model.pretrained_cfg["hf_hub_id"] == f"{REPO}@{RECORD.revision}"
    server.requests.clear()
    same_logits(load(), theirs)
    assert server.requests == [], "a pinned file that is cached needs no network"


def test_every_door(server, theirs):
    for model in (
        mnv3.create_model("mnv3_small_050", pretrained=True),
        mnv3.create_model("mnv3_small_050.lamb_in1k", pretrained=True),
        mnv3.create_model("mnv3_small_050", pretrained="lamb_in1k"),
        mnv3_small_050(pretrained=True),
        mnv3_small_050(pretrained="lamb_in1k"),
        torch.hub.load(str(ROOT), "mnv3_small_050", source="local", pretrained=True),
        timm.create_model("mnv3_small_050.lamb_in1k", pretrained=True),
    ):
        same_logits(model.eval(), theirs)
    headless = load(num_classes=0)
    same_logits(headless, lambda x: theirs.forward_head(theirs.forward_features(x), pre_logits=True))


def test_cache_dir_argument_relative_and_from_elsewhere(server, theirs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load(cache_dir="relative")
    assert (tmp_path / "relative").is_dir()
    assert not server.cache.exists()
    server.requests.clear()
    monkeypatch.chdir("/")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    same_logits(load(cache_dir=str(tmp_path / "relative")), theirs)


@pytest.mark.parametrize("overlay", [{}, {"hf_hub_id": REPO}], ids=["a commit", "main"])
def test_offline_with_and_without_the_file(server, theirs, monkeypatch, overlay):
    """Report E3: a cached file needs not one packet."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = f"HF_HUB_OFFLINE is set and model.safetensors of {REPO} .* the cache {server.cache}: unset it, or load"
    fails(message, pretrained_cfg_overlay=overlay)
    assert server.requests == []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    load(pretrained_cfg_overlay=overlay)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("it asked the network"))
    same_logits(load(pretrained_cfg_overlay=overlay), theirs)


@pytest.mark.parametrize("links", [True, False], ids=["with links", "as on Windows"])
def test_what_hf_download_put_into_the_cache_is_found(server, theirs, monkeypatch, links):
    """It is the same file under another commit's name: its hash says so, and no network is asked."""
    if not links:
        monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda folder: False)
    huggingface_hub.snapshot_download(REPO, cache_dir=server.cache, endpoint=server.url)
    assert not list(server.cache.rglob(RECORD.revision))
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("it asked the network"))
    for offline in ("", "1"):
        monkeypatch.setenv("HF_HUB_OFFLINE", offline)
        same_logits(load(), theirs)
        same_logits(load(cache_dir=server.cache), theirs)


def test_another_file_in_the_cache_is_not_taken(server, theirs, monkeypatch):
    huggingface_hub.snapshot_download(REPO, cache_dir=server.cache, endpoint=server.url)
    (file,) = {path.resolve() for path in cached(server)}
    file.write_bytes(file.read_bytes()[:5000])
    server.requests.clear()
    same_logits(load(), theirs)
    assert len(server.asked("GET")) == 1


def test_a_revision_of_ones_own(server, theirs):
    """Another commit or file of a published repository is taken as asked for, not as the catalog has it."""
    load(pretrained_cfg_overlay={"hf_hub_id": f"{REPO}@{'d' * 40}"})
    load(pretrained_cfg_overlay={"hf_hub_id": REPO})
    server.file.rename(server.file.with_name("other.safetensors"))
    overlay = {"hf_hub_id": f"{REPO}@{RECORD.revision}", "hf_hub_filename": "other.safetensors"}
    same_logits(load(pretrained_cfg_overlay=overlay), theirs)
    asked = [path.partition("/resolve/")[2] for path in server.asked("HEAD")]
    expected = [f"{'d' * 40}/model.safetensors", "main/model.safetensors", f"{RECORD.revision}/other.safetensors"]
    assert asked == expected


def test_settings_made_late(server, theirs, tmp_path, monkeypatch):
    """All of these are set after the client was imported; a mirror's address often ends in a slash."""
    monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", "~/elsewhere")
    monkeypatch.chdir(tmp_path)
    same_logits(load(), theirs)
    assert (tmp_path / "elsewhere" / "hub").is_dir()
    assert {request.token for request in server.requests} == {"Bearer hf_secret"}


def test_without_a_pinned_hash_the_hubs_own_is_taken(server, theirs, monkeypatch):
    real_sha(monkeypatch, None)
    server.inject("corrupt", files="*.safetensors", times=1)
    same_logits(load(), theirs)
    assert len(server.asked("GET")) == 2
    server.inject("corrupt", files="*.safetensors")
    shutil.rmtree(server.cache)
    fails(f"arrived damaged twice .*removed: expected sha256 {server.sha256[:12]}, found ")


def test_a_small_file_outside_lfs(server, theirs, monkeypatch):
    """Of such a file the Hub states git's hash, which is no SHA-256 of it."""
    real_sha(monkeypatch, None)
    server.lfs = ()
    same_logits(load(), theirs)


# --- what goes wrong


def test_wrong_hash(server, monkeypatch):
    real_sha(monkeypatch, "0" * 64)
    fails(f"arrived damaged twice .*removed: expected sha256 000000000000, found {server.sha256[:12]}")
    assert len(server.asked("GET")) == 2
    assert cached(server) == []


def test_a_damaged_download_is_fetched_again_once(server, theirs):
    server.inject("corrupt", files="*.safetensors", times=1)
    same_logits(load(), theirs)
    assert len(server.asked("GET")) == 2


WRONG_SIZE = r"cannot fetch model.safetensors .* should be of size \d+ but has size \d+"
DAMAGED = r"model.safetensors of .* arrived damaged twice .* removed: expected sha256 \w+, found \w+ in"


@pytest.mark.parametrize(
    ("kind", "linked", "message"),
    [
        ("html", True, WRONG_SIZE),
        ("html", False, DAMAGED + ".* it starts as a web page"),
        ("truncated", True, WRONG_SIZE),
        ("truncated", False, DAMAGED),
        ("corrupt", True, DAMAGED),
        ("empty", True, DAMAGED + " 0 bytes; it is empty"),
        ("empty", False, DAMAGED + " 0 bytes; it is empty"),
    ],
)
def test_a_file_that_stays_wrong(server, kind, linked, message):
    """With the true size of the file stated, as by the Hub, or not, as by some mirrors (reports E7, E8, D12)."""
    server.linked = linked
    server.inject(kind, files="*.safetensors")
    fails(message)
    assert cached(server) == []
    assert [path for path in server.cache.rglob("*.safetensors") if path.is_symlink()] == []
    server.recover()
    assert load().num_classes == 1000


def test_a_damaged_cache_is_mended(server, theirs):
    load()
    (file,) = {path.resolve() for path in cached(server)}
    for damaged in (file.read_bytes()[:5000], b"<html>" + bytes(2000), b""):
        file.write_bytes(damaged)
        same_logits(load(), theirs)
        assert mnv3.files.checkpoint.digest(file) == server.sha256


def test_a_damaged_cache_without_symbolic_links_is_mended(server, theirs, monkeypatch):
    """As on Windows: there the client does not replace a file that is there, even when told to."""
    monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda folder: False)
    load()
    (file,) = cached(server)
    assert not file.is_symlink()
    file.write_bytes(file.read_bytes()[:5000])
    same_logits(load(), theirs)
    server.requests.clear()
    same_logits(load(), theirs)
    assert server.requests == []


def test_a_damaged_cache_offline_says_both(server, monkeypatch):
    load()
    (file,) = {path.resolve() for path in cached(server)}
    file.write_bytes(file.read_bytes()[:5000])
    server.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fails("in the cache is damaged .expected sha256 .*HF_HUB_OFFLINE is set, so it cannot be fetched again: unset it")
    assert server.requests == [], "offline is offline"
    assert file.stat().st_size == 5000, "what cannot be replaced is not deleted"


def test_a_damaged_cache_without_a_network_says_both(server, monkeypatch):
    load()
    (file,) = {path.resolve() for path in cached(server)}
    file.write_bytes(file.read_bytes()[:5000])
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    fails("in the cache is damaged .expected sha256 .* and cannot fetch .* from http://127.0.0.1:1: .*refused")


def test_a_connection_that_is_cut(server, theirs):
    """Newer clients go on at once, older ones at the next call."""
    server.inject("cut", files="*.safetensors", times=1)
    try:
        load()
    except WeightsError as error:
        assert "cannot fetch model.safetensors" in str(error)  # noqa: PT017
        assert cached(server) == []
    same_logits(load(), theirs)
    assert not list(server.cache.rglob("*.incomplete"))


def test_a_connection_that_is_always_cut(server, theirs, no_waiting):
    server.inject("cut", files="*.safetensors")
    fails("cannot fetch model.safetensors of .* from http://127.0.0.1:.*")
    assert cached(server) == []
    server.recover()
    same_logits(load(), theirs)
    assert not list(server.cache.rglob("*.incomplete"))


def test_a_server_that_states_no_size(server, theirs):
    """Harmless if the file is whole (older clients refuse it); a cut one has nothing but its hash to show it."""
    server.linked = False
    server.inject("unsized", files="*.safetensors")
    try:
        same_logits(load(), theirs)
    except WeightsError as error:
        assert "does not have a Content-Length" in str(error)  # noqa: PT017
    shutil.rmtree(server.cache, ignore_errors=True)
    server.inject("cut", files="*.safetensors")
    fails("arrived damaged twice|does not have a Content-Length")
    assert cached(server) == []


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("bad-token", "http://127.0.0.1:.* wants another token than that of HF_TOKEN or `hf auth login`"),
        ("busy", "cannot fetch model.safetensors .*503"),
        ("limited", r"has had too many requests \(HTTP 429\): wait 57 seconds, or set HF_TOKEN"),
        ("bare", "answers without the Hub's headers for model.safetensors .*full mirror"),
        ("gated-401", "timm/mobilenetv3_small_050.lamb_in1k is gated: ask for access on its page and set HF_TOKEN"),
        ("gated-403", "is gated: ask for access"),
        ("portal", "answers without the Hub's headers for model.safetensors .*full mirror"),
    ],
)
def test_servers_that_refuse(server, fault, message, no_waiting):
    server.inject(fault)
    fails(message)
    assert cached(server) == []


# --- servers that do not answer


@pytest.fixture
def patience(monkeypatch):
    """Two seconds, with the client's own pauses."""
    monkeypatch.setenv("MNV3_TIMEOUT", "2")


@pytest.mark.parametrize(("fault", "reason"), [("silent", "[Tt]imed out|no answer"), ("busy", "HTTP 503")])
def test_silent_servers(server, patience, caplog, fault, reason):
    """The client alone takes from half a minute to seven minutes."""
    server.inject(fault)
    start = time.monotonic()
    message = fails(
        rf"cannot fetch model.safetensors .*: no answer from {server.url} within 2 s .*MNV3_TIMEOUT=SECONDS"
    )
    assert re.search(reason, message)
    assert time.monotonic() - start < 8  # the last pause of the client may begin before the end
    (line,) = [r.getMessage() for r in caplog.records if r.name == "mnv3" and "waiting for" in r.getMessage()]
    assert re.fullmatch(rf"waiting for {server.url} \(.*\), 2 s at most; MNV3_TIMEOUT=SECONDS sets another limit", line)
    assert cached(server) == []
    server.recover()
    assert load().num_classes == 1000


def test_connections_that_are_reset(server):
    server.inject("reset")
    start = time.monotonic()
    fails("cannot fetch model.safetensors .*Connection(ResetError|.*reset)")
    assert time.monotonic() - start < 10


def test_servers_that_ask_for_an_hour(server, patience, caplog):
    """As `Retry-After`, or as the Hub's own limits of requests; the client would obey."""
    server.later = 3600
    start = time.monotonic()
    server.inject("later")
    fails("cannot fetch model.safetensors .*HTTP 503, asks for 3600 s")
    server.recover()
    server.inject("limited")
    fails(r"has had too many requests \(HTTP 429\): wait 3600 seconds, or set HF_TOKEN")
    assert time.monotonic() - start < 8
    assert "asks for 3600 s" in caplog.text


def test_a_short_silence_is_waited_for(server, theirs, monkeypatch, caplog):
    monkeypatch.setenv("MNV3_TIMEOUT", "30")
    server.inject("busy")
    timer = threading.Timer(0.5, server.recover)
    timer.start()
    same_logits(load(), theirs)
    timer.join()
    assert "waiting for" not in caplog.text, "three seconds are no news"


def test_a_slow_download_is_no_silence(server, theirs, monkeypatch):
    monkeypatch.setenv("MNV3_TIMEOUT", "1")
    server.delay = 0.03  # two seconds in all
    server.inject("slow", files="*.safetensors")
    same_logits(load(), theirs)


@pytest.mark.parametrize("value", ["0", "nan", "inf", "soon"])
def test_a_timeout_that_is_none(server, monkeypatch, value):
    monkeypatch.setenv("MNV3_TIMEOUT", value)
    with pytest.raises(ValueError, match=f"MNV3_TIMEOUT='{value}': expected seconds, a number above 0"):
        load()


def test_other_requests_of_the_client_are_left_alone(server, monkeypatch):
    """A client of the user's own making is kept, and what is not ours is not bounded."""
    from huggingface_hub.utils import _http

    monkeypatch.setenv("MNV3_TIMEOUT", "0.5")
    load()
    server.silence = 1.0
    server.inject("silent", files="/api/*")
    start = time.monotonic()
    with pytest.raises(Exception, match=r".") as info:
        _http.get_session().get(f"{server.url}/api/models/{REPO}", timeout=10)
    assert not isinstance(info.value, mnv3.files.patience.NoAnswer)
    assert time.monotonic() - start > 0.9


def test_what_is_not_there(server, monkeypatch):
    real_sha(monkeypatch, None, revision="1" * 40)
    server.file.unlink()
    overlay = {"hf_hub_id": "timm/nothing_here"}
    fails("no repository timm/nothing_here on http://127.0.0.1:.*or it is private", pretrained_cfg_overlay=overlay)
    fails("timm/mobilenetv3_small_050.lamb_in1k at .* has no model.safetensors")
    commits = server.folder / "o" / "r" / ("2" * 40)
    commits.mkdir(parents=True)
    fails(f"o/r on .* has no revision {'3' * 40}", pretrained_cfg_overlay={"hf_hub_id": f"o/r@{'3' * 40}"})


@pytest.mark.parametrize("name", ["mnv3_large_075", "mnv3_small_minimal"])
def test_arch_without_weights(name):
    message = f"no pretrained weights are published for {name}: use pretrained=False, or .* mnv3_large, mnv3_small, "
    with pytest.raises(WeightsError, match=message):
        timm.create_model(name, pretrained=True)
    with pytest.raises(ValueError, match=f"no pretrained weights are published for {name}"):
        mnv3.timm_models.__dict__[name](pretrained="in1k")


def test_a_configuration_without_a_source():
    for source in ({"hf_hub_id": None}, {"hf_hub_id": ""}):
        with pytest.raises(WeightsError, match="configuration of mnv3_small names no source: url, hf_hub_id or file"):
            timm.create_model("mnv3_small", pretrained=True, pretrained_cfg_overlay=source)


@pytest.mark.parametrize(
    ("fault", "message"), [("corrupt", "damaged twice"), ("portal", "Hub's headers"), ("gated-403", "is gated")]
)
def test_never_random_weights(server, fault, message):
    """Any failure raises, at every door, and none logs a warning and goes on (report C12)."""
    server.inject(fault)
    doors = (
        lambda: timm.create_model("mnv3_small_050", pretrained=True),
        lambda: timm.create_model("mnv3_small_050", pretrained=True, features_only=True),
        lambda: timm.create_model("mnv3_small_050", pretrained=True, num_classes=10, in_chans=1),
        lambda: mnv3.create_model("mnv3_small_050", pretrained=True),
        lambda: torch.hub.load(str(ROOT), "mnv3_small_050", source="local", pretrained=True),
        lambda: mnv3_small_050(pretrained=True),
    )
    for door in doors:
        with pytest.raises(WeightsError, match=message):
            door()


# --- files behind a URL


@pytest.fixture
def url(tmp_path, monkeypatch):
    """torchvision's file, as torchvision names and saves it, on a plain web server."""
    source = randomize(torchvision.models.mobilenet_v3_small())
    (tmp_path / "web").mkdir()
    torch.save(source.state_dict(), tmp_path / "web" / "draft.pth")
    sha256 = mnv3.files.checkpoint.digest(tmp_path / "web" / "draft.pth")
    name = f"mobilenet_v3_small-{sha256[:8]}.pth"
    (tmp_path / "web" / "draft.pth").rename(tmp_path / "web" / name)
    with HubServer(tmp_path / "web") as server:
        server.name, server.sha256, server.source = name, sha256, source
        server.record = dataclasses.replace(find("mnv3_small", "tv_in1k"), url=f"{server.url}/{name}", sha256=sha256)
        monkeypatch.setattr(fetch, "CATALOG", (server.record,))
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
        server.cache = tmp_path / "torch" / "checkpoints"
        yield server


def load_url(server):
    overlay = {"url": server.record.url}
    return timm.create_model("mnv3_small.tv_in1k", pretrained=True, pretrained_cfg_overlay=overlay).eval()


def test_torchvisions_file(url):
    same_logits(load_url(url), url.source)
    assert [path.name for path in url.cache.iterdir()] == [url.name], "the cache that torchvision shares"
    url.requests.clear()
    same_logits(load_url(url), url.source)
    assert url.requests == []


def test_torchvisions_file_damaged(url):
    url.inject("corrupt", times=1)
    same_logits(load_url(url), url.source)
    assert len(url.asked("GET")) == 2
    (url.cache / url.name).write_bytes(b"cut off")
    same_logits(load_url(url), url.source)


@pytest.mark.parametrize(
    ("fault", "problem"), [("corrupt", "expected sha256 .*, found "), ("html", "starts as a web page")]
)
def test_torchvisions_file_that_stays_wrong(url, fault, problem):
    url.inject(fault)
    with pytest.raises(WeightsError, match=f"{url.name} arrived damaged twice .*removed: .*{problem}"):
        load_url(url)
    assert list(url.cache.iterdir()) == []


@pytest.mark.parametrize(
    ("fault", "reason"), [("html", "84 bytes; it starts as a web page"), ("truncated", "starts as a zip archive")]
)
def test_a_url_without_a_hash(url, fault, reason):
    """Nothing says what the file should be; that it is none of weights, or not whole, shows all the same."""
    url.inject(fault)
    with pytest.raises(WeightsError, match=f"arrived damaged twice .*removed: not a whole file of weights, .*{reason}"):
        fetch.fetch_url(url.record.url)
    assert list(url.cache.iterdir()) == []
    url.recover()
    overlay = {"url": url.record.url, "tag": "own"}
    same_logits(
        timm.create_model("mnv3_small.tv_in1k", pretrained=True, pretrained_cfg_overlay=overlay).eval(), url.source
    )


def test_a_url_that_does_not_answer(url, patience):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/x.pth"
        start = time.monotonic()
        with pytest.raises(WeightsError, match=f"cannot download {address} to .*timed out"):
            fetch.fetch_url(address)
        assert time.monotonic() - start < 5
    assert list(url.cache.iterdir()) == []


def test_url_that_cannot_be_reached(url):
    record = dataclasses.replace(url.record, url="http://127.0.0.1:1/x.pth")
    with pytest.raises(WeightsError, match="cannot download http://127.0.0.1:1/x.pth to .*Connection refused"):
        fetch.fetch(record)
    with pytest.raises(WeightsError, match="cannot download .*404"):
        fetch.fetch(dataclasses.replace(url.record, url=f"{url.url}/none.pth"))


# --- weights that ship with the package, and folders


def test_local_weights_come_first_if_the_hash_fits(server, theirs, tmp_path, monkeypatch, caplog):
    folder = tmp_path / "weights" / "mnv3_small_050.lamb_in1k"
    folder.mkdir(parents=True)
    shutil.copy(server.file, folder)
    monkeypatch.setattr(fetch, "LOCAL_WEIGHTS", (tmp_path / "weights",))
    same_logits(load(), theirs)
    assert server.requests == []
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    same_logits(load(), theirs)
    assert len(server.asked("GET")) == 1
    (notice,) = [record.getMessage() for record in caplog.records if record.name == "mnv3.files.fetch"]
    damaged = f"{folder}/model.safetensors is damaged: expected sha256 {server.sha256[:12]}"
    assert notice.startswith(damaged)
    assert "run `git lfs pull`; it is fetched from the Hub" in notice
    shutil.rmtree(server.cache)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    error = fails(".*Git LFS pointer.*: install mnv3 again. In its place: HF_HUB_OFFLINE is set")
    assert error.startswith(damaged)


def saved(folder, **kwargs):
    torch.manual_seed(1)
    model = timm.create_model("mnv3_small", arch=TINY, **kwargs)
    return randomize(model), mnv3.save(model, folder)


def test_local_dir(tmp_path):
    _, folder = saved(tmp_path / "net", num_classes=37)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(
        model.classifier.weight, timm.models.load_state_dict(str(folder / "model.safetensors"))["classifier.weight"]
    )
    assert model.num_classes == 37
    other = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=5)
    assert other.num_classes == 5
    assert torch.equal(other.head.weight, model.head.weight)


def test_local_dir_with_model_args(tmp_path):
    model = timm.create_model("mnv3_small", width=0.35, se_order="se-act", num_classes=4)
    folder = mnv3.save(model, tmp_path / "net")
    same_logits(timm.create_model(f"local-dir:{folder}", pretrained=True).eval(), model.eval())
    config = json.loads((folder / "config.json").read_text())
    config["model_args"]["widht"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="config.json: model_args: unknown 'widht'. Did you mean 'width'?"):
        timm.create_model(f"local-dir:{folder}", pretrained=True)


def test_hand_written_model_args(tmp_path, theirs):
    """What config.json says of the architecture holds without an argument (report C14)."""
    narrow = randomize(timm.create_model("mnv3_small_075", num_classes=6))
    folder = mnv3.save(narrow, tmp_path / "net")
    config = {"architecture": "mnv3_small", "num_classes": 6, "model_args": {"width": 0.75}}
    config["pretrained_cfg"] = {"tag": "mine", "input_size": [3, 96, 96], "num_classes": 6, "classifier": "classifier"}
    (folder / "config.json").write_text(json.dumps(config))
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert model.arch == narrow.arch
    same_logits(model, narrow)
    with pytest.raises(WeightsError, match="do not fit mnv3_small .* fits mnv3_small_075"):
        timm.create_model(f"local-dir:{folder}", pretrained=True, width=1.0)


# --- fresh processes


def run(code, tmp_path, *, env=None, timeout=120):
    clean = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "cache")}
    env = clean | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | (env or {})
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=timeout)


@pytest.mark.slow
def test_offline_from_the_start(server, tmp_path):
    """As above with the client's own switch, which it reads at its import and keeps."""
    load()
    server.requests.clear()
    code = f"""
    import os, mnv3
    print(mnv3.files.fetch.fetch_hub({REPO!r}, revision={RECORD.revision!r}))
    del os.environ["HF_HUB_OFFLINE"]
    mnv3.files.fetch.fetch_hub("o/nothing")
    """
    result = run(code, tmp_path, env={"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "1"})
    assert result.stdout.endswith("/model.safetensors\n"), result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("mnv3.errors.WeightsError: HF_HUB_OFFLINE is set and model.safetensors of o/nothing at main")
    assert server.requests == []


def test_hf_hub_repositories_at_a_commit(tmp_path):
    """One commit for the configuration and the weights (report E10); and an endpoint that is set after the import,
    when huggingface_hub has read the variable already (report E1)."""
    commits = {10: "a" * 40, 20: "b" * 40}
    for classes, commit in commits.items():
        saved(tmp_path / "served" / "o" / "net" / commit, num_classes=classes)
    _, other = saved(tmp_path / "elsewhere" / "o" / "other", num_classes=3)
    with HubServer(tmp_path / "served") as server, HubServer(tmp_path / "elsewhere") as elsewhere:
        result = run(
            f"""
            import os, timm, mnv3
            for name in ("hf-hub:o/net", "hf_hub:o/net", "hf-hub:o/net@{commits[10]}", "hf-hub:o/net@{commits[20]}"):
                model = timm.create_model(name, pretrained=True)
                print(model.num_classes, len(model.classifier.weight))
            os.environ["HF_ENDPOINT"] = {elsewhere.url!r}
            print(mnv3.files.fetch.fetch_hub("o/other"))
            """,
            tmp_path,
            env={"HF_ENDPOINT": server.url},
        )
    assert result.returncode == 0, result.stderr
    *classes, file = result.stdout.splitlines()
    assert classes == ["20 20", "20 20", "10 10", "20 20"]
    assert Path(file).read_bytes() == (other / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("fault", "message"), [("corrupt", "damaged twice"), ("cut", "cannot fetch"), ("gated-403", "is gated")]
)
def test_hf_hub_repositories_that_fail(tmp_path, monkeypatch, no_waiting, fault, message):
    saved(tmp_path / "served" / "o" / "net", num_classes=3)
    with HubServer(tmp_path / "served") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        download = partial(timm.models._hub.hf_hub_download, endpoint=server.url)
        monkeypatch.setattr(timm.models._hub, "hf_hub_download", download)  # by which timm reads config.json
        server.inject(fault, files="*.safetensors")
        with pytest.raises(WeightsError, match=message):
            timm.create_model("hf-hub:o/net", pretrained=True, cache_dir=tmp_path / "cache")
        server.recover()
        model = timm.create_model("hf-hub:o/net", pretrained=True, cache_dir=tmp_path / "cache")
        assert model.num_classes == 3


@pytest.mark.slow
def test_proxy_that_refuses_shows_the_cause(tmp_path):
    """Report E9. The client tries six times; its pauses, half a minute in all, are left out."""
    env = {"HTTPS_PROXY": "http://127.0.0.1:1", "HF_ENDPOINT": "https://hub.invalid"}
    code = "import time, mnv3; time.sleep = lambda s: None; mnv3.create_model('mnv3_small', pretrained=True)"
    result = run(code, tmp_path, env=env)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("mnv3.errors.WeightsError: cannot fetch model.safetensors of timm/mobilenetv3_small_100")
    assert "from https://hub.invalid through the proxy of HTTPS_PROXY: " in last
    assert "Connection refused" in last


def in_processes(count, function, *args):
    """What `function` returns or raises in so many processes at once, and the processes; see `answers`."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def target():
        try:
            queue.put(function(*args))
        except Exception as error:
            queue.put(f"{type(error).__name__}: {error}")

    processes = [context.Process(target=target) for _ in range(count)]
    for process in processes:
        process.start()
    return queue, processes


def answers(queue, processes):
    results = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    return results


def fingerprint(state_dict):
    return [float(value.double().sum()) for value in state_dict.values()]


def load_fingerprint():
    return fingerprint(load().state_dict())


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_four_processes_at_once(server):
    """Report E11: torchrun on an empty cache and a slow network."""
    server.delay = 0.005
    server.inject("slow", files="*.safetensors")
    assert answers(*in_processes(4, load_fingerprint)) == [fingerprint(load().state_dict())] * 4
    assert len({path.resolve() for path in cached(server)}) == 1
    assert not list(server.cache.rglob("*.incomplete"))


def test_the_one_that_downloads_dies(server):
    """Those that wait for it go on."""
    server.delay = 0.1  # 10 seconds in all, unless it dies
    server.inject("slow", files="*.safetensors")
    _, (first,) = in_processes(1, load_fingerprint)
    wait_until(lambda: any(server.cache.rglob("*.incomplete")))
    queue, others = in_processes(3, load_fingerprint)
    wait_until(lambda: len(server.asked("HEAD")) == 4)
    first.kill()
    first.join()
    server.delay = 0
    assert cached(server) == []
    assert answers(queue, others) == [fingerprint(load().state_dict())] * 3


def test_many_processes_and_a_wrong_file(server):
    """While one checks the file another may remove it."""
    server.inject("corrupt", files="*.safetensors")
    for answer in answers(*in_processes(4, load_fingerprint)):
        assert str(answer).startswith("WeightsError: ")
    assert cached(server) == []


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="needs root, to become a user who may not write")
def test_read_only_cache(server, tmp_path):
    """Report E4."""
    for folder in (tmp_path, *list(tmp_path.parents)[:-1], Path(os.environ["HF_HOME"]).parent):
        folder.chmod(folder.stat().st_mode | 0o055)

    def fetch_as_nobody(revision):
        os.setuid(65534)
        return str(fetch.fetch_hub(REPO, revision=revision, cache_dir=server.cache))

    def as_nobody(revision):
        return answers(*in_processes(1, fetch_as_nobody, revision))[0]

    server.cache.mkdir()
    assert as_nobody(RECORD.revision).startswith("WeightsError: cannot write model.safetensors of")
    for revision in (RECORD.revision, None):
        fetch.fetch_hub(REPO, revision=revision, cache_dir=server.cache)
        assert as_nobody(revision).endswith("model.safetensors")


def test_full_disk(server):
    """A limit on the size of files stands in for a full disk: the client's write fails half-way."""

    def fetch():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        return load_fingerprint()

    (answer,) = answers(*in_processes(1, fetch))
    assert answer.startswith(
        f"WeightsError: cannot write model.safetensors of {REPO} at {RECORD.revision} to the cache"
    )
    assert "too large" in answer
    assert cached(server) == []
    assert load().num_classes == 1000


# --- real weights

REAL = [
    ("mnv3_small_tf", "tf_mobilenetv3_small_100", 71.4),
    ("mnv3_large_minimal_tf", "tf_mobilenetv3_large_minimal_100", 81.2),
]


@pytest.fixture
def real_hub(shared, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with HubServer(shared / "weights" / "hub") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.mark.parametrize(("ours", "theirs", "top1"), REAL)
def test_real_weights_give_timms_logits(real_hub, shared, ours, theirs, top1):
    model = timm.create_model(ours, pretrained=True).eval()
    file = shared / "weights" / "hub" / "timm" / f"{theirs}.in1k" / "model.safetensors"
    reference = timm.create_model(theirs, pretrained=True, pretrained_cfg_overlay={"file": str(file)}).eval()
    x = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(model(x), reference(x), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("ours", "theirs", "top1"), REAL)
def test_real_weights_on_real_pictures(real_hub, shared, ours, theirs, top1):
    model = timm.create_model(ours, pretrained=True).eval()
    file = shared / "weights" / "hub" / "timm" / f"{theirs}.in1k" / "model.safetensors"
    reference = timm.create_model(theirs, pretrained=True, pretrained_cfg_overlay={"file": str(file)}).eval()
    pictures = sorted((shared / "images" / "imagenet_half").glob("*.jpg"))
    transform = mnv3.transforms(model)
    timms = timm.data.create_transform(**timm.data.resolve_model_data_config(reference))
    from PIL import Image

    right = their_right = 0
    for start in range(0, len(pictures), 50):
        batch = pictures[start : start + 50]
        x = torch.stack([transform(mnv3.images.load(path)) for path in batch])
        torch.testing.assert_close(x, torch.stack([timms(Image.open(p).convert("RGB")) for p in batch]), rtol=0, atol=0)
        labels = torch.tensor([int(path.name[:4]) for path in batch])
        with torch.inference_mode():
            logits, expected = model(x), reference(x)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
        right += (logits.argmax(1) == labels).sum().item()
        their_right += (expected.argmax(1) == labels).sum().item()
    assert right == their_right
    assert 100 * right / len(pictures) == pytest.approx(top1, abs=0.2)
