"""A model repository on loopback that speaks as much of Hugging Face's HTTP API as `bramble model pull` uses."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", "v1", COMMIT)


@dataclass
class Asked:
    """One request that came."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class ModelRepository:
    """What is served, how it misbehaves, and what was asked.

    Attributes:
        files: contents by path, of the one repository ``name``.
        declared: hash that is declared for a path, where it is not the true one; empty for none.
        refuse: status and ``X-Error-Code`` for every request of the API.
        cut_after: so many bytes of a body are sent, then the connection ends, and later bodies are refused with 503;
            or come in full after so many ``cuts``.
        silent: requests of the API are not answered before the server ends.
    """

    name: str = "grower/berry-GGUF"
    files: dict[str, bytes] = field(default_factory=dict)
    declared: dict[str, str] = field(default_factory=dict)
    refuse: tuple[int, str] | None = None
    cut_after: int | None = None
    ranges: bool = True
    silent: bool = False
    asked: list[Asked] = field(default_factory=list)
    url: str = ""
    store: str = ""
    """Where the bytes lie: another host, as with the real one."""
    ending: threading.Event = field(default_factory=threading.Event)
    cuts: int | None = None
    stall: bool = False
    """After ``cut_after`` bytes nothing more comes, and the connection stays."""
    stalled: threading.Event = field(default_factory=threading.Event)
    page: bytes = b""
    """Answers every request, as the log-in page of a network does."""

    def sha256(self, path: str) -> str:
        return self.declared.get(path, hashlib.sha256(self.files[path]).hexdigest())

    def bodies(self) -> list[Asked]:
        """Give the requests for bytes of a file."""
        return [one for one in self.asked if one.method == "GET" and one.path.startswith("/bytes/")]

    @contextmanager
    def serving(self) -> Iterator[ModelRepository]:
        """Answer on a free port of loopback while the block runs."""
        repository = self

        class Handler(_Handler):
            served = repository

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        server.handle_error = lambda *_who: None  # type: ignore[method-assign] # a client that leaves is no news
        self.url = f"http://127.0.0.1:{server.server_port}"
        self.store = f"http://localhost:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), name="model-repository")
        thread.start()
        try:
            yield self
        finally:
            self.ending.set()
            server.shutdown()
            thread.join()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    served: ModelRepository
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, *_arguments: object) -> None:
        pass

    def _answer(self) -> None:
        repository, path = self.served, unquote(urlsplit(self.path).path)
        repository.asked.append(Asked(self.command, path, {key.lower(): value for key, value in self.headers.items()}))
        if path.startswith("/bytes/"):
            self._send_bytes(repository.files[path.removeprefix("/bytes/")])
            return
        if repository.page:
            self._say(200, repository.page, {"Content-Type": "text/html"})
            return
        if repository.silent:
            repository.ending.wait(20)
            self.close_connection = True
            return
        if repository.refuse is not None:
            self._say(repository.refuse[0], b"", {"X-Error-Code": repository.refuse[1]})
            return
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path)
        if found and found[1] != repository.name:
            self._say(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif found and found[2] not in {None, *REVISIONS}:
            self._say(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif found:
            rows = [self._row(name, data) for name, data in repository.files.items()]
            about = {"id": repository.name, "sha": COMMIT, "siblings": rows}
            self._say(200, json.dumps(about).encode(), {"Content-Type": "application/json"})
        else:
            self._resolve(path)

    def _row(self, name: str, data: bytes) -> dict[str, object]:
        row: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": "b" * 40}
        if sha256 := self.served.sha256(name):
            row["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 134}
        return row

    def _resolve(self, path: str) -> None:
        found = re.fullmatch(rf"/{self.served.name}/resolve/(?:{'|'.join(REVISIONS)})/(.+)", path)
        if not found or found[1] not in self.served.files:
            self._say(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        headers = {
            "X-Repo-Commit": COMMIT,
            "X-Linked-Size": str(len(self.served.files[found[1]])),
            "X-Linked-Etag": f'"{self.served.sha256(found[1]) or "e" * 40}"',
            "Location": f"{self.served.store}/bytes/{found[1]}",
        }
        self._say(302, b"", headers)

    def _send_bytes(self, data: bytes) -> None:
        repository = self.served
        if repository.cuts is None and len(repository.bodies()) > 1 and repository.cut_after is not None:
            self._say(503, b"", {})
            return
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and repository.ranges:
            start = int(asked[1])
        self.send_response(206 if asked and repository.ranges else 200)
        self.send_header("Content-Length", str(len(data) - start))
        if asked and repository.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if repository.cut_after is not None and repository.cuts != 0:
            repository.cuts = None if repository.cuts is None else repository.cuts - 1
            self.wfile.write(data[start : start + repository.cut_after])
            if repository.stall:
                self.wfile.flush()
                repository.stalled.set()
                repository.ending.wait(20)
            self.close_connection = True
        else:
            self.wfile.write(data[start:])

    def _say(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
