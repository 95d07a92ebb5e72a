"""Adapters in the executors: against weights that they are merged into, and the same bits whoever is beside (L26)."""

from __future__ import annotations

import dataclasses
import gc

import numpy as np
import pytest
from numpy.typing import NDArray

from support.native import KERNELS, KINDS, Chunk, Kind, LittleModel, bare_program, batch_of, f32_tensor
from windlass.native import NativeExecutor
from windlass.program.adapter import LowRank, PackedAdapter, Update, linear_shapes
from windlass.program.executor import Batch, Executor
from windlass.program.ops import Embed, Linear, Logits, Value
from windlass.program.program import Program
from windlass.program.reference import ReferenceExecutor
from windlass.quantization import Format, Tensor

LIMITS = {"num_pages": 24, "max_tokens": 160, "max_positions": 128}
MODEL = LittleModel()
SHAPES = linear_shapes(MODEL.program())
LENGTHS, PAGES = (45, 1, 70, 17), ([9, 2, 4], [0], [3, 1, 7, 5, 8], [11, 10])


def updates_of(seed: int, kind: Kind = KINDS[0], rank: int = 4, scale: float = 0.7) -> list[Update]:
    """An adapter of every linear weight, those of queries and values apart, with a gap between them."""
    rng = np.random.default_rng(seed)
    updates: list[Update] = []
    for name, (rows, columns) in SHAPES.items():
        parts = [(0, rows)] if not name.endswith("qkv.weight") else [(0, 120), (160, 40)]
        pieces = [
            LowRank(first, kind.tensor(rng, rank + i, columns), kind.tensor(rng, count, rank + i), scale)
            for i, (first, count) in enumerate(parts)
        ]
        updates.append((name, pieces))
    return updates


def merged(weights: dict[str, Tensor], updates: list[Update]) -> dict[str, Tensor]:
    """The weights with the adapter in them: W + scale * B A."""
    result = dict(weights)
    for name, pieces in updates:
        data = weights[name].dequantize().copy()
        for piece in pieces:
            rows = slice(piece.first_row, piece.first_row + piece.b.shape[0])
            data[rows] += np.float32(piece.scale) * (piece.b.dequantize() @ piece.a.dequantize())
        result[name] = f32_tensor(data)
    return result


def chunks() -> list[Chunk]:
    rng = np.random.default_rng(1)
    return [Chunk(rng.integers(0, 101, n).tolist(), 0, p) for n, p in zip(LENGTHS, PAGES, strict=True)]


def with_adapters(batch: Batch, *adapters: PackedAdapter | None) -> Batch:
    return dataclasses.replace(batch, adapters=adapters)


def native(model: LittleModel = MODEL, kernels: str = KERNELS[-1], threads: int = 2) -> NativeExecutor:
    return NativeExecutor(
        model.program(), model.weights(), **LIMITS, num_threads=threads, kv_dtype="f32", kernels=kernels
    )


def reference(weights: dict[str, Tensor] | None = None) -> ReferenceExecutor:
    return ReferenceExecutor(MODEL.program(), weights or MODEL.weights(), **LIMITS)


def rows_of(logits: NDArray[np.float32], sequence: int) -> NDArray[np.float32]:
    starts = np.cumsum([0, *LENGTHS])
    return logits[starts[sequence] : starts[sequence + 1]]


@pytest.mark.parametrize("kind", KINDS[:3], ids=str)
@pytest.mark.parametrize("name", ["reference", *KERNELS])
def test_an_adapter_does_what_weights_do_that_it_is_merged_into(name: str, kind: Kind) -> None:
    updates = updates_of(2, kind)
    batch = batch_of(*chunks())
    expected = reference(merged(MODEL.weights(), updates)).run(batch)
    executor: Executor = reference() if name == "reference" else native(kernels=name)
    adapter = executor.pack_adapter(updates)
    assert adapter.nbytes > 0
    logits = executor.run(with_adapters(batch, *[adapter] * 4))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert np.abs(executor.run(batch) - expected).max() > 0.1 * np.abs(expected).max()
    executor.close()


