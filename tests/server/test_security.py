"""Who may call, from where, and with what: the classes of attack that a server of its kind has seen, one test each."""

from __future__ import annotations

import logging
import re
import selectors
import socket
import statistics
import time
from collections.abc import Iterator
from typing import Any

import pytest

from support.http_streams import ASK, CHAT, TEXT
from support.lifecycle import LIMIT, resident_bytes
from support.server import DEMO, RunningServer, serving, until
from support.sockets import RawClient, head, open_requests, post
from windlass.server.app import make_api, make_routers
from windlass.server.context import Context
from windlass.server.guard import open_paths
from windlass.server.served import ServedModels
from windlass.server.settings import ServerSettings
from windlass.text.tokenizer import Tokenizer

KEY = "sk-right-8f3b"
SHORT = {**ASK, "max_tokens": 1}
SECRET = "s3cr3t-9d21"  # noqa: S105  (of the test)


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def locked() -> Iterator[RunningServer]:
    """A server with keys, and pages that may call it."""
    with serving(api_keys=("sk-other", KEY), cors_origins=("https://chat.example",)) as running:
        yield running


# Where it listens (a server that was open to the world without anyone meaning it)


def test_it_listens_on_the_loopback_interface_unless_told_otherwise() -> None:
    assert ServerSettings().host == "127.0.0.1"
    with serving() as server, socket.socket() as probe:
        addresses = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
        for address in addresses - {"127.0.0.1"}:
            assert probe.connect_ex((str(address), server.port)) != 0 or str(address).startswith("127.")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "example.com", "127.1", "localhost.evil.example"])  # noqa: S104
def test_other_machines_need_a_key_or_insecure(host: str) -> None:
    with pytest.raises(ValueError, match="--insecure"):
        ServerSettings(host=host)
    ServerSettings(host=host, api_keys=(KEY,))
    ServerSettings(host=host, insecure=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_this_machine_needs_none(host: str) -> None:
    assert ServerSettings(host=host).is_local


# Keys (CVE-2025-59425: compared in a time that tells; routes that were forgotten)


def test_every_route_asks_for_a_key_but_those_that_are_written_down(locked: RunningServer) -> None:
    context = Context(ServedModels([DEMO]), ServerSettings(enable_debug=True))
    api = make_api(context, make_routers(context))
    routes = list(_routes(api))
    assert len(routes) > 10
    for path, method in routes:
        path = re.sub(r"\{[^}]*\}", "x", path)
        status = locked.request(method, path).status
        assert status not in (401, 403) if path in open_paths(ServerSettings()) else status == 401, path


def _routes(router: Any) -> Iterator[tuple[str, str]]:
    for route in router.routes:
        if hasattr(route, "path"):
            yield from ((route.path, method) for method in route.methods)
        else:
            yield from _routes(route.original_router)


def test_what_is_open_is_the_probes_and_the_page() -> None:
    assert {path for path in open_paths(ServerSettings()) if not path.startswith("/page/")} == {
        "/",
        "/livez",
        "/readyz",
        "/health",
    }


@pytest.mark.parametrize(
    "path",
    [
        "/nowhere",
        "/openapi.json",
        "/docs",
        "/metrics",
        "//livez",
        "/livez/",
        "/livez%2f..%2fv1/models",
        "/LIVEZ",
        "/page/../v1/models",
        "/page/page.css/../../etc/passwd",
        "/page/%2e%2e/guard.py",
        "/page/..%2fguard.py",
    ],
)
def test_a_path_that_is_no_route_asks_for_a_key_too(locked: RunningServer, path: str) -> None:
    assert locked.request("GET", path).status == 401


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": f"Bearer {KEY[:-1]}"},
        {"Authorization": f"Bearer {KEY.upper()}"},
        {"Authorization": f"Bearer sk-other, {KEY}"},
        {"Authorization": "Bearer \xe9\xff"},
        {"x-api-key": ""},
        {"x-api-key": "x" * 8000},
        {"Cookie": f"key={KEY}"},
    ],
)
def test_a_wrong_key_is_told_nothing(locked: RunningServer, headers: dict[str, str]) -> None:
    refused = locked.request("POST", CHAT, SHORT, headers)
    assert refused.status == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.body == locked.request("GET", "/v1/models").body
    assert KEY.encode() not in refused.body


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {KEY}"},
        {"Authorization": f"bearer  {KEY} "},
        {"x-api-key": "sk-other"},
        {"x-api-key": KEY, "Authorization": "Bearer something-else"},
    ],
)
def test_a_right_key_is_taken_in_either_header(locked: RunningServer, headers: dict[str, str]) -> None:
    assert locked.request("GET", "/v1/models", headers=headers).status == 200


