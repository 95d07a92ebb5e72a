"""Configurations become programs, or a ``LoadError`` that names the file and the key."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.tiny_models import CASES, program_weights
from windlass.errors import LoadError
from windlass.models.definition import ModelDefinition
from windlass.models.registry import FAMILIES, define_model
from windlass.program.ops import Attention, HeadNorm, Linear, Logits

FILE = Path("some/config.json")


def define(config: Mapping[str, Any]) -> ModelDefinition:
    return define_model(config["model_type"], config, FILE, dialect="hf")


def changed(name: str, **changes: Any) -> dict[str, Any]:
    """A tiny configuration with keys changed, or removed where the value is ``...``."""
    return {key: value for key, value in {**CASES[name].config, **changes}.items() if value is not ...}


def windows(definition: ModelDefinition) -> list[int | None]:
    return [op.window for op in definition.program.ops if isinstance(op, Attention)]


def test_supported_types() -> None:
    assert {family.model_type for family in FAMILIES.values()} == FAMILIES.keys()
    with pytest.raises(LoadError, match=r"'gpt1' is not supported; supported: .*llama, .*qwen3"):
        define_model("gpt1", {}, FILE, dialect="hf")


@pytest.mark.parametrize("name", CASES)
def test_every_number_of_the_checkpoint_is_used_once_and_fits(name: str) -> None:
    program = define(CASES[name].config).program
    tensors = CASES[name].weights()
    assert {part.name for spec in program.weights for part in spec.parts} == tensors.keys()
    used = program_weights(program, {name: np.ones_like(array) for name, array in tensors.items()})
    assert sum(tensor.data.size for tensor in used.values()) == sum(array.size for array in tensors.values())


def test_what_a_definition_tells() -> None:
    definition = define(CASES["mistral"].config)
    assert definition.model_type == "mistral"
    assert (definition.context_length, definition.vocab_size, definition.hidden_size) == (256, 307, 64)
    assert (definition.intermediate_size, definition.num_layers, definition.num_heads) == (100, 2, 4)
    assert (definition.program.num_kv_heads, definition.program.head_dim) == (2, 32)


def test_names_are_those_of_mlc() -> None:
    names = {spec.name for spec in define(CASES["llama-biases"].config).program.weights}
    layer = "model.layers.1"
    assert names >= {
        "model.embed_tokens.weight",
        f"{layer}.input_layernorm.weight",
        f"{layer}.self_attn.qkv_proj.weight",
        f"{layer}.self_attn.qkv_proj.bias",
        f"{layer}.self_attn.o_proj.weight",
        f"{layer}.post_attention_layernorm.weight",
        f"{layer}.mlp.gate_up_proj.weight",
        f"{layer}.mlp.down_proj.weight",
        "model.norm.weight",
        "lm_head.weight",
    }
    for name in ("qwen2", "qwen3"):
        names = {spec.name for spec in define(CASES[name].config).program.weights}
        assert f"{layer}.self_attn.c_attn.weight" in names
    assert f"{layer}.self_attn.q_norm.weight" in names


def test_tied_heads() -> None:
    tied, separate = define(changed("llama2", tie_word_embeddings=True)), define(changed("llama2"))
    assert tied.program.ops[-1] == Logits(tied.program.ops[-1].x, "model.embed_tokens.weight")  # type: ignore[union-attr]
    assert separate.program.ops[-1].weight == "lm_head.weight"  # type: ignore[union-attr]
    assert define(changed("llama2", tie_word_embeddings=...)).program.ops[-1].weight == "lm_head.weight"  # type: ignore[union-attr]


def test_tensors_that_old_checkpoints_hold_for_nothing() -> None:
    def ignored(definition: ModelDefinition, name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in definition.ignored_tensors)

    tied, separate = define(changed("llama2", tie_word_embeddings=True)), define(changed("llama2"))
    assert ignored(separate, "model.layers.11.self_attn.rotary_emb.inv_freq")
    assert ignored(tied, "lm_head.weight")
    assert not ignored(separate, "lm_head.weight")
    assert not ignored(tied, "model.layers.0.self_attn.q_proj.weight")


def test_head_dim_is_given_derived_or_the_architectures() -> None:
    assert define(changed("llama2", head_dim=None)).program.head_dim == 16
    assert define(changed("llama2", head_dim=20)).program.head_dim == 20
    assert define(changed("qwen3", head_dim=...)).program.head_dim == 128


def test_windows() -> None:
    assert windows(define(changed("mistral"))) == [24, 24]
    assert windows(define(changed("mistral", sliding_window=None))) == [None, None]
    assert windows(define(changed("mistral", sliding_window=...))) == [4096, 4096]
    assert windows(define(changed("qwen2-window"))) == [None, 20, 20]
    assert windows(define(changed("qwen2-window", use_sliding_window=False))) == [None] * 3
    assert windows(define(changed("qwen2-window", sliding_window=None))) == [None] * 3
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    assert windows(define(changed("qwen2-window", layer_types=types))) == [20, None, 20]


def test_biases_and_norms() -> None:
    def biased(name: str, **changes: Any) -> set[str]:
        ops = define(changed(name, **changes)).program.ops
        return {op.weight.split(".")[-2] for op in ops if isinstance(op, Linear) and op.bias}

    assert biased("llama2") == set()
    assert biased("llama2", attention_bias=True) == {"qkv_proj", "o_proj"}
    assert biased("llama2", mlp_bias=True) == {"gate_up_proj", "down_proj"}
    assert biased("qwen2") == {"c_attn"}
    assert biased("qwen3") == set()
    assert biased("qwen3", attention_bias=True) == {"c_attn", "o_proj"}
    assert sum(isinstance(op, HeadNorm) for op in define(changed("qwen3")).program.ops) == 4


def test_harmless_keys_and_empty_ones_are_ignored() -> None:
    extra = {
        "_name_or_path": "x",
        "initializer_range": 0.02,
        "transformers_version": "4.0",
        "use_cache": True,
        "pretraining_tp": 1,
        "torch_dtype": "float16",
        "quantization_config": None,
        "per_layer_config": {},
        "attention_dropout": 0.1,
    }
    assert define(changed("llama2", **extra)) == define(changed("llama2"))


REFUSED: list[tuple[str, str, dict[str, Any]]] = [
    ("llama2", "hidden_size is missing", {"hidden_size": ...}),
    ("llama2", "hidden_size is missing", {"hidden_size": None}),
    ("llama2", "intermediate_size is missing", {"intermediate_size": ...}),
    ("llama2", "num_hidden_layers is missing", {"num_hidden_layers": ...}),
    ("llama2", "num_attention_heads is missing", {"num_attention_heads": ...}),
    ("llama2", "vocab_size is missing", {"vocab_size": ...}),
    ("llama2", "rms_norm_eps is missing", {"rms_norm_eps": ...}),
    ("llama2", "max_position_embeddings is missing", {"max_position_embeddings": ...}),
    ("llama2", "hidden_size is '64', which must be an integer", {"hidden_size": "64"}),
    ("llama2", "hidden_size is 64.0, which must be an integer", {"hidden_size": 64.0}),
    ("llama2", "num_hidden_layers is True, which must be an integer", {"num_hidden_layers": True}),
    ("llama2", "vocab_size is [307], which must be an integer", {"vocab_size": [307]}),
    ("llama2", "vocab_size is -307, which must lie in 1 .. ", {"vocab_size": -307}),
    ("llama2", "num_hidden_layers is 0, which", {"num_hidden_layers": 0}),
    ("llama2", "num_hidden_layers is 1000000000, which must lie in 1 .. 10000", {"num_hidden_layers": 10**9}),
    ("llama2", "vocab_size is 2147483648, which", {"vocab_size": 2**31}),
    ("llama2", "max_position_embeddings is 0, which", {"max_position_embeddings": 0}),
    ("llama2", "rms_norm_eps is -1e-05, which must be greater than 0", {"rms_norm_eps": -1e-5}),
    ("llama2", "rms_norm_eps is nan, which must be a finite number", {"rms_norm_eps": float("nan")}),
    ("llama2", "rms_norm_eps is '1e-5', which must be a finite number", {"rms_norm_eps": "1e-5"}),
    ("llama2", "num_key_value_heads is 3, which must divide num_attention_heads, 4", {"num_key_value_heads": 3}),
    ("llama2", "hidden_size is 65, not a multiple of num_attention_heads, 4", {"hidden_size": 65}),
    ("llama2", "head_dim is 15, which rotary", {"head_dim": 15}),
    ("llama2", "hidden_act is 'gelu'; supported: silu", {"hidden_act": "gelu"}),
    ("llama2", "hidden_act is ['silu']; supported: silu", {"hidden_act": ["silu"]}),
    ("llama2", "tie_word_embeddings is 'yes', which must be true or false", {"tie_word_embeddings": "yes"}),
    ("llama2", "attention_bias is 1, which must be true or false", {"attention_bias": 1}),
    ("llama2", "unknown keys: num_experts; ", {"num_experts": 8}),
    ("llama2", "unknown keys: logit_scale, residual_multiplier; ", {"residual_multiplier": 0.2, "logit_scale": 2}),
    ("llama2", "unknown keys: auto_map; ", {"auto_map": {"AutoModelForCausalLM": "modeling.Own"}}),
    ("llama2", "unknown keys: sliding_window; ", {"sliding_window": 128}),
    ("llama2", "is_encoder_decoder is True: only decoders", {"is_encoder_decoder": True}),
    ("mistral", "unknown keys: attention_bias; ", {"attention_bias": True}),
    ("mistral", "sliding_window is 0, which", {"sliding_window": 0}),
    ("mistral", "sliding_window is 'none', which", {"sliding_window": "none"}),
    ("mistral", "unknown keys: layer_types; ", {"layer_types": ["full_attention"]}),
    ("qwen2", "unknown keys: mlp_bias; ", {"mlp_bias": True}),
    ("qwen2", "max_window_layers is -1, which", {"max_window_layers": -1}),
    ("qwen2", "layer_types has 1 entries for 2 layers", {"layer_types": ["full_attention"]}),
    ("qwen2", "layer_types has linear_attention; supported: ", {"layer_types": ["linear_attention"] * 2}),
    ("qwen2", "layer_types has sliding_attention, but use_sliding", {"layer_types": ["sliding_attention"] * 2}),
    ("qwen2", "layer_types is 'full_attention', which must be a list", {"layer_types": "full_attention"}),
    ("qwen3", "rope_parameters.rope_type is 'mrope'; supp", {"rope_parameters": {"rope_type": "mrope"}}),
    ("qwen3", "unknown keys: num_experts; ", {"num_experts": 128}),
]


@pytest.mark.parametrize(("name", "message", "changes"), REFUSED)
def test_what_is_refused(name: str, message: str, changes: dict[str, Any]) -> None:
    with pytest.raises(LoadError) as caught:
        define(changed(name, **changes))
    assert caught.value.path == "some/config.json"
    assert message in caught.value.reason


def test_unknown_keys_come_with_those_that_are_known() -> None:
    with pytest.raises(LoadError, match=r"they may change the model; supported: .*hidden_size.*rope_scaling"):
        define(changed("llama2", alibi=True))


@pytest.mark.parametrize("name", CASES)
def test_any_single_damaged_value_is_a_load_error_or_harmless(name: str) -> None:
    for key in CASES[name].config:
        for bad in ({"a": 1}, [[]], "\x00", -1, 0.5, float("inf")):
            with contextlib.suppress(LoadError):
                define(changed(name, **{key: bad}))
