"""Adapters come and go while an engine serves: no request sees more of it than the adapter that it chose."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.adapters import PREFIX, adapter_tensors, demo_config, write_adapter
from support.baseline import Baseline
from support.lifecycle import (
    ANSWER,
    DRAFT_MODEL,
    ENDLESS,
    LIMIT,
    LONG,
    AsyncFace,
    Face,
    Started,
    core_of,
    idle_and_whole,
    read,
    wait_for,
)
from windlass import (
    EngineFailedError,
    EngineForkedError,
    EngineTerminatedError,
    EngineUnloadedError,
    InvalidRequestError,
    LoadError,
    RequestAbortedError,
)
from windlass.engine.adapters import Adapter
from windlass.engine.loop import EngineCore
from windlass.engine.state import EngineState
from windlass.serve import adapters as adapter_loading
from windlass.serve.engine_base import MLCEngineBase

REQUESTS: list[dict[str, Any]] = [
    {"text": LONG, "temperature": 0.0, "max_tokens": 40},
    {"text": LONG, "temperature": 1.1, "seed": 4, "max_tokens": 30, "n": 2},
    {"text": "What is 12 + 15?", "temperature": 0.8, "seed": 5, "max_tokens": 20},
]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Directories of adapters of the demo model."""
    directory = tmp_path_factory.mktemp("adapters")
    return {name: write_adapter(directory / name, seed=seed) for seed, name in enumerate(("one", "two", "three"), 1)}


def outcome(face: Face, engine: MLCEngineBase, request: dict[str, Any], lora: str | None) -> Any:
    response = face.create(engine, **request, logprobs=True, top_logprobs=2, lora=lora)
    assert response.model == ("windlass-demo" if lora is None else f"windlass-demo:{lora}")
    return [choice.model_dump() for choice in response.choices]


def packed_of(engine: MLCEngineBase, name: str) -> Any:
    return engine._loaded().adapters.find(name).packed


def has_progressed(core: EngineCore, least: int) -> bool:
    return core.progress > least


def is_told(engine: MLCEngineBase) -> bool:
    return engine._terminated


def is_gone(engine: MLCEngineBase, name: str) -> bool:
    """Whether within a limit new requests cannot choose the adapter any more."""
    return wait_for(lambda: name not in engine.adapters)


def refused(face: Face, engine: MLCEngineBase, **arguments: Any) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        face.answer(engine, **arguments)
    return caught.value


# L26: what a request gets depends on its adapter, and on nothing beside it.


@pytest.mark.parametrize("settings", [{}, DRAFT_MODEL], ids=["", "draft"])
def test_L26_with_adapters(face: Face, paths: dict[str, str], settings: dict[str, Any]) -> None:
    cases = [(request, lora) for request in REQUESTS for lora in (None, "one", "two")]
    plain = face.build(speculative_mode="disable")
    alone = {
        "one": face.build(speculative_mode="disable", adapters={"one": paths["one"]}),
        "two": face.build(speculative_mode="disable", adapters={"two": paths["two"]}),
    }
    expected = [outcome(face, plain if lora is None else alone[lora], request, lora) for request, lora in cases]
    texts = [case[0]["message"]["content"] for case in expected[:3]]
    assert len(set(texts)) == 3
    engine = face.build(**settings, adapters={"one": paths["one"], "two": paths["two"]}, max_num_sequence=12)
    for _ in range(2):
        calls = [Started(outcome, face, engine, *case) for case in cases]
        assert [call.result(LIMIT) for call in calls] == expected
    assert [outcome(face, engine, *case) for case in cases] == expected
    assert idle_and_whole(engine)


