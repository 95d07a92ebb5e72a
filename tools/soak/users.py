"""What clients do to a server: use it rightly, use it wrongly, leave, dawdle, and come all at once."""

from __future__ import annotations

import asyncio
import collections
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from soak import endings
from soak.endings import ErrorEventError, RefusedError, WrongAnswerError, check_refusal
from soak.wire import Reply, Wire, ask, request

PROMPTS = (
    "What is the capital of France?",
    "Tell me a story about a fox.",
    "Count from 1 to 9.",
    "You are careful. " * 8 + "What is 12 + 15?",
    "You are careful. " * 8 + "Tell me a story about a bear.",
)
LEAVERS = 0.05
SLOW = 0.02
BAD = 0.10


class Report:
    """What happened so far, and what should not have."""

    def __init__(self) -> None:
        self.events: collections.Counter[str] = collections.Counter()
        self.violations: list[str] = []
        self.slowest: dict[str, float] = {}
        self.texts: dict[tuple[Any, ...], str] = {}

    def violation(self, text: str) -> None:
        self.violations.append(text)
        print("VIOLATION", text, flush=True)

    def took(self, what: str, seconds: float) -> None:
        self.slowest[what] = max(self.slowest.get(what, 0.0), seconds)

    def compare(self, key: tuple[Any, ...], text: str) -> None:
        """The same seeded request has the same text, streamed or not."""
        self.events["compared"] += 1
        if self.texts.setdefault(key, text) != text:
            self.violation(f"{key}: {text!r} instead of {self.texts[key]!r}")


@dataclass(frozen=True)
class Route:
    """A route, how it is asked, and what its answers must look like."""

    path: str
    body: Callable[[str, int, int, int], dict[str, Any]]
    """From prompt, seed, length and choices."""
    whole: Callable[[Reply, int], str]
    stream: Callable[[Reply, int], str] | None = None


def _chat(prompt: str, seed: int, length: int, n: int) -> dict[str, Any]:
    return {"messages": _message_of(prompt), "seed": seed, "temperature": 1.0, "max_tokens": length, "n": n}


def _completion(prompt: str, seed: int, length: int, n: int) -> dict[str, Any]:
    return {"prompt": prompt, "seed": seed, "temperature": 1.0, "max_tokens": length, "n": n}


def _response(prompt: str, _seed: int, length: int, _n: int) -> dict[str, Any]:
    return {"input": prompt, "temperature": 0.0, "max_output_tokens": max(16, length)}


def _message(prompt: str, _seed: int, length: int, _n: int) -> dict[str, Any]:
    return {"model": "windlass-demo", "messages": _message_of(prompt), "temperature": 0.0, "max_tokens": length}


