"""``windlass list``, ``show``, ``rm`` and ``pull``: what they say, and how they end."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.shell_completion import BashComplete

from support.hub import serving
from support.model_caches import add_to_hub_cache, content
from support.terminal import CTRL_C, on_terminal
from windlass.cli import main
from windlass.cli.app import windlass
from windlass.demo import model_directory
from windlass.serve.last_used import note_use
from windlass.weights import FileCache

FILES = {**content(model_directory()), "README.md": b"---\nlicense: mit\n---\n"}


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Caches of their own, with one model."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("MLC_LLM_HOME", str(tmp_path / "mlc"))
    monkeypatch.setenv("WINDLASS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "hub"


def said(capfd: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    """What a command says on stdout, or on stderr where it fails."""
    assert main(arguments) == code
    output = capfd.readouterr()
    if code == 0:
        assert output.err == ""
        return output.out
    return output.out + output.err


def test_the_list(hub_cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert capfd.readouterr() == ("", "there are none yet; `windlass pull org/name` downloads one\n")
    assert json.loads(said(capfd, "list", "--json")) == []
    path = add_to_hub_cache(hub_cache, "org/demo", FILES)
    note_use(path, FileCache(hub_cache.parent / "cache"))
    [note] = (hub_cache.parent / "cache").iterdir()
    os.utime(note, (1_800_000_000, 1_800_000_000))
    (hub_cache / "models--org--big/blobs").mkdir(parents=True)
    (hub_cache / "models--org--big/blobs/0123.incomplete").write_bytes(bytes(3 << 20))
    assert said(capfd, "list").splitlines() == [
        "NAME      SIZE     FORMAT   ARCHITECTURE  QUANTIZATION  LAST USED",
        "org/big   3.0 MiB  partial  -             -             the download was interrupted; "
        "`windlass pull` goes on with it",
        "org/demo  1.7 MiB  hf       qwen3         bfloat16      2027-01-15 08:00",
    ]
    assert json.loads(said(capfd, "list", "--json"))[1] == {
        "name": "org/demo",
        "path": str(path),
        "format": "hf",
        "num_bytes": sum(map(len, FILES.values())),
        "architecture": "qwen3",
        "quantization": "bfloat16",
        "last_used": 1_800_000_000.0,
        "problem": None,
    }


def test_showing_a_model(hub_cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = add_to_hub_cache(hub_cache, "org/demo", FILES)
    text = said(capfd, "show", "org/demo", "--context", "100")
    rows = dict(line.strip().split(None, 1) for line in text.splitlines()[1:])
    assert text.startswith("org/demo\n")
    assert rows["path"] == str(path)
    assert rows["licence"] == "mit"
    assert rows["context"] == "1024 tokens"
    assert rows["memory"].startswith("for 100 tokens: weights 1.7 MiB + KV cache 119.0 KiB = 1.8 MiB, and at most")
    assert rows["fits"].startswith("yes: ")
    shown = json.loads(said(capfd, "show", "org/demo", "--json", "--quantization", "q4f16_1"))
    assert (shown["name"], shown["licence"], shown["memory"]["fits"]) == ("org/demo", "mit", True)
    assert shown["memory"]["weights"] < 1 << 20
    assert said(capfd, "show", "org/demo", "--template") == shown["template"] + "\n"
    assert "the model's context is 1024 tokens, not 2000" in said(
        capfd, "show", "org/demo", "--context", "2000", code=1
    )
    assert "Usage: windlass show" in said(capfd, "show", "org/demo", "--context", "0", code=2)


def test_showing_what_cannot_be_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "work/bad.gguf").write_bytes(b"no such file")
    text = said(capfd, "show", "bad.gguf", code=1)
    assert "  format        gguf, 12 B in 1 file\n" in text
    assert "  PROBLEM       " in text
    assert "bad.gguf: this is no GGUF file, or a damaged one" in text
    assert "bad.gguf: this is no GGUF" in said(capfd, "show", "bad.gguf", "--template", code=1)
    assert said(capfd, "show", "nothing", code=1).startswith("error: nothing: there is no such model on this machine")


def test_removing_asks_first(
    hub_cache: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = add_to_hub_cache(hub_cache, "org/demo", FILES)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert main(["rm", "org/demo"]) == 130
    assert f"Remove {path.parents[1]} (1.7 MiB)? [y/N]" in capfd.readouterr().err
    monkeypatch.setattr("click.confirm", lambda *_, **__: False)
    assert said(capfd, "rm", "org/demo", code=1) == "error: nothing was removed\n"
    assert path.is_dir()
    monkeypatch.setattr("click.confirm", lambda *_, **__: True)
    assert said(capfd, "rm", "org/demo") == "removed org/demo: 1.7 MiB\n"
    assert list(hub_cache.iterdir()) == []


def test_removing_what_an_engine_has_mapped(hub_cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = add_to_hub_cache(hub_cache, "org/demo", FILES)
    script = "import mmap, sys; f = open(sys.argv[1], 'rb'); m = mmap.mmap(f.fileno(), 0, access=1); print('mapped')"
    with subprocess.Popen(
        [sys.executable, "-uc", f"{script}; input()", str(path / "model.safetensors")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "mapped\n"
        message = said(capfd, "rm", "--yes", "org/demo", code=1)
        assert message == f"error: org/demo is in use by process {process.pid}; end it first\n"
        process.communicate("\n")
    assert said(capfd, "rm", "--yes", "org/demo").startswith("removed org/demo")


PULL = """
import os
os.environ.update(HF_ENDPOINT={endpoint!r}, NO_PROXY="*", TERM="xterm")
import windlass.cli
sys.exit(windlass.cli.main(["pull", "org/demo"]))
"""


def test_pulling_shows_progress_and_ends_at_ctrl_c(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("huggingface_hub")
    with serving({"org/demo": FILES}) as hub:
        hub.hold.add("model.safetensors")
        with on_terminal(PULL.format(endpoint=hub.endpoint)) as terminal:
            terminal.expect("downloading")
            assert hub.holding.wait(30)
            terminal.type(CTRL_C)
            assert terminal.wait() == 130
        hub.go_on.set()
        with on_terminal(PULL.format(endpoint=hub.endpoint)) as terminal:
            terminal.expect("snapshots/")
            assert terminal.wait() == 0
    assert "org/demo" in said(capfd, "list")
    assert (
        said(capfd, "chat", "org/demo", "-p", "What is the capital of France?") == "The capital of France is Paris.\n"
    )


def test_a_download_that_fails_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert said(capfd, "pull", "not a name", code=1).startswith(
        "error: not a name: not a Hugging Face model; accepted: "
    )
    assert "Usage: windlass pull" in said(capfd, "pull", code=2)


def complete(arguments: list[str], incomplete: str) -> list[tuple[str, str]]:
    """What a shell is told."""
    completion = BashComplete(windlass, {}, "windlass", "_WINDLASS_COMPLETE")
    return [(item.type, item.value) for item in completion.get_completions(arguments, incomplete)]


def test_shells_complete_names_of_models(hub_cache: Path) -> None:
    add_to_hub_cache(hub_cache, "org/demo", FILES)
    add_to_hub_cache(hub_cache, "other/demo", {**FILES, "README.md": b""})
    assert complete(["show"], "or") == [("plain", "org/demo")]
    assert complete(["rm"], "") == [("plain", "org/demo"), ("plain", "other/demo")]
    assert complete(["chat"], "./x") == [("file", "./x")]
    assert complete([], "li") == [("plain", "list")]
    done = subprocess.run(
        [sys.executable, "-m", "windlass"],
        env={**os.environ, "_WINDLASS_COMPLETE": "bash_source"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "_WINDLASS_COMPLETE=bash_complete" in done.stdout
