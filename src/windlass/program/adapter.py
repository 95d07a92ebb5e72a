"""Low-rank adapters of a program: what is added to the products of its ``Linear`` operations (Hu et al., 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from windlass.program.ops import Linear
from windlass.program.program import Program
from windlass.quantization import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """out[:, first_row : first_row + N] += scale * (x @ a.T) @ b.T, behind a ``Linear`` that reads x and fills out.

    ``a`` is [r, K], K the width of x, and ``b`` [N, r], both of a float format.
    """

    first_row: int
    a: Tensor
    b: Tensor
    scale: float


Update: TypeAlias = tuple[str, Sequence[LowRank]]
"""The name of a weight, and all that an adapter adds to the product with it."""


class PackedAdapter(Protocol):
    """An adapter in the layout of the executor that packed it, and of no other."""

    @property
    def nbytes(self) -> int:
        """Memory that it takes; 0 once closed."""
        ...

    def close(self) -> None:
        """Free its memory, as soon as no ``run`` that has begun uses it. Idempotent; from any thread."""
        ...


def linear_shapes(program: Program) -> dict[str, tuple[int, int]]:
    """Return the weights that an adapter can add to, and the shape [N, K] of each: those of ``Linear`` operations."""
    return {op.weight: (op.out.width, op.x.width) for op in program.ops if isinstance(op, Linear)}


def check_update(shapes: Mapping[str, tuple[int, int]], name: str, pieces: Sequence[LowRank]) -> None:
    """Hold the pieces for one weight to the shapes that ``linear_shapes`` gives.

    Raises:
        ValueError: the weight is not one that an adapter can add to, or a piece does not fit it.
    """
    if name not in shapes:
        raise ValueError(f"the program has no linear weight {name}")
    rows, columns = shapes[name]
    for piece in pieces:
        if piece.a.format.grouped or piece.b.format.grouped:
            raise ValueError(f"{name}: an adapter's matrices are floats")
        if len(piece.a.shape) != 2 or len(piece.b.shape) != 2 or piece.a.shape[0] != piece.b.shape[1]:
            raise ValueError(f"{name}: {list(piece.a.shape)} and {list(piece.b.shape)} are not A [r, K] and B [N, r]")
        if not piece.a.shape[0] or not piece.b.shape[0] or piece.a.shape[1] != columns:
            raise ValueError(f"{name}: A is {list(piece.a.shape)}, it must be [r, {columns}]")
        if not 0 <= piece.first_row <= rows - piece.b.shape[0]:
            raise ValueError(f"{name}: rows {piece.first_row} to {piece.first_row + piece.b.shape[0]} of {rows}")
