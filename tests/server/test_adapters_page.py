"""docs/adapters.md: its examples run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.adapters import write_adapter
from support.lifecycle import wait_for
from windlass.demo import model_directory

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "adapters.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
PROGRAMS = [code for kind, code in BLOCKS if kind == "python"]
[SERVE, ASKS] = [code for kind, code in BLOCKS if kind == "sh"]
SHELL = """
set -euo pipefail
curl() { command curl --fail-with-body --silent --show-error --max-time 30 "$@"; echo; }
windlass() { exec "$PYTHON" -m windlass "$@"; }
"""


def filled_in(code: str, directory: Path) -> str:
    """The code with paths that exist."""
    code = code.replace("path/to/model", str(model_directory()))
    for seed, name in enumerate(("sql", "poems"), 1):
        code = code.replace(f"path/to/{name}", write_adapter(directory / name, seed=seed))
    assert "path/to" not in code
    return code


@pytest.mark.parametrize("code", PROGRAMS, ids=range(len(PROGRAMS)))
def test_a_program(code: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", filled_in(code, tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert f"{model_directory()}:sql" in result.stdout


def test_the_server(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            ["bash", "-c", SHELL + filled_in(SERVE, tmp_path)],
            stderr=stderr,
            env={**os.environ, "PYTHON": sys.executable, "WINDLASS_SERVE_PORT": "0"},
        )
        try:
            assert wait_for(lambda: b"is ready" in log.read_bytes() or process.poll() is not None)
            assert process.poll() is None, log.read_text()
            [port] = re.findall(r"listens on http://127.0.0.1:(\d+)", log.read_text())
            asks = filled_in(ASKS, tmp_path).replace("127.0.0.1:8000", f"127.0.0.1:{port}")
            result = subprocess.run(
                ["bash", "-c", SHELL + asks], capture_output=True, text=True, timeout=60, check=False
            )
            assert (result.returncode, result.stderr) == (0, ""), result.stdout
            answer, loaded, models, unloaded = map(json.loads, result.stdout.splitlines())
            assert answer["model"] == "base:sql"
            assert [card["id"] for card in models["data"]] == ["base", "base:sql", loaded["id"]]
            assert unloaded == {"id": "base:poems", "object": "model", "deleted": True}
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait(20)
