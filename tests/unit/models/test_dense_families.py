"""Gemma, Phi-3, OLMo, Granite, SmolLM3 and Ministral 3: published configurations, and what is special in each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.tiny_models import CASES, TinyModel, write_tensors
from windlass.errors import LoadError
from windlass.models.definition import ModelDefinition
from windlass.models.gguf_config import from_gguf_metadata
from windlass.models.registry import define_model, find_gguf_family, to_mlc_config
from windlass.models.rope import DefaultRope, LongRope, QueryScaledRope, YarnRope
from windlass.program.ops import Attention, HeadNorm, Logits, Rope, Scale
from windlass.weights.loader import check_weights
from windlass.weights.safetensors import open_safetensors

FILE = Path("config.json")

SIZES = {"hidden_act": "silu", "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5}
VISION = {"hidden_size": 1152, "intermediate_size": 4304, "model_type": "siglip_vision_model", "patch_size": 14}

PUBLISHED: dict[str, dict[str, Any]] = {
    "gemma-7b": {
        "model_type": "gemma",
        "attention_bias": False,
        "head_dim": 256,
        "hidden_act": "gelu",
        "hidden_activation": None,
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "max_position_embeddings": 8192,
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 16,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "vocab_size": 256000,
    },
    "gemma-2-27b": {
        "model_type": "gemma2",
        "attention_bias": False,
        "attn_logit_softcapping": 50.0,
        "cache_implementation": "hybrid",
        "final_logit_softcapping": 30.0,
        "head_dim": 128,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 4608,
        "intermediate_size": 36864,
        "max_position_embeddings": 8192,
        "num_attention_heads": 32,
        "num_hidden_layers": 46,
        "num_key_value_heads": 16,
        "query_pre_attn_scalar": 144,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "vocab_size": 256000,
    },
    "gemma-3-4b": {
        "model_type": "gemma3",
        "boi_token_index": 255999,
        "eoi_token_index": 256000,
        "eos_token_id": [1, 106],
        "image_token_index": 262144,
        "initializer_range": 0.02,
        "mm_tokens_per_image": 256,
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "model_type": "gemma3_text",
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        "vision_config": VISION,
    },
    "phi-4-mini": {
        "model_type": "phi3",
        **SIZES,
        "attention_bias": False,
        "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
        "embd_pdrop": 0.0,
        "full_attn_mod": 1,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "interpolate_factor": 1,
        "lm_head_bias": False,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "num_attention_heads": 24,
        "num_hidden_layers": 32,
        "original_max_position_embeddings": 4096,
        "partial_rotary_factor": 0.75,
        "resid_pdrop": 0.0,
        "rope_scaling": {"long_factor": [2.0] * 48, "short_factor": [1.0] * 48, "type": "longrope"},
        "rope_theta": 10000.0,
        "sliding_window": 262144,
        "tie_word_embeddings": True,
        "vocab_size": 200064,
    },
    "olmo-3-7b": {
        "model_type": "olmo3",
        **SIZES,
        "attention_bias": False,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 8,
        "max_position_embeddings": 65536,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "rope_scaling": {
            "attention_factor": 1.2079441541679836,
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 8.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "yarn",
        },
        "rope_theta": 500000,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "vocab_size": 100278,
    },
    "granite-3.3-2b": {
        "model_type": "granite",
        **SIZES,
        "attention_bias": False,
        "attention_multiplier": 0.015625,
        "embedding_multiplier": 12.0,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "logits_scaling": 8.0,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "num_hidden_layers": 40,
        "residual_multiplier": 0.22,
        "rope_scaling": None,
        "rope_theta": 10000000.0,
        "tie_word_embeddings": True,
        "vocab_size": 49159,
    },
    "smollm3-3b": {
        "model_type": "smollm3",
        **SIZES,
        "attention_bias": False,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "layer_types": ["full_attention"] * 36,
        "max_position_embeddings": 65536,
        "max_window_layers": 28,
        "mlp_bias": False,
        "no_rope_layer_interval": 4,
        "no_rope_layers": [1, 1, 1, 0] * 9,
        "num_attention_heads": 16,
        "num_hidden_layers": 36,
        "num_key_value_heads": 4,
        "pretraining_tp": 2,
        "rope_scaling": None,
        "rope_theta": 5000000.0,
        "sliding_window": None,
        "use_sliding_window": False,
        "vocab_size": 128256,
    },
    "ministral-3-3b": {
        "model_type": "mistral3",
        "image_token_index": 10,
        "multimodal_projector_bias": False,
        "projector_hidden_act": "gelu",
        "spatial_merge_size": 2,
        "text_config": {
            **SIZES,
            "head_dim": 128,
            "hidden_size": 3072,
            "intermediate_size": 9216,
            "max_position_embeddings": 262144,
            "model_type": "ministral3",
            "num_hidden_layers": 26,
            "rope_parameters": {
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "factor": 16.0,
                "llama_4_scaling_beta": 0.1,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 16384,
                "rope_theta": 1000000.0,
                "rope_type": "yarn",
                "type": "yarn",
            },
            "sliding_window": None,
            "tie_word_embeddings": True,
            "vocab_size": 131072,
        },
        "vision_config": VISION,
        "vision_feature_layer": -1,
    },
    "mistral-small-3.1": {
        "model_type": "mistral3",
        "image_token_index": 10,
        "multimodal_projector_bias": False,
        "projector_hidden_act": "gelu",
        "spatial_merge_size": 2,
        "text_config": {
            **SIZES,
            "head_dim": 128,
            "hidden_size": 5120,
            "intermediate_size": 32768,
            "max_position_embeddings": 131072,
            "model_type": "mistral",
            "num_hidden_layers": 40,
            "rope_theta": 1000000000.0,
            "sliding_window": None,
            "vocab_size": 131072,
        },
        "vision_config": VISION,
        "vision_feature_layer": -1,
    },
}


def define(config: Mapping[str, Any]) -> ModelDefinition:
    return define_model(config["model_type"], config, FILE, dialect="hf")


def attentions(definition: ModelDefinition) -> list[Attention]:
    return [op for op in definition.program.ops if isinstance(op, Attention)]


@pytest.mark.parametrize(
    ("name", "context", "head_dim", "tied"),
    [
        ("gemma-7b", 8192, 256, True),
        ("gemma-2-27b", 8192, 128, True),
        ("gemma-3-4b", 131072, 256, True),
        ("phi-4-mini", 131072, 128, True),
        ("olmo-3-7b", 65536, 128, False),
        ("granite-3.3-2b", 131072, 64, True),
        ("smollm3-3b", 65536, 128, True),
        ("ministral-3-3b", 262144, 128, True),
        ("mistral-small-3.1", 131072, 128, False),
    ],
)
def test_published_configurations(name: str, context: int, head_dim: int, tied: bool) -> None:
    definition = define(PUBLISHED[name])
    assert (definition.context_length, definition.program.head_dim) == (context, head_dim)
    assert definition.model_type == PUBLISHED[name]["model_type"]
    last = definition.program.ops[-1]
    assert isinstance(last, Logits)
    assert ("lm_head" not in last.weight) == tied


def test_gemma_2_scales_scores_by_its_own_number_and_caps_them() -> None:
    ops = attentions(define(PUBLISHED["gemma-2-27b"]))
    assert {op.scale for op in ops} == {1 / 12}
    assert {op.softcap for op in ops} == {50.0}
    assert [op.window for op in ops[:3]] == [4096, None, 4096]
    no_caps = {**PUBLISHED["gemma-2-27b"], "attn_logit_softcapping": None, "final_logit_softcapping": None}
    assert {op.softcap for op in attentions(define(no_caps))} == {None}


def test_gemma_3_slides_in_five_of_six_layers_with_angles_of_their_own() -> None:
    definition = define(PUBLISHED["gemma-3-4b"])
    assert [op.window for op in attentions(definition)[:7]] == [1024] * 5 + [None, 1024]
    assert definition.program.ropes == (DefaultRope(1e6, 256, 8.0), DefaultRope(1e4, 256))
    tables = [op.table for op in definition.program.ops if isinstance(op, Rope)]
    assert tables[:14] == [1] * 10 + [0] * 2 + [1] * 2
    assert len([op for op in definition.program.ops if isinstance(op, HeadNorm)]) == 2 * 34


def test_transformers_5_writes_the_angles_of_gemma_3_by_kind_of_layer() -> None:
    old = CASES["gemma3_text"].config
    new = {key: value for key, value in old.items() if key not in ("rope_theta", "rope_local_base_freq")}
    new["rope_parameters"] = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
    del new["rope_scaling"]
    assert define(new).program == define(old).program
    del new["rope_parameters"]["sliding_attention"]
    assert define(new).program == define(old).program
    new["rope_parameters"]["chunked_attention"] = {"rope_type": "default"}
    with pytest.raises(LoadError, match=r"unknown keys: rope_parameters\.chunked_attention"):
        define(new)


def test_olmo_3_scales_only_the_angles_of_layers_that_see_all() -> None:
    definition = define(PUBLISHED["olmo-3-7b"])
    full, sliding = definition.program.ropes
    assert isinstance(full, YarnRope)
    assert sliding == DefaultRope(500000.0, 128)
    tables = [op.table for op in definition.program.ops if isinstance(op, Rope)]
    assert tables[:8] == [1] * 6 + [0] * 2


def test_granite_multiplies() -> None:
    definition = define(PUBLISHED["granite-3.3-2b"])
    factors = [op.factor for op in definition.program.ops if isinstance(op, Scale)]
    assert factors == [12.0, *[0.22] * 80, 0.125]
    assert {op.scale for op in attentions(definition)} == {0.015625}


def test_smollm3_rotates_three_of_four_layers() -> None:
    definition = define(PUBLISHED["smollm3-3b"])
    assert len([op for op in definition.program.ops if isinstance(op, Rope)]) == 2 * 27


def test_phi_4_mini_rotates_three_quarters_of_a_head() -> None:
    definition = define(PUBLISHED["phi-4-mini"])
    assert {op.rotary_dim for op in definition.program.ops if isinstance(op, Rope)} == {96}
    (rope,) = definition.program.ropes
    assert isinstance(rope, LongRope)
    assert rope.attention_factor == pytest.approx(np.sqrt(1 + np.log(32) / np.log(4096)))


def test_long_factors_are_for_contexts_beyond_the_original_length() -> None:
    rope = LongRope(1e4, 8, (1.0, 1.1, 1.2, 1.3), (1.0, 2.0, 4.0, 8.0), original_length=32, attention_factor=1.25)
    short, long = rope.cos_sin(32)[1], rope.cos_sin(33)[1]
    frequencies = 1e4 ** -(np.arange(4) / 4)
    np.testing.assert_allclose(short[5], 1.25 * np.sin(5 * frequencies / [1.0, 1.1, 1.2, 1.3]), rtol=1e-5)
    np.testing.assert_allclose(long[5], 1.25 * np.sin(5 * frequencies / [1.0, 2.0, 4.0, 8.0]), rtol=1e-5)
    np.testing.assert_array_equal(rope.cos_sin(100)[1][:33], long)


def test_queries_grow_with_the_position() -> None:
    rope = QueryScaledRope(DefaultRope(1e4, 8), beta=0.5, length=10)
    cos, sin = rope.cos_sin(35)
    plain = DefaultRope(1e4, 8).cos_sin(35)
    growth = np.repeat(1 + 0.5 * np.log([1.0, 2.0, 3.0, 4.0]), 10)[:35, None]
    np.testing.assert_allclose(cos, plain[0] * growth, rtol=1e-6)
    np.testing.assert_allclose(sin, plain[1] * growth, rtol=1e-6)


SEEING = {
    "gemma3": {"text_config": CASES["gemma3_text"].config, "vision_config": VISION},
    "mistral3": {"text_config": CASES["ministral3"].config, "vision_config": VISION},
}


@pytest.mark.parametrize(("model_type", "text"), [("gemma3", "gemma3_text"), ("mistral3", "ministral3")])
def test_a_model_that_sees_is_its_text_model_and_its_other_tensors_are_ignored(
    tmp_path: Path, model_type: str, text: str
) -> None:
    seeing = define({"model_type": model_type, **SEEING[model_type]})
    alone = define(CASES[text].config)
    assert seeing.program.ops == alone.program.ops
    tensors = {f"language_model.{name}": data for name, data in CASES[text].weights().items()}
    for name in ("vision_tower.encoder.layers.0.mlp.fc1.bias", "multi_modal_projector.norm.weight"):
        tensors[name] = np.zeros(3, dtype=np.float32)
    write_tensors(tmp_path, tensors)
    with open_safetensors(tmp_path) as source:
        check_weights(seeing.program.weights, source, ignored=seeing.ignored_tensors)
    write_tensors(tmp_path, {**tensors, "audio_tower.norm.weight": tensors["multi_modal_projector.norm.weight"]})
    with (
        open_safetensors(tmp_path) as source,
        pytest.raises(LoadError, match=r"left over, unknown to this architecture: audio_tower\.norm\.weight"),
    ):
        check_weights(seeing.program.weights, source, ignored=seeing.ignored_tensors)


def test_a_tied_head_is_said_of_the_whole_model_or_of_its_text() -> None:
    text = {key: value for key, value in CASES["ministral3"].config.items() if key != "tie_word_embeddings"}
    for config in (
        {"text_config": text, "tie_word_embeddings": True},
        {"text_config": {**text, "tie_word_embeddings": True}},
    ):
        last = define({"model_type": "mistral3", "vision_config": VISION, **config}).program.ops[-1]
        assert isinstance(last, Logits)
        assert last.weight == "model.embed_tokens.weight"


LONG = CASES["phi3-long"].config["rope_scaling"]
ROPE = CASES["ministral3"].config["rope_parameters"]


@pytest.mark.parametrize(
    ("name", "message", "changes"),
    [
        ("gemma", "hidden_act is 'silu'; supported: gelu_pytorch_tanh", {"hidden_act": "silu"}),
        ("gemma", "attention_bias is True: no Gemma has biases", {"attention_bias": True}),
        ("gemma2", "use_bidirectional_attention is True: ", {"use_bidirectional_attention": True}),
        ("gemma2", "query_pre_attn_scalar is 0, which must be greater than 0", {"query_pre_attn_scalar": 0}),
        ("gemma2", "final_logit_softcapping is -1, which must be greater than 0", {"final_logit_softcapping": -1}),
        ("gemma2", "layer_types has 1 entries for 3 layers", {"layer_types": ["full_attention"]}),
        ("gemma3_text", "sliding_window_pattern is 0, which", {"sliding_window_pattern": 0}),
        ("gemma3_text", "rope_local_base_freq is 1.0, which", {"rope_local_base_freq": 1.0}),
        ("phi3", "attention_bias is True: biases are not supported here", {"attention_bias": True}),
        ("phi3", "full_attn_mod is 2: ", {"full_attn_mod": 2}),
        ("phi3", "partial_rotary_factor is 0.1: 1 of 16 columns", {"partial_rotary_factor": 0.1}),
        ("phi3-long", "rope_scaling.long_factor is missing", {"rope_scaling": {**LONG, "long_factor": None}}),
        (
            "phi3-long",
            "rope_scaling.short_factor is [1.0], which must be a list of 6",
            {"rope_scaling": {**LONG, "short_factor": [1.0]}},
        ),
        (
            "phi3-long",
            "rope_scaling.original_max_position_embeddings is missing",
            {"original_max_position_embeddings": None},
        ),
        ("olmo2", "unknown keys: clip_qkv", {"clip_qkv": 8.0}),
        ("olmo3", "layer_types has chunked_attention; supported: ", {"layer_types": ["chunked_attention"] * 4}),
        ("granite", "logits_scaling is 0, which must be greater than 0", {"logits_scaling": 0}),
        ("smollm3", "no_rope_layers must have a 0 or a 1 for each of 3 layers", {"no_rope_layers": [1, 1]}),
        ("smollm3", "no_rope_layers must have a 0 or a 1 for each of 3 layers", {"no_rope_layers": [1, 2, 1]}),
        ("smollm3", "no_rope_layers is 'all', which must be a list of integers", {"no_rope_layers": "all"}),
        ("ministral3", "llama_4_scaling_beta is -1, which", {"rope_parameters": {**ROPE, "llama_4_scaling_beta": -1}}),
        ("ministral3", "unknown keys: rope_parameters.beta", {"rope_parameters": {**ROPE, "beta": 1}}),
    ],
)
def test_what_is_refused(name: str, message: str, changes: dict[str, Any]) -> None:
    with pytest.raises(LoadError) as caught:
        define({**CASES[name].config, **changes})
    assert message in caught.value.reason


def test_what_is_refused_of_models_that_see() -> None:
    with pytest.raises(LoadError, match=r"text_config\.hidden_size is missing"):
        define({"model_type": "gemma3", "text_config": {"vocab_size": 3}})
    with pytest.raises(LoadError, match=r"text_config\.model_type is 'llama'; supported: mistral, ministral3"):
        define({"model_type": "mistral3", "text_config": {"model_type": "llama"}})
    with pytest.raises(LoadError, match="text_config is missing"):
        define({"model_type": "mistral3"})
    with pytest.raises(LoadError, match="unknown keys: audio_config"):
        define({"model_type": "gemma3", **SEEING["gemma3"], "audio_config": {"a": 1}})


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
    model: TinyModel = CASES["gemma"]
    plus = {part.plus for spec in define(model.config).program.weights for part in spec.parts}
    assert plus == {0.0, 1.0}
    baked = define({**model.config, "norm_weight_offset": 0.0})
    assert {part.plus for spec in baked.program.weights for part in spec.parts} == {0.0}
