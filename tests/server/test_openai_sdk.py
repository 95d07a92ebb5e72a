"""OpenAI's own client for Python, in whatever version is installed: calls, streams, models, errors, retries."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest

from support.lifecycle import ANSWER, LONG, QUESTION, Gate, idle_and_whole, slow_down
from support.server import DEMO, KEY, RunningServer, serving
from windlass import EngineConfig
from windlass.server.served import ModelSpec

MESSAGES: Any = [{"role": "user", "content": QUESTION}]
STORY: Any = [{"role": "user", "content": LONG}]
NARROW = ModelSpec("windlass-demo", EngineConfig(num_threads=2, max_num_sequence=1, max_waiting_requests=1))
MODEL = DEMO.name


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serving(api_keys=(KEY,)) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with make_client(server) as client:
        yield client


def make_client(server: RunningServer, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(**{"base_url": f"{server.url}/v1", "api_key": KEY, "max_retries": 0, **options})


def test_a_whole_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True}
    with client.chat.completions.create(
        model=MODEL, messages=MESSAGES, temperature=0, stream=True, stream_options=options
    ) as stream:
        *chunks, last = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.choices == []
    assert last.usage is not None


def test_the_stream_helper_gathers_the_answer(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=MESSAGES, temperature=0) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == ANSWER


def test_a_text_is_continued(client: openai.OpenAI) -> None:
    whole = client.completions.create(model=MODEL, prompt="The capital of", max_tokens=8, temperature=0)
    stream = client.completions.create(model=MODEL, prompt="The capital of", max_tokens=8, temperature=0, stream=True)
    assert whole.choices[0].text
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text


def test_many_at_once_on_one_async_client(server: RunningServer) -> None:
    async def run() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:

            async def whole() -> str:
                answer = await client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0)
                return answer.choices[0].message.content or ""

            async def streamed() -> str:
                stream = await client.chat.completions.create(
                    model=MODEL, messages=MESSAGES, temperature=0, stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*(call() for _ in range(8) for call in (whole, streamed)))

    assert asyncio.run(run()) == [ANSWER] * 16


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert client.models.retrieve(model.id) == model
    assert model.id == MODEL
    with pytest.raises(openai.NotFoundError) as refusal:
        client.models.retrieve("gpt-9")
    assert refusal.value.code == "model_not_found"


def test_errors_have_their_classes(server: RunningServer, client: openai.OpenAI) -> None:
    def create(**fields: Any) -> Any:
        return client.chat.completions.create(**{"model": MODEL, "messages": MESSAGES, **fields})

    with pytest.raises(openai.BadRequestError) as bad:
        create(temperature=9)
    assert (bad.value.param, bad.value.code) == ("temperature", "invalid_value")
    with pytest.raises(openai.NotFoundError) as unknown:
        create(model="gpt-9")
    assert (unknown.value.param, unknown.value.code) == ("model", "model_not_found")
    with pytest.raises(openai.BadRequestError) as long:
        create(messages=[{"role": "user", "content": "word " * 5000}])
    assert long.value.code == "context_length_exceeded"
    with make_client(server, api_key="wrong") as stranger, pytest.raises(openai.AuthenticationError) as denied:
        stranger.models.list()
    assert denied.value.code == "invalid_api_key"
    with make_client(server, base_url=f"{server.url}/v2") as lost, pytest.raises(openai.NotFoundError):
        lost.models.list()


@contextmanager
def held(server: RunningServer) -> Iterator[Gate]:
    """Hold the engine where it is until the gate is opened, or at the latest at the end."""
    gate = Gate(server.engine)
    try:
        yield gate
    finally:
        gate.open.set()


def fill(client: openai.OpenAI) -> tuple[list[Any], openai.RateLimitError]:
    """Open streams until the server takes no more; those streams, and the refusal."""
    streams: list[Any] = []
    while len(streams) < 5:
        try:
            streams.append(client.chat.completions.create(model=MODEL, messages=STORY, stream=True))
        except openai.RateLimitError as refusal:
            return streams, refusal
    raise AssertionError("the queue has no bound")


def test_a_busy_server_is_asked_again() -> None:
    """429 with Retry-After: the client waits, and gets its answer when there is room."""
    streams: list[Any] = []

    def make_room(response: Any) -> None:
        if response.status_code == 429:
            gate.open.set()
            for stream in streams:
                stream.close()

    with (
        serving(NARROW) as server,
        make_client(server) as client,
        openai.DefaultHttpxClient(event_hooks={"response": [make_room]}) as told,
        make_client(server, max_retries=5, http_client=told) as patient,
        held(server) as gate,
    ):
        gate.open.clear()
        streams, refusal = fill(client)
        assert refusal.code == "overloaded"
        assert int(refusal.response.headers["retry-after"]) >= 1
        raw = patient.chat.completions.with_raw_response.create(model=MODEL, messages=MESSAGES, temperature=0)
        assert raw.retries_taken >= 1
        assert raw.parse().choices[0].message.content == ANSWER
        assert idle_and_whole(server.engine)


def test_a_stream_that_is_cut_never_looks_whole() -> None:
    with serving(drain_timeout=0.0) as server, make_client(server) as client:
        slow_down(server.engine, 0.1)
        stream = client.chat.completions.create(model=MODEL, messages=STORY, stream=True, temperature=0)
        next(stream)
        server.stop()
        with pytest.raises(openai.APIError) as cut:
            list(stream)
        assert cut.value.code == "draining"
        assert server.join() == 0
