from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Value = tuple[int, int, int]
_Indices = Any  # int32
_Rows = Any  # float32, two axes

def cpu_features() -> list[str]: ...
def default_thread_count() -> int: ...
def available_kernels() -> list[str]: ...
def kv_bytes_per_page(num_layers: int, num_kv_heads: int, head_dim: int, kv_dtype: str) -> int: ...
def quantize(
    format: str,  # noqa: A002
    data: NDArray[Any],
    codes: NDArray[np.uint8],
    scales: NDArray[Any],
    *,
    bits: int,
    group: int,
    rounding: str,
    num_threads: int,
) -> bool: ...

class BpeEncoder:
    def __init__(self, tables: dict[str, memoryview[Any]], *, normalizes: bool) -> None: ...
    def encode(self, text: str, /) -> list[int]: ...

def uniform(seed: int, choice: int, position: int) -> float: ...

class SequenceSampler:
    def __init__(
        self,
        *,
        temperature: float,
        top_p: float,
        top_k: int,
        min_p: float,
        presence_penalty: float,
        frequency_penalty: float,
        repetition_penalty: float,
        logit_bias: Sequence[tuple[int, float]],
        seed: int,
        choice: int,
    ) -> None: ...
    def note_prompt(self, token_ids: Sequence[int], /) -> None: ...
    def note_generated(self, token_ids: Sequence[int], /) -> None: ...

class RowSampler:
    def __init__(self, *, active_vocab_size: int, kernels: str) -> None: ...
    def sample_rows(
        self,
        logits: _Rows,
        rows: Sequence[tuple[SequenceSampler, int, int, NDArray[np.int32] | None]],
        executor: Executor | None,
    ) -> list[tuple[int, float, list[tuple[int, float]]]]: ...

class Program:
    def __init__(
        self, *, num_ropes: int, num_layers: int, num_kv_heads: int, head_dim: int, vocab_size: int
    ) -> None: ...
    def add_buffer(self, width: int, /) -> None: ...
    def add_weight(self, name: str, rows: int, columns: int, is_vector: bool, /) -> None: ...
    def embed(self, out: _Value, table: int, /) -> None: ...
    def embed_position(self, out: _Value, table: int, /) -> None: ...
    def rms_norm(self, out: _Value, x: _Value, weight: int, eps: float, /) -> None: ...
    def layer_norm(self, out: _Value, x: _Value, weight: int, bias: int, eps: float, /) -> None: ...
    def head_norm(self, x: _Value, weight: int, head_dim: int, eps: float, centered: bool, /) -> None: ...
    def linear(self, out: _Value, x: _Value, weight: int, bias: int, /) -> None: ...
    def head_linear(self, out: _Value, x: _Value, weight: int, num_heads: int, /) -> None: ...
    def join_heads(self, out: _Value, left: _Value, right: _Value, num_heads: int, /) -> None: ...
    def rope(self, x: _Value, table: int, head_dim: int, rotary_dim: int, /) -> None: ...
    def write_kv(self, layer: int, k: _Value, v: _Value, /) -> None: ...
    def attention(
        self,
        out: _Value,
        q: _Value,
        layer: int,
        num_heads: int,
        scale: float,
        window: int,
        chunk: int,
        softcap: float,
        sinks: int,
        causal: bool,
        /,
    ) -> None: ...
    def activation(self, out: _Value, x: _Value, kind: str, /) -> None: ...
    def gated_activation(self, out: _Value, x: _Value, kind: str, /) -> None: ...
    def route(
        self,
        out: _Value,
        x: _Value,
        top_k: int,
        sigmoid: bool,
        normalize: bool,
        scale: float,
        bias: int,
        num_groups: int,
        top_groups: int,
        top2_sum: bool,
        /,
    ) -> None: ...
    def experts(
        self,
        out: _Value,
        x: _Value,
        shares: _Value,
        gate_up: int,
        down: int,
        kind: str,
        gate_up_bias: int,
        down_bias: int,
        scale_input: bool,
        /,
    ) -> None: ...
    def add(self, x: _Value, y: _Value, /) -> None: ...
    def add_bias(self, x: _Value, bias: int, /) -> None: ...
    def scale(self, x: _Value, factor: float, /) -> None: ...
    def sigmoid_gate(self, x: _Value, gate: _Value, /) -> None: ...
    def logits(self, x: _Value, weight: int, softcap: float, /) -> None: ...
    def hidden_states(self, x: _Value, /) -> None: ...

class Adapter:
    def set_a(self, weight: int, format: str, data: NDArray[Any]) -> None: ...  # noqa: A002
    def add_piece(
        self,
        weight: int,
        first_row: int,
        first_rank: int,
        scale: float,
        format: str,  # noqa: A002
        data: NDArray[Any],
    ) -> None: ...
    def close(self) -> None: ...
    @property
    def nbytes(self) -> int: ...

class Executor:
    def __init__(
        self,
        program: Program,
        *,
        num_pages: int,
        max_tokens: int,
        max_positions: int,
        num_threads: int,
        kv_dtype: str,
        kernels: str,
        threads_of: Executor | None,
    ) -> None: ...
    def set_weight(
        self,
        index: int,
        format: str,  # noqa: A002
        rows: int,
        columns: int,
        data: NDArray[Any],
        group: int,
        scales: NDArray[Any] | None,
        zeros: NDArray[Any] | None,
        minima: NDArray[Any] | None = None,
        superblock: int = 0,
        scale_factors: NDArray[Any] | None = None,
        minimum_factors: NDArray[Any] | None = None,
        order: NDArray[np.int32] | None = None,
    ) -> None: ...
    def map_weights(self, descriptor: int, identity: bytes) -> bool: ...
    def num_pieces(self) -> int: ...
    def write_piece(self, descriptor: int, index: int) -> None: ...
    def write_header(self, descriptor: int, identity: bytes) -> None: ...
    def set_rope_frequencies(self, index: int, frequencies: array[float]) -> None: ...
    def set_rope(self, index: int, cos: NDArray[np.float32], sin: NDArray[np.float32]) -> None: ...
    def run(
        self,
        token_ids: _Indices,
        positions: _Indices,
        token_starts: _Indices,
        page_ids: _Indices,
        page_starts: _Indices,
        logit_rows: _Indices,
        result: _Rows,
        adapters: tuple[Adapter, ...] = (),
        sequence_adapters: _Indices | None = None,
    ) -> bool: ...
    def make_adapter(self) -> Adapter: ...
    def cancel(self) -> None: ...
    def clear_cancel(self) -> None: ...
    def close(self) -> None: ...
    @property
    def progress(self) -> int: ...
    @property
    def num_threads(self) -> int: ...
    @property
    def kernels(self) -> str: ...
    @property
    def kv_cache_bytes(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...
