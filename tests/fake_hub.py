"""A stand-in for the model hub on loopback: the real one can't be reached where tests run.

It speaks what `huggingface_hub` asks of it – a model's files, their tree, and the files themselves with ETag,
`X-Repo-Commit` and ranges – and can stall in the middle of a file, or refuse.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DEMO = Path(__file__).resolve().parent.parent / "models" / "berth-demo"
WAIT_S = 60.0


@dataclass
class Refusal:
    """How the hub says no: status and its own error code."""

    status: int
    code: str = ""


@dataclass
class FakeHub:
    """The hub's content, how it behaves, and what it was asked."""

    models: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refusal: Refusal | None = None  # to everything
    stall_at: int | None = None  # bytes of a file of weights after which nothing more comes
    claimed_size: int | None = None  # of weights, in the answer to HEAD
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Range
    tokens: set[str | None] = field(default_factory=set)
    stalled: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def downloads(self, name: str) -> list[str | None]:
        """The ranges asked of a file, None for the whole of it."""
        return [part for method, path, part in self.asked if method == "GET" and path.endswith(f"/{name}")]


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    """A hub with the demo model as `berth/demo`."""
    hub = FakeHub(models={"berth/demo": {file.name: file.read_bytes() for file in sorted(DEMO.iterdir())}})

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = _Server(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join(WAIT_S)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that leave in the middle are what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._handle()

    def do_GET(self) -> None:
        self._handle()

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path, self.headers.get("Range")))
        self.hub.tokens.add(self.headers.get("Authorization"))
        if self.hub.refusal is not None:
            self._refuse(self.hub.refusal)
            return
        is_listing = path.startswith("/api/models/")
        model = "/".join(path.removeprefix("/api/models/").lstrip("/").split("/")[:2])
        files = self.hub.models.get(model)
        rest = path.partition(model)[2]
        if files is None:
            self._refuse(Refusal(401, "RepoNotFound"))
        elif "/revision/" in rest and not rest.endswith((COMMIT, "/main")):
            self._refuse(Refusal(404, "RevisionNotFound"))
        elif is_listing:
            self._list(model, files, is_tree="/tree/" in rest)
        else:
            self._file(rest.split("/", 3)[-1], files)

    def _list(self, model: str, files: dict[str, bytes], *, is_tree: bool) -> None:
        if is_tree:
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": _git_id(content)}
                | ({"lfs": _lfs(content)} if _is_weights(name) else {})
                for name, content in files.items()
            ]
            self._json(tree)
        else:
            self._json({"id": model, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]})

    def _file(self, name: str, files: dict[str, bytes]) -> None:
        if name not in files:
            self._refuse(Refusal(404, "EntryNotFound"))
            return
        content = files[name]
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if _is_weights(name):
            self.send_header("X-Linked-Etag", f'"{_sha256(content)}"')
            self.send_header("X-Linked-Size", str(self.hub.claimed_size or len(content)))
        self.send_header("ETag", f'"{_git_id(content)}"')
        self.end_headers()
        if self.command == "GET":
            self._send(content[start:], may_stall=_is_weights(name))

    def _send(self, content: bytes, *, may_stall: bool) -> None:
        if may_stall and self.hub.stall_at is not None:
            self.wfile.write(content[: self.hub.stall_at])
            self.hub.stalled.set()
            self.hub.go_on.wait(WAIT_S)
            content = content[self.hub.stall_at :]
        self.wfile.write(content)

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, refusal: Refusal) -> None:
        self.send_response(refusal.status)
        if refusal.code:
            self.send_header("X-Error-Code", refusal.code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _is_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".gguf"))


@lru_cache
def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@lru_cache
def _git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _lfs(content: bytes) -> dict[str, object]:
    return {"oid": _sha256(content), "size": len(content), "pointerSize": 134}
