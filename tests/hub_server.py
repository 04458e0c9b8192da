"""A stand-in for the Hugging Face Hub on 127.0.0.1, which can misbehave on request.

    python tests/hub_server.py FOLDER

serves the repositories FOLDER/owner/repo and prints the HF_ENDPOINT under which mnv3, timm and `hf download` find them.
A repository is a folder of files, the same at `main` and at whatever commit is asked for; or a folder per commit, named
by its 40 hex digits, with `main` the last by name. Any other file below FOLDER is served as it is, as a plain web
server does. As on the real Hub, weights have the SHA-256 as their ETag, other files git's hash.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import threading
import time
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34  # of `main` in a repository without commits
PAGE = b"<!DOCTYPE html><html><title>Log in</title><p>Please log in to the network</p></html>"
CHUNK = 1 << 16
LFS = (".safetensors", ".bin", ".pth", ".pt")

RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
CDN = re.compile(r"/cdn/(?P<repo>[^/]+/[^/]+)/(?P<revision>[^/]+)/(?P<file>.+)")
API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(/(?P<call>revision|tree)/(?P<revision>[^/]+))?")

FAULTS = {
    "html": "a web page in place of the file",
    "corrupt": "one bit of the file is flipped",
    "truncated": "the file ends half-way, and the Content-Length says so too",
    "cut": "the connection closes half-way through the file",
    "slow": "every 64 KiB takes HubServer.delay seconds",
    "unsized": "no Content-Length",
    "empty": "the size is stated as 0",
    "bare": "none of the Hub's headers",
    "portal": "every request is answered with a web page",
    "gated-401": "a gated repository, without a token",
    "gated-403": "a gated repository, with a token that has no access",
    "bad-token": "the token is refused",
    "busy": "status 503",
}


class Request(NamedTuple):
    """What a client asked for."""

    method: str
    path: str
    range: str | None
    token: str | None


@dataclass
class Fault:
    """A fault and what it still applies to."""

    kind: str
    files: str
    times: float

    def applies(self, file: str) -> bool:
        return self.times > 0 and fnmatch(file, self.files)


class HubServer(ThreadingHTTPServer):
    """The server, on a free port unless one is given. A context manager that runs it in threads.

    Attributes:
        url: The HF_ENDPOINT.
        requests: All requests so far.
        delay: Seconds per 64 KiB under the fault 'slow'.
        linked: Whether files of weights have the X-Linked-* headers, as on the real Hub; not every mirror sends them.
        lfs: Suffixes of the files that git keeps outside, which have the SHA-256 as their ETag.
        redirect: Whether files of weights come from another host name, as from the real Hub's CDN.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, folder: str | os.PathLike, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.folder = Path(folder)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.delay = 0.05
        self.linked = True
        self.lfs = LFS
        self.redirect = False

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.shutdown()
        self.server_close()

    def inject(self, kind: str, *, files: str = "*", times: float = float("inf")) -> None:
        """Add a fault for the files that match, for so many GET requests."""
        if kind not in FAULTS:
            raise ValueError(f"unknown fault {kind!r}: {', '.join(FAULTS)}")
        self.faults.append(Fault(kind, files, times))

    def recover(self) -> None:
        """End all faults, and forget the requests so far."""
        self.faults.clear()
        self.requests.clear()

    def asked(self, method: str = "GET") -> list[str]:
        """The paths of the requests with a method, in order."""
        return [request.path for request in self.requests if request.method == method]

    def commits(self, repo: str) -> list[str]:
        """The commits of a repository that has a folder per commit."""
        return sorted(entry.name for entry in (self.folder / repo).iterdir() if _is_commit(entry.name))

    def snapshot(self, repo: str, revision: str) -> tuple[str, Path] | None:
        """The commit and the folder of a revision, if there is one."""
        commits = self.commits(repo)
        if revision == "main":
            return (commits[-1], self.folder / repo / commits[-1]) if commits else (COMMIT, self.folder / repo)
        if not _is_commit(revision) or (commits and revision not in commits):
            return None
        return revision, self.folder / repo / (revision if commits else "")


def _is_commit(name: str) -> bool:
    return re.fullmatch("[0-9a-f]{40}", name) is not None


@lru_cache
def _etag(file: Path, lfs: bool, size: int, mtime: int) -> str:
    data = file.read_bytes()
    return hashlib.sha256(data).hexdigest() if lfs else _git_hash(data)