def _message_of(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


ROUTES = {
    "chat": Route("/v1/chat/completions", _chat, endings.chat_whole, endings.chat_stream),
    "completions": Route("/v1/completions", _completion, endings.chat_whole, endings.chat_stream),
    "responses": Route("/v1/responses", _response, endings.responses_whole, endings.responses_stream),
    "messages": Route("/v1/messages", _message, endings.messages_whole, endings.messages_stream),
    "tokenize": Route("/tokenize", lambda prompt, *_: {"prompt": prompt}, endings.plain_json),
    "detokenize": Route("/detokenize", lambda *_: {"tokens": [72, 101]}, endings.plain_json),
    "apply-template": Route(
        "/apply-template", lambda prompt, *_: {"messages": _message_of(prompt)}, endings.plain_json
    ),
}

_HELLO = _chat("Hello", 1, 4, 1)
_REFUSED: tuple[tuple[str, str, Any, dict[str, str], int], ...] = (
    ("POST", "/v1/chat/completions", b"{oops", {}, 400),
    ("POST", "/v1/chat/completions", b"[1]", {}, 400),
    ("POST", "/v1/chat/completions", {**_HELLO, "temperature": 99}, {}, 400),
    ("POST", "/v1/chat/completions", {**_HELLO, "model": "nobody"}, {}, 404),
    ("POST", "/v1/chat/completions", {**_HELLO, "no_such_field": 1}, {}, 400),
    ("POST", "/v1/chat/completions", _chat("word " * 20000, 1, 4, 1), {}, 400),
    ("POST", "/v1/chat/completions", _HELLO, {"content_type": "text/plain"}, 415),
    ("POST", "/v1/completions", _completion("Hello", 1, 4, 1000), {}, 400),
    ("POST", "/v1/completions", b'{"prompt": "' + b"x" * (5 << 20) + b'"}', {}, 413),
    ("GET", "/v1/models", None, {"host": "elsewhere.example"}, 403),
    ("GET", "/v1/models/nobody", None, {}, 404),
    ("GET", "/nowhere", None, {}, 404),
    ("DELETE", "/v1/models", None, {}, 405),
)


class Users:
    """Clients of one server, until ``over`` is set."""

    def __init__(self, port: int, report: Report, names: list[str], seed: int) -> None:
        self.port = port
        self.report = report
        self.routes = [(name, ROUTES[name]) for name in names]
        self.random = random.Random(seed)
        self.over = asyncio.Event()

    async def use(self, seed: int) -> None:
        """One client, who asks again and again."""
        rng = random.Random(seed)
        while not self.over.is_set():
            draw = rng.random()
            if draw < LEAVERS:
                await self._guarded("left", self._leave(rng))
            elif draw < LEAVERS + SLOW:
                await self._guarded("slow", self._ask(rng, slow=True))
            elif draw < LEAVERS + SLOW + BAD:
                await self._guarded("bad", self._ask_badly(rng))
            else:
                await self._guarded("asked", self._ask(rng))

    async def burst(self, size: int) -> None:
        """Many at once: more than may wait."""
        rngs = [random.Random(self.random.getrandbits(30)) for _ in range(size)]
        await asyncio.gather(*(self._guarded("in a burst", self._ask(rng)) for rng in rngs))

    async def _guarded(self, what: str, work: Any) -> None:
        started = time.monotonic()
        try:
            outcome = await work
        except RefusedError as refusal:
            outcome = str(refusal)
            if refusal.status != 429:
                self.report.violation(f"{what}: refused with {refusal}")
        except ErrorEventError as error:
            outcome = f"error event {error}"
            self.report.violation(f"{what}: {outcome}")
        except WrongAnswerError as error:
            outcome = "wrong"
            self.report.violation(f"{what}: {error}")
        except (asyncio.TimeoutError, TimeoutError):
            outcome = "hung"
            self.report.violation(f"{what}: hung")
        except (OSError, EOFError, ValueError, KeyError, IndexError, TypeError) as error:
            outcome = type(error).__name__
            self.report.violation(f"{what}: {error!r}")
        self.report.events[f"{what}: {outcome}"] += 1
        self.report.took(what, time.monotonic() - started)

    async def _ask(self, rng: random.Random, *, slow: bool = False) -> str:
        name, route = rng.choice(self.routes)
        index, seed, n = rng.randrange(len(PROMPTS)), rng.randrange(4), rng.choice((1, 1, 2))
        length = rng.choice((1, 8, 30, 120))
        body = route.body(PROMPTS[index], seed, length, n)
        stream = route.stream is not None and rng.random() < 0.6
        if stream:
            body["stream"] = True
        async with Wire(self.port, narrow=slow) as wire:
            await wire.send(request("POST", route.path, body))
            reply = await wire.read(await wire.reply(), pause=0.05 if slow else 0.0)
        n = n if "n" in body else 1
        text = route.stream(reply, n) if stream and route.stream else route.whole(reply, n)
        if route.whole is not endings.plain_json:
            self.report.compare((name, index, seed if "seed" in body else 0, length, n), text)
        return f"{name} {'streamed' if stream else 'whole'}"

    async def _ask_badly(self, rng: random.Random) -> str:
        method, path, body, headers, status = rng.choice(_REFUSED)
        reply = await ask(self.port, method, path, body, **headers)
        if reply.status != status:
            raise WrongAnswerError(f"{method} {path}: {reply.status} instead of {status}: {reply.body[:200]!r}")
        try:
            check_refusal(reply)
        except RefusedError as refusal:
            return str(refusal)
        raise WrongAnswerError(f"{method} {path}: not refused")

    async def _leave(self, rng: random.Random) -> str:
        """Go away, with a reset or in order: in the head, in the body, before an answer, or in the stream."""
        _, route = rng.choice(self.routes)
        stream = route.stream is not None and rng.random() < 0.7
        body = route.body(rng.choice(PROMPTS) * 3, 1, 400, 1)
        if stream:
            body["stream"] = True
        sent = request("POST", route.path, body)
        head = sent.index(b"\r\n\r\n")
        where = rng.choice(("in the head", "in the body", "early", "in the stream"))
        cut = {"in the head": rng.randrange(1, head), "in the body": rng.randrange(head + 4, len(sent))}
        async with Wire(self.port) as wire:
            await wire.send(sent[: cut.get(where, len(sent))])
            if where == "early":
                await asyncio.sleep(rng.random() * 0.02)
            elif where == "in the stream":
                reply = await wire.reply()
                left = rng.randrange(1, 20)
                async for _ in wire.events(reply):
                    left -= 1
                    if not left:
                        break
            if rng.random() < 0.5:
                wire.reset()
        return where


async def check_probes(port: int, report: Report) -> None:
    """Probes answer at any load."""
    for path in ("/livez", "/readyz"):
        started = time.monotonic()
        reply = await ask(port, "GET", path)
        report.took(path, time.monotonic() - started)
        if reply.status != 200:
            report.violation(f"{path}: {reply.status} {reply.body[:200]!r}")


async def follow_long_stream(port: int, max_tokens: int, begun: asyncio.Event) -> Reply:
    """Read a stream that takes a while to its end; ``begun`` is set at its first text."""
    body = {**_chat(PROMPTS[1], 1, max_tokens, 2), "stream": True, "debug_config": {"ignore_eos": True}}
    async with Wire(port) as wire:
        await wire.send(request("POST", "/v1/chat/completions", body))
        reply = await wire.reply()
        check_refusal(reply)
        async for _, data in wire.events(reply):
            if data != "[DONE]" and any(choice["delta"].get("content") for choice in json.loads(data)["choices"]):
                begun.set()
        return reply
