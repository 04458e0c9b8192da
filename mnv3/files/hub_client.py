"""What the Hub's client is told: server, cache, whether it may use the network."""

import os
from pathlib import Path


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


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where the Hub's client keeps what it downloads."""
    from huggingface_hub import constants

    return Path(cache_dir or default_cache() or constants.HF_HUB_CACHE).expanduser()


def offline() -> bool:
    """Whether the environment now forbids the Hub's client the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
