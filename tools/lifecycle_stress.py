"""Random histories on engines of the demo model, for a given time; what the lifecycle contract promises is checked.

    python tools/lifecycle_stress.py --seconds 60 [--seed 1] [--threads 8]

Many threads open, read, leave, abort and time out calls on both faces, with adapters and without, while adapters come
and go and engines are reset, unloaded, reloaded, drained, terminated and dropped. Checked are: every call ends exactly
once, with its whole text or with an error that belongs to what happened; nothing comes after an ending; seeded answers
are always the same; pages are conserved; threads and descriptors are back at the end of each round. Prints a report,
and exits with 1 after a violation.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import gc
import random
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from support.adapters import write_adapter
from windlass import AsyncMLCEngine, EngineConfig, EngineError, MLCEngine, RequestError

LIMIT = 60.0
PROMPTS = [
    "What is the capital of France?",
    "Tell me a story about a fox.",
    "Count from 1 to 9.",
    "You are careful. " * 8 + "What is 12 + 15?",
    "You are careful. " * 8 + "Tell me a story about a bear.",
]


class Report:
    """Counts of what happened, and violations. Shared by all threads."""

    def __init__(self) -> None:
        self.events: collections.Counter[str] = collections.Counter()
        self.violations: list[str] = []
        self.slowest: dict[str, float] = {}
        self._lock = threading.Lock()

    def count(self, event: str) -> None:
        with self._lock:
            self.events[event] += 1

    def violation(self, text: str) -> None:
        with self._lock:
            self.violations.append(text)
            print("VIOLATION", text, flush=True)

    def took(self, what: str, seconds: float) -> None:
        with self._lock:
            self.slowest[what] = max(self.slowest.get(what, 0.0), seconds)


class Round:
    """One engine, and threads that use it until it is ended."""

    def __init__(
        self, report: Report, expected: dict[Any, Any], seed: int, num_threads: int, adapters: dict[str, str]
    ) -> None:
        self.report = report
        self.expected = expected
        self.adapters = adapters
        self.random = random.Random(seed)
        self.num_threads = num_threads
        self.is_async = self.random.random() < 0.5
        kind = AsyncMLCEngine if self.is_async else MLCEngine
        self.pages = self.random.choice([12, 24, 256])
        self.engine: Any = kind(
            engine_config=EngineConfig(
                verbose=False,
                num_threads=self.random.choice([1, 2]),
                max_num_sequence=self.random.choice([1, 3, 8]),
                max_total_sequence_length=self.pages * 16,
                max_single_sequence_length=min(self.pages * 16, 512),
                prefill_chunk_size=self.random.choice([8, 64, 512]),
                max_waiting_requests=self.random.choice([4, 1024]),
                adapters=dict(list(adapters.items())[:1]),
            )
        )
        self.over = threading.Event()

    # What users do. Written once, for both faces.

    async def call(self, rng: random.Random, name: str) -> None:
        index, seed, n = rng.randrange(len(PROMPTS)), rng.randrange(3), rng.choice([1, 1, 2])
        length, lora = rng.choice([1, 8, 30]), rng.choice([None, None, *self.adapters])
        arguments: dict[str, Any] = {
            "messages": [{"role": "user", "content": PROMPTS[index]}],
            "seed": seed,
            "temperature": 1.0,
            "max_tokens": length,
            "n": n,
            "lora": lora,
        }
        how = rng.choice(["whole", "stream", "stream", "leave", "abort", "timeout", "endless"])
        if how in ("leave", "abort", "timeout", "endless"):
            n = 1
            arguments.update(max_tokens=400, debug_config={"ignore_eos": True}, n=n)
        if how == "timeout":
            arguments["timeout"] = rng.choice([0.001, 0.02])
        if how == "abort":
            arguments["request_id"] = name
        created = self.engine.chat.completions.create(stream=how != "whole", **arguments)
        opened = await created if self.is_async else created
        if how == "whole":
            texts = {choice.index: choice.message.content for choice in opened.choices}
            self.compare((index, seed, length, lora), texts, name)
            return
        texts, reasons = dict.fromkeys(range(n), ""), [0] * n
        steps = rng.randrange(6) if how in ("leave", "abort") else 10**9
        ended = False
        try:
            while True:
                try:
                    chunk = await anext(opened) if self.is_async else next(opened)
                except (StopIteration, StopAsyncIteration):
                    ended = True
                    break
                choice = chunk.choices[0]
                if reasons[choice.index]:
                    self.report.violation(f"{name}: a chunk after the last one of its choice")
                texts[choice.index] += choice.delta.content or ""
                reasons[choice.index] += choice.finish_reason is not None
                steps -= 1
                if steps < 0:
                    if how == "leave":
                        if rng.random() < 0.5:
                            await opened.aclose() if self.is_async else opened.close()
                        return
                    aborting = self.engine.abort(name)
                    if self.is_async:
                        await aborting
                    steps = 10**9
        finally:
            if ended and reasons != [1] * n:
                self.report.violation(f"{name}: ended with {reasons} finish reasons")
            after = await anext(opened, None) if self.is_async else next(opened, None)
            if after is not None and how != "leave":
                self.report.violation(f"{name}: a chunk after the ending")
        if how == "stream":
            self.compare((index, seed, length, lora), texts, name)

    def compare(self, key: tuple[int, int, int, str | None], texts: dict[int, str], name: str) -> None:
        self.report.count("compared")
        for choice, text in texts.items():
            if self.expected.setdefault((*key, choice), text) != text:
                self.report.violation(f"{name}: {text!r} instead of {self.expected[(*key, choice)]!r}")

    async def use(self, seed: int) -> None:
        rng = random.Random(seed)
        number = 0
        while not self.over.is_set():
            number += 1
            name = f"{seed}-{number}"
            started = time.monotonic()
            try:
                if self.is_async and rng.random() < 0.2:
                    task = asyncio.ensure_future(self.call(rng, name))
                    await asyncio.sleep(rng.random() * 0.02)
                    task.cancel()
                    await asyncio.wait([task])
                    outcome = "cancelled" if task.cancelled() else type(task.exception()).__name__
                    self.check(None if task.cancelled() else task.exception(), name)
                else:
                    await self.call(rng, name)
                    outcome = "ended well"
            except Exception as error:
                self.check(error, name)
                outcome = type(error).__name__
            self.report.count(outcome)
            self.report.took("call", time.monotonic() - started)

    def check(self, error: BaseException | None, name: str) -> None:
        if error is not None and not isinstance(error, (EngineError, RequestError)):
            self.report.violation(f"{name}: {error!r}")

    def start_user(self, seed: int) -> threading.Thread:
        def run() -> None:
            if self.is_async:
                asyncio.run(self.use(seed))
            else:
                # A coroutine that never waits is an ordinary function.
                try:
                    self.use(seed).send(None)
                except StopIteration:
                    return

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    # What operators do.

    def do(self, what: str) -> None:
        engine = self.engine
        self.report.count(what)
        try:
            if what == "reset":
                asyncio.run(engine.reset()) if self.is_async else engine.reset()
            elif what == "reload":
                if self.is_async:
                    asyncio.run(engine.unload())
                    asyncio.run(engine.reload())
                else:
                    engine.unload()
                    engine.reload()
            elif what == "exchange":
                name = self.random.choice([*self.adapters])
                if name in engine.adapters:
                    unloaded = engine.unload_adapter(name)
                    if self.is_async:
                        asyncio.run(unloaded)
                else:
                    loaded = engine.load_adapter(name, self.adapters[name])
                    if self.is_async:
                        asyncio.run(loaded)
        except (EngineError, RequestError):
            self.report.count(f"{what} refused")

    def run(self) -> None:
        users = [self.start_user(self.random.getrandbits(30)) for _ in range(self.num_threads)]
        for _ in range(self.random.randrange(6)):
            time.sleep(self.random.random() * 0.2)
            self.do(self.random.choice(["reset", "reload", "exchange", "exchange"]))
        time.sleep(self.random.random() * 0.3)
        if self.random.random() < 0.3:
            self.over.set()
            self.join(users)
            core = self.engine._core
            if not core.wait_until_idle(LIMIT):
                self.report.violation("calls stay open that nobody waits for")
            elif core.num_free_pages() != self.pages:
                self.report.violation(f"{core.num_free_pages()} of {self.pages} pages are free")
            self.report.count("accounts checked")
        self.end()
        self.over.set()
        self.join(users)

    def end(self) -> None:
        how = self.random.choice(["terminate", "drain", "many", "aterminate"])
        self.report.count(how)
        started = time.monotonic()
        if how == "drain":
            self.engine.terminate(drain=True, timeout=self.random.choice([0.01, 0.5]))
            return
        if how == "many":
            others = [threading.Thread(target=self.engine.terminate) for _ in range(4)]
            for thread in others:
                thread.start()
            self.join(others)
        if how == "aterminate" and self.is_async:
            asyncio.run(self.engine.aterminate())
        else:
            self.engine.terminate()
        self.report.took("terminate", time.monotonic() - started)
        if self.engine.state.value != "terminated":
            self.report.violation(f"state {self.engine.state} after terminate")

    def join(self, threads: list[threading.Thread]) -> None:
        for thread in threads:
            thread.join(LIMIT)
            if thread.is_alive():
                frame = sys._current_frames().get(thread.ident or 0)
                self.report.violation(f"a thread hangs: {frame}")


def held() -> tuple[int, int]:
    """Threads and descriptors of this process."""
    return len(list(Path("/proc/self/task").iterdir())), len(list(Path("/proc/self/fd").iterdir()))


def settled(before: tuple[int, int]) -> tuple[int, int]:
    """What the process holds once the system has seen the ended threads off, within a second."""
    deadline = time.monotonic() + 1.0
    while (now := held()) > before and time.monotonic() < deadline:
        time.sleep(0.005)
    return now


def rss() -> int:
    """Resident memory in KiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4


