"""Names of models to directories, with a Hugging Face hub that lives on the loopback for the length of a test."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from windlass.errors import LoadError
from windlass.weights import resolve_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"\x02\0\0\0\0\0\0\0{}",
    "params_shard_0.bin": b"shard",
    "tokenizer.model": b"sentencepiece",
    "chat_template.jinja": b"{{ messages }}",
    "merges.txt": b"a b",
    "pytorch_model.bin": b"a pickle",
    "README.md": b"# words",
    "consolidated.safetensors": b"the same once more",
    "original/params.json": b"{}",
}
WANTED = set(FILES) - {"pytorch_model.bin", "README.md", "consolidated.safetensors", "original/params.json"}


class Hub(BaseHTTPRequestHandler):
    """The routes that a snapshot download asks for: revision, tree, file."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        server: Any = self.server
        server.asked.append(path)
        repository = "org/gated" if "/org/gated" in path else "org/small"
        if repository not in path:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif repository == "org/gated":
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif path.startswith("/api/models/org/small/revision/"):
            if path.rpartition("/")[2] not in ("main", "v1", COMMIT):
                self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
                return
            siblings = [{"rfilename": name} for name in FILES]
            self._json({"id": "org/small", "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})
        elif path.startswith("/api/models/org/small/tree/"):
            self._json(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}  # noqa: S324
                    for name, data in FILES.items()
                ]
            )
        elif path.startswith(f"/org/small/resolve/{COMMIT}/"):
            data = FILES[path.removeprefix(f"/org/small/resolve/{COMMIT}/")]
            headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}  # noqa: S324
            self._send(200, data, headers, body=body)
        else:
            self._send(404, b"{}", {})

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: dict[str, str], *, body: bool = True) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing on stderr."""


@pytest.fixture
def hub() -> Iterator[Any]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


SCRIPT = """
import sys
from windlass.errors import LoadError
from windlass.weights.hub import resolve_model
assert "huggingface_hub" not in sys.modules
try:
    print(resolve_model(sys.argv[1]))
except LoadError as error:
    print("LoadError:", error)
"""


def resolve(home: Path, model: str, endpoint: str, **environment: str) -> str:
    """What ``resolve_model`` says in a process of its own; huggingface_hub reads its environment when imported."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, model],
        env={**inherited, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, "NO_PROXY": "*", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "\r" not in done.stderr  # no progress bar into a pipe
    return done.stdout.strip()


@pytest.fixture
def endpoint(hub: Any) -> str:
    pytest.importorskip("huggingface_hub")
    return f"http://127.0.0.1:{hub.server_port}"


def test_a_download_and_the_cache_after_it(hub: Any, endpoint: str, tmp_path: Path) -> None:
    path = Path(resolve(tmp_path, "HF://org/small", endpoint))
    assert path.is_relative_to(tmp_path)
    assert {file.name for file in path.iterdir()} == WANTED
    assert all((path / name).read_bytes() == FILES[name] for name in WANTED)
    assert not any("pytorch_model" in asked for asked in hub.asked)

    hub.asked.clear()
    assert resolve(tmp_path, "HF://org/small", endpoint) == str(path)
    assert not any("/resolve/" in asked for asked in hub.asked)

    hub.asked.clear()
    assert resolve(tmp_path, "HF://org/small", endpoint, HF_HUB_OFFLINE="1") == str(path)
    assert hub.asked == []


def test_revisions(hub: Any, endpoint: str, tmp_path: Path) -> None:
    assert Path(resolve(tmp_path, "HF://org/small@v1", endpoint)).name == COMMIT
    assert "/api/models/org/small/revision/v1" in hub.asked
    message = resolve(tmp_path, "HF://org/small@v9", endpoint)
    assert message == "LoadError: HF://org/small@v9: the model has no such revision"


def test_what_is_not_there(endpoint: str, tmp_path: Path) -> None:
    assert "there is no such Hugging Face model" in resolve(tmp_path, "HF://org/nothing", endpoint)
    assert "access to this model must be asked for" in resolve(tmp_path, "HF://org/gated", endpoint)


def test_without_a_network(endpoint: str, tmp_path: Path, hub: Any) -> None:
    message = resolve(tmp_path, "HF://org/small", endpoint, HF_HUB_OFFLINE="1")
    assert message == "LoadError: HF://org/small: not downloaded yet, and HF_HUB_OFFLINE forbids it"
    assert hub.asked == []
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as closed:
        port = closed.server_port
    message = resolve(tmp_path, "HF://org/small", f"http://127.0.0.1:{port}")
    assert message == "LoadError: HF://org/small: not downloaded yet, and the Hugging Face hub cannot be reached"


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def full(*_: Any, **__: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(LoadError, match="HF://org/small: the disk is full"):
        resolve_model("HF://org/small")


def test_any_other_failure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def broken(*_: Any, **__: Any) -> str:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    with pytest.raises(LoadError, match=r"the download failed \(RuntimeError\): first line second line$"):
        resolve_model("HF://org/small")


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(LoadError, match=r'pip install "windlass\[hub\]"'):
        resolve_model("HF://org/small")


@pytest.mark.parametrize(
    "name",
    [
        "HF://",
        "HF://org",
        "HF://org/name/more",
        "HF://../name",
        "HF://org/..",
        "HF://org/na--me",
        "HF://org/name@",
        "HF://org/name@../x",
        "HF://org/name@a/../b",
        "HF://org/na me",
        "HF://org/näme",
        "HF://org/name\n",
        "HF:///etc/passwd",
    ],
)
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(LoadError, match=r"accepted: HF://organisation/name\[@revision\]"):
        resolve_model(name)


def test_local_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_model(tmp_path) == resolve_model(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert resolve_model("~/model") == tmp_path / "model"
    with pytest.raises(LoadError, match=r"there is no such directory$"):
        resolve_model(str(tmp_path / "nowhere"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        LoadError, match=r"no such directory; to download it from Hugging Face, say HF://Qwen/Qwen3-0\.6B"
    ):
        resolve_model("Qwen/Qwen3-0.6B")
