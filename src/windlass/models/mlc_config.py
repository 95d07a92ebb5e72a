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
from windlass.models.mistral import DEFAULT_WINDOW as MISTRAL_WINDOW
from windlass.models.rope import DEFAULT_THETA

_RENAMED = {
    "llama": {"position_embedding_base": "rope_theta"},
    "mistral": {"position_embedding_base": "rope_theta", "sliding_window_size": "sliding_window"},
    "qwen2": {},
    "qwen3": {},
}
"""MLC's name to Hugging Face's; names that are the same are not listed."""

_RUNTIME_FIELDS = (
    "prefill_chunk_size",
    "attention_sink_size",
    "tensor_parallel_shards",
    "pipeline_parallel_stages",
    "max_batch_size",
    "disaggregation",
    "context_window_size",
    "dtype",
)
_SAME_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "rms_norm_eps",
    "vocab_size",
)
_QWEN_WINDOW_FIELDS = ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")
_MLC_FIELDS = {
    "llama": ("tie_word_embeddings", "rope_scaling", "disaggregation"),
    "mistral": (),
    "qwen2": ("tie_word_embeddings",),
    "qwen3": ("tie_word_embeddings", "attention_bias"),
}
"""Fields that MLC always writes; others that are null or false are left out."""
_MAX_PREFILL_CHUNK = {"llama": 8192, "mistral": 8192, "qwen2": 8192, "qwen3": 2048}


def from_mlc_config(model_type: str, mlc: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], int]:
    """Return the config.json that says the same, and the context length that MLC's fields allow.

    A Mistral with ``attention_sink_size`` keeps its first tokens in view when the window slides, which is not
    supported; its context ends where the window would begin to slide, up to where there is no difference.

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
    if model_type == "mistral":
        window = reader.integer("sliding_window_size", default=-1, minimum=-1)
        values["sliding_window_size"] = window if window > 0 else None
        if window > 0 and (context == 0 or reader.integer("attention_sink_size", default=4, minimum=0) > 0):
            context = min(context, window) or window
    if context == 0:
        raise reader.error("context_window_size", "is missing, and so is max_position_embeddings")
    for key in ("position_embedding_base", "num_key_value_heads", "head_dim"):
        if type(values.get(key)) is int and values[key] == 0:
            del values[key]
    renamed = _RENAMED[model_type]
    hf = {renamed.get(key, key): value for key, value in values.items() if key not in _RUNTIME_FIELDS}
    hf["max_position_embeddings"] = context
    scaling = hf.get("rope_scaling")
    if isinstance(scaling, Mapping):
        # MLC drops a scaling without rope_type, and so must who reads the same weights.
        hf["rope_scaling"] = dict(scaling) if "rope_type" in scaling else None
        if scaling.get("rope_type") == "dynamic" and "original_max_position_embeddings" in scaling:
            hf["max_position_embeddings"] = hf["rope_scaling"].pop("original_max_position_embeddings")
    return hf, context


def to_mlc_config(definition: ModelDefinition, hf: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``model_config`` of a model that was read from the config.json ``hf``."""
    model_type = definition.model_type
    context = definition.context_length
    rope = dict(hf.get("rope_parameters") or hf.get("rope_scaling") or {})
    theta = rope.pop("rope_theta", None) or hf.get("rope_theta") or DEFAULT_THETA
    mlc = {key: hf[key] for key in _SAME_FIELDS}
    mlc["num_key_value_heads"] = definition.program.num_kv_heads
    mlc["head_dim"] = definition.program.head_dim
    mlc["context_window_size"] = context
    mlc["prefill_chunk_size"] = min(context, _MAX_PREFILL_CHUNK[model_type])
    mlc["tensor_parallel_shards"] = 1
    mlc["max_batch_size"] = 1
    # theta is an integer in MLC, and Hugging Face writes 10000.0
    mlc["rope_theta"] = int(theta) if theta == int(theta) else theta
    mlc["rope_scaling"] = _mlc_rope_scaling(rope, hf)
    mlc["tie_word_embeddings"] = bool(hf.get("tie_word_embeddings"))
    mlc["attention_bias"] = bool(hf.get("attention_bias"))
    mlc["mlp_bias"] = bool(hf.get("mlp_bias"))
    if model_type == "llama":
        mlc |= {"pipeline_parallel_stages": 1, "disaggregation": False}
    elif model_type == "mistral":
        window = hf.get("sliding_window", MISTRAL_WINDOW)
        # No sinks: Hugging Face's window lets the first tokens go.
        mlc |= {"sliding_window_size": -1 if window is None else window, "attention_sink_size": 0}
    else:
        mlc |= {"hidden_act": "silu", "dtype": "float32"}
        if hf.get("use_sliding_window"):
            mlc |= {key: hf[key] for key in _QWEN_WINDOW_FIELDS if key in hf}
    own_fields = _MLC_FIELDS[model_type]
    mlc = {key: value for key, value in mlc.items() if key in own_fields or not (value is None or value is False)}
    names = {new: old for old, new in _RENAMED[model_type].items()}
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
