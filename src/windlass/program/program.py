"""A model as data: operations over named weights and numbered buffers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from windlass.late_numpy import np
from windlass.program.ops import HiddenStates, Op

if TYPE_CHECKING:
    from numpy.typing import NDArray


class RopeTable(Protocol):
    """A rotary embedding: angles for every position, whatever scaling made them."""

    def cos_sin(self, positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return cos and sin, each float32 [positions, rotary_dim / 2], for positions 0 .. positions - 1."""
        ...


class FrequencyTable(ABC):
    """A rotary embedding whose angles are the position times a frequency for each pair.

    They are rounded to float32, as transformers has them, and their cosines and sines correctly.
    """

    __slots__ = ()

    @abstractmethod
    def frequencies(self) -> Sequence[float]:
        """Return the frequencies, rotary_dim / 2 of them, rounded to float32."""

    def cos_sin(self, positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See ``RopeTable``."""
        return tabulated(np.arange(positions), np.array(self.frequencies(), dtype=np.float32))


def tabulated(
    positions: NDArray[np.integer], frequencies: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines of the angles: these in float32, as transformers has them, the others correctly rounded."""
    angles = positions[:, None].astype(np.float32) * frequencies
    cos, sin = np.empty_like(angles), np.empty_like(angles)
    np.cos(angles, out=cos, dtype=np.float64, casting="same_kind")
    np.sin(angles, out=sin, dtype=np.float64, casting="same_kind")
    return cos, sin


@dataclass(frozen=True, slots=True)
class RowOrder:
    """Which rows of a stored tensor a weight takes, and in which order.

    The rows are ``groups`` equal runs; of each run ``slices``, each (start, stop, step) as of a Python slice, are taken
    one after the other. ``RowOrder(heads, EVEN_THEN_ODD)`` turns heads whose rotation pairs neighbours into heads whose
    rotation pairs their halves.
    """

    groups: int
    slices: tuple[tuple[int, int | None, int], ...]

    def indices(self, rows: int) -> NDArray[np.int64]:
        """Return the numbers of the rows taken, of a tensor that has ``rows``.

        Raises:
            ValueError: ``rows`` is not a multiple of ``groups``.
        """
        if rows % self.groups:
            raise ValueError(f"{rows} rows are not {self.groups} equal runs")
        run = np.arange(rows // self.groups)
        taken = np.concatenate([run[start:stop:step] for start, stop, step in self.slices])
        indices: NDArray[np.int64] = (np.arange(self.groups)[:, None] * len(run) + taken).ravel()
        return indices


EVEN_THEN_ODD = ((0, None, 2), (1, None, 2))


@dataclass(frozen=True, slots=True)
class Part:
    """A Hugging Face tensor that a weight is made of, and what happens to it first.

    The rows that ``matrices`` takes become matrices of their own, one of each run; what is quantized in its file
    becomes float32 by that. ``transposed`` swaps the last two axes; a tensor with three axes then becomes a matrix with
    the rows of all; ``rows`` are taken of what that gives, and ``plus`` is added to every number.
    ``num_rows`` are those that a linear weight gets of the tensor, where it has several parts: without that no adapter
    can be for one of them.
    """

    name: str
    rows: RowOrder | None = None
    transposed: bool = False
    plus: float = 0.0
    matrices: RowOrder | None = None
    num_rows: int | None = None


@dataclass(frozen=True, slots=True)
class WeightSpec:
    """A weight the program needs.

    ``name`` is the program's name of it, and its name in an MLC directory (without the quantization suffixes).
    ``parts`` are the stored tensors whose rows, one part below the other, make it up.
    ``shape`` is [K] or [N, K]. ``role`` decides what quantization schemes do with it: ``linear``, ``experts``,
    ``embedding`` and ``head`` are matrices that may be quantized; ``router`` (small matrices that decide) and ``plain``
    (vectors, and matrices that MLC keeps as they are) never are. The rows of ``experts`` > 1 equal matrices are
    stacked, which files may keep as three axes. With ``mlc_as_stored`` an MLC directory has the rows of the one tensor
    that the parts are taken from in their order there.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    role: str = "linear"
    experts: int = 1
    mlc_as_stored: bool = False


@dataclass(frozen=True, slots=True)
class Program:
    """An immutable forward pass. Executors run it; they never change it.

    Invariants, checked by the builder: operations come in execution order, each reads only what an earlier one wrote,
    ``Logits`` or ``HiddenStates`` is last; every weight that an operation names is in ``weights`` with a fitting
    shape, and every weight in ``weights`` is used; all layers of one program have the same num_kv_heads and head_dim.
    """

    ops: tuple[Op, ...]
    weights: tuple[WeightSpec, ...]
    buffer_widths: tuple[int, ...]
    ropes: tuple[RopeTable, ...]
    num_layers: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int

    @property
    def output_width(self) -> int:
        """Columns of a step's result."""
        last = self.ops[-1]
        return last.x.width if isinstance(last, HiddenStates) else self.vocab_size
