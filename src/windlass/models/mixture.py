"""Mixtures of experts: the layer in which a router sends each token to a few of many MLPs (Shazeer et al., 2017)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from windlass.models.config import ConfigReader
from windlass.models.decoder import Shape, read_layer_types
from windlass.models.family import Shapes
from windlass.program.builder import ProgramBuilder
from windlass.program.ops import Value
from windlass.program.program import Part

ROW_MULTIPLE = 32
"""Matrices of experts, and of heads, are stacked, and executors ask that each begins at a row with such a number."""

MAX_EXPERTS = 1 << 17
"""Of all layers together; large models have some 20,000."""

EXPERTS_APART = "experts_apart"
"""A key of no config.json: true where the experts of a family that stacks them have tensors of their own (GGUF)."""

GGUF_KEYS = {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
"""The sizes of a mixture in the metadata of GGUF files, as Qwen's configurations call them."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """How many experts there are, how wide, and how a token's are chosen; see ``Route``."""

    num_experts: int
    top_k: int
    intermediate_size: int
    scores: Literal["softmax", "sigmoid"] = "softmax"
    normalize: bool = True
    scale: float = 1.0
    num_groups: int = 1
    top_groups: int = 1
    group_score: Literal["max", "top2_sum"] = "max"

    def route(self, b: ProgramBuilder, logits: Value, *, bias: tuple[str, Part] | None = None) -> Value:
        """The shares of the experts, from their logits; ``bias`` as in ``ProgramBuilder.route``."""
        return b.route(
            logits,
            top_k=self.top_k,
            scores=self.scores,
            normalize=self.normalize,
            scale=self.scale,
            bias=bias,
            num_groups=self.num_groups,
            top_groups=self.top_groups,
            group_score=self.group_score,
        )


def read_experts(
    config: ConfigReader, shape: Shape, *, count: str, width: str, top_k: int | None = None
) -> tuple[int, int, int]:
    """Read how many experts there are (at the key ``count``), how many a token gets, and how wide they are (``width``).

    Raises:
        LoadError: a size is missing or cannot be.
    """
    num_experts = config.integer(count, maximum=MAX_EXPERTS // shape.num_layers)
    taken = config.integer("num_experts_per_tok", default=top_k)
    if taken > num_experts:
        raise config.error("num_experts_per_tok", f"is {taken}, but there are {num_experts} experts")
    intermediate_size = config.integer(width)
    for key, rows in (("hidden_size", shape.hidden_size), (width, 2 * intermediate_size)):
        if rows % ROW_MULTIPLE:
            multiple = ROW_MULTIPLE // 2 if key == width else ROW_MULTIPLE
            size = config.integer(key)
            raise config.error(key, f"is {size}, which must be a multiple of {multiple} in a mixture of experts")
    return num_experts, taken, intermediate_size


def stacked_experts(
    name: str,
    count: int,
    *,
    gate: str = "gate_proj",
    up: str = "up_proj",
    down: str = "down_proj",
    suffix: str = "weight",
) -> tuple[list[Part], list[Part]]:
    """The parts of ``gate_up`` and ``down`` where each expert has three tensors of its own."""
    experts = [f"{name}.{number}" for number in range(count)]
    return (
        [Part(f"{expert}.{half}.{suffix}") for expert in experts for half in (gate, up)],
        [Part(f"{expert}.{down}.{suffix}") for expert in experts],
    )


def qwen_mixture(
    b: ProgramBuilder, x: Value, name: str, mixture: Mixture, *, bias: tuple[str, Part] | None = None
) -> Value:
    """The mixture as Qwen and DeepSeek call its tensors: ``gate``, and ``experts`` with three projections each."""
    logits = b.linear(x, f"{name}.gate", mixture.num_experts, role="router")
    gate_up, down = stacked_experts(f"{name}.experts", mixture.num_experts)
    return b.experts(
        x,
        mixture.route(b, logits, bias=bias),
        gate_up=f"{name}.moe_gate_up_proj.weight",
        down=f"{name}.moe_down_proj.weight",
        intermediate_size=mixture.intermediate_size,
        gate_up_parts=gate_up,
        down_parts=down,
    )


def gguf_experts(
    block: str = "mlp", *, gate: str = "gate", names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
) -> dict[str, str]:
    """What GGUF's tensors of a mixture are called by Hugging Face, for ``GgufDialect``: ``block`` is its name."""
    name = f"model.layers.{{layer}}.{block}"
    stems = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
    experts = {stem: f"{name}.experts.{{expert}}.{part}" for stem, part in zip(stems, names, strict=True)}
    return {"ffn_gate_inp": f"{name}.{gate}", **experts}


def gguf_shared_experts(name: str) -> dict[str, str]:
    """The same of the experts that every token gets."""
    stems = ("ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp")
    parts = ("gate_proj", "up_proj", "down_proj")
    return {stem: f"model.layers.{{layer}}.{name}.{part}" for stem, part in zip(stems, parts, strict=True)}


def dense_layers(config: Mapping[str, Any], shapes: Shapes) -> list[int]:
    """The layers of a GGUF file that have a plain MLP."""
    layers = range(config.get("num_hidden_layers", 0))
    return [layer for layer in layers if f"model.layers.{layer}.mlp.gate_proj.weight" in shapes]


def refuse_windows(config: ConfigReader, num_layers: int) -> None:
    """Read Qwen's sliding windows, which its mixtures do not use: what is said of them beside that does not matter.

    Raises:
        LoadError: they are switched on.
    """
    config.require("use_sliding_window", False, "sliding windows are not supported in this architecture")
    for key in ("sliding_window", "max_window_layers"):
        config.integer(key, default=0, minimum=0)
    if any(read_layer_types(config, [False] * num_layers)):
        raise config.error("layer_types", "has sliding_attention, but use_sliding_window is not true")


def read_sparse_layers(config: ConfigReader, num_layers: int) -> Sequence[bool]:
    """Read which layers have experts: every ``decoder_sparse_step``-th, but for ``mlp_only_layers``."""
    step = config.integer("decoder_sparse_step", default=1)
    dense = config.integers("mlp_only_layers") or []
    return [layer not in dense and (layer + 1) % step == 0 for layer in range(num_layers)]
