"""tools/server_soak.py: what it counts as a right answer, and how it tells growth from noise."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))

from soak import endings
from soak.endings import ErrorEventError, RefusedError, WrongAnswerError
from soak.meters import Sample, busy, sample, slopes, theil_sen
from soak.wire import Reply, Wire, request

SSE = {"content-type": "text/event-stream"}


def stream(*events: Any, whole: bool = True) -> Reply:
    data = [(one.get("type", ""), json.dumps(one)) if isinstance(one, dict) else ("", one) for one in events]
    return Reply(200, SSE, events=data, whole=whole)


def piece(text: str, finish: str | None = None, index: int = 0) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": {"content": text}, "finish_reason": finish}]}


def refusal(status: int, **headers: str) -> Reply:
    body = json.dumps({"error": {"message": "m", "type": "t", "code": "c"}}).encode()
    return Reply(status, headers, body, whole=True)


def test_a_chat_stream_ends_once() -> None:
    usage = {"choices": []}
    assert endings.chat_stream(stream(piece("a"), piece("b", "stop"), usage, "[DONE]")) == "ab"
    two = stream(piece("a"), piece("x", "stop", 1), piece("b", "length"), "[DONE]")
    assert endings.chat_stream(two, 2) == "ab\0x"


@pytest.mark.parametrize(
    "events",
    [
        (piece("a"), "[DONE]"),
        (piece("a", "stop"),),
        (piece("a", "stop"), piece("b"), "[DONE]"),
        (piece("a", "stop"), piece("", "stop"), "[DONE]"),
        (piece("a", "stop"), "[DONE]", "[DONE]"),
        (piece("a", "stop"), "[DONE]", piece("b")),
        ({"error": {"code": "x"}}, "[DONE]"),
        (piece("a", "stop"), piece("", "stop", 1), "[DONE]"),
    ],
)
def test_a_chat_stream_that_ends_otherwise_is_wrong(events: tuple[Any, ...]) -> None:
    with pytest.raises(WrongAnswerError):
        endings.chat_stream(stream(*events))


def test_a_cut_stream_is_wrong_whatever_it_holds() -> None:
    with pytest.raises(WrongAnswerError, match="cut"):
        endings.chat_stream(stream(piece("a", "stop"), "[DONE]", whole=False))


def test_an_error_event_is_an_ending_of_its_own() -> None:
    with pytest.raises(ErrorEventError, match="draining"):
        endings.chat_stream(stream(piece("a"), {"error": {"code": "draining"}}))


def test_a_refusal_has_a_body_and_says_when_to_come_back() -> None:
    for status, headers in ((400, {}), (429, {"retry-after": "1"}), (503, {"retry-after": "2"})):
        with pytest.raises(RefusedError, match=f"{status} c"):
            endings.chat_whole(refusal(status, **headers))
    for reply in (refusal(429), refusal(503), Reply(500, {}, b"Internal Server Error", whole=True)):
        with pytest.raises(WrongAnswerError):
            endings.chat_whole(reply)


def responses(*kinds: str, first: int = 0) -> list[dict[str, Any]]:
    return [{"type": f"response.{kind}", "sequence_number": first + place} for place, kind in enumerate(kinds)]


def test_a_response_stream_is_numbered_and_ends_once() -> None:
    good = responses("created", "in_progress", "output_text.delta", "completed")
    good[2]["delta"] = "hello"
    assert endings.responses_stream(stream(*good)) == "hello"
    for bad in (
        responses("created", "in_progress"),
        responses("created", "completed", "incomplete"),
        responses("completed", "created"),
        responses("created", "completed", "in_progress"),
        [*responses("created"), *responses("completed", first=2)],
    ):
        with pytest.raises(WrongAnswerError):
            endings.responses_stream(stream(*bad))


def messages(*kinds: str) -> list[dict[str, Any]]:
    return [{"type": kind, "delta": {"text": "x", "stop_reason": "end_turn"}} for kind in kinds]


def test_a_message_stream_is_opened_and_closed() -> None:
    body = ("content_block_start", "content_block_delta", "content_block_stop", "message_delta")
    assert endings.messages_stream(stream(*messages("message_start", *body, "message_stop"))) == "x"
    for bad in (
        ("message_start", *body),
        (*body, "message_stop"),
        ("message_start", *body, "message_stop", "message_stop"),
        ("message_start", *body[:2], "message_delta", "message_stop"),
        ("message_start", *body[:3], "message_stop"),
    ):
        with pytest.raises(WrongAnswerError):
            endings.messages_stream(stream(*messages(*bad)))


def test_a_slope_is_not_moved_by_peaks() -> None:
    chance = random.Random(1)  # noqa: S311
    flat = [(float(second), 1000.0 + chance.random()) for second in range(300)]
    for place in range(0, 300, 10):
        flat[place] = (flat[place][0], 9000.0)
    assert abs(theil_sen(flat)) < 0.01
    rising = [(when, value + 0.5 * when) for when, value in flat]
    assert theil_sen(rising) == pytest.approx(0.5, abs=0.01)
    assert theil_sen([(0.0, 1.0)]) == theil_sen([]) == 0.0
    long = [(float(second), 2.0 * second) for second in range(10_000)]
    assert theil_sen(long) == pytest.approx(2.0)


def test_growth_counts_from_the_middle_and_per_minute() -> None:
    filling = [Sample(float(second), 5000 + 100 * min(second, 50), 10, 4) for second in range(100)]
    assert slopes(filling) == {"rss": 0.0, "descriptors": 0.0, "threads": 0.0}
    leaking = [Sample(float(second), 5000, 10 + second // 10, 4) for second in range(100)]
    assert slopes(leaking)["descriptors"] == pytest.approx(6.0, rel=0.1)


def test_what_is_in_use_is_read_from_the_metrics() -> None:
    text = """# TYPE windlass_num_requests_running gauge