def test_L26_with_adapters_and_preemption(face: Face, paths: dict[str, str]) -> None:
    names = (None, "one", "two")
    adapters = {"one": paths["one"], "two": paths["two"]}
    cases = [({**REQUESTS[0], "max_tokens": 100}, lora) for lora in names] * 2
    plain = face.build(adapters=adapters)
    expected = [outcome(face, plain, *case) for case in cases]
    few = {"max_num_sequence": 6, "max_total_sequence_length": 192, "max_single_sequence_length": 176}
    engine = face.build(adapters=adapters, **few)
    for _ in range(3):
        calls = [Started(outcome, face, engine, *case) for case in cases]
        assert [call.result(LIMIT) for call in calls] == expected
    assert core_of(engine).metrics().num_preemptions > 0
    assert idle_and_whole(engine)


def test_prefixes_are_shared_with_the_same_adapter_only(face: Face, paths: dict[str, str]) -> None:
    def cached(lora: str | None) -> int:
        response = face.create(engine, LONG, max_tokens=20, lora=lora)
        answers.append(response.choices[0].message.content)
        return int(response.usage.prompt_tokens_details.cached_tokens)

    answers: list[str] = []
    engine = face.build(adapters={"one": paths["one"], "two": paths["two"]})
    assert [cached(lora) for lora in (None, "one", "two")] == [0, 0, 0]
    assert min(cached(lora) for lora in (None, "one", "two")) >= 16
    assert answers[:3] == answers[3:]
    # The next adapter of the name is another one, also when it is the same.
    face.call(engine, "unload_adapter", "one")
    face.call(engine, "load_adapter", "one", paths["three"])
    assert cached("one") == 0
    assert answers[-1] != answers[1]
    face.call(engine, "unload_adapter", "one")
    face.call(engine, "load_adapter", "one", paths["one"])
    assert cached("one") == 0
    assert answers[-1] == answers[1]


# Loading and unloading


def test_what_requests_choose_by(face: Face, paths: dict[str, str]) -> None:
    engine = face.build(adapters={"one": paths["one"]})
    face.call(engine, "load_adapter", "a/b@v1", Path(paths["two"]))
    assert list(engine.adapters) == ["one", "a/b@v1"]
    assert {name: info.path for name, info in engine.adapters.items()} == {"one": paths["one"], "a/b@v1": paths["two"]}
    assert all(info.nbytes > 100_000 for info in engine.adapters.values())
    plain, one, two = (face.answer(engine, LONG, lora=lora) for lora in (None, "one", "a/b@v1"))
    assert len({plain, one, two}) == 3
    for arguments, model, text in (
        ({"model": "windlass-demo:one"}, "windlass-demo:one", one),
        ({"model": "anything:at:all:one"}, "anything:at:all:one", one),
        ({"model": "mine:one", "lora": "one"}, "mine:one", one),
        ({"model": "mine", "lora": "a/b@v1"}, "mine:a/b@v1", two),
        ({"model": "mine:latest"}, "mine:latest", plain),
        ({"model": "mine:latest", "lora": "one"}, "mine:latest:one", one),
    ):
        response = face.create(engine, LONG, **arguments)
        assert (response.model, response.choices[0].message.content) == (model, text)
    response = face.complete(engine, "Once", max_tokens=8, lora="one")
    assert response.model == "windlass-demo:one"
    assert response.choices[0].text != face.complete(engine, "Once", max_tokens=8).choices[0].text


def test_an_adapter_that_is_not_there(face: Face, paths: dict[str, str]) -> None:
    engine = face.build(adapters={"one": paths["one"], "two": paths["two"]})
    for arguments, param, code, message in (
        ({"lora": "gone"}, "lora", "model_not_found", "there is no adapter 'gone'; loaded are one, two"),
        ({"model": "windlass-demo:gone"}, "model", "model_not_found", "no adapter 'gone'"),
        ({"model": "x:one", "lora": "two"}, "lora", "invalid_value", "model names the adapter 'one'"),
        ({"lora": ""}, "lora", "invalid_value", "lora"),
        ({"lora": 1}, "lora", "invalid_value", "lora"),
    ):
        error = refused(face, engine, **arguments)
        assert (error.param, error.code) == (param, code)
        assert message in str(error)


