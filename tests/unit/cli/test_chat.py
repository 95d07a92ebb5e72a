"""``windlass chat`` with a scripted engine: one answer, a conversation, and every way it can end."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable
from typing import Any

import pytest

import windlass
from support.fake_engine import CTRL_C, EARLY_CTRL_C, HANG, FakeEngine
from windlass.cli import main
from windlass.config import EngineConfig
from windlass.errors import ContextLengthError, EngineFailedError, LoadError, RequestAbortedError

Use = Callable[..., FakeEngine]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Install a fake engine with the given answers."""

    def install(*answers: Any, **named: Any) -> FakeEngine:
        engine = FakeEngine(*answers, **named)
        monkeypatch.setitem(vars(windlass), "MLCEngine", engine)
        return engine

    return install


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Make bytes the standard input."""

    def install(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))

    return install


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make standard input a terminal on which these lines are typed; an exception in place of a line is raised."""

    def install(*lines: str | type[BaseException]) -> None:
        typed = list(lines)

        def read(_prompt: str = "") -> str:
            line = typed.pop(0) if typed else EOFError
            if not isinstance(line, str):
                raise line
            return line

        stdin = io.StringIO()
        monkeypatch.setattr(stdin, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr("builtins.input", read)

    return install


def test_prompt_option_prints_the_answer_and_nothing_else(use: Use, capfd: pytest.CaptureFixture[str]) -> None:
    engine = use(["Par", "is", "."])
    assert main(["chat", "-p", "What is the capital of France?"]) == 0
    assert capfd.readouterr() == ("Paris.\n", "")
    assert engine.calls[0]["messages"] == [{"role": "user", "content": "What is the capital of France?"}]
    assert engine.streams[0].closed
    assert engine.exits == [None]


def test_options_reach_the_engine_and_the_call(use: Use) -> None:
    engine = use(["ok"])
    options = "--system Brief. --temperature 0.5 --top-p 0.9 --max-tokens 7 --seed 3 --stop A --stop B --device cpu"
    more = "--quantization q4f16_1 --load-format dummy --context 64 --kv-cache-dtype f32 --threads 2 --mode local"
    assert main(["chat", "some/dir", "-p", "hi", *options.split(), *more.split(), "--no-pack-cache"]) == 0
    call = engine.calls[0]
    assert call["messages"][0] == {"role": "system", "content": "Brief."}
    assert {name: call[name] for name in ("temperature", "top_p", "max_tokens", "seed", "stop")} == {
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 7,
        "seed": 3,
        "stop": ["A", "B"],
    }
    assert engine.built == {
        "model": "some/dir",
        "device": "cpu",
        "mode": "local",
        "quantization": "q4f16_1",
        "engine_config": EngineConfig(
            load_format="dummy",
            max_single_sequence_length=64,
            kv_cache_dtype="f32",
            num_threads=2,
            pack_cache=False,
        ),
    }


def test_unset_options_are_left_to_the_model(use: Use) -> None:
    engine = use(["ok"])
    assert main(["chat", "-p", "hi"]) == 0
    assert set(engine.calls[0]) == {"messages", "request_id", "stream", "stream_options"}
    assert engine.built["model"] is None
    assert engine.built["engine_config"] == EngineConfig()


def test_piped_input_is_one_prompt(use: Use, pipe: Callable[[bytes], None], capfd: pytest.CaptureFixture[str]) -> None:
    engine = use(["ok"])
    pipe("zwei\nZeilen: ä\n".encode())
    assert main(["chat"]) == 0
    assert engine.calls[0]["messages"] == [{"role": "user", "content": "zwei\nZeilen: ä\n"}]
    assert capfd.readouterr().out == "ok\n"


@pytest.mark.parametrize(
    ("content", "code", "message"), [(b"", 2, "the prompt is empty"), (b" \n", 2, "empty"), (b"\xff", 1, "not UTF-8")]
)
def test_unusable_piped_input(
    use: Use,
    pipe: Callable[[bytes], None],
    capfd: pytest.CaptureFixture[str],
    content: bytes,
    code: int,
    message: str,
) -> None:
    engine = use()
    pipe(content)
    assert main(["chat"]) == code
    assert message in capfd.readouterr().err
    assert engine.built == {}, "an engine was loaded for nothing"


@pytest.mark.parametrize(
    "arguments",
    [
        ["chat", "-p", ""],
        ["chat", "-p", "x", "--temperature", "3"],
        ["chat", "-p", "x", "--top-p", "0"],
        ["chat", "-p", "x", "--max-tokens", "0"],
        ["chat", "-p", "x", "--quantization", "q5"],
        ["chat", "-p", "x", "--load-format", "pickle"],
        ["chat", "a", "b"],
        ["chat", "--nonsense"],
        ["nonsense"],
        [],
    ],
)
def test_wrong_usage_exits_2(use: Use, capfd: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    use()
    assert main(arguments) == 2
    output = capfd.readouterr()
    assert output.out == ""
    assert "Usage: windlass" in output.err


def test_errors_are_one_line_and_exit_1(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise LoadError("some/dir/config.json", "line 3:\nnot JSON")

    monkeypatch.setitem(vars(windlass), "MLCEngine", refuse)
    assert main(["chat", "some/dir", "-p", "hi"]) == 1
    assert capfd.readouterr() == ("", "error: some/dir/config.json: line 3: not JSON\n")


def test_a_setting_the_engine_refuses_exits_1(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("device 'cuda' is not supported")

    monkeypatch.setitem(vars(windlass), "MLCEngine", refuse)
    assert main(["chat", "--device", "cuda", "-p", "hi"]) == 1
    assert capfd.readouterr() == ("", "error: device 'cuda' is not supported\n")


def test_failure_while_answering_exits_1(use: Use, capfd: pytest.CaptureFixture[str]) -> None:
    engine = use(["half", EngineFailedError("the engine failed")])
    assert main(["chat", "-p", "hi"]) == 1
    assert capfd.readouterr() == ("half", "error: the engine failed\n")
    assert engine.streams[0].closed
    assert engine.exits == [EngineFailedError]


def test_interrupted_answer_exits_130(use: Use, capfd: pytest.CaptureFixture[str]) -> None:
    engine = use(["half", CTRL_C])
    assert main(["chat", "-p", "hi"]) == 130
    assert capfd.readouterr().out == "half\n"
    assert engine.streams[0].closed


def test_interrupted_load_exits_130(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(vars(windlass), "MLCEngine", interrupt)
    assert main(["chat", "-p", "hi"]) == 130
    assert capfd.readouterr() == ("", "\n")


def test_conversation_remembers(use: Use, terminal: Callable[..., None], capfd: pytest.CaptureFixture[str]) -> None:
    engine = use(["Hello", " Ann."], ["Ann."])
    terminal("I am Ann.", "", "   ", "Who am I?", EOFError)
    assert main(["chat", "--system", "Be kind."]) == 0
    assert capfd.readouterr().out == "Hello Ann.\nAnn.\n"
    assert engine.calls[1]["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "I am Ann."},
        {"role": "assistant", "content": "Hello Ann."},
        {"role": "user", "content": "Who am I?"},
    ]
    assert engine.exits == [None]


def test_reset_keeps_the_system_prompt_only(use: Use, terminal: Callable[..., None]) -> None:
    engine = use(["a"], ["b"])
    terminal("one", "/reset", "two", "/exit", "never read")
    assert main(["chat", "--system", "S"]) == 0
    assert [message["content"] for message in engine.calls[1]["messages"]] == ["S", "two"]
    assert len(engine.calls) == 2


def test_slash_commands(use: Use, terminal: Callable[..., None], capfd: pytest.CaptureFixture[str]) -> None:
    engine = use(["a", "b", "c"])
    terminal("/help", "/stats", "/dance now", "one", "/stats", "/exit")
    assert main(["chat"]) == 0
    output = capfd.readouterr()
    assert len(engine.calls) == 1
    assert output.out == "abc\n"
    for command in ("/help", "/reset", "/stats", "/exit"):
        assert command in output.err
    assert "Unknown command /dance; /help lists the commands." in output.err
    assert "all answers (0): 0 prompt tokens, 0 answer tokens" in output.err
    assert "all answers (1): 10 prompt tokens, 3 answer tokens" in output.err


def test_ctrl_c_stops_the_answer_and_keeps_the_chat(
    use: Use, terminal: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    engine = use(["It was ", CTRL_C], ["fine"])
    terminal("a story", "go on", EOFError)
    assert main(["chat"]) == 0
    output = capfd.readouterr()
    assert output.out == "It was \nfine\n"
    assert "(stopped)" in output.err
    assert engine.streams[0].closed
    assert [message["content"] for message in engine.calls[1]["messages"]] == ["a story", "It was ", "go on"]


def test_ctrl_c_before_the_engine_knows_the_request(use: Use, terminal: Callable[..., None]) -> None:
    engine = use([EARLY_CTRL_C, HANG], ["fine"])
    terminal("one", "two")
    assert main(["chat"]) == 0
    assert engine.streams[0].closed
    assert [message["content"] for message in engine.calls[1]["messages"]] == ["one", "", "two"]


def test_a_second_ctrl_c_leaves_an_answer_that_does_not_end(
    use: Use, monkeypatch: pytest.MonkeyPatch, terminal: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    engine = use(["half", CTRL_C], ["fine"])
    monkeypatch.setattr(engine, "abort", lambda _: signal.raise_signal(signal.SIGINT))
    terminal("one", "two")
    assert main(["chat"]) == 0
    assert "Ctrl-C once more" in capfd.readouterr().err
    assert [message["content"] for message in engine.calls[1]["messages"]] == ["two"]


def test_an_abort_that_nobody_asked_for_is_an_error(use: Use, capfd: pytest.CaptureFixture[str]) -> None:
    use(["half", RequestAbortedError("request 'x' was aborted")])
    assert main(["chat", "-p", "hi"]) == 1
    assert capfd.readouterr().err == "error: request 'x' was aborted\n"


def test_ctrl_c_is_python_s_own_again_after_an_answer(use: Use) -> None:
    before = signal.getsignal(signal.SIGINT)
    use(["ok"])
    assert main(["chat", "-p", "hi"]) == 0
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_at_the_prompt_leaves_the_second_time(
    use: Use, terminal: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    engine = use(["a"])
    terminal(KeyboardInterrupt, "one", KeyboardInterrupt, KeyboardInterrupt, "never read")
    assert main(["chat"]) == 0
    assert capfd.readouterr().err.count("Ctrl-C once more") == 2
    assert len(engine.calls) == 1


def test_a_refused_message_does_not_end_the_chat(
    use: Use, terminal: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    engine = use(["a"], ContextLengthError("the prompt is too long"), ["b"])
    terminal("one", "two", "three")
    assert main(["chat"]) == 0
    assert "error: the prompt is too long" in capfd.readouterr().err
    assert [message["content"] for message in engine.calls[2]["messages"]] == ["one", "a", "three"]


def test_a_failed_engine_ends_the_chat(
    use: Use, terminal: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    use(EngineFailedError("the engine failed"))
    terminal("one", "two")
    assert main(["chat"]) == 1
    assert "error: the engine failed\n" in capfd.readouterr().err


def test_an_answer_cut_by_its_length_says_so(
    use: Use, terminal: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    use(["a"], reason="length")
    terminal("one")
    assert main(["chat"]) == 0
    assert "cut off" in capfd.readouterr().err
