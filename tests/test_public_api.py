"""The public surface, pinned: a change here is a change for every user, and is meant to be seen."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest

import windlass
import windlass.errors
import windlass.serve
from windlass.protocol.arguments import ChatArguments, CompletionArguments

CONSTRUCTOR = (
    "(self, model: 'str | None' = None, device: 'str' = 'auto', *, model_lib: 'str | None' = None, "
    "mode: 'str | None' = None, engine_config: 'EngineConfig | None' = None, enable_tracing: 'bool' = False, "
    "quantization: 'str | None' = None, exit_drain_timeout: 'float' = 5.0) -> 'None'"
)
METHODS = {
    "load_adapter": "(self, name: 'str', path: 'str | os.PathLike[str]') -> 'None'",
    "unload_adapter": "(self, name: 'str') -> 'None'",
    "abort": "(self, request_id: 'str') -> 'None'",
    "metrics": "(self) -> 'EngineMetrics'",
    "reload": "(self, model: 'str | None' = None) -> 'None'",
    "reset": "(self) -> 'None'",
    "terminate": "(self, *, drain: 'bool' = False, timeout: 'float | None' = None) -> 'None'",
    "unload": "(self) -> 'None'",
}
"""Of both engines; on the async one all but ``terminate`` are coroutines."""

ASYNC_METHODS = {
    "aterminate": METHODS["terminate"],
    "load": "(model: 'str | None' = None, device: 'str' = 'auto', **arguments: 'Any') -> 'Self'",
}

PROPERTIES = {
    "adapters",
    "chat",
    "completions",
    "embeddings",
    "engine_config",
    "health",
    "state",
    "tokenizer",
    "trace_recorder",
}

COMMON_ARGUMENTS = {
    "debug_config",
    "extra_body",
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "lora",
    "max_tokens",
    "min_p",
    "model",
    "n",
    "presence_penalty",
    "repetition_penalty",
    "request_id",
    "response_format",
    "seed",
    "stop",
    "stream_options",
    "temperature",
    "timeout",
    "top_k",
    "top_p",
    "user",
}
CHAT_ARGUMENTS = {
    "chat_template_kwargs",
    "reasoning_effort",
    "parallel_tool_calls",
    "max_completion_tokens",
    "messages",
    "tool_choice",
    "tools",
    "top_logprobs",
}
COMPLETION_ARGUMENTS = {"echo", "prompt", "suffix"}

CONFIG_DEFAULTS = {
    "model": None,
    "model_lib": None,
    "mode": None,
    "quantization": None,
    "load_format": "auto",
    "max_num_sequence": None,
    "max_total_sequence_length": None,
    "max_single_sequence_length": None,
    "prefill_chunk_size": None,
    "max_waiting_requests": 1024,
    "max_waiting_tokens": None,
    "prefix_cache_mode": "radix",
    "gpu_memory_utilization": 0.85,
    "kv_cache_page_size": 16,
    "kv_cache_dtype": "auto",
    "num_threads": None,
    "executor": "native",
    "kernels": None,
    "additional_models": (),
    "tensor_parallel_shards": None,
    "pipeline_parallel_stages": None,
    "sliding_window_size": None,
    "attention_sink_size": None,
    "max_history_size": None,
    "kv_state_kind": None,
    "speculative_mode": "ngram",
    "spec_draft_length": 0,
    "spec_tree_width": 1,
    "prefill_mode": "hybrid",
    "prefix_cache_max_num_recycling_seqs": None,
    "opt": None,
    "adapters": None,
    "pack_cache": True,
    "verbose": True,
}

ERRORS = {
    "WindlassError": ("Exception",),
    "EngineError": ("WindlassError", "RuntimeError"),
    "EngineTerminatedError": ("EngineError",),
    "EngineFailedError": ("EngineError",),
    "EngineUnloadedError": ("EngineError",),
    "EngineForkedError": ("EngineError",),
    "EngineOverloadedError": ("EngineError",),
    "LoadError": ("WindlassError",),
    "DownloadError": ("LoadError",),
    "RequestError": ("WindlassError",),
    "InvalidRequestError": ("RequestError", "ValueError"),
    "ContextLengthError": ("InvalidRequestError",),
    "RequestAbortedError": ("RequestError",),
    "RequestTimeoutError": ("RequestError", "TimeoutError"),
}


def test_names_of_the_package() -> None:
    expected = {"AsyncMLCEngine", "EngineConfig", "MLCEngine", "__version__", "install_as_mlc_llm", *ERRORS}
    assert set(windlass.__all__) == expected
    for name in expected:
        assert getattr(windlass, name) is not None
    assert expected <= set(dir(windlass))
    with pytest.raises(AttributeError, match="no_such_name"):
        windlass.no_such_name  # noqa: B018


def test_serve_gives_the_same_engines() -> None:
    for name in ("AsyncMLCEngine", "EngineConfig", "MLCEngine"):
        assert getattr(windlass.serve, name) is getattr(windlass, name)


@pytest.mark.parametrize("name", ["MLCEngine", "AsyncMLCEngine"])
def test_methods_of_the_engines(name: str) -> None:
    engine = getattr(windlass, name)
    is_async = name == "AsyncMLCEngine"
    methods = METHODS | (ASYNC_METHODS if is_async else {})
    assert str(inspect.signature(engine.__init__)) == CONSTRUCTOR
    assert {member for member in dir(engine) if not member.startswith("_")} == PROPERTIES | set(methods)
    for member in PROPERTIES:
        assert isinstance(inspect.getattr_static(engine, member), property)
    for member, signature in methods.items():
        method = getattr(engine, member)
        assert str(inspect.signature(method)) == signature
        assert inspect.iscoroutinefunction(method) == (is_async and member != "terminate")


@pytest.mark.parametrize(
    ("face", "arguments", "own"),
    [
        ("chat.ChatCompletions", ChatArguments, CHAT_ARGUMENTS),
        ("completions.Completions", CompletionArguments, COMPLETION_ARGUMENTS),
    ],
)
def test_create(face: str, arguments: Any, own: set[str]) -> None:
    module_name, class_name = face.split(".")
    module = getattr(windlass.serve, module_name)
    sync, later = getattr(module, class_name).create, getattr(module, f"Async{class_name}").create
    for create in (sync, later):
        signature = str(inspect.signature(create))
        assert signature.startswith(
            f"(self, *, stream: 'bool' = False, **arguments: 'Unpack[{arguments.__name__}]') -> "
        )
    assert not inspect.iscoroutinefunction(sync)
    assert inspect.iscoroutinefunction(later)
    assert arguments.__required_keys__ | arguments.__optional_keys__ == own | COMMON_ARGUMENTS


def test_engine_config() -> None:
    fields = {field.name: field.default for field in dataclasses.fields(windlass.EngineConfig)}
    assert fields == CONFIG_DEFAULTS
    assert all(field.kw_only for field in dataclasses.fields(windlass.EngineConfig))


def test_error_tree() -> None:
    classes = {
        name: tuple(base.__name__ for base in value.__bases__)
        for name, value in vars(windlass.errors).items()
        if isinstance(value, type) and value.__module__ == "windlass.errors"
    }
    assert classes == ERRORS


def test_error_attributes() -> None:
    load = windlass.LoadError("model/config.json", "is not JSON")
    assert (load.path, load.reason, str(load)) == ("model/config.json", "is not JSON", "model/config.json: is not JSON")
    download = windlass.DownloadError("HF://a/b", "there is none", code="not_found")
    assert (download.path, download.code) == ("HF://a/b", "not_found")
    invalid = windlass.InvalidRequestError("no", param="stop")
    assert (invalid.param, invalid.code) == ("stop", "invalid_value")
    assert windlass.ContextLengthError("too long").code == "context_length_exceeded"
    assert windlass.EngineOverloadedError("full", retry_after=2.0).retry_after == 2.0
