"""benchmarks/serve.py: its HTTP client, its arithmetic, and that it measures what a server does."""

from __future__ import annotations

import asyncio
import io
import json
import random
import sys
from collections.abc import Awaitable, Callable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import serve  # noqa: E402

from serving.figures import Figures, Overhead, percentile, print_figures  # noqa: E402
from serving.http_client import Answer, Client, ProtocolError  # noqa: E402
from serving.outcomes import Outcome, outcome_of  # noqa: E402
from serving.runner import CalibrationError, Extent, Run, Runner, measure_text  # noqa: E402
from serving.started import ServerError, StartedServer  # noqa: E402
from serving.targets import DONE, ServerTarget, Trace  # noqa: E402
from serving.workload import Length, TextLength, Workload  # noqa: E402

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
Handler = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(value: Any) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def piece(text: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


class Server:
    """Reads requests and lets a handler write the bytes of each answer; counts connections."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.connections = 0
        self.bodies: list[dict[str, Any]] = []

    async def __aenter__(self) -> Server:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        await self.server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:-2])
                body = await reader.readexactly(int(fields["Content-Length"]))
                self.bodies.append(json.loads(body))
                await self.handler(head, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def writes(*parts: bytes, close: bool = False) -> Handler:
    async def handler(_: bytes, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        if close:
            writer.close()

    return handler


def post(handler: Handler, times: int = 1) -> tuple[list[Answer], Server]:
    async def run() -> tuple[list[Answer], Server]:
        async with Server(handler) as server:
            client = Client(server.url, "secret")
            answers = [await client.post("/chat/completions", b"{}") for _ in range(times)]
            await client.close()
        return answers, server

    return asyncio.run(asyncio.wait_for(run(), 10))


# The client.


def test_a_stream_is_read_however_it_is_cut_into_packets() -> None:
    text = b": a comment\r\n\r\ndata: {}\r\n\r\ndata:one\ndata: two\n\nevent: x\ndata: [DONE]\n\n"
    whole = STREAM + b"".join(chunk(text[i : i + 7]) for i in range(0, len(text), 7)) + b"0\r\nTrailer: 1\r\n\r\n"
    for size in (1, 2, 3, 50, len(whole)):
        (answer, again), server = post(writes(*(whole[i : i + size] for i in range(0, len(whole), size))), times=2)
        assert [data for _, data in answer.events] == [b"{}", b"one\ntwo", DONE], size
        assert answer.whole
        assert answer.status == 200
        assert [data for _, data in again.events] == [data for _, data in answer.events]
        assert server.connections == 1, "the connection is used again"


def test_answers_with_a_length_and_up_to_the_end() -> None:
    body = b'{"error": {"code": "overloaded"}}'
    sized = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 429 Too Many\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    (answer, _), server = post(writes(sized), times=2)
    assert (answer.status, bytes(answer.body), answer.whole, server.connections) == (429, body, True, 1)
    (answer, _), server = post(writes(b"HTTP/1.1 500 Oops\r\n\r\n" + body, close=True), times=2)
    assert (answer.status, bytes(answer.body), answer.whole, server.connections) == (500, body, True, 2)


def test_a_cut_stream_is_not_whole() -> None:
    (answer,), _ = post(writes(STREAM, chunk(event({})), b"20\r\ndata: {", close=True))
    assert [data for _, data in answer.events] == [b"{}"]
    assert not answer.whole


def test_a_connection_that_was_closed_meanwhile_is_replaced() -> None:
    async def run() -> None:
        async with Server(writes(b"HTTP/1.1 204 Nothing\r\nContent-Length: 0\r\n\r\n", close=True)) as server:
            client = Client(server.url)
            for _ in range(3):
                assert (await client.post("/", b"{}")).status == 204
            assert server.connections == 3
            await client.close()

    asyncio.run(asyncio.wait_for(run(), 10))


@pytest.mark.parametrize("sent", [b"SSH-2.0 hello\r\n\r\n", STREAM + b"zz\r\n", STREAM + b"1\r\nabc\r\n"])
def test_what_is_not_http_is_refused(sent: bytes) -> None:
    with pytest.raises(ProtocolError):
        post(writes(sent))


def test_an_address_is_checked() -> None:
    with pytest.raises(ValueError, match=r"'localhost:8000' is not an address such as http://127\.0\.0\.1:8000/v1"):
        Client("localhost:8000")


# The workload.


def test_the_same_seed_sends_the_same_requests() -> None:
    load = Workload(Length.parse("20-40"), Length.parse("5-9"), shared_prefix=10, seed=3)
    first, again = (list(islice(load.requests(TextLength()), 50)) for _ in range(2))
    assert first == again
    assert {request.output_tokens for request in first} == {5, 6, 7, 8, 9}
    lengths = [len(request.prompt.split()) for request in first]
    assert (min(lengths), max(lengths)) == (20, 40)
    assert len({tuple(request.prompt.split()[:10]) for request in first}) == 1
    assert len({request.prompt for request in first}) == 50
    assert all(request.due is None for request in first)


def test_arrivals_are_a_poisson_process() -> None:
    due = [
        request.due or 0.0
        for request in islice(Workload(Length(1, 1), Length(1, 1), rate=4.0).requests(TextLength()), 4000)
    ]
    gaps = [after - before for before, after in pairwise(due)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(0.25, rel=0.06)
    assert sum(gap > mean for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.03), "exponential, not even"


def test_lengths() -> None:
    assert Length.parse("12").draw(random.Random(0)) == 12  # noqa: S311
    for bad in ("0", "9-3", "x", "4-"):
        with pytest.raises(ValueError, match=r"."):
            Length.parse(bad)
    text = TextLength.through((32, 58), (160, 250))
    assert (text.tokens_per_word, text.fixed_tokens) == (1.5, 10.0)
    assert text.words(160) == 100
    assert text.words(3) == 1


# Outcomes and figures.


def trace(*events: Any, failure: str = "") -> Trace:
    timed = [
        (10.0 + number, item if isinstance(item, bytes) else json.dumps(item).encode())
        for number, item in enumerate(events)
    ]
    return Trace(sent=9.5, ended=20.0, events=timed, failure=failure)


def test_an_outcome_is_read_from_its_chunks() -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5}}
    outcome = outcome_of(trace(piece(""), piece("a"), piece("bcd"), piece("", "stop"), usage, DONE), None, 9.0)
    assert outcome == Outcome(0.5, 0.5, 11.0, (2.0, 3.0), 7, 5, "")
    assert outcome.first == 1.5
    assert outcome.gaps == [1.0]
    assert outcome.per_token == 0.25
    assert outcome_of(trace(piece("a", "stop"), DONE), 0.25, 9.0).first == pytest.approx(0.75), (
        "counts from when it was due"
    )


@pytest.mark.parametrize(
    ("events", "failure"),
    [
        ((piece("a"), piece("", "stop")), "no [DONE]"),
        ((piece("a"), DONE), "no finish reason"),
        ((piece("a", "stop"), DONE, piece("b")), "a chunk after [DONE]"),
        ((piece("a"), {"error": {"code": "draining", "type": "x"}}), "error event: draining"),
        ((b"{oops",), "a chunk that is not JSON"),
        ((), "no finish reason"),
    ],
)
def test_an_ending_that_is_not_right_is_a_failure(events: tuple[Any, ...], failure: str) -> None:
    assert outcome_of(trace(*events), None, 0.0).failure == failure
    assert outcome_of(trace(*events, failure="cut"), None, 0.0).failure == "cut"


def test_percentiles() -> None:
    values = [float(value) for value in range(101)]
    assert [percentile(values, percent) for percent in (0, 50, 99, 100)] == [0.0, 50.0, 99.0, 100.0]
    assert percentile([1.0, 2.0], 50) == 1.5
    assert percentile([3.0], 99) == 3.0


def run_of(target: str, seconds: float) -> Run:
    good = Outcome(0.0, 0.0, seconds, (0.5, 1.0, 1.5), 10, 3, "")
    bad = Outcome(0.0, 0.25, 0.1, (), None, 0, "429 overloaded")
    return Run(target, (good, good, bad), seconds, 0.5, 1.5 if target == "server" else None)


def test_figures_count_good_requests_and_name_the_others() -> None:
    figures = Figures.of(run_of("server", 2.0))
    assert (figures.requests, figures.failures) == (3, {"429 overloaded": 1})
    assert (figures.requests_per_second, figures.output_tokens_per_second) == (1.0, 3.0)
    assert figures.latencies["gap"] == {"mean": 500, "p50": 500, "p90": 500, "p95": 500, "p99": 500, "max": 500}
    assert (figures.late, figures.server_cores) == (0.25, 0.75)
    console = Console(width=200, file=io.StringIO(), record=True)
    print_figures(figures, console)
    text = console.export_text()
    assert "2 of 3 requests in 2.0 s, 1.00 requests/s, 3.0 output tokens/s" in text
    assert "1 x 429 overloaded" in text
    assert "the server 0.75; requests were sent up to 250 ms late" in text


def test_the_overhead_is_the_median_over_pairs() -> None:
    own = Figures.of(run_of("in process", 2.0))
    pairs = [(Figures.of(run_of("server", 2.0 * factor)), own) for factor in (1.5, 1.01, 1.02)]
    assert Overhead.of(pairs).as_json()["median"]["ratios"] == pytest.approx(1.02)
    assert Overhead.of(pairs).best == 1.0
    assert (
        "HTTP takes +2.00 % longer than the engine in this process [+1.00 to +50.00, 3 pairs]"
        in Overhead.of(pairs).text()
    )


# A run.


def answers(tokens: int = 3) -> Handler:
    async def handler(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM)
        for _number in range(tokens):
            writer.write(chunk(event(piece("x"))))
        usage = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": tokens}}
        writer.write(chunk(event(piece("", "length")) + event(usage) + event(DONE)) + b"0\r\n\r\n")

    return handler


def measure(handler: Handler, load: Workload, extent: Extent, timeout: float = 10.0) -> tuple[Run, Server]:
    async def run() -> tuple[Run, Server]:
        async with Server(handler) as server:
            target = ServerTarget(Client(server.url), "name", "chat", {"top_k": 1}, timeout)
            result = await Runner(target, extent).run(load.requests(TextLength()))
            await target.close()
        return result, server

    return asyncio.run(asyncio.wait_for(run(), 30))


def test_a_closed_load_keeps_so_many_requests_open() -> None:
    run, server = measure(answers(), Workload(Length(4, 4), Length(3, 3)), Extent(requests=20, concurrency=4))
    assert len(run.outcomes) == 20
    assert all(not outcome.failure and outcome.output_tokens == 3 for outcome in run.outcomes)
    assert server.connections == 4
    body = server.bodies[0]
    assert (body["model"], body["top_k"], body["max_tokens"], body["stream"]) == ("name", 1, 3, True)
    assert len(body["messages"][0]["content"].split()) == 4


def test_an_open_load_does_not_wait_for_answers() -> None:
    count, waiting = 20, 0
    all_there = asyncio.Event()
    answer = answers()

    async def handler(head: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal waiting
        waiting += 1
        if waiting == count:
            all_there.set()
        await all_there.wait()
        await answer(head, writer)

    load = Workload(Length(4, 4), Length(3, 3), rate=500.0)
    run, server = measure(handler, load, Extent(requests=count))
    assert [outcome.failure for outcome in run.outcomes] == [""] * count
    assert server.connections == count
    last_due = max(outcome.arrived for outcome in run.outcomes)
    assert all(last_due < outcome.times[0] for outcome in run.outcomes)
    run, _ = measure(handler, load, Extent(seconds=0.05))
    assert 1 <= len(run.outcomes) < 60


def test_failures_are_named() -> None:
    body = b'{"error": {"message": "m", "type": "t", "code": "overloaded"}}'
    refuse = writes(b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    cut = writes(STREAM, chunk(event(piece("a"))), close=True)
    load = Workload(Length(4, 4), Length(3, 3))
    for handler, failure in ((refuse, "429 overloaded"), (cut, "cut"), (writes(), "timeout")):
        run, _ = measure(handler, load, Extent(requests=1, concurrency=1), timeout=0.2)
        assert [outcome.failure for outcome in run.outcomes] == [failure]


def test_nobody_there_is_named() -> None:
    async def run() -> None:
        async with Server(answers()) as server:
            url = server.url
        target = ServerTarget(Client(url), None, "chat", {}, 5.0)
        outcomes = (
            await Runner(target, Extent(requests=1)).run(Workload(Length(1, 1), Length(1, 1)).requests(TextLength()))
        ).outcomes
        assert outcomes[0].failure == "no connection (ConnectionRefusedError)"
        with pytest.raises(CalibrationError, match="a first request of 32 words failed: no connection"):
            await measure_text(target)

    asyncio.run(asyncio.wait_for(run(), 10))


def test_prompts_have_the_length_that_was_asked_for(tmp_path: Path) -> None:
    """The whole command, against the engine in this process."""
    path = tmp_path / "out.json"
    words = ["--inprocess", "--requests", "4", "--concurrency", "2", "--prompt-tokens", "120", "--output-tokens", "8"]
    asyncio.run(serve.run(serve.parse([*words, "--ignore-eos", "--json", str(path)])))
    (figures,) = json.loads(path.read_text())["rounds"][0]
    assert figures["failures"] == {}
    assert figures["mean_prompt_tokens"] == pytest.approx(120, rel=0.15)
    assert figures["mean_output_tokens"] == 8


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--base-url", "http://a/v1", "--start", "b"],
        ["--inprocess", "--requests", "0"],
        ["--inprocess", "--rate", "-1"],
        ["--inprocess", "--requests", "1", "--seconds", "1"],
        ["--inprocess", "--config", "mode"],
    ],
)
def test_a_command_line_that_makes_no_sense_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        serve.parse(words)
    assert "error" in capsys.readouterr().err


# A server that is started.

LITTLE_SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/readyz" else 404)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
"""


def test_a_server_is_started_and_ended(tmp_path: Path) -> None:
    program = tmp_path / "server.py"
    program.write_text(LITTLE_SERVER)
    server = StartedServer(f"{sys.executable} {program}")
    assert server.url.endswith(f":{server.port}/v1")
    assert server.processor_seconds() is not None
    assert server.close() == -15


def test_a_server_that_does_not_start_says_why() -> None:
    with pytest.raises(ServerError, match="ended with status 3: no such luck"):
        StartedServer(f"{sys.executable} -c \"import sys; print('no such luck'); sys.exit(3)\" {{port}}")
