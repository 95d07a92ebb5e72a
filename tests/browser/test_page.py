"""The page with the real server and the demo model."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from playwright.sync_api import expect

from support.lifecycle import LIMIT, slow_down
from support.server import KEY, RunningServer, serving, until

pytestmark = pytest.mark.browser

QUESTION = "What is the capital of France?"
PARIS = "The capital of France is Paris."


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serving() as running:
        yield running


def set_sampling(visitor: Any, **fields: str) -> None:
    visitor.button("System prompt and sampling").click()
    for name, value in fields.items():
        visitor.find(f"#settings-form [name={name}]").fill(value)
    visitor.press("Escape")


def aborted_requests(server: RunningServer) -> int:
    """Read in a thread of its own, because Playwright has an event loop running in this one."""
    with ThreadPoolExecutor(1) as thread:
        metrics = thread.submit(asyncio.run, server.engine.metrics()).result(LIMIT)
    return sum(metrics.requests_aborted.values())


def test_an_answer_streams_in_and_tells_its_speed(server: RunningServer, visit: Any) -> None:
    visitor = visit(server.url)
    expect(visitor.find("#models")).to_have_value("windlass-demo")
    assert visitor.ask(QUESTION).inner_text() == PARIS
    expect(visitor.answer.locator("[data-part=stats]")).to_have_text(
        re.compile(r"^\d+ tokens · [\d.]+ tokens/s · first after \d+\.\d\d s$")
    )
    expect(visitor.find("#queue")).to_have_text("0 running · 0 waiting")


def test_the_examples_ask(server: RunningServer, visit: Any) -> None:
    visitor = visit(server.url)
    visitor.button(QUESTION).click()
    assert visitor.ended().inner_text() == PARIS
    expect(visitor.find("#welcome")).to_be_hidden()


@pytest.mark.parametrize("how", ["button", "key"])
def test_stopping_aborts_the_request_at_the_server(visit: Any, how: str) -> None:
    with serving() as server:
        slow_down(server.engine, 0.05)
        visitor = visit(server.url)
        visitor.write("Tell me a story about a fox.")
        expect(visitor.content).not_to_be_empty()
        if how == "button":
            visitor.button("Stop").click()
        else:
            visitor.press("Escape")
        expect(visitor.notice).to_have_text("Stopped.")
        expect(visitor.content).not_to_be_empty()
        expect(visitor.button("Send")).to_be_visible()
        until(lambda: aborted_requests(server) == 1)


def test_answering_again_keeps_both_versions(server: RunningServer, visit: Any) -> None:
    visitor = visit(server.url)
    visitor.ask(QUESTION)
    visitor.button("Answer again").click()
    expect(visitor.answer.locator("[data-part=count]")).to_have_text("2/2")
    assert visitor.ended().inner_text() == PARIS
    visitor.answer.get_by_role("button", name="Previous version").click()
    expect(visitor.answer.locator("[data-part=count]")).to_have_text("1/2")
    expect(visitor.find(".question")).to_have_count(1)


def test_editing_a_question_begins_a_branch(server: RunningServer, visit: Any) -> None:
    visitor = visit(server.url)
    visitor.ask("My name is Anna.")
    visitor.ask("What is my name?")
    expect(visitor.content).to_have_text("Your name is Anna.")
    first = visitor.find(".question").first
    first.get_by_role("button", name="Edit message").click()
    first.get_by_role("textbox").fill("My name is Oscar.")
    first.get_by_role("textbox").press("Enter")
    expect(visitor.find(".answer")).to_have_count(1)
    expect(visitor.ended()).to_contain_text("Oscar")
    visitor.ask("What is my name?")
    expect(visitor.content).to_have_text("Your name is Oscar.")
    first.get_by_role("button", name="Previous version").click()
    expect(visitor.content).to_have_text("Your name is Anna.")
    assert visitor.find(".question").all_inner_texts()[0].startswith("My name is Anna.")


def test_the_drawer_reaches_the_model_and_is_kept(server: RunningServer, visit: Any) -> None:
    visitor = visit(server.url)
    set_sampling(visitor, system="Answer in JSON.", temperature="0", max_tokens="3")
    visitor.ask(QUESTION)
    expect(visitor.notice).to_have_text("The limit of tokens was reached.")
    visitor.page.reload()
    set_sampling(visitor, max_tokens="")
    visitor.ask(QUESTION)
    assert json.loads(visitor.content.inner_text()) == {"capital": "Paris"}
    visitor.button("System prompt and sampling").click()
    visitor.button("Reset to defaults").click()
    visitor.press("Escape")
    visitor.page.reload()
    visitor.ask(QUESTION)
    expect(visitor.content).to_have_text(PARIS)


def test_a_conversation_survives_a_reload(server: RunningServer, visit: Any) -> None:
    visitor = visit(server.url)
    visitor.ask(QUESTION)
    visitor.button("New conversation").click()
    expect(visitor.find(".answer")).to_have_count(0)
    visitor.ask("What is 12 + 30?")
    visitor.page.reload()
    expect(visitor.content).to_have_text("12 + 30 = 42")
    expect(visitor.find("#chats li")).to_have_count(2)
    visitor.button(QUESTION).first.click()
    expect(visitor.content).to_have_text(PARIS)


def test_a_server_with_a_key_is_asked_for_it(visit: Any) -> None:
    with serving(api_keys=(KEY,)) as server:
        visitor = visit(server.url)
        visitor.tolerated += ("401",)
        dialog = visitor.find("#key-dialog")
        expect(dialog).to_be_visible()
        expect(visitor.find("#key-reason")).to_contain_text("a valid API key is required")
        visitor.find("#key").fill("wrong")
        visitor.find("#key").press("Enter")
        expect(dialog).to_be_visible()
        visitor.press("Escape")
        visitor.ask(QUESTION)
        expect(visitor.answer.locator("[data-part=failure]")).to_contain_text("a valid API key is required")
        visitor.find("#key").fill(KEY)
        visitor.find("#key").press("Enter")
        expect(visitor.content).to_have_text(PARIS)
        assert visitor.evaluate("localStorage.getItem('windlass.key')") is None
        visitor.page.reload()
        assert visitor.ask(QUESTION).inner_text() == PARIS


def test_a_server_that_drains_says_so_and_one_that_is_gone_too(visit: Any) -> None:
    with serving() as server:
        visitor = visit(server.url)
        visitor.tolerated += ("503", "ERR_CONNECTION", "ERR_EMPTY_RESPONSE")
        visitor.ask(QUESTION)
        server.stop()
        server.join()
        expect(visitor.find("#banner")).to_contain_text("cannot be reached")
        visitor.ask(QUESTION)
        expect(visitor.answer.locator("[data-part=failure]")).to_contain_text("The server cannot be reached.")
