"""How the page is served; what it does is in tests/browser."""

from __future__ import annotations

import re
from importlib.resources import files

from support.server import KEY, serving
from windlass.server.routes.page import CONTENT_SECURITY_POLICY, FILES, PATHS

SOURCES = {path.name: path.read_text(encoding="utf-8") for path in (files("windlass.server") / "page").iterdir()}


def test_the_page_needs_no_key_and_nothing_that_is_not_ours() -> None:
    with serving(api_keys=(KEY,)) as server:
        for path, name in PATHS.items():
            answer = server.request("GET", path)
            assert answer.status == 200, path
            assert answer.body.decode() == SOURCES[name]
            assert answer.headers["content-type"] == f"{FILES[name]}; charset=utf-8"
            assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
        assert server.request("GET", "/page/nothing.js", headers={"x-api-key": KEY}).status == 404


def test_a_browser_that_has_the_page_is_told_so() -> None:
    with serving() as server:
        first = server.request("GET", "/")
        assert first.headers["cache-control"] == "no-cache"
        tag = first.headers["etag"]
        for given in (tag, f"W/{tag}", f'"other", {tag}'):
            again = server.request("GET", "/", headers={"if-none-match": given})
            assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)
        assert server.request("GET", "/", headers={"if-none-match": '"other"'}).status == 200
        head = server.request("HEAD", "/")
        assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(first.body)))


def test_every_file_is_served_and_everything_asked_for_is_there() -> None:
    assert set(FILES) == set(SOURCES)
    html = SOURCES["index.html"]
    wanted = set(re.findall(r'(?:src|href)="page/([^"]+)"', html))
    for name, text in SOURCES.items():
        if name.endswith(".js"):
            wanted |= set(re.findall(r'from "\./([^"]+)"', text))
    assert wanted == set(FILES) - {"index.html"}


def test_the_page_keeps_to_its_own_policy() -> None:
    html = SOURCES["index.html"]
    assert not re.search(r'\s(style|on\w+)="', html)
    assert not re.search(r"<style|<script(?! (type=\"module\" )?src=)", html)
    for name, text in SOURCES.items():
        for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert forbidden not in text, name
    assert not re.search(r"url\(|@import", SOURCES["page.css"])


def test_every_element_that_the_scripts_name_is_in_the_page() -> None:
    html = SOURCES["index.html"]
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    scripts = "".join(text for name, text in SOURCES.items() if name.endswith(".js"))
    named = set(re.findall(r'(?:byId|showDialog|onSubmit|fromTemplate)\("([^"]+)"', scripts))
    assert named <= set(ids)
    assert set(re.findall(r' for="([^"]+)"| href="#([^"]+)"', html)) <= {(one, "") for one in ids} | {
        ("", one) for one in ids
    }
