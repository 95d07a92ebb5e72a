"""GGUF files for tests, written with the ``gguf`` package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from windlass.quantization.ggml import GGML_TYPES

F32 = NDArray[np.float32]

BLOCK_TYPES = tuple(number for number, kind in GGML_TYPES.items() if kind.split is not None)
HALVES = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
}
"""Where a block has its float16 scales."""

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def random_blocks(number: int, rows: int, columns: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Blocks of a type with any codes and scales of a usual size, [rows, bytes of a row]."""
    kind = GGML_TYPES[number]
    blocks = rng.integers(0, 256, (rows, columns // kind.block, kind.block_bytes), dtype=np.uint8)
    for at in HALVES.get(kind.name, ()):
        scales = rng.uniform(-0.002, 0.002, (*blocks.shape[:2], 1)).astype("<f2")
        blocks[:, :, at : at + 2] = scales.view(np.uint8)
    if kind.name == "MXFP4":
        blocks[:, :, 0] = rng.integers(117, 123, blocks.shape[:2])
    return blocks.reshape(rows, -1)


def dequantized(number: int, blocks: NDArray[np.uint8]) -> F32:
    """What the ``gguf`` package says that blocks stand for."""
    numbers: F32 = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(number))
    return numbers


def gguf_name(name: str) -> str:
    """GGUF's name of a Hugging Face tensor."""
    stem, _, suffix = name.rpartition(".")
    if stem.startswith("model.layers."):
        _, _, layer, inner = stem.split(".", 3)
        return f"blk.{layer}.{_NAMES[inner]}.{suffix}"
    return f"{_NAMES[stem]}.{suffix}"


def paired(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of heads that are rotated by halves, in the order for rotation in pairs."""
    halves = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def llama3_factors(config: Mapping[str, Any], dim: int) -> F32:
    """How much Llama 3.1's scaling slows each pair of a head of ``dim`` columns."""
    scaling = config["rope_scaling"]
    wavelengths = 2 * np.pi * config["rope_theta"] ** (np.arange(0, dim, 2) / dim)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = np.clip((scaling["original_max_position_embeddings"] / wavelengths - low) / (high - low), 0, 1)
    factors: F32 = (1 / (kept + (1 - kept) / scaling["factor"])).astype(np.float32)
    return factors


def begin_gguf(
    path: Path,
    architecture: str,
    config: Mapping[str, Any],
    tokens: Sequence[str] | None = None,
    *,
    tokenizer: bool = True,
) -> gguf.GGUFWriter:
    """A file with the metadata that most architectures have, and a tokenizer unless it gets one of its own."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    if "num_key_value_heads" in config:
        writer.add_head_count_kv(config["num_key_value_heads"])
    if config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    if "rms_norm_eps" in config:
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    theta = config.get("rope_theta") or config.get("rope_parameters", {}).get("rope_theta")
    if theta:
        writer.add_rope_freq_base(theta)
    if tokenizer:
        add_tokenizer(writer, "llama", tokens or [f"<{number}>" for number in range(config["vocab_size"])])
        writer.add_eos_token_id(2)
    return writer


def add_tokenizer(
    writer: gguf.GGUFWriter, model: str, tokens: Sequence[str], types: Sequence[int] | None = None
) -> None:
    """Add a vocabulary, whose tokens are plain ones unless told."""
    writer.add_tokenizer_model(model)
    writer.add_token_list(list(tokens))
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(list(types or [1] * len(tokens)))


def end_gguf(writer: gguf.GGUFWriter, path: Path) -> Path:
    """Write all that was added; return ``path``."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_gguf(
    path: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, NDArray[Any]],
    types: Mapping[str, int] | None = None,
    *,
    extra: Mapping[str, NDArray[Any]] | None = None,
    tokens: Sequence[str] | None = None,
) -> Path:
    """Write a model; its tokenizer has one token per id, ``<5>`` and the like.

    Args:
        path: the file.
        config: config.json of a llama, qwen2 or qwen3.
        tensors: by Hugging Face's names, in its order of rows: floats, or blocks as bytes.
        types: the numbers of the types of those that are blocks.
        extra: tensors by GGUF's names.
        tokens: the vocabulary, instead.
    """
    kind = {"mistral": "llama"}.get(config["model_type"], config["model_type"])
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = begin_gguf(path, kind, config, tokens)
    for name, data in tensors.items():
        if kind == "llama" and ".q_proj." in name:
            data = paired(data, heads)
        if kind == "llama" and ".k_proj." in name:
            data = paired(data, kv_heads)
        number = (types or {}).get(name)
        raw = None if number is None else gguf.GGMLQuantizationType(number)
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(data), raw_dtype=raw)
    for name, data in (extra or {}).items():
        writer.add_tensor(name, data)
    return end_gguf(writer, path)
