"""What MLC directories of Qwen's models have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from windlass.models.family import MlcDialect

_WINDOW_KEYS = ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")

MIXTURE_FIELDS = (
    "moe_intermediate_size",
    "num_experts_per_tok",
    "num_experts",
    "decoder_sparse_step",
    "norm_topk_prob",
)
"""What is always written of a mixture of experts."""


def qwen_mlc(*fields: str, optional: tuple[str, ...] = (), prefill_chunk_size: int = 8192) -> MlcDialect:
    """Return the dialect of a Qwen that always writes ``fields``; see ``MlcDialect``."""
    constants = {"hidden_act": "silu", "dtype": "float32"}
    return MlcDialect(
        fields=fields, optional=optional, constants=constants, prefill_chunk_size=prefill_chunk_size, write=_write
    )


def _write(mlc: dict[str, Any], hf: Mapping[str, Any]) -> None:
    if "num_local_experts" in hf:  # as transformers 5 calls those of Qwen3
        mlc.setdefault("num_experts", hf["num_local_experts"])
    if hf.get("use_sliding_window"):
        mlc.update({key: hf[key] for key in _WINDOW_KEYS if key in hf})