def test_a_key_in_the_address_is_not_taken(locked: RunningServer) -> None:
    assert locked.request("GET", f"/v1/models?api_key={KEY}&key={KEY}").status == 401


@pytest.mark.alone
def test_a_wrong_key_takes_as_long_whatever_is_wrong(locked: RunningServer) -> None:
    """Not a proof, which is in the code; it fails where a key is compared byte by byte with a delay for each."""
    keys = {"none right": "x" * len(KEY), "all but one": KEY[:-1] + "x", "long": "x" * 1000}
    times: dict[str, list[float]] = {name: [] for name in keys}
    with RawClient(locked.port) as client:
        for _ in range(20):
            for name, key in keys.items():
                began = time.perf_counter()
                client.send(head("GET", "/v1/models", {"x-api-key": key}))
                assert client.answer("GET").status == 401
                times[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    assert max(medians.values()) < 3 * min(medians.values()), medians


def test_keys_are_shown_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    settings = ServerSettings(api_keys=(KEY,))
    assert KEY not in repr(settings)
    for bad in ("", f"{KEY} x", f"{KEY}\n", f"{KEY}é"):
        with pytest.raises(ValueError, match="API key") as raised:
            ServerSettings(api_keys=(bad,))
        assert not bad or bad not in str(raised.value)
    with caplog.at_level(logging.DEBUG), serving(api_keys=(KEY,)) as server:
        server.request("GET", "/v1/models", headers={"x-api-key": KEY})
        server.request("GET", "/v1/models", headers={"x-api-key": SECRET})
    assert KEY not in caplog.text
    assert SECRET not in caplog.text


# Pages of other origins (CVE-2024-28224: DNS rebinding; CSRF; CORS that reflects any origin)


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:80", "127.0.0.1", "127.0.0.1:8000", "127.8.8.8", "[::1]", "[::1]:8000", "api.example:443"],
)
def test_a_known_host_may_be_called(host: str) -> None:
    with serving(allowed_hosts=("API.example",)) as server:
        assert server.request("GET", "/version", headers={"Host": host}).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "",
        "::1]",
        "10.0.0.1",
        "localhost:8000:8000",
        "localhost@evil.example",
        "[::1].evil.example",
        "0.0.0.0",  # noqa: S104
        "localhost.",
    ],
)
@pytest.mark.parametrize("path", ["/version", "/livez", "/"])
def test_a_foreign_host_may_not(server: RunningServer, host: str, path: str) -> None:
    refused = server.request("GET", path, headers={"Host": host})
    assert (refused.status, refused.json["error"]["code"]) == (403, "host_not_allowed")


def test_HTTP_1_0_without_a_host_may_not(server: RunningServer) -> None:
    with RawClient(server.port) as client:
        client.send(b"GET /version HTTP/1.0\r\n\r\n")
        assert client.answer("GET").status == 403


def test_a_server_for_other_machines_takes_any_host_unless_some_are_named() -> None:
    with serving(host="0.0.0.0", api_keys=(KEY,)) as server:  # noqa: S104
        assert server.request("GET", "/livez", headers={"Host": "api.example"}).status == 200
    with serving(host="0.0.0.0", api_keys=(KEY,), allowed_hosts=("api.example",)) as server:  # noqa: S104
        assert server.request("GET", "/livez", headers={"Host": "api.example"}).status == 200
        assert server.request("GET", "/livez").status == 200
        assert server.request("GET", "/livez", headers={"Host": "evil.example"}).status == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:1"},
    ],
)
def test_a_page_of_another_origin_may_not_post(server: RunningServer, headers: dict[str, str]) -> None:
    refused = server.request("POST", CHAT, SHORT, headers)
    assert (refused.status, refused.json["error"]["code"]) == (403, "origin_not_allowed")


