"""The log of a server: one line per event on standard error, as text or as JSON.

An event is a log record of this package, with its details as ``extra={"fields": {...}}``. Nothing of what users say or
are told is ever among them, nor are keys. Lines are written by a thread of their own, so that a reader of standard
error who stops reading does not stop the server.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TextIO, get_args

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
FORMATS: tuple[str, ...] = get_args(LogFormat)
LEVELS: tuple[str, ...] = get_args(LogLevel)

MAX_PENDING = 10_000
"""Lines that may wait to be written; further ones are dropped, and their number is told later."""

GATHER_SECONDS = 0.02
"""How long lines are gathered before they are written: a thread that is woken costs more than many lines."""

CLOSE_SECONDS = 2.0
"""How long the end of the log waits for a reader that does not read."""

_FOREIGN = ("uvicorn", "asyncio")
"""Loggers of what the server stands on: their warnings go the same way."""


class _Formatter(logging.Formatter):
    """What every line has: the time in UTC, the level, the event, and its fields."""

    def entry(self, record: logging.LogRecord) -> dict[str, Any]:
        """Return the line as a mapping."""
        at = dt.datetime.fromtimestamp(record.created, dt.timezone.utc)
        entry = {
            "time": f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return entry


class JsonFormatter(_Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return json.dumps(self.entry(record), ensure_ascii=False, default=str)


class TextFormatter(_Formatter):
    """``time level event name=value ...``; values with anything but plain characters are written as in JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and below it the traceback if there is one."""
        entry = self.entry(record)
        exception = entry.pop("exception", None)
        time, level, event = entry.pop("time"), entry.pop("level"), entry.pop("event")
        fields = "".join(f" {name}={_plain(value)}" for name, value in entry.items())
        line = f"{time} {level} {event if event.isprintable() else json.dumps(event)}{fields}"
        return line if exception is None else f"{line}\n{exception}"


def _plain(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if text.isprintable() and text and not any(sign in text for sign in ' "=') else json.dumps(text)


class LineWriter(logging.Handler):
    """Writes lines in a thread of its own. ``close`` waits for what is pending, but not for ever."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._pending: deque[str] = deque()
        self._dropped = 0
        self._some = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="windlass-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Have the line written."""
        if len(self._pending) >= MAX_PENDING:
            self._dropped += 1
            return
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            told = logging.LogRecord(__name__, logging.WARNING, "", 0, "log lines were dropped", (), None)
            told.fields = {"count": dropped}
            self._pending.append(self.format(told))
        self._pending.append(self.format(record))
        if not self._some.is_set():
            self._some.set()

    def close(self) -> None:
        """Write what is pending, and end the thread."""
        self._closing.set()
        self._some.set()
        self._thread.join(CLOSE_SECONDS)
        super().close()

    def _work(self) -> None:
        closing = False
        while not closing:
            self._some.wait()
            self._some.clear()
            closing = self._closing.wait(GATHER_SECONDS)
            lines = [self._pending.popleft() for _ in range(len(self._pending))]
            try:
                self._stream.write("".join(f"{line}\n" for line in lines))
                self._stream.flush()
            except (OSError, ValueError):
                # Whoever read the log has gone, and nothing is left to tell that to.
                continue


@contextmanager
def logging_to(stream: TextIO, level: LogLevel, form: LogFormat) -> Iterator[None]:
    """Write the package's log to ``stream`` within the block, and warnings of what the server stands on."""
    writer = LineWriter(stream)
    writer.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    own = logging.getLogger("windlass")
    loggers = [own, *map(logging.getLogger, _FOREIGN)]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(writer)
        logger.propagate = False
        logger.setLevel(max(logging.WARNING, getattr(logging, level.upper())))
    own.setLevel(level.upper())
    try:
        yield
    finally:
        for logger, (old_level, propagates) in zip(loggers, before, strict=True):
            logger.removeHandler(writer)
            logger.setLevel(old_level)
            logger.propagate = propagates
        writer.close()
