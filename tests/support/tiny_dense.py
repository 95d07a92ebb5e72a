"""Configurations of small dense decoders that differ from Llama, and the tensors that their checkpoints have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Config = Mapping[str, Any]
Shapes = dict[str, tuple[int, ...]]


def _config(model_type: str, architecture: str, **changes: Any) -> dict[str, Any]:
    config = {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 100,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "vocab_size": 307,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
        **changes,
    }
    return {key: value for key, value in config.items() if value is not ...}


def _norms(model_type: str) -> tuple[str, ...]:
    """The norms of a layer that are as wide as the residual."""
    if model_type in ("gemma2", "gemma3_text"):
        places = ("input", "post_attention", "pre_feedforward", "post_feedforward")
    elif model_type in ("olmo2", "olmo3", "exaone4"):
        places = ("post_attention", "post_feedforward")
    else:
        places = ("input", "post_attention")
    return tuple(f"{place}_layernorm" for place in places)


def _attention(config: Config, name: str, queries: int, keys: int) -> Shapes:
    hidden, model_type = config["hidden_size"], config["model_type"]
    if model_type == "phi3":
        matrices = {"qkv_proj": (queries + 2 * keys, hidden)}
    else:
        matrices = {"q_proj": (queries, hidden), "k_proj": (keys, hidden), "v_proj": (keys, hidden)}
    shapes: Shapes = {}
    for part, shape in {**matrices, "o_proj": (hidden, queries)}.items():
        shapes[f"{name}.{part}.weight"] = shape
        if config.get("attention_bias"):
            shapes[f"{name}.{part}.bias"] = shape[:1]
    if model_type in ("olmo2", "olmo3"):
        shapes |= {f"{name}.q_norm.weight": (queries,), f"{name}.k_norm.weight": (keys,)}
    if model_type in ("gemma3_text", "exaone4"):
        shapes |= {f"{name}.{part}_norm.weight": (config["head_dim"],) for part in "qk"}
    return shapes


def _mlp(config: Config, name: str) -> Shapes:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    if config["model_type"] == "phi3":
        matrices = {"gate_up_proj": (2 * inner, hidden)}
    else:
        matrices = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden)}
    shapes: Shapes = {}
    for part, shape in {**matrices, "down_proj": (hidden, inner)}.items():
        shapes[f"{name}.{part}.weight"] = shape
        if config.get("mlp_bias"):
            shapes[f"{name}.{part}.bias"] = shape[:1]
    return shapes


def dense_shapes(config: Config) -> Shapes:
    """The tensors that a checkpoint of this configuration has."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    shapes: Shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}"
        shapes |= {f"{block}.{norm}.weight": (hidden,) for norm in _norms(config["model_type"])}
        keys = config["num_key_value_heads"] * head_dim
        shapes |= _attention(config, f"{block}.self_attn", heads * head_dim, keys)
        shapes |= _mlp(config, f"{block}.mlp")
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


