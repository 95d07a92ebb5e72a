"""Names of models to directories, with a Hugging Face hub that lives on the loopback for the length of a test."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.hub import COMMIT, Hub, ask_here, checksum, serving
from windlass.errors import DownloadError, LoadError
from windlass.weights import hub_download, resolve_model
from windlass.weights.hub import pull_model

huggingface_hub = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")
file_download = pytest.importorskip("huggingface_hub.file_download")

SMALL = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"\x02\0\0\0\0\0\0\0{}",
    "tokenizer.model": b"sentencepiece",
    "chat_template.jinja": b"{{ messages }}",
    "additional_chat_templates/rag.jinja": b"{{ messages }}",
    "merges.txt": b"a b",
    "README.md": b"---\nlicense: mit\n---\n",
}
UNWANTED = {
    "model.fp16.safetensors": b"another copy",
    "pytorch_model.bin": b"a pickle",
    "consolidated.safetensors": b"the same once more",
    "original/params.json": b"{}",
    "onnx/model.onnx": b"not ours",
    "small-Q8_0.gguf": b"GGUF of the same",
}
INDEX = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors", "c": "../c"}}
CHUNK = 50_000
"""Bytes that the library takes in before it writes them; by itself it takes 10 MB."""
LARGE = bytes(range(256)) * 4096
HALF = len(LARGE) // 2 // CHUNK * CHUNK
REPOSITORIES = {
    "org/small": {**SMALL, **UNWANTED},
    "org/sharded": {
        "config.json": b"{}",
        "model.safetensors.index.json": json.dumps(INDEX).encode(),
        "model-00001-of-00002.safetensors": LARGE,
        "model-00002-of-00002.safetensors": LARGE[1:],
        "model-extra.safetensors": b"not in the index",
    },
    "org/mlc": {"mlc-chat-config.json": b"{}", "params_shard_0.bin": b"shard", "tensor-cache.json": b"{}"},
    "org/gguf": {
        "README.md": b"words",
        "config.json": b"{}",
        "gguf-Q4_K_M.gguf": b"GGUF four",
        "gguf-q8_0.gguf": b"GGUF eight",
        "BF16/gguf-BF16-00001-of-00002.gguf": b"GGUF one",
        "BF16/gguf-BF16-00002-of-00002.gguf": b"GGUF two",
        "gguf-IQ2-imatrix.gguf": b"GGUF two bits",
        "mmproj-F16.gguf": b"GGUF eyes",
        "cut-00001-of-00002.gguf": b"GGUF alone",
    },
    "org/pickle": {"config.json": b"{}", "pytorch_model.bin": b"a pickle"},
    "org/empty": {"README.md": b"words"},
    "gated/model": SMALL,
    "private/model": SMALL,
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process asks; its cache is ``tmp_path / "hub"``."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
    monkeypatch.setattr(file_download.time, "sleep", lambda _: None)  # between its attempts
    with serving(REPOSITORIES) as server:
        ask_here(monkeypatch, server, tmp_path / "hub")
        yield server


def files_in(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def partials(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "hub").glob("*/blobs/*.incomplete"))


SCRIPT = """
import signal
import sys
# Whoever runs the tests in the background has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from windlass.errors import LoadError
from windlass.weights.hub import pull_model, resolve_model
assert "huggingface_hub" not in sys.modules
if sys.argv[2:]:
    import huggingface_hub.constants
    huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = int(sys.argv[2])
try:
    print({function}(sys.argv[1]))
except LoadError as error:
    print(f"{{type(error).__name__}}: {{error}}")
