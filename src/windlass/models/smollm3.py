"""SmolLM3 (Hugging Face, 2025)."""

from __future__ import annotations

from windlass.models.config import ConfigReader
from windlass.models.decoder import define_decoder, read_layer_types, read_shape
from windlass.models.definition import ModelDefinition
from windlass.models.family import Family, GgufDialect
from windlass.models.llama import GGUF_PAIRED, read_gguf_biases
from windlass.models.rope import read_rope


def define(config: ConfigReader) -> ModelDefinition:
    """Llama, whose every fourth layer does not know positions (NoPE; Kazemnejad et al., 2023)."""
    config = config.with_defaults({"tie_word_embeddings": True})
    shape = read_shape(config)
    attention_bias = config.boolean("attention_bias", default=False)
    mlp_bias = config.boolean("mlp_bias", default=False)
    config.integer("max_window_layers", default=0, minimum=0)  # left over from Qwen2; it counts for nothing here
    rotated = _read_rotated(config, shape.num_layers)
    on = config.boolean("use_sliding_window", default=False)
    window = config.optional_integer("sliding_window")
    slides = read_layer_types(config, [not rotates for rotates in rotated])
    rope = read_rope(
        config, head_dim=shape.head_dim, max_position_embeddings=shape.max_position_embeddings, theta=2_000_000.0
    )
    return define_decoder(
        "smollm3",
        config,
        shape,
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        mlp_bias=mlp_bias,
        windows=[window if on and slide else None for slide in slides],
        rotated=rotated,
        rope=rope,
    )


def _read_rotated(config: ConfigReader, num_layers: int) -> list[bool]:
    """Read which layers rotate queries and keys: ``no_rope_layers``, despite its name, has a 1 for those that do."""
    interval = config.integer("no_rope_layer_interval", default=4)
    flags = config.integers("no_rope_layers")
    if flags is None:
        return [(layer + 1) % interval != 0 for layer in range(num_layers)]
    if len(flags) < num_layers or not set(flags) <= {0, 1}:
        raise config.error("no_rope_layers", f"must have a 0 or a 1 for each of {num_layers} layers")
    return [flag == 1 for flag in flags[:num_layers]]


FAMILY = Family("smollm3", define, GgufDialect("smollm3", paired=GGUF_PAIRED, read=read_gguf_biases))
