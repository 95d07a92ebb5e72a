"""An accepted call of ``create()``, and the two ways to wait for it."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from windlass.engine.loop import EngineCore
from windlass.engine.request import Request
from windlass.errors import EngineError, InvalidRequestError
from windlass.serve.build import LoadedModel
from windlass.serve.mailbox import AsyncMailbox, Piece, SyncMailbox
from windlass.serve.preparer import run_in_thread

if TYPE_CHECKING:
    from windlass.protocol.responses import Usage

Chunk_co = TypeVar("Chunk_co", covariant=True)
Response_co = TypeVar("Response_co", covariant=True)
Box = TypeVar("Box", SyncMailbox, AsyncMailbox)


SCORED_AT_ONCE = 64
"""Tokens with logprobs that a response may have to be made on the event loop: in about 10 ms."""


@dataclass(frozen=True, slots=True)
class CallInfo:
    """What every response object of a call repeats."""

    id: str
    model: str
    created: int
    num_prompt_tokens: int
    num_choices: int
    choices_per_prompt: int
    include_usage: bool


class Format(Protocol[Chunk_co, Response_co]):
    """Turns pieces into OpenAI's objects."""

    def chunk(self, piece: Piece) -> Chunk_co | None:
        """Return the stream element of one piece, None when there is nothing to say yet."""
        ...

    def usage_chunk(self, usage: Usage) -> Chunk_co:
        """Return the stream element that closes a stream with ``include_usage``."""
        ...

    def response(self, choices: Sequence[Sequence[Piece]], usage: Usage) -> Response_co:
        """Return the whole response from the pieces of each choice."""
        ...


@dataclass(slots=True, eq=False)
class Call(Generic[Box, Chunk_co, Response_co]):
    """An accepted call. Its mailbox fills by itself; ``abort`` ends it early."""

    info: CallInfo
    core: EngineCore
    requests: tuple[Request, ...]
    mailbox: Box
    format: Format[Chunk_co, Response_co]
    is_large: bool = False
    """Its response takes long to make, whatever it holds."""

    def usage(self, completion_tokens: Iterable[int]) -> Usage:
        """Return the token counts of the call, when each choice has come to so many tokens."""
        from windlass.protocol.responses import PromptTokensDetails, Usage, unchecked

        completed = sum(completion_tokens)
        reused = sum(request.num_reused for request in self.requests[:: self.info.choices_per_prompt])
        return unchecked(
            Usage,
            prompt_tokens=self.info.num_prompt_tokens,
            completion_tokens=completed,
            total_tokens=self.info.num_prompt_tokens + completed,
            prompt_tokens_details=unchecked(PromptTokensDetails, cached_tokens=reused),
        )

    def abort(self) -> None:
        """Free what the call holds in the engine. No-op when it has ended; takes no lock."""
        self.core.drop(self.requests)

    def check_process(self) -> None:
        """Raise EngineForkedError in a forked child, where nobody would ever answer."""
        if self.core.lifecycle.forked:
            raise self.core.lifecycle.foreign()

    # Whoever was to read it was interrupted.
    __del__ = abort


class _Collector(Generic[Chunk_co, Response_co]):
    """Gathers the pieces of a call, choice by choice."""

    def __init__(self, call: Call[Box, Chunk_co, Response_co]) -> None:
        self._call: Call[Any, Chunk_co, Response_co] = call
        self._pieces: list[list[Piece]] = [[] for _ in range(call.info.num_choices)]

    def add(self, piece: Piece) -> None:
        self._pieces[piece.index].append(piece)

    @property
    def num_scored(self) -> int:
        """Tokens with logprobs, of which each makes up to 21 objects."""
        return sum(len(piece.scored) for pieces in self._pieces for piece in pieces)

    def response(self) -> Response_co:
        usage = self._call.usage(pieces[-1].num_tokens for pieces in self._pieces)
        return self._call.format.response(self._pieces, usage)


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
    if not call.is_large and collector.num_scored <= SCORED_AT_ONCE:
        return collector.response()
    made: list[Response_co] = []
    await run_in_thread(lambda: made.append(collector.response()))
    return made.pop()


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

    @property
    def usage(self) -> Usage:
        """The token counts of the call as far as it has been read."""
        return self._call.usage(self._num_tokens)

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
            chunk = self._call.format.chunk(piece)
            if chunk is not None:
                self._ready.append(chunk)
            return
        self._finish()
        if self._call.info.include_usage:
            self._ready.append(self._call.format.usage_chunk(self._call.usage(self._num_tokens)))

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
                self._call.check_process()
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
                self._call.check_process()
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

    def _count_refusal(self, error: EngineError | InvalidRequestError) -> None:
        """Count a call that was refused with ``error``."""
        ...


class SyncHost(Host, Protocol):
    """An engine whose callers are threads."""

    def _prepare(
        self, start: Callable[[], Call[SyncMailbox, Chunk_co, Response_co]]
    ) -> Call[SyncMailbox, Chunk_co, Response_co]:
        """Run ``start`` in a thread of the engine; when the caller is interrupted meanwhile, abort what it started."""
        ...


class AsyncHost(Host, Protocol):
    """An engine whose callers are tasks."""

    async def _prepare(
        self, start: Callable[[], Call[AsyncMailbox, Chunk_co, Response_co]]
    ) -> Call[AsyncMailbox, Chunk_co, Response_co]:
        """Run ``start`` in a thread of the engine; when the task is cancelled meanwhile, abort what it started."""
        ...
