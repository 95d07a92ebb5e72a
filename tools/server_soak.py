"""Mixed load on ``windlass serve`` for a given time, then SIGTERM under open streams; its promises are checked.

    python tools/server_soak.py --seconds 1800 --json soak.json [--seed 1] [--clients 12]

Clients stream and do not stream on every route; some go away in the head, in the body, while they wait or in the middle
of a stream; some read slowly, some send nonsense, and now and then many come at once. Checked are: every answer ends
exactly once and as its protocol says; a seeded request has the same text each time, streamed or not; refusals have the
right status and body, and no status is 5xx; probes answer; nothing hangs. Memory, descriptors and threads of the server
are sampled from outside: their slopes (Theil-Sen, second half of the time) and what is left when all clients are gone
tell of leaks. At the end SIGTERM comes while 8 streams are open: new requests get 503, the streams end properly, the
exit code is 0. Prints a report, and exits with 1 after a violation.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from soak.endings import ErrorEventError, RefusedError, WrongAnswerError, chat_stream, check_refusal
from soak.meters import Sample, as_json, busy, sample, slopes
from soak.users import ROUTES, Report, Users, check_probes, follow_long_stream
from soak.wire import ask

LIMIT = 60.0
MAX_QUEUE = 24
BURST_SECONDS = 15.0
OPEN_AT_THE_END = 8
LONG = 900
DRAIN_TIMEOUT = 30
KEPT_LINES = 100
UNWANTED = re.compile("Traceback|Warning|Error|ERROR")
METRICS = "metrics"
MAX_GROWTH = {"rss": 2048.0, "descriptors": 4.0, "threads": 0.5}
"""KiB, and numbers, by which each may grow in the second half of the time, whatever that is."""

console = Console()


class Server:
    """The server's process, and what it writes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self.port = 0

    @classmethod
    async def start(cls, arguments: list[str]) -> Server:
        """Start it on a free port and wait until it is ready."""
        command = [sys.executable, "-W", "default", "-m", "windlass", "serve", "--port", "0", "--enable-debug"]
        command += ["--max-queue", str(MAX_QUEUE), "--drain-timeout", str(DRAIN_TIMEOUT), *arguments]
        server = cls(await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE))
        server._reading = asyncio.ensure_future(server._read())
        while not server.port:
            found = re.search(r"http://\S*:(\d+)", "\n".join(server.lines))
            server.port = int(found.group(1)) if found else 0
            await server._pause()
        while (await ask(server.port, "GET", "/readyz")).status != 200:
            await server._pause()
        return server

    async def _pause(self) -> None:
        await asyncio.sleep(0.05)
        if self.process.returncode is not None:
            raise SystemExit("the server ended at once:\n" + "\n".join(self.lines))

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            text = line.decode(errors="replace").rstrip()
            if len(self.lines) < KEPT_LINES or UNWANTED.search(text):
                self.lines.append(text)

    async def end(self) -> int | None:
        """Wait for its end; the exit code, or None if it had to be killed."""
        try:
            code = await asyncio.wait_for(self.process.wait(), LIMIT)
        except asyncio.TimeoutError:
            self.process.kill()
            code = None
        await self._reading
        return code


