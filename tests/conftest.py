"""Fixtures that every test may use."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from support.room import room


def pytest_collection_finish() -> None:
    """Leave what the tests themselves consist of to no collector: it is much, and many tests collect."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Run a test that is marked as ``alone`` while no other process of the same run (``pytest -n``) is in a test."""
    if not hasattr(item.config, "workerinput"):
        return (yield)
    own: Path = item.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
    with room(own.parent, alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test sees what is cached on this machine, or adds to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WINDLASS_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("WINDLASS_CACHE_LIMIT", raising=False)
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The directory of real test data; without it a test is skipped, or fails under WINDLASS_REQUIRE_DATA."""
    configured = os.environ.get("WINDLASS_TEST_DATA")
    path = Path(configured) if configured else Path(__file__).resolve().parents[2] / "shared" / "data"
    if path.is_dir():
        return path
    if os.environ.get("WINDLASS_REQUIRE_DATA") == "1":
        pytest.fail(f"WINDLASS_REQUIRE_DATA=1, but there is no test data at {path}")
    pytest.skip(f"no test data at {path} (set WINDLASS_TEST_DATA)")
