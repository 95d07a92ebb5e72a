"""Adapters of the native executor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from windlass.late_numpy import np
from windlass.native import _core
from windlass.program.adapter import LowRank, PackedAdapter, Update, check_update, linear_shapes
from windlass.program.program import Program
from windlass.quantization import Format, Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray


class NativeAdapter:
    """An adapter in the kernels' layout, in memory of its own; implements ``PackedAdapter``."""

    def __init__(self, executor: _core.Executor, program: Program, updates: Iterable[Update]) -> None:
        """See ``Executor.pack_adapter``."""
        shapes = linear_shapes(program)
        indices = {spec.name: index for index, spec in enumerate(program.weights)}
        self.core = executor.make_adapter()
        for name, pieces in updates:
            check_update(shapes, name, pieces)
            self._pack(indices[name], pieces)

    def _pack(self, weight: int, pieces: Sequence[LowRank]) -> None:
        a = _stacked([piece.a for piece in pieces])
        self.core.set_a(weight, a.format.value, a.data)
        rank = 0
        for piece in pieces:
            self.core.add_piece(weight, piece.first_row, rank, piece.scale, piece.b.format.value, piece.b.data)
            rank += piece.b.shape[1]

    @property
    def nbytes(self) -> int:
        """Memory that it takes; 0 once closed."""
        return self.core.nbytes

    def close(self) -> None:
        """Free its memory, at the end of a ``run`` that uses it. Idempotent; from any thread."""
        self.core.close()


def sequence_adapters(adapters: Sequence[PackedAdapter | None]) -> tuple[tuple[_core.Adapter, ...], NDArray[np.int32]]:
    """Return the adapters of a batch, each once, and which of them each sequence has, -1 for none.

    Raises:
        ValueError: one is of another kind of executor.
    """
    cores: list[_core.Adapter] = []
    found: dict[int, int] = {}
    indices = []
    for adapter in adapters:
        if adapter is None:
            indices.append(-1)
            continue
        if not isinstance(adapter, NativeAdapter):
            raise ValueError("adapters has one of another executor")
        if id(adapter) not in found:
            found[id(adapter)] = len(cores)
            cores.append(adapter.core)
        indices.append(found[id(adapter)])
    return tuple(cores), np.array(indices, dtype=np.int32)


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """The rows of one tensor below those of the next, as float32 where their formats differ."""
    if len(parts) == 1:
        return parts[0]
    shape = (sum(part.shape[0] for part in parts), parts[0].shape[1])
    if len({part.format for part in parts}) > 1:
        return Tensor(Format.F32, shape, np.concatenate([part.dequantize() for part in parts]))
    return Tensor(parts[0].format, shape, np.concatenate([part.data for part in parts]))
