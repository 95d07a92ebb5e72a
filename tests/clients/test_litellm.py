"""LiteLLM: whole answers, streams, async calls, and the classes of its errors."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from support.lifecycle import ANSWER, QUESTION
from support.server import DEMO, KEY, RunningServer

# The warnings of other projects are theirs.
pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def library() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would look for a list of prices on the network
        yield pytest.importorskip("litellm")


@pytest.fixture(params=["openai", "hosted_vllm"])
def asked(request: pytest.FixtureRequest, server: RunningServer) -> dict[str, Any]:
    return {
        "model": f"{request.param}/{DEMO.name}",
        "api_base": f"{server.url}/v1",
        "api_key": KEY,
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
        "num_retries": 0,
        "max_retries": 0,
    }


def test_a_whole_answer(library: Any, asked: dict[str, Any]) -> None:
    answer = library.completion(**asked)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens > 0


def test_a_stream(library: Any, asked: dict[str, Any]) -> None:
    chunks = list(library.completion(**asked, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]


def test_async_calls(library: Any, asked: dict[str, Any]) -> None:
    async def run() -> tuple[str, str]:
        answer = await library.acompletion(**asked)
        stream = await library.acompletion(**asked, stream=True)
        return answer.choices[0].message.content, "".join(
            [chunk.choices[0].delta.content or "" async for chunk in stream]
        )

    assert asyncio.run(run()) == (ANSWER, ANSWER)


def test_refusals_have_their_classes(library: Any, asked: dict[str, Any]) -> None:
    with pytest.raises(library.BadRequestError):
        library.completion(**{**asked, "temperature": 9})
    with pytest.raises(library.AuthenticationError):
        library.completion(**{**asked, "api_key": "wrong"})
    with pytest.raises(library.NotFoundError):
        library.completion(**{**asked, "model": asked["model"] + "-9"})
    with pytest.raises(library.ContextWindowExceededError):
        library.completion(**{**asked, "messages": [{"role": "user", "content": "word " * 5000}]})
