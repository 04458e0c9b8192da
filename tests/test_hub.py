"""From HF_ENDPOINT to logits with the real client, through a local server that can misbehave."""

import dataclasses
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from conftest import ROOT, randomize
from hub_server import HubServer

import mnv3
from mnv3 import WeightsError, hub
from mnv3.catalog import find
from mnv3.timm_models import mnv3_small_050

TINY = mnv3.Arch(stem=8, rows=(mnv3.Bneck(3, 16, 8, True, "HS", 2),), last=16, head=16)
REPO = "timm/mobilenetv3_small_050.lamb_in1k"
RECORD = find("mnv3_small_050")


def real_sha(monkeypatch, sha256, **changes):
    """The catalog as if the server's file were the published one."""
    record = dataclasses.replace(RECORD, sha256=sha256, **changes)
    monkeypatch.setattr(hub, "CATALOG", (record,))
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
        server.sha256 = mnv3.files.digest(server.file)
        server.cache = tmp_path / "cache"
        real_sha(monkeypatch, server.sha256)
        yield server


def load(**kwargs):
    return timm.create_model("mnv3_small_050", pretrained=True, **kwargs).eval()


def cached(server):
    """Every file of weights in the cache under a name by which it would be found."""
    found = [path for path in server.cache.rglob("*") if path.is_file() and path.stat().st_size > 1000]
    return [path for path in found if path.suffix != ".incomplete"]  # some versions of the client keep it, to resume


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


def test_offline_with_and_without_the_file(server, theirs, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fails(
        "HF_HUB_OFFLINE is set and model.safetensors of timm/mobilenetv3_small_050.lamb_in1k .*unset it, or load once"
    )
    assert server.requests == []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    load()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    server.requests.clear()
    same_logits(load(), theirs)
    assert server.requests == []


def test_without_a_pinned_hash_the_hubs_own_is_taken(server, theirs, monkeypatch):
    real_sha(monkeypatch, None)
    server.inject("corrupt", files="*.safetensors", times=1)
    same_logits(load(), theirs)
    assert len(server.asked("GET")) == 2
    server.inject("corrupt", files="*.safetensors")
    shutil.rmtree(server.cache)
    fails(f"arrived damaged twice .*removed: expected sha256 {server.sha256[:12]}, found ")


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


@pytest.mark.parametrize("kind", ["html", "truncated", "corrupt"])
def test_a_file_that_stays_wrong(server, kind):
    server.inject(kind, files="*.safetensors")
    message = fails("model.safetensors")
    if kind == "html":
        assert "web page" in message or "size" in message.lower()
    assert cached(server) == []
    server.recover()
    assert load().num_classes == 1000


def test_a_damaged_cache_is_mended(server, theirs):
    load()
    (file,) = {path.resolve() for path in cached(server)}
    for damaged in (file.read_bytes()[:5000], b"<html>" + bytes(2000), b""):
        file.write_bytes(damaged)
        same_logits(load(), theirs)
        assert mnv3.files.digest(file) == server.sha256


def test_a_damaged_cache_offline_says_both(server, monkeypatch):
    load()
    (file,) = {path.resolve() for path in cached(server)}
    file.write_bytes(file.read_bytes()[:5000])
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fails("in the cache is damaged .expected sha256 .*HF_HUB_OFFLINE is set")


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


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("bare", "answers without the Hub's headers for model.safetensors .*full mirror"),
        ("gated-401", "timm/mobilenetv3_small_050.lamb_in1k is gated: ask for access on its page and set HF_TOKEN"),
        ("gated-403", "is gated: ask for access"),
        ("portal", "cannot fetch model.safetensors|answers without the Hub's headers"),
    ],
)
def test_servers_that_refuse(server, fault, message):
    server.inject(fault)
    fails(message)
    assert cached(server) == []


def test_what_is_not_there(server, monkeypatch):
    real_sha(monkeypatch, None, revision="1" * 40)
    server.file.unlink()
    overlay = {"hf_hub_id": "timm/nothing_here"}
    fails("no repository timm/nothing_here on http://127.0.0.1:.*or it is private", pretrained_cfg_overlay=overlay)
    fails("timm/mobilenetv3_small_050.lamb_in1k at .* has no model.safetensors")
    commits = server.folder / "o" / "r" / ("2" * 40)
    commits.mkdir(parents=True)
    fails(f"o/r on .* has no revision {'3' * 40}", pretrained_cfg_overlay={"hf_hub_id": f"o/r@{'3' * 40}"})


