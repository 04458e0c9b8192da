"""How long a server may keep a download waiting: a minute of silence, with one line that says what is waited for.

The Hub's client tries a request six times with pauses between, up to a minute each, then does so again at other calls,
and obeys any `Retry-After`: minutes, or an hour, without a word. It has no setting for all of it, but lets its HTTP
clients be made by a function of ours (`set_client_factory`; before 1.0, `configure_http_backend`): these watch the time
in which no request was answered. Requests outside of `waiting_for` and uploads are left alone.
"""

import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

TIMEOUT = "MNV3_TIMEOUT"  # the environment variable
DEFAULT = 60.0  # seconds
NOTICE = 3.0  # seconds of silence before the line
TRIED_AGAIN = (408, 429, 500, 502, 503, 504)  # by the client
FACTORIES = (("set_client_factory", "_GLOBAL_CLIENT_FACTORY"), ("configure_http_backend", "_GLOBAL_BACKEND_FACTORY"))


class NoAnswer(RuntimeError):
    """A server kept a download waiting for too long; `response` is its last, if it sent one."""

    def __init__(self, message: str, response: Any = None) -> None:
        super().__init__(message)
        self.response = response


def timeout() -> float:
    """Seconds of silence that the environment now allows.

    Raises:
        ValueError: MNV3_TIMEOUT is no number above 0.
    """
    text = os.environ.get(TIMEOUT) or str(DEFAULT)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise ValueError(f"{TIMEOUT}={text!r}: expected seconds, a number above 0")
    return seconds


@contextmanager
def waiting_for(server: str) -> Iterator[None]:
    """Bound the silence of a server in the block.

    Args:
        server: Its address, for messages.

    Raises:
        NoAnswer: It was silent for too long, or asks to be left alone for longer.
    """
    wait = _Wait(server, timeout())
    _watch_clients()
    _waits.append(wait)
    try:
        yield
    finally:
        _waits.remove(wait)


_waits: list["_Wait"] = []  # of all threads: the client downloads in threads of its own


class _Wait:
    """The silence of a server: since when, and why."""

    def __init__(self, server: str, limit: float) -> None:
        self.server, self.limit = server, limit
        self.since: float | None = None
        self.reason = "no answer"
        self.response: Any = None  # the last, if it was one of `TRIED_AGAIN`
        self.announced = False

    def left(self) -> float:
        """Seconds that are left, from the first request without an answer on."""
        if self.since is None:
            self.since = time.monotonic()
        return self.limit - (time.monotonic() - self.since)

    def announce(self) -> None:
        """Log what is waited for, once."""
        if not self.announced:
            self.announced = True
            logging.getLogger("mnv3").warning(
                "waiting for %s (%s), %g s at most; %s=SECONDS sets another limit",
                self.server,
                self.reason,
                self.limit,
                TIMEOUT,
            )

    def give_up(self) -> None:
        """Raise NoAnswer."""
        raise NoAnswer(
            f"no answer from {self.server} within {self.limit:g} s ({self.reason}): try again later, or wait longer by "
            f"{TIMEOUT}=SECONDS",
            self.response,
        )

    def send(self, send: Callable[..., Any], request: Any, **options: Any) -> Any:
        """Send one request of a client, within what is left."""
        left = self.left()
        if left <= 0:
            self.give_up()
        _limit(request, options, left)
        notice = threading.Timer(max(0.0, min(NOTICE, self.limit / 2) - (self.limit - left)), self.announce)
        notice.daemon = True
        notice.start()
        try:
            response = send(request, **options)
        except Exception as error:
            self.reason, self.response = str(error).strip().split("\n")[0][:200] or type(error).__name__, None
            if self.left() <= 0:
                self.give_up()
            raise
        finally:
            notice.cancel()
        if response.status_code not in TRIED_AGAIN:
            self.since = None
            return response
        self.reason, self.response = f"HTTP {response.status_code}", response
        asked = seconds_asked(response)
        if asked > NOTICE:
            self.reason += f", asks for {asked:g} s"
            self.announce()
        if asked > self.left():
            self.give_up()
        return response


def seconds_asked(response: Any) -> float:
    """How long a response asks not to be asked again, in seconds; 0 where it does not say."""
    if response is None:
        return 0.0
    reset = re.search(r"\bt=(\d{1,9})", response.headers.get("RateLimit", ""))
    if reset and response.status_code == 429:
        return float(reset[1])
    after = response.headers.get("Retry-After", "")
    return float(after) if re.fullmatch(r"\d{1,9}", after) else 0.0


def _limit(request: Any, options: dict[str, Any], seconds: float) -> None:
    """Let a request wait no longer than so many seconds for the next byte: httpx's timeouts, or those of requests."""

    def least(limit: float | None) -> float:
        return seconds if limit is None else min(limit, seconds)

    if hasattr(request, "extensions"):
        limits = request.extensions.get("timeout") or dict.fromkeys(("connect", "read", "write", "pool"))
        request.extensions = {**request.extensions, "timeout": {key: least(limit) for key, limit in limits.items()}}
    else:
        limits = options.get("timeout")
        options["timeout"] = tuple(map(least, limits)) if isinstance(limits, tuple) else least(limits)


def _watch_clients() -> None:
    """Let the Hub's client make watched HTTP clients from now on, around the factory that it has."""
    from huggingface_hub.utils import _http

    for setter, name in FACTORIES:
        factory = getattr(_http, name, None)
        if factory and hasattr(_http, setter) and not hasattr(factory, "watched"):
            getattr(_http, setter)(_watched(factory))
            return


def _watched(factory: Callable[[], Any]) -> Callable[[], Any]:
    def make() -> Any:
        client = factory()
        plain = client.send

        def send(request: Any, **options: Any) -> Any:
            if not _waits or request.method not in ("GET", "HEAD"):
                return plain(request, **options)
            return _waits[-1].send(plain, request, **options)

        client.send = send
        return client

    make.watched = factory
    return make
