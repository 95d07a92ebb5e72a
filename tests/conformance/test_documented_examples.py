"""The four usage examples of the documented ``terminate()``, as programs of their own that say what they should."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from windlass import MLCEngine
from windlass.demo import model_directory
from windlass.serve.convert import convert

EXAMPLES = Path(__file__).parent / "examples"
EXPECTED = {"basic": 1, "try_finally": 1, "repeated": 1, "sequential": 2}
ANSWER = "The capital of France is Paris.\n"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with MLC models of the names the examples use, which are the demo model."""
    directory = tmp_path_factory.mktemp("models")
    convert(model_directory(), directory / "Llama-3-8B-Instruct-q4f16_1-MLC", "q4f16_1")
    convert(model_directory(), directory / "Qwen2.5-1.5B-Instruct-q0f16-MLC", "q0f16")
    return directory


def run(source: str, directory: Path, answers: int) -> None:
    result = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", source],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == answers * ANSWER


@pytest.mark.parametrize("name", EXPECTED)
def test_unchanged_under_the_name_mlc_llm(name: str, models: Path) -> None:
    run(
        "import windlass; windlass.install_as_mlc_llm()\n" + (EXAMPLES / f"{name}.py").read_text(),
        models,
        EXPECTED[name],
    )


@pytest.mark.parametrize("name", EXPECTED)
def test_with_windlass_imported_instead(name: str, models: Path) -> None:
    run((EXAMPLES / f"{name}.py").read_text().replace("mlc_llm.serve", "windlass.serve"), models, EXPECTED[name])


def test_a_converted_model_still_takes_tools(models: Path) -> None:
    """The conversation template has no place for them; the model's own template beside it does."""
    tool = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    with MLCEngine(str(models / "Qwen2.5-1.5B-Instruct-q0f16-MLC")) as engine:
        messages = [{"role": "user", "content": "What is the weather in Paris?"}]
        with_tools = engine.tokenizer.encode_chat(messages, tools=[tool])
        assert len(with_tools) > len(engine.tokenizer.encode_chat(messages)) + 50
        response = engine.chat.completions.create(messages=messages, tools=[tool], temperature=0, max_tokens=60)
    [call] = response.choices[0].message.tool_calls or []
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Paris"}')
