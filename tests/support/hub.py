"""A Hugging Face hub that lives on the loopback for the length of a test, with the failures that real ones have."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".gguf", ".bin")
"""What the hub keeps as large files, with SHA-256; others have git's checksum."""


class Hub(ThreadingHTTPServer):
    """The routes that a download asks for: revision, tree, file.

    Attributes:
        repositories: name -> file -> content. All have the branch ``main`` and the tag ``v1``.
        token: what private repositories (whose names begin with ``private/``) are opened with.
        asked: (method, path, Range header or None) of every request.
        cut: file -> how many bytes of it come before the connection breaks, once.
        damage: file -> how many times its first byte is sent wrong.
        short: files of which a byte less comes, as if that were all.
        hold: files of which the second half waits for ``go_on``; ``holding`` is set when one does.
        no_ranges: the whole file is sent, whatever part was asked for.
        status: answer to everything, if it is not None.
        without_checksums: the listing does not say what the files are.
        checksums: file -> what the listing says it is, instead.
    """

    daemon_threads = True

    def __init__(self, repositories: Mapping[str, Mapping[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = {name: dict(files) for name, files in repositories.items()}
        self.token = "hf_secret"  # noqa: S105
        self.asked: list[tuple[str, str, str | None]] = []
        self.cut: dict[str, int] = {}
        self.damage: dict[str, int] = {}
        self.short: set[str] = set()
        self.hold: set[str] = set()
        self.holding = threading.Event()
        self.go_on = threading.Event()
        self.no_ranges = False
        self.status: int | None = None
        self.without_checksums = False
        self.checksums: dict[str, str] = {}

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT has to say."""
        return f"http://127.0.0.1:{self.server_port}"

    def sent(self) -> list[tuple[str, str | None]]:
        """The files that were asked for, in order, and from where on."""
        return [
            (path.rpartition("/")[2], part)
            for method, path, part in self.asked
            if method == "GET" and "/resolve/" in path
        ]

    def handle_error(self, *arguments: Any) -> None:
        """Say nothing of clients that leave."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(*arguments)


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        hub = self.server
        hub.asked.append((self.command, path, self.headers["Range"]))
        if hub.status is not None:
            self._send(hub.status, b"", {"Retry-After": "0"})
            return
        parts = path.removeprefix("/api/models").split("/")
        repository = "/".join(parts[1:3])
        action, revision = (*parts[3:5], "revision", "main")[:2] if len(parts) < 5 else parts[3:5]
        name = "/".join(parts[5:])
        authorized = self.headers["Authorization"]
        if authorized not in (None, f"Bearer {hub.token}"):
            self._send(401, b"{}", {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif repository.startswith("gated/"):
            self._send(403 if authorized else 401, b"{}", {"X-Error-Code": "GatedRepo"})
        elif repository.startswith("private/") and not authorized:
            self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif repository not in hub.repositories:
            self._send(404 if authorized else 401, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", "v1", COMMIT):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif action == "resolve":
            self._send_file(hub.repositories[repository], name)
        elif action == "tree":
            self._json(_tree(hub.repositories[repository]))
        else:
            siblings = _siblings(hub.repositories[repository], bare=hub.without_checksums)
            for sibling in siblings:
                if sibling["rfilename"] in hub.checksums:
                    sibling["lfs"]["sha256"] = hub.checksums[sibling["rfilename"]]
            self._json({"id": repository, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})

    def _send_file(self, files: Mapping[str, bytes], name: str) -> None:
        if name not in files:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        hub, data = self.server, files[name]
        headers = {
            "ETag": f'"{hub.checksums.get(name) or checksum(name, data)}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        if name in hub.short:
            data = data[:-1]
        if self.command == "GET" and hub.damage.get(name, 0):
            hub.damage[name] -= 1
            data = bytes([data[0] ^ 1]) + data[1:]
        status, start = 200, 0
        if self.headers["Range"] is not None and not hub.no_ranges:
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            if start >= len(data):
                self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            status, headers["Content-Range"] = 206, f"bytes {start}-{len(data) - 1}/{len(data)}"
        stop = None
        if self.command == "GET" and name in hub.cut:
            stop = max(0, hub.cut.pop(name) - start)
        self._send(status, data[start:], headers, stop=stop, hold=name in hub.hold)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(
        self, status: int, data: bytes, headers: Mapping[str, str], *, stop: int | None = None, hold: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if hold and not self.server.go_on.is_set():
            self.wfile.write(data[: len(data) // 2])
            self.server.holding.set()
            self.server.go_on.wait(60)
            data = data[len(data) // 2 :]
        self.wfile.write(data[:stop])

    def log_message(self, *_: Any) -> None:
        """Say nothing on stderr."""


def checksum(name: str, data: bytes) -> str:
    """What the hub says that a file is."""
    if name.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # noqa: S324


def _siblings(files: Mapping[str, bytes], *, bare: bool) -> list[dict[str, Any]]:
    if bare:
        return [{"rfilename": name} for name in files]
    siblings: list[dict[str, Any]] = []
    for name, data in files.items():
        sibling: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": checksum("pointer", data)}
        if name.endswith(LARGE):
            sibling["lfs"] = {"sha256": checksum(name, data), "size": len(data), "pointerSize": 130}
        siblings.append(sibling)
    return siblings


def _tree(files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for name, data in files.items():
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": checksum("pointer", data)}
        if name.endswith(LARGE):
            entry["lfs"] = {"oid": checksum(name, data), "size": len(data), "pointerSize": 130}
        entries.append(entry)
    return entries


def ask_here(monkeypatch: pytest.MonkeyPatch, hub: Hub, cache: Path) -> None:
    """Have this process download from ``hub`` into ``cache``, with no token."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    # Old versions have a copy.
    monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)


@contextmanager
def serving(repositories: Mapping[str, Mapping[str, bytes]]) -> Iterator[Hub]:
    """A hub with these repositories, until the end of the block."""
    hub = Hub(repositories)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        hub.shutdown()
        thread.join()
        hub.server_close()
