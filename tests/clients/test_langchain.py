"""LangChain's ``ChatOpenAI``: whole answers, streams, a tool and its result, the responses route, errors."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from support.lifecycle import ANSWER, QUESTION
from support.server import DEMO, KEY, RunningServer

# The warnings of other projects are theirs.
pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("default")]

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def library() -> Any:
    return pytest.importorskip("langchain_openai")


@pytest.fixture
def model(library: Any, server: RunningServer) -> Any:
    return library.ChatOpenAI(
        base_url=f"{server.url}/v1", api_key=KEY, model=DEMO.name, temperature=0, max_retries=0, stream_usage=True
    )


def test_a_whole_answer(model: Any) -> None:
    answer = model.invoke(QUESTION)
    assert answer.content == ANSWER
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.usage_metadata["total_tokens"] > 0


def test_a_stream(model: Any) -> None:
    chunks = list(model.stream(QUESTION))
    assert "".join(chunk.content for chunk in chunks) == ANSWER
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    assert whole.response_metadata["finish_reason"] == "stop"
    assert whole.usage_metadata["output_tokens"] > 0


def test_async_calls(model: Any) -> None:
    async def run() -> tuple[str, str]:
        answer = await model.ainvoke(QUESTION)
        return answer.content, "".join([chunk.content async for chunk in model.astream(QUESTION)])

    assert asyncio.run(run()) == (ANSWER, ANSWER)


def test_a_conversation_with_roles(model: Any) -> None:
    answer = model.invoke([("system", "You are Windlass."), ("human", QUESTION), ("ai", ANSWER), ("human", QUESTION)])
    assert answer.content == ANSWER


def test_a_tool_and_its_result(model: Any) -> None:
    messages = pytest.importorskip("langchain_core.messages")
    asked = [messages.HumanMessage("What is the weather in Paris?")]
    bound = model.bind_tools([WEATHER])
    called = bound.invoke(asked)
    (call,) = called.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})
    streamed = list(bound.stream(asked))
    assert [call["name"] for chunk in streamed for call in chunk.tool_calls if call["name"]] == ["get_weather"]
    result = messages.ToolMessage('{"weather": "sunny"}', tool_call_id=call["id"])
    assert bound.invoke([*asked, called, result]).content


def test_the_responses_route(library: Any, server: RunningServer) -> None:
    model = library.ChatOpenAI(
        base_url=f"{server.url}/v1", api_key=KEY, model=DEMO.name, temperature=0, use_responses_api=True
    )
    assert model.invoke(QUESTION).text == ANSWER
    assert "".join(chunk.text for chunk in model.stream(QUESTION)) == ANSWER


def test_a_refusal_is_an_error(library: Any, server: RunningServer) -> None:
    openai = pytest.importorskip("openai")
    stranger = library.ChatOpenAI(base_url=f"{server.url}/v1", api_key="wrong", model=DEMO.name, max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.invoke(QUESTION)
