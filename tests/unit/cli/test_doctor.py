"""``windlass doctor``: it tells what is there, notices what is not, and never fails to speak."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import windlass
from windlass.cli import main


@pytest.fixture(autouse=True)
def _empty_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the models of whoever runs the tests out of the findings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("HF_HOME", "HF_HUB_CACHE", "MLC_LLM_HOME", "WINDLASS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


def make_model(directory: Path, config: str = "config.json", weights: str = "model.safetensors") -> Path:
    directory.mkdir(parents=True)
    (directory / config).write_text("{}")
    (directory / weights).write_bytes(b"12345678")
    return directory


def test_a_healthy_installation(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    output = capfd.readouterr()
    findings = json.loads(output.out)
    assert output.err == ""
    assert findings["problems"] == []
    assert findings["windlass"] == windlass.__version__
    assert findings["python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert findings["cpu"]["kernels_chosen"] in findings["cpu"]["kernels"]
    assert "portable" in findings["cpu"]["kernels"]
    assert findings["cpu"]["threads"] >= 1
    assert 0 < findings["memory"]["available"] <= findings["memory"]["total"]
    assert (Path(findings["demo_model"]) / "config.json").is_file()
    assert findings["models"] == []


def test_text_has_a_line_for_everything(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    make_model(tmp_path / "dist" / "tiny")
    assert main(["doctor"]) == 0
    output = capfd.readouterr().out
    assert f"model       {tmp_path}/dist/tiny (hf, 0.00 GiB)" in output
    names = [line.split()[0] for line in output.splitlines()]
    assert names[0] == "windlass"
    assert {"processor", "features", "kernels", "threads", "memory", "limits", "model"} <= set(names)
    assert "PROBLEM" not in names


def test_a_compiled_module_that_does_not_load_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "windlass.native", None)
    assert main(["doctor"]) == 1
    output = capfd.readouterr().out
    assert "PROBLEM     the compiled module does not load" in output
    assert "memory" in output


def test_a_bad_thread_setting_is_a_problem(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WINDLASS_NUM_THREADS", "many")
    assert main(["doctor"]) == 1
    assert "WINDLASS_NUM_THREADS must be a positive integer, not 'many'" in capfd.readouterr().out
