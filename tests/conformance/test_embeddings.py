"""Embeddings: the hidden states of transformers, pooled, whatever else is in the batch."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from support.gguf_embedding import write_embedding_gguf
from support.text_files import write_json
from support.tiny_embedding import CLS, EMBEDDING_CASES, SEP, write_embedding_directory
from windlass import AsyncMLCEngine, EngineConfig, MLCEngine
from windlass.errors import (
    ContextLengthError,
    EngineTerminatedError,
    InvalidRequestError,
    LoadError,
    RequestTimeoutError,
)
from windlass.protocol.responses import EmbeddingList

GOLDENS = Path(__file__).parent / "goldens"
CONFIG = EngineConfig(kv_cache_dtype="f32", verbose=False)


def prompts_and_states(name: str) -> list[tuple[list[int], Any]]:
    with np.load(GOLDENS / f"{name}.npz") as golden:
        assert str(golden["digest"]) == EMBEDDING_CASES[name].digest(), "the model changed: run tools/make_goldens.py"
        return [(golden[f"prompt_{i}"].tolist(), golden[f"hidden_{i}"]) for i in range(4)]


def pooled(states: Any, kind: str) -> Any:
    return {"last": states[-1], "cls": states[0], "mean": states.mean(axis=0)}[kind]


def vectors(answer: EmbeddingList) -> Any:
    assert [one.index for one in answer.data] == list(range(len(answer.data)))
    return np.array([one.embedding for one in answer.data], dtype=np.float32)


def engine(path: Path, **changes: Any) -> MLCEngine:
    return MLCEngine(str(path), engine_config=EngineConfig(**{"kv_cache_dtype": "f32", "verbose": False, **changes}))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLCEngine]:
    case = EMBEDDING_CASES["bert-embedding"]
    with engine(write_embedding_directory(case, tmp_path_factory.mktemp("bert") / "model", pooling="mean")) as made:
        yield made


@pytest.mark.parametrize("executor", ["reference", "native"])
@pytest.mark.parametrize("kind", ["mean", "cls", "last"])
@pytest.mark.parametrize("name", EMBEDDING_CASES)
def test_pooled_states_are_those_of_transformers(tmp_path: Path, name: str, kind: str, executor: str) -> None:
    golden = prompts_and_states(name)
    path = write_embedding_directory(
        EMBEDDING_CASES[name],
        tmp_path / "model",
        pooling=kind,
        normalize=False,
        prefix="bert." if "bert" in name else "",
    )
    # Chunks of 16 tokens, where a prompt may be cut.
    with engine(path, executor=executor, prefill_chunk_size=16) as made:
        answer = made.embeddings.create(input=[ids for ids, _ in golden])
        again = made.embeddings.create(input=[ids for ids, _ in golden])
    expected = np.array([pooled(states, kind) for _, states in golden])
    assert np.abs(vectors(answer) - expected).max() <= 1e-4 * np.abs(expected).max()
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(len(ids) for ids, _ in golden)
    if executor == "native":
        assert np.array_equal(vectors(answer), vectors(again)), "what is in the prefix cache changes the embedding"


@pytest.mark.parametrize("executor", ["reference", "native"])
@pytest.mark.parametrize(
    ("name", "kind"), [("bert-embedding", "mean"), ("bert-embedding", "cls"), ("qwen3-embedding", "last")]
)
def test_a_gguf_file_gives_the_states_of_transformers_with_length_1(
    tmp_path: Path, name: str, kind: str, executor: str
) -> None:
    golden = prompts_and_states(name)
    path = write_embedding_gguf(tmp_path / "model.gguf", name, pooling=gguf.PoolingType[kind.upper()])
    with engine(path, executor=executor, prefill_chunk_size=16) as made:
        answer = made.embeddings.create(input=[ids for ids, _ in golden])
    expected = np.array([pooled(states, kind) for _, states in golden])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.abs(vectors(answer) - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("name", "text", "ids"),
    [
        ("bert-embedding", "The SEAs", [2, 5, 4, 6, 3]),
        ("bert-embedding", "s\u00e9a unheard", [2, 4, 1, 3]),
        ("qwen3-embedding", "", [2]),
    ],
)
def test_a_text_is_what_a_gguf_file_puts_around_it_too(tmp_path: Path, name: str, text: str, ids: list[int]) -> None:
    path = write_embedding_gguf(tmp_path / "model.gguf", name, pooling=gguf.PoolingType.LAST)
    with engine(path) as made:
        answer = made.embeddings.create(input=[text, ids])
    assert answer.usage.prompt_tokens == 2 * len(ids)
    assert np.array_equal(*vectors(answer))


def test_a_pooling_that_is_not_supported_is_refused(tmp_path: Path) -> None:
    path = write_embedding_gguf(tmp_path / "model.gguf", "qwen3-embedding", pooling=gguf.PoolingType.RANK)
    with pytest.raises(LoadError, match=r"qwen3\.pooling_type is 4; supported: 1 \(mean\), 2 \(cls\), 3 \(last\)"):
        engine(path)


def test_an_embedding_does_not_depend_on_its_neighbours(bert: MLCEngine) -> None:
    texts = ["the sea", "a much longer text about the depth of the sea", "x"]
    together = vectors(bert.embeddings.create(input=texts))
    for text, vector in zip(texts, together, strict=True):
        assert np.array_equal(vectors(bert.embeddings.create(input=text))[0], vector)
    assert np.linalg.norm(together, axis=1) == pytest.approx(1.0, abs=1e-6)


def test_a_text_is_what_the_tokenizer_puts_around_it_too(bert: MLCEngine) -> None:
    plain = bert.tokenizer.tokenizer.encode("hello")
    answer = bert.embeddings.create(input="hello")
    assert answer.usage.prompt_tokens == len(plain) + 2
    assert np.array_equal(vectors(answer), vectors(bert.embeddings.create(input=[CLS, *plain, SEP])))


def test_base64_and_dimensions(bert: MLCEngine) -> None:
    whole = vectors(bert.embeddings.create(input="hello"))[0]
    encoded = bert.embeddings.create(input="hello", encoding_format="base64").data[0].embedding
    assert isinstance(encoded, str)
    assert np.array_equal(np.frombuffer(base64.b64decode(encoded), "<f4"), whole)
    short = vectors(bert.embeddings.create(input="hello", dimensions=8))[0]
    assert short == pytest.approx(whole[:8] / np.linalg.norm(whole[:8]), abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "kind", "param"),
    [
        ({}, InvalidRequestError, "input"),
        ({"input": []}, InvalidRequestError, "input"),
        ({"input": [307]}, InvalidRequestError, "input"),
        ({"input": ["a"] * 2049}, InvalidRequestError, "input"),
        ({"input": [1] * 97}, ContextLengthError, "input"),
        ({"input": "a" * 10_000}, ContextLengthError, "input"),
        ({"input": "a", "dimensions": 65}, InvalidRequestError, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, InvalidRequestError, "encoding_format"),
        ({"input": "a", "temperature": 1}, InvalidRequestError, "temperature"),
    ],
)
def test_what_is_refused(bert: MLCEngine, arguments: dict[str, Any], kind: type[Exception], param: str) -> None:
    with pytest.raises(kind) as caught:
        bert.embeddings.create(**arguments)
    assert getattr(caught.value, "param", None) == param


def test_the_longest_input_is_taken(bert: MLCEngine) -> None:
    assert bert.embeddings.create(input=[[5] * 96, [6] * 96]).usage.prompt_tokens == 192


def test_models_do_one_of_the_two(bert: MLCEngine) -> None:
    with pytest.raises(InvalidRequestError, match="generates no text") as caught:
        bert.completions.create(prompt="hello")
    assert caught.value.code == "unsupported_model"
    with MLCEngine(engine_config=EngineConfig(verbose=False)) as demo:
        with pytest.raises(InvalidRequestError, match="makes no embeddings"):
            demo.embeddings.create(input="hello")
        assert demo.completions.create(prompt="a", max_tokens=1).choices[0].finish_reason == "length"


def test_a_call_ends_when_the_engine_does(tmp_path: Path) -> None:
    path = write_embedding_directory(EMBEDDING_CASES["bert-embedding"], tmp_path / "model")
    made = engine(path)
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            while True:
                made.embeddings.create(input=[[7] * 90] * 64)
        except EngineTerminatedError as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    while sum(made.metrics().requests_finished.values()) < 64:
        assert any(thread.is_alive() for thread in threads)
    made.terminate()
    for thread in threads:
        thread.join(30)
    assert len(errors) == 3


def test_a_timeout_and_an_abort_free_all_pages(bert: MLCEngine) -> None:
    core = bert._core
    assert core is not None
    free = core.num_free_pages()
    with pytest.raises(RequestTimeoutError):
        bert.embeddings.create(input=[[7] * 90] * 2000, timeout=0.01)
    assert core.wait_until_idle(30)
    assert core.num_free_pages() == free
    assert bert.embeddings.create(input="hello").usage.prompt_tokens == len(bert.tokenizer.encode_whole("hello"))


def test_on_an_event_loop(tmp_path: Path) -> None:
    path = write_embedding_directory(EMBEDDING_CASES["bert-embedding"], tmp_path / "model")

    async def ask() -> EmbeddingList:
        async with AsyncMLCEngine(str(path), engine_config=CONFIG) as made:
            return await made.embeddings.create(input=["one", "two"])

    answer = asyncio.run(ask())
    assert len(answer.data) == 2
    assert answer.model == str(path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"modules": [{"type": "x.Transformer"}, {"type": "x.Dense"}]},
            "has the modules Transformer, Dense; supported",
        ),
        ({"modules": {}}, "must be a JSON array"),
        ({"modules": [{"type": "Transformer"}, {"type": "Pooling", "path": "../x"}]}, "the name of a directory"),
    ],
)
def test_modules_that_are_not_supported(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    path = write_embedding_directory(EMBEDDING_CASES["bert-embedding"], tmp_path / "model")
    write_json(path, **files)
    with pytest.raises(LoadError, match=message):
        engine(path)


def test_two_poolings_are_refused(tmp_path: Path) -> None:
    path = write_embedding_directory(EMBEDDING_CASES["bert-embedding"], tmp_path / "model")
    write_json(path / "1_Pooling", config={"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True})
    with pytest.raises(LoadError, match="asks for the pooling mean, pooling_mode_max_tokens"):
        engine(path)
