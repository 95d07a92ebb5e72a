"""Ministral 3 (Mistral AI, 2025), and what writes the text of Mistral 3 models that see."""

from __future__ import annotations

from dataclasses import replace

from windlass.models import mistral
from windlass.models.config import HARMLESS_KEYS, ConfigReader
from windlass.models.decoder import define_decoder, read_shape, stored_as
from windlass.models.definition import ModelDefinition
from windlass.models.family import Family
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


FAMILY = Family("ministral3", define)
SEEING_FAMILY = Family("mistral3", define_seeing)
