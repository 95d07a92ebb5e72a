"""The log: what a line looks like, who writes it, and that nobody waits for it."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from support.lifecycle import wait_for
from windlass.server import logs
from windlass.server.logs import LEVELS, JsonFormatter, LineWriter, TextFormatter, logging_to

log = logging.getLogger("windlass.server.test")


def record(event: str = "request", **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("windlass", logging.INFO, "", 0, event, (), None)
    made.created = 1_800_000_000.0625
    made.fields = fields
    return made


def test_a_line_of_json() -> None:
    line = JsonFormatter().format(record(status=200, duration=0.5, text='a "b"\nc', ok=True))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2027-01-15T08:00:00.062Z",
        "level": "info",
        "event": "request",
        "status": 200,
        "duration": 0.5,
        "text": 'a "b"\nc',
        "ok": True,
    }


def test_a_line_of_text() -> None:
    line = TextFormatter().format(record(status=200, path="/a b", odd='x="\n\x1b[2J', none="", ok=True))
    assert line == (
        '2027-01-15T08:00:00.062Z info request status=200 path="/a b" odd="x=\\"\\n\\u001b[2J" none="" ok=true'
    )


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_an_exception_is_told(formatter: logging.Formatter) -> None:
    made = record("a request failed")
    try:
        raise OSError(5, "injected")
    except OSError:
        made.exc_info = sys.exc_info()
    assert "OSError: [Errno 5] injected" in formatter.format(made)


@pytest.mark.parametrize("level", LEVELS)
def test_levels_and_what_is_foreign(level: logs.LogLevel) -> None:
    stream = io.StringIO()
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in map(logging.getLogger, NAMES)]
    with logging_to(stream, level, "json"):
        for name in LEVELS:
            log.log(getattr(logging, name.upper()), "%s of ours", name)
            logging.getLogger("uvicorn.error").log(getattr(logging, name.upper()), "%s of theirs", name)
    events = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    ours = [f"{name} of ours" for name in LEVELS[LEVELS.index(level) :]]
    theirs = [f"{name} of theirs" for name in LEVELS[max(LEVELS.index(level), 2) :]]
    assert sorted(events) == sorted(ours + theirs)
    after = [(logger.level, logger.propagate, list(logger.handlers)) for logger in map(logging.getLogger, NAMES)]
    assert after == before


NAMES = ("windlass", "uvicorn", "asyncio")


@pytest.fixture
def stuck_pipe() -> Iterator[tuple[io.TextIOWrapper, int]]:
    """A pipe that nobody reads, and its reading end."""
    reading, writing = os.pipe()
    stream = os.fdopen(writing, "w")
    yield stream, reading
    os.close(reading)


def test_a_reader_who_does_not_read_holds_nobody_up(
    stuck_pipe: tuple[io.TextIOWrapper, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "CLOSE_SECONDS", 0.05)
    stream, reading = stuck_pipe
    writer = LineWriter(stream)
    writer.setFormatter(JsonFormatter())
    for _ in range(2 * logs.MAX_PENDING):
        writer.handle(record("x" * 100))
    assert len(writer._pending) <= logs.MAX_PENDING + 1
    writer.close()
    # Once somebody reads, everything that was kept comes.
    parts: list[bytes] = []
    reader = threading.Thread(target=lambda: parts.extend(iter(lambda: os.read(reading, 1 << 16), b"")))
    reader.start()
    writer._thread.join(20)
    stream.close()
    reader.join(20)
    assert b"".join(parts).count(b"\n") >= logs.MAX_PENDING


def test_dropped_lines_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_PENDING", 2)
    stream = Gate()
    writer = LineWriter(stream)
    writer.setFormatter(JsonFormatter())
    writer.handle(record("first"))
    assert stream.entered.wait(10)
    for number in range(5):
        writer.handle(record(str(number)))
    stream.opened.set()
    assert wait_for(lambda: not writer._pending)
    writer.handle(record("last"))
    writer.close()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["first", "0", "1", "log lines were dropped", "last"]
    assert lines[3]["count"] == 3


class Gate(io.StringIO):
    """A stream that is stuck until it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.opened = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        self.entered.set()
        assert self.opened.wait(10)
        return super().write(text)


def test_a_reader_who_has_gone_does_no_harm() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w", buffering=1)
    with logging_to(stream, "info", "text"):
        log.info("nobody hears this")
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_importing_configures_nothing() -> None:
    script = """
import logging
import windlass.server.run
ours = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith("windlass")]
print(logging.root.handlers, [one.handlers for one in ours if one.handlers], logging.getLogger("windlass").level)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert re.fullmatch(r"\[\] \[\] 0\n", result.stdout)
