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


def _attention(config: Config, name: str, _layer: int) -> Shapes:
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
    if config["model_type"] == "olmoe":
        shapes |= {f"{name}.q_norm.weight": (queries,), f"{name}.k_norm.weight": (keys,)}
    return shapes


def _mlp(
    name: str, hidden: int, inner: int, parts: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
) -> Shapes:
    gate, up, down = (f"{name}.{part}.weight" for part in parts)
    return {gate: (inner, hidden), up: (inner, hidden), down: (hidden, inner)}


def _mixtral(config: Config) -> Shapes:
    def mlp(config: Config, block: str, _layer: int) -> Shapes:
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


def _olmoe(config: Config) -> Shapes:
    def mlp(config: Config, block: str, _layer: int) -> Shapes:
        hidden, name = config["hidden_size"], f"{block}.mlp"
        shapes: Shapes = {f"{name}.gate.weight": (config["num_experts"], hidden)}
        for expert in range(config["num_experts"]):
            shapes |= _mlp(f"{name}.experts.{expert}", hidden, config["intermediate_size"])
        return shapes

    return _decoder(config, _attention, mlp)


def _gpt_oss(config: Config) -> Shapes:
    def attention(config: Config, name: str, layer: int) -> Shapes:
        return _attention(config, name, layer) | {f"{name}.sinks": (config["num_attention_heads"],)}

    def mlp(config: Config, block: str, _layer: int) -> Shapes:
        experts, hidden, inner = (config[key] for key in ("num_local_experts", "hidden_size", "intermediate_size"))
        return {
            f"{block}.mlp.router.weight": (experts, hidden),
            f"{block}.mlp.router.bias": (experts,),
            f"{block}.mlp.experts.gate_up_proj": (experts, hidden, 2 * inner),
            f"{block}.mlp.experts.gate_up_proj_bias": (experts, 2 * inner),
            f"{block}.mlp.experts.down_proj": (experts, inner, hidden),
            f"{block}.mlp.experts.down_proj_bias": (experts, hidden),
        }

    return _decoder(config, attention, mlp)


