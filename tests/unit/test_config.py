"""EngineConfig: what it refuses, and the sizes it settles on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from windlass.config import (
    EngineConfig,
    Sizes,
    cache_directory,
    cache_limit,
    default_threads,
    settle_sizes,
)

PAGE_BYTES = 1024


def settle(context: int = 4096, pages: int = 100_000, **settings: Any) -> Sizes:
    return settle_sizes(
        EngineConfig(**settings),
        context_length=context,
        kv_bytes_per_page=PAGE_BYTES,
        free_bytes=pages * PAGE_BYTES,
    )


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"mode": "fast"}, "mode"),
        ({"load_format": "gguf"}, "load_format"),
        ({"kv_cache_dtype": "int3"}, "kv_cache_dtype"),
        ({"executor": "cuda"}, "executor"),
        ({"prefix_cache_mode": "hash"}, "prefix_cache_mode"),
        ({"max_waiting_requests": 0}, "max_waiting_requests"),
        ({"speculative_mode": "medusa"}, "speculative_mode"),
        ({"spec_draft_length": -1}, "spec_draft_length"),
        ({"spec_draft_length": 33}, "spec_draft_length"),
        ({"spec_draft_length": True}, "spec_draft_length"),
        ({"speculative_mode": "small_draft"}, "additional_models"),
        ({"speculative_mode": "small_draft", "additional_models": ["x", "y"]}, "additional_models"),
        ({"speculative_mode": "small_draft", "additional_models": "x"}, "additional_models"),
        ({"tensor_parallel_shards": 2}, "tensor_parallel_shards"),
        ({"additional_models": ["x"]}, "additional_models"),
        ({"max_num_sequence": 0}, "max_num_sequence"),
        ({"max_num_sequence": True}, "max_num_sequence"),
        ({"prefill_chunk_size": 1.5}, "prefill_chunk_size"),
        ({"num_threads": -1}, "num_threads"),
        ({"gpu_memory_utilization": 0.0}, "gpu_memory_utilization"),
        ({"kv_cache_page_size": 32}, "kv_cache_page_size"),
        ({"max_single_sequence_length": 64, "max_total_sequence_length": 32}, "max_single_sequence_length"),
    ],
)
def test_values_out_of_range_are_refused_by_name(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=rf"EngineConfig\.{named}"):
        EngineConfig(**settings)


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(TypeError, match="kv_cache_typo"):
        EngineConfig(kv_cache_typo=1)  # type: ignore[call-arg]


def test_arguments_fill_in_and_must_not_conflict() -> None:
    config = EngineConfig(mode="server").with_arguments(model="x", mode=None, quantization="q4f16_1")
    assert (config.model, config.mode, config.quantization) == ("x", "server", "q4f16_1")
    with pytest.raises(ValueError, match=r"EngineConfig\.mode is 'server', but the engine was given mode='local'"):
        config.with_arguments(mode="local")


def test_modes_choose_sizes() -> None:
    assert settle() == Sizes(4, 4096, 512, 8192 // 16)
    assert settle(mode="interactive") == Sizes(1, 4096, 512, 4096 // 16)
    assert settle(mode="server", max_num_sequence=32) == Sizes(32, 4096, 512, 32 * 4096 // 16)
    assert settle(context=1024) == Sizes(4, 1024, 512, 4096 // 16)
    assert settle(context=131072) == Sizes(4, 8192, 512, 8192 // 16)


def test_memory_limits_the_cache_and_with_it_the_sequences() -> None:
    assert settle(mode="server", pages=100) == Sizes(128, 1600, 512, 100)


def test_what_was_asked_for_is_given_or_refused() -> None:
    assert settle(max_total_sequence_length=100) == Sizes(4, 100, 112, 7)
    assert settle(context=131072, max_single_sequence_length=20_000).num_pages == 20_000 // 16
    with pytest.raises(ValueError, match=r"max_single_sequence_length \(5000\) is larger than the model's context"):
        settle(max_single_sequence_length=5000)
    with pytest.raises(ValueError, match="KV cache for 4096 tokens takes"):
        settle(pages=100, max_single_sequence_length=4096)
    with pytest.raises(ValueError, match="KV cache"):
        settle(pages=0)


def test_a_step_holds_a_token_of_every_sequence() -> None:
    assert settle(mode="server", prefill_chunk_size=16).prefill_chunk_size == 128


def test_threads_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WINDLASS_NUM_THREADS", raising=False)
    assert default_threads() is None
    monkeypatch.setenv("WINDLASS_NUM_THREADS", "3")
    assert default_threads() == 3
    monkeypatch.setenv("WINDLASS_NUM_THREADS", "many")
    with pytest.raises(ValueError, match="WINDLASS_NUM_THREADS"):
        default_threads()


def test_where_files_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("WINDLASS_CACHE_DIR", raising=False)
    assert cache_directory() == Path("/home/somebody/.cache/windlass")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_directory() == Path("/caches/windlass")
    monkeypatch.setenv("WINDLASS_CACHE_DIR", "/mine")
    assert cache_directory() == Path("/mine")


@pytest.mark.parametrize(("value", "limit"), [("", None), ("0", 0), ("1.5", 3 << 29), ("32", 32 << 30)])
def test_how_much_is_kept(monkeypatch: pytest.MonkeyPatch, value: str, limit: int | None) -> None:
    monkeypatch.setenv("WINDLASS_CACHE_LIMIT", value)
    assert cache_limit() == limit


@pytest.mark.parametrize("value", ["much", "-1", "nan", "inf", "1e300"])
def test_a_size_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("WINDLASS_CACHE_LIMIT", value)
    with pytest.raises(ValueError, match="WINDLASS_CACHE_LIMIT must be a number of GiB"):
        cache_limit()
