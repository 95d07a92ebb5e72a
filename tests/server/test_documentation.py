"""docs/server.md: its examples run, and its tables have everything there is."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import pytest

from support.lifecycle import wait_for
from support.openai_schema import openai_schema
from support.prometheus import read_exposition
from support.server import DEMO, RunningServer, serving
from windlass.cli.serve import serve
from windlass.demo import model_directory

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
SERVES = [code for kind, code in BLOCKS if kind == "sh" and "windlass serve" in code]
ASKS = [code for kind, code in BLOCKS if kind == "sh" and "windlass serve" not in code]
PROGRAMS = [code for kind, code in BLOCKS if kind == "python"]
SHELL = """
set -euo pipefail
curl() { command curl --fail-with-body --silent --show-error --max-time 30 "$@"; echo; }
windlass() { exec "$PYTHON" -m windlass "$@"; }
"""


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serving(replace(DEMO, enable_tracing=True), enable_debug=True) as running:
        yield running


def test_there_is_something_to_run() -> None:
    assert len(SERVES) + len(ASKS) + len(PROGRAMS) == len(BLOCKS)
    assert min(len(SERVES), len(ASKS), len(PROGRAMS)) >= 3


@pytest.mark.parametrize("code", ASKS, ids=range(len(ASKS)))
def test_a_request_of_the_shell(server: RunningServer, code: str, tmp_path: Path) -> None:
    assert "http://127.0.0.1:8000" in code
    script = SHELL + code.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
    result = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    for line in result.stdout.splitlines() if "/metrics" not in code else ():
        assert not line or "error" not in json.loads(line)


@pytest.mark.parametrize("code", PROGRAMS, ids=range(len(PROGRAMS)))
def test_a_program(server: RunningServer, code: str) -> None:
    for package in re.findall(r"^from (\w+) import", code, re.MULTILINE):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    program = code.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "Paris" in result.stdout


@pytest.mark.parametrize("code", SERVES, ids=range(len(SERVES)))
def test_a_start(code: str, tmp_path: Path) -> None:
    script = SHELL + code.replace("path/to/model", str(model_directory()))
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            ["bash", "-c", script],
            stderr=stderr,
            env={**os.environ, "PYTHON": sys.executable, "WINDLASS_SERVE_PORT": "0"},
        )
        try:
            assert wait_for(lambda: b"is ready" in log.read_bytes() or process.poll() is not None)
            assert process.poll() is None, log.read_text()
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait(20)
    assert "Traceback" not in log.read_text()


def test_all_options_are_there() -> None:
    rows = dict(re.findall(r"^\| `(--[a-z-]+)[^`]*` \| (.*) \|$", TEXT, re.MULTILINE))
    options = [option for option in serve.params if isinstance(option, click.Option)]
    assert [option.opts[0] for option in options] == list(rows)
    for option in options:
        says = rows[option.opts[0]]
        assert says.startswith(option.help or "?")
        default = re.search(r"Default: `(.*)`", says)
        has_default = isinstance(option.default, (str, int, float)) and not option.is_flag
        assert (default is not None) == has_default
        assert default is None or default[1] == str(option.default)


@pytest.mark.parametrize("schema", ["CreateChatCompletionRequest", "CreateCompletionRequest"])
def test_all_fields_of_openai_are_there(data_dir: Path, schema: str) -> None:
    section = TEXT[TEXT.index("## Fields of chat") : TEXT.index("## `/v1/responses`")]
    named = set(re.findall(r"[\w.]+", " ".join(re.findall(r"`([^`]+)`", section))))
    named |= {name.partition(".")[0] for name in named}
    assert openai_schema(data_dir).fields(schema) - named == set()


def test_all_routes_are_there(server: RunningServer) -> None:
    for path in server.request("GET", "/openapi.json").json["paths"]:
        assert f"`{path}`" in TEXT or f" {path}`" in TEXT or path.startswith("/debug/"), path
        assert not path.startswith("/debug/") or f"8000{path} " in TEXT


def test_all_metrics_are_there(server: RunningServer) -> None:
    section = TEXT[TEXT.index("## Metrics") : TEXT.index("## Debugging")]
    for family in read_exposition(server.request("GET", "/metrics").body.decode()):
        short = family.removeprefix("windlass_").removeprefix("spec_decode")
        assert f"`{family}" in section or f"`_{short.removeprefix('_')}" in section, family


def test_all_codes_are_there() -> None:
    section = TEXT[TEXT.index("## Errors") : TEXT.index("## The end")]
    sources = "".join(path.read_text() for path in (ROOT / "src" / "windlass" / "server").rglob("*.py"))
    codes = set(re.findall(r'code="([a-z_]+)"', sources))
    assert len(codes) > 10
    assert {code for code in codes if f"`{code}`" not in section} <= {"server_error"}  # that of failed responses
