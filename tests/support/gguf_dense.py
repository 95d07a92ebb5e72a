"""GGUF files of the dense decoders that differ from Llama, as llama.cpp's converter writes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from support.gguf_files import begin_gguf, end_gguf, gguf_name, llama3_factors, paired
from support.tiny_models import TinyModel

_ARCHITECTURES = {"gemma3_text": "gemma3", "olmo3": "olmo2", "ministral3": "mistral3"}

_PAIRED = {"granite", "smollm3", "ministral3"}

_NORMS_BEHIND = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_OWN_NAMES: dict[str, dict[str, str]] = {
    **dict.fromkeys(("gemma2", "gemma3_text", "olmo2", "olmo3", "exaone4"), _NORMS_BEHIND),
    "phi3": {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"},
}


def write_dense_gguf(path: Path, model: TinyModel) -> Path:
    """Write a model of ``tiny_dense``."""
    config, model_type = model.config, model.config["model_type"]
    writer = begin_gguf(path, _ARCHITECTURES.get(model_type, model_type), config)
    _add_metadata(writer, config)
    for name, data in model.weights().items():
        if model_type.startswith("gemma") and name.endswith("norm.weight"):
            data = data + 1
        if model_type in _PAIRED and ".q_proj." in name:
            data = paired(data, config["num_attention_heads"])
        if model_type in _PAIRED and ".k_proj." in name:
            data = paired(data, config["num_key_value_heads"])
        writer.add_tensor(_gguf_name(name, _OWN_NAMES.get(model_type, {})), np.ascontiguousarray(data))
    return end_gguf(writer, path)


def _gguf_name(name: str, own: Mapping[str, str]) -> str:
    stem, _, suffix = name.rpartition(".")
    if stem.startswith("model.layers."):
        _, _, layer, inner = stem.split(".", 3)
        if inner in own:
            return f"blk.{layer}.{own[inner]}.{suffix}"
    return gguf_name(name)


def _add_metadata(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    model_type = config["model_type"]
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if model_type in _PAIRED:
        writer.add_vocab_size(config["vocab_size"])
        writer.add_rope_dimension_count(
            config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        )
    if model_type in ("gemma2", "gemma3_text", "olmo3", "exaone4") and config["sliding_window"]:
        writer.add_sliding_window(config["sliding_window"])
    if model_type == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if model_type == "gemma3_text":
        writer.add_rope_freq_base_swa(config["rope_local_base_freq"])
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling["factor"])
    if model_type == "olmo3":
        layers = range(config["num_hidden_layers"])
        writer.add_sliding_window_pattern([(layer + 1) % 4 != 0 for layer in layers])
    if model_type == "exaone4":
        writer.add_vocab_size(config["vocab_size"])
        writer.add_rope_dimension_count(config["head_dim"])
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config["layer_types"]])
        writer.add_tensor("rope_freqs.weight", llama3_factors(config, config["head_dim"]))
    if model_type in ("olmo3", "ministral3"):
        _add_yarn(writer, scaling)
    if model_type == "ministral3":
        writer.add_rope_scaling_yarn_log_mul(scaling["mscale_all_dim"])
        writer.add_attn_temperature_scale(scaling["llama_4_scaling_beta"])
    if model_type == "granite":
        writer.add_attention_scale(config["attention_multiplier"])
        writer.add_embedding_scale(config["embedding_multiplier"])
        writer.add_residual_scale(config["residual_multiplier"])
        writer.add_logit_scale(config["logits_scaling"])
    if model_type == "smollm3":
        writer.add_rope_freq_base(2e6)  # what its config.json means when it does not say
    if model_type == "phi3":
        _add_phi3(writer, config, scaling)


def _add_yarn(writer: gguf.GGUFWriter, scaling: Mapping[str, Any]) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(scaling["factor"])
    writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
    writer.add_rope_scaling_yarn_beta_fast(scaling["beta_fast"])
    writer.add_rope_scaling_yarn_beta_slow(scaling["beta_slow"])
    if scaling.get("attention_factor"):
        writer.add_rope_scaling_yarn_attn_factor(scaling["attention_factor"])


def _add_phi3(writer: gguf.GGUFWriter, config: Mapping[str, Any], scaling: Mapping[str, Any]) -> None:
    original = config["original_max_position_embeddings"]
    share = config.get("partial_rotary_factor", 1.0)
    writer.add_rope_scaling_orig_ctx_len(original)
    writer.add_rope_dimension_count(int(share * config["hidden_size"]) // config["num_attention_heads"])
    writer.add_sliding_window(config.get("sliding_window") or 0)
    if scaling:
        factor = config["max_position_embeddings"] / original
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(factor) / math.log(original)))
        for kind in ("long", "short"):
            factors = np.array(scaling[f"{kind}_factor"], dtype=np.float32)
            writer.add_tensor(f"rope_factors_{kind}.weight", factors)