@pytest.mark.parametrize("kernels", KERNELS)
def test_each_sequence_has_its_own_adapter_or_none(kernels: str) -> None:
    first, second = updates_of(3), updates_of(4, KINDS[2], rank=3)
    batch = batch_of(*chunks())
    plain = reference().run(batch)
    of_first = reference(merged(MODEL.weights(), first)).run(batch)
    of_second = reference(merged(MODEL.weights(), second)).run(batch)
    executor = native(kernels=kernels)
    one, two = executor.pack_adapter(first), executor.pack_adapter(second)
    logits = executor.run(with_adapters(batch, one, two, None, one))
    for sequence, expected in enumerate((of_first, of_second, plain, of_first)):
        np.testing.assert_allclose(rows_of(logits, sequence), rows_of(expected, sequence), rtol=0, atol=2e-4)
    executor.close()


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(("kind", "tolerance"), [(KINDS[4], 2e-4), (KINDS[7], 3e-2)], ids=str)
def test_a_quantized_model_gives_the_adapter_what_was_not_quantized(kernels: str, kind: Kind, tolerance: float) -> None:
    model, updates, batch = LittleModel(kind=kind), updates_of(2), batch_of(*chunks())
    exact = reference(model.weights())
    expected = exact.run(with_adapters(batch, *[exact.pack_adapter(updates)] * 4))
    executor = native(model, kernels)
    logits = executor.run(with_adapters(batch, *[executor.pack_adapter(updates)] * 4))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance * np.abs(expected).max())
    executor.close()


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kind", [KINDS[0], KINDS[4], KINDS[7]], ids=str)
def test_rows_are_the_same_bits_whatever_is_beside_them(kernels: str, kind: Kind) -> None:
    """Rows without an adapter are those of an executor that never had one; rows with one are those it gives alone."""
    model = LittleModel(kind=kind)
    executor = native(model, kernels)
    work = chunks()
    plain = executor.run(batch_of(*work))
    one, two = executor.pack_adapter(updates_of(5)), executor.pack_adapter(updates_of(6, KINDS[1], rank=40))
    alone = [executor.run(with_adapters(batch_of(chunk), adapter)) for chunk in work for adapter in (one, two)]
    # Token by token, and whole.
    pieces = [
        executor.run(with_adapters(batch_of(Chunk(work[2].tokens[i : i + 1], i, work[2].pages)), one))
        for i in range(70)
    ]
    np.testing.assert_array_equal(np.concatenate(pieces), alone[4])
    for threads in (1, 2, 3):
        other = native(model, kernels, threads)
        packed = [other.pack_adapter(updates_of(5)), other.pack_adapter(updates_of(6, KINDS[1], rank=40)), None]
        for chosen in ((0, 2, 1, 2), (1, 0, 2, 1), (2, 1, 0, 0), (2, 2, 2, 2)):
            logits = other.run(with_adapters(batch_of(*work), *(packed[i] for i in chosen)))
            for sequence, which in enumerate(chosen):
                expected = rows_of(plain, sequence) if which == 2 else alone[2 * sequence + which]
                np.testing.assert_array_equal(rows_of(logits, sequence), expected)
        other.close()
    executor.close()


