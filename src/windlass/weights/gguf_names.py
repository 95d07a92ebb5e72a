"""The names of GGUF's tensors (gguf-py's ``constants.py`` lists them), as Hugging Face has them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from windlass.errors import LoadError
from windlass.weights.gguf import GgufModel
from windlass.weights.source import StoredTensor, WeightSource

COMMON_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "model.layers.{layer}.input_layernorm",
    "attn_q": "model.layers.{layer}.self_attn.q_proj",
    "attn_k": "model.layers.{layer}.self_attn.k_proj",
    "attn_v": "model.layers.{layer}.self_attn.v_proj",
    "attn_output": "model.layers.{layer}.self_attn.o_proj",
    "attn_q_norm": "model.layers.{layer}.self_attn.q_norm",
    "attn_k_norm": "model.layers.{layer}.self_attn.k_norm",
    "ffn_norm": "model.layers.{layer}.post_attention_layernorm",
    "ffn_gate": "model.layers.{layer}.mlp.gate_proj",
    "ffn_up": "model.layers.{layer}.mlp.up_proj",
    "ffn_down": "model.layers.{layer}.mlp.down_proj",
}
"""What most families call the same; those with ``{layer}`` come after ``blk.`` and the layer's number."""

ROPE_FACTORS = "rope_freqs.weight"
"""How much each pair of a head is slowed; it goes into the configuration, not into the weights."""

MAX_FACTOR_BYTES = 1 << 16

_NAME = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<stem>\w+)\.(?P<suffix>weight|bias)")


def hugging_face_tensors(model: GgufModel, tensors: Mapping[str, str], paired: Mapping[str, str]) -> list[StoredTensor]:
    """Return the model's tensors under Hugging Face's names. Names that are not known stay as they are.

    Args:
        model: the file.
        tensors: templates of Hugging Face's names by the stems of GGUF's, beyond ``COMMON_TENSORS``.
        paired: stems whose rows are ordered for rotation in pairs, and the key that says how many heads they have.

    Raises:
        LoadError: the rows of a tensor are not those of so many heads.
    """
    names = {**COMMON_TENSORS, **tensors}
    return [_renamed(tensor, model, names, paired) for tensor in model.tensors if tensor.name != ROPE_FACTORS]


def _renamed(
    tensor: StoredTensor, model: GgufModel, names: Mapping[str, str], paired: Mapping[str, str]
) -> StoredTensor:
    found = _NAME.fullmatch(tensor.name)
    if found is None:
        return tensor
    layer, stem, suffix = found["layer"], found["stem"], found["suffix"]
    known = names.get(stem)
    if known is None or ("{layer}" in known) != (layer is not None):
        return tensor
    heads = _heads(model, paired[stem], tensor) if stem in paired else 0
    return dataclasses.replace(tensor, name=f"{known.format(layer=layer)}.{suffix}", paired_heads=heads)


def _heads(model: GgufModel, key: str, tensor: StoredTensor) -> int:
    prefix = model.metadata.get("general.architecture")
    default: Any = model.metadata.get(f"{prefix}.attention.head_count")
    heads = model.metadata.get(f"{prefix}.{key}", default)
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
