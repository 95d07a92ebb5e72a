"""Gemma, Phi-3, OLMo, Granite, SmolLM3, EXAONE and Ministral 3: published configurations; what is special in each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.published_configs import PUBLISHED, VISION
from support.tiny_models import CASES, write_tensors
from windlass.errors import LoadError
from windlass.models.definition import ModelDefinition
from windlass.models.registry import define_model, to_mlc_config
from windlass.models.rope import DefaultRope, LongRope, QueryScaledRope, YarnRope
from windlass.program.ops import Attention, HeadNorm, Logits, Rope, Scale
from windlass.weights.loader import check_weights
from windlass.weights.safetensors import open_safetensors

FILE = Path("config.json")


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
        ("exaone-4.0-32b", 131072, 128, False),
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


def test_exaone_4_rotates_where_it_slides_or_everywhere() -> None:
    published = PUBLISHED["exaone-4.0-32b"]
    definition = define(published)
    assert [op.window for op in attentions(definition)[:5]] == [4096, 4096, 4096, None, 4096]
    assert len([op for op in definition.program.ops if isinstance(op, Rope)]) == 2 * 48
    by_number = {key: value for key, value in published.items() if key != "layer_types"} | {"sliding_window_pattern": 4}
    assert define(by_number).program == definition.program
    del by_number["sliding_window_pattern"]
    assert define(by_number).program == definition.program
    smaller = define({**by_number, "sliding_window": None})
    assert {op.window for op in attentions(smaller)} == {None}
    assert len([op for op in smaller.program.ops if isinstance(op, Rope)]) == 2 * 64


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


def test_transformers_5_writes_all_of_a_rotation_in_one_place() -> None:
    old = CASES["phi3-long"].config
    new = {key: value for key, value in old.items() if key not in ("rope_theta", "rope_scaling")}
    new["rope_parameters"] = {
        **old["rope_scaling"],
        "rope_type": "longrope",
        "rope_theta": new.pop("rope_theta", 10000.0),
        "partial_rotary_factor": new.pop("partial_rotary_factor"),
        "original_max_position_embeddings": new.pop("original_max_position_embeddings"),
    }
    assert define(new).program == define(old).program
    mlc = to_mlc_config("phi3", new, FILE)
    assert define_model("phi3", mlc, FILE, dialect="mlc").program == define(old).program


LONG = CASES["phi3-long"].config["rope_scaling"]
ROPE = CASES["ministral3"].config["rope_parameters"]


@pytest.mark.parametrize(
    ("name", "message", "changes"),
    [
        ("gemma", "hidden_act is 'silu'; supported: gelu_pytorch_tanh", {"hidden_act": "silu"}),
        ("gemma", "attention_bias is True: no Gemma has biases", {"attention_bias": True}),
        ("exaone4", "layer_types has sliding_attention, but there is no sliding_window", {"sliding_window": None}),
        ("exaone4", "sliding_window_pattern is 'LLG', which must be an integer", {"layer_types": None}),
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
        ("ministral3", "rope_parameters is missing", {"rope_parameters": None}),
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
