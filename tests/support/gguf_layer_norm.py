"""GGUF files of the families with layer norms, as llama.cpp's converter writes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from support.gguf_files import F32, begin_gguf, end_gguf, gguf_name
from support.tiny_models import TinyModel

_ARCHITECTURES = {"gpt_bigcode": "starcoder", "gpt_neox": "gptneox", "cohere": "command-r"}
_GPT2_SIZES = {
    "n_embd": "hidden_size",
    "n_inner": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
}
_EPS = ("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon")
_NAMES = {
    "gpt2": {
        "transformer.wte": "token_embd",
        "transformer.wpe": "position_embd",
        "transformer.ln_f": "output_norm",
        "ln_1": "attn_norm",
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "ln_2": "ffn_norm",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    },
    "gpt_neox": {
        "gpt_neox.embed_in": "token_embd",
        "gpt_neox.final_layer_norm": "output_norm",
        "embed_out": "output",
        "input_layernorm": "attn_norm",
        "attention.query_key_value": "attn_qkv",
        "attention.dense": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.dense_h_to_4h": "ffn_up",
        "mlp.dense_4h_to_h": "ffn_down",
    },
    "starcoder2": {"mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"},
    "stablelm": {"self_attn.q_layernorm": "attn_q_norm", "self_attn.k_layernorm": "attn_k_norm"},
    "cohere": {},
    "cohere2": {},
}
_NAMES["gpt_bigcode"] = _NAMES["gpt2"]
_BLOCK = re.compile(r"(?:transformer\.h|gpt_neox\.layers|model\.layers)\.(\d+)\.(.+)")


def write_layer_norm_gguf(path: Path, model: TinyModel) -> Path:
    """Write a model of ``tiny_layer_norm``."""
    model_type = model.config["model_type"]
    config = {_GPT2_SIZES.get(key, key): value for key, value in model.config.items()}
    config.setdefault("intermediate_size", 4 * config["hidden_size"])
    if model_type == "gpt_bigcode":
        config["num_key_value_heads"] = 1
    writer = begin_gguf(path, _ARCHITECTURES.get(model_type, model_type), config)
    writer.add_layer_norm_eps(next(config[key] for key in _EPS if key in config))
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    share = config.get("rotary_pct", config.get("partial_rotary_factor"))
    if share is not None:
        writer.add_rope_dimension_count(int(share * head_dim))
        writer.add_parallel_residual(config.get("use_parallel_residual", True))
    if "logit_scale" in config:
        writer.add_logit_scale(config["logit_scale"])
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
    if model_type == "cohere2":
        writer.add_sliding_window(config["sliding_window"])
        writer.add_vocab_size(config["vocab_size"])
        writer.add_rope_dimension_count(head_dim)
    for name, data in _converted(model_type, config, model.weights()).items():
        writer.add_tensor(_gguf_name(name, _NAMES[model_type]), np.ascontiguousarray(data))
    return end_gguf(writer, path)


def _gguf_name(name: str, own: Mapping[str, str]) -> str:
    stem, _, suffix = name.rpartition(".")
    block = _BLOCK.fullmatch(stem)
    if block is not None and block[2] in own:
        return f"blk.{block[1]}.{own[block[2]]}.{suffix}"
    return f"{own[stem]}.{suffix}" if stem in own else gguf_name(name)


def _converted(model_type: str, config: Mapping[str, Any], tensors: Mapping[str, F32]) -> dict[str, F32]:
    """The tensors in the order of rows, and stacked, as the files have them."""
    result: dict[str, F32] = {}
    heads: dict[str, list[F32]] = {}
    for name, data in tensors.items():
        norm = re.fullmatch(r"(.+_layernorm)\.norms\.\d+\.weight", name)
        if norm:
            heads.setdefault(f"{norm[1]}.weight", []).append(data)
        elif model_type == "gpt2" and re.search(r"\.c_\w+\.weight$", name):
            result[name] = data.T
        elif ".query_key_value." in name:
            runs = data.reshape(config["num_attention_heads"], 3, -1, *data.shape[1:])
            result[name] = runs.swapaxes(0, 1).reshape(data.shape)
        else:
            result[name] = data
    return result | {name: np.stack(rows) for name, rows in heads.items()}
