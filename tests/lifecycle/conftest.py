"""What every lifecycle test shares: engines of the demo model, and a check that a test leaves nothing behind."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from support.lifecycle import num_descriptors, num_threads, wait_for
from windlass import EngineConfig, MLCEngine


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Threads and descriptors are back where they were, without a garbage collection, once the test has ended."""
    gc.collect()
    threads, descriptors = num_threads(), num_descriptors()
    yield
    assert wait_for(lambda: num_threads() <= threads), f"threads left: {threading.enumerate()}"
    assert num_descriptors() <= descriptors


@pytest.fixture
def new_engine() -> Iterator[Callable[..., MLCEngine]]:
    """Build engines of the demo model that are terminated after the test, whatever happened."""
    engines: list[MLCEngine] = []

    def build(**settings: Any) -> MLCEngine:
        engine = MLCEngine(engine_config=EngineConfig(num_threads=2, verbose=False, **settings))
        engines.append(engine)
        return engine

    yield build
    for engine in engines:
        engine.terminate()


@pytest.fixture
def engine(new_engine: Callable[..., MLCEngine]) -> MLCEngine:
    """One engine of the demo model."""
    return new_engine()
