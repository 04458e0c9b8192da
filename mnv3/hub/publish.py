"""Weights folders to the Hub and back: push, pull, and verify (of verify.py).

What is published is `verify.NAMES` and nothing else, in one commit, after hash, configuration, card, tensors and golden
logits were compared with the catalog. The Hub's own client does all the talking.
"""

import filecmp
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..catalog import WEIGHTS_FILE, find, split_name
from ..errors import PublishError, WeightsError
from ..factory import check_architecture, create_model
from ..files import checkpoint, fetch, hub_client, saving
from ..files.atomic import new_folder
from ..files.hub_errors import publishing_problem
from ..files.patience import waiting_for
from ..version import __version__
from . import cards
from .cards import CARD_FILE
from .verify import NAMES, REQUIRED, check, download, errors_call, record_at, verify

__all__ = ["Push", "pull", "push", "verify"]


@dataclass(frozen=True)
class Push:
    """What `push` did, or would do.

    Attributes:
        folder: Which folder.
        repo: To which repository.
        branch: Of it.
        sent: The files that were not there, or other ones.
        left_out: What else lies in the folder.
        commit: The branch's newest commit; None in a dry run for a repository or branch that does not exist.
        dry_run: Whether nothing was done.
    """

    folder: Path
    repo: str
    branch: str
    sent: tuple[str, ...]
    left_out: tuple[str, ...]
    commit: str | None
    dry_run: bool

    def __str__(self) -> str:
        where = f"{self.repo} at {self.branch}"
        rest = f"; left out: {', '.join(self.left_out)}" if self.left_out else ""
        if not self.sent:
            return f"{self.folder}: {where} has it all (commit {self.commit[:12]}){rest}"
        if self.dry_run:
            new = "" if self.commit else ", which would be made"
            return f"{self.folder}: would push {', '.join(self.sent)} to {where}{new}{rest}"
        return f"{self.folder}: pushed {', '.join(self.sent)} to {where} (commit {self.commit[:12]}){rest}"


def pull(
    source: str, out: str | os.PathLike[str] | None = None, *, revision: str | None = None, exist_ok: bool = False
) -> Path:
    """Fetch a weights folder, verified; it appears whole or not at all.

    Args:
        source: 'NAMESPACE/NAME' on the Hub, or 'arch.tag' of the catalog.
        out: Where to; by default NAME or arch.tag in this folder. One that has the same files already is left alone.
        revision: A branch, tag or commit; by default the one that the catalog pins, or `main`.
        exist_ok: Replace a weights folder that is there.

    Raises:
        WeightsError: It cannot be had, is damaged, or is not what the catalog says.
        FileExistsError: `out` exists, and may not be replaced.
        ValueError: There is no such arch or tag.
    """
    record = record_at(source) if "/" in source else find(*split_name(source))
    name = source.rpartition("/")[2] if "/" in source else record.name
    out = Path(out or name).resolve()
    if record and record.url:
        if revision:
            raise ValueError(f"--revision {revision}: {record.name} is a file of {record.url}, which has none")
        return saving.save(create_model(record.name, pretrained=True), out, exist_ok=exist_ok)
    repo = source if "/" in source else fetch.repo_of(record)
    revision = revision or (record.revision if record else None)
    local = None if "/" in source or revision else fetch.local_folder(record)
    folder = local or download(repo, revision, record)
    if record:
        check(folder, record, source=source)
    else:
        check_architecture(folder)
    names = [file for file in NAMES if (folder / file).is_file()]
    if out.is_dir() and filecmp.cmpfiles(folder, out, names, shallow=False)[0] == names:
        return out
    with new_folder(out, names=NAMES, needs=WEIGHTS_FILE, exist_ok=exist_ok) as new:
        for file in names:
            shutil.copyfile(folder / file, new / file)
    return out


def push(
    folder: str | os.PathLike[str],
    *,
    repo: str | None = None,
    private: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
) -> Push:
    """Publish a weights folder of the catalog in one commit; one that is there already makes none.

    Args:
        folder: `weights/<arch>.<tag>`, with its card; only the files named above are sent.
        repo: 'NAMESPACE/NAME'; by default the catalog's name in the namespace of MNV3_NAMESPACE or the catalog.
        private: Make a new repository private.
        revision: A branch, made from `main` if it does not exist.
        dry_run: Compare, and change nothing.

    Raises:
        WeightsError: Hash, card, configuration, tensors, golden logits and catalog do not agree.
        PublishError: The Hub refuses it or cannot be reached; the branch has the files of before, all of them.
    """
    folder, branch = Path(folder), revision or "main"
    with tempfile.TemporaryDirectory() as copies:  # so that what is checked is what is sent
        copy = Path(copies)
        left_out = _copy_known(folder, copy)
        record = check(copy, source=str(folder)).record
        repo = repo or fetch.repo_of(record)
        with errors_call(copy, str(folder)):
            card = cards.card(record, copy)
            if not cards.same((copy / CARD_FILE).read_text(encoding="utf-8", errors="replace"), card):
                raise WeightsError(
                    f"{copy / CARD_FILE} is not the card of {record.name} in the catalog: `mnv3 card {copy}` writes it"
                )
            (copy / CARD_FILE).write_text(cards.card(record, copy, repo=repo), encoding="utf-8")
        with waiting_for(hub_client.endpoint()), _explained(repo):
            remote = _Remote(repo, branch, writes=not dry_run)
            if private and remote.exists and not remote.private:
                raise PublishError(f"{repo} exists and is public: --private is for a new repository")
            sent = remote.differing(copy)
            if sent and not dry_run:
                remote.create(private=private)
                remote.commit(copy, sent, f"{record.name}, by mnv3 {__version__}")
    return Push(folder, repo, branch, sent, left_out, remote.head, dry_run)


