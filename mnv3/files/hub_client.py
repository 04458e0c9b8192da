"""What the Hub's client is told, and what its errors mean."""

import json
import os
import re
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from .patience import NoAnswer, seconds_asked

NO_JSON = "does not answer as the Hub does: is there a login page or a proxy in between, or a mirror that is not whole?"


TOKEN = re.compile(r"(?<=Bearer )[^\s'\"]+|\bhf_[\w.-]{16,}")  # in a message


def git_hash(path: Path) -> str:
    """What git, and the Hub, call the content of a file."""
    from huggingface_hub.utils.sha import git_hash

    return git_hash(path.read_bytes())


def endpoint() -> str:
    """The server of the Hub that the environment now names."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def default_cache() -> Path | None:
    """Where the environment now says that the Hub's cache is; the client read it when it was imported."""
    home = os.environ.get("HF_HOME")
    folder = os.environ.get("HF_HUB_CACHE") or (f"{home}/hub" if home else "")
    return Path(folder).expanduser() if folder else None


def cache_folder(cache_dir: str | os.PathLike | None = None) -> Path:
    """Where the Hub's client keeps what it downloads."""
    from huggingface_hub import constants

    return Path(cache_dir or default_cache() or constants.HF_HUB_CACHE).expanduser()


def offline() -> bool:
    """Whether the environment now forbids the Hub's client the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def causes(error: BaseException) -> list[BaseException]:
    """An error, what it was raised from, and so on; the client wraps some of its own."""
    chain = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    return chain


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error of the client came from."""
    responses = [getattr(cause, "response", None) for cause in causes(error)]
    return next((response.status_code for response in responses if response is not None), None)


def wait_of(error: BaseException) -> str | None:
    """How long the server asks not to be asked again, in words, if the error came from an answer that says so."""
    responses = [getattr(cause, "response", None) for cause in causes(error)]
    seconds = max(map(seconds_asked, responses))
    return f"{seconds:g} seconds" if seconds else None


def root_cause(error: BaseException) -> str:
    """Type and first line of what an error began with, without any token in it."""
    root = causes(error)[-1]
    text = str(root).strip().splitlines()[0] if str(root).strip() else "no details"
    return f"{type(root).__name__}: {TOKEN.sub('***', text)}"


def via(url: str) -> str:
    """The proxy that the environment puts before a URL, in words."""
    scheme = urlsplit(url).scheme
    return f" through the proxy of {scheme.upper()}_PROXY" if scheme in getproxies() else ""


def problem(
    error: Exception,
    repo: str,
    filename: str,
    revision: str | None,
    cache_dir: str | os.PathLike | None = None,
) -> str:
    """Why a file of a repository could not be fetched, in one line, and what to do."""
    from huggingface_hub import errors

    chain, status = causes(error), status_of(error)

    def due_to(kind: type[Exception]) -> bool:
        return any(isinstance(cause, kind) for cause in chain)

    what = f"{filename} of {repo} at {revision or 'main'}"
    server = endpoint()
    if offline() or due_to(errors.OfflineModeIsEnabled):
        return (
            f"HF_HUB_OFFLINE is set and {what} is not in the cache {cache_folder(cache_dir)}: unset it, or load once "
            "with a network"
        )
    if due_to(errors.HFValidationError):
        return f"{repo!r} is no repository's name: expected NAMESPACE/NAME of letters, digits, '-', '_' and '.'"
    if due_to(errors.GatedRepoError):
        return f"{repo} is gated: ask for access on its page and set HF_TOKEN"
    if due_to(errors.RevisionNotFoundError):
        return f"{repo} on {server} has no revision {revision}"
    if due_to(errors.RepositoryNotFoundError):
        return f"no repository {repo} on {server}, or it is private and HF_TOKEN does not open it"
    if due_to(errors.EntryNotFoundError) and status == 404:
        return f"{repo} at {revision or 'main'} on {server} has no {filename}"
    if status == 401:
        return f"{server} wants another token than that of HF_TOKEN or `hf auth login`: get a new one, or unset it"
    if status == 429:
        wait = wait_of(error) or "some minutes"
        return f"{server} has had too many requests (HTTP 429): wait {wait}, or set HF_TOKEN for a higher limit"
    if silence := next((cause for cause in chain if isinstance(cause, NoAnswer)), None):
        return f"cannot fetch {what}{via(server)}: {silence}"
    if due_to(errors.FileMetadataError):
        return f"{server} answers without the Hub's headers for {what}: is it a full mirror? ({root_cause(error)})"
    if due_to(json.JSONDecodeError):
        return f"{server} {NO_JSON}"
    if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
        return f"cannot write {what} to the cache: {error}. Free some space, or set HF_HOME or cache_dir"
    return f"cannot fetch {what} from {server}{via(server)}: {root_cause(error)}"