def _git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        token = self.headers.get("Authorization")
        self.server.requests.append(Request(self.command, path, self.headers.get("Range"), token))
        try:
            self._answer(path)
        except (BrokenPipeError, ConnectionResetError):  # the client has gone
            self.close_connection = True

    do_HEAD = do_GET

    def log_message(self, format: str, *args) -> None:
        pass

    def _answer(self, path: str) -> None:
        resolve, cdn, api = RESOLVE.fullmatch(path), CDN.fullmatch(path), API.fullmatch(path)
        match = resolve or cdn or api
        if match is None:
            self._send_file(self.server.folder / path.lstrip("/"), path, {}, set())
            return
        repo, revision = match["repo"], match["revision"] or "main"
        file = path if api else match["file"]
        faults = {fault.kind for fault in self.server.faults if fault.applies(file)}
        if "portal" in faults:
            self._send(200, PAGE, {"Content-Type": "text/html"})
        elif "busy" in faults:
            self._send(503, b"try later")
        elif "bad-token" in faults:
            self._error(401, None, "Invalid credentials in Authorization header")
        elif gate := faults & {"gated-401", "gated-403"}:
            self._error(int(gate.pop()[-3:]), "GatedRepo", f"Access to model {repo} is restricted")
        elif not (self.server.folder / repo).is_dir():
            self._error(401, "RepoNotFound", "Repository not found")
        elif (snapshot := self.server.snapshot(repo, revision)) is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif api:
            self._send_info(repo, match["call"], *snapshot)
        else:
            commit, folder = snapshot
            self._send_repo_file(repo, commit, folder / file, file, bool(resolve), faults)

    def _send_info(self, repo: str, call: str | None, commit: str, folder: Path) -> None:
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        names = [file.relative_to(folder).as_posix() for file in files]
        info = {"_id": "0", "id": repo, "modelId": repo, "sha": commit, "private": False, "tags": [], "downloads": 0}
        info["siblings"] = [{"rfilename": name} for name in names]
        tree = [
            {"type": "file", "path": name, "size": file.stat().st_size, "oid": _git_hash(file.read_bytes())}
            for name, file in zip(names, files, strict=True)
        ]
        body = json.dumps(tree if call == "tree" else info).encode()
        self._send(200, body, {"Content-Type": "application/json"})

    def _send_repo_file(self, repo: str, commit: str, path: Path, name: str, resolve: bool, faults: set[str]) -> None:
        headers = {} if "bare" in faults else {"X-Repo-Commit": commit}
        lfs = path.suffix in self.server.lfs
        if not path.is_file():
            self._error(404, "EntryNotFound", "Entry not found", headers)
            return
        if "bare" not in faults:
            stat = path.stat()
            etag = _etag(path, lfs, stat.st_size, stat.st_mtime_ns)
            headers["ETag"] = f'"{etag}"'
            if lfs and self.server.linked:
                size = 0 if "empty" in faults else stat.st_size
                headers |= {"X-Linked-ETag": f'"{etag}"', "X-Linked-Size": str(size)}
            if faults & {"unsized"}:
                headers.pop("X-Linked-Size", None)
        if resolve and self.server.redirect and lfs:
            host = f"http://localhost:{self.server.server_port}"
            self._send(302, b"", headers | {"Location": f"{host}/cdn/{repo}/{commit}/{name}"})
            return
        self._send_file(path, name, headers, faults)

    def _send_file(self, path: Path, name: str, headers: dict[str, str], faults: set[str]) -> None:
        faults = faults | {fault.kind for fault in self.server.faults if fault.applies(name)}
        if not path.is_file() or self.server.folder.resolve() not in path.resolve().parents:
            self._send(404, PAGE, {"Content-Type": "text/html"})
            return
        body = PAGE if "html" in faults else path.read_bytes()
        if "corrupt" in faults:
            body = body[:-1] + bytes([body[-1] ^ 1])
        if "truncated" in faults:
            body = body[: len(body) // 2]
        if self.command == "GET":
            for fault in self.server.faults:
                fault.times -= fault.applies(name)
        self._send(200, body, headers | {"Accept-Ranges": "bytes"}, faults)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, faults: set[str] = frozenset()):
        start, stop = 0, len(body) // 2 if "cut" in faults else len(body)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if status == 200 and wanted:
            status, start = 206, int(wanted[1])
            last = min(int(wanted[2] or len(body)), len(body) - 1)
            headers = (headers or {}) | {"Content-Range": f"bytes {start}-{last}/{len(body)}"}
            body, stop = body[: last + 1], min(stop, last + 1)
        self.send_response(status)
        if "empty" in faults and self.command == "HEAD":
            self.send_header("Content-Length", "0")
        elif "unsized" not in faults:
            self.send_header("Content-Length", str(len(body) - start))
        for header, value in (headers or {}).items():
            self.send_header(header, value)
        self.send_header("Connection", "close")  # so that no client keeps a connection to a server of an earlier test
        self.end_headers()
        if self.command == "HEAD":
            return
        for offset in range(start, stop, CHUNK):
            if "slow" in faults:
                time.sleep(self.server.delay)
            self.wfile.write(body[offset : min(offset + CHUNK, stop)])

    def _error(self, status: int, code: str | None, message: str, headers: dict[str, str] | None = None) -> None:
        error = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._send(status, b"", (headers or {}) | error)


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a folder of repositories as the Hugging Face Hub does.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="with owner/repo/... in it")
    parser.add_argument("--port", type=int, default=0, help="a free one by default")
    parser.add_argument("--fault", choices=FAULTS, action="append", default=[], help="misbehave; may be given twice")
    args = parser.parse_args()
    with HubServer(args.folder, args.port) as server:
        for kind in args.fault:
            server.inject(kind)
        print(f"export HF_ENDPOINT={server.url}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
