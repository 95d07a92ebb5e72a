"""Threads, memory, cancelling, bad input, forks: what the lifecycle contract asks of the native executor."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from support.native import KERNELS, KINDS, Chunk, LittleModel, bare_program, batch_of, f32_tensor, int32, single
from windlass.native import NativeExecutor, cpu_info
from windlass.program.executor import Batch, StepCancelledError
from windlass.program.ops import Embed, Linear, Logits, Value
from windlass.quantization import Format, Tensor

LIMITS = {"num_pages": 8, "max_tokens": 32, "max_positions": 64}
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def make(**changes: Any) -> NativeExecutor:
    model = LittleModel()
    return NativeExecutor(model.program(), model.weights(), **{**LIMITS, "num_threads": 2, **changes})


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def worker_threads() -> int:
    names = []
    for task in Path("/proc/self/task").iterdir():
        try:
            names.append((task / "comm").read_text().strip())
        except OSError:  # it ended meanwhile
            continue
    return names.count("windlass-worker")


def ones(rows: int, columns: int) -> Tensor:
    """A large weight that takes no memory before it is packed."""
    return Tensor(Format.F32, (rows, columns), np.broadcast_to(np.float32(1 / columns), (rows, columns)))


SIZE = 2048


def big_executor(operations: int, tokens: int, **changes: Any) -> NativeExecutor:
    """Seconds of work: the same product again and again."""
    weights = {"table": ones(16, SIZE), "w": ones(SIZE, SIZE)}
    values = [Value(i, 0, SIZE) for i in range(operations + 1)]
    ops = [Embed(values[0], "table"), *(Linear(values[i + 1], values[i], "w") for i in range(operations))]
    program = bare_program([*ops, Logits(values[-1], "table")], weights, [SIZE] * (operations + 1), 16)
    limits = {"num_pages": tokens // 16, "max_tokens": tokens, "max_positions": tokens}
    return NativeExecutor(program, weights, **{**limits, "num_threads": 2, **changes})


def long_batch(tokens: int) -> Batch:
    return batch_of(Chunk([1] * tokens, 0, range(tokens // 16)), rows=[tokens - 1])


class Runner(threading.Thread):
    """Runs one batch in a thread and keeps what came of it."""

    def __init__(self, executor: NativeExecutor, batch: Batch) -> None:
        super().__init__(daemon=True)
        self.executor, self.batch = executor, batch
        self.logits: NDArray[np.float32] | None = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.logits = self.executor.run(self.batch)
        except BaseException as error:
            self.error = error


def test_cancel_stops_a_run_and_the_next_one_works() -> None:
    executor = big_executor(operations=400, tokens=512)
    runner = Runner(executor, long_batch(512))
    wait_until(lambda: executor.progress > 10)
    begin = time.monotonic()
    executor.cancel()
    runner.join(timeout=30)
    assert isinstance(runner.error, StepCancelledError)
    assert time.monotonic() - begin < 2  # the whole run takes far longer
    assert executor.run(single([1])).shape == (1, 16)
    executor.close()


def test_cancel_is_seen_inside_one_large_product() -> None:
    executor = big_executor(operations=1, tokens=8192)
    lookups, pieces = 8192, (SIZE // 64) * (8192 // 64)
    begun = executor.progress
    runner = Runner(executor, long_batch(8192))
    wait_until(lambda: executor.progress > begun + lookups)
    executor.cancel()
    runner.join(timeout=30)
    assert isinstance(runner.error, StepCancelledError)
    assert executor.progress < begun + lookups + pieces
    executor.close()


def test_a_pending_cancel_stops_the_next_run_once() -> None:
    executor = make()
    executor.cancel()
    with pytest.raises(StepCancelledError):
        executor.run(single([1, 2]))
    executor.run(single([1, 2]))
    executor.cancel()
    executor.clear_cancel()
    executor.run(single([1, 2]))
    executor.close()


def test_a_cancelled_step_leaves_nothing_behind() -> None:
    executor = make()
    expected = executor.run(single(range(30)))
    for pieces in range(20):
        begun = executor.progress
        runner = Runner(executor, single(range(30)))
        wait_until(lambda begun=begun, pieces=pieces: executor.progress >= begun + pieces)
        executor.cancel()
        runner.join(timeout=30)
        executor.clear_cancel()
        np.testing.assert_array_equal(executor.run(single(range(30))), expected)
    executor.close()


def test_progress_grows_during_a_run() -> None:
    executor = big_executor(operations=100, tokens=512)
    runner = Runner(executor, long_batch(512))
    for _ in range(5):
        seen = executor.progress
        wait_until(lambda seen=seen: executor.progress > seen)
    assert runner.is_alive()
    executor.cancel()
    runner.join(timeout=30)
    executor.close()


def test_one_run_at_a_time_and_no_close_during_it() -> None:
    executor = big_executor(operations=200, tokens=512)
    runner = Runner(executor, long_batch(512))
    wait_until(lambda: executor.progress > 10)
    with pytest.raises(RuntimeError, match="in use by another thread"):
        executor.run(single([1]))
    with pytest.raises(RuntimeError, match="in use by another thread"):
        executor.close()
    executor.cancel()
    runner.join(timeout=30)
    assert isinstance(runner.error, StepCancelledError)
    executor.close()


def test_close_is_idempotent_and_later_runs_say_so() -> None:
    executor = make()
    assert executor.weight_bytes > 0
    assert executor.kv_cache_bytes > 0
    executor.close()
    executor.close()
    assert executor.weight_bytes == 0
    assert executor.kv_cache_bytes == 0
    with pytest.raises(RuntimeError, match="closed"):
        executor.run(single([1]))
    executor.cancel()
    executor.clear_cancel()
    assert (executor.num_threads, executor.kernels) == (2, KERNELS[-1])


@linux_only
def test_close_ends_the_threads_and_gives_the_memory_back() -> None:
    value = Value(0, 0, 4096)
    weights = {"w": ones(4096, 4096)}
    program = bare_program([Embed(value, "w"), Logits(value, "w")], weights, [4096], 4096)
    before = None
    for _ in range(3):
        executor = NativeExecutor(program, weights, **LIMITS, num_threads=3)
        executor.run(single([1]))
        wait_until(lambda: worker_threads() == 2)
        if before is not None:
            assert resident_bytes() - before > 60 << 20
        executor.close()
        wait_until(lambda: worker_threads() == 0)
        if before is not None:
            assert resident_bytes() - before < 2 << 20
        before = resident_bytes()


@linux_only
def test_dropping_an_executor_frees_it() -> None:
    executor = make(num_threads=3)
    wait_until(lambda: worker_threads() == 2)
    del executor
    wait_until(lambda: worker_threads() == 0)


@linux_only
@pytest.mark.parametrize("first_to_close", [0, 1])
def test_executors_that_share_threads_end_them_with_the_last(first_to_close: int) -> None:
    owner = make(num_threads=3)
    expected = owner.run(single(range(30)))
    pair = [owner, make(num_threads=None, threads_of=owner)]
    wait_until(lambda: worker_threads() == 2)
    for _ in range(3):
        for executor in pair:
            np.testing.assert_array_equal(executor.run(single(range(30))), expected)
    assert [executor.num_threads for executor in pair] == [3, 3]
    pair.pop(first_to_close).close()
    assert worker_threads() == 2
    np.testing.assert_array_equal(pair[0].run(single(range(30))), expected)
    pair[0].close()
    wait_until(lambda: worker_threads() == 0)


def test_executors_that_share_threads_run_one_at_a_time() -> None:
    executor = big_executor(operations=400, tokens=512)
    other, third = make(threads_of=executor), make(threads_of=executor)
    runner = Runner(executor, long_batch(512))
    wait_until(lambda: executor.progress > 10)
    with pytest.raises(RuntimeError, match="the threads are in use by another executor"):
        other.run(single([1]))
    with pytest.raises(RuntimeError, match="in use by another thread"):
        make(threads_of=executor)
    third.close()
    assert runner.is_alive()
    executor.cancel()
    runner.join(timeout=30)
    assert isinstance(runner.error, StepCancelledError)
    assert other.run(single([1])).shape == (1, 101)
    executor.close()
    other.close()


@linux_only
def test_threads_that_cannot_be_shared_are_refused() -> None:
    executor = make(num_threads=3)
    with pytest.raises(ValueError, match="num_threads must be 3, as many as there are to share, not 2"):
        make(num_threads=2, threads_of=executor)
    with pytest.raises(ValueError, match="weights are missing"):
        NativeExecutor(LittleModel().program(), {}, **LIMITS, threads_of=executor)
    wait_until(lambda: worker_threads() == 2)
    executor.run(single([1]))
    executor.close()
    with pytest.raises(RuntimeError, match="closed"):
        make(threads_of=executor)
    wait_until(lambda: worker_threads() == 0)


def failing_weights(error: BaseException) -> Iterator[tuple[str, Tensor]]:
    yield next(iter(LittleModel().weights().items()))
    raise error


@linux_only
@pytest.mark.parametrize(
    ("weights", "error"),
    [
        (dict, ValueError),
        (lambda: {**LittleModel().weights(), "more": f32_tensor(np.ones(3, dtype=np.float32))}, ValueError),
        (lambda: [*LittleModel().weights().items()] * 2, ValueError),
        (lambda: {**LittleModel().weights(), "embed.weight": ones(101, 71)}, ValueError),
        (
            lambda: {**LittleModel().weights(), "norm.weight": KINDS[3].tensor(np.random.default_rng(0), 1, 72)},
            ValueError,
        ),
        (lambda: failing_weights(KeyboardInterrupt()), KeyboardInterrupt),
    ],
    ids=["none", "left over", "twice", "shape", "quantized vector", "interrupted"],
)
def test_a_failed_construction_leaves_no_threads(weights: Callable[[], Any], error: type[BaseException]) -> None:
    with pytest.raises(error) as caught:
        NativeExecutor(LittleModel().program(), weights(), **LIMITS, num_threads=3)
    assert caught.value is not None  # the traceback, and with it the half-built executor, is alive here
    wait_until(lambda: worker_threads() == 0)


@pytest.mark.parametrize("changes", [{"num_pages": 2**31 - 1}, {"max_tokens": 2**20, "num_pages": 2**30}])
def test_too_little_memory_is_a_memory_error(changes: dict[str, int]) -> None:
    model = LittleModel(head_dim=256, kv_heads=64, heads=64, layers=60)
    taken: list[str] = []

    def weights() -> Iterator[tuple[str, Tensor]]:
        taken.append("asked")
        yield from model.weights().items()

    with pytest.raises(MemoryError):
        NativeExecutor(model.program(), weights(), **{**LIMITS, **changes})
    assert not taken


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_pages": 0}, "num_pages must be 1 to"),
        ({"max_tokens": 0}, "max_tokens must be 1 to"),
        ({"max_tokens": 2**21}, "max_tokens must be 1 to"),
        ({"max_positions": -1}, "max_positions must be 1 to"),
        ({"num_threads": 0}, "num_threads must be 1 to"),
        ({"num_threads": 100_000}, "num_threads must be 1 to"),
        ({"kernels": "abacus"}, "there are: portable"),
        ({"kv_dtype": "int3"}, "can be f32, f16, bf16, int16 or int8"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_heads_too_large_for_sums_of_codes() -> None:
    model = LittleModel(head_dim=2064)
    limits = {**LIMITS, "num_threads": 1}
    with pytest.raises(ValueError, match="at most 2048 columns"):
        NativeExecutor(model.program(), model.weights(), **limits, kv_dtype="int16")
    NativeExecutor(model.program(), model.weights(), **limits, kv_dtype="f16").close()


GOOD = {
    "token_ids": [1, 2, 3, 4, 5],
    "positions": [0, 1, 2, 17, 18],
    "token_starts": [0, 3, 5],
    "page_ids": [0, 1, 2],
    "page_starts": [0, 1, 3],
    "logit_rows": [2, 4],
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_ids": [1, 2, 3, 4, 101]}, "token_ids"),
        ({"token_ids": [-1, 2, 3, 4, 5]}, "token_ids"),
        ({"token_ids": []}, "0 tokens"),
        ({"token_ids": [1] * 33}, "33 tokens"),
        ({"token_ids": [1, 2, 3, 4]}, "5 positions for 4 token_ids"),
        ({"positions": [0, 1, 2, 17, 64]}, "positions"),
        ({"positions": [-1, 0, 1, 17, 18]}, "positions"),
        ({"positions": [0, 1, 3, 17, 18]}, "not consecutive"),
        ({"positions": [2**31 - 2, 1, 2, 17, 18]}, "positions"),
        ({"positions": [14, 15, 16, 17, 18]}, "page_ids do not reach"),
        ({"positions": [0, 1, 2, 31, 32]}, "page_ids do not reach"),
        ({"token_starts": [0, 3]}, "token_starts"),
        ({"token_starts": []}, "token_starts"),
        ({"token_starts": [0]}, "token_starts"),
        ({"token_starts": [1, 3, 5]}, "token_starts"),
        ({"token_starts": [0, 5, 3]}, "token_starts"),
        ({"token_starts": [0, 0, 5]}, "token_starts"),
        ({"token_starts": [0, 3, 4, 5]}, "different numbers of sequences"),
        ({"page_starts": [0, 1]}, "page_starts"),
        ({"page_starts": [0, 4, 3]}, "page_starts"),
        ({"page_ids": [0, 1, 8]}, "page_ids"),
        ({"page_ids": [0, 1, -1]}, "page_ids"),
        ({"page_ids": [2, 1, 2], "positions": [1, 2, 3, 17, 18]}, "same slot"),
        ({"logit_rows": [5]}, "logit_rows"),
        ({"logit_rows": [-1]}, "logit_rows"),
        ({"logit_rows": [0] * 33}, "logit_rows"),
    ],
)
def test_a_bad_batch_is_refused(changes: dict[str, list[int]], message: str) -> None:
    executor = make()
    executor.run(Batch(**{name: int32(values) for name, values in GOOD.items()}))
    with pytest.raises(ValueError, match=message):
        executor.run(Batch(**{name: int32(values) for name, values in {**GOOD, **changes}.items()}))
    executor.close()


@pytest.mark.parametrize("name", list(GOOD))
@pytest.mark.parametrize(
    "change",
    [lambda a: a.astype(np.int64), lambda a: np.repeat(a, 2)[::2], lambda a: a[None], lambda a: a.tolist()],
    ids=["int64", "strided", "matrix", "list"],
)
def test_arrays_must_be_contiguous_int32_vectors(name: str, change: Callable[[NDArray[np.int32]], Any]) -> None:
    executor = make()
    arrays: dict[str, Any] = {field: int32(values) for field, values in GOOD.items()}
    arrays[name] = change(arrays[name])
    with pytest.raises(ValueError, match=name):
        executor.run(Batch(**arrays))
    executor.close()


FORK = """
import os, sys, threading, warnings
warnings.simplefilter("ignore")
from support.native import LittleModel, single
from windlass.errors import EngineForkedError
from windlass.native import NativeExecutor