"""


def start(home: Path, model: str, endpoint: str, *, function: str = "resolve_model", **environment: str) -> Any:
    """A process of its own that asks for a model; huggingface_hub reads its environment when it is imported."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            SCRIPT.format(function=function),
            model,
            *([str(CHUNK)] if function == "pull_model" else []),
        ],
        env={**inherited, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, "NO_PROXY": "*", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def resolve(home: Path, model: str, endpoint: str, **environment: str) -> str:
    """What ``resolve_model`` says in a process of its own."""
    with start(home, model, endpoint, **environment) as process:
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "\r" not in errors  # no progress bar into a pipe
    return output.strip()


def test_a_download_and_the_cache_after_it(hub: Hub, tmp_path: Path) -> None:
    path = Path(resolve(tmp_path, "HF://org/small", hub.endpoint))
    assert path.is_relative_to(tmp_path)
    assert files_in(path) == SMALL
    assert not {name for name, _ in hub.sent()} & set(UNWANTED)

    hub.asked.clear()
    assert resolve(tmp_path, "HF://org/small", hub.endpoint) == str(path)
    assert hub.sent() == []

    hub.asked.clear()
    assert resolve(tmp_path, "HF://org/small", hub.endpoint, HF_HUB_OFFLINE="1") == str(path)
    assert hub.asked == []


@pytest.mark.usefixtures("hub")
def test_the_library_finds_what_was_downloaded(tmp_path: Path) -> None:
    path = pull_model("org/small")
    found = huggingface_hub.snapshot_download(
        "org/small", local_files_only=True, cache_dir=tmp_path / "hub", allow_patterns=["config.json"]
    )
    assert Path(found) == path
    report = huggingface_hub.scan_cache_dir(tmp_path / "hub")
    assert [str(warning) for warning in report.warnings] == []
    assert [repository.repo_id for repository in report.repos] == ["org/small"]


@pytest.mark.usefixtures("hub")
def test_only_the_shards_that_the_index_names() -> None:
    assert set(files_in(pull_model("org/sharded"))) == set(REPOSITORIES["org/sharded"]) - {"model-extra.safetensors"}


@pytest.mark.usefixtures("hub")
def test_an_mlc_model() -> None:
    assert files_in(pull_model("HF://org/mlc")) == REPOSITORIES["org/mlc"]


@pytest.mark.parametrize(
    ("wanted", "first"),
    [
        ("Q4_K_M", "gguf-Q4_K_M.gguf"),
        ("q4_k_m", "gguf-Q4_K_M.gguf"),
        ("Q8_0", "gguf-q8_0.gguf"),
        ("iq2", "gguf-IQ2-imatrix.gguf"),
        ("gguf-q8_0.gguf", "gguf-q8_0.gguf"),
        ("mmproj-F16.gguf", "mmproj-F16.gguf"),
        ("BF16", "BF16/gguf-BF16-00001-of-00002.gguf"),
        ("gguf-BF16-00002-of-00002.gguf", "BF16/gguf-BF16-00001-of-00002.gguf"),
    ],
)
def test_one_of_several_gguf_models(hub: Hub, wanted: str, first: str) -> None:
    path = pull_model(f"HF://org/gguf:{wanted}")
    snapshot = path.parents[first.count("/")]
    assert path.relative_to(snapshot) == Path(first)
    expected = {first, "README.md"} | ({"BF16/gguf-BF16-00002-of-00002.gguf"} if "BF16" in first else set())
    assert set(files_in(snapshot)) == expected
    hub.asked.clear()
    assert resolve_model(f"org/gguf:{wanted}") == path
    assert hub.asked == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "org/gguf",
            r"has several GGUF models; name one, as in org/gguf:gguf-BF16-00001-of-00002\.gguf; there are: BF16/",
        ),
        ("org/gguf:Q5_K", r"'Q5_K' fits none of its GGUF models; there are: BF16/"),
        ("org/gguf:Q", "'Q' fits none"),
        ("org/gguf:F16", "'F16' fits none"),
        ("org/gguf:gguf", "'gguf' fits 4 of its GGUF models"),
        ("org/gguf:cut", "a file of the split model is missing: cut-00002-of-00002.gguf"),
        ("org/small:Q4_0", "'Q4_0' fits none of its GGUF models; there are: small-Q8_0.gguf"),
        ("org/pickle", "there are only pytorch_model.bin, which can run code; needed: safetensors"),
        ("org/empty", "there are no weights; needed: safetensors, MLC shards or GGUF"),
    ],
)
def test_models_that_are_not_there(hub: Hub, name: str, reason: str) -> None:
    with pytest.raises(DownloadError, match=reason) as caught:
        pull_model(name)
    assert caught.value.code == "not_found"
    assert hub.sent() == []