def test_the_own_page_may(server: RunningServer) -> None:
    own = f"127.0.0.1:{server.port}"
    for headers in (
        {"Origin": f"http://{own}", "Host": own},
        {"Origin": f"http://{own}", "Host": own, "Sec-Fetch-Site": "same-origin"},
    ):
        assert server.request("POST", CHAT, SHORT, headers).status == 200


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "application/jsonp"],
)
@pytest.mark.parametrize("path", [CHAT, TEXT, "/v1/responses", "/v1/messages"])
def test_a_form_is_not_taken_for_json(server: RunningServer, path: str, kind: str) -> None:
    refused = server.request("POST", path, b'{"messages": []}', {"Content-Type": kind})
    assert refused.status == 415


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "APPLICATION/JSON"])
def test_json_is(server: RunningServer, kind: str) -> None:
    assert server.request("POST", CHAT, SHORT, {"Content-Type": kind}).status == 200


def test_no_page_may_read_answers_unless_told_otherwise(server: RunningServer) -> None:
    for method, path in (("GET", "/version"), ("OPTIONS", CHAT), ("GET", "/nowhere")):
        headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        answer = server.request(method, path, headers=headers)
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_pages_of_named_origins_may_read_answers(locked: RunningServer) -> None:
    page = {"Origin": "https://chat.example"}
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    before = locked.request("OPTIONS", CHAT, headers={**page, **asked})
    assert before.status == 200
    assert before.headers["access-control-allow-origin"] == page["Origin"]
    assert "authorization" in before.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in before.headers
    answer = locked.request(
        "POST", CHAT, SHORT, {**page, "Authorization": f"Bearer {KEY}", "Sec-Fetch-Site": "cross-site"}
    )
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, page["Origin"])
    refused = locked.request("POST", CHAT, SHORT, page)
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, page["Origin"])
    for other in ("https://evil.example", "https://chat.example.evil.example", "http://chat.example", "null"):
        answer = locked.request("OPTIONS", CHAT, headers={**asked, "Origin": other})
        assert answer.status == 401
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("origin", ["*", "https://*.example", "chat.example", "https://chat.example/", "null", ""])
def test_an_origin_is_exact(origin: str) -> None:
    with pytest.raises(ValueError, match="cors_origins"):
        ServerSettings(cors_origins=(origin,))


# Responses


def test_every_response_says_what_it_is_and_not_who(server: RunningServer) -> None:
    requests = [("GET", "/livez", None), ("GET", "/nowhere", None), ("GET", "/", None), ("POST", CHAT, b"{")]
    for method, path, body in [*requests, ("POST", CHAT, {**SHORT, "stream": True})]:
        answer = server.request(method, path, body)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert not {"server", "x-powered-by"} & answer.headers.keys()


@pytest.mark.parametrize(
    "path",
    [
        "/page/../guard.py",
        "/page/page.css/../../guard.py",
        "/page/%2e%2e/guard.py",
        "/page/..%2fguard.py",
        "/page/....//guard.py",
        "/page//etc/passwd",
        "/page/..%5cguard.py",
        "/page/page.css%00.html",
        "/page/",
        "/page",
    ],
)
def test_the_page_is_no_way_to_other_files(server: RunningServer, path: str) -> None:
    """CVE-2024-37032 and others: path traversal."""
    assert server.request("GET", path).status == 404


# What one call may ask for (CVE-2026-34756 and others: unbounded n, prompts, stop strings, biases)


def _chat(**fields: Any) -> tuple[str, dict[str, Any]]:
    return CHAT, {**SHORT, **fields}


def _text(**fields: Any) -> tuple[str, dict[str, Any]]:
    return TEXT, {"prompt": "a", "max_tokens": 1, **fields}


