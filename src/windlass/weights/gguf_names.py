"""The names of GGUF's tensors (gguf-py's ``constants.py`` lists them), as Hugging Face has them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from windlass.errors import LoadError
from windlass.weights.gguf import GgufModel
from windlass.weights.source import StoredTensor, WeightSource

_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ROPE_FACTORS = "rope_freqs.weight"
"""How much each pair of a head is slowed; it goes into the configuration, not into the weights."""

MAX_FACTOR_BYTES = 1 << 16

_NAME = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<stem>\w+)\.(?P<suffix>weight|bias)")
_PAIRED = {"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"}
"""In files of the architecture llama these rows are ordered for rotation in pairs; the key says how many heads."""


def hugging_face_tensors(model: GgufModel) -> list[StoredTensor]:
    """Return the model's tensors under Hugging Face's names. Names that are not known stay as they are."""
    paired = _PAIRED if model.metadata.get("general.architecture") == "llama" else {}
    return [_renamed(tensor, model, paired) for tensor in model.tensors if tensor.name != ROPE_FACTORS]


def _renamed(tensor: StoredTensor, model: GgufModel, paired: Mapping[str, str]) -> StoredTensor:
    found = _NAME.fullmatch(tensor.name)
    if found is None:
        return tensor
    layer, stem, suffix = found["layer"], found["stem"], found["suffix"]
    known = _OUTER.get(stem) if layer is None else _INNER.get(stem)
    if known is None:
        return tensor
    name = f"{known}.{suffix}" if layer is None else f"model.layers.{layer}.{known}.{suffix}"
    heads = _heads(model, paired[stem], tensor) if layer is not None and stem in paired else 0
    return dataclasses.replace(tensor, name=name, paired_heads=heads)


def _heads(model: GgufModel, key: str, tensor: StoredTensor) -> int:
    default: Any = model.metadata.get("llama.attention.head_count")
    heads = model.metadata.get(f"llama.{key}", default)
    if type(heads) is not int or heads < 1 or tensor.shape[0] % (2 * heads):
        raise LoadError(model.path, f"{tensor.name}: {tensor.shape[0]} rows cannot be those of {heads!r} heads")
    return heads


def read_rope_factors(model: GgufModel) -> list[float] | None:
    """Return how much each pair of a head is slowed, where the file says it.

    Raises:
        LoadError: the tensor is not of float32, or cannot be read.
    """
    tensor = next((tensor for tensor in model.tensors if tensor.name == ROPE_FACTORS), None)
    if tensor is None:
        return None
    if tensor.dtype != "float32" or tensor.nbytes > MAX_FACTOR_BYTES:
        raise LoadError(tensor.file, f"{ROPE_FACTORS} must be a short list of float32")
    with WeightSource(model.path, [tensor]) as source:
        return [float(factor) for factor in source.read(ROPE_FACTORS).ravel()]