def test_revisions(hub: Hub) -> None:
    assert pull_model("HF://org/small@v1").name == COMMIT
    assert "/api/models/org/small/revision/v1" in [path for _, path, _ in hub.asked]
    assert resolve_model("org/small@v1") == resolve_model(f"org/small@{COMMIT}") == pull_model("org/small")
    with pytest.raises(DownloadError, match="HF://org/small@v9: the model has no such revision") as caught:
        pull_model("HF://org/small@v9")
    assert caught.value.code == "not_found"


def test_who_may_not_have_it(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def code_and_reason(name: str) -> tuple[str, str]:
        with pytest.raises(DownloadError) as caught:
            resolve_model(f"HF://{name}")
        assert "hf_" not in str(caught.value)
        return caught.value.code, caught.value.reason

    absent = (
        "not_found",
        "there is no such Hugging Face model, or it is private and needs a token (`hf auth login`, HF_TOKEN)",
    )
    assert code_and_reason("org/nothing") == code_and_reason("private/model") == absent
    code, reason = code_and_reason("gated/model")
    assert code == "forbidden"
    assert f"must be asked for on {hub.endpoint}/gated/model; then log in with `hf auth login`" in reason
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert code_and_reason("org/nothing") == absent
    assert code_and_reason("gated/model")[0] == "forbidden"
    assert files_in(resolve_model("HF://private/model")) == SMALL
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    code, reason = code_and_reason("org/small")
    assert (code, reason) == ("unauthorized", "the hub does not accept the token of HF_TOKEN or `hf auth login` (401)")


@pytest.mark.parametrize("status", [403, 404, 418, 500])
def test_a_hub_that_refuses(hub: Hub, status: int) -> None:
    hub.status = status
    with pytest.raises(DownloadError, match=str(status)) as caught:
        pull_model("org/small")
    assert caught.value.code == {403: "forbidden", 404: "not_found"}.get(status, "unreachable")


def test_without_a_network(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = resolve(tmp_path, "HF://org/small", hub.endpoint, HF_HUB_OFFLINE="1")
    assert message == "DownloadError: HF://org/small: not downloaded yet, and HF_HUB_OFFLINE forbids it"
    assert hub.asked == []
    with Hub({}) as closed:
        pass
    with monkeypatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", closed.endpoint)
        with pytest.raises(DownloadError, match="the Hugging Face hub cannot be reached") as caught:
            resolve_model("HF://org/small")
        assert caught.value.code == "unreachable"
    path = resolve_model("HF://org/small")
    monkeypatch.setattr(constants, "ENDPOINT", closed.endpoint)
    assert resolve_model("HF://org/small") == path
    with pytest.raises(DownloadError, match="cannot be reached"):
        pull_model("org/small")


def test_a_broken_connection_is_taken_up_where_it_broke(hub: Hub) -> None:
    name = "model-00001-of-00002.safetensors"
    hub.cut[name] = 300_000
    assert files_in(pull_model("org/sharded"))[name] == LARGE
    assert [part for file, part in hub.sent() if file == name] == [None, "bytes=300000-"]


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_download_is_continued(hub: Hub, tmp_path: Path, signal_number: int) -> None:
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    hub.hold.add(names[0])
    home = tmp_path / "home"
    with start(home, "org/sharded", hub.endpoint, function="pull_model", HF_HUB_CACHE=str(tmp_path / "hub")) as process:
        try:
            assert hub.holding.wait(30)
            blob = tmp_path / "hub/models--org--sharded/blobs" / checksum(names[0], LARGE)
            partial = blob.with_name(f"{blob.name}.incomplete")
            wait_until(lambda: partial.exists() and partial.stat().st_size == HALF)
            process.send_signal(signal_number)
            assert process.wait(5) != 0  # at once, although the hub is silent
        finally:
            process.kill()
    assert not blob.exists()
    with pytest.raises(LoadError):
        resolve_model("org/sharded")
    hub.go_on.set()
    hub.asked.clear()
    assert files_in(pull_model("org/sharded"))[names[0]] == LARGE
    assert dict(hub.sent())[names[0]] == f"bytes={HALF}-"
    assert partials(tmp_path) == []


def wait_until(condition: Any) -> None:
    done = threading.Event()
    for _ in range(3000):
        if condition():
            return
        done.wait(0.01)
    raise AssertionError("it never happens")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="nothing tells what a process has open")
def test_two_processes_that_want_the_same(hub: Hub, tmp_path: Path) -> None:
    name = "model-00001-of-00002.safetensors"
    lock = f"{checksum(name, LARGE)}.lock"
    hub.hold.add(name)
    with (
        start(tmp_path, "org/sharded", hub.endpoint, function="pull_model") as first,
        start(tmp_path, "org/sharded", hub.endpoint, function="pull_model") as second,
    ):
        try:
            wait_until(lambda: has_open(first.pid, lock) and has_open(second.pid, lock))
            hub.go_on.set()
            paths = {process.communicate(timeout=60)[0].strip() for process in (first, second)}
        finally:
            first.kill()
            second.kill()
    [path] = paths
    content = files_in(Path(path))
    assert content == {name: REPOSITORIES["org/sharded"][name] for name in content}
    assert len(content) == 4
    assert [asked for asked, _ in hub.sent()].count(name) == 1


def has_open(process: int, name: str) -> bool:
    """Whether a process has a file of this name open."""
    for descriptor in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(OSError):
            if descriptor.readlink().name == name:
                return True
    return False


def test_a_connection_that_breaks_again_and_again(tmp_path: Path) -> None:
    """Whatever the library makes of it: as long as something comes, it is asked for the rest."""
    data = LARGE[:1000]
    starts: list[int] = []

    def fetch(_name: str, file: Any, start: int) -> None:
        starts.append(start)
        file.write(data[start : start + 300])
        if start + 300 < len(data):
            raise RuntimeError("the line is broken")

    file = hub_download.HubFile("a.bin", len(data), checksum("a.bin", data), is_git=False)
    hub_download.download_blobs("origin", [file], tmp_path, tmp_path, fetch, lambda *_: None)
    assert starts == [0, 300, 600, 900]
    assert (tmp_path / "blobs" / file.checksum).read_bytes() == data

    def broken(*_: Any) -> None:
        raise RuntimeError("there is no line")

    other = hub_download.HubFile("b.bin", 1, checksum("b.bin", b"b"), is_git=False)
    with pytest.raises(RuntimeError, match="there is no line"):
        hub_download.download_blobs("origin", [other], tmp_path, tmp_path, broken, lambda *_: None)


def test_a_hub_that_does_not_know_ranges(hub: Hub, tmp_path: Path) -> None:
    hub.no_ranges = True
    put_partial(tmp_path, "model-00001-of-00002.safetensors", LARGE[:1000])
    assert files_in(pull_model("org/sharded"))["model-00001-of-00002.safetensors"] == LARGE


def put_partial(tmp_path: Path, name: str, data: bytes) -> Path:
    """Leave behind what an interrupted download of a file of ``org/sharded`` would."""
    blobs = tmp_path / "hub/models--org--sharded/blobs"
    blobs.mkdir(parents=True)
    partial = blobs / f"{checksum(name, REPOSITORIES['org/sharded'][name])}.incomplete"
    partial.write_bytes(data)
    return partial


@pytest.mark.parametrize("left", [b"something else", LARGE, LARGE + b"x", LARGE[:-1] + b"x"])
def test_what_was_left_may_be_anything(hub: Hub, tmp_path: Path, left: bytes) -> None:
    name = "model-00001-of-00002.safetensors"
    put_partial(tmp_path, name, left)
    assert files_in(pull_model("org/sharded"))[name] == LARGE
    parts = [part for file, part in hub.sent() if file == name]
    assert parts == ([] if left == LARGE else [f"bytes={len(left)}-", None] if len(left) < 100 else [None])
    assert partials(tmp_path) == []


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_what_comes_is_checked(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.damage[name] = 1
    with pytest.raises(DownloadError, match=rf"HF://org/small/{name}: .* its checksum is another") as caught:
        pull_model("org/small")
    assert caught.value.code == "damaged"
    assert checksum(name, SMALL[name]) not in [partial.stem for partial in partials(tmp_path)]
    assert files_in(pull_model("org/small")) == SMALL


def test_a_file_of_another_size(hub: Hub, tmp_path: Path) -> None:
    hub.short.add("model.safetensors")
    with pytest.raises(DownloadError, match="its size is 9 bytes, not 10") as caught:
        pull_model("org/small")
    assert caught.value.code == "damaged"
    assert checksum("x.bin", SMALL["model.safetensors"]) not in [partial.stem for partial in partials(tmp_path)]


def test_a_hub_without_checksums(hub: Hub) -> None:
    """Downloads by the library alone."""
    hub.without_checksums = True
    assert files_in(pull_model("org/small")) == SMALL
    assert "model-extra.safetensors" not in files_in(pull_model("org/sharded"))


def test_a_hub_that_means_ill(hub: Hub, tmp_path: Path) -> None:
    """What it calls checksums and files never leads out of the cache."""
    hub.repositories["org/evil"] = {"config.json": b"{}", "../../evil.gguf": b"GGUF"}
    hub.checksums["model.safetensors"] = "../../../../evil"
    for name in ("org/evil:evil.gguf", "org/small"):
        with pytest.raises(DownloadError, match="the hub's list of files is damaged at") as caught:
            pull_model(name)
        assert caught.value.code == "damaged"
    assert hub.sent() == []
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_will_be_full(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=2 << 10)
    monkeypatch.setattr(hub_download.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        DownloadError, match=r"HF://org/sharded: the download needs 0\.00 GiB of disk, of which"
    ) as caught:
        pull_model("org/sharded")
    assert caught.value.code == "disk_full"
    assert [name for name, _ in hub.sent()] == ["model.safetensors.index.json"]


def test_a_disk_that_becomes_full(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = hub_download._Watched.write
    left = 400_000

    def full(self: Any, data: Any) -> int:
        if self.tell() + len(data) > left:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(hub_download._Watched, "write", full)
        with pytest.raises(DownloadError, match="HF://org/sharded: the disk is full; what has come is kept") as caught:
            pull_model("org/sharded")
    assert caught.value.code == "disk_full"
    assert max(partial.stat().st_size for partial in partials(tmp_path)) == left
    hub.asked.clear()
    assert files_in(pull_model("org/sharded"))["model-00001-of-00002.safetensors"] == LARGE
    assert "bytes=400000-" in [part for _, part in hub.sent()]


@pytest.mark.usefixtures("hub")
def test_what_is_told_meanwhile() -> None:
    told: list[tuple[str, int, int]] = []
    pull_model("org/sharded", report=lambda *values: told.append(values))
    assert told[0] == ("asking the hub", 0, 0)
    total = sum(len(data) for name, data in REPOSITORIES["org/sharded"].items() if "index" not in name) - 16
    assert told[-1] == ("downloading", total, total)

    class Enough(Exception):  # noqa: N818
        pass

    def stop(*told: Any) -> None:
        if told[0] == "downloading":
            raise Enough

    with pytest.raises(Enough):
        resolve_model("HF://org/small", report=stop)
    assert [thread for thread in threading.enumerate() if "download" in thread.name] == []


@pytest.mark.usefixtures("hub")
def test_any_other_failure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> str:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    with pytest.raises(DownloadError, match=r"the download failed \(RuntimeError\): first line second line$") as caught:
        resolve_model("HF://org/small")
    assert caught.value.code == "failed"


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
        "HF://org/name:",
        "HF://org/name:../x.gguf",
        "HF://org/name:/x.gguf",
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
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
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