def test_names_that_cannot_be(face: Face, engine: MLCEngineBase, paths: dict[str, str]) -> None:
    for name in ("", "a:b", "a b", "\u00e4", ".hidden", "x" * 129, 7):
        with pytest.raises(ValueError, match="an adapter's name must be"):
            face.call(engine, "load_adapter", name, paths["one"])
        with pytest.raises(ValueError, match="an adapter's name must be"):
            face.build(adapters={name: paths["one"]}, tracked=False)
    for adapters in ([paths["one"]], {"one": ""}, {"one": 1}):
        with pytest.raises(ValueError, match="must map names to paths"):
            face.build(adapters=adapters, tracked=False)
    assert engine.adapters == {}


def test_names_are_used_once(face: Face, engine: MLCEngineBase, paths: dict[str, str]) -> None:
    face.call(engine, "load_adapter", "one", paths["one"])
    with pytest.raises(InvalidRequestError, match="there is an adapter 'one' already"):
        face.call(engine, "load_adapter", "one", paths["two"])
    face.call(engine, "unload_adapter", "one")
    with pytest.raises(InvalidRequestError, match="there is no adapter 'one'"):
        face.call(engine, "unload_adapter", "one")
    assert engine.adapters == {}


def test_unloading_waits_for_those_who_use_it_and_refuses_others(face: Face, paths: dict[str, str]) -> None:
    adapters = {"one": paths["one"], "two": paths["two"]}
    long = {**ENDLESS, "max_tokens": 300}
    expected = face.answer(face.build(adapters=adapters), LONG, lora="one", **long)
    engine = face.build(slow=True, adapters=adapters)
    packed = packed_of(engine, "one")
    reader = face.stream(engine, LONG, lora="one", **long)
    begin = reader.next()
    assert begin is not None
    unloading = Started(face.call, engine, "unload_adapter", "one")
    assert is_gone(engine, "one")
    assert refused(face, engine, lora="one").code == "model_not_found"
    assert face.answer(engine, LONG, max_tokens=25) != face.answer(engine, LONG, lora="two", max_tokens=25)
    # A new one may have the name at once.
    face.call(engine, "load_adapter", "one", paths["three"])
    other = face.answer(engine, LONG, lora="one", max_tokens=5)
    assert not unloading.ended(0)
    assert packed.nbytes > 0
    assert begin + read(reader) == expected
    unloading.result()
    assert packed.nbytes == 0
    assert not expected.startswith(other)
    assert packed_of(engine, "one").nbytes > 0


@pytest.mark.parametrize("how", ["abort", "close", "drop", "reset"])
def test_unloading_ends_when_the_last_user_leaves(face: Face, paths: dict[str, str], how: str) -> None:
    engine = face.build(slow=True, adapters={"one": paths["one"]})
    packed = packed_of(engine, "one")
    reader = face.stream(engine, LONG, lora="one", request_id="r", **ENDLESS)
    assert reader.next() is not None
    unloading = Started(face.call, engine, "unload_adapter", "one")
    assert is_gone(engine, "one")
    assert not unloading.ended(0.02)
    if how == "abort":
        face.call(engine, "abort", "r")
    elif how == "reset":
        face.call(engine, "reset")
    elif how == "close":
        reader.close()
    else:
        del reader
        gc.collect()
    unloading.result()
    assert packed.nbytes == 0
    assert idle_and_whole(engine)


def test_an_interrupted_wait_still_frees_it(face: Face, paths: dict[str, str]) -> None:
    engine = face.build(slow=True, adapters={"one": paths["one"]})
    packed = packed_of(engine, "one")
    reader = face.stream(engine, LONG, lora="one", max_tokens=60)
    assert reader.next() is not None
    engine._loaded().adapters.retire("one")  # all that is left of an unload whose wait was interrupted
    assert packed.nbytes > 0
    read(reader)
    assert wait_for(lambda: packed.nbytes == 0)


