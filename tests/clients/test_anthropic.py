"""Anthropic's own client against ``/v1/messages``: whole answers, streams, tools, errors, sync and async."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from support.lifecycle import ANSWER, LONG, QUESTION, idle_and_whole, slow_down
from support.server import RunningServer, serving

pytestmark = pytest.mark.clients

WEATHER: Any = {
    "name": "get_weather",
    "description": "Get the weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
ASKED: Any = {
    "model": "windlass-demo",
    "max_tokens": 50,
    "extra_body": {"temperature": 0},  # this client knows it no more
    "messages": [{"role": "user", "content": QUESTION}],
}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serving(api_keys=("sk-1",)) as running:
        yield running


@pytest.fixture(scope="module")
def sdk() -> Any:
    """The client library, which is not there where these tests are not asked for."""
    import anthropic

    return anthropic


@pytest.fixture(params=["api_key", "auth_token"])
def client(server: RunningServer, sdk: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    with sdk.Anthropic(base_url=server.url, max_retries=0, **{request.param: "sk-1"}) as client:
        yield client


def test_a_message(client: Any) -> None:
    message = client.messages.create(**ASKED)
    assert [block.text for block in message.content] == [ANSWER]
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens > 0


def test_a_stream(client: Any) -> None:
    with client.messages.stream(**ASKED) as stream:
        assert "".join(stream.text_stream) == ANSWER
        message = stream.get_final_message()
    assert message.content[0].text == ANSWER
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert [event.type for event in client.messages.create(**ASKED, stream=True)][-1] == "message_stop"


def test_the_async_client(server: RunningServer, sdk: Any) -> None:
    async def ask() -> str:
        async with (
            sdk.AsyncAnthropic(base_url=server.url, api_key="sk-1", max_retries=0) as client,
            client.messages.stream(**ASKED) as stream,
        ):
            return str(await stream.get_final_text())

    assert asyncio.run(ask()) == ANSWER


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_its_result_and_the_answer(client: Any, *, stream: bool) -> None:
    def ask(messages: list[Any]) -> Any:
        wanted = {**ASKED, "messages": messages, "tools": [WEATHER]}
        if not stream:
            return client.messages.create(**wanted)
        with client.messages.stream(**wanted) as events:
            return events.get_final_message()

    messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    answer = ask(messages)
    [call] = answer.content
    assert (answer.stop_reason, call.name, call.input) == ("tool_use", "get_weather", {"city": "Paris"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": '{"weather": "rainy"}'}
    messages += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    assert ask(messages).content[0].text == "The weather in Paris is rainy."


def test_tokens_are_counted(client: Any) -> None:
    counted = client.messages.count_tokens(model="windlass-demo", messages=ASKED["messages"])
    usage = client.messages.create(**ASKED).usage
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


def test_errors_have_the_clients_own_types(server: RunningServer, sdk: Any, client: Any) -> None:
    with pytest.raises(sdk.NotFoundError, match="claude-9") as caught:
        client.messages.create(**{**ASKED, "model": "claude-9"})
    assert caught.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(sdk.BadRequestError, match="temperature"):
        client.messages.create(**{**ASKED, "extra_body": {"temperature": 9}})
    stranger = sdk.Anthropic(base_url=server.url, api_key="sk-2", max_retries=0)
    with stranger, pytest.raises(sdk.AuthenticationError):
        stranger.messages.create(**ASKED)


def test_a_stream_that_is_cut_raises(sdk: Any) -> None:
    with serving() as server, sdk.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        slow_down(server.engine, 0.03)
        story = {**ASKED, "messages": [{"role": "user", "content": LONG}], "max_tokens": 500}
        with client.messages.stream(**story) as stream:
            next(stream.text_stream)
            server.stop()
            server.stop()
            with pytest.raises(sdk.APIStatusError, match="shutting down"):
                stream.until_done()


def test_leaving_a_stream_frees_its_request(sdk: Any) -> None:
    with serving() as server, sdk.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        slow_down(server.engine, 0.03)
        story = {**ASKED, "messages": [{"role": "user", "content": LONG}], "max_tokens": 500}
        with client.messages.stream(**story) as stream:
            next(stream.text_stream)
        assert idle_and_whole(server.engine)
        assert server.engine._metrics().requests_aborted["caller"] == 1