def test_arch_without_weights():
    for name in ("mnv3_large_075", "mnv3_small_cifar"):
        with pytest.raises(WeightsError, match=f"no pretrained weights are published for {name}: use pretrained=False"):
            timm.create_model(name, pretrained=True)
        with pytest.raises(ValueError, match=f"no pretrained weights are published for {name}"):
            mnv3.timm_models.__dict__[name](pretrained="in1k")


def test_never_random_weights(server):
    """Any failure raises, at every door, and none logs a warning and goes on (report C12)."""
    server.inject("corrupt", files="*.safetensors")
    doors = (
        lambda: timm.create_model("mnv3_small_050", pretrained=True),
        lambda: timm.create_model("mnv3_small_050", pretrained=True, features_only=True),
        lambda: timm.create_model("mnv3_small_050", pretrained=True, num_classes=10, in_chans=1),
        lambda: mnv3.create_model("mnv3_small_050", pretrained=True),
        lambda: torch.hub.load(str(ROOT), "mnv3_small_050", source="local", pretrained=True),
        lambda: mnv3_small_050(pretrained=True),
    )
    for door in doors:
        with pytest.raises(WeightsError, match="damaged"):
            door()


# --- files behind a URL


@pytest.fixture
def url(tmp_path, monkeypatch):
    """torchvision's file, as torchvision names and saves it, on a plain web server."""
    source = randomize(torchvision.models.mobilenet_v3_small())
    (tmp_path / "web").mkdir()
    torch.save(source.state_dict(), tmp_path / "web" / "draft.pth")
    sha256 = mnv3.files.digest(tmp_path / "web" / "draft.pth")
    name = f"mobilenet_v3_small-{sha256[:8]}.pth"
    (tmp_path / "web" / "draft.pth").rename(tmp_path / "web" / name)
    with HubServer(tmp_path / "web") as server:
        server.name, server.sha256, server.source = name, sha256, source
        server.record = dataclasses.replace(find("mnv3_small", "tv_in1k"), url=f"{server.url}/{name}", sha256=sha256)
        monkeypatch.setattr(hub, "CATALOG", (server.record,))
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
    ("fault", "found"), [("corrupt", "expected sha256 .*, found "), ("html", "starts as a web page")]
)
def test_torchvisions_file_that_stays_wrong(url, fault, found):
    url.inject(fault)
    with pytest.raises(WeightsError, match=f"{url.name} arrived damaged twice .*removed: .*{found}"):
        load_url(url)
    assert list(url.cache.iterdir()) == []


def test_url_that_cannot_be_reached(url):
    record = dataclasses.replace(url.record, url="http://127.0.0.1:1/x.pth")
    with pytest.raises(WeightsError, match="cannot download http://127.0.0.1:1/x.pth to .*Connection refused"):
        hub.fetch(record)
    with pytest.raises(WeightsError, match="cannot download .*404"):
        hub.fetch(dataclasses.replace(url.record, url=f"{url.url}/none.pth"))


# --- weights that ship with the package, and folders


def test_local_weights_come_first_if_the_hash_fits(server, theirs, tmp_path, monkeypatch):
    folder = tmp_path / "weights" / "mnv3_small_050.lamb_in1k"
    folder.mkdir(parents=True)
    shutil.copy(server.file, folder)
    monkeypatch.setattr(hub, "LOCAL_WEIGHTS", (tmp_path / "weights",))
    same_logits(load(), theirs)
    assert server.requests == []
    (folder / "model.safetensors").write_bytes(b"another version")
    same_logits(load(), theirs)
    assert len(server.asked("GET")) == 1


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
    with pytest.raises(TypeError, match="widht"):
        timm.create_model(f"local-dir:{folder}", pretrained=True)


def test_local_dir_with_a_pickle_only(tmp_path):
    _, folder = saved(tmp_path / "net")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="no model.safetensors, only pytorch_model.bin; convert it once: mnv3"):
        timm.create_model(f"local-dir:{folder}", pretrained=True)


# --- fresh processes


def run(code, tmp_path, *, env=None, timeout=120):
    clean = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "cache")}
    env = clean | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | (env or {})
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=timeout)


def test_endpoint_set_after_import(tmp_path):
    """huggingface_hub reads HF_ENDPOINT once, at its import (report E1)."""
    _, folder = saved(tmp_path / "served" / "o" / "net", num_classes=3)
    with HubServer(tmp_path / "served") as server:
        result = run(
            f"""
            import os, mnv3
            os.environ["HF_ENDPOINT"] = {server.url!r}
            print(mnv3.hub.fetch_hub("o/net"))
            """,
            tmp_path,
        )
        assert result.returncode == 0, result.stderr
        assert Path(result.stdout.strip()).read_bytes() == (folder / "model.safetensors").read_bytes()
        assert server.asked("GET")