class _Remote:
    """A branch of a repository that may not exist yet."""

    def __init__(self, repo: str, branch: str, *, writes: bool) -> None:
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.errors import OfflineModeIsEnabled
        from huggingface_hub.utils import validate_repo_id

        if hub_client.offline():
            raise OfflineModeIsEnabled
        validate_repo_id(repo)
        if "/" not in repo:
            raise PublishError(f"{repo!r} is no repository's name: expected NAMESPACE/NAME")
        token = get_token()
        if writes and not token:
            raise PublishError("no token: set HF_TOKEN, or run `hf auth login`, with a token that may write")
        if token and not re.fullmatch(r"[!-~]+", token):
            raise PublishError("the token of HF_TOKEN or `hf auth login` has characters that none has: copy it again")
        self.api = HfApi(endpoint=hub_client.endpoint(), library_name="mnv3", library_version=__version__)
        self.repo, self.branch = repo, branch
        self._read_state()

    def _read_state(self) -> None:
        """Ask whether the repository exists, whether it is private, and for the branch's newest commit."""
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

        self.head: str | None = None
        self.exists, self.private = True, False
        try:
            info = self.api.model_info(self.repo, revision=self.branch)
            self.head, self.private = info.sha, bool(info.private)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            self.exists = False
        except RevisionNotFoundError:
            self.private = bool(self.api.model_info(self.repo).private)

    def differing(self, folder: Path) -> tuple[str, ...]:
        """The files of a folder that the branch's head has not got, or has others of."""
        from huggingface_hub.hf_api import RepoFile

        names = [name for name in NAMES if (folder / name).is_file()]
        entries = self.api.get_paths_info(self.repo, names, revision=self.head) if self.head else []
        files = [entry for entry in entries if isinstance(entry, RepoFile)]
        remote = {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in files}
        local = {name: (checkpoint.digest(folder / name), hub_client.git_hash(folder / name)) for name in names}
        return tuple(name for name in names if remote.get(name) not in local[name])

    def create(self, *, private: bool) -> None:
        """Make the repository and the branch, where they are missing."""
        if not self.exists:
            self.api.create_repo(self.repo, private=private, exist_ok=True)
            self._read_state()
        if not self.head:
            self.api.create_branch(self.repo, branch=self.branch, exist_ok=True)
            self._read_state()

    def commit(self, folder: Path, names: tuple[str, ...], message: str) -> None:
        """All files in one commit on top of the head that they were compared with."""
        from huggingface_hub import CommitOperationAdd

        operations = [CommitOperationAdd(name, folder / name) for name in names]
        info = self.api.create_commit(
            self.repo, operations, commit_message=message, revision=self.branch, parent_commit=self.head
        )
        self.head = info.oid
        if missing := self.differing(folder):
            raise PublishError(f"{self.repo} took the commit without {', '.join(missing)}: does its .gitignore say so?")


def _copy_known(folder: Path, copy: Path) -> tuple[str, ...]:
    """Copy the files that are published, and return the names of what is left out."""
    if not folder.is_dir():
        raise WeightsError(f"no weights folder at {folder}")
    makes = {CARD_FILE: f"`mnv3 card {folder}` writes it"} | dict.fromkeys(REQUIRED[:3], "mnv3.save writes it")
    for name in NAMES:
        file = folder / name
        if file.is_symlink():
            raise WeightsError(f"{file} is a symbolic link: put the file itself there")
        if file.is_file():
            shutil.copyfile(file, copy / name, follow_symlinks=False)
        elif name in REQUIRED:
            raise WeightsError(f"{folder} has no {name}: {makes[name]}")
    return tuple(sorted(file.name for file in folder.iterdir() if file.name not in NAMES))


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Any error of the client as a PublishError of one line."""
    try:
        yield
    except PublishError:
        raise
    except Exception as error:  # the client, its transport and Xet each have their own
        raise PublishError(publishing_problem(error, repo)) from error
