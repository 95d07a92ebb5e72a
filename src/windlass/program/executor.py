"""What an executor is: the door between the engine and whatever computes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from windlass.late_numpy import np
from windlass.program.adapter import PackedAdapter, Update

if TYPE_CHECKING:
    from numpy.typing import NDArray

PAGE_SIZE = 16
"""Tokens in one page of the KV cache."""

Indices: TypeAlias = Any
"""An int32 vector: an array of numpy, or ``array("i")`` of the standard library."""

Rows: TypeAlias = Any
"""A float32 matrix: an array of numpy, or a memoryview."""

KVDtype: TypeAlias = Literal["f32", "f16", "bf16", "int16", "int8"]
"""What keys and values are stored as."""


class StepCancelledError(Exception):
    """``Executor.run`` was cut short by ``cancel``; it may be run again: KV writes go to fixed positions."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One step's work: T tokens of S sequences, a ragged batch. All arrays are contiguous int32.

    Sequence s owns tokens ``token_starts[s] .. token_starts[s + 1]``, at consecutive positions, and pages
    ``page_ids[page_starts[s] .. page_starts[s + 1]]``: its position p is stored in slot ``p % PAGE_SIZE`` of page
    ``page_ids[page_starts[s] + p // PAGE_SIZE]``. Pages up to the sequence's last position of this step are present.
    """

    token_ids: Indices
    """[T], each in 0 .. vocab_size - 1."""
    positions: Indices
    """[T], counted from 0 in each sequence."""
    token_starts: Indices
    """[S + 1], ascending, from 0 to T."""
    page_ids: Indices
    """[P], each in 0 .. num_pages - 1."""
    page_starts: Indices
    """[S + 1], ascending, from 0 to P."""
    logit_rows: Indices
    """[R], the tokens (indices into ``token_ids``) whose logits are wanted."""
    adapters: tuple[PackedAdapter | None, ...] = ()
    """[S], what ``pack_adapter`` made of each sequence's adapter, None where it has none; empty when none has any."""
    borrows_result: bool = False
    """The result may lie in memory of the executor, which the next step overwrites, and need not be of numpy."""


class Executor(Protocol):
    """Runs one program over one KV cache. ``run`` is called by one thread at a time; ``cancel`` by any."""

    def run(self, batch: Batch) -> Rows:
        """Run one forward step and return its result, float32 [R, output_width]: logits, or hidden states.

        Raises:
            StepCancelledError: ``cancel`` was called since the step began (or since the last ``run`` returned).
            ValueError: the batch breaks a rule of ``Batch`` or is larger than the executor was built for.
        """
        ...

    def pack_adapter(self, updates: Iterable[Update]) -> PackedAdapter:
        """Bring an adapter into the layout of this executor, for batches to name. From any thread, also during ``run``.

        Args:
            updates: for each weight that it adds to; taken one by one. Tensors are not kept.

        Raises:
            ValueError: an update does not fit the program, or comes twice.
            MemoryError: there is not enough memory.
        """
        ...

    def cancel(self) -> None:
        """Make the ``run`` in progress, or else the next one, raise ``StepCancelledError`` soon. Never blocks."""
        ...

    def clear_cancel(self) -> None:
        """Forget a ``cancel`` that no ``run`` has consumed."""
        ...

    @property
    def progress(self) -> int:
        """A counter that grows while ``run`` makes progress; readable from any thread."""
        ...

    def close(self) -> None:
        """Free threads, weights and KV cache now. Idempotent; not to be called during ``run``."""
        ...


def check_batch(batch: Batch, *, vocab_size: int, num_pages: int, max_tokens: int, max_positions: int) -> Batch:
    """Hold a batch to the rules of ``Batch``, to one token at least per sequence, and to an executor's limits.

    Returns:
        The batch with all vectors as arrays of numpy.

    Raises:
        ValueError: a rule is broken; the message names the array.
    """
    vectors = [field.name for field in fields(Batch) if field.name not in ("adapters", "borrows_result")]
    arrays: dict[str, Any] = {name: np.asarray(getattr(batch, name)) for name in vectors}
    batch = replace(batch, **arrays)
    for name, array in arrays.items():
        if array.dtype != np.int32 or array.ndim != 1 or not array.flags.c_contiguous:
            raise ValueError(f"{name} is {array.dtype} {list(array.shape)}, which must be contiguous int32, one axis")
    tokens = len(batch.token_ids)
    if not 1 <= tokens <= max_tokens:
        raise ValueError(f"a batch of {tokens} tokens; this executor takes 1 to {max_tokens}")
    if len(batch.positions) != tokens:
        raise ValueError(f"{len(batch.positions)} positions for {tokens} token_ids")
    _check_range("token_ids", batch.token_ids, vocab_size)
    _check_range("positions", batch.positions, max_positions)
    _check_range("page_ids", batch.page_ids, num_pages)
    _check_range("logit_rows", batch.logit_rows, tokens)
    _check_starts("token_starts", batch.token_starts, tokens)
    _check_starts("page_starts", batch.page_starts, len(batch.page_ids))
    if len(batch.token_starts) != len(batch.page_starts):
        raise ValueError("token_starts and page_starts speak of different numbers of sequences")
    if batch.adapters and len(batch.adapters) != len(batch.token_starts) - 1:
        raise ValueError(f"{len(batch.adapters)} adapters for {len(batch.token_starts) - 1} sequences")
    sequence = np.repeat(np.arange(len(batch.token_starts) - 1), np.diff(batch.token_starts))
    steps = np.diff(batch.positions)[sequence[1:] == sequence[:-1]]
    if not np.all(steps == 1):
        raise ValueError("the positions of a sequence are not consecutive")
    last_positions = batch.positions[batch.token_starts[1:] - 1]
    if not np.all(np.diff(batch.page_starts) > last_positions // PAGE_SIZE):
        raise ValueError("page_ids do not reach the last position of every sequence")
    pages = batch.page_ids[batch.page_starts[sequence] + batch.positions // PAGE_SIZE].astype(np.int64)
    if len(np.unique(pages * PAGE_SIZE + batch.positions % PAGE_SIZE)) != tokens:
        raise ValueError("two tokens of the batch would be stored in the same slot of page_ids")
    return batch


def _check_range(name: str, array: NDArray[np.int32], end: int) -> None:
    if len(array) and not (array.min() >= 0 and array.max() < end):
        raise ValueError(f"{name} has values from {array.min()} to {array.max()}, which must lie in 0 .. {end - 1}")


def _check_starts(name: str, starts: NDArray[np.int32], end: int) -> None:
    if len(starts) < 2 or starts[0] != 0 or starts[-1] != end or not np.all(np.diff(starts) > 0):
        raise ValueError(f"{name} must ascend from 0 to {end}, with something in every sequence")
