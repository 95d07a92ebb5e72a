"""Ministral 3 (Mistral AI, 2025), and what writes the text of Mistral 3 models that see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from windlass.models import mistral
from windlass.models.config import HARMLESS_KEYS, ConfigReader
from windlass.models.decoder import define_decoder, read_shape, stored_as
from windlass.models.definition import ModelDefinition
from windlass.models.family import Family, GgufDialect, MlcDialect, Shapes
from windlass.models.llama import GGUF_PAIRED
from windlass.models.rope import QueryScaledRope, read_rope, rope_section

_VISION_KEYS = {
    "vision_config",
    "image_token_index",
    "image_token_id",
    "projector_hidden_act",
    "vision_feature_layer",
    "multimodal_projector_bias",
    "spatial_merge_size",
}


def define(config: ConfigReader) -> ModelDefinition:
    """Llama, whose queries grow with the position."""
    shape = read_shape(config, head_dim=128)
    window = config.optional_integer("sliding_window")
    rope = read_rope(
        config,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.max_position_embeddings,
        own_keys=("llama_4_scaling_beta", "max_position_embeddings"),
    )
    query_rope = None
    section = rope_section(config)
    if section is None and not config.has("rope_theta"):
        raise config.error("rope_parameters", "is missing")
    if section is not None and section.has("llama_4_scaling_beta"):
        length = section.integer("original_max_position_embeddings", default=shape.max_position_embeddings)
        query_rope = QueryScaledRope(rope.table, section.number("llama_4_scaling_beta"), length)
    windows = [window] * shape.num_layers
    return define_decoder("ministral3", config, shape, windows=windows, rope=rope, query_rope=query_rope)


def define_seeing(config: ConfigReader) -> ModelDefinition:
    """The text model of a Mistral 3 that also sees; pictures are not supported, and their tensors ignored."""
    text = config.section("text_config")
    if text is None:
        raise config.error("text_config", "is missing")
    kind = text.choice("model_type", ("mistral", "ministral3"), default="mistral")
    if config.has("tie_word_embeddings"):
        text = text.with_defaults({"tie_word_embeddings": config.boolean("tie_word_embeddings", default=False)})
    definition = (mistral.define if kind == "mistral" else define)(text)
    config.finish(ignore=HARMLESS_KEYS | _VISION_KEYS)
    definition = stored_as(definition, lambda name: f"language_model.{name}")
    seeing = (r"vision_tower\..*", r"multi_modal_projector\..*")
    return replace(definition, model_type="mistral3", ignored_tensors=seeing)


def _read_mlc(reader: ConfigReader, config: dict[str, Any], context: int) -> int:
    for key in _VISION_KEYS:
        config.pop(key, None)  # of the model that the text model was taken from
    return mistral.read_mlc_window(reader, config, context)


def _write_mlc(mlc: dict[str, Any], hf: Mapping[str, Any]) -> None:
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    mlc["rope_parameters"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    window = hf.get("sliding_window")
    mlc.update(rope_scaling=None, sliding_window_size=-1 if window is None else window)


def _read_gguf(reader: ConfigReader, config: dict[str, Any], _shapes: Shapes) -> None:
    """Files of this architecture have plain Mistral models too, whose queries do not grow."""
    if reader.has("attention.temperature_scale"):
        # The scores stay as they are, which Hugging Face has by dividing two equal factors.
        mscale = reader.number("rope.scaling.yarn_log_multiplier", default=1.0)
        scaling = {**config.get("rope_scaling", {}), "mscale": mscale, "mscale_all_dim": mscale}
        config["rope_scaling"] = {**scaling, "llama_4_scaling_beta": reader.number("attention.temperature_scale")}


FAMILY = Family(
    "ministral3",
    define,
    GgufDialect("mistral3", paired=GGUF_PAIRED, read=_read_gguf),
    mlc=MlcDialect(
        renamed={"position_embedding_base": "rope_theta", "sliding_window_size": "sliding_window"},
        fields=("tie_word_embeddings", "rope_parameters"),
        # No sinks: Hugging Face's window lets the first tokens go.
        constants={"attention_sink_size": 0, "dtype": "float32", "hidden_act": "silu", "modules_to_not_convert": []},
        read=_read_mlc,
        write=_write_mlc,
    ),
)
SEEING_FAMILY = Family("mistral3", define_seeing)
