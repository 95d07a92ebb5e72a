"""The page with a server that does what servers do on bad days, and with answers that models give on theirs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from support.lifecycle import LIMIT
from support.scripted_server import Exchange, ScriptedServer, delta

pytestmark = pytest.mark.browser


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Holds a script until the test goes on, or ends."""
    event = threading.Event()
    yield event
    event.set()


def test_a_stream_may_be_cut_at_any_byte(scripted: ScriptedServer, visit: Any) -> None:
    text = "Grüße: 日本語 🪢 and a tail"

    def script(exchange: Exchange) -> None:
        whole = b"\xef\xbb\xbf: a comment\r\n\r\nid: 7\r\nevent: message\r\ndata: "
        whole += json.dumps(delta(content=text), ensure_ascii=False).encode() + b"\r\n\r\n: ping\n\n"
        whole += json.dumps(delta("stop")).encode().join((b"data:", b"\n\n")) + b"data: [DONE]\n\n"
        exchange.stream(*(whole[at : at + 1] for at in range(len(whole))))

    scripted.script = script
    visitor = visit(scripted.url)
    assert visitor.ask("Hello?").inner_text() == text
    expect(visitor.notice).to_be_empty()


def test_text_is_shown_while_it_comes(scripted: ScriptedServer, visit: Any, gate: threading.Event) -> None:
    def script(exchange: Exchange) -> None:
        gate.wait(LIMIT)
        gate.clear()
        exchange.stream(delta(content="The first"))
        gate.wait(LIMIT)
        exchange.say(" and the rest.")

    scripted.script = script
    visitor = visit(scripted.url)
    visitor.write("Hello?")
    expect(visitor.answer.locator("[data-part=waiting]")).to_be_visible()
    expect(visitor.button("Stop")).to_be_visible()
    gate.set()
    expect(visitor.content).to_have_text("The first")
    expect(visitor.answer.locator("[data-part=waiting]")).to_be_hidden()
    gate.set()
    expect(visitor.ended()).to_have_text("The first and the rest.")
    expect(visitor.find("#announcer")).to_have_text("The first and the rest.")


def test_an_error_in_the_middle_keeps_what_came_and_offers_another_try(scripted: ScriptedServer, visit: Any) -> None:
    scripted.script = lambda exchange: exchange.stream(
        delta(content="Half an ans"), {"error": {"message": "the engine fell over", "code": "engine_dead"}}
    )
    visitor = visit(scripted.url)
    visitor.ask("Hello?")
    expect(visitor.content).to_have_text("Half an ans")
    expect(visitor.answer.locator("[data-part=failure]")).to_contain_text("the engine fell over")
    scripted.script = lambda exchange: exchange.say("A whole answer.")
    visitor.button("Retry").click()
    expect(visitor.answer.locator("[data-part=count]")).to_have_text("2/2")
    expect(visitor.ended()).to_have_text("A whole answer.")


@pytest.mark.parametrize("ending", [[], ["[DONE]"]])
def test_a_stream_that_ends_without_an_end_is_cut(scripted: ScriptedServer, visit: Any, ending: list[str]) -> None:
    scripted.script = lambda exchange: exchange.stream(delta(content="Half an ans"), *ending)
    visitor = visit(scripted.url)
    assert visitor.ask("Hello?").inner_text() == "Half an ans"
    expect(visitor.notice).to_contain_text("Cut off")


def test_events_that_are_no_json_and_answers_that_are_no_stream_are_told(scripted: ScriptedServer, visit: Any) -> None:
    visitor = visit(scripted.url)
    scripted.script = lambda exchange: exchange.stream("{broken")
    visitor.ask("Hello?")
    expect(visitor.answer.locator("[data-part=failure]")).to_contain_text("not a JSON object")
    scripted.script = lambda exchange: exchange.refuse(200, "")
    visitor.button("Retry").click()
    visitor.ended()
    expect(visitor.answer.locator("[data-part=failure]")).to_contain_text("not a stream of events")


