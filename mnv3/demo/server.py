"""A page on this machine, with the headers that let a browser use threads."""

import os
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

HOST = "127.0.0.1"
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cache-Control": "no-cache",
}
TYPES = {  # whatever this system's own table says
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".wasm": "application/wasm",
}


class _Handler(SimpleHTTPRequestHandler):
    extensions_map = SimpleHTTPRequestHandler.extensions_map | TYPES

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Requests are nothing that a user waits to read."""


def server(folder: str | os.PathLike[str], port: int = 0) -> ThreadingHTTPServer:
    """A server of a folder on 127.0.0.1, to be closed.

    Args:
        folder: What it serves.
        port: 0 for one that is free.

    Raises:
        ValueError: The port is in use, or no one may use it.
    """
    try:
        return ThreadingHTTPServer((HOST, port), partial(_Handler, directory=os.fspath(folder)))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "expected a number up to 65535"
        raise ValueError(f"--port {port}: {reason}: choose another one") from None


def url_of(server: ThreadingHTTPServer) -> str:
    """The address of what it serves."""
    return f"http://{HOST}:{server.server_port}/"
