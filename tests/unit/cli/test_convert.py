"""``windlass convert``: what it hands over, and where its progress shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import windlass.serve.convert
from support.terminal import on_terminal
from windlass.cli import main

SLOW = """
import os
os.environ["TERM"] = "xterm"
import windlass.serve.convert
def convert(source, output, quantization, *, conv_template, progress):
    progress("packing weights", 1, 4)
    os.mkdir(output)
windlass.serve.convert.convert = convert
from windlass.cli import main
sys.exit(main(["convert", "in", "-o", OUTPUT, "--quantization", "q4f16_1"]))
"""


def test_arguments_arrive_and_a_pipe_gets_no_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []

    def fake(*arguments: Any, **named: Any) -> None:
        calls.append((arguments, named))
        output = arguments[1]
        output.mkdir()
        (output / "params_shard_0.bin").write_bytes(bytes(1_500_000))

    monkeypatch.setattr(windlass.serve.convert, "convert", fake)
    output = tmp_path / "out"
    options = ["-o", str(output), "--quantization", "q4f16_1", "--conv-template", "chatml"]
    assert main(["convert", "some/dir", *options]) == 0
    assert calls == [((Path("some/dir"), output, "q4f16_1"), {"conv_template": "chatml", "progress": None})]
    assert capfd.readouterr() == (f"{output}: 1.5 MB in q4f16_1\n", "")


def test_a_terminal_shows_progress(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    with on_terminal(f"OUTPUT = {output!r}\n{SLOW}") as terminal:
        seen = terminal.expect(" 25%")
        assert "packing weights" in seen
        terminal.expect("0.0 MB in q4f16_1")
        assert terminal.wait() == 0


@pytest.mark.parametrize(
    "arguments", [[], ["in"], ["in", "-o", "out"], ["in", "--quantization", "q4f16_1"], ["in", "-o", "out", "x"]]
)
def test_wrong_usage_exits_2(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", *arguments]) == 2
    assert "Usage: windlass convert" in capfd.readouterr().err
