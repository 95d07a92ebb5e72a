"""What every lifecycle test shares: both faces, engines of the demo model, and a check that nothing stays behind."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest

from support.lifecycle import (
    FACES,
    Face,
    SyncFace,
    child_processes,
    mapped_files,
    num_descriptors,
    num_threads,
    wait_for,
)
from windlass import MLCEngine
from windlass.serve.engine_base import MLCEngineBase


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes minutes; runs only with -m slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "slow" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("slow") is not None:
                item.add_marker(pytest.mark.skip(reason="takes minutes; run with -m slow"))


@pytest.fixture(scope="session", autouse=True)
def _warm() -> None:
    """Lazy imports and what libraries keep for ever come once, before anything is counted."""
    for face in [kind() for kind in FACES.values()]:
        face.answer(face.build())
        face.finish()


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Threads, descriptors, mapped files and children are back where they were, without a garbage collection."""
    gc.collect()
    threads, descriptors, files, children = num_threads(), num_descriptors(), mapped_files(), child_processes()
    yield
    assert wait_for(lambda: num_threads() <= threads), f"threads left: {threading.enumerate()}"
    assert num_descriptors() <= descriptors
    assert mapped_files() <= files
    assert child_processes() <= children


@pytest.fixture
def without_collection() -> Iterator[None]:
    """What is left behind must not need a garbage collection."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(params=FACES)
def face(request: pytest.FixtureRequest) -> Iterator[Face]:
    """One of the two faces; its engines are checked and terminated after the test, whatever happened."""
    chosen = FACES[request.param]()
    yield chosen
    chosen.finish()


@pytest.fixture
def engine(face: Face) -> MLCEngineBase:
    """One engine of the demo model."""
    return face.build()


@pytest.fixture
def sync_face() -> Iterator[SyncFace]:
    """The sync face, for what only it has."""
    chosen = SyncFace()
    yield chosen
    chosen.finish()


@pytest.fixture
def sync_engine(sync_face: SyncFace) -> MLCEngine:
    """One ``MLCEngine`` of the demo model."""
    engine = sync_face.build()
    assert isinstance(engine, MLCEngine)
    return engine
