"""Tokens of a text, text of tokens, and the prompt of a conversation, over HTTP."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from support.server import RunningServer, serving
from windlass.text.text_model import TextModel

TEXT = "The capital of France is Paris. Ünïcödé 🦜"
MESSAGES = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hello!"}]
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serving() as running:
        yield running


def test_tokens_of_a_text_and_back(server: RunningServer) -> None:
    answer = server.request("POST", "/tokenize", {"prompt": TEXT, "model": "windlass-demo", "return_token_strs": True})
    assert answer.status == 200
    tokens = answer.json["tokens"]
    assert tokens == server.engine.tokenizer.encode_prompt(TEXT)
    assert answer.json["count"] == len(tokens) == len(answer.json["token_strs"])
    assert answer.json["max_model_len"] == server.engine.engine_config.max_single_sequence_length
    assert "".join(answer.json["token_strs"]).startswith("The capital")
    assert server.request("POST", "/detokenize", {"tokens": tokens}).json == {"prompt": TEXT}
    assert server.request("POST", "/tokenize", {"prompt": TEXT}).json["token_strs"] is None


def test_tokens_are_those_of_a_completion(server: RunningServer) -> None:
    counted = server.request("POST", "/tokenize", {"messages": MESSAGES, "tools": [TOOL]}).json["count"]
    used = server.request("POST", "/v1/chat/completions", {"messages": MESSAGES, "tools": [TOOL], "max_tokens": 1})
    assert used.json["usage"]["prompt_tokens"] == counted


def test_a_template_is_applied(server: RunningServer) -> None:
    prompt = server.request("POST", "/apply-template", {"messages": MESSAGES}).json["prompt"]
    assert prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n"
    )
    with_tools = server.request("POST", "/apply-template", {"messages": MESSAGES, "tools": [TOOL]}).json["prompt"]
    assert "get_weather" in with_tools


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, 400, "prompt"),
        ("/tokenize", {"prompt": 1}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "tools": []}, 400, "tools"),
        ("/tokenize", {"messages": MESSAGES, "add_special_tokens": True}, 400, "add_special_tokens"),
        ("/tokenize", {"messages": [{"role": "nobody", "content": ""}]}, 400, "messages"),
        ("/tokenize", {"prompt": "a", "no_such": 1}, 400, "no_such"),
        ("/tokenize", {"prompt": "a", "model": "gpt-9"}, 404, "model"),
        ("/detokenize", {}, 400, "tokens"),
        ("/detokenize", {"tokens": [1 << 40]}, 400, "tokens"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens"),
        ("/detokenize", {"tokens": ["1"]}, 400, "tokens"),
        ("/apply-template", {"messages": []}, 400, "messages"),
        ("/apply-template", {"messages": MESSAGES, "chat_template_kwargs": {"messages": []}}, 400, None),
    ],
)
def test_a_bad_field_is_refused_by_name(
    server: RunningServer, path: str, body: dict[str, Any], status: int, param: str | None
) -> None:
    answer = server.request("POST", path, body)
    assert answer.status == status
    assert answer.json["error"]["param"] == (param or "chat_template_kwargs")


def test_tokenizing_does_not_hold_up_the_event_loop(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    encode = TextModel.encode_prompt
    loops: list[bool] = []

    def slow(self: TextModel, text: str, **arguments: Any) -> list[int]:
        begun.set()
        assert go_on.wait(10)
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        loops.append(threading.current_thread().name == "windlass-prepare")
        return encode(self, text, **arguments)

    monkeypatch.setattr(TextModel, "encode_prompt", slow)
    answers: list[int] = []
    thread = threading.Thread(
        target=lambda: answers.append(server.request("POST", "/tokenize", {"prompt": "a"}).status)
    )
    thread.start()
    assert begun.wait(10)
    assert server.request("GET", "/livez").status == 200
    go_on.set()
    thread.join(10)
    assert (answers, loops) == ([200], [True])
