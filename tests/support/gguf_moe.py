"""GGUF files of mixtures of experts, written as llama.cpp's converter does, with the ``gguf`` package's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from support.gguf_files import paired

F32 = NDArray[np.float32]
Config = Mapping[str, Any]

_ARCHITECTURES = {
    "mixtral": gguf.MODEL_ARCH.LLAMA,
    "qwen2_moe": gguf.MODEL_ARCH.QWEN2MOE,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
    "olmoe": gguf.MODEL_ARCH.OLMOE,
    "gpt_oss": gguf.MODEL_ARCH.GPT_OSS,
    "deepseek_v2": gguf.MODEL_ARCH.DEEPSEEK2,
    "deepseek_v3": gguf.MODEL_ARCH.DEEPSEEK2,
    "llama4_text": gguf.MODEL_ARCH.LLAMA4,
}
_EXPERT = re.compile(r"(?P<block>.*\.experts)\.(?P<number>\d+)\.(?P<part>\w+)\.weight")


def write_moe_gguf(
    path: Path,
    config: Config,
    tensors: Mapping[str, F32],
    *,
    rope_factors: F32 | None = None,
    old: bool = False,
    blocks: Mapping[str, gguf.GGMLQuantizationType] | None = None,
) -> Path:
    """Write a model; its tokenizer has one token per id.

    Args:
        path: the file.
        config: config.json.
        tensors: by Hugging Face's names.
        rope_factors: how much each pair is slowed.
        old: as old files of DeepSeek and Mixtral were: ``attn_kv_b`` in one, a tensor per expert.
        blocks: types of the tensors whose names end so, which are rounded to them.
    """
    arch = _ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    _write_metadata(writer, config, old)
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    llama_names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, data in _converted(config, tensors, old).items():
        if name.startswith("blk."):
            writer.add_tensor(name, data)
            continue
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if new is None:  # llama.cpp knows no layers without experts in Qwen's models
            new = llama_names.get_name(name, try_suffixes=(".weight",))
        assert new is not None, name
        data = np.ascontiguousarray(data)
        kind = next((kind for ending, kind in (blocks or {}).items() if new.endswith(ending)), None)
        writer.add_tensor(new, data if kind is None else gguf.quants.quantize(data, kind), raw_dtype=kind)
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", rope_factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rope_factors(config: Config) -> F32 | None:
    """Of Llama 4's scaling, in which the low and the high frequency factor are the same: a step."""
    scaling = config.get("rope_scaling") or {}
    if "low_freq_factor" not in scaling:
        return None
    dim = config["head_dim"]
    waves = 2 * np.pi * config["rope_theta"] ** (np.arange(0, dim, 2) / dim)
    slow = waves > scaling["original_max_position_embeddings"] / scaling["low_freq_factor"]
    factors: F32 = np.where(slow, scaling["factor"], 1).astype(np.float32)
    return factors


