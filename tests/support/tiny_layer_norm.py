"""Tiny configurations of the families with layer norms, and the tensors that their checkpoints have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Shapes = dict[str, tuple[int, ...]]

_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "vocab_size": 307,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _config(model_type: str, architecture: str, **changes: Any) -> dict[str, Any]:
    return {"architectures": [architecture], "model_type": model_type, **_SIZES, "torch_dtype": "float32", **changes}


def _gpt2(**changes: Any) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 128,
        "layer_norm_epsilon": 1e-5,
        "vocab_size": 307,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **changes,
    }


def _gpt_neox(**changes: Any) -> dict[str, Any]:
    options = {
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "tie_word_embeddings": False,
        "use_parallel_residual": True,
    }
    config = _config("gpt_neox", "GPTNeoXForCausalLM", **{**options, **changes})
    del config["num_key_value_heads"]
    return config


LAYER_NORM_CONFIGS: tuple[tuple[str, dict[str, Any], int], ...] = (
    ("gpt2", _gpt2(), 501),
    ("gpt2-inverse", _gpt2(n_inner=80, scale_attn_by_inverse_layer_idx=True, activation_function="gelu"), 502),
    (
        "gpt_bigcode",
        _gpt2(
            architectures=["GPTBigCodeForCausalLM"],
            model_type="gpt_bigcode",
            activation_function="gelu_pytorch_tanh",
            attention_softmax_in_fp32=True,
            multi_query=True,
            n_inner=112,
            scale_attn_weights=True,
        ),
        508,
    ),
    ("gpt-neox", _gpt_neox(), 803),
    ("gpt-neox-sequential", _gpt_neox(use_parallel_residual=False, rotary_pct=1.0, hidden_act="gelu_fast"), 504),
    (
        "starcoder2",
        _config(
            "starcoder2",
            "Starcoder2ForCausalLM",
            hidden_act="gelu_pytorch_tanh",
            norm_epsilon=1e-5,
            rope_theta=10000.0,
            sliding_window=24,
            use_bias=True,
            tie_word_embeddings=True,
        ),
        505,
    ),
    (
        "stablelm",
        _config(
            "stablelm",
            "StableLmForCausalLM",
            hidden_act="silu",
            layer_norm_eps=1e-5,
            rope_theta=10000,
            partial_rotary_factor=0.25,
            use_qkv_bias=True,
            tie_word_embeddings=False,
        ),
        606,
    ),
    (
        "stablelm-12b",
        _config(
            "stablelm",
            "StableLmForCausalLM",
            hidden_act="silu",
            layer_norm_eps=1e-5,
            rope_theta=10000,
            partial_rotary_factor=0.5,
            qk_layernorm=True,
            use_parallel_residual=True,
            tie_word_embeddings=False,
        ),
        507,
    ),
    (
        "cohere",
        _config(
            "cohere",
            "CohereForCausalLM",
            hidden_act="silu",
            layer_norm_eps=1e-5,
            rope_theta=10000.0,
            logit_scale=0.5,
            use_qk_norm=False,
            tie_word_embeddings=True,
        ),
        608,
    ),
    (
        "cohere-qk-norm",
        _config(
            "cohere",
            "CohereForCausalLM",
            hidden_act="silu",
            layer_norm_eps=1e-5,
            rope_theta=75000.0,
            logit_scale=0.5,
            use_qk_norm=True,
            tie_word_embeddings=True,
        ),
        509,
    ),
    (
        "cohere2",
        _config(
            "cohere2",
            "Cohere2ForCausalLM",
            hidden_act="silu",
            layer_norm_eps=1e-5,
            rope_theta=50000,
            logit_scale=0.5,
            sliding_window=24,
            num_hidden_layers=4,
            tie_word_embeddings=True,
        ),
        910,
    ),
)
"""Names, configurations and seeds."""

LAYER_NORM_TYPES = ("gpt2", "gpt_bigcode", "gpt_neox", "starcoder2", "stablelm", "cohere", "cohere2")


def layer_norm_shapes(config: Mapping[str, Any]) -> Shapes:
    """The tensors of a checkpoint in file order."""
    makers = {"gpt2": _gpt2_shapes, "gpt_bigcode": _gpt2_shapes, "gpt_neox": _gpt_neox_shapes}
    return makers.get(config["model_type"], _separate_shapes)(config)


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _gpt2_shapes(config: Mapping[str, Any]) -> Shapes:
    width = config["n_embd"]
    inner = config.get("n_inner") or 4 * width
    shared = config["model_type"] == "gpt_bigcode"  # one head of keys and values, and no weight is transposed
    keys = width // config["n_head"] if shared else width
    shapes: Shapes = {
        "transformer.wte.weight": (config["vocab_size"], width),
        "transformer.wpe.weight": (config["n_positions"], width),
    }
    for layer in range(config["n_layer"]):
        block = f"transformer.h.{layer}"
        shapes |= _norm(f"{block}.ln_1", width)
        for name, inputs, outputs in (("attn.c_attn", width, width + 2 * keys), ("attn.c_proj", width, width)):
            matrix = (outputs, inputs) if shared else (inputs, outputs)
            shapes |= {f"{block}.{name}.weight": matrix, f"{block}.{name}.bias": (outputs,)}
        shapes |= _norm(f"{block}.ln_2", width)
        for name, inputs, outputs in (("mlp.c_fc", width, inner), ("mlp.c_proj", inner, width)):
            matrix = (outputs, inputs) if shared else (inputs, outputs)
            shapes |= {f"{block}.{name}.weight": matrix, f"{block}.{name}.bias": (outputs,)}
    return shapes | _norm("transformer.ln_f", width)


def _gpt_neox_shapes(config: Mapping[str, Any]) -> Shapes:
    width, inner = config["hidden_size"], config["intermediate_size"]
    shapes: Shapes = {"gpt_neox.embed_in.weight": (config["vocab_size"], width)}
    for layer in range(config["num_hidden_layers"]):
        block = f"gpt_neox.layers.{layer}"
        shapes |= _norm(f"{block}.input_layernorm", width) | _norm(f"{block}.post_attention_layernorm", width)
        for name, outputs, inputs in (
            ("attention.query_key_value", 3 * width, width),
            ("attention.dense", width, width),
            ("mlp.dense_h_to_4h", inner, width),
            ("mlp.dense_4h_to_h", width, inner),
        ):
            shapes |= {f"{block}.{name}.weight": (outputs, inputs), f"{block}.{name}.bias": (outputs,)}
    shapes |= _norm("gpt_neox.final_layer_norm", width)
    return shapes | {"embed_out.weight": (config["vocab_size"], width)}


def _separate_shapes(config: Mapping[str, Any]) -> Shapes:
    kind, width, inner = config["model_type"], config["hidden_size"], config["intermediate_size"]
    head_dim = width // config["num_attention_heads"]
    keys = config["num_key_value_heads"] * head_dim
    biases = {"starcoder2": True, "stablelm": config.get("use_qkv_bias", False)}.get(kind, False)
    two_norms = kind == "starcoder2" or (kind == "stablelm" and not config.get("use_parallel_residual"))
    norm_bias = kind in ("starcoder2", "stablelm")

    def norm(name: str) -> Shapes:
        return _norm(name, width) if norm_bias else {f"{name}.weight": (width,)}

    shapes: Shapes = {"model.embed_tokens.weight": (config["vocab_size"], width)}
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}"
        for name, rows in (("q", width), ("k", keys), ("v", keys), ("o", width)):
            shapes[f"{block}.self_attn.{name}_proj.weight"] = (rows, width)
            if biases and (kind == "starcoder2" or name != "o"):
                shapes[f"{block}.self_attn.{name}_proj.bias"] = (rows,)
        for name, heads in (("q", config["num_attention_heads"]), ("k", config["num_key_value_heads"])):
            if config.get("use_qk_norm"):
                shapes[f"{block}.self_attn.{name}_norm.weight"] = (heads, head_dim)
            if config.get("qk_layernorm"):
                for head in range(heads):
                    shapes[f"{block}.self_attn.{name}_layernorm.norms.{head}.weight"] = (head_dim,)
        shapes |= norm(f"{block}.input_layernorm")
        if two_norms:
            shapes |= norm(f"{block}.post_attention_layernorm")
        if kind == "starcoder2":
            for name, outputs, inputs in (("c_fc", inner, width), ("c_proj", width, inner)):
                shapes |= {f"{block}.mlp.{name}.weight": (outputs, inputs), f"{block}.mlp.{name}.bias": (outputs,)}
        else:
            for name, outputs, inputs in (("gate", inner, width), ("up", inner, width), ("down", width, inner)):
                shapes[f"{block}.mlp.{name}_proj.weight"] = (outputs, inputs)
    shapes |= norm("model.norm")
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], width)
    return shapes
