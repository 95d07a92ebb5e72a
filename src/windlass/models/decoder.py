"""What decoders are made of, and the plain one: attention and gated MLP, normalized, each added to the residual.

A model file reads its sizes with ``read_shape``, writes its layers with a ``ProgramBuilder``, with ``project_qkv`` and
``gated_mlp`` where they fit, and ends with ``finish``. ``define_decoder`` is the whole of it for those like Llama.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from windlass.models.config import HARMLESS_KEYS, ConfigReader
from windlass.models.definition import ModelDefinition
from windlass.models.rope import RopeConfig, read_rope
from windlass.program.builder import ProgramBuilder
from windlass.program.ops import GateKind, Value
from windlass.program.program import Part, RopeTable

_MAX_LAYERS = 10_000

Mlp: TypeAlias = Callable[[ProgramBuilder, Value, int], Value]
"""What a layer makes of its normalized input, before it is added to the residual: (builder, input, layer)."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes that every decoder has in its configuration, checked against each other."""

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

    @property
    def query_width(self) -> int:
        """Columns of the queries of all heads."""
        return self.num_heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Columns of the keys, and of the values, of all heads."""
        return self.num_kv_heads * self.head_dim

    def builder(self) -> ProgramBuilder:
        """An empty program of these sizes."""
        return ProgramBuilder(
            num_layers=self.num_layers,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            vocab_size=self.vocab_size,
        )


def read_shape(
    config: ConfigReader, *, head_dim: int | None = None, activations: Sequence[str] | None = ("silu", "swish")
) -> Shape:
    """Read the sizes, and check the rest of what decoders have in common.

    ``head_dim`` is the architecture's default, None for hidden_size / num_attention_heads; ``activations`` are the
    names of the only activation that the architecture has, None where it has a choice.
    """
    if activations is not None:
        config.choice("hidden_act", activations, default=activations[0])
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


def project_qkv(
    b: ProgramBuilder, x: Value, name: str, shape: Shape, *, fused: str = "qkv_proj", bias: bool = False
) -> tuple[Value, Value, Value]:
    """Queries, keys and values of ``x``, made in one product; ``fused`` is MLC's name of its weight."""
    widths = zip("qkv", (shape.query_width, shape.key_width, shape.key_width), strict=True)
    parts = [Part(f"{name}.{part}_proj", num_rows=width) for part, width in widths]
    qkv = b.linear(x, f"{name}.{fused}", shape.query_width + 2 * shape.key_width, parts=parts, bias=bias)
    return split_qkv(qkv, shape)


def split_qkv(qkv: Value, shape: Shape) -> tuple[Value, Value, Value]:
    """Queries, keys and values that lie side by side."""
    queries, keys = shape.query_width, shape.key_width
    return qkv.columns(0, queries), qkv.columns(queries, keys), qkv.columns(queries + keys, keys)


def gated_mlp(
    b: ProgramBuilder, x: Value, name: str, intermediate_size: int, *, kind: GateKind = "silu", bias: bool = False
) -> Value:
    """Down(activation(gate(x)) * up(x)) (Shazeer, 2020), its three projections called as Llama calls them."""
    parts = [Part(f"{name}.{part}_proj", num_rows=intermediate_size) for part in ("gate", "up")]
    gate_up = b.linear(x, f"{name}.gate_up_proj", 2 * intermediate_size, parts=parts, bias=bias)
    return b.linear(b.gated_activation(gate_up, kind), f"{name}.down_proj", x.width, bias=bias)


def finish(
    model_type: str, b: ProgramBuilder, shape: Shape, *, context_length: int, ignored_tensors: Sequence[str] = ()
) -> ModelDefinition:
    """Put the finished program and what else is known of the model together."""
    return ModelDefinition(
        model_type=model_type,
        program=b.build(),
        context_length=context_length,
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        # Old checkpoints store the rotary frequencies, and some tied ones the shared head once more.
        ignored_tensors=(
            r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
            *((r"lm_head\.weight",) if shape.tied_head else ()),
            *ignored_tensors,
        ),
    )


def stored_as(definition: ModelDefinition, rename: Callable[[str], str]) -> ModelDefinition:
    """The same model, whose checkpoints call the tensors by other names: ``rename`` turns one into the other."""
    weights = tuple(
        replace(spec, parts=tuple(replace(part, name=rename(part.name)) for part in spec.parts))
        for spec in definition.program.weights
    )
    return replace(definition, program=replace(definition.program, weights=weights))


