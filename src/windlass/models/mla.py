"""Multi-head latent attention (DeepSeek-V2, 2024), in the absorbed form.

Keys and values of all heads are made from one latent vector per token. What makes a head's keys of it is applied to the
queries instead, and what makes its values to what attention returns: so the KV cache has one head, whose rows are the
latent vector and the rotated part of the key, and the latent vector is key and value in one.
"""

from __future__ import annotations

from dataclasses import dataclass

from windlass.models.config import ConfigReader
from windlass.models.mixture import ROW_MULTIPLE
from windlass.models.rope import RopeConfig, read_rope, rope_section, yarn_scale
from windlass.program.builder import ProgramBuilder
from windlass.program.ops import Value
from windlass.program.program import Part, RowOrder

KV_B_APART = "kv_b_apart"
"""A key of no config.json: see ``LatentAttention.apart``."""

LATENT_EPS = 1e-6
"""Of the two norms between the projections, whatever the configuration's is."""


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """The sizes of a head's parts: not rotated (``nope``), rotated (``rope``) and values; and the ranks.

    ``interleaved`` heads are stored for rotation in pairs; ``q_rank`` is None where queries are made in one step. What
    makes keys and values is stored ``apart``, each head's keys transposed, or in one (``kv_b_proj``).
    """

    num_heads: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    kv_rank: int
    q_rank: int | None
    scale: float
    bias: bool
    interleaved: bool
    apart: bool
    rope: RopeConfig

    @property
    def row_width(self) -> int:
        """Columns of a row of the KV cache."""
        return self.kv_rank + self.rope_dim

    def __call__(self, b: ProgramBuilder, x: Value, layer: int, name: str, table: int) -> Value:
        """Attention of ``layer``, whose weights begin with ``name``; ``table`` is the rotary embedding."""
        heads = self.num_heads
        q = self._queries(b, x, name)
        q_nope, q_rope = q.columns(0, heads * self.nope_dim), q.columns(heads * self.nope_dim, heads * self.rope_dim)
        b.rope(q_rope, table, head_dim=self.rope_dim)
        kv_name = f"{name}.kv_a_proj_with_mqa"
        order = RowOrder(1, ((0, self.kv_rank, 1), *self._rotated(self.kv_rank)))
        kv = b.linear(x, kv_name, self.row_width, parts=[Part(kv_name, order)], bias=self.bias, mlc_as_stored=True)
        latent = b.rms_norm(kv.columns(0, self.kv_rank), f"{name}.kv_a_layernorm", LATENT_EPS)
        k_rope = kv.columns(self.kv_rank, self.rope_dim)
        b.rope(k_rope, table, head_dim=self.rope_dim)
        row = b.join_heads(latent, k_rope, num_heads=1)
        b.write_kv(layer, row, row)
        queries = b.join_heads(self._to_latent(b, q_nope, name), q_rope, num_heads=heads)
        attended = b.attention(queries, layer, num_heads=heads, scale=self.scale)
        out = self._from_latent(b, attended, name)
        return b.linear(out, f"{name}.o_proj", x.width, bias=self.bias)

    def _queries(self, b: ProgramBuilder, x: Value, name: str) -> Value:
        """What is not rotated of all heads, then what is."""
        last = f"{name}.q_proj"
        if self.q_rank is not None:
            last = f"{name}.q_b_proj"
            low = b.linear(x, f"{name}.q_a_proj", self.q_rank, bias=self.bias)
            x = b.rms_norm(low, f"{name}.q_a_layernorm", LATENT_EPS)
        parts = [
            Part(last, rows=RowOrder(self.num_heads, slices))
            for slices in (((0, self.nope_dim, 1),), self._rotated(self.nope_dim))
        ]
        return b.linear(x, last, self.num_heads * (self.nope_dim + self.rope_dim), parts=parts, mlc_as_stored=True)

    def _from_latent(self, b: ProgramBuilder, attended: Value, name: str) -> Value:
        values = RowOrder(self.num_heads, ((self.nope_dim, None, 1),))
        stored = Part(f"{name}.v_b_proj.weight") if self.apart else Part(f"{name}.kv_b_proj.weight", values)
        return b.head_linear(
            attended,
            f"{name}.w_uv",
            num_heads=self.num_heads,
            in_features=self.kv_rank,
            out_features=self.value_dim,
            parts=[stored],
        )

    def _to_latent(self, b: ProgramBuilder, q_nope: Value, name: str) -> Value:
        keys = RowOrder(self.num_heads, ((0, self.nope_dim, 1),))
        stored = Part(f"{name}.kv_b_proj.weight", matrices=keys, transposed=True)
        return b.head_linear(
            q_nope,
            f"{name}.w_uk",
            num_heads=self.num_heads,
            in_features=self.nope_dim,
            out_features=self.kv_rank,
            parts=[Part(f"{name}.k_b_proj.weight") if self.apart else stored],
        )

    def _rotated(self, start: int) -> tuple[tuple[int, int | None, int], ...]:
        """The rows from ``start`` on, in the order for rotation by halves."""
        return ((start, None, 2), (start + 1, None, 2)) if self.interleaved else ((start, None, 1),)


def read_latent_attention(
    config: ConfigReader, num_heads: int, max_position_embeddings: int, *, interleaved: bool
) -> LatentAttention:
    """Read the sizes and the rotary embedding, with what it does to the scores.

    Raises:
        LoadError: a key is missing, of the wrong type, or not understood.
    """
    nope_dim, rope_dim = config.integer("qk_nope_head_dim"), config.integer("qk_rope_head_dim")
    kv_rank, value_dim = config.integer("kv_lora_rank"), config.integer("v_head_dim")
    for key, size in (("kv_lora_rank", kv_rank), ("v_head_dim", value_dim)):
        if size % ROW_MULTIPLE:
            raise config.error(key, f"is {size}, which must be a multiple of {ROW_MULTIPLE}")
    section = rope_section(config)
    scale = (nope_dim + rope_dim) ** -0.5
    if section is not None and section.has("mscale_all_dim") and section.has("factor"):
        factor, mscale = section.number("factor"), section.number("mscale_all_dim", above=-1.0)
        scale *= yarn_scale(factor, mscale) ** 2 if mscale else 1.0
    return LatentAttention(
        num_heads=num_heads,
        nope_dim=nope_dim,
        rope_dim=rope_dim,
        value_dim=value_dim,
        kv_rank=kv_rank,
        q_rank=config.integer("q_lora_rank") if config.has("q_lora_rank") else None,
        scale=scale,
        bias=config.boolean("attention_bias", default=False),
        interleaved=interleaved,
        apart=config.boolean(KV_B_APART, default=False),
        rope=read_rope(config, head_dim=rope_dim, max_position_embeddings=max_position_embeddings),
    )