def test_hf_hub_repositories_at_a_commit(tmp_path):
    """One commit for the configuration and the weights (report E10)."""
    commits = {10: "a" * 40, 20: "b" * 40}
    for classes, commit in commits.items():
        saved(tmp_path / "served" / "o" / "net" / commit, num_classes=classes)
    with HubServer(tmp_path / "served") as server:
        result = run(
            f"""
            import timm, mnv3
            for name in ("hf-hub:o/net", "hf_hub:o/net", "hf-hub:o/net@{commits[10]}", "hf-hub:o/net@{commits[20]}"):
                model = timm.create_model(name, pretrained=True)
                print(model.num_classes, len(model.classifier.weight), model.pretrained_cfg["hf_hub_id"])
            """,
            tmp_path,
            env={"HF_ENDPOINT": server.url},
        )
    assert result.returncode == 0, result.stderr
    found = [line.split()[:2] for line in result.stdout.splitlines()]
    assert found == [["20", "20"], ["20", "20"], ["10", "10"], ["20", "20"]]


@pytest.mark.slow  # the client tries six times, for half a minute
def test_proxy_that_refuses_shows_the_cause(tmp_path):
    env = {"HTTPS_PROXY": "http://127.0.0.1:1", "HF_ENDPOINT": "https://hub.invalid"}
    result = run("import mnv3; mnv3.create_model('mnv3_small', pretrained=True)", tmp_path, env=env)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("mnv3.errors.WeightsError: cannot fetch model.safetensors of timm/mobilenetv3_small_100")
    assert "Connection refused" in last or "ConnectError" in last


def _load_and_digest(folder, server_url, cache, queue):
    os.environ |= {"HF_ENDPOINT": server_url, "HF_HUB_CACHE": cache}
    torch.set_num_threads(1)
    path = hub.fetch_hub("o/net", cache_dir=cache)
    queue.put(mnv3.files.digest(path))


def test_eight_processes_at_once(tmp_path):
    _, folder = saved(tmp_path / "served" / "o" / "net")
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    with HubServer(tmp_path / "served") as server:
        server.delay = 0.2
        server.inject("slow", files="*.safetensors")
        args = (str(folder), server.url, str(tmp_path / "cache"), queue)
        processes = [context.Process(target=_load_and_digest, args=args) for _ in range(8)]
        for process in processes:
            process.start()
        digests = [queue.get(timeout=60) for _ in processes]
        for process in processes:
            process.join(timeout=60)
    assert set(digests) == {mnv3.files.digest(folder / "model.safetensors")}
    assert not list((tmp_path / "cache").rglob("*.incomplete"))


def _fetch_as_nobody(cache, url, queue):
    os.environ["HF_ENDPOINT"] = url
    os.setuid(65534)
    try:
        queue.put(str(hub.fetch_hub(REPO, revision=RECORD.revision, cache_dir=cache)))
    except Exception as error:
        queue.put(repr(error))


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="needs root, to become a user who may not write")
def test_read_only_cache(server, tmp_path):
    for folder in (tmp_path, *list(tmp_path.parents)[:-1], Path(os.environ["HF_HOME"]).parent):
        folder.chmod(folder.stat().st_mode | 0o055)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def as_nobody():
        process = context.Process(target=_fetch_as_nobody, args=(str(server.cache), server.url, queue))
        process.start()
        answer = queue.get(timeout=60)
        process.join(timeout=60)
        return answer

    server.cache.mkdir()
    assert "cannot write model.safetensors" in as_nobody()
    load()
    assert as_nobody().endswith("model.safetensors")


def _fetch_on_a_full_disk(cache, url, queue):
    os.environ["HF_ENDPOINT"] = url
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        queue.put(str(hub.fetch_hub(REPO, cache_dir=cache)))
    except WeightsError as error:
        queue.put(f"WeightsError: {error}")


def test_full_disk(server):
    """A limit on the size of files stands in for a full disk: the client's write fails half-way."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_fetch_on_a_full_disk, args=(str(server.cache), server.url, queue))
    process.start()
    answer = queue.get(timeout=60)
    process.join(timeout=60)
    assert answer.startswith("WeightsError: "), answer
    assert "cannot write model.safetensors" in answer
    assert not [path for path in server.cache.rglob("model.safetensors") if path.exists()]
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
