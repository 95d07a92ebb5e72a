"""StarCoder's published configuration, in Hugging Face's words and in MLC's, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from windlass.errors import LoadError
from windlass.models.definition import ModelDefinition
from windlass.models.registry import define_model, to_mlc_config

FILE = Path("config.json")
STARCODER: dict[str, Any] = {
    "activation_function": "gelu",
    "attention_softmax_in_fp32": True,
    "inference_runner": 0,
    "layer_norm_epsilon": 1e-05,
    "max_batch_size": None,
    "multi_query": True,
    "n_embd": 6144,
    "n_head": 48,
    "n_inner": 24576,
    "n_layer": 40,
    "n_positions": 8192,
    "pad_key_length": True,
    "pre_allocate_kv_cache": False,
    "scale_attention_softmax_in_fp32": True,
    "scale_attn_weights": True,
    "summary_type": "cls_index",
    "validate_runner_input": True,
    "vocab_size": 49152,
}


def define(**changes: Any) -> ModelDefinition:
    return define_model("gpt_bigcode", {**STARCODER, **changes}, FILE, dialect="hf")


def test_all_heads_share_one_of_keys_and_values() -> None:
    definition = define()
    assert (definition.model_type, definition.context_length) == ("gpt_bigcode", 8192)
    assert (definition.program.num_kv_heads, definition.program.head_dim, definition.num_heads) == (1, 128, 48)
    shapes = {spec.name: spec.shape for spec in definition.program.weights}
    assert shapes["transformer.h.0.attn.c_attn.weight"] == (6144 + 2 * 128, 6144)
    assert not any(part.transposed for spec in definition.program.weights for part in spec.parts)


def test_an_mlc_directory_says_the_same() -> None:
    mlc = to_mlc_config("gpt_bigcode", STARCODER, FILE)
    same = ("n_embd", "n_head", "n_inner", "n_layer", "n_positions", "layer_norm_epsilon", "vocab_size")
    assert {key: mlc[key] for key in same} == {key: STARCODER[key] for key in same}
    assert define_model("gpt_bigcode", mlc, FILE, dialect="mlc").program == define().program
    assert to_mlc_config("gpt_bigcode", {**STARCODER, "n_inner": None}, FILE)["n_inner"] == 4 * 6144


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"multi_query": False}, "multi_query is False: keys and values of each head are not supported"),
        ({"add_cross_attention": True}, "add_cross_attention is True: only decoders are supported"),
        ({"n_embd": None}, "n_embd is missing"),
        ({"rotary": True}, "unknown keys: rotary"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LoadError, match=message):
        define(**changes)
