"""One call of ``create()``, from arguments to tokens on their way; and the two ways to wait for it."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from windlass.engine.loop import EngineCore
from windlass.engine.request import Request, SamplingParams
from windlass.errors import ContextLengthError, InvalidRequestError
from windlass.protocol.arguments import CommonArguments
from windlass.protocol.responses import Usage
from windlass.serve.build import LoadedModel
from windlass.serve.mailbox import AsyncMailbox, ChoiceOutput, Piece, SyncMailbox
from windlass.text.stop import StopStrings

Chunk_co = TypeVar("Chunk_co", covariant=True)
Response_co = TypeVar("Response_co", covariant=True)
_SAMPLING_NAMES = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)

Box = TypeVar("Box", SyncMailbox, AsyncMailbox)


@dataclass(frozen=True, slots=True)
class CallInfo:
    """What every response object of a call repeats."""

    id: str
    model: str
    created: int
    num_prompt_tokens: int
    num_choices: int
    include_usage: bool


class Format(Protocol[Chunk_co, Response_co]):
    """Turns pieces into OpenAI's objects."""

    def chunk(self, piece: Piece) -> Chunk_co:
        """Return the stream element of one piece."""
        ...

    def usage_chunk(self, usage: Usage) -> Chunk_co:
        """Return the stream element that closes a stream with ``include_usage``."""
        ...

    def response(self, texts: Sequence[str], last: Sequence[Piece], usage: Usage) -> Response_co:
        """Return the whole response from each choice's text and last piece."""
        ...


@dataclass(slots=True, eq=False)
class Call(Generic[Box, Chunk_co, Response_co]):
    """An accepted call. Its mailbox fills by itself; ``abort`` ends it early."""

    info: CallInfo
    core: EngineCore
    requests: tuple[Request, ...]
    mailbox: Box
    format: Format[Chunk_co, Response_co]

    def abort(self) -> None:
        """Free what the call holds in the engine. No-op when it has ended; takes no lock."""
        self.core.drop(self.requests)


def start_call(
    core: EngineCore,
    model: LoadedModel,
    arguments: CommonArguments,
    prompt_ids: list[int],
    *,
    max_tokens: int | None,
    id_prefix: str,
    param: str,
    continued_ids: Sequence[int] = (),
    mailbox: Callable[[int], Box],
    format: Callable[[CallInfo], Format[Chunk_co, Response_co]],  # noqa: A002
) -> Call[Box, Chunk_co, Response_co]:
    """Submit the sequences of one call.

    Args:
        arguments: checked, without None.
        param: the argument the prompt came from, for errors.
        continued_ids: the prompt, when the answer continues its text.

    Raises:
        ContextLengthError: the prompt leaves no room for an answer.
        InvalidRequestError: the request id is in use.
        EngineError: the engine does not accept requests now.
    """
    room = model.sizes.max_single_sequence_length - len(prompt_ids)
    if room < 1:
        raise ContextLengthError(
            f"the prompt has {len(prompt_ids)} tokens, which leaves no room for an answer: the context is "
            f"{model.sizes.max_single_sequence_length} tokens",
            param=param,
        )
    if not prompt_ids:
        raise InvalidRequestError("the prompt has no tokens", param=param)
    num_choices = arguments.get("n") or 1
    info = CallInfo(
        id=arguments.get("request_id") or f"{id_prefix}-{secrets.token_hex(16)}",
        model=arguments.get("model") or model.name,
        created=int(time.time()),
        num_prompt_tokens=len(prompt_ids),
        num_choices=num_choices,
        include_usage=(arguments.get("stream_options") or {}).get("include_usage", False),
    )
    box = mailbox(num_choices)
    user_stops: tuple[str, ...] = _stop_strings(arguments)
    stop_token_ids = model.text.stop_token_ids | model.text.stop_ids_of(user_stops)
    requests = tuple(
        Request(
            request_id=info.id,
            prompt_ids=prompt_ids,
            max_tokens=min(max_tokens or room, room),
            stop_token_ids=stop_token_ids,
            sampling=sampling,
            output=ChoiceOutput(
                index=sampling.choice,
                mailbox=box,
                detokenizer=model.text.detokenizer(continued_ids),
                stops=StopStrings((*user_stops, *model.text.stop_strings)),
                release=partial(core.finish_early, info.id, sampling.choice),
            ),
        )
        for sampling in _sampling(arguments, model, num_choices)
    )
    core.add_request(requests)
    return Call(info, core, requests, box, format(info))


def _sampling(arguments: CommonArguments, model: LoadedModel, num_choices: int) -> list[SamplingParams]:
    """What the call asks for, else what the model's files say, else neutral values; one per choice."""
    chosen: dict[str, Any] = {}
    for name in _SAMPLING_NAMES:
        given = arguments.get(name)
        value = getattr(model.text.defaults, name) if given is None else given
        if value is not None:
            chosen[name] = value
    seed = arguments.get("seed")
    chosen["seed"] = secrets.randbits(63) if seed is None else seed
    return [SamplingParams(**chosen, choice=choice) for choice in range(num_choices)]


