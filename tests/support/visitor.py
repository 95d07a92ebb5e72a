"""Someone who uses the page in a browser, and notes whatever the page must not do."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Locator, Request, expect

WATCH_POLICY = """
window.violations = [];
addEventListener("securitypolicyviolation", ({violatedDirective, blockedURI}) => {
  violations.push(`${violatedDirective} ${blockedURI}`);
});
"""


class Visitor:
    """A profile of its own, with one window on the page.

    Args:
        url: the server's.
        options: of the browser's context, such as ``viewport``.
    """

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self.url = url
        self.wrong: list[str] = []
        self.tolerated: tuple[str, ...] = ()
        """Parts of console messages that this test brings about; by default none is tolerated."""
        self.context = browser.new_context(**{"viewport": {"width": 1100, "height": 800}, **options})
        self.context.add_init_script(WATCH_POLICY)
        self.page = self.context.new_page()
        self.page.set_default_timeout(30_000)
        self.page.on("console", self._note_console)
        self.page.on("pageerror", lambda error: self.wrong.append(f"uncaught: {error}"))
        self.page.on("request", self._note_request)
        self.page.goto(url)

    def _note_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.wrong.append(f"console: {message.text} {message.location.get('url', '')}")

    def _note_request(self, request: Request) -> None:
        here, there = urlsplit(self.url), urlsplit(request.url)
        if there.scheme not in ("data", "blob") and there.netloc != here.netloc:
            self.wrong.append(f"a request to {request.url}")

    def leave(self) -> None:
        """Close the window; what the page did wrong fails the test."""
        self.wrong += self.page.evaluate("violations")
        self.context.close()
        wrong = [one for one in self.wrong if not any(part in one for part in self.tolerated)]
        assert not wrong, wrong

    def find(self, selector: str) -> Locator:
        return self.page.locator(selector)

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def write(self, text: str) -> None:
        """Type a message and send it."""
        self.find("#text").fill(text)
        self.find("#text").press("Enter")

    def ask(self, text: str) -> Locator:
        """Send a message and wait for the end of its answer; its text."""
        answers = self.find(".answer").count()
        self.write(text)
        expect(self.find(".answer")).to_have_count(answers + 1)
        return self.ended()

    def ended(self) -> Locator:
        """Wait for the end of the last answer; its text."""
        expect(self.answer).not_to_have_attribute("data-state", "open")
        return self.content

    @property
    def answer(self) -> Locator:
        """The last answer."""
        return self.find(".answer").last

    @property
    def content(self) -> Locator:
        """The last answer's text."""
        return self.answer.locator("[data-part=content]")

    @property
    def notice(self) -> Locator:
        """How the last answer ended, if not as usual."""
        return self.answer.locator("[data-part=notice]")

    def press(self, key: str) -> None:
        self.page.keyboard.press(key)

    def evaluate(self, script: str, argument: Any = None) -> Any:
        """What the function ``script`` returns; ``modules`` of the page are imported with ``import()``."""
        return self.page.evaluate(script, argument)