@pytest.mark.parametrize("status", [429, 503])
def test_a_refusal_shows_how_long_to_wait_and_a_retry_replaces_it(
    scripted: ScriptedServer, visit: Any, status: int
) -> None:
    scripted.script = lambda exchange: exchange.refuse(status, "too many requests wait", Retry_After="7")
    visitor = visit(scripted.url)
    visitor.tolerated += (str(status),)
    visitor.ask("Hello?")
    expect(visitor.answer.locator("[data-part=failure]")).to_contain_text("too many requests wait")
    expect(visitor.answer.locator("[data-part=retry-after]")).to_have_text("The server asks to wait 7 s.")
    scripted.script = lambda exchange: exchange.say("There you are.")
    visitor.button("Retry").click()
    expect(visitor.ended()).to_have_text("There you are.")
    expect(visitor.find(".answer")).to_have_count(1)
    expect(visitor.answer.locator("[data-part=versions]")).to_be_hidden()


def test_a_server_that_loads_is_told_and_then_its_models_are_there(scripted: ScriptedServer, visit: Any) -> None:
    scripted.state, scripted.models = "loading", []
    visitor = visit(scripted.url)
    visitor.tolerated += ("503",)
    expect(visitor.find("#banner")).to_contain_text("still loading")
    scripted.state, scripted.models = "ready", ["one", "two"]
    expect(visitor.find("#banner")).to_be_hidden()
    expect(visitor.find("#models option")).to_have_text(["one", "two"])
    visitor.find("#models").select_option("two")
    visitor.page.reload()
    expect(visitor.find("#models")).to_have_value("two")
    visitor.ask("Hello?")
    assert scripted.asked[-1]["model"] == "two"


def test_the_queue_is_the_sum_over_models_and_may_be_missing(scripted: ScriptedServer, visit: Any) -> None:
    visitor = visit(scripted.url)
    expect(visitor.find("#queue")).to_have_text("3 running · 4 waiting")
    scripted.metrics = None
    visitor.tolerated += ("404",)
    expect(visitor.find("#queue")).to_be_empty()


def test_a_page_that_nobody_sees_asks_nothing(scripted: ScriptedServer, visit: Any) -> None:
    visitor = visit(scripted.url)
    visitor.page.clock.install()
    visitor.page.reload()
    expect(visitor.find("#queue")).not_to_be_empty()
    requests: list[str] = []
    visitor.page.on("request", lambda request: requests.append(request.url))
    show = """(hidden) => {
      Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
      document.dispatchEvent(new Event("visibilitychange"));
    }"""
    visitor.evaluate(show, True)
    visitor.page.clock.run_for(1000)  # the end of what it may be asking just now
    requests.clear()
    visitor.page.clock.run_for(60_000)
    assert requests == []
    with visitor.page.expect_request("**/readyz"):
        visitor.evaluate(show, False)
    with visitor.page.expect_request("**/metrics"):
        visitor.page.clock.run_for(10_000)


def test_reasoning_is_folded_and_tool_calls_are_shown(scripted: ScriptedServer, visit: Any) -> None:
    def script(exchange: Exchange) -> None:
        function = {"name": "get_weather", "arguments": '{"city":'}
        exchange.stream(
            delta(reasoning="Let me ", reasoning_content="Let me "),
            delta(reasoning="think."),
            delta(tool_calls=[{"index": 0, "id": "call-1", "type": "function", "function": function}]),
            delta(tool_calls=[{"index": 0, "function": {"arguments": ' "Oslo"}'}}]),
        )
        exchange.finish()

    scripted.script = script
    visitor = visit(scripted.url)
    visitor.ask("Hello?")
    thoughts = visitor.answer.locator("[data-part=reasoning-text]")
    expect(thoughts).to_be_hidden()
    visitor.answer.get_by_text("Reasoning", exact=True).click()
    expect(thoughts).to_have_text("Let me think.")
    expect(visitor.answer.locator("[data-part=name]")).to_have_text("get_weather")
    expect(visitor.answer.locator("[data-part=arguments]")).to_have_text('{"city": "Oslo"}')
    visitor.ask("And?")
    sent = scripted.asked[-1]["messages"][1]
    assert sent["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": '{"city": "Oslo"}'}