def wide_program(columns: int, rows: int, tokens: int) -> tuple[Program, dict[str, Tensor]]:
    """logits[t] = the product of row t of a table with a matrix [rows, columns]."""
    rng = np.random.default_rng(5)
    weights = {
        "x": f32_tensor(rng.standard_normal((tokens, columns), dtype=np.float32)),
        "w": f32_tensor(rng.standard_normal((rows, columns), dtype=np.float32)),
        "one": f32_tensor(np.eye(tokens, rows, dtype=np.float32)),
    }
    x, y = Value(0, 0, columns), Value(1, 0, rows)
    return bare_program([Embed(x, "x"), Linear(y, x, "w"), Logits(y, "one")], weights, [columns, rows], tokens), weights


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("columns", [1024, 1025, 3000])
def test_wide_inputs_are_summed_in_parts(kernels: str, columns: int) -> None:
    rows, tokens, rng = 100, 100, np.random.default_rng(6)
    program, weights = wide_program(columns, rows, tokens)
    pieces = [
        LowRank(first, KINDS[2].tensor(rng, rank, columns), KINDS[1].tensor(rng, count, rank), 0.5)
        for first, count, rank in ((3, 50, 20), (53, 40, 17))
    ]
    expected = weights["x"].data @ merged(weights, [("w", pieces)])["w"].data.T
    plain = weights["x"].data @ weights["w"].data.T
    outputs = []
    for threads in (1, 3):
        executor = NativeExecutor(
            program, weights, num_pages=8, max_tokens=tokens, max_positions=128, num_threads=threads, kernels=kernels
        )
        adapter = executor.pack_adapter([("w", pieces)])
        whole = executor.run(with_adapters(batch_of(Chunk(range(tokens), 0, range(7))), adapter))
        np.testing.assert_allclose(whole, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        outputs.append(whole)
        for token in (0, 63, 64, 99):
            one = executor.run(with_adapters(batch_of(Chunk([token], 0, [7])), adapter))
            np.testing.assert_array_equal(one, whole[token : token + 1])
        several = batch_of(*(Chunk([token], 0, [token]) for token in range(8)))
        chosen = [adapter if token % 2 else None for token in range(8)]
        logits = executor.run(with_adapters(several, *chosen))
        np.testing.assert_array_equal(logits[1::2], whole[1:8:2])
        np.testing.assert_allclose(logits[::2], plain[:8:2], rtol=0, atol=1e-5 * np.abs(plain).max())
        executor.close()
    np.testing.assert_array_equal(outputs[0], outputs[1])


def test_a_closed_adapter_gives_its_memory_back_and_is_refused() -> None:
    for executor in (native(), reference()):
        adapter = executor.pack_adapter(updates_of(7))
        batch = with_adapters(batch_of(Chunk([1, 2], 0, [0])), adapter)
        executor.run(batch)
        adapter.close()
        adapter.close()
        assert adapter.nbytes == 0
        with pytest.raises(ValueError, match="closed"):
            executor.run(batch)
        executor.close()


def test_an_adapter_outlives_nothing() -> None:
    """Neither a dropped adapter nor one whose executor is closed keeps anything of it, or is kept."""
    executor = native()
    adapter = executor.pack_adapter(updates_of(8))
    executor.close()
    assert adapter.nbytes > 0
    del executor
    gc.collect()
    adapter.close()


def test_what_does_not_belong_is_refused() -> None:
    executor, other, slow = native(), native(), reference()
    batch = batch_of(Chunk([1, 2], 0, [0]))
    for foreign in (other.pack_adapter(updates_of(9)), slow.pack_adapter(updates_of(9))):
        with pytest.raises(ValueError, match="another executor"):
            executor.run(with_adapters(batch, foreign))
    with pytest.raises(ValueError, match="did not pack"):
        slow.run(with_adapters(batch, other.pack_adapter(updates_of(9))))
    mine = executor.pack_adapter([])
    for one in (executor, slow):
        with pytest.raises(ValueError, match="adapters"):
            one.run(with_adapters(batch, mine, None))
    for one in (executor, other, slow):
        one.close()


A, B = f32_tensor(np.ones((2, 72), np.float32)), f32_tensor(np.ones((72, 2), np.float32))
WIDE = f32_tensor(np.ones((2, 120), np.float32))
CODES = KINDS[3].tensor(np.random.default_rng(0), 2, 120)


@pytest.mark.parametrize(
    ("name", "pieces", "reason"),
    [
        ("embed.weight", [LowRank(0, A, B, 1.0)], "no linear weight"),
        ("nothing.weight", [LowRank(0, A, B, 1.0)], "no linear weight"),
        ("0.o.weight", [LowRank(0, A, B, 1.0)], r"A is \[2, 72\], it must be \[r, 120\]"),
        ("0.o.weight", [LowRank(1, WIDE, B, 1.0)], "rows 1 to 73 of 72"),
        ("0.o.weight", [LowRank(-1, WIDE, B, 1.0)], "rows -1 to 71 of 72"),
        ("0.o.weight", [LowRank(0, WIDE, WIDE, 1.0)], "are not A"),
        ("0.o.weight", [LowRank(0, CODES, B, 1.0)], "floats"),
    ],
)
def test_an_update_that_does_not_fit_is_refused(name: str, pieces: list[LowRank], reason: str) -> None:
    for executor in (native(), reference()):
        with pytest.raises(ValueError, match=reason):
            executor.pack_adapter([(name, pieces)])
        executor.close()


def test_an_update_may_not_come_twice() -> None:
    twice = [updates_of(1)[0]] * 2
    for executor in (native(), reference()):
        with pytest.raises(ValueError, match="updated twice"):
            executor.pack_adapter(twice)
        executor.close()


def test_the_native_core_checks_for_itself() -> None:
    executor = native()
    core = executor.core.make_adapter()
    good, codes = np.ones((3, 72), np.float32), np.ones((3, 72), np.int8)
    for arguments, reason in (
        ((0, "f32", good), "no linear weight"),
        ((99, "f32", good), "no linear weight"),
        ((-1, "f32", good), "no linear weight"),
        ((2, "f32", good[:, :70]), "does not fit its weight"),
        ((2, "f16", good), "wrong dtype"),
        ((2, "int8", codes), "floats"),
        ((2, "f32", good[:0]), "empty"),
        ((2, "f32", np.ones((300, 72), np.float32)), "at most 208 are possible"),
    ):
        with pytest.raises(ValueError, match=reason):
            core.set_a(*arguments)
    b = np.ones((200, 3), np.float32)
    with pytest.raises(ValueError, match="before A"):
        core.add_piece(2, 0, 0, 1.0, "f32", b)
    core.set_a(2, "f32", good)
    for first_row, first_rank, piece, reason in (
        (1, 0, b, "does not fit its weight"),
        (-1, 0, b, "does not fit its weight"),
        (0, 1, b, "does not fit A"),
        (0, -1, b, "does not fit A"),
        (0, 0, np.ones((200, 4), np.float32), "does not fit A"),
    ):
        with pytest.raises(ValueError, match=reason):
            core.add_piece(2, first_row, first_rank, 1.0, "f32", piece)
    core.close()
    with pytest.raises(ValueError, match="closed"):
        core.set_a(2, "f32", good)
    executor.close()


def test_format_of_a_stack_of_several() -> None:
    """A of queries in one format and of values in another: both count as they are."""
    rng = np.random.default_rng(3)
    name = "0.qkv.weight"
    pieces = [
        LowRank(0, KINDS[1].tensor(rng, 2, 72), KINDS[0].tensor(rng, 120, 2), 1.0),
        LowRank(120, KINDS[2].tensor(rng, 2, 72), KINDS[1].tensor(rng, 40, 2), -1.0),
    ]
    assert {piece.a.format for piece in pieces} == {Format.F16, Format.BF16}
    executor, batch = native(), batch_of(*chunks())
    expected = reference(merged(MODEL.weights(), [(name, pieces)])).run(batch)
    logits = executor.run(with_adapters(batch, *[executor.pack_adapter([(name, pieces)])] * 4))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    executor.close()
