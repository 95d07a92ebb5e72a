"""The decoder that Llama, Mistral and Qwen share: pre-norm attention and gated MLP, each added to the residual."""

from __future__ import annotations

from dataclasses import dataclass

from windlass.models.config import HARMLESS_KEYS, ConfigReader
from windlass.models.definition import ModelDefinition
from windlass.models.rope import read_rope
from windlass.program.builder import ProgramBuilder
from windlass.program.ops import Value

_MAX_LAYERS = 10_000


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes that every decoder of this family has in its configuration, checked against each other."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    max_position_embeddings: int
    tied_head: bool


def read_shape(config: ConfigReader, *, head_dim: int | None = None) -> Shape:
    """Read the sizes; ``head_dim`` is the architecture's default, None for hidden_size / num_attention_heads."""
    config.choice("hidden_act", ("silu", "swish"), default="silu")
    config.require("is_encoder_decoder", False, "only decoders are supported")
    config.require("add_cross_attention", False, "only decoders are supported")
    hidden_size = config.integer("hidden_size")
    num_heads = config.integer("num_attention_heads")
    num_kv_heads = config.integer("num_key_value_heads", default=num_heads)
    if num_heads % num_kv_heads:
        raise config.error(
            "num_key_value_heads", f"is {num_kv_heads}, which must divide num_attention_heads, {num_heads}"
        )
    if head_dim is None and not config.has("head_dim") and hidden_size % num_heads:
        raise config.error("hidden_size", f"is {hidden_size}, not a multiple of num_attention_heads, {num_heads}")
    return Shape(
        hidden_size=hidden_size,
        intermediate_size=config.integer("intermediate_size"),
        num_layers=config.integer("num_hidden_layers", maximum=_MAX_LAYERS),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=config.integer("head_dim", default=head_dim or hidden_size // num_heads),
        vocab_size=config.integer("vocab_size"),
        rms_norm_eps=config.number("rms_norm_eps"),
        max_position_embeddings=config.integer("max_position_embeddings"),
        tied_head=config.boolean("tie_word_embeddings", default=False),
    )


def define_decoder(
    model_type: str,
    config: ConfigReader,
    shape: Shape,
    *,
    qkv_name: str = "qkv_proj",
    qkv_bias: bool = False,
    output_bias: bool = False,
    mlp_bias: bool = False,
    head_norm: bool = False,
    windows: list[int | None] | None = None,
) -> ModelDefinition:
    """Write the decoder's program; the keywords are where its members differ.

    Args:
        model_type: the architecture's name.
        config: its configuration, of which everything but the rotary embedding has been read.
        shape: its sizes.
        qkv_name: MLC's name of the fused projection of queries, keys and values.
        qkv_bias: that projection has a bias.
        output_bias: the attention's output projection has one.
        mlp_bias: the three projections of the MLP have one.
        head_norm: queries and keys are normalized per head before they are rotated.
        windows: the sliding window of each layer; None for none at all.
    """
    rope = read_rope(config, head_dim=shape.head_dim, max_position_embeddings=shape.max_position_embeddings)
    config.finish(ignore=HARMLESS_KEYS)
    layer_windows = windows or [None] * shape.num_layers
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    b = ProgramBuilder(
        num_layers=shape.num_layers,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab_size,
    )
    table = b.rope_table(rope.table)

    def attention(x: Value, layer: int, name: str) -> Value:
        parts = {f"{name}.q_proj": queries, f"{name}.k_proj": keys, f"{name}.v_proj": keys}
        qkv = b.linear(x, f"{name}.{qkv_name}", queries + 2 * keys, parts=parts, bias=qkv_bias)
        q, k, v = qkv.columns(0, queries), qkv.columns(queries, keys), qkv.columns(queries + keys, keys)
        if head_norm:
            b.head_norm(q, f"{name}.q_norm", shape.rms_norm_eps)
            b.head_norm(k, f"{name}.k_norm", shape.rms_norm_eps)
        b.rope(q, table)
        b.rope(k, table)
        b.write_kv(layer, k, v)
        out = b.attention(q, layer, num_heads=shape.num_heads, window=layer_windows[layer])
        return b.linear(out, f"{name}.o_proj", shape.hidden_size, bias=output_bias)

    def mlp(x: Value, name: str) -> Value:
        parts = dict.fromkeys((f"{name}.gate_proj", f"{name}.up_proj"), shape.intermediate_size)
        gate_up = b.linear(x, f"{name}.gate_up_proj", 2 * shape.intermediate_size, parts=parts, bias=mlp_bias)
        return b.linear(b.gated_activation(gate_up), f"{name}.down_proj", shape.hidden_size, bias=mlp_bias)

    x = b.embed("model.embed_tokens", shape.hidden_size)
    for layer in range(shape.num_layers):
        name = f"model.layers.{layer}"
        h = b.rms_norm(x, f"{name}.input_layernorm", shape.rms_norm_eps)
        b.add(x, attention(h, layer, f"{name}.self_attn"))
        h = b.rms_norm(x, f"{name}.post_attention_layernorm", shape.rms_norm_eps)
        b.add(x, mlp(h, f"{name}.mlp"))
    x = b.rms_norm(x, "model.norm", shape.rms_norm_eps)
    b.logits(x, "model.embed_tokens" if shape.tied_head else "lm_head")

    return ModelDefinition(
        model_type=model_type,
        program=b.build(),
        context_length=rope.context_length(shape.max_position_embeddings),
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        # Old checkpoints store the rotary frequencies, and some tied ones the shared head once more.
        ignored_tensors=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)
        + ((r"lm_head\.weight",) if shape.tied_head else ()),
    )


def read_windows(config: ConfigReader, num_layers: int) -> list[int | None]:
    """Read Qwen's sliding windows: ``layer_types``, or the layers from ``max_window_layers`` on."""
    on = config.boolean("use_sliding_window", default=False)
    window = config.optional_integer("sliding_window", default=4096)
    first = config.integer("max_window_layers", default=28, minimum=0)
    types = config.strings("layer_types")
    if types is None:
        return [window if on and layer >= first else None for layer in range(num_layers)]
    if len(types) != num_layers:
        raise config.error("layer_types", f"has {len(types)} entries for {num_layers} layers")
    unknown = sorted(set(types) - {"full_attention", "sliding_attention"})
    if unknown:
        raise config.error("layer_types", f"has {', '.join(unknown)}; supported: full_attention, sliding_attention")
    if "sliding_attention" in types and not on:
        raise config.error("layer_types", "has sliding_attention, but use_sliding_window is not true")
    return [window if kind == "sliding_attention" else None for kind in types]