def test_a_request_that_chose_just_before_is_refused(
    face: Face, paths: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter is unloaded between the moment at which a call finds it and that at which the call is accepted."""
    engine = face.build(adapters={"one": paths["one"]})
    model = engine._loaded()
    find = model.adapters.find

    def found_and_gone(name: str, **named: Any) -> Adapter:
        adapter = find(name, **named)
        core_of(engine).wait_until_free(model.adapters.retire(name))
        return adapter

    monkeypatch.setattr(model.adapters, "find", found_and_gone)
    assert refused(face, engine, lora="one").code == "model_not_found"
    assert face.answer(engine) == ANSWER


def test_loading_does_not_disturb_those_who_run(face: Face, paths: dict[str, str]) -> None:
    expected = face.answer(face.build(), LONG, max_tokens=100)
    engine = face.build(slow=True)
    reader = face.stream(engine, LONG, max_tokens=100)
    begin = reader.next()
    assert begin is not None
    for _ in range(5):
        for name in ("one", "two"):
            face.call(engine, "load_adapter", name, paths[name])
        for name in ("one", "two"):
            face.call(engine, "unload_adapter", name)
    assert begin + read(reader) == expected


def test_a_cancelled_load_leaves_nothing(paths: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    face = AsyncFace()
    engine = face.build()
    held = HeldReading(monkeypatch)

    async def cancel() -> None:
        loading = asyncio.ensure_future(engine.load_adapter("one", paths["one"]))  # type: ignore[attr-defined]
        await asyncio.get_running_loop().run_in_executor(None, held.reached.wait, LIMIT)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading

    face.run(cancel())
    held.go_on.set()
    face.call(engine, "load_adapter", "two", paths["two"])
    assert list(engine.adapters) == ["two"]
    face.finish()


class HeldReading:
    """Holds whoever loads an adapter at its second tensor."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.seen: list[str] = []
        read_tensor = adapter_loading._read

        def held(*arguments: Any) -> Any:
            self.seen.append(arguments[1])
            if len(self.seen) == 2:
                self.reached.set()
                assert self.go_on.wait(LIMIT)
            return read_tensor(*arguments)

        monkeypatch.setattr(adapter_loading, "_read", held)


# The end of the engine


def test_terminate_during_a_load(face: Face, paths: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    face.build(tracked=False, adapters={"one": paths["one"]}).terminate()
    baseline = Baseline()
    engine = face.build(tracked=False)
    held = HeldReading(monkeypatch)
    loading = Started(face.call, engine, "load_adapter", "one", paths["one"])
    assert held.reached.wait(LIMIT)
    ending = Started(face.terminate, engine)
    assert wait_for(partial(is_told, engine))
    held.go_on.set()
    ending.result()
    with pytest.raises(EngineTerminatedError):
        loading.result()
    assert engine.state is EngineState.TERMINATED
    assert len(held.seen) < 10, "it went on after the end"
    del engine
    loading.error = None
    baseline.check()


def test_terminate_while_adapters_are_in_use(face: Face, paths: dict[str, str]) -> None:
    """Streams and unloads that wait hear of it; memory is free although somebody keeps the stream."""
    face.build(tracked=False, adapters={"one": paths["one"]}).terminate()
    baseline = Baseline()
    for drain in (False, True):
        engine = face.build(slow=True, tracked=False, adapters={"one": paths["one"], "two": paths["two"]})
        packed = [packed_of(engine, name) for name in ("one", "two")]
        readers = [face.stream(engine, LONG, lora=name, **ENDLESS) for name in ("one", "two")]
        assert all(reader.next() is not None for reader in readers)
        unloading = Started(face.call, engine, "unload_adapter", "one")
        assert is_gone(engine, "one")
        face.terminate(engine, drain=drain, timeout=0.05)
        with pytest.raises(EngineTerminatedError):
            unloading.result()
        assert [one.nbytes for one in packed] == [0, 0]
        for call in ("load_adapter", "unload_adapter"):
            with pytest.raises(EngineTerminatedError):
                face.call(engine, call, *(["one", paths["one"]][: 2 if call == "load_adapter" else 1]))
        with pytest.raises(EngineTerminatedError):
            _ = engine.adapters
        for reader in readers:
            with pytest.raises(EngineTerminatedError):
                read(reader)
        del engine, readers, reader, unloading
        baseline.check()
    baseline.check_memory()


def test_draining_lets_them_finish(face: Face, paths: dict[str, str]) -> None:
    engine = face.build(slow=True, adapters={"one": paths["one"]})
    expected = face.answer(engine, LONG, lora="one", max_tokens=40)
    reader = face.stream(engine, LONG, lora="one", max_tokens=40)
    unloading = Started(face.call, engine, "unload_adapter", "one")
    assert is_gone(engine, "one")
    face.terminate(engine, drain=True, timeout=LIMIT)
    unloading.result()
    assert read(reader) == expected


def test_unload_and_reload_of_the_model(face: Face, paths: dict[str, str]) -> None:
    engine = face.build(slow=True, adapters={"one": paths["one"]})
    face.call(engine, "load_adapter", "two", paths["two"])
    packed = [packed_of(engine, name) for name in ("one", "two")]
    expected = face.answer(engine, LONG, lora="one", max_tokens=20)
    reader = face.stream(engine, LONG, lora="two", **ENDLESS)
    assert reader.next() is not None
    unloading = Started(face.call, engine, "unload_adapter", "two")
    assert is_gone(engine, "two")
    face.call(engine, "unload")
    unloading.result()
    with pytest.raises(RequestAbortedError):
        read(reader)
    assert [one.nbytes for one in packed] == [0, 0]
    for call in (lambda: engine.adapters, lambda: face.call(engine, "load_adapter", "two", paths["two"])):
        with pytest.raises(EngineUnloadedError):
            call()
    face.call(engine, "reload")
    assert list(engine.adapters) == ["one"]
    assert face.answer(engine, LONG, lora="one", max_tokens=20) == expected


def test_a_failure_frees_them(face: Face, paths: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = face.build(slow=True, adapters={"one": paths["one"]})
    packed = packed_of(engine, "one")
    reader = face.stream(engine, LONG, lora="one", **ENDLESS)
    assert reader.next() is not None
    unloading = Started(face.call, engine, "unload_adapter", "one")
    assert is_gone(engine, "one")
    monkeypatch.setattr(core_of(engine)._runtime, "schedule", None)
    with pytest.raises(EngineFailedError):
        read(reader)
    assert unloading.ended()
    assert unloading.error is None or isinstance(unloading.error, EngineFailedError)
    assert wait_for(lambda: packed.nbytes == 0)


def test_a_forked_child_has_none(face: Face, engine: MLCEngineBase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine._lifecycle, "_pid", -1)
    for call, arguments in (("load_adapter", ("one", "nowhere")), ("unload_adapter", ("one",))):
        with pytest.raises(EngineForkedError):
            face.call(engine, call, *arguments)
    monkeypatch.undo()


# What cannot be loaded


@pytest.fixture
def broken(tmp_path: Path) -> list[str]:
    """Adapters that are refused at different moments."""
    tensors = adapter_tensors(demo_config(), seed=1)
    last = list(tensors)[-1]
    wrong = {**tensors, last: tensors[last] * np.float32(np.inf)}
    return [
        str(tmp_path / "nowhere"),
        write_adapter(tmp_path / "dora", use_dora=True),
        write_adapter(tmp_path / "rank", r=8),
        write_adapter(tmp_path / "infinite", wrong),
    ]


def test_what_cannot_be_loaded_leaves_nothing(face: Face, broken: list[str], paths: dict[str, str]) -> None:
    face.build(tracked=False, adapters=paths).terminate()
    baseline = Baseline()
    for path in broken:
        with pytest.raises(LoadError):
            face.build(tracked=False, adapters={"one": paths["one"], "two": path})
        baseline.check(path)
    engine = face.build(tracked=False, adapters={"one": paths["one"]})
    during = Baseline()
    for path in broken:
        with pytest.raises(LoadError):
            face.call(engine, "load_adapter", "two", path)
        during.check(path)
    assert list(engine.adapters) == ["one"]
    assert face.answer(engine) == ANSWER
    face.terminate(engine)
    del engine
    baseline.check()
    baseline.check_memory()


def test_memory_that_is_not_there(
    face: Face, engine: MLCEngineBase, paths: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(adapter_loading, "available_bytes", lambda: 1000)
        with pytest.raises(LoadError, match="0 MiB of memory are available; these engines hold"):
            face.call(engine, "load_adapter", "one", paths["one"])

    def fails(*_: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(adapter_loading, "_read", fails)
        with pytest.raises(LoadError, match="not enough memory for the adapter"):
            face.call(engine, "load_adapter", "one", paths["one"])
    assert engine.adapters == {}


def test_an_adapter_whose_numbers_overflow_fails_alone(face: Face, tmp_path: Path) -> None:
    tensors = adapter_tensors(demo_config(), seed=1, ranks={"down_proj": 4})
    huge = {name: values * np.float32(1e20) for name, values in tensors.items()}
    path = write_adapter(tmp_path, huge, target_modules=["down_proj"])
    assert next(iter(huge)).startswith(PREFIX)
    engine = face.build(adapters={"huge": path})
    calls = [Started(face.answer, engine, LONG, lora=lora, n=2) for lora in (None, "huge", None, "huge")]
    expected = calls[0].result()
    assert calls[2].result() == expected
    for call in (calls[1], calls[3]):
        with pytest.raises(RequestAbortedError, match="the adapter 'huge' made numbers that are not finite"):
            call.result()
    # A choice beside one that failed may be counted as left by its caller.
    assert wait_for(lambda: sum(core_of(engine).metrics().requests_aborted.values()) == 4)
    assert core_of(engine).metrics().requests_aborted["failure"] >= 2
    face.call(engine, "unload_adapter", "huge")
    assert face.answer(engine) == ANSWER


# All of it at once


@pytest.mark.parametrize("seed", range(2))
def test_random_histories(face: Face, paths: dict[str, str], seed: int) -> None:
    """Threads load, unload, ask, leave and abort; every answer that comes is the one its adapter gives alone."""
    plain = face.build(adapters=paths)
    expected = {lora: face.answer(plain, LONG, lora=lora, max_tokens=24) for lora in (None, *paths)}
    face.build(tracked=False, adapters=paths).terminate()
    baseline = Baseline()
    engine = face.build(tracked=False, max_num_sequence=4, max_total_sequence_length=512)
    over = threading.Event()

    def act(engine: MLCEngineBase, number: int) -> int:
        rng, done = random.Random(f"{seed} {number}"), 0  # noqa: S311
        while not over.is_set() and done < 60:
            lora, action = rng.choice([None, *paths]), rng.random()
            try:
                if action < 0.25 and lora is not None:
                    face.call(engine, "load_adapter", lora, paths[lora])
                elif action < 0.45 and lora is not None:
                    face.call(engine, "unload_adapter", lora)
                elif action < 0.6:
                    reader = face.stream(engine, LONG, lora=lora, max_tokens=200)
                    reader.next()
                    reader.close()
                elif action < 0.63:
                    face.call(engine, "reset")
                else:
                    assert face.answer(engine, LONG, lora=lora, max_tokens=24) == expected[lora]
            except (InvalidRequestError, RequestAbortedError):
                pass
            except EngineTerminatedError:
                break
            done += 1
        return done

    threads = [Started(act, engine, number) for number in range(4)]
    if seed == 0:
        assert wait_for(partial(has_progressed, core_of(engine), 200))
        face.terminate(engine)
        over.set()
    assert sum(thread.result(3 * LIMIT) for thread in threads) > 0
    if seed > 0:
        assert idle_and_whole(engine)
        face.terminate(engine)
    del engine
    baseline.check()
