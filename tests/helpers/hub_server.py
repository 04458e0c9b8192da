"""A stand-in for the Hugging Face Hub on 127.0.0.1, which can misbehave on request.

    python tests/helpers/hub_server.py FOLDER

serves the repositories FOLDER/owner/repo and prints the HF_ENDPOINT under which mnv3, timm and `hf download` find them.
A repository is a folder of files, the same at `main` and at whatever commit is asked for; or a folder per commit, named
by its 40 hex digits, with `main` the last by name. Any other file below FOLDER is served as it is, as a plain web
server does. As on the real Hub, weights have the SHA-256 as their ETag, other files git's hash.

It takes what the client sends to publish, too: create_repo, create_branch, preupload, LFS objects (batch, upload,
verify), commit. A repository that was created so has a folder per commit, numbered. Any token opens everything, unless
`HubServer.tokens` says what which may write to. It speaks plain LFS, not Xet: set HF_HUB_DISABLE_XET=1 for uploads.
"""

import argparse
import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import struct
import threading
import time
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34  # of `main` in a repository without commits
PAGE = b"<!DOCTYPE html><html><title>Log in</title><p>Please log in to the network</p></html>"
CHUNK = 1 << 16
LOCK = threading.Lock()  # one change at a time
LFS = (".safetensors", ".bin", ".pth", ".pt")

RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
CDN = re.compile(r"/cdn/(?P<repo>[^/]+/[^/]+)/(?P<revision>[^/]+)/(?P<file>.+)")
API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(/(?P<call>revision|tree)/(?P<revision>[^/]+))?")
WRITE = re.compile(
    r"/api/models/(?P<repo>[^/]+/[^/]+)/(?P<call>preupload|commit|branch|paths-info)/(?P<revision>[^/]+)"
)
BATCH = re.compile(r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch")
OBJECT = re.compile(r"/lfs/(?P<repo>[^/]+/[^/]+)/(?P<oid>[0-9a-f]{64})(?P<verify>/verify)?")
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}")

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
    "limited": "status 429",
    "later": "status 503, and Retry-After: HubServer.later",
    "silent": "no answer for HubServer.silence seconds, and then the connection closes",
    "reset": "the connection is reset",
    "forbidden": "status 403",
    "cut-upload": "the connection closes half-way through what the client sends",
    "no-answer": "what was asked is done, and the connection closes before the answer",
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
        later: Seconds that 'limited' and 'later' ask a client to wait.
        silence: Seconds of 'silent'.
        linked: Whether files of weights have the X-Linked-* headers, as on the real Hub; not every mirror sends them.
        lfs: Suffixes of the files that git keeps outside, which have the SHA-256 as their ETag.
        redirect: Whether files of weights come from another host name, as from the real Hub's CDN.
        tokens: The namespaces that each token may write to; None for any token and namespace.
        private: Repositories that only a token which may write to them opens.
        branches: Repository -> branch -> commit, besides `main`.
        objects: Repository -> LFS objects that it has, by SHA-256.
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
        self.later = 57
        self.silence = 20.0
        self.linked = True
        self.lfs = LFS
        self.redirect = False
        self.tokens: dict[str, set[str]] | None = None
        self.private: set[str] = set()
        self.branches: dict[str, dict[str, str]] = {}
        self.objects: dict[str, dict[str, bytes]] = {}

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.shutdown()
        self.server_close()

    def inject(self, kind: str, *, files: str = "*", times: float = float("inf")) -> None:
        """Add a fault for the files (or paths of API calls) that match, for so many requests other than HEAD."""
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
        if head := self.branches.get(repo, {}).get(revision):
            return head, self.folder / repo / head
        if revision == "main":
            return (commits[-1], self.folder / repo / commits[-1]) if commits else (COMMIT, self.folder / repo)
        if not _is_commit(revision) or (commits and revision not in commits):
            return None
        return revision, self.folder / repo / (revision if commits else "")

    def may_write(self, token: str | None, namespace: str) -> bool:
        """Whether a token (an Authorization header) has the right to."""
        if self.tokens is None:
            return token is not None
        return namespace in self.tokens.get((token or "").removeprefix("Bearer "), ())

    def commit(self, repo: str, branch: str, files: dict[str, bytes], deleted: set[str] = frozenset()) -> str:
        """A new commit, whole before it has its name."""
        number = f"{len(self.commits(repo)) + 1:07x}" + os.urandom(17).hex()[:33]  # the last by name is the newest
        found = self.snapshot(repo, branch) if self.commits(repo) else None
        draft = self.folder / repo / ".draft"
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(found[1], draft) if found else draft.mkdir()
        for name in deleted:
            (draft / name).unlink()
        for name, content in files.items():
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            (draft / name).write_bytes(content)
        if branch != "main":
            self.branches[repo].setdefault("main", self.snapshot(repo, "main")[0])
        if branch in self.branches.get(repo, {}):
            self.branches[repo][branch] = number
        draft.rename(draft.with_name(number))
        return number


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

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, format: str, *args) -> None:
        pass

    def _answer(self, path: str) -> None:
        if self.command in ("POST", "PUT"):
            self._take(path)
            return
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
        elif "later" in faults:
            self._send(503, b"try later", {"Retry-After": str(self.server.later)})
        elif "silent" in faults:
            time.sleep(self.server.silence)
            raise ConnectionResetError
        elif "reset" in faults:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            raise ConnectionResetError
        elif "bad-token" in faults:
            self._error(401, None, "Invalid credentials in Authorization header")
        elif gate := faults & {"gated-401", "gated-403"}:
            self._error(int(gate.pop()[-3:]), "GatedRepo", f"Access to model {repo} is restricted")
        elif "limited" in faults:
            self._limited()
        elif not (self.server.folder / repo).is_dir() or self._hidden(repo):
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
        info = {"_id": "0", "id": repo, "modelId": repo, "sha": commit, "tags": [], "downloads": 0}
        info["private"] = repo in self.server.private
        info["siblings"] = [{"rfilename": name} for name in names]
        tree = [self._entry(file, name) for name, file in zip(names, files, strict=True)]
        body = json.dumps(tree if call == "tree" else info).encode()
        self._send(200, body, {"Content-Type": "application/json"})

    def _entry(self, file: Path, name: str) -> dict:
        data = file.read_bytes()
        entry = {"type": "file", "path": name, "size": len(data), "oid": _git_hash(data)}
        if file.suffix in self.server.lfs:
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return entry

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

    # --- what a client sends

    def _hidden(self, repo: str) -> bool:
        token = self.headers.get("Authorization")
        return repo in self.server.private and not self.server.may_write(token, repo.split("/")[0])

    def _limited(self) -> None:
        self._send(
            429,
            b"{}",
            {"RateLimit": f'"api";r=0;t={self.server.later}', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'},
        )

    def _json(self, content: object, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _body(self, faults: set[str]) -> bytes:
        """What the client sends, or an end of the connection in the middle of it."""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
                if "cut-upload" in faults:
                    raise ConnectionResetError
            self.rfile.readline()
            return body
        length = int(self.headers.get("Content-Length") or 0)
        if "cut-upload" in faults:
            self.rfile.read(length // 2)
            raise ConnectionResetError
        return self.rfile.read(length)

    def _take(self, path: str) -> None:
        faults = [fault for fault in self.server.faults if fault.applies(path)]
        for fault in faults:
            fault.times -= 1
        kinds = {fault.kind for fault in faults}
        body = self._body(kinds)
        write, batch, blob = WRITE.fullmatch(path), BATCH.fullmatch(path), OBJECT.fullmatch(path)
        if "busy" in kinds:
            self._send(503, b"try later")
        elif "limited" in kinds:
            self._limited()
        elif "portal" in kinds:
            self._send(200, PAGE, {"Content-Type": "text/html"})
        elif blob and self.command == "PUT":  # the address is a secret of its own, as a presigned one of S3
            self._take_object(blob["repo"], blob["oid"], body)
        elif path == "/api/validate-yaml":
            self._validate(json.loads(body))
        elif match := write or batch or blob:
            call = match["call"] if write else "batch" if batch else "verify"
            repo = match["repo"]
            reads = call == "paths-info"
            if not reads and self._refused(repo.split("/")[0], kinds):
                return
            if not (self.server.folder / repo).is_dir() or self._hidden(repo):
                self._error(404, "RepoNotFound", "Repository not found")
                return
            with LOCK:
                getattr(self, f"_{call.replace('-', '_')}")(match, body, kinds)
        elif path == "/api/repos/create":
            self._create(json.loads(body), kinds)
        else:
            self._json({"error": f"no such call: {path}"}, 404)

    def _refused(self, namespace: str, faults: set[str]) -> bool:
        token = self.headers.get("Authorization")
        known = self.server.tokens is None or (token or "").removeprefix("Bearer ") in self.server.tokens
        if "bad-token" in faults or (token and not known):
            self._error(401, None, "Invalid credentials in Authorization header")
        elif not token:
            self._error(401, None, "Invalid username or password.")
        elif "forbidden" in faults or not self.server.may_write(token, namespace):
            self._error(403, None, f'You don\'t have the rights to write to the namespace "{namespace}"')
        else:
            return False
        return True

    def _create(self, wanted: dict, faults: set[str]) -> None:
        namespace = wanted["organization"] or "me"
        repo = f"{namespace}/{wanted['name']}"
        if self._refused(namespace, faults):
            return
        if not NAME.fullmatch(wanted["name"]) or not NAME.fullmatch(namespace):
            self._json({"error": "Invalid repo name"}, 400)
        elif (self.server.folder / repo).is_dir():
            error = {"error": "You already created this model repo", "url": f"{self.server.url}/{repo}"}
            self._json(error, 409)
        else:
            (self.server.folder / repo).mkdir(parents=True)
            if wanted.get("visibility") == "private":
                self.server.private.add(repo)
            self.server.commit(repo, "main", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
            self._done({"url": f"{self.server.url}/{repo}", "name": repo}, faults)

    def _done(self, content: object, faults: set[str]) -> None:
        if "no-answer" in faults:
            raise ConnectionResetError
        self._json(content)

    def _validate(self, wanted: dict) -> None:
        import yaml

        try:
            data = yaml.safe_load(wanted["content"].split("---")[1])
            errors = [] if isinstance(data.get("license"), str) else [{"message": '"license" must be a string'}]
        except (yaml.YAMLError, IndexError, AttributeError) as error:
            errors = [{"message": str(error)}]
        self._json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _branch(self, match: re.Match, body: bytes, faults: set[str]) -> None:
        repo, branch = match["repo"], match["revision"]
        if branch == "main" or branch in self.server.branches.get(repo, {}):
            self._json({"error": "Reference already exists"}, 409)
            return
        self.server.branches.setdefault(repo, {})[branch] = self.server.snapshot(repo, "main")[0]
        self._done({}, faults)

    def _at(self, match: re.Match) -> tuple[str, Path] | None:
        found = self.server.snapshot(match["repo"], match["revision"])
        if found is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {match['revision']}")
        return found

    def _paths_info(self, match: re.Match, body: bytes, faults: set[str]) -> None:
        if found := self._at(match):
            names = parse_qs(body.decode())["paths"]
            self._json([self._entry(found[1] / name, name) for name in names if (found[1] / name).is_file()])

    def _preupload(self, match: re.Match, body: bytes, faults: set[str]) -> None:
        if not (found := self._at(match)):
            return
        files = []
        for file in json.loads(body)["files"]:
            path = found[1] / file["path"]
            mode = "lfs" if path.suffix in self.server.lfs else "regular"
            answer = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            if path.is_file():
                entry = self._entry(path, file["path"])
                answer["oid"] = entry.get("lfs", entry)["oid"]
            files.append(answer)
        self._json({"files": files})

    def _batch(self, match: re.Match, body: bytes, faults: set[str]) -> None:
        repo, objects = match["repo"], []
        for wanted in json.loads(body)["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.server.objects.get(repo, {}):
                href = f"{self.server.url}/lfs/{repo}/{wanted['oid']}"
                answer["actions"] = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            objects.append(answer)
        self._json({"transfer": "basic", "objects": objects})

    def _take_object(self, repo: str, oid: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            self._json({"error": "not the object that was announced"}, 400)
            return
        self.server.objects.setdefault(repo, {})[oid] = body
        self._send(200, b"")

    def _verify(self, match: re.Match, body: bytes, faults: set[str]) -> None:
        found = self.server.objects.get(match["repo"], {}).get(match["oid"])
        whole = found is not None and len(found) == json.loads(body)["size"]
        self._json({} if whole else {"error": "no such object"}, 200 if whole else 404)

    def _commit(self, match: re.Match, body: bytes, faults: set[str]) -> None:
        if not (found := self._at(match)):
            return
        repo, files, deleted = match["repo"], {}, set()
        for line in body.splitlines():
            key, value = (item := json.loads(line))["key"], item["value"]
            if key == "header" and value.get("parentCommit", found[0]) != found[0]:
                self._json({"error": "A commit has happened since. Please refresh and try again."}, 412)
                return
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.server.objects.get(repo, {}):
                    self._json({"error": f"{value['path']} points to an LFS object that does not exist"}, 400)
                    return
                files[value["path"]] = self.server.objects[repo][value["oid"]]
            elif key == "deletedFile":
                deleted.add(value["path"])
        commit = self.server.commit(repo, match["revision"], files, deleted)
        url = f"{self.server.url}/{repo}/commit/{commit}"
        self._done({"success": True, "commitOid": commit, "commitUrl": url}, faults)

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
