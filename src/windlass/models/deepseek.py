"""DeepSeek-V2 and V3 (DeepSeek-AI, 2024), with R1 and other models of their form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from windlass.models.config import HARMLESS_KEYS, ConfigReader
from windlass.models.decoder import Shape, finish, gated_mlp, read_shape
from windlass.models.definition import ModelDefinition
from windlass.models.family import Family, GgufDialect, MlcDialect, Shapes
from windlass.models.mixture import Mixture, gguf_experts, gguf_shared_experts, qwen_mixture, read_experts
from windlass.models.mla import KV_B_APART, LatentAttention, read_latent_attention
from windlass.program.ops import Value
from windlass.program.program import Part

_HARMLESS = {"head_dim", "qk_head_dim", "n_group", "topk_group", "auto_map"}
"""Sizes that others give, groups that nobody asked for, and the code of which transformers has its own."""


def define_v2(config: ConfigReader) -> ModelDefinition:
    """DeepSeek-V2, Lite or not: shares are softmax scores, as they are."""
    shape = read_shape(config, head_dim=1)
    config.choice("scoring_func", ("softmax",), default="softmax")
    config.require("norm_topk_prob", False, "the shares of this architecture are not normalized")
    config.require("mlp_bias", False, "the MLPs of this architecture have no biases")
    method = config.choice("topk_method", ("greedy", "group_limited_greedy"), default="greedy")
    groups = _read_groups(config) if method == "group_limited_greedy" else (1, 1)
    mixture = replace(_read_mixture(config, shape), normalize=False, num_groups=groups[0], top_groups=groups[1])
    attention = read_latent_attention(config, shape.num_heads, shape.max_position_embeddings, interleaved=True)
    return _define("deepseek_v2", config, shape, mixture, attention, routing_bias=False)


def define_v3(config: ConfigReader) -> ModelDefinition:
    """DeepSeek-V3: shares are sigmoid scores, and a bias that balances the experts takes part in choosing them."""
    shape = read_shape(config, head_dim=1)
    config.choice("scoring_func", ("sigmoid",), default="sigmoid")
    config.choice("topk_method", ("noaux_tc",), default="noaux_tc")
    groups = _read_groups(config)
    mixture = replace(
        _read_mixture(config, shape),
        scores="sigmoid",
        normalize=config.boolean("norm_topk_prob", default=True),
        num_groups=groups[0],
        top_groups=groups[1],
        group_score="top2_sum",
    )
    attention = read_latent_attention(
        config,
        shape.num_heads,
        shape.max_position_embeddings,
        interleaved=config.boolean("rope_interleave", default=True),
    )
    return _define("deepseek_v3", config, shape, mixture, attention, routing_bias=True)


def _read_mixture(config: ConfigReader, shape: Shape) -> Mixture:
    sizes = read_experts(config, shape, count="n_routed_experts", width="moe_intermediate_size")
    return Mixture(*sizes, scale=config.number("routed_scaling_factor", default=1.0))


def _read_groups(config: ConfigReader) -> tuple[int, int]:
    experts, groups = config.integer("n_routed_experts"), config.integer("n_group", default=1)
    taken, top_k = config.integer("topk_group", default=1), config.integer("num_experts_per_tok")
    if experts % groups:
        raise config.error("n_group", f"is {groups}, which must divide n_routed_experts, {experts}")
    if taken > groups or top_k > experts // groups * taken:
        raise config.error("topk_group", f"is {taken}: {top_k} experts cannot be of so many of {groups} groups")
    return groups, taken


def _define(
    model_type: str,
    config: ConfigReader,
    shape: Shape,
    mixture: Mixture,
    attention: LatentAttention,
    *,
    routing_bias: bool,
) -> ModelDefinition:
    shared_size = config.integer("n_shared_experts") * mixture.intermediate_size
    first, step = (
        config.integer("first_k_dense_replace", default=0, minimum=0),
        config.integer("moe_layer_freq", default=1),
    )
    # Layers that predict the tokens after the next are stored behind the others.
    further = config.integer("num_nextn_predict_layers", default=0, minimum=0, maximum=64)
    config.integer("ep_size", default=1)
    config.finish(ignore=HARMLESS_KEYS | _HARMLESS)
    b = replace(shape, num_kv_heads=1, head_dim=attention.row_width).builder()
    table = b.rope_table(attention.rope.table)

    def mlp(x: Value, layer: int, name: str) -> Value:
        if layer < first or layer % step:
            return gated_mlp(b, x, name, shape.intermediate_size)
        bias = (f"{name}.e_score_correction_bias", Part(f"{name}.gate.e_score_correction_bias"))
        out = qwen_mixture(b, x, name, mixture, bias=bias if routing_bias else None)
        b.add(out, gated_mlp(b, x, f"{name}.shared_experts", shared_size))
        return out

    x = b.embed("model.embed_tokens", shape.hidden_size)
    for layer in range(shape.num_layers):
        name = f"model.layers.{layer}"
        h = b.rms_norm(x, f"{name}.input_layernorm", shape.rms_norm_eps)
        b.add(x, attention(b, h, layer, f"{name}.self_attn", table))
        h = b.rms_norm(x, f"{name}.post_attention_layernorm", shape.rms_norm_eps)
        b.add(x, mlp(h, layer, f"{name}.mlp"))
    x = b.rms_norm(x, "model.norm", shape.rms_norm_eps)
    b.logits(x, "model.embed_tokens" if shape.tied_head else "lm_head")
    return finish(
        model_type,
        b,
        shape,
        context_length=attention.rope.context_length(shape.max_position_embeddings),
        ignored_tensors=[
            r"model\.layers\.\d+\.self_attn\.kv_b_proj\.weight",  # MLC directories have it beside what is made of it
            *(rf"model\.layers\.{shape.num_layers + layer}\..*" for layer in range(further)),
        ],
    )


def _read_gguf(reader: ConfigReader, config: dict[str, Any], shapes: Shapes) -> None:
    """The sizes of a head are those of its keys and values, which newer files have beside those of the KV cache."""
    rope_dim = reader.integer("rope.dimension_count")
    length, value_length = reader.integer("attention.key_length"), reader.integer("attention.value_length")
    length = reader.integer("attention.key_length_mla", default=length)
    config["qk_rope_head_dim"] = rope_dim
    config["qk_nope_head_dim"] = length - rope_dim
    config["v_head_dim"] = reader.integer("attention.value_length_mla", default=value_length)
    config[KV_B_APART] = "model.layers.0.self_attn.k_b_proj.weight" in shapes
    config["routed_scaling_factor"] = reader.number("expert_weights_scale", default=1.0)
    config["norm_topk_prob"] = reader.boolean("expert_weights_norm", default=False)
    reader.integer("expert_gating_func", default=1)  # tells V3 from V2
    multiplier = reader.number("rope.scaling.yarn_log_multiplier", default=0.0, above=-1.0)
    if multiplier and "rope_scaling" in config:
        config["rope_scaling"] |= {"mscale": 10 * multiplier, "mscale_all_dim": 10 * multiplier}


def _read_gguf_v2(reader: ConfigReader, config: dict[str, Any], shapes: Shapes) -> None:
    _read_gguf(reader, config, shapes)
    config["topk_method"] = "group_limited_greedy" if config.get("n_group", 1) > 1 else "greedy"


_GGUF = GgufDialect(
    "deepseek2",
    keys={
        "expert_count": "n_routed_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_shared_count": "n_shared_experts",
        "expert_feed_forward_length": "moe_intermediate_size",
        "expert_group_count": "n_group",
        "expert_group_used_count": "topk_group",
        "leading_dense_block_count": "first_k_dense_replace",
        "attention.q_lora_rank": "q_lora_rank",
        "attention.kv_lora_rank": "kv_lora_rank",
    },
    tensors={
        **gguf_experts(),
        **gguf_shared_experts("mlp.shared_experts"),
        "exp_probs_b.bias": "model.layers.{layer}.mlp.gate.e_score_correction_bias",
        **{
            f"attn_{stem}": f"model.layers.{{layer}}.self_attn.{name}"
            for stem, name in (
                ("q_a", "q_a_proj"),
                ("q_a_norm", "q_a_layernorm"),
                ("q_b", "q_b_proj"),
                ("kv_a_mqa", "kv_a_proj_with_mqa"),
                ("kv_a_norm", "kv_a_layernorm"),
                ("kv_b", "kv_b_proj"),
                ("k_b", "k_b_proj"),
                ("v_b", "v_b_proj"),
            )
        },
    },
)


def _read_mlc(_reader: ConfigReader, config: dict[str, Any], context: int) -> int:
    """MLC keeps the scaling as it is in config.json, where ``type`` says what it is."""
    scaling = config.get("rope_scaling")
    if isinstance(scaling, Mapping) and "type" in scaling:
        config["rope_scaling"] = {"rope_type": scaling["type"], **scaling}
    config.pop("weight_block_size", None)  # of FP8, of which there are no MLC directories here
    return context


def _write_mlc(mlc: dict[str, Any], hf: Mapping[str, Any]) -> None:
    del mlc["head_dim"]
    mlc["num_key_value_heads"] = hf.get("num_key_value_heads", hf["num_attention_heads"])


_MLC = MlcDialect(
    fields=(
        "moe_intermediate_size",
        "n_shared_experts",
        "n_routed_experts",
        "num_experts_per_tok",
        "norm_topk_prob",
        "first_k_dense_replace",
        "moe_layer_freq",
        "routed_scaling_factor",
        "scoring_func",
        "topk_method",
        "n_group",
        "topk_group",
        "attention_bias",
        "kv_lora_rank",
        "qk_rope_head_dim",
        "v_head_dim",
        "qk_nope_head_dim",
        "q_lora_rank",
        "rope_scaling",
    ),
    optional=("rope_interleave",),
    constants={"dtype": "float32"},
    prefill_chunk_size=2048,
    read=_read_mlc,
    write=_write_mlc,
)

V2_FAMILY = Family("deepseek_v2", define_v2, replace(_GGUF, read=_read_gguf_v2), _MLC)
V3_FAMILY = Family(
    "deepseek_v3", define_v3, replace(_GGUF, marker="expert_gating_func", marker_value=2, read=_read_gguf), _MLC
)