def test_what_is_asked_is_the_branch_the_prompt_and_the_sampling(scripted: ScriptedServer, visit: Any) -> None:
    visitor = visit(scripted.url)
    visitor.button("System prompt and sampling").click()
    fields = {"temperature": "0.5", "top_p": "0.9", "top_k": "40", "min_p": "0.05", "max_tokens": "64", "seed": "7"}
    for name, value in {**fields, "system": "Be brief.", "stop": "###\n\\n\\n"}.items():
        visitor.find(f"#settings-form [name={name}]").fill(value)
    visitor.press("Escape")
    visitor.ask("One")
    visitor.ask("Two")
    expected = {name: json.loads(value) for name, value in fields.items()}
    assert scripted.asked[-1] == {
        **expected,
        "stop": ["###", "\n\n"],
        "model": "scripted",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "One"},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "Two"},
        ],
    }
    visitor.button("System prompt and sampling").click()
    visitor.find("[name=temperature]").fill("3")  # out of range: not sent
    visitor.press("Escape")
    visitor.ask("Three")
    assert "temperature" not in scripted.asked[-1]


def test_copying_a_message_and_a_block_of_code(scripted: ScriptedServer, visit: Any) -> None:
    answer = "Like **this**:\n\n```python\nprint('<b>')\n```\n"
    scripted.script = lambda exchange: exchange.say(answer)
    visitor = visit(scripted.url, permissions=["clipboard-read", "clipboard-write"])
    visitor.ask("How?")
    expect(visitor.answer.locator("figcaption")).to_have_text("python")
    visitor.button("Copy code").click()
    expect(visitor.find("#announcer")).to_have_text("Copied")
    assert visitor.evaluate("() => navigator.clipboard.readText()") == "print('<b>')"
    visitor.answer.get_by_role("button", name="Copy message").click()
    expect(visitor.answer.locator(".actions .copied")).to_be_visible()
    assert visitor.evaluate("() => navigator.clipboard.readText()") == answer