def _write_metadata(writer: gguf.GGUFWriter, config: Config, old: bool) -> None:
    kind = config["model_type"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size_mlp" if kind == "llama4_text" else "intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"] if old or not kind.startswith("deepseek") else 1)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    experts = next(config[key] for key in ("num_experts", "num_local_experts", "n_routed_experts") if key in config)
    writer.add_expert_count(experts)
    if config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    if kind == "llama4_text":
        writer.add_interleave_moe_layer_step(config["interleave_moe_layer_step"])
        writer.add_rope_dimension_count(config["head_dim"])
    if kind in ("llama4_text", "gpt_oss"):
        writer.add_expert_feed_forward_length(config["intermediate_size"])
    if kind == "gpt_oss":
        writer.add_sliding_window(config["sliding_window"])
    if "moe_intermediate_size" in config:
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if "shared_expert_intermediate_size" in config:
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])
    scaling = config.get("rope_scaling") or {}
    if "yarn" in scaling.values():
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(scaling["factor"])
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(scaling["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(scaling["beta_slow"])
    if "mscale_all_dim" in scaling:
        writer.add_rope_scaling_yarn_log_mul(0.1 * scaling["mscale_all_dim"])
    if kind.startswith("deepseek"):
        _write_deepseek(writer, config, old)
    vocabulary = [f"<{number}>" for number in range(config["vocab_size"])]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(vocabulary)
    writer.add_token_scores([0.0] * len(vocabulary))
    writer.add_token_types([1] * len(vocabulary))
    writer.add_eos_token_id(2)


def _write_deepseek(writer: gguf.GGUFWriter, config: Config, old: bool) -> None:
    length = config["qk_nope_head_dim"] + config["qk_rope_head_dim"]
    if config["q_lora_rank"] is not None:
        writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_kv_lora_rank(config["kv_lora_rank"])
    writer.add_key_length(length if old else config["kv_lora_rank"] + config["qk_rope_head_dim"])
    writer.add_value_length(config["v_head_dim"] if old else config["kv_lora_rank"])
    if not old:
        writer.add_key_length_mla(length)
        writer.add_value_length_mla(config["v_head_dim"])
        sigmoid = config["scoring_func"] == "sigmoid"
        kinds = gguf.ExpertGatingFuncType
        writer.add_expert_gating_func(kinds.SIGMOID if sigmoid else kinds.SOFTMAX)
        writer.add_expert_group_count(config["n_group"])
        writer.add_expert_group_used_count(config["topk_group"])
    writer.add_rope_dimension_count(config["qk_rope_head_dim"])
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    if config["norm_topk_prob"]:
        writer.add_expert_weights_norm(True)


def _converted(config: Config, tensors: Mapping[str, F32], old: bool) -> dict[str, F32]:
    """The tensors as the converter hands them on: Hugging Face's names, but those of experts in one tensor each."""
    result: dict[str, F32] = {}
    experts: dict[str, list[F32]] = {}
    for name, data in tensors.items():
        expert = _EXPERT.fullmatch(name)
        if config["model_type"] == "mixtral" and re.search(r"\.[qk]_proj\.", name):
            data = paired(data, config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"])
        if expert is not None and old:
            stem = {"w1": "ffn_gate", "w3": "ffn_up", "w2": "ffn_down"}.get(expert["part"])
            if stem is not None:
                result[f"blk.{name.split('.')[2]}.{stem}.{expert['number']}.weight"] = data
                continue
        if expert is not None:
            block = expert["block"]
            if config["model_type"] == "mixtral":
                block = f"layers.{name.split('.')[2]}.feed_forward.experts"
            experts.setdefault(f"{block}.{expert['part']}.weight", []).append(data)
        elif name.endswith("kv_b_proj.weight") and not old:
            nope = config["qk_nope_head_dim"]
            heads = data.reshape(config["num_attention_heads"], nope + config["v_head_dim"], -1)
            result[name.replace("kv_b", "k_b")] = heads[:, :nope].transpose(0, 2, 1)
            result[name.replace("kv_b", "v_b")] = heads[:, nope:]
        elif ".experts." in name:
            result |= _stacked_experts(config, name, data)
        elif name.endswith("shared_expert_gate.weight"):
            result[name] = data[0]
        elif name.endswith("e_score_correction_bias"):
            result[name.replace("_bias", ".bias")] = data
        elif name.endswith(".sinks"):
            result[f"{name}.weight"] = data
        else:
            result[name] = data
    return result | {name: np.stack(parts) for name, parts in experts.items()}


def _stacked_experts(config: Config, name: str, data: F32) -> dict[str, F32]:
    """Of gpt-oss and Llama 4: [E, K, N] to [E, N, K], and gate and up apart."""
    bias = name.endswith("_bias")
    stem, suffix = name.removesuffix("_bias"), "bias" if bias else "weight"
    data = data if bias else data.swapaxes(1, 2)
    if stem.endswith("down_proj"):
        return {f"{stem}.{suffix}": data}
    half = data.shape[1] // 2
    turns = config["model_type"] == "gpt_oss"
    gate, up = (data[:, 0::2], data[:, 1::2]) if turns else (data[:, :half], data[:, half:])
    block = stem.removesuffix("gate_up_proj")
    return {f"{block}gate_proj.{suffix}": gate, f"{block}up_proj.{suffix}": up}
