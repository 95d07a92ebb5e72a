"""The command in processes of its own, with the demo model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import windlass
from support.terminal import CTRL_C, on_terminal
from windlass.demo import model_directory

CHAT = "from windlass.cli import main\nsys.exit(main(['chat', '--temperature', '0']))\n"


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "windlass", *arguments], input=stdin, capture_output=True, text=True, timeout=60
    )


def test_version_needs_nothing_heavy() -> None:
    script = (
        "import sys; from windlass.cli import main; code = main(['--version']); "
        "print([name for name in ('numpy', 'pydantic', 'rich', 'tokenizers', 'jinja2') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == f"windlass {windlass.__version__}\n[]\n"


def test_one_answer() -> None:
    result = run("chat", "-p", "What is the capital of France?", "--temperature", "0")
    assert result.returncode == 0
    assert "Paris" in result.stdout
    assert result.stderr == "", "progress or noise in a pipe"


def test_prompt_from_a_pipe() -> None:
    result = run("chat", "--temperature", "0", "--max-tokens", "3", stdin="What is the capital of Italy?\n")
    assert result.returncode == 0
    assert result.stdout.strip()
    assert result.stderr == ""


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    result = run("chat", str(tmp_path / "nothing"), "-p", "hi")
    assert result.returncode == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert "nothing" in result.stderr


def test_a_reader_that_goes_away_is_no_crash() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "windlass", "chat", "-p", "Tell me a story.", "--temperature", "0"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(60) == 1
    with process.stderr as stderr:
        assert stderr.read() == ""


def test_convert_then_chat(tmp_path: Path) -> None:
    output = tmp_path / "demo-q8f16_1-MLC"
    result = run("convert", str(model_directory()), "-o", str(output), "--quantization", "q8f16_1")
    assert (result.returncode, result.stderr) == (0, "")
    assert str(output) in result.stdout
    assert (output / "mlc-chat-config.json").is_file()
    answer = run("chat", str(output), "-p", "What is the capital of France?", "--temperature", "0")
    assert answer.returncode == 0
    assert "Paris" in answer.stdout


@pytest.mark.parametrize("quantization", ["q5f16_1", "awq"])
def test_convert_refuses_unknown_schemes(tmp_path: Path, quantization: str) -> None:
    result = run("convert", str(model_directory()), "-o", str(tmp_path / "out"), "--quantization", quantization)
    assert result.returncode == 2
    assert "q4f16_1" in result.stderr, "the schemes that exist are listed"
    assert not (tmp_path / "out").exists()


def test_conversation_on_a_terminal() -> None:
    with on_terminal(CHAT) as terminal:
        terminal.expect_prompt()
        terminal.type("My name is Anna.\n")
        terminal.expect_prompt("\n> ")
        terminal.type("What is my name?\n")
        assert "Anna" in terminal.expect_prompt("\n> ").partition("?")[2]
        terminal.type("/stats\n")
        terminal.expect("all answers (2)")
        terminal.expect_prompt()
        terminal.type("/exit\n")
        assert terminal.wait() == 0
        assert "Traceback" not in terminal.rest


def test_ctrl_c_stops_a_real_answer() -> None:
    # Random weights babble until the context is full, which a step of 20 ms or more makes an answer of 20 s.
    script = """
import functools, time, windlass
from windlass.program.reference import ReferenceExecutor
run = ReferenceExecutor.run
ReferenceExecutor.run = lambda *arguments: (time.sleep(0.02), run(*arguments))[1]
windlass.EngineConfig = functools.partial(windlass.EngineConfig, executor="reference")
from windlass.cli import main
sys.exit(main(["chat", "--load-format", "dummy", "--temperature", "0"]))
"""
    with on_terminal(script) as terminal:
        terminal.expect_prompt()
        terminal.type("Go!\n")
        terminal.expect("Go!\r\n")
        terminal.expect_anything()
        terminal.type(CTRL_C)
        terminal.expect("(stopped)")
        terminal.expect_prompt()
        terminal.type("/exit\n")
        assert terminal.wait() == 0
        assert "Traceback" not in terminal.rest
