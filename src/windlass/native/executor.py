"""The native executor: a program translated once, then one call into C++ per step."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from windlass.errors import EngineForkedError
from windlass.late_numpy import np
from windlass.native import _core
from windlass.native.adapter import NativeAdapter, sequence_adapters
from windlass.native.translation import translate
from windlass.program.adapter import Update
from windlass.program.executor import Batch, Indices, KVDtype, Rows, StepCancelledError
from windlass.program.program import FrequencyTable, Program, WeightSpec
from windlass.quantization import Tensor


@dataclass(frozen=True, slots=True)
class PackFile:
    """An open file that ``NativeExecutor.write_weights`` made, perhaps in another process, perhaps damaged since.

    ``descriptor`` is needed during the construction of an executor only. ``identity`` are 32 bytes that say what
    weights they are, to be the same as when it was written.
    """

    descriptor: int
    identity: bytes


class NativeExecutor:
    """Runs one program over one paged KV cache, on its own threads or another's; implements ``Executor``.

    It owns the packed weights, the KV cache and all buffers; ``close`` frees them at once, and ends the threads unless
    another executor has them too. ``run`` and ``close`` are called by one thread at a time (a second one gets
    ``RuntimeError``, and so does a ``run`` while another executor works on the same threads); ``cancel``,
    ``clear_cancel`` and the properties by any thread at any time, also after ``close``. In a forked child ``run``
    raises ``EngineForkedError`` and ``close`` does nothing.

    ``weights_mapped`` tells whether the weights are those of a file instead of packed memory.

    For one build, kernel table, set of weights and ``kv_dtype``, the logits of a token are the same bits whatever else
    is in the batch, however the sequence is cut into steps, and for any ``num_threads``.
    """

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
        *,
        num_pages: int,
        max_tokens: int,
        max_positions: int,
        num_threads: int | None = None,
        threads_of: NativeExecutor | None = None,
        kv_dtype: KVDtype = "f16",
        kernels: str | None = None,
        pack_file: PackFile | None = None,
    ) -> None:
        """Start the threads, reserve the KV cache and map or pack the weights.

        Args:
            program: what to run.
            weights: every weight of ``program.weights`` once, in any order. Taken one by one: each is packed, and no
                reference to it kept, before the next one is asked for. Not touched when ``pack_file`` has them.
            num_pages: pages of the KV cache. Memory is reserved now and used as pages are first written.
            max_tokens: the most tokens, and the most logit rows, of one batch.
            max_positions: the most positions of a sequence.
            num_threads: threads that work on a step, the caller of ``run`` included; by default one per physical core
                that this process may use, or as many as ``threads_of`` has.
            threads_of: the executor on whose threads to work, instead of starting any. They end when the last executor
                that works on them is closed. Of these executors one runs at a time.
            kv_dtype: how keys and values are stored; ``int16`` (codes of 14 bits) and ``int8`` have a scale per token
                and KV head, for each of the two.
            kernels: name of a kernel table (``cpu_info().kernels``); by default the best one.
            pack_file: the same weights, packed; ignored when it is damaged, or made for another layout.

        Raises:
            ValueError: a size is out of range; a weight is missing, left over, or has the wrong shape or dtypes; or
                there is no kernel table of that name.
            MemoryError: there is not enough memory.
            RuntimeError: ``threads_of`` is closed, or in use by another thread; or no thread can be started.
        """
        if num_threads is None:
            num_threads = _core.default_thread_count() if threads_of is None else threads_of.num_threads
        self._output_width = program.output_width
        self._program = program
        self._pid = os.getpid()
        self._rows = array("f")
        self._core = _core.Executor(
            translate(program),
            num_pages=num_pages,
            max_tokens=max_tokens,
            max_positions=max_positions,
            num_threads=num_threads,
            kv_dtype=kv_dtype,
            kernels=kernels or "",
            threads_of=None if threads_of is None else threads_of.core,
        )
        try:
            for index, table in enumerate(program.ropes):
                if isinstance(table, FrequencyTable):
                    self._core.set_rope_frequencies(index, array("f", table.frequencies()))
                else:
                    cos, sin = table.cos_sin(max_positions)
                    self._core.set_rope(index, np.ascontiguousarray(cos), np.ascontiguousarray(sin))
            self.weights_mapped = pack_file is not None and self._core.map_weights(
                pack_file.descriptor, pack_file.identity
            )
            if not self.weights_mapped:
                self._pack(program.weights, weights.items() if isinstance(weights, Mapping) else weights)
        except BaseException:
            self._core.close()
            raise

    def _pack(self, specs: tuple[WeightSpec, ...], weights: Iterable[tuple[str, Tensor]]) -> None:
        missing = {spec.name: index for index, spec in enumerate(specs)}
        for name, tensor in weights:
            if name not in missing:
                raise ValueError(f"the program has no weight {name}, or it was given before")
            index = missing.pop(name)
            if tensor.shape != specs[index].shape:
                raise ValueError(f"{name} has shape {list(tensor.shape)}, the program wants {list(specs[index].shape)}")
            rows, columns = (1, *tensor.shape)[-2:]
            factors = tensor.factors
            self._core.set_weight(
                index,
                tensor.format.value,
                rows,
                columns,
                tensor.data,
                tensor.group_size,
                tensor.scales,
                tensor.zeros,
                tensor.minima,
                0 if factors is None else factors.superblock,
                None if factors is None else factors.scales,
                None if factors is None else factors.minima,
                tensor.order,
            )
            del tensor
        if missing:
            raise ValueError(f"weights are missing: {', '.join(sorted(missing))}")

    def write_weights(
        self, descriptor: int, identity: bytes, *, progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Write the packed weights to an empty file, from which a ``PackFile`` maps them.

        A file that this did not finish, here or on the disk, is not taken for a whole one.

        Args:
            descriptor: open for writing; stays open.
            identity: see ``PackFile``.
            progress: told (pieces written, pieces in all); what it raises ends the writing.

        Raises:
            OSError: the file cannot be written.
            MemoryError: there is no memory for a piece.
            RuntimeError: the executor is closed, or in use by another thread.
        """
        total = self._core.num_pieces()
        for index in range(total):
            self._core.write_piece(descriptor, index)
            if progress is not None:
                progress(index + 1, total)
        os.fsync(descriptor)
        self._core.write_header(descriptor, identity)

    def run(self, batch: Batch) -> Rows:
        """Run one forward step and return the result, float32 [R, output_width]; see ``Executor.run``.

        Raises:
            StepCancelledError: ``cancel`` was called.
            ValueError: the batch breaks a rule of ``Batch`` or is larger than the executor was built for; nothing was
                written to the KV cache.
            RuntimeError: the executor is closed, or in use by another thread.
            EngineForkedError: this is a forked child.
        """
        if os.getpid() != self._pid:
            raise EngineForkedError("the executor belongs to the parent process")
        logit_rows = _indices("logit_rows", batch.logit_rows)
        shape = (len(logit_rows), self._output_width)
        # A memoryview of two axes cannot be empty.
        own = batch.borrows_result and len(logit_rows) > 0
        result = self._own_rows(shape) if own else np.empty(shape, dtype=np.float32)
        finished = self._core.run(
            _indices("token_ids", batch.token_ids),
            _indices("positions", batch.positions),
            _indices("token_starts", batch.token_starts),
            _indices("page_ids", batch.page_ids),
            _indices("page_starts", batch.page_starts),
            logit_rows,
            result,
            *(sequence_adapters(batch.adapters) if batch.adapters else ()),
        )
        if not finished:
            raise StepCancelledError("the step was cancelled")
        return result

    def _own_rows(self, shape: tuple[int, int]) -> Rows:
        """Memory for the result of one step after the other."""
        count = shape[0] * shape[1]
        if count > len(self._rows):
            self._rows = array("f", [0.0]) * count
        return memoryview(self._rows)[:count].cast("B").cast("f", shape)

    def pack_adapter(self, updates: Iterable[Update]) -> NativeAdapter:
        """Pack an adapter for the batches of this executor; see ``Executor.pack_adapter``."""
        return NativeAdapter(self._core, self._program, updates)

    def cancel(self) -> None:
        """Make the ``run`` in progress, or else the next one, raise ``StepCancelledError`` soon. Never blocks."""
        self._core.cancel()

    def clear_cancel(self) -> None:
        """Forget a ``cancel`` that no ``run`` has consumed."""
        self._core.clear_cancel()

    def close(self) -> None:
        """Free threads, weights and KV cache now. Idempotent.

        Raises:
            RuntimeError: a ``run`` is in progress; nothing was freed.
        """
        self._core.close()
        self._rows = array("f")

    @property
    def core(self) -> _core.Executor:
        """The executor's native part, for native code that works with it."""
        return self._core

    @property
    def progress(self) -> int:
        """Pieces of work done so far; grows at least every few milliseconds of a ``run``."""
        return self._core.progress

    @property
    def num_threads(self) -> int:
        """Threads that work on a step, the caller of ``run`` included."""
        return self._core.num_threads

    @property
    def kernels(self) -> str:
        """Name of the kernel table in use."""
        return self._core.kernels

    @property
    def kv_cache_bytes(self) -> int:
        """Memory reserved for keys and values; 0 once closed."""
        return self._core.kv_cache_bytes

    @property
    def weight_bytes(self) -> int:
        """Memory of the packed weights; 0 once closed."""
        return self._core.weight_bytes


def kv_bytes_per_page(program: Program, kv_dtype: KVDtype) -> int:
    """Bytes that one page of the KV cache takes, all layers together."""
    return _core.kv_bytes_per_page(program.num_layers, program.num_kv_heads, program.head_dim, kv_dtype)


def _indices(name: str, vector: Indices) -> Indices:
    try:
        view = memoryview(vector)
    except TypeError:
        view = None
    if view is None or view.format != "i" or view.ndim != 1 or not view.c_contiguous:
        raise ValueError(f"{name} must be a contiguous int32 vector")
    return vector
