"""``model_config`` of mlc-chat-config.json: MLC's own files are read, and ours say the same as the config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.tiny_models import CASES
from windlass.errors import LoadError
from windlass.models.definition import ModelDefinition
from windlass.models.registry import FAMILIES, define_model, to_mlc_config
from windlass.models.rope import DefaultRope, Llama3Rope
from windlass.program.ops import Attention

FILE = Path("mlc-chat-config.json")

LLAMA_3_1 = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 2,
    "rms_norm_eps": 1e-05,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "position_embedding_base": 500000.0,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "context_window_size": 131072,
    "prefill_chunk_size": 8192,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tensor_parallel_shards": 1,
    "pipeline_parallel_stages": 1,
    "max_batch_size": 128,
    "disaggregation": False,
}
MISTRAL = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 2,
    "rms_norm_eps": 1e-05,
    "vocab_size": 32000,
    "position_embedding_base": 10000.0,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "context_window_size": -1,
    "sliding_window_size": 1024,
    "prefill_chunk_size": 1024,
    "attention_sink_size": 4,
    "tensor_parallel_shards": 1,
    "max_batch_size": 80,
}
QWEN3 = {
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "attention_bias": False,
    "num_attention_heads": 16,
    "num_hidden_layers": 2,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "context_window_size": 40960,
    "prefill_chunk_size": 2048,
    "tensor_parallel_shards": 1,
    "head_dim": 128,
    "dtype": "float32",
    "max_batch_size": 128,
    "weight_block_size": None,
}


def define(model_type: str, config: dict[str, Any]) -> ModelDefinition:
    return define_model(model_type, config, FILE, dialect="mlc")


def test_llama_as_mlc_writes_it() -> None:
    definition = define("llama", LLAMA_3_1)
    assert definition.context_length == 131072
    assert definition.program.ropes == (Llama3Rope(500000.0, 128, 8.0, 1.0, 4.0, 8192),)


def test_zero_means_derive_it() -> None:
    zeros = {"num_key_value_heads": 0, "head_dim": 0, "position_embedding_base": 0, "context_window_size": 0}
    kwargs = {"max_position_embeddings": 2048, "rope_theta": 20000.0, "torch_dtype": "float16"}
    definition = define("llama", {**LLAMA_3_1, **zeros, "rope_scaling": None, "kwargs": kwargs})
    assert (definition.program.num_kv_heads, definition.program.head_dim) == (32, 128)
    assert definition.context_length == 2048
    assert definition.program.ropes == (DefaultRope(20000.0, 128),)


def test_a_scaling_without_rope_type_is_dropped_as_mlc_drops_it() -> None:
    definition = define("llama", {**LLAMA_3_1, "rope_scaling": {"type": "linear", "factor": 2.0}})
    assert definition.program.ropes == (DefaultRope(500000.0, 128),)


def windows(definition: ModelDefinition) -> set[int | None]:
    return {op.window for op in definition.program.ops if isinstance(op, Attention)}


def test_mistral_with_sinks_ends_where_its_window_would_slide() -> None:
    assert define("mistral", MISTRAL).context_length == 1024
    assert define("mistral", {**MISTRAL, "context_window_size": 8192}).context_length == 1024
    assert define("mistral", {**MISTRAL, "context_window_size": 512}).context_length == 512
    assert windows(define("mistral", MISTRAL)) == {1024}


def test_mistral_without_sinks_slides() -> None:
    definition = define("mistral", {**MISTRAL, "context_window_size": 8192, "attention_sink_size": 0})
    assert definition.context_length == 8192
    assert windows(definition) == {1024}


def test_mistral_without_window() -> None:
    definition = define("mistral", {**MISTRAL, "context_window_size": 8192, "sliding_window_size": -1})
    assert definition.context_length == 8192
    assert windows(definition) == {None}


def test_qwen3_as_mlc_writes_it() -> None:
    definition = define("qwen3", QWEN3)
    assert definition.context_length == 40960
    assert definition.program.ropes == (DefaultRope(1e6, 128),)
    assert definition.program.ops[-1].weight == "model.embed_tokens.weight"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("context_window_size is missing", {"context_window_size": 0}),
        ("context_window_size is missing", {"context_window_size": None}),
        ("context_window_size is 'big'", {"context_window_size": "big"}),
        ("hidden_size is missing", {"hidden_size": None}),
        ("unknown keys: num_experts", {"num_experts": 4}),
        ("unknown keys: num_experts", {"kwargs": {"num_experts": 4}}),
        ("rope_scaling.rope_type is 'llama4'", {"rope_scaling": {"rope_type": "llama4"}}),
        ("head_dim is '128'", {"head_dim": "128"}),
    ],
)
def test_what_is_refused(message: str, changes: dict[str, Any]) -> None:
    with pytest.raises(LoadError) as caught:
        define("llama", {**LLAMA_3_1, **changes})
    assert caught.value.path == "mlc-chat-config.json"
    assert message in caught.value.reason


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if FAMILIES[case.config["model_type"]].mlc])
def test_there_and_back_is_the_same_program(name: str) -> None:
    config = CASES[name].config
    model_type = config["model_type"]
    direct = define_model(model_type, config, Path("config.json"), dialect="hf")
    mlc = to_mlc_config(model_type, config, Path("config.json"))
    back = define(model_type, mlc)
    assert back.program == direct.program
    assert back.context_length == direct.context_length
    assert to_mlc_config(model_type, config, Path("config.json")) == mlc


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama2", set(LLAMA_3_1)),
        ("mistral", set(MISTRAL)),
        ("qwen2", set(QWEN3) - {"attention_bias"}),
        ("qwen3", set(QWEN3)),
    ],
)
def test_plain_models_have_mlcs_fields_and_no_others(name: str, fields: set[str]) -> None:
    config = CASES[name].config
    assert set(to_mlc_config(config["model_type"], config, FILE)) == fields - {"weight_block_size"}


def test_what_is_written_for_llama_3_1() -> None:
    hf = {
        "model_type": "llama",
        **{key: LLAMA_3_1[key] for key in list(LLAMA_3_1)[:7]},
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "rope_scaling": LLAMA_3_1["rope_scaling"],
    }
    assert to_mlc_config("llama", hf, FILE) == {**LLAMA_3_1, "max_batch_size": 1}


def test_a_bad_config_is_not_converted() -> None:
    with pytest.raises(LoadError, match="hidden_size is missing"):
        to_mlc_config("llama", {}, FILE)
