"""Published weights: find, fetch, verify.

A file of the Hub or of a URL is checked against its hash and, if damaged, fetched again once; a server that does not
answer is waited for as patience.py says. What cannot be had raises `WeightsError` with the reason; nothing here answers
with other weights than those asked for.
"""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import torch
from timm.models import PretrainedCfg

from ..catalog import CATALOG, WEIGHTS_FILE, Checkpoint, find
from ..errors import WeightsError
from .atomic import new_file
from .checkpoint import damage, digest
from .folder import PICKLE_FILE, weights_in
from .hub_client import cache_folder, default_cache, endpoint, git_hash, offline
from .hub_errors import causes, fetching_problem, root_cause, via
from .patience import timeout, waiting_for

logger = logging.getLogger(__name__)

PACKAGE = Path(__file__).resolve().parents[1]
NAMESPACE = "MNV3_NAMESPACE"  # the environment variable
WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
LOCAL_WEIGHTS = (PACKAGE / "weights", PACKAGE.parent / "weights")  # in a wheel; in a checkout or a torch.hub copy


def fetch(record: Checkpoint, *, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """A checkpoint of the catalog as a verified local file, downloaded if need be.

    Args:
        record: Which one.
        cache_dir: Where to keep downloads; by default the Hub's cache (HF_HOME) or torch.hub's (TORCH_HOME).

    Raises:
        WeightsError: It cannot be had, or is damaged also after a second download.
    """
    if local := local_folder(record):
        return local / WEIGHTS_FILE
    damaged = next((f"{file} is damaged: {damage(file, record.sha256)}" for file in _shipped(record)), None)
    if damaged:
        logger.warning("%s; it is fetched from the Hub. Install mnv3 again", damaged)
    try:
        if repo := repo_of(record):
            if cached := _in_cache(repo, record, cache_dir):
                return cached
            return fetch_hub(repo, revision=record.revision, sha256=record.sha256, cache_dir=cache_dir)
        return fetch_url(record.url, sha256=record.sha256, cache_dir=cache_dir)
    except WeightsError as error:
        if not damaged:
            raise
        raise WeightsError(f"{damaged}: install mnv3 again. In its place: {error}") from error


def _in_cache(repo: str, record: Checkpoint, cache_dir: str | os.PathLike[str] | None) -> Path | None:
    """The file of a known hash in the Hub's cache, under whatever revision it was put there."""
    if not record.sha256:
        return None
    snapshots = cache_folder(cache_dir) / f"models--{repo.replace('/', '--')}" / "snapshots"
    pinned = snapshots / (record.revision or "main") / WEIGHTS_FILE
    for file in dict.fromkeys((pinned, *snapshots.glob(f"*/{WEIGHTS_FILE}"))):
        if file.is_file() and digest(file) == record.sha256:
            return file
    return None


def repo_of(record: Checkpoint) -> str | None:
    """Where on the Hub a checkpoint is; our own in the namespace that MNV3_NAMESPACE names, if it is set."""
    namespace = os.environ.get(NAMESPACE)
    return f"{namespace}/{record.name}" if namespace and record.ours else record.repo


def local_folder(record: Checkpoint) -> Path | None:
    """The folder of a checkpoint that ships with this copy of mnv3, if it does and its hash fits."""
    return next((file.parent for file in _shipped(record) if digest(file) == record.sha256), None)


def _shipped(record: Checkpoint) -> list[Path]:
    """The files that ship with this copy of mnv3 as those of a checkpoint, damaged or not."""
    files = [weights / record.name / WEIGHTS_FILE for weights in LOCAL_WEIGHTS]
    return [file for file in files if record.sha256 and file.is_file()]


def fetch_hub(
    repo: str,
    filename: str = WEIGHTS_FILE,
    *,
    revision: str | None = None,
    sha256: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """A file of a Hub repository, verified.

    Args:
        repo: 'NAMESPACE/NAME'.
        filename: Its path in the repository.
        revision: A branch, tag or commit; `main` by default.
        sha256: Its hash; by default the one that the Hub states.
        cache_dir: Where to keep downloads; by default the Hub's cache (HF_HOME).

    Raises:
        WeightsError: It cannot be had, or is damaged also after a second download.
    """

    def download(damaged: Path | None) -> Path:
        from huggingface_hub import hf_hub_download  # here, so that a setting made after `import mnv3` still counts

        if damaged and offline():
            raise WeightsError("HF_HUB_OFFLINE is set, so it cannot be fetched again: unset it")
        if damaged and not damaged.is_symlink():
            damaged.unlink(missing_ok=True)  # on a file system without symbolic links the client does not replace it
        with waiting_for(endpoint()):
            try:
                path = hf_hub_download(
                    repo,
                    filename,
                    revision=revision,
                    cache_dir=cache_dir or default_cache(),
                    force_download=damaged is not None,
                    endpoint=endpoint(),
                    local_files_only=offline(),
                    library_name="mnv3",
                )
            except Exception as error:  # the client, httpx and the file system each have their own
                raise WeightsError(fetching_problem(error, repo, filename, revision, cache_dir)) from error
        return Path(path)

    return _verified(download, lambda path: _damage_of_cached(path, sha256), f"{filename} of {repo}")


def fetch_url(url: str, *, sha256: str | None = None, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """A file behind a URL, verified, in `cache_dir` or torch.hub's folder of checkpoints; for errors see `fetch`."""
    folder = Path(cache_dir) if cache_dir else Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / url.rpartition("/")[2]

    def download(damaged: Path | None) -> Path:
        if damaged or not path.exists():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                _download_url(url, path)
            except Exception as error:
                raise WeightsError(f"cannot download {url}{via(url)} to {folder}: {root_cause(error)}") from error
        return path

    return _verified(download, lambda path: damage(path, sha256), url)


def _download_url(url: str, path: Path) -> None:
    """Write what a URL gives to a file, which appears whole or not at all."""
    request = Request(url, headers={"User-Agent": "mnv3"})
    with urlopen(request, timeout=timeout()) as response, new_file(path) as draft, open(draft, "wb") as file:
        shutil.copyfileobj(response, file)


def _verified(download: Callable[[Path | None], Path], damage_of: Callable[[Path], str | None], name: str) -> Path:
    """Download, check, and once more if the file is damaged; a file that stays damaged is removed."""
    path = download(None)
    problem = damage_of(path)
    if problem is None:
        return path
    try:
        path = download(path)
    except WeightsError as error:
        raise WeightsError(f"{name} in the cache is damaged ({problem}: {path}), and {error}") from error
    problem = damage_of(path)
    if problem is None:
        return path
    for file in {path.resolve(), path}:
        file.unlink(missing_ok=True)
    raise WeightsError(f"{name} arrived damaged twice (the server or a mirror has another file?), removed: {problem}")


def _damage_of_cached(path: Path, sha256: str | None) -> str | None:
    """What is wrong with a file in the Hub's cache, by `sha256` or the hash that the Hub states, or None.

    The cache names a file's content after that hash: SHA-256 for what is large, git's for the rest.
    """
    try:
        stated = path.readlink().name if path.is_symlink() else ""
        if len(stated) == 40 and not sha256 and (git := git_hash(path)) != stated:
            return f"expected git hash {stated[:12]}, found {git[:12]} in {path.stat().st_size} bytes"
        sha256 = sha256 or (stated if len(stated) == 64 else None)
        if path.suffix in WEIGHTS_SUFFIXES:
            return damage(path, sha256)
        if sha256 and (actual := digest(path)) != sha256:
            return f"expected sha256 {sha256[:12]}, found {actual[:12]} in {path.stat().st_size} bytes"
    except OSError as error:  # another process has removed it, for instance
        return f"cannot be read: {error}"
    return None


def locate(cfg: PretrainedCfg, *, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The verified local file of the weights that a configuration of timm's names.

    Args:
        cfg: It names a folder, a file, a repository of the Hub or a URL.
        cache_dir: Where to keep downloads; see `fetch`.

    Raises:
        WeightsError: The file cannot be had, or the configuration names no source.
    """
    if cfg.source == "local-dir":
        return weights_in(cfg.file)
    if cfg.file and cfg.source != "hf-hub":
        return Path(cfg.file)
    repo, _, revision = (cfg.hf_hub_id or "").partition("@")
    filename = cfg.hf_hub_filename or WEIGHTS_FILE
    source = (cfg.architecture, cfg.tag, repo, revision, filename, cfg.url)
    for record in CATALOG:
        published = (record.arch, record.tag, record.repo or "", record.revision or "", WEIGHTS_FILE, record.url)
        if source == published:
            return fetch(record, cache_dir=cache_dir)
    if repo:
        options = {"revision": revision or None, "cache_dir": cache_dir}
        return fetch_hub(repo, filename, **options) if cfg.hf_hub_filename else _weights_of(repo, **options)
    if cfg.url:
        return fetch_url(cfg.url, cache_dir=cache_dir)
    try:
        find(cfg.architecture)
    except ValueError as error:  # it has none, and the message names those that have
        raise WeightsError(str(error)) from None
    raise WeightsError(f"the pretrained configuration of {cfg.architecture} names no source: url, hf_hub_id or file")


def _weights_of(repo: str, **options: Any) -> Path:
    """The weights of a repository: model.safetensors, or what timm's save_for_hf writes unless told otherwise."""
    try:
        return fetch_hub(repo, **options)
    except WeightsError as error:
        if not _is_missing(error):
            raise
        try:
            return fetch_hub(repo, PICKLE_FILE, **options)
        except WeightsError as other:
            raise (error if _is_missing(other) else other) from None


def _is_missing(error: WeightsError) -> bool:
    """Whether a repository has no such file, or offline the cache has not."""
    from huggingface_hub import errors

    chain = causes(error)
    missing = any(isinstance(cause, errors.EntryNotFoundError) for cause in chain)
    unreachable = any(isinstance(cause, errors.LocalEntryNotFoundError) for cause in chain)
    return missing and (offline() or not unreachable)
