"""A model as data: operations over named weights and numbered buffers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from windlass.program.ops import Op


class RopeTable(Protocol):
    """A rotary embedding: angles for every position, whatever scaling made them."""

    def cos_sin(self, positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return cos and sin, each float32 [positions, rotary_dim / 2], for positions 0 .. positions - 1."""
        ...


@dataclass(frozen=True, slots=True)
class WeightSpec:
    """A weight the program needs.

    ``name`` is the program's name of it, and its name in an MLC directory (without the quantization suffixes).
    ``parts`` are the Hugging Face tensors whose rows, one part below the other, make it up.
    ``shape`` is [K] or [N, K]. ``role`` decides what quantization schemes do with it: ``linear`` and ``embedding`` and
    ``head`` are matrices that may be quantized; ``plain`` (norms, biases) never is. ``part_rows`` are the rows of each
    part; empty when there is one part, or when only the file knows.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[str, ...]
    role: str = "linear"
    part_rows: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Program:
    """An immutable forward pass. Executors run it; they never change it.

    Invariants, checked by the builder: operations come in execution order, each reads only what an earlier one wrote,
    ``Logits`` is last; every weight that an operation names is in ``weights`` with a fitting shape, and every weight in
    ``weights`` is used; all layers of one program have the same num_kv_heads and head_dim.
    """

    ops: tuple[Op, ...]
    weights: tuple[WeightSpec, ...]
    buffer_widths: tuple[int, ...]
    ropes: tuple[RopeTable, ...]
    num_layers: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
