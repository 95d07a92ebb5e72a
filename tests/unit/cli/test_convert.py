"""``windlass convert``: what it hands over, and where its progress shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import windlass.serve.convert
import windlass.serve.convert_to_hf
from support.terminal import on_terminal
from windlass.cli import main
from windlass.serve.conversion import Conversion

SLOW = """
import os
os.environ["TERM"] = "xterm"
import windlass.serve.convert
from windlass.serve.conversion import Conversion
def convert(source, output, quantization, *, conv_template, force, progress):
    progress("packing weights", 1, 4)
    return Conversion(output, 0, {})
windlass.serve.convert.convert = convert
from windlass.cli import main
sys.exit(main(["convert", "/", "-o", OUTPUT, "--quantization", "q4f16_1"]))
"""


def test_arguments_arrive_and_a_pipe_gets_no_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []

    def fake(*arguments: Any, **named: Any) -> Conversion:
        calls.append((arguments, named))
        output = arguments[1]
        return Conversion(output, 1_500_000, {"exact": {"F16": 2, "Q8_0": 1}}, ("a note",))

    monkeypatch.setattr(windlass.serve.convert, "convert", fake)
    output = tmp_path / "out"
    options = ["-o", str(output), "--quantization", "q4f16_1", "--conv-template", "chatml"]
    assert main(["convert", str(tmp_path), *options]) == 0
    named = {"conv_template": "chatml", "force": False, "progress": None}
    assert calls == [((tmp_path, output, "q4f16_1"), named)]
    text = f"{output}: 1.5 MB in q4f16_1\n  exact: 2 x F16, 1 x Q8_0\n  a note\n"
    assert capfd.readouterr() == (text, "")
    monkeypatch.setattr(windlass.serve.convert_to_hf, "convert_to_hf", fake)
    assert main(["convert", str(tmp_path), "-o", str(output), "--dtype", "bf16", "--force"]) == 0
    assert calls[1:] == [((tmp_path, output, "bf16"), {"force": True, "progress": None})]


def test_a_terminal_shows_progress(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    with on_terminal(f"OUTPUT = {output!r}\n{SLOW}") as terminal:
        seen = terminal.expect(" 25%")
        assert "packing weights" in seen
        terminal.expect("0.0 MB in q4f16_1")
        assert terminal.wait() == 0


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["in"],
        ["in", "-o", "out"],
        ["in", "--quantization", "q4f16_1"],
        ["in", "-o", "out", "x"],
        ["in", "-o", "out", "--quantization", "q4f16_1", "--dtype", "f16"],
        ["in", "-o", "out", "--dtype", "f16", "--conv-template", "chatml"],
        ["in", "-o", "out", "--dtype", "q4f16_1"],
    ],
)
def test_wrong_usage_exits_2(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", *arguments]) == 2
    assert "Usage: windlass convert" in capfd.readouterr().err