def test_copying_where_the_browser_has_no_clipboard_for_scripts(scripted: ScriptedServer, visit: Any) -> None:
    visitor = visit(scripted.url)
    visitor.evaluate("() => Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    visitor.ask("How?")
    visitor.answer.get_by_role("button", name="Copy message").click()
    expect(visitor.find("#announcer")).to_have_text("Copied")
    visitor.find("#text").press("Control+V")
    expect(visitor.find("#text")).to_have_value("Hello.")


HOSTILE = """\
<img src=x onerror="window.hacked = 1"> <script>window.hacked = 2</script>
[a](javascript:window.hacked=3) [b](  JaVaScRiPt:alert(1)) [c](data:text/html,x) [d](<java
script:x>) [e](//evil.example/x) [f](vbscript:x) <javascript:alert(1)>
![picture](https://evil.example/track.png) [g](https://ok.example/"onclick="x)

<iframe srcdoc="<script>parent.hacked = 4</script>"></iframe>

```"><img src=x onerror=alert(1)>
</code></pre><script>window.hacked = 5</script>
```

| <b>x</b> | <svg onload=alert(1)> |
|---|---|
| [h](javascript:x) | <style>*{display:none}</style> |
"""


def test_hostile_markdown_stays_text(scripted: ScriptedServer, visit: Any) -> None:
    scripted.script = lambda exchange: exchange.say(*HOSTILE)
    visitor = visit(scripted.url)
    content = visitor.ask('<img src=x onerror="window.hacked = 6">')
    assert visitor.evaluate("() => window.hacked") is None
    wrong = "script, img, iframe, svg:not(.copy svg), style, b, [onerror], [onclick], [onload], [style]"
    assert visitor.evaluate(f"() => document.querySelectorAll('#transcript .markdown :is({wrong})').length") == 0
    links = content.locator("a").evaluate_all("all => all.map(({href, rel}) => [href, rel])")
    assert links == [
        ["https://evil.example/track.png", "noopener noreferrer"],
        ["https://ok.example/%22onclick=%22x", "noopener noreferrer"],
    ]
    expect(content).to_contain_text('<img src=x onerror="window.hacked = 1">')
    expect(content).to_contain_text("[a](javascript:window.hacked=3)")
    visitor.page.reload()
    expect(visitor.content).to_contain_text("<script>window.hacked = 2</script>")
    assert visitor.evaluate("() => window.hacked") is None


def test_keys(scripted: ScriptedServer, visit: Any, gate: threading.Event) -> None:
    visitor = visit(scripted.url)
    box = visitor.find("#text")
    expect(box).to_be_focused()
    box.press_sequentially("One?")
    visitor.press("Shift+Enter")
    box.press_sequentially("/ two")
    visitor.press("Enter")
    expect(visitor.ended()).to_have_text("Hello.")
    assert scripted.asked[-1]["messages"][0]["content"] == "One?\n/ two"
    expect(box).to_be_focused()

    visitor.press("ArrowUp")
    editor = visitor.find("[data-part=editor]")
    expect(editor).to_be_focused()
    expect(editor).to_have_value("One?\n/ two")
    visitor.press("Escape")
    expect(editor).to_be_hidden()
    visitor.press("?")
    expect(visitor.find("#keys")).to_be_visible()
    visitor.press("Escape")
    expect(visitor.find("#keys")).to_be_hidden()
    visitor.press("/")
    expect(box).to_be_focused()
    expect(box).to_have_value("")
    visitor.press("?")
    expect(box).to_have_value("?")

    def script(exchange: Exchange) -> None:
        exchange.stream(delta(content="Slowly"))
        gate.wait(LIMIT)

    scripted.script = script
    visitor.press("Enter")
    expect(visitor.content).to_have_text("Slowly")
    visitor.press("Escape")
    expect(visitor.notice).to_have_text("Stopped.")


def test_the_keyboard_keeps_its_place(scripted: ScriptedServer, visit: Any, gate: threading.Event) -> None:
    def script(exchange: Exchange) -> None:
        gate.wait(LIMIT)
        gate.clear()
        exchange.refuse(503, "not now")

    scripted.script = script
    visitor = visit(scripted.url)
    visitor.tolerated += ("503",)
    visitor.find("#text").fill("Hello?")
    visitor.press("Tab")
    expect(visitor.button("Send")).to_be_focused()
    visitor.press("Enter")
    expect(visitor.button("Stop")).to_be_focused()
    gate.set()
    expect(visitor.button("Send")).to_be_focused()
    visitor.button("Retry").focus()
    visitor.press("Enter")
    expect(visitor.button("Stop")).to_be_focused()
    gate.set()
    visitor.button("Keyboard shortcuts").focus()
    visitor.press("Enter")
    expect(visitor.find("#keys")).to_be_visible()
    visitor.press("Escape")
    expect(visitor.button("Keyboard shortcuts")).to_be_focused()


def test_an_answer_goes_on_while_another_conversation_is_read(
    scripted: ScriptedServer, visit: Any, gate: threading.Event
) -> None:
    def script(exchange: Exchange) -> None:
        if exchange.body["messages"][0]["content"] == "Slow?":
            exchange.stream(delta(content="Slow"))
            gate.wait(LIMIT)
        exchange.say("ly.")

    scripted.script = script
    visitor = visit(scripted.url)
    visitor.write("Slow?")
    expect(visitor.content).to_have_text("Slow")
    visitor.button("New conversation").click()
    visitor.ask("Quick?")
    expect(visitor.content).to_have_text("ly.")
    gate.set()
    expect(visitor.find("#chats .running")).to_have_count(0)
    visitor.button("Slow?").click()
    expect(visitor.content).to_have_text("Slowly.")


def test_a_reload_in_the_middle_keeps_what_came(scripted: ScriptedServer, visit: Any, gate: threading.Event) -> None:
    def script(exchange: Exchange) -> None:
        exchange.stream(delta(content="Half"))
        gate.wait(LIMIT)

    scripted.script = script
    visitor = visit(scripted.url)
    visitor.write("Hello?")
    expect(visitor.content).to_have_text("Half")
    visitor.page.reload()
    expect(visitor.content).to_have_text("Half")
    expect(visitor.notice).to_contain_text("Cut off")


def test_conversations_are_deleted_brought_back_and_exported(
    scripted: ScriptedServer, visit: Any, tmp_path: Path
) -> None:
    visitor = visit(scripted.url)
    visitor.ask("Grüß dich, Welt!")
    with visitor.page.expect_download() as download:
        visitor.button("Export the conversation as JSON").click()
    assert download.value.suggested_filename == "grüß-dich-welt.json"
    download.value.save_as(tmp_path / "chat.json")
    exported = json.loads((tmp_path / "chat.json").read_text(encoding="utf-8"))
    assert [(one["role"], one["content"]) for one in exported["messages"]] == [
        ("user", "Grüß dich, Welt!"),
        ("assistant", "Hello."),
    ]
    visitor.button("Delete Grüß dich, Welt!").click()
    expect(visitor.find("#chats li")).to_have_count(0)
    expect(visitor.find("#welcome")).to_be_visible()
    visitor.button("Undo").click()
    expect(visitor.content).to_have_text("Hello.")
    visitor.button("Delete Grüß dich, Welt!").click()
    visitor.page.reload()
    expect(visitor.find("#chats li")).to_have_count(0)


def test_two_windows_do_not_overwrite_each_other(scripted: ScriptedServer, visit: Any) -> None:
    visitor = visit(scripted.url)
    visitor.ask("First window")
    other = visitor.context.new_page()
    other.goto(scripted.url)
    other.locator("#text").fill("Second window")
    other.locator("#text").press("Enter")
    expect(other.locator(".answer [data-part=content]")).to_have_text("Hello.")
    expect(visitor.find("#chats li")).to_have_count(2)
    visitor.ask("More")
    other.reload()
    expect(other.locator("#chats li")).to_have_count(2)


def test_a_browser_without_room_says_so(scripted: ScriptedServer, visit: Any) -> None:
    visitor = visit(scripted.url)
    visitor.evaluate(
        "() => { for (let size = 1 << 22; size; size >>= 1)"
        " try { localStorage.setItem(`x${size}`, 'x'.repeat(size)) } catch {} }"
    )
    visitor.ask("Hello?")
    expect(visitor.content).to_have_text("Hello.")
    expect(visitor.find("#toast")).to_contain_text("no room left")


def test_what_others_wrote_into_the_storage_does_no_harm(scripted: ScriptedServer, visit: Any) -> None:
    visitor = visit(scripted.url)
    visitor.evaluate(
        "() => { localStorage['windlass.chat.x'] = '{'; localStorage['windlass.chat.y'] = '{\"id\": 3}';"
        " localStorage['windlass.settings'] = '7'; }"
    )
    visitor.page.reload()
    assert visitor.ask("Hello?").inner_text() == "Hello."


def background(visitor: Any) -> int:
    """How light the page is, 0 to 255."""
    return int(visitor.evaluate("() => getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/)[0]"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_dark_and_light(scripted: ScriptedServer, visit: Any, scheme: str) -> None:
    visitor = visit(scripted.url, color_scheme=scheme)
    assert (background(visitor) > 200) == (scheme == "light")
    theme = visitor.button("Theme: system, light or dark")
    theme.click()
    assert background(visitor) > 200
    theme.click()
    assert background(visitor) < 60
    visitor.page.reload()
    assert background(visitor) < 60
    theme.click()
    assert (background(visitor) > 200) == (scheme == "light")


WIDE = (
    "x" * 300 + "\n\n```\n" + "y" * 300 + "\n```\n\n|" + "z" * 50 + "|" + "w" * 50 + "|\n|-|-|\n|1|2|\n\n# " + "h" * 200
)


def test_a_phone(scripted: ScriptedServer, visit: Any) -> None:
    scripted.script = lambda exchange: exchange.say(WIDE, reasoning_content=WIDE)
    visitor = visit(scripted.url, viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    visitor.ask("v" * 300)
    visitor.answer.get_by_text("Reasoning", exact=True).click()
    for selector in ("html", "#scroller"):
        width = visitor.find(selector).evaluate("element => element.scrollWidth - element.clientWidth")
        assert width == 0, selector
    for selector in ("pre", ".table"):
        scrolled = "element => { element.scrollLeft = 40; return element.scrollLeft }"
        assert visitor.content.locator(selector).evaluate(scrolled) == 40, selector
    expect(visitor.find("#sidebar")).not_to_be_in_viewport()
    visitor.button("Conversations").click()
    expect(visitor.button("New conversation")).to_be_in_viewport()
    expect(visitor.button("New conversation")).to_be_focused()
    visitor.press("Shift+Tab")
    expect(visitor.find("main :focus")).to_have_count(0)
    visitor.press("Escape")
    expect(visitor.find("#sidebar")).not_to_be_in_viewport()
    expect(visitor.button("Conversations")).to_be_focused()
    visitor.button("Conversations").click()
    visitor.button("New conversation").click()
    expect(visitor.find("#sidebar")).not_to_be_in_viewport()
    expect(visitor.find("#text")).to_be_focused()
    visitor.button("System prompt and sampling").click()
    expect(visitor.button("Reset to defaults")).to_be_visible()
    assert visitor.find("#settings").evaluate("element => element.scrollWidth - element.clientWidth") == 0


def test_nothing_moves_for_those_who_do_not_want_it(scripted: ScriptedServer, visit: Any) -> None:
    visitor = visit(scripted.url, reduced_motion="reduce")
    visitor.evaluate("() => document.body.classList.add('answering')")
    assert visitor.evaluate("() => document.getAnimations().length") == 0


def test_the_end_is_followed_until_the_user_scrolls_up(
    scripted: ScriptedServer, visit: Any, gate: threading.Event
) -> None:
    def script(exchange: Exchange) -> None:
        for round_ in range(3):
            exchange.stream(*(delta(content=f"Line {round_}.{line}\n\n") for line in range(60)))
            gate.wait(LIMIT)
            gate.clear()
        exchange.finish()

    scripted.script = script
    visitor = visit(scripted.url)
    visitor.write("Go")
    expect(visitor.page.get_by_text("Line 0.59")).to_be_in_viewport()
    expect(visitor.button("To the end")).to_be_hidden()
    visitor.find("#scroller").hover()
    visitor.page.mouse.wheel(0, -600)
    expect(visitor.button("To the end")).to_be_visible()
    place = visitor.find("#scroller").evaluate("element => element.scrollTop")
    gate.set()
    expect(visitor.page.get_by_text("Line 1.59")).to_be_attached()
    assert visitor.find("#scroller").evaluate("element => element.scrollTop") == place
    visitor.button("To the end").click()
    expect(visitor.page.get_by_text("Line 1.59")).to_be_in_viewport()
    gate.set()
    expect(visitor.page.get_by_text("Line 2.59")).to_be_in_viewport()
    gate.set()
    visitor.ended()


LONGEST_TASK = """
() => {
  window.longest = 0;
  new PerformanceObserver((list) => {
    for (const {duration} of list.getEntries()) window.longest = Math.max(window.longest, duration);
  }).observe({type: "longtask"});
}
"""


@pytest.mark.parametrize("shape", ["paragraphs", "code", "list"])
def test_a_very_long_answer_does_not_hold_the_page_up(scripted: ScriptedServer, visit: Any, shape: str) -> None:
    text = {"paragraphs": "Some **words** of it.\n\n", "code": "a = b  # c\n", "list": "- an *item* of it\n"}[shape]
    begin = "```\n" if shape == "code" else ""

    def script(exchange: Exchange) -> None:
        exchange.stream(delta(content=begin))
        for _ in range(200):  # about ten thousand tokens, in events of ten
            exchange.stream(b"".join(b"data: %s\n\n" % json.dumps(delta(content=text)).encode() for _ in range(10)))
        exchange.finish(10_000)

    scripted.script = script
    visitor = visit(scripted.url)
    visitor.evaluate(LONGEST_TASK)
    visitor.ask("Go")
    assert len(visitor.content.inner_text()) > 2000 * 8
    assert visitor.evaluate("() => longest") < 1000