TOO_MUCH = {
    "n": _chat(n=17),
    "best_of": _text(best_of=2),
    "top_logprobs": _chat(logprobs=True, top_logprobs=21),
    "logprobs": _text(logprobs=6),
    "stop": _chat(stop=["x"] * 17),
    "stop ": _chat(stop="x" * 257),
    "logit_bias": _chat(logit_bias={str(number): 1 for number in range(1025)}),
    "messages": _chat(messages=[{"role": "user", "content": "a"}] * 5000),
    "tools": _chat(tools=[{"type": "function", "function": {"name": "f"}}] * 129),
    "prompt": _text(prompt=["a"] * 65),
    "prompt ": _text(prompt=[[1]] * 65),
    "prompt  ": _text(prompt=["a"] * 64, n=16),
    "suffix": _text(suffix="x" * 70_000),
    "request_id": _chat(request_id="x"),
    "max_tokens": _chat(max_tokens=0),
    "max_tokens ": _chat(max_tokens=-1),
    "max_tokens  ": _chat(max_tokens=True),
    "max_tokens   ": _chat(max_tokens=1.5),
    "max_tokens    ": _chat(max_tokens="1"),
    "seed": _chat(seed=2**63),
    "seed ": _chat(seed=10**4000),
    "temperature": _chat(temperature=-1),
    "temperature ": _chat(temperature=True),
    "top_p": _chat(top_p=0),
    "top_k": _chat(top_k=-1),
    "logit_bias ": _chat(logit_bias={"-1": 1}),
    "logit_bias  ": _chat(logit_bias={"99999999999999999999": 1}),
    "logit_bias   ": _chat(logit_bias={"1": 101}),
    "prompt   ": _text(prompt=[-1]),
    "prompt    ": _text(prompt=[2**31]),
    "prompt     ": _text(prompt=[2**63]),
    "prompt      ": _text(prompt=[True]),
    "prompt       ": _text(prompt=[]),
    "prompt        ": _text(prompt=[[]]),
    "prompt         ": _text(prompt=[["a"]]),
    "messages ": _chat(messages=[]),
    "messages  ": _chat(messages={}),
    "messages   ": _chat(messages=[[]]),
    "messages    ": _chat(messages=[{"role": "x"}]),
    "messages     ": _chat(messages=[{"role": "user", "content": 1}]),
    "messages      ": _chat(
        messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://10.0.0.1/"}}]}]
    ),
    "messages       ": _chat(messages=[{"role": "user", "content": "x" * 1_000_000}]),
    "response_format": _chat(response_format={"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}),
    "tool_choice": _chat(tools=[{"type": "function", "function": {"name": "f"}}], tool_choice="required"),
    "chat_template_kwargs": _chat(chat_template_kwargs={"messages": []}),
    "chat_template_kwargs ": _chat(chat_template_kwargs={"tools": []}),
    "chat_template_kwargs  ": _chat(chat_template_kwargs={"add_generation_prompt": False}),
    "extra_body": _chat(extra_body={"n": 1000}),
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_a_call_that_asks_for_too_much_is_refused_by_name(server: RunningServer, name: str) -> None:
    path, body = TOO_MUCH[name]
    refused = server.request("POST", path, body)
    assert refused.status == 400, refused.body
    assert refused.json["error"]["param"] == name.strip(), refused.json


@pytest.mark.parametrize("name", ["self", "engine", "create", "stream_", "host", "x" * 1_000_000, "", "\u0000", "é"])
@pytest.mark.parametrize("path", [CHAT, TEXT, "/v1/responses", "/v1/messages"])
def test_an_unknown_field_is_refused_whatever_its_name(server: RunningServer, path: str, name: str) -> None:
    bodies = {CHAT: SHORT, TEXT: {"prompt": "a"}, "/v1/responses": {"input": "a"}}
    refused = server.request("POST", path, {**bodies.get(path, {**SHORT, "max_tokens": 1}), name: 1})
    assert refused.status == 400
    assert len(refused.body) < 10_000


RAW_JSON = {
    "1e999": b'{"temperature": 1e999, "messages": []}',
    "-1e999": b'{"temperature": -1e999, "messages": []}',
    "NaN": b'{"temperature": NaN}',
    "Infinity": b'{"temperature": Infinity}',
    "lone surrogate": b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    "lone low surrogate": b'{"messages": [{"role": "user", "content": "\\udc00x"}]}',
    "invalid UTF-8": b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
    "surrogate as UTF-8": b'{"messages": [{"role": "user", "content": "\xed\xa0\x80"}]}',
    "UTF-16": '{"messages": []}'.encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf{}",
    "raw NUL": b'{"messages": "\x00"}',
    "number of 100,000 digits": b'{"seed": ' + b"9" * 100_000 + b"}",
    "deep": b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"tools": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}",
    "many values": b'{"messages": [' + b"[]," * 1_000_000 + b"[]]}",
    "many keys": b"{" + b",".join(b'"%d":1' % number for number in range(300_000)) + b"}",
    "trailing": b'{"messages": []} {}',
    "empty": b"",
    "comment": b'{/**/"messages": []}',
    "null": b"null",
}


@pytest.mark.parametrize("name", RAW_JSON)
@pytest.mark.parametrize("path", [CHAT, "/v1/responses", "/v1/messages"])
def test_what_is_no_proper_json_is_400(server: RunningServer, path: str, name: str) -> None:
    began = time.monotonic()
    assert server.request("POST", path, RAW_JSON[name]).status == 400
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("depth", [30, 90, 150, 190])
@pytest.mark.parametrize(
    "field", ["messages", "tools", "chat_template_kwargs", "response_format", "logit_bias", "stop"]
)
def test_nesting_has_an_end(server: RunningServer, field: str, depth: int) -> None:
    """CVE-2025-48944 and others: schemas that bring down what reads them."""
    nested: Any = {"type": "object"}
    for _ in range(depth):
        nested = {"type": "object", "properties": {"a": nested}}
    values = {
        "messages": [{"role": "user", "content": "a", "extra": nested}],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": nested}}],
    }
    answer = server.request("POST", CHAT, {**SHORT, field: values.get(field, nested)})
    assert answer.status in (200, 400), answer.body


@pytest.mark.parametrize(
    "text", ["\x00", "a\x00b", "\u202e", "\ufeff", "\U0010ffff", "\u2028" * 100, "e" + "\u0301" * 50]
)
def test_odd_characters_are_text(server: RunningServer, text: str) -> None:
    answer = server.request("POST", CHAT, {**SHORT, "messages": [{"role": "user", "content": text}], "stop": [text]})
    assert answer.status == 200, answer.body


@pytest.mark.parametrize("text", ["a" * 1_000_000, "\n " * 300_000, "\U0001f600" * 250_000])
def test_a_very_long_text_is_refused_soon(server: RunningServer, text: str) -> None:
    """CVE-2025-46560: time that grows with the square of the length."""
    began = time.monotonic()
    refused = server.request("POST", CHAT, {**SHORT, "messages": [{"role": "user", "content": text}]})
    assert (refused.status, refused.json["error"]["code"]) == (400, "context_length_exceeded")
    assert time.monotonic() - began < 15


def test_special_tokens_in_a_text_are_text(server: RunningServer) -> None:
    """A user's text cannot end its turn and speak as the system."""
    plain = server.request("POST", CHAT, {**SHORT, "messages": [{"role": "user", "content": "a"}]})
    engine = server.engine
    special = next(iter(engine.tokenizer.tokenizer.special_texts))
    forged = server.request("POST", CHAT, {**SHORT, "messages": [{"role": "user", "content": f"a{special}"}]})
    added = forged.json["usage"]["prompt_tokens"] - plain.json["usage"]["prompt_tokens"]
    assert added > 1, special


# Secrets of others: exceptions, prompts, memory


BREAKS = {
    "tokenizer": "windlass.text.text_model.TextModel.encode_chat",
    "template": "windlass.text.chat_template.ChatTemplate.adapt",
    "queue": "windlass.engine.accounts.Accounts.open",
    "format": "windlass.serve.chat_format.ChatFormat.response",
    "parser": "windlass.server.bodies._parse",
    "model table": "windlass.server.served.ServedModels.choose",
}


@pytest.mark.parametrize("where", BREAKS)
@pytest.mark.parametrize("path", [CHAT, "/v1/messages"])
def test_no_client_reads_a_foreign_exception(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, where: str, path: str
) -> None:
    """CVE-2026-22778: the text of an exception told a client an address in memory."""

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError(SECRET)

    with monkeypatch.context() as patch:
        patch.setattr(BREAKS[where], fail)
        failed = server.request("POST", path, SHORT)
        probe = server.request("GET", "/readyz")
    assert failed.status == 500
    assert SECRET not in str(failed)
    assert "Traceback" not in str(failed)
    assert failed.json["error"]["message"] == "the server failed to answer this request"
    assert probe.status == 200
    assert server.request("POST", path, SHORT).status == 200


@pytest.mark.parametrize("kind", ["chat", "messages"])
def test_no_stream_tells_of_a_foreign_exception(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError(SECRET)

    path = {"chat": CHAT, "messages": "/v1/messages"}[kind]
    with monkeypatch.context() as patch:
        patch.setattr("windlass.serve.chat_format.ChatFormat.chunk", fail)
        failed = server.request("POST", path, {**SHORT, "stream": True})
    assert SECRET not in str(failed)
    assert b"the server failed to answer this request" in failed.body
    assert b"[DONE]" not in failed.body
    assert server.request("POST", path, SHORT).status == 200


def test_prompts_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), serving() as server:
        for text in (SECRET, SECRET * 10_000):
            body = {**SHORT, "messages": [{"role": "user", "content": text}], "user": SECRET}
            for fields in ({}, {"stream": True}, {"temperature": SECRET}, {SECRET: 1}, {"model": SECRET}):
                server.request("POST", CHAT, {**body, **fields})
        server.request("GET", f"/{SECRET}?{SECRET}")
        with RawClient(server.port) as client:
            client.send(post(CHAT, {**body, "n": 16, "max_tokens": 1000}))
        with RawClient(server.port) as client:
            client.send(f"{SECRET}\r\n\r\n".encode())
            client.rest()
    assert SECRET not in caplog.text


def test_memory_is_bounded_while_200_large_bodies_arrive(server: RunningServer) -> None:
    text = "x" * (4_000_000)
    body = {"messages": [{"role": "user", "content": text}], "temperature": 9}
    request = memoryview(post(CHAT, body))
    before = resident_bytes()
    peak, statuses = before, []
    clients = [RawClient(server.port) for _ in range(200)]
    sent = dict.fromkeys(clients, 0)
    try:
        with selectors.DefaultSelector() as ready:
            for client in clients:
                client.socket.setblocking(False)
                ready.register(client.socket, selectors.EVENT_WRITE, client)
            while ready.get_map():
                for key, _ in ready.select(LIMIT):
                    sent[key.data] += key.data.socket.send(request[sent[key.data] :][: 1 << 18])
                    if sent[key.data] == len(request):
                        ready.unregister(key.data.socket)
                peak = max(peak, resident_bytes())
        for client in clients:
            client.socket.settimeout(LIMIT)
            statuses.append(client.answer().status)
            peak = max(peak, resident_bytes())
    finally:
        for client in clients:
            client.__exit__()
    print(f"{(peak - before) >> 20} MiB more; {statuses.count(400)} were read, {statuses.count(429)} were not")
    assert set(statuses) == {400, 429}
    assert peak - before < 400 << 20
    assert server.request("POST", CHAT, body).status == 400  # what was held is given back
    assert server.request("POST", CHAT, SHORT).status == 200


def test_the_budget_is_given_back_however_a_request_ends(server: RunningServer) -> None:
    headers = {"Content-Type": "application/json", "Content-Length": str(4 << 20)}
    for _ in range(40):  # of which 16 fit at a time
        with RawClient(server.port) as client:
            client.send(head("POST", CHAT, headers) + b" " * 100)
            until(lambda: open_requests(server) == 1)
        until(lambda: open_requests(server) == 0)
    assert server.request("POST", CHAT, b" " * (1 << 20) + b"{}").status == 400


# Prompts (CVE-2025-46560 and its like: what takes long to tokenize)


def test_what_can_never_fit_is_refused_without_a_look_at_it(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looked_at(*_arguments: object, **_named: object) -> None:
        raise AssertionError("it was tokenized")

    text = "a" * (1 << 20)
    message = {"role": "user", "content": text}
    parts = {"role": "user", "content": [{"type": "text", "text": text[: 1 << 19]}] * 2}
    monkeypatch.setattr(Tokenizer, "_encode", looked_at)
    for path, body in (
        (CHAT, {"messages": [message]}),
        (CHAT, {"messages": [parts]}),
        (CHAT, {"messages": [{"role": "user", "content": "\U0001f600" * 20_000}]}),
        ("/v1/completions", {"prompt": text}),
        ("/tokenize", {"prompt": text}),
        ("/tokenize", {"messages": [message]}),
        ("/v1/responses", {"input": text}),
    ):
        answer = server.request("POST", path, body)
        assert (answer.status, answer.json["error"]["code"]) == (400, "context_length_exceeded"), path
        assert "maximum context length is" in answer.json["error"]["message"]
    refused = server.request("POST", "/v1/messages/count_tokens", {"model": "windlass-demo", "messages": [message]})
    assert refused.status == 400


def test_what_may_fit_is_tokenized(server: RunningServer) -> None:
    answer = server.request("POST", "/tokenize", {"prompt": "a" * 10_000})
    assert answer.status == 200
    assert server.request("POST", CHAT, {"messages": [{"role": "user", "content": "a" * 10_000}]}).status == 400
