"""stories260K, a real trained Llama of 260 thousand parameters: llama2.c's files as Hugging Face has them."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from support.text_files import added_token, bos_processor, byte_fallback_bpe, sentencepiece_tokenizer

F32 = NDArray[np.float32]


def read_stories(data_dir: Path) -> tuple[dict[str, Any], dict[str, F32]]:
    """Return config.json and the tensors by their Hugging Face names."""
    raw = (data_dir / "weights" / "stories260K.bin").read_bytes()
    dim, inner, layers, heads, kv_heads, vocab, context = struct.unpack_from("<7i", raw)
    numbers = np.frombuffer(raw, dtype="<f4", offset=28)
    used = 0

    def take(*shape: int) -> F32:
        nonlocal used
        used += int(np.prod(shape))
        return numbers[used - int(np.prod(shape)) : used].reshape(shape)

    keys = kv_heads * (dim // heads)
    tensors = {"model.embed_tokens.weight": take(vocab, dim)}
    stacked = {  # in file order
        "input_layernorm": take(layers, dim),
        "self_attn.q_proj": _half_rotation(take(layers, dim, dim), heads),
        "self_attn.k_proj": _half_rotation(take(layers, keys, dim), kv_heads),
        "self_attn.v_proj": take(layers, keys, dim),
        "self_attn.o_proj": take(layers, dim, dim),
        "post_attention_layernorm": take(layers, dim),
        "mlp.gate_proj": take(layers, inner, dim),
        "mlp.down_proj": take(layers, dim, inner),
        "mlp.up_proj": take(layers, inner, dim),
    }
    for name, weights in stacked.items():
        tensors |= {f"model.layers.{layer}.{name}.weight": weights[layer] for layer in range(layers)}
    tensors["model.norm.weight"] = take(dim)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": dim,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    return config, tensors


def _half_rotation(weights: F32, heads: int) -> F32:
    """Reorder the rows of each head from interleaved pairs (2i, 2i + 1) to pairs (i, i + half)."""
    layers, rows, columns = weights.shape
    pairs = weights.reshape(layers, heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(2, 3)).reshape(layers, rows, columns)


def stories_tokenizer(data_dir: Path) -> dict[str, Any]:
    """Build a tokenizer.json: SentencePiece's BPE with byte fallback, its merges ordered by the pieces' scores."""
    scores = _read_pieces((data_dir / "weights" / "tok512.bin").read_bytes())
    vocab = {piece: number for number, piece in enumerate(scores)}
    return sentencepiece_tokenizer(
        added_tokens=[added_token(vocab[piece], piece) for piece in ("<unk>", "<s>", "</s>")],
        post_processor=bos_processor("<s>", vocab["<s>"]),
        model=byte_fallback_bpe(vocab, _merges(scores, vocab)),
    )


def _read_pieces(raw: bytes) -> dict[str, float]:
    """The pieces and their scores, in the order of their ids."""
    scores: dict[str, float] = {}
    offset = 4
    while offset < len(raw):
        score, length = struct.unpack_from("<fi", raw, offset)
        piece = raw[offset + 8 : offset + 8 + length].decode().strip("\n") or "\n"
        scores[piece.replace(" ", "▁")] = score
        offset += 8 + length
    return scores


def _merges(scores: Mapping[str, float], vocab: Mapping[str, int]) -> list[list[str]]:
    """Every way to make a piece of two others, the best-scored piece first: SentencePiece merges in that order."""
    merges = [
        (-score, vocab[piece[:cut]], vocab[piece[cut:]], [piece[:cut], piece[cut:]])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    return [pair for *_, pair in sorted(merges)]