def define_decoder(
    model_type: str,
    config: ConfigReader,
    shape: Shape,
    *,
    qkv_name: str = "qkv_proj",
    qkv_bias: bool = False,
    output_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: Literal["head", "whole"] | None = None,
    norms_behind: bool = False,
    windows: Sequence[int | None] | None = None,
    rotated: Sequence[bool] | None = None,
    rope: RopeConfig | None = None,
    sliding_rope: RopeConfig | None = None,
    query_rope: RopeTable | None = None,
    sinks: bool = False,
    mlp: Mlp | None = None,
) -> ModelDefinition:
    """Write the plain decoder's program; the keywords are where its members differ.

    Args:
        model_type: the architecture's name.
        config: its configuration, of which all that is the architecture's own has been read.
        shape: its sizes.
        qkv_name: MLC's name of the fused projection of queries, keys and values.
        qkv_bias: that projection has a bias.
        output_bias: the attention's output projection has one.
        mlp_bias: the three projections of the MLP have one.
        qk_norm: queries and keys are normalized before they are rotated: each head, or all heads as a whole.
        norms_behind: what attention and MLP give is normalized, and not what they get.
        windows: the sliding window of each layer; None for none at all.
        rotated: the layers in which queries and keys are rotated; None for all.
        rope: the rotary embedding, where the architecture reads it in a way of its own.
        sliding_rope: that of the layers with a window, where it differs.
        query_rope: what rotates the queries, where that is not what rotates the keys.
        sinks: each head has a sink, see ``Attention``.
        mlp: what takes the place of the gated MLP.
    """
    if rope is None:
        rope = read_rope(config, head_dim=shape.head_dim, max_position_embeddings=shape.max_position_embeddings)
    config.finish(ignore=HARMLESS_KEYS)
    layer_windows = windows or [None] * shape.num_layers
    b = shape.builder()
    eps = shape.rms_norm_eps
    full_table = b.rope_table(rope.table)
    query_table = None if query_rope is None else b.rope_table(query_rope)
    sliding = rope if sliding_rope is None else sliding_rope
    sliding_table = full_table if sliding.table == rope.table else b.rope_table(sliding.table)

    def attention(x: Value, layer: int, name: str) -> Value:
        q, k, v = project_qkv(b, x, name, shape, fused=qkv_name, bias=qkv_bias)
        if qk_norm == "head":
            b.head_norm(q, f"{name}.q_norm", eps)
            b.head_norm(k, f"{name}.k_norm", eps)
        elif qk_norm == "whole":
            q = b.rms_norm(q, f"{name}.q_norm", eps)
            k = b.rms_norm(k, f"{name}.k_norm", eps)
        table = full_table if layer_windows[layer] is None else sliding_table
        if rotated is None or rotated[layer]:
            b.rope(q, table if query_table is None else query_table)
            b.rope(k, table)
        b.write_kv(layer, k, v)
        sink_name = f"{name}.sinks" if sinks else None
        out = b.attention(q, layer, num_heads=shape.num_heads, window=layer_windows[layer], sinks=sink_name)
        return b.linear(out, f"{name}.o_proj", shape.hidden_size, bias=output_bias)

    def feed_forward(x: Value, layer: int, name: str) -> Value:
        if mlp is not None:
            return mlp(b, x, layer)
        return gated_mlp(b, x, name, shape.intermediate_size, bias=mlp_bias)

    x = b.embed("model.embed_tokens", shape.hidden_size)
    for layer in range(shape.num_layers):
        name = f"model.layers.{layer}"
        if norms_behind:
            h = attention(x, layer, f"{name}.self_attn")
            b.add(x, b.rms_norm(h, f"{name}.post_attention_layernorm", eps))
            h = feed_forward(x, layer, f"{name}.mlp")
            b.add(x, b.rms_norm(h, f"{name}.post_feedforward_layernorm", eps))
        else:
            h = b.rms_norm(x, f"{name}.input_layernorm", eps)
            b.add(x, attention(h, layer, f"{name}.self_attn"))
            h = b.rms_norm(x, f"{name}.post_attention_layernorm", eps)
            b.add(x, feed_forward(h, layer, f"{name}.mlp"))
    b.logits(b.rms_norm(x, "model.norm", eps), "model.embed_tokens" if shape.tied_head else "lm_head")
    return finish(model_type, b, shape, context_length=rope.context_length(shape.max_position_embeddings))


def read_windows(config: ConfigReader, num_layers: int) -> list[int | None]:
    """Read Qwen's sliding windows: ``layer_types``, or the layers from ``max_window_layers`` on."""
    on = config.boolean("use_sliding_window", default=False)
    window = config.optional_integer("sliding_window", default=4096)
    first = config.integer("max_window_layers", default=28, minimum=0)
    slides = read_layer_types(config, [on and layer >= first for layer in range(num_layers)])
    if any(slides) and not on:
        raise config.error("layer_types", "has sliding_attention, but use_sliding_window is not true")
    return [window if sliding else None for sliding in slides]


def read_layer_types(config: ConfigReader, default: list[bool]) -> list[bool]:
    """Read from ``layer_types`` which layers have a sliding window; ``default`` has one entry for each layer."""
    types = config.strings("layer_types")
    if types is None:
        return default
    if len(types) != len(default):
        raise config.error("layer_types", f"has {len(types)} entries for {len(default)} layers")
    unknown = sorted(set(types) - {"full_attention", "sliding_attention"})
    if unknown:
        raise config.error("layer_types", f"has {', '.join(unknown)}; supported: full_attention, sliding_attention")
    return [kind == "sliding_attention" for kind in types]
