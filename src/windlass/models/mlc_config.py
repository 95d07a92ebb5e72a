"""The ``model_config`` object of mlc-chat-config.json, to and from the keys of a Hugging Face config.json.

MLC's own fields are written as MLC writes them. What MLC has no field for (other rope types than llama3, biases of
Llama, Qwen's sliding windows) is added under its Hugging Face name, and only when it is not the default.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from windlass.models.config import ConfigReader
from windlass.models.definition import ModelDefinition
from windlass.models.family import MlcDialect
from windlass.models.rope import DEFAULT_THETA

_RUNTIME_FIELDS = (
    "prefill_chunk_size",
    "attention_sink_size",
    "tensor_parallel_shards",
    "pipeline_parallel_stages",
    "max_batch_size",
    "disaggregation",
    "context_window_size",
    "dtype",
    "ffn_out_dtype",
)
_SAME_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "rms_norm_eps",
    "vocab_size",
)
_OPTIONAL_FIELDS = ("tie_word_embeddings", "attention_bias", "mlp_bias")


def from_mlc_config(dialect: MlcDialect, mlc: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], int]:
    """Return the config.json that says the same, and the context length that MLC's fields allow.

    Raises:
        LoadError: a field is of the wrong type, or none says how long the context is.
    """
    kwargs = mlc.get("kwargs")
    values = {**(kwargs if isinstance(kwargs, Mapping) else {}), **mlc}
    values.pop("kwargs", None)
    reader = ConfigReader(values, path)
    # MLC writes 0 for "derive it", and -1 for "none".
    context = reader.integer("context_window_size", default=0, minimum=-1)
    if context <= 0:
        context = reader.integer("max_position_embeddings", default=0, minimum=0)
    if dialect.read is not None:
        context = dialect.read(reader, values, context)
    if context == 0:
        raise reader.error("context_window_size", "is missing, and so is max_position_embeddings")
    for key in ("position_embedding_base", "num_key_value_heads", "head_dim"):
        if type(values.get(key)) is int and values[key] == 0:
            del values[key]
    hf = {dialect.renamed.get(key, key): value for key, value in values.items() if key not in _RUNTIME_FIELDS}
    hf["max_position_embeddings"] = context
    scaling = hf.get("rope_scaling")
    if isinstance(scaling, Mapping):
        # MLC drops a scaling without rope_type, and so must who reads the same weights.
        hf["rope_scaling"] = dict(scaling) if "rope_type" in scaling else None
        if scaling.get("rope_type") == "dynamic" and "original_max_position_embeddings" in scaling:
            hf["max_position_embeddings"] = hf["rope_scaling"].pop("original_max_position_embeddings")
    return hf, context


def to_mlc_config(dialect: MlcDialect, definition: ModelDefinition, hf: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``model_config`` of a model that was read from the config.json ``hf``."""
    context = definition.context_length
    rope = dict(hf.get("rope_parameters") or hf.get("rope_scaling") or {})
    theta = rope.pop("rope_theta", None) or hf.get("rope_theta") or DEFAULT_THETA
    mlc = {key: hf[key] for key in _SAME_FIELDS if key in hf}
    mlc["num_key_value_heads"] = definition.program.num_kv_heads
    mlc["head_dim"] = definition.program.head_dim
    mlc["context_window_size"] = context
    mlc["prefill_chunk_size"] = min(context, dialect.prefill_chunk_size)
    mlc["tensor_parallel_shards"] = 1
    mlc["max_batch_size"] = 1
    # theta is an integer in MLC, and Hugging Face writes 10000.0
    mlc["rope_theta"] = int(theta) if theta == int(theta) else theta
    mlc["rope_scaling"] = _mlc_rope_scaling(rope, hf)
    for key in _OPTIONAL_FIELDS:
        mlc[key] = bool(hf.get(key))
    mlc |= {key: hf[key] for key in (*dialect.fields, *dialect.optional) if key in hf and key not in mlc}
    mlc |= dialect.constants
    if dialect.write is not None:
        dialect.write(mlc, hf)
    mlc = {key: value for key, value in mlc.items() if key in dialect.fields or not (value is None or value is False)}
    names = {new: old for old, new in dialect.renamed.items()}
    return {names.get(key, key): value for key, value in mlc.items()}


def _mlc_rope_scaling(rope: dict[str, Any], hf: Mapping[str, Any]) -> dict[str, Any] | None:
    """``rope_scaling`` under its new key, with the length before scaling where context_window_size hides it."""
    rope_type = rope.pop("type", None)
    rope_type = rope.pop("rope_type", rope_type)
    if rope_type in (None, "default"):
        return None
    if rope_type in ("dynamic", "yarn"):
        rope.setdefault("original_max_position_embeddings", hf["max_position_embeddings"])
    return {"rope_type": rope_type, **rope}
