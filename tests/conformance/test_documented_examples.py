"""What documents show runs, and says what it should: the four usage examples of ``terminate()``, and docs/manage.md."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest

from support.gguf_files import write_gguf
from support.hub import ask_here, serving
from support.model_caches import content
from windlass import MLCEngine
from windlass.cli import main
from windlass.demo import model_directory
from windlass.quantization import bf16_to_f32
from windlass.serve.convert import convert
from windlass.weights import open_model_directory

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


MANAGE = Path(__file__).parents[2] / "docs" / "manage.md"


def demo_gguf(path: Path, name: str) -> bytes:
    """The demo model as a GGUF file of one type."""
    kind = gguf.GGMLQuantizationType[name]
    directory = open_model_directory(model_directory())
    tensors, types = {}, {}
    with directory.open_weights() as source:
        for tensor in source.names:
            data = bf16_to_f32(source.read(tensor))
            if data.ndim == 2:
                types[tensor] = kind.value
                data = gguf.quants.quantize(data, kind)
            tensors[tensor] = data
    return write_gguf(path, {**directory.config, "eos_token_id": 2}, tensors, types).read_bytes()


@pytest.fixture
def _managed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The hub and the working directory that docs/manage.md speaks of."""
    names = ("Q4_0", "Q8_0")
    repositories = {
        "example/demo": {**content(model_directory()), "README.md": b"---\nlicense: apache-2.0\n---\n"},
        "example/demo-GGUF": {f"demo-{name}.gguf": demo_gguf(tmp_path / f"{name}.gguf", name) for name in names},
    }
    monkeypatch.setenv("MLC_LLM_HOME", str(tmp_path / "mlc"))
    monkeypatch.setenv("WINDLASS_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange/config.json").write_text(json.dumps({"model_type": "mamba"}))
    (tmp_path / "strange/model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    monkeypatch.chdir(tmp_path / "work")
    with serving(repositories) as hub:
        ask_here(monkeypatch, hub, tmp_path / "hub")
        yield


@pytest.mark.usefixtures("_managed")
def test_the_commands_of_docs_manage(capfd: pytest.CaptureFixture[str]) -> None:
    text = MANAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    steps = [step for block in blocks for step in re.findall(r"\$ windlass (.*)\n((?:(?!\$ ).*\n)*)", block)]
    assert len(steps) > 12
    for command, expected in steps:
        main(shlex.split(command))
        output = capfd.readouterr()
        pattern = re.escape(expected).replace(r"\.\.\.", ".*")
        assert re.fullmatch(pattern, output.out + output.err), f"{command}:\n{output.out}{output.err}"
    [program] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(program, {})  # noqa: S102
    assert capfd.readouterr().out.splitlines()[-1] == "True"
