"""L5, L9: whatever the main thread does, Ctrl-C or a signal handler that terminates may come before any line of it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest

from support.interrupting import Interrupter, interrupt, lines_of, sample
from support.lifecycle import (
    ANSWER,
    ENDLESS,
    LONG,
    QUESTION,
    Face,
    Started,
    ask,
    core_of,
    idle_and_whole,
    num_threads,
    wait_for,
)
from windlass import AsyncMLCEngine, EngineError, RequestError
from windlass.engine.state import EngineState
from windlass.serve.engine_base import MLCEngineBase

MOST = [40, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
"""At how many lines; all of them in the slow runs."""


def whole(engine: MLCEngineBase) -> Any:
    return ask(engine, QUESTION, n=2, max_tokens=3)


def stream(engine: MLCEngineBase) -> Any:
    if isinstance(engine, AsyncMLCEngine):

        async def use() -> None:
            async for _ in await ask(engine, stream=True, max_tokens=3):
                pass

        return use()
    return list(ask(engine, stream=True, max_tokens=3))


def leave(engine: MLCEngineBase) -> Any:
    if isinstance(engine, AsyncMLCEngine):

        async def use() -> None:
            opened = await ask(engine, LONG, stream=True, **ENDLESS)
            await anext(opened)
            await opened.aclose()

        return use()
    opened = ask(engine, LONG, stream=True, **ENDLESS)
    next(opened)
    return opened.close()


def reload(engine: MLCEngineBase) -> Any:
    if isinstance(engine, AsyncMLCEngine):

        async def use() -> None:
            await engine.unload()
            await engine.reload()

        return use()
    engine.unload()  # type: ignore[attr-defined]
    return engine.reload()  # type: ignore[attr-defined]


def reset(engine: MLCEngineBase) -> Any:
    return engine.reset()  # type: ignore[attr-defined]


def terminate(engine: MLCEngineBase) -> Any:
    return engine.terminate()


def drain(engine: MLCEngineBase) -> Any:
    return engine.terminate(drain=True, timeout=0.05)


def run(action: Callable[[MLCEngineBase], Any], engine: MLCEngineBase) -> None:
    """Do it, on an event loop of its own when it is a coroutine."""
    outcome = action(engine)
    if asyncio.iscoroutine(outcome):
        asyncio.run(outcome)


def lines_for(action: Callable[[MLCEngineBase], Any], face: Face, most: int) -> list[tuple[str, int]]:
    engine = face.build(tracked=False)
    found = Started(lines_of, lambda: run(action, engine)).result()
    engine.terminate()
    return sample(found, most)


@pytest.mark.parametrize("most", MOST)
@pytest.mark.parametrize(
    "action", [whole, stream, leave, reload, reset, terminate, drain], ids=lambda one: one.__name__
)
def test_L09_a_signal_handler_terminates_before_any_line(
    face: Face, action: Callable[[MLCEngineBase], Any], most: int
) -> None:
    lines = lines_for(action, face, most)
    threads = num_threads()
    for line in lines:
        engine = face.build(tracked=False)

        def use(engine: MLCEngineBase = engine, line: tuple[str, int] = line) -> None:
            with Interrupter(line, engine.terminate):
                run(action, engine)

        used = Started(use)
        assert used.ended(5.0), f"terminate hangs at {line}"
        assert used.error is None or isinstance(used.error, (EngineError, RequestError)), (line, used.error)
        ending = Started(engine.terminate)
        assert ending.ended(5.0), f"a later terminate hangs after {line}"
        assert engine.state is EngineState.TERMINATED, line
        assert wait_for(lambda: num_threads() <= threads), line
    print(f"{action.__name__}: {len(lines)} lines")


@pytest.mark.parametrize("most", MOST)
@pytest.mark.parametrize("action", [terminate, drain], ids=lambda one: one.__name__)
def test_L09_a_termination_interrupted_before_any_line_is_completed_by_the_next(
    face: Face, action: Callable[[MLCEngineBase], Any], most: int
) -> None:
    lines = lines_for(action, face, most)
    threads = num_threads()
    for line in lines:
        engine = face.build(tracked=False, slow=True)
        waiting = Started(face.create, engine, LONG, **ENDLESS)
        assert wait_for(lambda engine=engine: core_of(engine).num_open == 1)  # type: ignore[misc]

        def use(engine: MLCEngineBase = engine, line: tuple[str, int] = line) -> None:
            with Interrupter(line, interrupt):
                run(action, engine)

        used = Started(use)
        assert used.ended(10.0), f"hangs at {line}"
        ending = Started(engine.terminate)
        assert ending.ended(5.0), f"a later terminate hangs after {line}"
        assert waiting.ended(5.0), f"a call hangs after {line}"
        assert waiting.error is None or isinstance(waiting.error, EngineError), line
        assert engine.state is EngineState.TERMINATED, line
        assert wait_for(lambda: num_threads() <= threads), line


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # interrupted in a finalizer
@pytest.mark.parametrize("most", MOST)
@pytest.mark.parametrize("action", [whole, stream, leave], ids=lambda one: one.__name__)
def test_L05_a_call_interrupted_before_any_line_holds_nothing(
    sync_face: Face, action: Callable[[MLCEngineBase], Any], most: int
) -> None:
    engine = sync_face.build(slow=True)
    core = core_of(engine)
    lines = sample(Started(lines_of, lambda: run(action, engine)).result(), most)
    for line in lines:

        def use(line: tuple[str, int] = line) -> None:
            try:
                with Interrupter(line, interrupt):
                    run(action, engine)
            except KeyboardInterrupt:
                pass

        used = Started(use)
        assert used.ended(10.0), f"hangs at {line}"
        assert used.error is None, (line, used.error)
        assert wait_for(lambda: core.num_open == 0, 1.0), f"a call stays open after {line}"
        assert not core._accounts._waiting, line
    assert idle_and_whole(engine)
    assert sync_face.answer(engine) == ANSWER


@pytest.mark.parametrize("action", [whole, stream, reload, terminate], ids=lambda one: one.__name__)
def test_L09_the_collector_finds_another_engine_before_any_line(
    face: Face, action: Callable[[MLCEngineBase], Any]
) -> None:
    lines = lines_for(action, face, 12)
    threads = num_threads()
    for line in lines:
        engine, other = face.build(tracked=False), face.build(tracked=False)
        other.cycle = other  # type: ignore[attr-defined]
        held = [other]
        del other

        def collect(held: list[MLCEngineBase] = held) -> None:
            held.clear()
            gc.collect()

        def use(engine: MLCEngineBase = engine, line: Any = line, collect: Any = collect) -> None:
            with Interrupter(line, collect):
                run(action, engine)

        with pytest.warns(ResourceWarning):
            used = Started(use)
            assert used.ended(5.0), f"hangs at {line}"
            held.clear()
            gc.collect()
        assert used.error is None, (line, used.error)
        engine.terminate()
        assert wait_for(lambda: num_threads() <= threads), line