_GEMMA = {"hidden_act": ..., "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True}

DENSE_CONFIGS: tuple[tuple[str, dict[str, Any], int], ...] = (
    (
        "gemma",
        _config(
            "gemma",
            "GemmaForCausalLM",
            hidden_act="gelu",
            head_dim=24,
            num_key_value_heads=1,
            tie_word_embeddings=True,
        ),
        1501,
    ),
    (
        "gemma2",
        _config(
            "gemma2",
            "Gemma2ForCausalLM",
            **_GEMMA,
            head_dim=24,
            num_hidden_layers=3,
            sliding_window=14,
            query_pre_attn_scalar=40,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=12.0,
        ),
        602,
    ),
    (
        "gemma3_text",
        _config(
            "gemma3_text",
            "Gemma3ForCausalLM",
            **_GEMMA,
            head_dim=24,
            num_hidden_layers=4,
            sliding_window=14,
            sliding_window_pattern=3,
            query_pre_attn_scalar=40,
            rope_theta=1000000.0,
            rope_local_base_freq=10000.0,
            rope_scaling={"factor": 8.0, "rope_type": "linear"},
        ),
        603,
    ),
    (
        "phi3",
        _config(
            "phi3",
            "Phi3ForCausalLM",
            pad_token_id=0,
            num_key_value_heads=4,
            sliding_window=20,
            original_max_position_embeddings=256,
            rope_scaling=None,
        ),
        604,
    ),
    (
        "phi3-long",
        _config(
            "phi3",
            "Phi3ForCausalLM",
            pad_token_id=0,
            tie_word_embeddings=True,
            sliding_window=256,
            partial_rotary_factor=0.75,
            original_max_position_embeddings=32,
            rope_scaling={
                "type": "longrope",
                "short_factor": [1.0, 1.0, 1.1, 1.2, 1.3, 1.4],
                "long_factor": [1.0, 1.5, 2.5, 4.0, 7.0, 9.0],
            },
        ),
        1105,
    ),
    (
        "phi3-short",
        _config(
            "phi3",
            "Phi3ForCausalLM",
            pad_token_id=0,
            max_position_embeddings=512,
            original_max_position_embeddings=128,
            rope_scaling={
                "type": "longrope",
                "short_factor": [1.0, 1.02, 1.1, 1.2, 1.3, 1.4, 1.5, 2.0],
                "long_factor": [1.0, 1.5, 2.5, 4.0, 7.0, 9.0, 11.0, 12.0],
            },
        ),
        606,
    ),
    ("olmo2", _config("olmo2", "Olmo2ForCausalLM", attention_bias=False), 807),
    (
        "olmo3",
        _config(
            "olmo3",
            "Olmo3ForCausalLM",
            num_hidden_layers=4,
            sliding_window=14,
            rope_theta=500000.0,
            rope_scaling={
                "rope_type": "yarn",
                "factor": 8.0,
                "original_max_position_embeddings": 32,
                "beta_fast": 4.0,
                "beta_slow": 0.5,
                "attention_factor": 1.2,
            },
        ),
        608,
    ),
    (
        "granite",
        _config(
            "granite",
            "GraniteForCausalLM",
            tie_word_embeddings=True,
            attention_bias=True,
            embedding_multiplier=1.5,
            attention_multiplier=0.4,
            residual_multiplier=1.4,
            logits_scaling=4.0,
        ),
        609,
    ),
    (
        "smollm3",
        _config(
            "smollm3",
            "SmolLM3ForCausalLM",
            pad_token_id=0,
            num_hidden_layers=3,
            tie_word_embeddings=True,
            rope_theta=...,
            no_rope_layers=[1, 0, 1],
            use_sliding_window=True,
            sliding_window=18,
        ),
        1010,
    ),
    (
        "ministral3",
        _config(
            "ministral3",
            "Ministral3ForCausalLM",
            pad_token_id=0,
            head_dim=24,
            sliding_window=None,
            rope_theta=...,
            rope_parameters={
                "type": "yarn",
                "rope_type": "yarn",
                "rope_theta": 1000000.0,
                "factor": 16.0,
                "original_max_position_embeddings": 16,
                "max_position_embeddings": 256,
                "beta_fast": 4.0,
                "beta_slow": 0.5,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.4,
            },
        ),
        611,
    ),
    (
        "exaone4",
        _config(
            "exaone4",
            "Exaone4ForCausalLM",
            head_dim=24,
            num_hidden_layers=4,
            tie_word_embeddings=True,
            sliding_window=14,
            sliding_window_pattern="LLG",
            layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
            rope_theta=1000000.0,
            rope_scaling={
                "rope_type": "llama3",
                "factor": 16.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        ),
        614,
    ),
)
"""(name, config.json, seed). Windows are shorter than the prompts, and caps bite."""

DENSE_TYPES = frozenset(config["model_type"] for _, config, _ in DENSE_CONFIGS)
