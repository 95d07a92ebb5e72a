"""A server for the clients of others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.server import KEY, RunningServer, serving


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serving(api_keys=(KEY,)) as running:
        yield running