def main() -> int:
    with tempfile.TemporaryDirectory() as directory:
        return run(Path(directory))


def run(directory: Path) -> int:
    """Run rounds, with files in ``directory``, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--threads", type=int, default=8)
    options = parser.parse_args()
    warnings.simplefilter("error")
    report, expected, rounds, memory = Report(), {}, 0, []
    started = time.monotonic()
    base: tuple[int, int] | None = None
    adapters = {name: write_adapter(directory / name, seed=seed) for seed, name in enumerate("ab")}
    while time.monotonic() - started < options.seconds and len(report.violations) < 20:
        Round(report, expected, options.seed + rounds, options.threads, adapters).run()
        rounds += 1
        if base is None:
            base = settled((0, 0))
        elif (now := settled(base)) != base:
            report.violation(f"round {rounds}: threads and descriptors {now}, were {base}")
            base = now
        if rounds % 20 == 0:
            gc.collect()
            memory.append(rss())
    print(f"seed {options.seed}, {time.monotonic() - started:.0f} s, {rounds} engines, {options.threads} threads each")
    for name, count in sorted(report.events.items(), key=lambda item: -item[1]):
        print(f"  {name:28} {count}")
    for name, seconds in report.slowest.items():
        print(f"  slowest {name:20} {1000 * seconds:.0f} ms")
    if memory:
        print(f"  RSS {memory[0]} KiB at first, {memory[-1]} KiB at last, {max(memory)} KiB at most")
    print(f"  violations                   {len(report.violations)}")
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