def _deepseek(config: Config) -> Shapes:
    def attention(config: Config, name: str, _layer: int) -> Shapes:
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        nope, rope, value = (config[key] for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
        rank, q_rank = config["kv_lora_rank"], config["q_lora_rank"]
        shapes: Shapes = {}
        if q_rank is None:
            shapes[f"{name}.q_proj.weight"] = (heads * (nope + rope), hidden)
        else:
            shapes[f"{name}.q_a_proj.weight"] = (q_rank, hidden)
            shapes[f"{name}.q_a_layernorm.weight"] = (q_rank,)
            shapes[f"{name}.q_b_proj.weight"] = (heads * (nope + rope), q_rank)
        return shapes | {
            f"{name}.kv_a_proj_with_mqa.weight": (rank + rope, hidden),
            f"{name}.kv_a_layernorm.weight": (rank,),
            f"{name}.kv_b_proj.weight": (heads * (nope + value), rank),
            f"{name}.o_proj.weight": (hidden, heads * value),
        }

    def mlp(config: Config, block: str, layer: int) -> Shapes:
        hidden, inner, name = config["hidden_size"], config["moe_intermediate_size"], f"{block}.mlp"
        if layer < config["first_k_dense_replace"]:
            return _mlp(name, hidden, config["intermediate_size"])
        shapes: Shapes = {f"{name}.gate.weight": (config["n_routed_experts"], hidden)}
        if config["model_type"] == "deepseek_v3":
            shapes[f"{name}.gate.e_score_correction_bias"] = (config["n_routed_experts"],)
        for expert in range(config["n_routed_experts"]):
            shapes |= _mlp(f"{name}.experts.{expert}", hidden, inner)
        return shapes | _mlp(f"{name}.shared_experts", hidden, inner * config["n_shared_experts"])

    return _decoder(config, attention, mlp)


def _llama4(config: Config) -> Shapes:
    def mlp(config: Config, block: str, layer: int) -> Shapes:
        experts, hidden, inner = (config[key] for key in ("num_local_experts", "hidden_size", "intermediate_size"))
        name = f"{block}.feed_forward"
        if (layer + 1) % config["interleave_moe_layer_step"]:
            return _mlp(name, hidden, config["intermediate_size_mlp"])
        return {
            f"{name}.router.weight": (experts, hidden),
            f"{name}.experts.gate_up_proj": (experts, hidden, 2 * inner),
            f"{name}.experts.down_proj": (experts, inner, hidden),
            **_mlp(f"{name}.shared_expert", hidden, inner),
        }

    return _decoder(config, _attention, mlp)


MOE_SHAPES: dict[str, Callable[[Config], Shapes]] = {
    "mixtral": _mixtral,
    "qwen2_moe": _qwen,
    "qwen3_moe": _qwen,
    "olmoe": _olmoe,
    "gpt_oss": _gpt_oss,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
    "llama4_text": _llama4,
}
"""What makes the tensors' shapes of a configuration, by model type."""

_DEEPSEEK = {
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "hidden_size": 96,
    "intermediate_size": 100,
    "moe_intermediate_size": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 20,
    "qk_rope_head_dim": 12,
    "v_head_dim": 32,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "ep_size": 1,
    "n_routed_experts": 9,
    "num_experts_per_tok": 3,
}

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
    (
        "olmoe",
        _config(
            "olmoe",
            "OlmoeForCausalLM",
            num_experts=7,
            num_experts_per_tok=3,
            clip_qkv=None,
            norm_topk_prob=False,
            attention_bias=False,
            output_router_logits=False,
            router_aux_loss_coef=0.01,
        ),
        615,
    ),
    (
        "gpt_oss",
        _config(
            "gpt_oss",
            "GptOssForCausalLM",
            attention_bias=True,
            head_dim=20,
            num_local_experts=5,
            num_experts_per_tok=2,
            experts_per_token=2,
            sliding_window=20,
            layer_types=["sliding_attention", "full_attention"],
            max_position_embeddings=128,
            initial_context_length=32,
            rope_scaling={
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "beta_fast": 4.0,
                "beta_slow": 0.5,
                "truncate": False,
            },
            rope_theta=150000,
            swiglu_limit=7.0,
        ),
        204,
    ),
    (
        "deepseek_v2_lite",
        _config(
            "deepseek_v2",
            "DeepseekV2ForCausalLM",
            **_DEEPSEEK,
            q_lora_rank=None,
            n_shared_experts=2,
            n_group=1,
            topk_group=1,
            topk_method="greedy",
            scoring_func="softmax",
            norm_topk_prob=False,
            routed_scaling_factor=1.0,
        ),
        405,
    ),
    (
        "deepseek_v2",
        _config(
            "deepseek_v2",
            "DeepseekV2ForCausalLM",
            **_DEEPSEEK,
            q_lora_rank=36,
            n_shared_experts=1,
            n_group=3,
            topk_group=2,
            topk_method="group_limited_greedy",
            scoring_func="softmax",
            norm_topk_prob=False,
            routed_scaling_factor=4.0,
            rope_scaling={
                "type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "beta_fast": 4,
                "beta_slow": 1,
                "mscale": 0.707,
                "mscale_all_dim": 0.707,
            },
        ),
        1106,
    ),
    (
        "deepseek_v3",
        _config(
            "deepseek_v3",
            "DeepseekV3ForCausalLM",
            **_DEEPSEEK,
            q_lora_rank=36,
            n_shared_experts=1,
            n_group=3,
            topk_group=2,
            topk_method="noaux_tc",
            scoring_func="sigmoid",
            norm_topk_prob=True,
            routed_scaling_factor=2.5,
            num_nextn_predict_layers=1,
            rope_scaling={
                "type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "beta_fast": 4,
                "beta_slow": 1,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
            },
        ),
        207,
    ),
    (
        "llama4_text",
        _config(
            "llama4_text",
            "Llama4ForCausalLM",
            head_dim=20,
            num_local_experts=3,
            num_experts_per_tok=1,
            intermediate_size_mlp=100,
            interleave_moe_layer_step=2,
            num_hidden_layers=4,
            no_rope_layers=[],
            no_rope_layer_interval=4,
            attention_chunk_size=24,
            attn_temperature_tuning=True,
            attn_scale=0.1,
            floor_scale=16,
            use_qk_norm=True,
            rope_theta=500000.0,
            rope_scaling={
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 1.0,
                "original_max_position_embeddings": 64,
            },
        ),
        308,
    ),
)
"""Names, configurations and seeds."""
