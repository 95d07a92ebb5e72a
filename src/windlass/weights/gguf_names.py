"""The names of GGUF's tensors (gguf-py's ``constants.py`` lists them), as Hugging Face has them."""

from __future__ import annotations

import dataclasses
import math
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

FIXED_FACTORS = "rope_freqs.weight"
SHORT_FACTORS = "rope_factors_short.weight"
LONG_FACTORS = "rope_factors_long.weight"
ROPE_FACTORS = (FIXED_FACTORS, SHORT_FACTORS, LONG_FACTORS)
"""How much each pair of a head is slowed; they go into the configuration, not into the weights."""

MAX_FACTOR_BYTES = 1 << 16

MAX_EXPERTS = 4096

_NAME = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<stem>\w+)(?:\.(?P<expert>\d+))?\.(?P<suffix>weight|bias)")


def hugging_face_tensors(model: GgufModel, tensors: Mapping[str, str], paired: Mapping[str, str]) -> list[StoredTensor]:
    """Return the model's tensors under Hugging Face's names. Names that are not known stay as they are.

    Args:
        model: the file.
        tensors: templates of Hugging Face's names by the stems of GGUF's, beyond ``COMMON_TENSORS``. A tensor whose
            template has ``{expert}`` is cut into those of the experts; old files, which have one tensor for each,
            have its number in place of ``_exps``. With its suffix in the key, a template is the whole name.
        paired: stems whose rows are ordered for rotation in pairs, and the key that says how many heads they have.

    Raises:
        LoadError: the rows of a tensor are not those of so many heads, or it cannot be cut into experts.
    """
    names = {**COMMON_TENSORS, **tensors}
    own = (tensor for tensor in model.tensors if tensor.name not in ROPE_FACTORS)
    return [renamed for tensor in own for renamed in _renamed(tensor, model, names, paired)]


def _renamed(
    tensor: StoredTensor, model: GgufModel, names: Mapping[str, str], paired: Mapping[str, str]
) -> list[StoredTensor]:
    found = _NAME.fullmatch(tensor.name)
    if found is None:
        return [tensor]
    layer, expert, suffix = found["layer"], found["expert"], found["suffix"]
    stem = found["stem"] if expert is None else f"{found['stem']}_exps"
    whole = names.get(f"{stem}.{suffix}")
    known = f"{names[stem]}.{suffix}" if whole is None and stem in names else whole
    if known is None or ("{layer}" in known) != (layer is not None) or (expert is not None and "{expert}" not in known):
        return [tensor]
    if expert is None and "{expert}" in known:
        return _experts(tensor, known.replace("{layer}", layer))
    heads = _heads(model, paired[stem], tensor) if stem in paired else 0
    name = known.format(layer=layer, expert=expert)
    return [dataclasses.replace(tensor, name=name, shape=_matrix(tensor.shape), paired_heads=heads)]


def _experts(tensor: StoredTensor, name: str) -> list[StoredTensor]:
    """The tensors of the experts, which lie one behind the other."""
    count, *shape = tensor.shape
    if not shape or not 1 <= count <= MAX_EXPERTS:
        raise LoadError(tensor.file, f"{tensor.name} has shape {list(tensor.shape)}, which cannot be that of experts")
    size = tensor.nbytes // count
    return [
        dataclasses.replace(
            tensor,
            name=name.format(expert=number),
            offset=tensor.offset + number * size,
            nbytes=size,
            shape=tuple(shape),
        )
        for number in range(count)
    ]


def _matrix(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The rows of several matrices are those of one."""
    return shape if len(shape) < 3 else (math.prod(shape[:-1]), shape[-1])


def _heads(model: GgufModel, key: str, tensor: StoredTensor) -> int:
    prefix = model.metadata.get("general.architecture")
    default: Any = model.metadata.get(f"{prefix}.attention.head_count")
    heads = model.metadata.get(f"{prefix}.{key}", default)
    if type(heads) is not int or heads < 1 or tensor.shape[0] % (2 * heads):
        raise LoadError(model.path, f"{tensor.name}: {tensor.shape[0]} rows cannot be those of {heads!r} heads")
    return heads


def read_rope_factors(model: GgufModel) -> dict[str, list[float]]:
    """Return how much each pair of a head is slowed, by the names of ``ROPE_FACTORS`` that the file has.

    Raises:
        LoadError: a tensor is not of float32, or cannot be read.
    """
    tensors = [tensor for tensor in model.tensors if tensor.name in ROPE_FACTORS]
    for tensor in tensors:
        if tensor.dtype != "float32" or tensor.nbytes > MAX_FACTOR_BYTES:
            raise LoadError(tensor.file, f"{tensor.name} must be a short list of float32")
    if not tensors:
        return {}
    with WeightSource(model.path, tensors) as source:
        return {tensor.name: [float(factor) for factor in source.read(tensor.name).ravel()] for tensor in tensors}
