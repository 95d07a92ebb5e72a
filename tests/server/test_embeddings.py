"""``/v1/embeddings``, raw and through OpenAI's client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from support.openai_schema import openai_schema
from support.server import DEMO, RunningServer, serving
from support.tiny_embedding import EMBEDDING_CASES, write_embedding_directory
from windlass import EngineConfig
from windlass.server.served import ModelSpec

TEXTS = ["How deep is the sea?", "Eleven kilometres at most."]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    path = tmp_path_factory.mktemp("models") / "tiny-bert"
    write_embedding_directory(EMBEDDING_CASES["bert-embedding"], path)
    with serving(DEMO, ModelSpec("tiny-bert", EngineConfig(model=str(path), verbose=False))) as running:
        yield running


@pytest.fixture
def model(server: RunningServer) -> str:
    listed = [one["id"] for one in server.request("GET", "/v1/models").json["data"]]
    return str(next(name for name in listed if "bert" in name))


def test_raw(server: RunningServer, model: str, data_dir: Path) -> None:
    answer = server.request("POST", "/v1/embeddings", {"model": model, "input": TEXTS})
    assert answer.status == 200
    openai_schema(data_dir).check("CreateEmbeddingResponse", answer.json)
    assert answer.json["model"] == model
    assert [len(one["embedding"]) for one in answer.json["data"]] == [64, 64]
    counts = [server.request("POST", "/tokenize", {"model": model, "prompt": text}).json["count"] for text in TEXTS]
    # A prompt to be continued has what the tokenizer puts before a text, and not what it puts behind.
    assert answer.json["usage"]["total_tokens"] == sum(counts) + len(TEXTS)


def test_the_client(server: RunningServer, model: str) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        # It asks for base64, and decodes it.
        decoded = client.embeddings.create(model=model, input=TEXTS)
        numbers = client.embeddings.create(model=model, input=TEXTS, encoding_format="float")
        with pytest.raises(openai.BadRequestError) as caught:
            client.embeddings.create(model=DEMO.name, input="a")
        assert caught.value.code == "unsupported_model"
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model=model, prompt="a")
        assert caught.value.code == "unsupported_model"
    for one, other in zip(decoded.data, numbers.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-7)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "input"),
        ({"input": ""}, 200, None),
        ({"input": [[]]}, 400, "input"),
        ({"input": "a", "dimensions": 0}, 400, "dimensions"),
        ({"input": "a", "stream": True}, 400, "stream"),
        ({"input": [1] * 200}, 400, "input"),
    ],
)
def test_bodies(server: RunningServer, model: str, body: dict[str, object], status: int, param: str | None) -> None:
    answer = server.request("POST", "/v1/embeddings", {"model": model, **body})
    assert answer.status == status, json.dumps(answer.json)
    assert status == 200 or answer.json["error"]["param"] == param
