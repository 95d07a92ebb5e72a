"""How MLC directories and GGUF files describe the families of ``test_dense_families``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from support.published_configs import VISION
from support.tiny_models import CASES
from windlass.errors import LoadError
from windlass.models.definition import ModelDefinition
from windlass.models.gguf_config import from_gguf_metadata
from windlass.models.registry import define_model, find_gguf_family, to_mlc_config

FILE = Path("config.json")


def define(config: Mapping[str, Any]) -> ModelDefinition:
    return define_model(config["model_type"], config, FILE, dialect="hf")


def test_a_family_that_mlc_does_not_have_is_not_converted() -> None:
    for name in ("granite", "smollm3", "olmo3"):
        with pytest.raises(LoadError, match="is not supported in MLC directories"):
            to_mlc_config(name, CASES[name].config, FILE)


GEMMA3_MLC = {
    "text_config": {
        "hidden_size": 64,
        "intermediate_size": 100,
        "num_hidden_layers": 4,
        "attention_bias": False,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "rms_norm_eps": 1e-05,
        "hidden_activation": "gelu_pytorch_tanh",
        "position_embedding_base": 1000000.0,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "context_window_size": 256,
        "prefill_chunk_size": 256,
        "query_pre_attn_scalar": 40,
        "sliding_window_size": 14,
        "kwargs": {
            "rope_local_base_freq": 10000.0,
            "sliding_window": 14,
            "sliding_window_pattern": 3,
            "use_cache": True,
        },
    },
    "vocab_size": 307,
    "tensor_parallel_shards": 1,
    "max_batch_size": 128,
    "context_window_size": 256,
    "sliding_window_size": 14,
    "prefill_chunk_size": 256,
    "is_text_model": True,
    "kwargs": {"torch_dtype": "float32", "tie_word_embeddings": True},
}
"""As MLC writes it: dataclasses in a dictionary, with what they have no fields for in ``kwargs``."""


@pytest.mark.parametrize("model_type", ["gemma3_text", "gemma3"])
def test_gemma_3_as_mlc_writes_it(model_type: str) -> None:
    seeing = {"vision_config": VISION, "image_token_index": 262144} if model_type == "gemma3" else {}
    mlc = {**GEMMA3_MLC, "kwargs": {**GEMMA3_MLC["kwargs"], **seeing}}  # type: ignore[dict-item]
    definition = define_model(model_type, mlc, Path("mlc-chat-config.json"), dialect="mlc")
    assert definition.program.ops == define(CASES["gemma3_text"].config).program.ops
    assert all(spec.name.startswith("language_model.model.") for spec in definition.program.weights)
    config = CASES["gemma3_text"].config
    hf = config if model_type == "gemma3_text" else {"model_type": "gemma3", "text_config": config, **seeing}
    written = to_mlc_config(model_type, hf, FILE)
    assert set(written) == set(GEMMA3_MLC) - {"kwargs"}
    assert set(written["text_config"]) == set(GEMMA3_MLC["text_config"])  # type: ignore[arg-type]
    assert define_model(model_type, written, FILE, dialect="mlc").program.ops == definition.program.ops


def test_phi_3_as_mlc_writes_it() -> None:
    config = CASES["phi3-long"].config
    mlc = to_mlc_config("phi3", config, FILE)
    assert mlc["rope_scaling"].keys() >= {"type", "rope_type", "long_factor", "short_factor"}
    assert mlc["rope_scaling"]["max_position_embeddings"] == mlc["max_position_embeddings"] == 256
    assert (mlc["partial_rotary_factor"], mlc["model_type"]) == (0.75, "phi3")
    shorter = define_model("phi3", {**mlc, "context_window_size": 64}, FILE, dialect="mlc")
    assert shorter.context_length == 64
    assert shorter.program == define(config).program, "how much is used does not change the scaling"
    names = {spec.name for spec in shorter.program.weights}
    assert names >= {
        "transformer.embd.weight",
        "transformer.h.1.ln.weight",
        "transformer.h.1.mixer.qkv_proj.weight",
        "transformer.h.1.mixer.out_proj.weight",
        "transformer.h.1.post_attention_layernorm.weight",
        "transformer.h.1.mlp.gate_up_proj.weight",
        "transformer.norm.weight",
    }


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("gemma", {"attention_bias", "hidden_activation", "position_embedding_base"}),
        (
            "gemma2",
            {"attention_bias", "hidden_activation", "position_embedding_base", "attn_logit_softcapping"}
            | {"final_logit_softcapping", "query_pre_attn_scalar", "sliding_window"},
        ),
        (
            "olmo2",
            {
                "position_embedding_base",
                "rope_scaling",
                "tie_word_embeddings",
                "hidden_act",
                "pipeline_parallel_stages",
            },
        ),
        (
            "ministral3",
            {"attention_sink_size", "dtype", "hidden_act", "position_embedding_base", "rope_parameters"}
            | {"sliding_window_size", "tie_word_embeddings", "modules_to_not_convert"},
        ),
    ],
)
def test_mlc_fields_and_no_others(name: str, fields: set[str]) -> None:
    common = {"hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"}
    common |= {"num_hidden_layers", "rms_norm_eps", "vocab_size", "context_window_size", "prefill_chunk_size"}
    common |= {"tensor_parallel_shards", "max_batch_size"}
    mlc = to_mlc_config(name, CASES[name].config, FILE)
    assert set(mlc) == common | fields


def test_ministral_in_mlc_may_come_from_a_model_that_sees() -> None:
    mlc = to_mlc_config("ministral3", CASES["ministral3"].config, FILE)
    kwargs = {"vision_config": VISION, "spatial_merge_size": 2, "max_position_embeddings": 256}
    definition = define_model("ministral3", {**mlc, "kwargs": kwargs, "weight_block_size": None}, FILE, dialect="mlc")
    assert definition.program == define(CASES["ministral3"].config).program


SHAPES = {"model.embed_tokens.weight": (307, 64), "lm_head.weight": (307, 64)}
METADATA = {
    "context_length": 256,
    "embedding_length": 64,
    "feed_forward_length": 100,
    "block_count": 2,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 10000.0,
}


def from_gguf(
    architecture: str, factors: Mapping[str, list[float]] | None = None, **more: Any
) -> tuple[str, dict[str, Any]]:
    """The model_type and the config.json of METADATA and ``more``, whose keys have ``__`` for a dot."""
    values = {**METADATA, **{key.replace("__", "."): value for key, value in more.items()}}
    metadata = {"general.architecture": architecture, **{f"{architecture}.{key}": values[key] for key in values}}
    model_type, dialect = find_gguf_family(metadata, FILE)
    config = from_gguf_metadata(dialect, metadata, SHAPES, factors or {}, FILE)
    define_model(model_type, config, FILE, dialect="hf")
    return model_type, config


def test_gguf_files_of_one_architecture_are_told_apart() -> None:
    assert from_gguf("olmo2")[0] == "olmo2"
    model_type, config = from_gguf(
        "olmo2", attention__sliding_window=8, attention__sliding_window_pattern=[False, True]
    )
    assert (model_type, config["layer_types"]) == ("olmo3", ["full_attention", "sliding_attention"])
    assert (
        from_gguf("gemma3", attention__sliding_window_pattern=[True, True])[1]["layer_types"]
        == ["sliding_attention"] * 2
    )
    model_type, config = from_gguf("mistral3")
    assert (model_type, "rope_scaling" in config) == ("ministral3", False)


def test_gguf_gemma_scales_scores_by_the_size_of_a_head_but_in_the_largest() -> None:
    assert from_gguf("gemma2", attention__key_length=24)[1]["query_pre_attn_scalar"] == 24
    assert from_gguf("gemma2", attention__key_length=24, block_count=46)[1]["query_pre_attn_scalar"] == 16
    assert from_gguf("gemma3", attention__key_length=24, block_count=62)[1]["query_pre_attn_scalar"] == 16


FACTORS = {f"rope_factors_{kind}.weight": [1.0] * 8 for kind in ("short", "long")}


@pytest.mark.parametrize(
    ("message", "architecture", "factors", "more"),
    [
        (
            "is longrope, but there is no tensor rope_factors_long.weight",
            "phi3",
            {},
            {"rope__scaling__type": "longrope"},
        ),
        (
            "is longrope, but there is no tensor rope_factors_short.weight",
            "phi3",
            {"rope_factors_long.weight": [1.0] * 8},
            {"rope__scaling__type": "longrope"},
        ),
        ("is 'yarn', and the tensor rope_factors_short.weight is", "phi3", FACTORS, {"rope__scaling__type": "yarn"}),
        (
            "is 'linear', and the tensor rope_freqs.weight is",
            "granite",
            {"rope_freqs.weight": [1.0] * 8},
            {"rope__scaling__type": "linear"},
        ),
        ("short_factor is [1.0, 1.0, ", "phi3", FACTORS, {"rope__dimension_count": 8}),
        (
            "rope.freq_base_swa is not rope.freq_base",
            "olmo2",
            {},
            {"attention__sliding_window": 8, "rope__freq_base_swa": 5.0},
        ),
        (
            "sliding_window_pattern is [1, 0], which must be a list of true",
            "olmo2",
            {},
            {"attention__sliding_window": 8, "attention__sliding_window_pattern": [1, 0]},
        ),
        ("unknown keys: attention.scale", "gemma", {}, {"attention__scale": 2.0}),
        ("attention.scale is 'big'", "granite", {}, {"attention__scale": "big"}),
    ],
)
def test_gguf_metadata_that_are_refused(
    message: str, architecture: str, factors: Mapping[str, list[float]], more: dict[str, Any]
) -> None:
    with pytest.raises(LoadError) as caught:
        from_gguf(architecture, factors, **more)
    assert message in caught.value.reason


def test_gguf_gemma_norms_have_their_one_added() -> None:
    model = CASES["gemma"]
    plus = {part.plus for spec in define(model.config).program.weights for part in spec.parts}
    assert plus == {0.0, 1.0}
    baked = define({**model.config, "norm_weight_offset": 0.0})
    assert {part.plus for spec in baked.program.weights for part in spec.parts} == {0.0}
