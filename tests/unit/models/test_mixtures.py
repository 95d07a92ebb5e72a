"""Mixtures of experts: what their configurations say, and what is refused."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.published_mixtures import PUBLISHED
from support.tiny_models import CASES
from windlass.errors import LoadError
from windlass.models.definition import ModelDefinition
from windlass.models.registry import FAMILIES, define_model, to_mlc_config
from windlass.models.rope import QueryScale
from windlass.program.ops import Attention, Experts, HeadLinear, HeadNorm, Rope, Route

FILE = Path("some/config.json")


def define(name: str, **changes: Any) -> ModelDefinition:
    config = {key: value for key, value in {**CASES[name].config, **changes}.items() if value is not ...}
    return define_model(config["model_type"], config, FILE, dialect="hf")


def ops(definition: ModelDefinition, kind: type[Any]) -> list[Any]:
    return [op for op in definition.program.ops if isinstance(op, kind)]


def sparse_layers(definition: ModelDefinition) -> list[int]:
    return [int(op.gate_up.split(".")[2]) for op in ops(definition, Experts)]


@pytest.mark.parametrize(
    ("name", "context", "head_dim", "experts"),
    [
        ("Mixtral-8x7B-Instruct-v0.1", 32768, 128, (2 * 14336 * 8, 4096)),
        ("Qwen1.5-MoE-A2.7B", 8192, 128, (2 * 1408 * 60, 2048)),
        ("Qwen3-30B-A3B", 40960, 128, (2 * 768 * 128, 2048)),
        ("gpt-oss-20b", 131072, 64, (2 * 2880 * 32, 2880)),
        ("DeepSeek-V2-Lite", 163840, 576, (2 * 1408 * 64, 2048)),
        ("DeepSeek-R1", 163840, 576, (2 * 2048 * 256, 7168)),
        ("Llama-4-Scout-17B-16E-Instruct", 10485760, 128, (2 * 8192 * 16, 5120)),
    ],
)
def test_published_configurations(name: str, context: int, head_dim: int, experts: tuple[int, int]) -> None:
    config = PUBLISHED[name]
    definition = define_model(config["model_type"], config, FILE, dialect="hf")
    assert definition.context_length == context
    assert definition.program.head_dim == head_dim
    shapes = {spec.name: spec.shape for spec in definition.program.weights}
    assert {shapes[op.gate_up] for op in ops(definition, Experts)} == {experts}


WRITTEN_ANEW: dict[str, dict[str, Any]] = {
    "mixtral": {"head_dim": None},
    "qwen2_moe": {"layer_types": ["full_attention"] * 4, "qkv_bias": True, "sliding_window": 0},
    "qwen3_moe": {"num_experts": ..., "num_local_experts": 7},
    "gpt_oss": {"swiglu_alpha": 1.702},
    "deepseek_v2": {"head_dim": 12, "qk_head_dim": 32, "mlp_bias": False, "pretraining_tp": 1},
    "deepseek_v3": {"head_dim": 12, "qk_head_dim": 32, "rope_interleave": True, "pretraining_tp": 1},
    "llama4_text": {
        "layer_types": ["chunked_attention"] * 3 + ["full_attention"],
        "moe_layers": [1, 3],
        "no_rope_layers": [1, 1, 1, 0],
    },
}
"""What transformers 5 changes when it saves a model, beside the place of the rotary embedding."""


@pytest.mark.parametrize("name", WRITTEN_ANEW)
def test_configurations_that_transformers_5_wrote(name: str) -> None:
    config = CASES[name].config
    rope = {"rope_type": "default", **config.get("rope_scaling", {}), "rope_theta": config["rope_theta"]}
    if "type" in rope:
        rope["rope_type"] = rope["type"]
    anew: dict[str, Any] = {"rope_theta": ..., "rope_scaling": ..., "rope_parameters": rope, **WRITTEN_ANEW[name]}
    definition = define(name, **anew)
    assert definition.program == define(name).program
    if FAMILIES[definition.model_type].mlc is not None:
        values = {key: value for key, value in {**config, **anew}.items() if value is not ...}
        mlc = to_mlc_config(definition.model_type, values, FILE)
        assert define_model(definition.model_type, mlc, FILE, dialect="mlc").program == definition.program


def test_which_layers_of_qwen_have_experts() -> None:
    assert sparse_layers(define("qwen2_moe")) == [1, 3]
    assert sparse_layers(define("qwen2_moe", decoder_sparse_step=1)) == [0, 1, 2, 3]
    assert sparse_layers(define("qwen2_moe", decoder_sparse_step=1, mlp_only_layers=[0, 2])) == [1, 3]
    assert sparse_layers(define("qwen3_moe")) == [0, 2]
    assert sparse_layers(define("qwen3_moe", mlp_only_layers=None)) == [0, 1, 2]


def test_which_layers_of_deepseek_have_experts() -> None:
    assert sparse_layers(define("deepseek_v3", num_hidden_layers=5)) == [1, 2, 3, 4]
    assert sparse_layers(define("deepseek_v3", num_hidden_layers=5, moe_layer_freq=2)) == [2, 4]
    assert sparse_layers(define("deepseek_v3", num_hidden_layers=5, first_k_dense_replace=3)) == [3, 4]


def test_how_experts_are_chosen() -> None:
    def route(name: str, **changes: Any) -> tuple[Any, ...]:
        op = ops(define(name, **changes), Route)[0]
        return op.top_k, op.scores, op.normalize, op.scale, op.num_groups, op.top_groups, op.group_score

    assert route("mixtral") == (2, "softmax", True, 1.0, 1, 1, "max")
    assert route("qwen2_moe") == (3, "softmax", False, 1.0, 1, 1, "max")
    assert route("qwen3_moe", norm_topk_prob=...) == (2, "softmax", False, 1.0, 1, 1, "max")
    assert route("olmoe") == (3, "softmax", False, 1.0, 1, 1, "max")
    assert route("gpt_oss") == (2, "softmax", True, 1.0, 1, 1, "max")
    assert route("deepseek_v2_lite") == (3, "softmax", False, 1.0, 1, 1, "max")
    assert route("deepseek_v2") == (3, "softmax", False, 4.0, 3, 2, "max")
    assert route("deepseek_v3") == (3, "sigmoid", True, 2.5, 3, 2, "top2_sum")
    assert route("llama4_text") == (1, "sigmoid", False, 1.0, 1, 1, "max")


def test_gpt_oss_without_a_word_on_rotation_and_windows() -> None:
    definition = define("gpt_oss", rope_scaling=..., rope_theta=..., layer_types=..., sliding_window=...)
    table = definition.program.ropes[0]
    assert (table.theta, table.factor, table.original_length, table.truncate) == (150_000, 32, 4096, False)  # type: ignore[attr-defined]
    assert definition.context_length == 131_072
    assert [op.window for op in ops(definition, Attention)] == [128, None]


def test_latent_attention_scales_its_scores_with_the_context() -> None:
    plain = ops(define("deepseek_v2_lite"), Attention)[0]
    assert plain.scale == (20 + 12) ** -0.5
    assert (plain.num_kv_heads, plain.head_dim) == (1, 32 + 12)
    scaled = ops(define("deepseek_v2"), Attention)[0]
    assert scaled.scale == pytest.approx(32**-0.5 * (0.0707 * math.log(4) + 1) ** 2)
    assert [(op.num_heads, op.out.width // op.num_heads) for op in ops(define("deepseek_v2"), HeadLinear)[:2]] == [
        (3, 32),
        (3, 32),
    ]


def test_layers_that_predict_further_tokens_are_left_out() -> None:
    def ignored(name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in define("deepseek_v3").ignored_tensors)

    assert ignored("model.layers.2.eh_proj.weight")
    assert ignored("model.layers.2.mlp.experts.8.up_proj.weight")
    assert not ignored("model.layers.3.eh_proj.weight")
    assert not ignored("model.layers.1.mlp.experts.8.up_proj.weight")


def test_layers_of_llama_4() -> None:
    definition = define("llama4_text")
    assert [op.chunk for op in ops(definition, Attention)] == [24, 24, 24, None]
    assert len(ops(definition, HeadNorm)) == 6
    assert [op.table for op in ops(definition, Rope)] == [0, 0] * 3 + [1]
    assert sparse_layers(definition) == [1, 3]
    assert all(op.scale_input for op in ops(definition, Experts))
    other = define("llama4_text", no_rope_layers=[0, 1, 1, 0], moe_layers=[0], use_qk_norm=False)
    assert [op.chunk for op in ops(other, Attention)] == [None, 24, 24, None]
    assert not ops(other, HeadNorm)
    assert sparse_layers(other) == [0]
    kinds = ["full_attention", "chunked_attention"] * 2
    assert [op.chunk for op in ops(define("llama4_text", layer_types=kinds), Attention)] == [None, 24] * 2
    assert len(ops(define("llama4_text", attn_temperature_tuning=False), Rope)) == 6


def test_queries_grow_with_the_position() -> None:
    cos, sin = QueryScale(4, 0.1, 16).cos_sin(64)
    assert not sin.any()
    # As transformers has it.
    expected = np.log1p(np.floor((np.arange(64) + 1.0) / 16)) * 0.1 + 1
    np.testing.assert_allclose(cos, np.repeat(expected[:, None], 2, axis=1), rtol=1e-6)


def test_the_text_of_a_llama_4_that_sees() -> None:
    text = define("llama4_text")
    config = {
        "model_type": "llama4",
        "text_config": {**CASES["llama4_text"].config, "for_llm_compressor": False},
        "vision_config": {"hidden_size": 1},
        "boi_token_index": 1,
        "eoi_token_index": 2,
        "image_token_index": 3,
        "tie_word_embeddings": False,
    }
    definition = define_model("llama4", config, FILE, dialect="hf")
    assert definition.program.ops == text.program.ops
    assert [[f"language_model.{part.name}" for part in spec.parts] for spec in text.program.weights] == [
        [part.name for part in spec.parts] for spec in definition.program.weights
    ]
    assert any(re.fullmatch(pattern, "vision_model.x.weight") for pattern in definition.ignored_tensors)
    with pytest.raises(LoadError, match="text_config is missing"):
        define_model("llama4", {"model_type": "llama4"}, FILE, dialect="hf")


REFUSED: list[tuple[str, str, dict[str, Any]]] = [
    ("mixtral", "num_local_experts is missing", {"num_local_experts": ...}),
    ("mixtral", "num_local_experts is 1000000, which must lie in 1 .. 65536", {"num_local_experts": 10**6}),
    ("olmoe", "clip_qkv is not null: queries, keys and values that are clipped", {"clip_qkv": 8.0}),
    ("mixtral", "num_experts_per_tok is 6, but there are 5 experts", {"num_experts_per_tok": 6}),
    ("mixtral", "hidden_size is 72, which must be a multiple of 32", {"hidden_size": 72}),
    ("mixtral", "intermediate_size is 40, which must be a multiple of 16", {"intermediate_size": 40}),
    ("qwen2_moe", "use_sliding_window is True: sliding windows are", {"use_sliding_window": True}),
    ("qwen2_moe", "qkv_bias is False: ", {"qkv_bias": False}),
    ("qwen2_moe", "shared_expert_intermediate_size is missing", {"shared_expert_intermediate_size": ...}),
    ("qwen2_moe", "mlp_only_layers is [-1], which must be a list of", {"mlp_only_layers": [-1]}),
    ("qwen3_moe", "use_sliding_window is True: sliding windows are", {"use_sliding_window": True}),
    ("qwen3_moe", "decoder_sparse_step is 0, which", {"decoder_sparse_step": 0}),
    ("gpt_oss", "swiglu_limit is 8.0: the clamp cannot be changed", {"swiglu_limit": 8.0}),
    ("gpt_oss", "swiglu_alpha is 1.5: the gate cannot be changed", {"swiglu_alpha": 1.5}),
    ("gpt_oss", "experts_per_token is not num_experts_per_tok, 2", {"experts_per_token": 4}),
    ("deepseek_v2", "norm_topk_prob is True: ", {"norm_topk_prob": True}),
    ("deepseek_v2", "topk_method is 'noaux_tc'; supported: greedy, ", {"topk_method": "noaux_tc"}),
    ("deepseek_v2", "scoring_func is 'sigmoid'; supported: softmax", {"scoring_func": "sigmoid"}),
    ("deepseek_v2", "n_group is 2, which must divide n_routed_experts, 9", {"n_group": 2}),
    ("deepseek_v2", "topk_group is 4: 3 experts cannot be", {"topk_group": 4}),
    ("deepseek_v2", "kv_lora_rank is 40, which must be a multiple of 32", {"kv_lora_rank": 40}),
    ("deepseek_v2", "v_head_dim is 28, which must be a multiple of 32", {"v_head_dim": 28}),
    ("deepseek_v2", "qk_nope_head_dim is missing", {"qk_nope_head_dim": ...}),
    ("deepseek_v3", "scoring_func is 'softmax'; supported: sigmoid", {"scoring_func": "softmax"}),
    ("deepseek_v3", "topk_method is 'greedy'; supported: noaux_tc", {"topk_method": "greedy"}),
    ("deepseek_v3", "topk_group is 1: 4 experts cannot be", {"topk_group": 1, "num_experts_per_tok": 4}),
    ("llama4_text", "no_rope_layers must have a 0 or a 1 for each of 4", {"no_rope_layers": [1, 0]}),
    ("llama4_text", "no_rope_layers must have a 0 or a 1 for each of 4", {"no_rope_layers": [1, 0, 2, 1]}),
    ("llama4_text", "layer_types must have one of chunked_attention, ", {"layer_types": ["sliding_attention"] * 4}),
    ("llama4_text", "attention_chunk_size is 0, which", {"attention_chunk_size": 0}),
]


@pytest.mark.parametrize(("name", "message", "changes"), REFUSED)
def test_what_is_refused(name: str, message: str, changes: dict[str, Any]) -> None:
    with pytest.raises(LoadError) as caught:
        define(name, **changes)
    assert caught.value.path == "some/config.json"
    assert message in caught.value.reason
