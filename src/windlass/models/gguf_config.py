"""The metadata of a GGUF file as the keys of a Hugging Face config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from windlass.errors import LoadError
from windlass.models.config import ConfigReader
from windlass.models.family import GgufDialect, Shapes
from windlass.models.rope import DEFAULT_THETA, Llama3Rope
from windlass.program.pooling import Pooling
from windlass.weights.gguf_names import COMMON_TENSORS, FIXED_FACTORS, LONG_FACTORS, SHORT_FACTORS

_INTEGERS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
}
_POOLINGS: dict[int, Literal["mean", "cls", "last"]] = {1: "mean", 2: "cls", 3: "last"}
_NUMBERS = {"attention.layer_norm_rms_epsilon": "rms_norm_eps", "rope.freq_base": "rope_theta"}


def from_gguf_metadata(
    dialect: GgufDialect,
    metadata: Mapping[str, Any],
    shapes: Shapes,
    rope_factors: Mapping[str, list[float]],
    path: Path,
) -> dict[str, Any]:
    """Return the config.json that says the same as ``metadata``.

    Args:
        dialect: how GGUF files hold this family.
        metadata: keys and values of the file.
        shapes: of all tensors, by Hugging Face's names; they tell what metadata leaves out.
        rope_factors: how much each pair of a head is slowed, by the names of the tensors that say it.
        path: the file, for error messages.

    Raises:
        LoadError: a key is missing, of the wrong type, or not understood.
    """
    prefix = f"{dialect.architecture}."
    reader = ConfigReader(
        {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}, path
    )
    config: dict[str, Any] = {}
    for key, name in {**_INTEGERS, **dialect.keys}.items():
        if reader.has(key):
            config[name] = reader.integer(key)
    for key in ("embedding_length", "block_count", "attention.head_count"):
        reader.integer(key)  # every family needs them
    for key, name in _NUMBERS.items():
        if reader.has(key):
            config[name] = reader.number(key)
    names = {**COMMON_TENSORS, **dialect.tensors}
    embedding = shapes.get(f"{names['token_embd']}.weight")
    if embedding is None:
        raise LoadError(path, "there is no tensor token_embd.weight")
    config["vocab_size"] = reader.integer("vocab_size", default=embedding[0])
    config["tie_word_embeddings"] = f"{names['output']}.weight" not in shapes
    config.update(_rope(reader, rope_factors))
    if dialect.read is not None:
        dialect.read(reader, config, shapes)
    reader.integer("pooling_type", default=0, minimum=0)
    _check_heads(reader, config)
    reader.finish()
    return config


def read_gguf_pooling(dialect: GgufDialect, metadata: Mapping[str, Any], path: Path) -> Pooling | None:
    """Return how the model makes embeddings, with length 1; None for one that generates.

    Raises:
        LoadError: it does so in a way that is not supported.
    """
    key = f"{dialect.architecture}.pooling_type"
    number = metadata.get(key, 0)
    if number == 0:
        return None
    if type(number) is not int or number not in _POOLINGS:
        supported = ", ".join(f"{value} ({kind})" for value, kind in _POOLINGS.items())
        raise LoadError(path, f"{key} is {number!r}; supported: {supported}")
    return Pooling(_POOLINGS[number], normalize=True)


def read_sliding_layers(reader: ConfigReader, config: dict[str, Any]) -> None:
    """Fill in which layers have a sliding window, where the file says so."""
    pattern = reader.booleans("attention.sliding_window_pattern")
    if pattern is not None:
        config["layer_types"] = ["sliding_attention" if slides else "full_attention" for slides in pattern]


def _check_heads(reader: ConfigReader, config: dict[str, Any]) -> None:
    """Read what must agree with the size of a head, if the family has not read it."""
    heads = reader.integer("attention.head_count")
    head_dim = config.get("head_dim", reader.integer("embedding_length") // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if reader.waits(key) and reader.integer(key) != head_dim:
            raise reader.error(key, f"is not the size of a head, {head_dim}, which is not supported")


def _rope(reader: ConfigReader, factors: Mapping[str, list[float]]) -> dict[str, Any]:
    kind = reader.choice("rope.scaling.type", ("none", "linear", "yarn", "longrope"), default="none")
    factor = reader.number("rope.scaling.factor", default=1.0)
    original = reader.integer("rope.scaling.original_context_length", default=0, minimum=0)
    reader.boolean("rope.scaling.finetuned", default=False)  # how the model was made; the maths is the same
    if factors:
        name = next(iter(factors))
        if kind != ("none" if name == FIXED_FACTORS else "longrope") and reader.has("rope.scaling.type"):
            raise reader.error("rope.scaling.type", f"is {kind!r}, and the tensor {name} is there too")
    if FIXED_FACTORS in factors:
        return {"rope_pair_factors": factors[FIXED_FACTORS]}
    if factors or kind == "longrope":
        return {"rope_scaling": _longrope(reader, factors, original)}
    if kind == "none" or factor == 1.0:
        return {}
    scaling = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = original or reader.integer("context_length")
        scaling["beta_fast"] = reader.number("rope.scaling.yarn_beta_fast", default=32.0)
        scaling["beta_slow"] = reader.number("rope.scaling.yarn_beta_slow", default=1.0)
        if reader.has("rope.scaling.yarn_attn_factor"):
            scaling["attention_factor"] = reader.number("rope.scaling.yarn_attn_factor")
    return {"rope_scaling": scaling}


def _longrope(reader: ConfigReader, factors: Mapping[str, list[float]], original: int) -> dict[str, Any]:
    missing = {SHORT_FACTORS, LONG_FACTORS} - factors.keys()
    if missing:
        raise reader.error("rope.scaling.type", f"is longrope, but there is no tensor {min(missing)}")
    scaling = {
        "rope_type": "longrope",
        "short_factor": factors[SHORT_FACTORS],
        "long_factor": factors[LONG_FACTORS],
        "original_max_position_embeddings": original or reader.integer("context_length"),
    }
    if reader.has("rope.scaling.attn_factor"):
        scaling["attention_factor"] = reader.number("rope.scaling.attn_factor")
    return scaling


def to_hugging_face(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return ``config`` (of ``from_gguf_metadata``) in keys that Hugging Face has.

    The factors of ``rope_freqs.weight`` are written as the settings of Llama 3.1 and 3.2 that give them.

    Raises:
        LoadError: no such settings do.
    """
    values = dict(config)
    factors = values.pop("rope_pair_factors", None)
    if factors is None:
        return values
    head_dim = values.get("head_dim", values["hidden_size"] // values["num_attention_heads"])
    for factor in (8.0, 32.0, 16.0, 4.0, 2.0):
        rope = Llama3Rope(values.get("rope_theta", DEFAULT_THETA), head_dim, factor, 1.0, 4.0, 8192)
        if np.allclose(rope.pair_factors(), factors, rtol=1e-4):
            values["rope_scaling"] = {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": rope.low_freq_factor,
                "high_freq_factor": rope.high_freq_factor,
                "original_max_position_embeddings": rope.original_length,
            }
            return values
    raise LoadError(path, "rope_freqs.weight has other factors than Llama 3's, for which config.json has no key")
