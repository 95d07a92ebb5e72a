"""A Chromium for the tests of the page. Nothing is collected where Playwright is not installed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

from support.scripted_server import ScriptedServer, scripted_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from support.visitor import Visitor

if find_spec("playwright") is None:
    collect_ignore_glob = ["test_*.py"]

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One browser for all tests; each has a profile of its own."""
    from playwright.sync_api import expect, sync_playwright

    path = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if path is None:
        pytest.fail(f"no Chromium: install it (on Debian the package chromium); looked for {', '.join(CHROMIUMS)}")
    expect.set_options(timeout=30_000)
    with sync_playwright() as playwright:
        # In containers there is rarely what Chromium's own sandbox needs; it sees nothing here but our page.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    """A server that answers as the test says."""
    with scripted_server() as server:
        yield server


@pytest.fixture
def visit(browser: Browser) -> Iterator[Any]:
    """``visit(url, **context options)`` opens the page; at the end, it must have broken no rule."""
    from support.visitor import Visitor

    visitors: list[Visitor] = []

    def open_page(url: str, **options: Any) -> Visitor:
        visitors.append(Visitor(browser, url, **options))
        return visitors[-1]

    yield open_page
    for visitor in visitors:
        visitor.leave()
