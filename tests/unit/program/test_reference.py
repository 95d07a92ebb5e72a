"""The reference executor: each operation against a formula written out here, and the rules of ``Executor``."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from support.tiny_models import CASES, program_weights
from windlass.models.registry import define_model
from windlass.program.builder import ProgramBuilder
from windlass.program.executor import Batch, StepCancelledError
from windlass.program.ops import Value
from windlass.program.program import Program
from windlass.program.reference import ReferenceExecutor
from windlass.quantization.tensor import Format, Tensor, f32_to_bf16

RNG = np.random.default_rng(7)
VOCAB, WIDTH = 11, 8


class Angles:
    """A rope table of arbitrary angles."""

    def cos_sin(self, positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        angles = np.arange(positions * 2, dtype=np.float32).reshape(positions, 2) / 3
        return np.cos(angles), np.sin(angles)


def batch_of(ids: list[int], *, start: int = 0, pages: tuple[int, ...] = (0, 1)) -> Batch:
    arrays: list[Any] = [ids, range(start, start + len(ids)), [0, len(ids)], pages, [0, len(pages)], range(len(ids))]
    return Batch(*(np.array(array, dtype=np.int32) for array in arrays))


def run_program(write: Callable[[ProgramBuilder, Value], Value], ids: list[int], **weights: Any) -> Any:
    """Run embed, what ``write`` writes, and an identity head that shows the value; return it and the embedding."""
    b = ProgramBuilder(num_layers=1, num_kv_heads=1, head_dim=4, vocab_size=VOCAB)
    x = b.embed("e", WIDTH)
    b.write_kv(0, x.columns(0, 4), x.columns(4, 4))
    b.attention(x.columns(0, 4), 0, num_heads=1)
    out = write(b, x)
    b.logits(out, "head")
    embedding = RNG.standard_normal((VOCAB, WIDTH), dtype=np.float32)
    arrays = {"e.weight": embedding, "head.weight": np.eye(VOCAB, out.width, dtype=np.float32), **weights}
    tensors = {name: Tensor(Format.F32, array.shape, array) for name, array in arrays.items()}
    executor = ReferenceExecutor(b.build(), tensors, num_pages=3, max_tokens=8, max_positions=32)
    return executor.run(batch_of(ids))[:, : out.width], embedding[ids]


def normal(*shape: int) -> NDArray[np.float32]:
    return RNG.standard_normal(shape, dtype=np.float32)


def test_embed_and_logits() -> None:
    actual, x = run_program(lambda _, x: x, [3, 1, 3])
    np.testing.assert_array_equal(actual, x)


def test_linear_with_bias() -> None:
    w, c = normal(6, WIDTH), normal(6)
    actual, x = run_program(lambda b, x: b.linear(x, "w", 6, bias=True), [1, 2], **{"w.weight": w, "w.bias": c})
    np.testing.assert_allclose(actual, [[row @ column + c[i] for i, column in enumerate(w)] for row in x], rtol=1e-5)


def test_rms_norm() -> None:
    w = normal(WIDTH)
    actual, x = run_program(lambda b, x: b.rms_norm(x, "n", 0.5), [1, 2], **{"n.weight": w})
    expected = [[v * g / np.sqrt(sum(row**2) / WIDTH + 0.5) for v, g in zip(row, w, strict=True)] for row in x]
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_head_norm_is_per_head_and_leaves_other_columns() -> None:
    w = normal(4)

    def write(b: ProgramBuilder, x: Value) -> Value:
        b.head_norm(x.columns(4, 4), "n", 0.5)
        return x

    actual, x = run_program(write, [1, 2], **{"n.weight": w})
    right = x[:, 4:]
    np.testing.assert_allclose(actual[:, :4], x[:, :4])
    expected = right * w / np.sqrt((right**2).mean(axis=1, keepdims=True) + 0.5)
    np.testing.assert_allclose(actual[:, 4:], expected, rtol=1e-5)


def test_rope_turns_pairs_half_a_head_apart() -> None:
    def write(b: ProgramBuilder, x: Value) -> Value:
        b.rope(x, b.rope_table(Angles()))
        return x

    actual, x = run_program(write, [4, 5, 6])
    cos, sin = Angles().cos_sin(3)
    for head in (0, 4):
        turned = (x[:, head : head + 2] + 1j * x[:, head + 2 : head + 4]) * (cos + 1j * sin)
        np.testing.assert_allclose(actual[:, head : head + 2], turned.real, atol=1e-6)
        np.testing.assert_allclose(actual[:, head + 2 : head + 4], turned.imag, atol=1e-6)


def test_gated_activation() -> None:
    actual, x = run_program(lambda b, x: b.gated_activation(x), [1, 2])
    gate, up = x[:, :4], x[:, 4:]
    np.testing.assert_allclose(actual, gate / (1 + np.exp(-gate)) * up, rtol=1e-5)


def test_gated_activation_of_huge_numbers() -> None:
    w = np.zeros((2, WIDTH), dtype=np.float32)
    actual, _ = run_program(
        lambda b, x: b.gated_activation(b.linear(x, "w", 2, bias=True)),
        [1],
        **{"w.weight": w, "w.bias": np.array([-1e4, 3.0], dtype=np.float32)},
    )
    np.testing.assert_array_equal(actual, [[0.0]])


def test_add() -> None:
    def write(b: ProgramBuilder, x: Value) -> Value:
        b.add(x.columns(0, 4), x.columns(4, 4))
        return x

    actual, x = run_program(write, [1, 2])
    np.testing.assert_array_equal(actual, np.hstack((x[:, :4] + x[:, 4:], x[:, 4:])))


@pytest.mark.parametrize("window", [None, 1, 3])
def test_attention_with_shared_heads_and_window(window: int | None) -> None:
    def write(b: ProgramBuilder, x: Value) -> Value:
        # Two query heads read the one head of layer 0: keys are the left columns of the embedding, values the right.
        return b.attention(b.linear(x, "q", 8), 0, num_heads=2, scale=0.7, window=window)

    w = normal(8, WIDTH)
    ids = [1, 5, 2, 8, 3]
    actual, x = run_program(write, ids, **{"q.weight": w})
    queries = (x @ w.T).reshape(len(ids), 2, 4)
    for token in range(len(ids)):
        first = 0 if window is None else max(0, token - window + 1)
        keys, values = x[first : token + 1, :4], x[first : token + 1, 4:]
        for head in range(2):
            scores = np.exp([0.7 * queries[token, head] @ key for key in keys])
            expected = (scores / scores.sum()) @ values
            np.testing.assert_allclose(actual[token, 4 * head : 4 * head + 4], expected, rtol=1e-4, atol=1e-5)


def tiny_executor(**changes: Any) -> ReferenceExecutor:
    case = CASES["llama2"]
    program = define_model("llama", case.config, Path("config.json"), dialect="hf").program
    weights = program_weights(program, case.weights())
    sizes = {"num_pages": 3, "max_tokens": 20, "max_positions": 40}
    return ReferenceExecutor(program, weights, **{**sizes, **changes})


@pytest.mark.parametrize(
    ("kv_dtype", "low", "high"), [("f16", 1e-5, 3e-3), ("bf16", 1e-4, 3e-2), ("int16", 1e-6, 1e-3)]
)
def test_keys_and_values_are_rounded_when_stored(
    kv_dtype: Literal["f16", "bf16", "int16"], low: float, high: float
) -> None:
    exact = tiny_executor().run(batch_of([5, 6, 7]))
    rounded = tiny_executor(kv_dtype=kv_dtype).run(batch_of([5, 6, 7]))
    error = np.abs(exact - rounded).max() / np.abs(exact).max()
    assert low < error < high


def test_rounding_is_to_the_stored_type() -> None:
    x = normal(2, WIDTH)
    weights = np.zeros((VOCAB, WIDTH), dtype=np.float32)
    weights[:2] = x
    b = ProgramBuilder(num_layers=1, num_kv_heads=1, head_dim=4, vocab_size=VOCAB)
    e = b.embed("e", WIDTH)
    b.write_kv(0, e.columns(0, 4), e.columns(4, 4))
    b.logits(b.attention(e.columns(0, 4), 0, num_heads=1), "head")
    head = np.eye(VOCAB, 4, dtype=np.float32)
    tensors = [(n, Tensor(Format.F32, a.shape, a)) for n, a in (("e.weight", weights), ("head.weight", head))]
    executor = ReferenceExecutor(b.build(), iter(tensors), num_pages=1, max_tokens=1, max_positions=16, kv_dtype="bf16")
    values = executor.run(batch_of([1], pages=(0,)))[0, :4]
    np.testing.assert_array_equal(values.view(np.uint32) >> 16, f32_to_bf16(x[1, 4:]))
    np.testing.assert_array_equal(values.view(np.uint32) & 0xFFFF, 0)


def test_slots_nobody_wrote_show() -> None:
    executor = tiny_executor()
    assert np.isnan(executor.run(batch_of([5], start=3))).all()


def test_logit_rows_choose_and_order() -> None:
    batch = batch_of([5, 6, 7])
    every = tiny_executor().run(batch)
    some = dataclasses.replace(batch, logit_rows=np.array([2, 0, 2], dtype=np.int32))
    np.testing.assert_allclose(tiny_executor().run(some), every[[2, 0, 2]], rtol=1e-5, atol=1e-5)


def test_bad_batches_change_nothing() -> None:
    executor = tiny_executor()
    before = executor.run(batch_of([5, 6]))
    with pytest.raises(ValueError, match="token_ids"):
        executor.run(batch_of([307]))
    with pytest.raises(ValueError, match="21 tokens"):
        executor.run(batch_of([1] * 21))
    np.testing.assert_array_equal(executor.run(batch_of([5, 6])), before)


def test_cancel_hits_the_next_run_once() -> None:
    executor = tiny_executor()
    executor.cancel()
    with pytest.raises(StepCancelledError):
        executor.run(batch_of([5]))
    assert executor.run(batch_of([5])).shape == (1, 307)


def test_a_cancel_can_be_taken_back() -> None:
    executor = tiny_executor()
    executor.cancel()
    executor.clear_cancel()
    assert executor.run(batch_of([5])).shape == (1, 307)


def test_cancel_from_another_thread_stops_a_run_that_may_be_repeated() -> None:
    executor = tiny_executor(num_pages=600, max_tokens=2000, max_positions=2000)
    ids = [1 + i % 300 for i in range(2000)]
    batch = batch_of(ids, pages=tuple(range(125)))
    raised = threading.Event()

    def run() -> None:
        try:
            executor.run(batch)
        except StepCancelledError:
            raised.set()

    thread = threading.Thread(target=run)
    thread.start()
    while executor.progress < 3 and thread.is_alive():  # it is in the middle of its operations now
        threading.Event().wait(0.001)
    executor.cancel()
    thread.join(60)
    assert raised.is_set()
    assert np.isfinite(executor.run(batch_of(ids[:20], pages=tuple(range(2))))).all()


def test_progress_grows() -> None:
    executor = tiny_executor()
    assert executor.progress == 0
    executor.run(batch_of([5]))
    first = executor.progress
    executor.run(batch_of([5]))
    assert first > 0
    assert executor.progress == 2 * first


def test_close_is_idempotent_and_final() -> None:
    executor = tiny_executor()
    executor.close()
    executor.close()
    with pytest.raises(RuntimeError, match="closed"):
        executor.run(batch_of([5]))


def small_program() -> tuple[Program, dict[str, Tensor]]:
    case = CASES["llama2"]
    program = define_model("llama", case.config, Path("config.json"), dialect="hf").program
    return program, program_weights(program, case.weights())


def test_weights_must_be_exactly_the_programs() -> None:
    program, weights = small_program()
    sizes = {"num_pages": 1, "max_tokens": 1, "max_positions": 1}
    one = weights["model.norm.weight"]
    with pytest.raises(ValueError, match=r"missing: model\.norm\.weight"):
        ReferenceExecutor(program, {k: v for k, v in weights.items() if v is not one}, **sizes)
    with pytest.raises(ValueError, match="no weight extra"):
        ReferenceExecutor(program, {**weights, "extra": one}, **sizes)
    wrong = Tensor(Format.F32, (3,), np.zeros(3, dtype=np.float32))
    with pytest.raises(ValueError, match=r"model\.norm\.weight has shape \[3\]"):
        ReferenceExecutor(program, {**weights, "model.norm.weight": wrong}, **sizes)


@pytest.mark.parametrize("size", ["num_pages", "max_tokens", "max_positions"])
def test_sizes_must_be_positive(size: str) -> None:
    with pytest.raises(ValueError, match=size):
        tiny_executor(**{size: 0})


def test_kv_dtype_must_be_known() -> None:
    with pytest.raises(ValueError, match="f32, f16, bf16"):
        tiny_executor(kv_dtype="f8")
