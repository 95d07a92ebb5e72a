"""GPT-2 (Radford et al., 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from windlass.models.config import HARMLESS_KEYS, ConfigReader
from windlass.models.decoder import finish, read_shape, split_qkv
from windlass.models.definition import ModelDefinition
from windlass.models.family import Family, GgufDialect, MlcDialect, Shapes
from windlass.models.layers import plain_mlp, read_activation
from windlass.program.ops import Value
from windlass.program.program import Part

_NAMES = {
    "n_embd": "hidden_size",
    "n_inner": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "activation_function": "hidden_act",
    "layer_norm_epsilon": "rms_norm_eps",
}
_HARMLESS = HARMLESS_KEYS | {
    "n_ctx",
    "reorder_and_upcast_attn",  # how it is computed, not what
    *(f"summary_{name}" for name in ("type", "use_proj", "activation", "proj_to_labels", "first_dropout")),
}


def define(config: ConfigReader) -> ModelDefinition:
    """Learned positions, layer norms, MLPs without gates, biases everywhere, and a head that is the embedding.

    Checkpoints have the weights of products transposed, unless ``conv1d`` is false.
    """
    config = config.renamed(_NAMES)
    config = config.with_defaults({"intermediate_size": 4 * config.integer("hidden_size"), "tie_word_embeddings": True})
    transposed = config.boolean("conv1d", default=True)
    kind = read_activation(config, default="gelu_new")
    shape = read_shape(config, activations=None)
    scale = shape.head_dim**-0.5 if config.boolean("scale_attn_weights", default=True) else 1.0
    by_layer = config.boolean("scale_attn_by_inverse_layer_idx", default=False)
    config.finish(ignore=_HARMLESS)
    b = shape.builder()

    def linear(x: Value, name: str, out_features: int) -> Value:
        return b.linear(x, name, out_features, parts=[Part(name, transposed=transposed)], bias=True)

    x = b.embed("transformer.wte", shape.hidden_size)
    b.add(x, b.embed_position("transformer.wpe", shape.max_position_embeddings, shape.hidden_size))
    for layer in range(shape.num_layers):
        name = f"transformer.h.{layer}"
        h = b.layer_norm(x, f"{name}.ln_1", shape.rms_norm_eps)
        q, k, v = split_qkv(linear(h, f"{name}.attn.c_attn", shape.query_width + 2 * shape.key_width), shape)
        b.write_kv(layer, k, v)
        h = b.attention(q, layer, num_heads=shape.num_heads, scale=scale / (layer + 1 if by_layer else 1))
        b.add(x, linear(h, f"{name}.attn.c_proj", shape.hidden_size))
        h = b.layer_norm(x, f"{name}.ln_2", shape.rms_norm_eps)
        up, down = f"{name}.mlp.c_fc", f"{name}.mlp.c_proj"
        b.add(x, plain_mlp(b, h, shape, kind, up=up, down=down, transposed=transposed))
    x = b.layer_norm(x, "transformer.ln_f", shape.rms_norm_eps)
    b.logits(x, "transformer.wte" if shape.tied_head else "lm_head")
    ignored = (r"transformer\.h\.\d+\.attn\.(masked_)?bias",)
    definition = finish("gpt2", b, shape, context_length=shape.max_position_embeddings, ignored_tensors=ignored)
    # The checkpoints that everybody has are those of the model without its head.
    prefixes = tuple((f"{name}.", f"transformer.{name}.") for name in ("wte", "wpe", "h", "ln_f"))
    return replace(definition, stored_prefixes=prefixes)


def read_gguf(reader: ConfigReader, config: dict[str, Any], _shapes: Shapes) -> None:
    """Fill in what most families call otherwise; weights are not transposed."""
    config["rms_norm_eps"] = reader.number("attention.layer_norm_epsilon")
    config["conv1d"] = False


def read_mlc(reader: ConfigReader, config: dict[str, Any], context: int) -> int:
    """Return the context length, which is that of the positions where no other is told."""
    context = context or reader.integer("n_positions", default=0, minimum=0)
    config.pop("n_positions", None)
    return context


def write_mlc(mlc: dict[str, Any], _hf: Mapping[str, Any]) -> None:
    """Leave out what such directories do not have."""
    for key in ("num_key_value_heads", "rope_theta", "rope_scaling", "tie_word_embeddings"):
        del mlc[key]


GGUF_TENSORS = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "attn_norm": "transformer.h.{layer}.ln_1",
    "attn_qkv": "transformer.h.{layer}.attn.c_attn",
    "attn_output": "transformer.h.{layer}.attn.c_proj",
    "ffn_norm": "transformer.h.{layer}.ln_2",
    "ffn_up": "transformer.h.{layer}.mlp.c_fc",
    "ffn_down": "transformer.h.{layer}.mlp.c_proj",
}

FAMILY = Family(
    "gpt2",
    define,
    GgufDialect("gpt2", tensors=GGUF_TENSORS, read=read_gguf),
    MlcDialect(
        fields=("n_embd", "n_layer", "n_head", "layer_norm_epsilon", "n_inner", "scale_attn_by_inverse_layer_idx"),
        optional=("activation_function", "scale_attn_weights"),
        untied=True,
        read=read_mlc,
        write=write_mlc,
    ),
)