async def load(server: Server, options: argparse.Namespace, report: Report) -> list[Sample]:
    """Everything at once for the time given; the samples."""
    names = [name for name in ROUTES if name not in options.without]
    users = Users(server.port, report, names, options.seed)
    tasks = [asyncio.ensure_future(users.use(options.seed * 1000 + number)) for number in range(options.clients)]
    samples: list[Sample] = []
    began, next_burst = time.monotonic(), BURST_SECONDS
    columns = (TextColumn("{task.description:60}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        bar = progress.add_task("", total=options.seconds)
        while (now := time.monotonic() - began) < options.seconds and len(report.violations) < 20:
            await check_probes(server.port, report)
            if METRICS not in options.without:
                busy((await ask(server.port, "GET", "/metrics")).body.decode())
            samples.append(sample(server.process.pid, now))
            if now >= next_burst:
                next_burst = now + BURST_SECONDS
                await users.burst(3 * MAX_QUEUE)
            last = samples[-1]
            words = (
                f"{sum(report.events.values())} events, {last.rss} KiB, {last.descriptors} fds, {last.threads} threads"
            )
            progress.update(bar, completed=now, description=words, refresh=True)
            await asyncio.sleep(max(1.0, options.seconds / 1800))
    users.over.set()
    _, hung = await asyncio.wait(tasks, timeout=2 * LIMIT)
    for task in hung:
        report.violation(f"a client hangs: {task.get_stack(limit=1)}")
        task.cancel()
    return samples


async def settle(server: Server, wanted: Sample | None) -> Sample:
    """The server once nobody is connected: with no more descriptors and threads than ``wanted``, within 10 s."""
    deadline = time.monotonic() + 10.0
    while True:
        await asyncio.sleep(0.2)
        now = sample(server.process.pid, 0.0)
        fits = wanted is None or (now.descriptors <= wanted.descriptors and now.threads <= wanted.threads)
        if fits or time.monotonic() > deadline:
            return now


async def check_idle(server: Server, report: Report) -> None:
    """With no client left, nothing runs, nothing waits, and no page is held, within 10 s."""
    deadline = time.monotonic() + 10.0
    while any((found := busy((await ask(server.port, "GET", "/metrics")).body.decode())).values()):
        if time.monotonic() > deadline:
            report.violation(f"in use without a client: {found}")
            return
        await asyncio.sleep(0.1)


async def end_with_open_streams(server: Server, report: Report) -> dict[str, Any]:
    """SIGTERM while streams are open; what came of it."""
    begun = [asyncio.Event() for _ in range(OPEN_AT_THE_END)]
    streams = [asyncio.ensure_future(follow_long_stream(server.port, LONG, one)) for one in begun]
    await asyncio.wait([asyncio.ensure_future(one.wait()) for one in begun], timeout=LIMIT)
    open_then = sum(not stream.done() for stream in streams)
    if open_then < OPEN_AT_THE_END:
        report.violation(f"only {open_then} streams were open at the time of SIGTERM")
    started = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    await refused_while_draining(server.port, report)
    await asyncio.wait(streams, timeout=LIMIT)
    ended = 0
    for stream in streams:
        try:
            chat_stream(stream.result(), 2)
            ended += 1
        except (WrongAnswerError, ErrorEventError, RefusedError, OSError, EOFError, asyncio.InvalidStateError) as error:
            report.violation(f"an open stream at SIGTERM: {error!r}")
    code = await server.end()
    seconds = time.monotonic() - started
    if code != 0:
        report.violation(f"exit code {code} after SIGTERM")
    return {"open": open_then, "ended_properly": ended, "exit_code": code, "seconds": seconds}


async def refused_while_draining(port: int, report: Report) -> None:
    """While streams are open: not ready, and new requests are refused with 503."""
    body = {"messages": [{"role": "user", "content": "Hello"}]}
    deadline = time.monotonic() + 1.0
    while (reply := await ask(port, "GET", "/readyz")).status != 503 and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    if reply.status != 503:
        report.violation(f"/readyz is {reply.status} after SIGTERM")
    try:
        check_refusal(await ask(port, "POST", "/v1/chat/completions", body))
    except RefusedError as refusal:
        if refusal.status == 503:
            return
        report.violation(f"a new request after SIGTERM: {refusal}")
    else:
        report.violation("a new request after SIGTERM was answered")


async def soak(options: argparse.Namespace) -> int:
    report = Report()
    server = await Server.start(options.serve)
    try:
        return await judge(server, options, report)
    finally:
        if server.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                server.process.kill()
            await server.process.wait()


async def judge(server: Server, options: argparse.Namespace, report: Report) -> int:
    """Load, settle, end; print and write what was found."""
    began = time.monotonic()
    warm = argparse.Namespace(**{**vars(options), "seconds": min(10.0, options.seconds / 5)})
    await load(server, warm, report)
    before = await settle(server, None)
    samples = await load(server, options, report)
    after = await settle(server, before)
    if METRICS not in options.without:
        await check_idle(server, report)
    growth = slopes(samples)
    for name, limit in MAX_GROWTH.items():
        if growth[name] * options.seconds / 120 > limit:
            report.violation(f"{name} grows by {growth[name]:.2f} per minute")
    if (after.descriptors, after.threads) > (before.descriptors, before.threads):
        report.violation(f"descriptors and threads were {before}, and are {after}")
    ending = await end_with_open_streams(server, report)
    unwanted = [line for line in server.lines if UNWANTED.search(line)]
    for line in unwanted[:10]:
        report.violation(f"the server wrote: {line}")
    seconds = time.monotonic() - began
    print_report(report, options, samples, growth, before, after, ending, seconds)
    if options.json:
        found = {
            "seconds": seconds,
            "settings": {name: str(value) for name, value in vars(options).items()},
            "events": dict(report.events.most_common()),
            "slowest": report.slowest,
            "growth_per_minute": growth,
            "idle_before": vars(before),
            "idle_after": vars(after),
            "ending": ending,
            "violations": report.violations,
            "samples": as_json(samples),
        }
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 1 if report.violations else 0


def print_report(
    report: Report,
    options: argparse.Namespace,
    samples: list[Sample],
    growth: dict[str, float],
    before: Sample,
    after: Sample,
    ending: dict[str, Any],
    seconds: float,
) -> None:
    print(f"seed {options.seed}, {seconds:.0f} s, {options.clients} clients")
    for name, count in sorted(report.events.items(), key=lambda item: -item[1]):
        print(f"  {name:44} {count}")
    for name, slowest in report.slowest.items():
        print(f"  slowest {name:36} {1000 * slowest:.0f} ms")
    for name in MAX_GROWTH:
        values = [getattr(one, name) for one in samples]
        idle = f"{getattr(before, name)} idle before, {getattr(after, name)} after"
        print(f"  {name:12} {min(values)} to {max(values)}, {growth[name]:+.2f} per minute; {idle}")
    print(
        f"  SIGTERM with {ending['open']} open streams: {ending['ended_properly']} ended properly, "
        f"exit code {ending['exit_code']} after {ending['seconds']:.2f} s"
    )
    print(f"  violations   {len(report.violations)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--without", nargs="+", choices=[*ROUTES, METRICS], default=[], help="leave these routes out")
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument("--serve", nargs=argparse.REMAINDER, default=[], help="more arguments of windlass serve; last")
    return asyncio.run(soak(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