def _stop_strings(arguments: CommonArguments) -> tuple[str, ...]:
    stop = arguments.get("stop")
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


class _Collector(Generic[Chunk_co, Response_co]):
    """Adds up the pieces of a call."""

    def __init__(self, call: Call[Box, Chunk_co, Response_co]) -> None:
        self._info = call.info
        self._format = call.format
        self._texts: list[list[str]] = [[] for _ in range(call.info.num_choices)]
        self._last: dict[int, Piece] = {}

    def add(self, piece: Piece) -> None:
        self._texts[piece.index].append(piece.text)
        self._last[piece.index] = piece

    def usage(self) -> Usage:
        return count_usage(self._info, (piece.num_tokens for piece in self._last.values()))

    def response(self) -> Response_co:
        texts = ["".join(parts) for parts in self._texts]
        return self._format.response(texts, [self._last[index] for index in range(len(texts))], self.usage())


def count_usage(info: CallInfo, completion_tokens: Iterator[int]) -> Usage:
    """Return the token counts of a call."""
    completed = sum(completion_tokens)
    return Usage(
        prompt_tokens=info.num_prompt_tokens,
        completion_tokens=completed,
        total_tokens=info.num_prompt_tokens + completed,
    )


def wait(call: Call[SyncMailbox, Chunk_co, Response_co]) -> Response_co:
    """Wait for the whole response; leaving early, for instance by KeyboardInterrupt, aborts the call."""
    collector = _Collector(call)
    try:
        while (piece := call.mailbox.get()) is not None:
            collector.add(piece)
    except BaseException:
        call.abort()
        raise
    return collector.response()


async def wait_async(call: Call[AsyncMailbox, Chunk_co, Response_co]) -> Response_co:
    """Wait for the whole response; cancelling the task aborts the call."""
    collector = _Collector(call)
    try:
        while (piece := await call.mailbox.get()) is not None:
            collector.add(piece)
    except BaseException:
        call.abort()
        raise
    return collector.response()


class _StreamBase(Generic[Box, Chunk_co]):
    """What both streams share: chunks that are ready, and an end. Keeps its engine alive until then."""

    def __init__(self, call: Call[Box, Chunk_co, object], engine: object) -> None:
        self._call: Call[Box, Chunk_co, Any] = call
        self._engine: object | None = engine
        self._ready: deque[Chunk_co] = deque()
        self._num_tokens = [0] * call.info.num_choices
        self._over = False

    @property
    def request_id(self) -> str:
        """The call's id, for ``engine.abort``."""
        return self._call.info.id

    def _abort(self) -> None:
        if not self._over:
            self._call.abort()
            self._finish()

    def _finish(self) -> None:
        self._over = True
        self._engine = None

    def _take(self, piece: Piece | None) -> None:
        if piece is not None:
            self._num_tokens[piece.index] = piece.num_tokens
            self._ready.append(self._call.format.chunk(piece))
            return
        self._finish()
        if self._call.info.include_usage:
            usage = count_usage(self._call.info, iter(self._num_tokens))
            self._ready.append(self._call.format.usage_chunk(usage))

    def __del__(self) -> None:
        # A half-built stream has no _over; the finalizer must not raise.
        if not getattr(self, "_over", True):
            self._abort()


class Stream(_StreamBase[SyncMailbox, Chunk_co]):
    """The chunks of a call as they come. Closing it, or dropping it, aborts the call."""

    def __iter__(self) -> Iterator[Chunk_co]:
        return self

    def __next__(self) -> Chunk_co:
        while not self._ready:
            if self._over:
                raise StopIteration
            try:
                self._take(self._call.mailbox.get())
            except BaseException:
                self._abort()
                raise
        return self._ready.popleft()

    def close(self) -> None:
        """Abort the call if it is not finished. Idempotent."""
        self._ready.clear()
        self._abort()

    def __enter__(self) -> Stream[Chunk_co]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncStream(_StreamBase[AsyncMailbox, Chunk_co]):
    """The chunks of a call as they come. Closing it, dropping it, or cancelling its task aborts the call."""

    def __aiter__(self) -> AsyncIterator[Chunk_co]:
        return self

    async def __anext__(self) -> Chunk_co:
        while not self._ready:
            if self._over:
                raise StopAsyncIteration
            try:
                self._take(await self._call.mailbox.get())
            except BaseException:
                self._abort()
                raise
        return self._ready.popleft()

    async def aclose(self) -> None:
        """Abort the call if it is not finished. Idempotent."""
        self._ready.clear()
        self._abort()

    async def __aenter__(self) -> AsyncStream[Chunk_co]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class Host(Protocol):
    """An engine, as far as its calls need it."""

    def _parts(self) -> tuple[EngineCore, LoadedModel]:
        """Return what serves requests, or raise why there is nothing."""
        ...


class AsyncHost(Host, Protocol):
    """An engine that prepares its calls off the event loop."""

    async def _prepare(
        self, start: Callable[[], Call[AsyncMailbox, Chunk_co, Response_co]]
    ) -> Call[AsyncMailbox, Chunk_co, Response_co]:
        """Run ``start`` in a thread of the engine; when the task is cancelled meanwhile, abort what it started."""
        ...
