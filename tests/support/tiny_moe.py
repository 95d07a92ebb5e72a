"""Configurations of small mixtures of experts, and the tensors that their checkpoints have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Config = Mapping[str, Any]
Shapes = dict[str, tuple[int, ...]]


def _config(model_type: str, architecture: str, **changes: Any) -> dict[str, Any]:
    config = {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "vocab_size": 307,
        "num_experts_per_tok": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
        **changes,
    }
    return {key: value for key, value in config.items() if value is not ...}


def _decoder(
    config: Config, attention: Callable[[Config, str, int], Shapes], mlp: Callable[[Config, str, int], Shapes]
) -> Shapes:
    """A decoder whose layers have an attention and an MLP, each with a norm before it."""
    hidden = config["hidden_size"]
    shapes: Shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}"
        shapes[f"{block}.input_layernorm.weight"] = (hidden,)
        shapes |= attention(config, f"{block}.self_attn", layer)
        shapes[f"{block}.post_attention_layernorm.weight"] = (hidden,)
        shapes |= mlp(config, block, layer)
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def _attention(config: Config, name: str, layer: int) -> Shapes:
    hidden = config["hidden_size"]
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = (config[f"num_{kind}_heads"] * head_dim for kind in ("attention", "key_value"))
    shapes: Shapes = {}
    for part, rows, columns in (
        ("q_proj", queries, hidden),
        ("k_proj", keys, hidden),
        ("v_proj", keys, hidden),
        ("o_proj", hidden, queries),
    ):
        shapes[f"{name}.{part}.weight"] = (rows, columns)
        if config.get("attention_bias") or (config["model_type"] == "qwen2_moe" and part != "o_proj"):
            shapes[f"{name}.{part}.bias"] = (rows,)
    if config["model_type"] == "qwen3_moe":
        shapes |= {f"{name}.{part}_norm.weight": (head_dim,) for part in "qk"}
    return shapes


def _mlp(
    name: str, hidden: int, inner: int, parts: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
) -> Shapes:
    gate, up, down = (f"{name}.{part}.weight" for part in parts)
    return {gate: (inner, hidden), up: (inner, hidden), down: (hidden, inner)}


def _mixtral(config: Config) -> Shapes:
    def mlp(config: Config, block: str, layer: int) -> Shapes:
        shapes = {f"{block}.block_sparse_moe.gate.weight": (config["num_local_experts"], config["hidden_size"])}
        for expert in range(config["num_local_experts"]):
            name = f"{block}.block_sparse_moe.experts.{expert}"
            shapes |= _mlp(name, config["hidden_size"], config["intermediate_size"], ("w1", "w3", "w2"))
        return shapes

    return _decoder(config, _attention, mlp)


def _qwen(config: Config) -> Shapes:
    def mlp(config: Config, block: str, layer: int) -> Shapes:
        hidden, name = config["hidden_size"], f"{block}.mlp"
        if layer in config["mlp_only_layers"] or (layer + 1) % config["decoder_sparse_step"]:
            return _mlp(name, hidden, config["intermediate_size"])
        shapes = {f"{name}.gate.weight": (config["num_experts"], hidden)}
        for expert in range(config["num_experts"]):
            shapes |= _mlp(f"{name}.experts.{expert}", hidden, config["moe_intermediate_size"])
        if config["model_type"] == "qwen2_moe":
            shapes |= _mlp(f"{name}.shared_expert", hidden, config["shared_expert_intermediate_size"])
            shapes[f"{name}.shared_expert_gate.weight"] = (1, hidden)
        return shapes

    return _decoder(config, _attention, mlp)


MOE_SHAPES: dict[str, Callable[[Config], Shapes]] = {"mixtral": _mixtral, "qwen2_moe": _qwen, "qwen3_moe": _qwen}
"""What makes the tensors' shapes of a configuration, by model type."""

MOE_CONFIGS: tuple[tuple[str, dict[str, Any], int], ...] = (
    (
        "mixtral",
        _config(
            "mixtral",
            "MixtralForCausalLM",
            num_local_experts=5,
            sliding_window=None,
            router_aux_loss_coef=0.02,
            output_router_logits=False,
        ),
        1,
    ),
    (
        "qwen2_moe",
        _config(
            "qwen2_moe",
            "Qwen2MoeForCausalLM",
            num_experts=7,
            num_experts_per_tok=3,
            intermediate_size=100,
            moe_intermediate_size=32,
            shared_expert_intermediate_size=52,
            num_hidden_layers=4,
            decoder_sparse_step=2,
            mlp_only_layers=[],
            norm_topk_prob=False,
            use_sliding_window=False,
            sliding_window=32,
            max_window_layers=3,
        ),
        602,
    ),
    (
        "qwen3_moe",
        _config(
            "qwen3_moe",
            "Qwen3MoeForCausalLM",
            head_dim=24,
            num_experts=7,
            moe_intermediate_size=32,
            num_hidden_layers=3,
            decoder_sparse_step=1,
            mlp_only_layers=[1],
            norm_topk_prob=True,
            attention_bias=False,
            use_sliding_window=False,
            sliding_window=None,
            max_window_layers=3,
            tie_word_embeddings=True,
        ),
        103,
    ),
)
"""Names, configurations and seeds."""
