"""LoRA adapters over HTTP: chosen by name, listed, loaded and unloaded while the server serves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import click
import pytest

from support.adapters import write_adapter
from support.lifecycle import ANSWER, ENDLESS, LONG, QUESTION, slow_down
from support.server import DEMO, RunningServer, serving, until
from windlass import EngineConfig
from windlass.cli import serve as command
from windlass.demo import model_directory
from windlass.server.served import ModelSpec

OTHER = ModelSpec("other", EngineConfig(num_threads=1, adapters=None))


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("adapters")
    return {name: write_adapter(directory / name, seed=seed) for seed, name in enumerate(("one", "two"), 1)}


@pytest.fixture(scope="module")
def server(paths: dict[str, str]) -> Iterator[RunningServer]:
    spec = replace(DEMO, config=EngineConfig(num_threads=2, adapters={"one": paths["one"]}))
    with serving(spec, OTHER, allow_lora_updates=True, enable_debug=True) as running:
        yield running


def asked(server: RunningServer, **fields: Any) -> tuple[str, str]:
    answer = server.chat(LONG, temperature=0, max_tokens=30, **fields)
    assert answer.status == 200, answer.json
    return answer.json["model"], answer.json["choices"][0]["message"]["content"]


def test_a_request_chooses_by_name(server: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "windlass.server.requests"):
        plain, adapted = asked(server), asked(server, model="windlass-demo:one")
        for fields in ({"model": "one"}, {"lora": "one"}, {"model": "windlass-demo", "lora": "one"}):
            assert asked(server, **fields) == adapted
        # A line of the log may come after its response.
        until(lambda: len(caplog.records) == 5)
    assert (plain[0], adapted[0]) == ("windlass-demo", "windlass-demo:one")
    assert plain[1] != adapted[1]
    named = [record.fields["model"] for record in caplog.records]  # type: ignore[attr-defined]
    assert sorted(named) == ["windlass-demo", *["windlass-demo:one"] * 4]
    stream = server.chat(LONG, temperature=0, max_tokens=30, model="one", stream=True).events
    assert {event["model"] for event in stream[:-1]} == {"windlass-demo:one"}
    assert "".join(event["choices"][0]["delta"].get("content") or "" for event in stream[:-1]) == adapted[1]


def test_the_other_interfaces_have_them_too(server: RunningServer) -> None:
    _, expected = asked(server, model="windlass-demo:one")
    body = {"model": "windlass-demo:one", "temperature": 0}
    response = server.request("POST", "/v1/responses", {**body, "input": LONG, "max_output_tokens": 30}).json
    assert (response["model"], response["output"][0]["content"][0]["text"]) == ("windlass-demo:one", expected)
    messages = [{"role": "user", "content": LONG}]
    message = server.request("POST", "/v1/messages", {**body, "messages": messages, "max_tokens": 30}).json
    assert (message["model"], message["content"][0]["text"]) == ("windlass-demo:one", expected)
    text = server.request("POST", "/v1/completions", {**body, "prompt": "Once", "max_tokens": 4}).json
    assert text["model"] == "windlass-demo:one"
    for path, prompt in (("/tokenize", {"prompt": "a"}), ("/v1/messages/count_tokens", {"messages": messages})):
        assert server.request("POST", path, {"model": "windlass-demo:one", **prompt}).status == 200


def test_they_are_listed_with_their_model(server: RunningServer) -> None:
    cards = server.request("GET", "/v1/models").json["data"]
    assert [(card["id"], card["parent"]) for card in cards] == [
        ("windlass-demo", None),
        ("windlass-demo:one", "windlass-demo"),
        ("other", None),
    ]
    assert cards[0]["max_model_len"] == cards[1]["max_model_len"]
    for name in ("windlass-demo:one", "one"):
        assert server.request("GET", f"/v1/models/{name}").json == cards[1]
    metrics = server.request("GET", "/metrics").body.decode()
    [sample] = [line for line in metrics.splitlines() if line.startswith("windlass_adapter_bytes{")]
    assert sample.startswith('windlass_adapter_bytes{model_name="windlass-demo:one"} ')
    assert int(sample.rpartition(" ")[2]) > 100_000


@pytest.mark.parametrize(
    ("fields", "status", "code", "message"),
    [
        ({"model": "windlass-demo:gone"}, 404, "model_not_found", "served are windlass-demo:one"),
        ({"model": "other:one"}, 404, "model_not_found", "served are other without adapters"),
        ({"model": "gone"}, 404, "model_not_found", "served are windlass-demo, other"),
        ({"lora": "gone"}, 404, "model_not_found", "there is no adapter 'gone'"),
        ({"model": "other", "lora": "one"}, 404, "model_not_found", "there is no adapter 'one'"),
        ({"lora": 5}, 400, "invalid_value", "lora"),
        ({"lora": ["one"]}, 400, "invalid_value", "lora"),
    ],
)
def test_names_that_are_none(
    server: RunningServer, fields: dict[str, Any], status: int, code: str, message: str
) -> None:
    refused = server.chat(QUESTION, **fields)
    assert (refused.status, refused.json["error"]["code"]) == (status, code)
    assert message in refused.json["error"]["message"]


def test_loading_and_unloading(server: RunningServer, paths: dict[str, str]) -> None:
    body = {"lora_name": "two", "lora_path": paths["two"]}
    loaded = server.request("POST", "/v1/load_lora_adapter", body)
    assert loaded.status == 200
    assert (loaded.json["id"], loaded.json["parent"]) == ("windlass-demo:two", "windlass-demo")
    again = server.request("POST", "/v1/load_lora_adapter", body)
    assert (again.status, again.json["error"]["param"]) == (400, "lora_name")
    assert "already" in again.json["error"]["message"]
    assert server.request("POST", "/v1/load_lora_adapter", {**body, "model": "other"}).status == 200
    texts = {asked(server, model=model)[1] for model in ("windlass-demo", "one", "windlass-demo:two")}
    assert len(texts) == 3
    assert asked(server, model="other:two")[1] in texts
    for model in ("windlass-demo", "other"):
        gone = server.request("POST", "/v1/unload_lora_adapter", {"lora_name": "two", "model": model})
        assert gone.json == {"id": f"{model}:two", "object": "model", "deleted": True}
    refused = server.request("POST", "/v1/unload_lora_adapter", {"lora_name": "two", "lora_int_id": 1})
    assert (refused.status, refused.json["error"]["code"], refused.json["error"]["param"]) == (
        404,
        "model_not_found",
        "lora_name",
    )
    assert server.chat(QUESTION, model="windlass-demo:two").status == 404


def test_unloading_waits_for_an_open_stream(server: RunningServer, paths: dict[str, str]) -> None:
    server.request("POST", "/v1/load_lora_adapter", {"lora_name": "two", "lora_path": paths["two"]})
    slow_down(server.engine)
    answers: list[Any] = []
    fields = {**ENDLESS, "max_tokens": 150, "model": "two"}
    reading = threading.Thread(target=lambda: answers.append(server.chat(LONG, stream=True, **fields)))
    reading.start()
    until(lambda: server.engine._metrics().num_requests_running == 1)
    unloading = threading.Thread(
        target=lambda: answers.append(server.request("POST", "/v1/unload_lora_adapter", {"lora_name": "two"}))
    )
    unloading.start()
    until(lambda: "two" not in server.engine.adapters)
    assert server.chat(QUESTION, model="windlass-demo:two").status == 404
    assert not answers
    reading.join(20)
    unloading.join(20)
    assert sorted(answer.status for answer in answers) == [200, 200]
    assert all(answer.events[-1] == "[DONE]" for answer in answers if answer.events)


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"lora_name": "x"}, "lora_path", "missing_required_parameter"),
        ({"lora_path": "x"}, "lora_name", "missing_required_parameter"),
        ({"lora_name": "x", "lora_path": ""}, "lora_path", "invalid_value"),
        ({"lora_name": "a:b", "lora_path": "/"}, "lora_name", "invalid_value"),
        ({"lora_name": "x", "lora_path": "/nowhere"}, "lora_path", "adapter_not_loaded"),
        ({"lora_name": "x", "lora_path": str(model_directory())}, "lora_path", "adapter_not_loaded"),
        ({"lora_name": "x", "lora_path": "/", "more": 1}, "more", "unknown_parameter"),
    ],
)
def test_what_cannot_be_loaded(server: RunningServer, body: dict[str, Any], param: str, code: str) -> None:
    refused = server.request("POST", "/v1/load_lora_adapter", body)
    assert (refused.status, refused.json["error"]["param"], refused.json["error"]["code"]) == (400, param, code)
    assert list(server.engine.adapters) == ["one"]


def test_the_routes_are_there_with_the_flag_only() -> None:
    with serving() as server:
        for name in ("load_lora_adapter", "unload_lora_adapter"):
            refused = server.request("POST", f"/v1/{name}", {"lora_name": "x", "lora_path": "/"})
            assert (refused.status, refused.json["error"]["code"]) == (404, "not_found")
        assert server.chat(QUESTION, temperature=0).json["choices"][0]["message"]["content"] == ANSWER


def test_the_command_line() -> None:
    context = command.serve.make_context(
        "serve",
        ["--lora-modules", "a=/x/y", "--lora-modules", "b=HF://o/n", "--additional-models", "m=z"],
    )
    first, second = command._specs(None, {**context.params, "memory": 0.5})
    assert first.config.adapters == {"a": "/x/y", "b": "HF://o/n"}
    assert second.config.adapters is None
    for given in (["x"], ["x="], ["a=b", "a=c"], ["a:b=c"]):
        with pytest.raises(ValueError, match=r"--lora-modules|an adapter.s name"):
            command._specs(None, {**context.params, "memory": 0.5, "lora_modules": given})
    assert isinstance(command.serve, click.Command)