windlass_num_requests_running{model_name="a"} 2
windlass_num_requests_running{model_name="b"} 1
windlass_num_requests_running_max 9
windlass_num_requests_waiting 4
windlass_kv_cache_pages{model_name="a",use="free"} 7
windlass_kv_cache_pages{model_name="a",use="held"} 5
"""
    assert busy(text) == {"running": 3, "waiting": 4, "held pages": 5}
    with pytest.raises(ValueError, match="no waiting"):
        busy(text.replace("waiting", "sleeping"))


def test_a_process_is_sampled() -> None:
    before = sample(os.getpid(), 1.0)
    with Path("/dev/null").open():
        after = sample(os.getpid(), 2.0)
    assert after.descriptors == before.descriptors + 1
    assert after.rss > 1000
    assert after.threads >= 1


def test_a_reply_is_read_from_the_wire() -> None:
    text = b'event: ping\ndata: {}\n\ndata: {"a":\ndata: 1}\n\ndata: [DONE]\n\n'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    parts = b"".join(b"%x\r\n%b\r\n" % (len(text[i : i + 5]), text[i : i + 5]) for i in range(0, len(text), 5))

    async def run(answer: bytes) -> Reply:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server, Wire(server.sockets[0].getsockname()[1]) as wire:
            await wire.send(request("GET", "/"))
            return await wire.read(await wire.reply())

    reply = asyncio.run(run(head + parts + b"0\r\n\r\n"))
    assert reply.events == [("ping", "{}"), ("", '{"a":\n1}'), ("", "[DONE]")]
    assert reply.whole
    assert not asyncio.run(run(head + parts)).whole
    sized = asyncio.run(run(b"HTTP/1.1 404 No\r\nContent-Length: 2\r\n\r\n{}"))
    assert (sized.status, sized.body, sized.whole, sized.json()) == (404, b"{}", True, {})
