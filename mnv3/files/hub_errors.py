"""What the errors of the Hub's client mean, in one line, for whoever fetches and for whoever publishes: one table."""

import json
import os
import re
from collections.abc import Callable
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import errors

from .hub_client import cache_folder, endpoint, offline
from .patience import NoAnswer, seconds_asked

TOKEN = re.compile(r"(?<=Bearer )[^\s'\"]+|\bhf_[\w.-]{16,}")  # in a message


def causes(error: BaseException) -> list[BaseException]:
    """An error, what it was raised from, and so on; the client wraps some of its own."""
    chain = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    return chain


def root_cause(error: BaseException) -> str:
    """Type and first line of what an error began with, without any token in it."""
    root = causes(error)[-1]
    text = str(root).strip().splitlines()[0] if str(root).strip() else "no details"
    return f"{type(root).__name__}: {TOKEN.sub('***', text)}"


def via(url: str) -> str:
    """The proxy that the environment puts before a URL, in words."""
    scheme = urlsplit(url).scheme
    return f" through the proxy of {scheme.upper()}_PROXY" if scheme in getproxies() else ""


class Failure:
    """An error with all that it was raised from.

    Attributes:
        error: What was caught.
        chain: It and its causes.
        status: The HTTP status that it came from, if any.
        wait: The seconds that the server asks not to be asked again, 0 where it does not.
    """

    def __init__(self, error: Exception) -> None:
        self.error, self.chain = error, causes(error)
        responses = [getattr(cause, "response", None) for cause in self.chain]
        self.status: int | None = next((r.status_code for r in responses if r is not None), None)
        self.wait = max(map(seconds_asked, responses))

    def due_to(self, kind: type[Exception]) -> bool:
        """Whether one of the chain is of this class."""
        return any(isinstance(cause, kind) for cause in self.chain)


FETCHING, PUBLISHING = 1, 2  # columns
NO_NAME = "{repo!r} is no repository's name: expected NAMESPACE/NAME of letters, digits, '-', '_' and '.'"
NO_ACCESS = "{repo} on {server} is gated or disabled for this token: see its page"
NO_JSON = (
    "{server} does not answer as the Hub does: is there a login page or a proxy in between, or a mirror that is not "
    "whole?"
)

# When, and what it means for whoever fetches and for whoever publishes. The first row that applies and has a sentence
# in the column counts.
MEANINGS: tuple[tuple[Callable[[Failure], bool], str | None, str | None], ...] = (
    (lambda e: offline() or e.due_to(errors.OfflineModeIsEnabled),
        "HF_HUB_OFFLINE is set and {what} is not in the cache {cache}: unset it, or load once with a network",
        "HF_HUB_OFFLINE is set: unset it to publish"),
    (lambda e: e.due_to(errors.HFValidationError), NO_NAME, NO_NAME),
    (lambda e: e.due_to(errors.GatedRepoError),
        "{repo} is gated: ask for access on its page and set HF_TOKEN", NO_ACCESS),
    (lambda e: e.due_to(errors.DisabledRepoError), None, NO_ACCESS),
    (lambda e: e.due_to(errors.RevisionNotFoundError), "{repo} on {server} has no revision {revision}", None),
    (lambda e: e.status in (402, 403), None,
        "the token may not write to {namespace} on {server} (HTTP {status}): take one that may, or another namespace, "
        "by --repo or MNV3_NAMESPACE"),
    (lambda e: e.due_to(errors.RepositoryNotFoundError),
        "no repository {repo} on {server}, or it is private and HF_TOKEN does not open it",
        "no repository {repo} on {server} that this token may write to"),
    (lambda e: e.due_to(errors.EntryNotFoundError) and e.status == 404,
        "{repo} at {revision} on {server} has no {filename}", None),
    (lambda e: e.status == 401,
        "{server} wants another token than that of HF_TOKEN or `hf auth login`: get a new one, or unset it",
        "{server} refuses the token of HF_TOKEN or `hf auth login`: get a new one that may write"),
    (lambda e: e.status == 409, None, "{repo} on {server} is being changed by somebody else (HTTP 409). {again}"),
    (lambda e: e.status == 412, None,
        "{repo} on {server} was changed meanwhile (HTTP 412): look at what is there, and run it again"),
    (lambda e: e.status == 429,
        "{server} has had too many requests (HTTP 429): wait {wait}, or set HF_TOKEN for a higher limit",
        "{server} has had too many requests (HTTP 429): wait {wait}. {again}"),
    (lambda e: e.status == 400 or "Invalid metadata" in str(e.error), None, "{server} refuses it: {message}"),
    (lambda e: e.due_to(NoAnswer), "cannot fetch {what}{via}: {no_answer}", "{no_answer}. {again}"),
    (lambda e: e.due_to(errors.FileMetadataError),
        "{server} answers without the Hub's headers for {what}: is it a full mirror? ({cause})", None),
    (lambda e: e.due_to(json.JSONDecodeError), NO_JSON, NO_JSON),
    (lambda e: isinstance(e.error, OSError) and e.error.errno and not isinstance(e.error, ConnectionError),
        "cannot write {what} to the cache: {message}. Free some space, or set HF_HOME or cache_dir", None),
    (lambda e: e.status and e.status >= 500, None, "{server} is in trouble (HTTP {status}). {again}"),
    (lambda e: any("xet" in f"{type(cause).__module__} {cause}".lower() for cause in e.chain), None,
        "{server} did not take the files by Xet ({cause}): try HF_HUB_DISABLE_XET=1. {again}"),
    (lambda e: True,
        "cannot fetch {what} from {server}{via}: {cause}", "cannot publish to {server}{via}: {cause}. {again}"),
)  # fmt: skip


def fetching_problem(
    error: Exception, repo: str, filename: str, revision: str | None, cache_dir: str | os.PathLike[str] | None = None
) -> str:
    """Why a file of a repository could not be fetched, in one line, and what to do.

    Args:
        error: What the client raised.
        repo: 'NAMESPACE/NAME'.
        filename: Which file, or what else was asked for, in words.
        revision: The branch, tag or commit; None for `main`.
        cache_dir: Where downloads are kept, if not in the Hub's usual cache.
    """
    revision = revision or "main"
    return _sentence(
        error,
        FETCHING,
        repo=repo,
        filename=filename,
        revision=revision,
        what=f"{filename} of {repo} at {revision}",
        cache=cache_folder(cache_dir),
        usual_wait="some minutes",
    )


def publishing_problem(error: Exception, repo: str) -> str:
    """Why a weights folder could not be published to a repository, in one line, and what to do."""
    return _sentence(
        error,
        PUBLISHING,
        repo=repo,
        namespace=repo.partition("/")[0],
        again="Nothing is published by halves: run it again, what has arrived is not sent twice",
        usual_wait="300 seconds",
    )


def _sentence(error: Exception, column: int, *, usual_wait: str, **names: object) -> str:
    """The sentence of the first row that applies, with `names` filled in."""
    failure, server = Failure(error), endpoint()
    sentence = next(row[column] for row in MEANINGS if row[column] and row[0](failure))
    return sentence.format(
        server=server,
        via=via(server),
        status=failure.status,
        wait=f"{failure.wait:g} seconds" if failure.wait else usual_wait,
        message=TOKEN.sub("***", " ".join(str(error).split())),
        no_answer=next((cause for cause in failure.chain if isinstance(cause, NoAnswer)), None),
        cause=root_cause(error),
        **names,
    )