def make(threads_of=None):
    model = LittleModel()
    limits = {"num_pages": 4, "max_tokens": 32, "max_positions": 64}
    return NativeExecutor(model.program(), model.weights(), **limits, num_threads=3, threads_of=threads_of)

executor = make()
other = make(executor)
expected = executor.run(single(range(20)))
child = os.fork()
if child == 0:
    try:
        executor.run(single([1]))
    except EngineForkedError:
        pass
    else:
        os._exit(3)
    executor.close()
    own = make()
    if (own.run(single(range(20))) != expected).any():
        os._exit(4)
    own.close()
    other.close()
    del executor, other
    sys.exit(0)
_, status = os.waitpid(child, 0)
for one in executor, other:
    assert (one.run(single(range(20))) == expected).all()
    one.close()
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_a_forked_child_forgets_the_executor_and_exits() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", FORK], env=environment, timeout=60, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


EXIT = """
from support.native import LittleModel, single
from windlass.native import NativeExecutor
model = LittleModel()
executor = NativeExecutor(model.program(), model.weights(), num_pages=4, max_tokens=32, max_positions=64, num_threads=3)
executor.run(single(range(20)))
import builtins
builtins.kept = executor
"""


def test_the_interpreter_exits_silently_with_an_open_executor() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", EXIT], env=environment, timeout=60, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@linux_only
def test_default_threads_follow_the_affinity_mask() -> None:
    mask = os.sched_getaffinity(0)
    assert 1 <= cpu_info().default_threads <= len(mask)
    os.sched_setaffinity(0, {min(mask)})
    try:
        assert cpu_info().default_threads == 1
    finally:
        os.sched_setaffinity(0, mask)
