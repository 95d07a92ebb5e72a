"""Where the stream-back thread leaves what a caller waits for.

A mailbox belongs to one call. Its ending, a last piece (None) or an error, is claimed once: whoever sets it first ends
the call, and what it is comes with the claim. Nothing here takes a lock, so a call can be failed from a finalizer or a
signal handler, and whoever was interrupted in the middle of it can do it again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING

from windlass.engine.request import FinishReason, Output
from windlass.native.sampling import TokenLogprobs
from windlass.text.detokenizer import IncrementalDetokenizer
from windlass.text.stop import StopStrings

if TYPE_CHECKING:
    import asyncio


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token of an answer with its logprob and those of the likeliest tokens in its place, as bytes of text."""

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """New text of one choice; ``reason`` is set on its last piece. ``num_tokens`` counts all its tokens so far.

    ``scored`` has the tokens that came since the piece before, when logprobs were asked for. ``stop_string`` is the one
    that ended the choice, if one did.
    """

    index: int
    text: str
    num_tokens: int
    reason: FinishReason | None
    scored: tuple[ScoredToken, ...] = ()
    stop_string: str | None = None


_KEY = "ending"


class Mailbox(ABC):
    """Pieces on their way from the stream-back thread to one consumer.

    Invariant: after the ending was claimed nothing more is read but what was sent before a last piece; an error goes
    before everything that was not read yet, so that a call that was cut never looks complete.

    Args:
        whole: hold all pieces back until the last one has come, so that the consumer wakes once.
    """

    def __init__(self, num_choices: int, *, whole: bool = False) -> None:
        self._unfinished = num_choices
        self._whole = whole
        self._held: list[Piece] = []
        self._ending: dict[str, BaseException | None] = {}

    def put(self, piece: Piece) -> None:
        """Add a piece. Called by the stream-back thread only."""
        if piece.reason is not None:
            self._unfinished -= 1
            if not self._unfinished:
                self._finish(piece)
                return
        if self._whole:
            self._held.append(piece)
        else:
            self._send(piece)

    def _finish(self, piece: Piece) -> None:
        try:
            if self._ending.setdefault(_KEY, None) is None:
                for one in (*self._held, piece, None):
                    self._send(one)
        except BaseException:
            # A claim must not stand without what it promises; the call is failed instead.
            self._ending.clear()
            raise

    def fail(self, error: BaseException) -> None:
        """End the call with ``error`` unless it has ended. From any thread."""
        if self._ending.setdefault(_KEY, error) is not None:
            # Also for an earlier error, whose sender may have been interrupted here.
            self._send(None)

    @property
    def _error(self) -> BaseException | None:
        return self._ending.get(_KEY)

    @abstractmethod
    def _send(self, piece: Piece | None) -> None:
        """Hand over a piece, or None for the ending, and wake the consumer."""


class SyncMailbox(Mailbox):
    """A mailbox whose consumer is a thread."""

    def __init__(self, num_choices: int, *, whole: bool = False) -> None:
        super().__init__(num_choices, whole=whole)
        self._queue: SimpleQueue[Piece | None] = SimpleQueue()

    def get(self) -> Piece | None:
        """Wait for the next piece; None when all are read.

        Raises:
            WindlassError: the error that ended the call.
        """
        piece = self._queue.get()
        if piece is None:
            # For whoever else reads.
            self._queue.put(None)
        if self._error is not None:
            raise self._error
        return piece

    def _send(self, piece: Piece | None) -> None:
        self._queue.put(piece)


class AsyncMailbox(Mailbox):
    """A mailbox whose consumer is a task, on whatever event loop it runs."""

    def __init__(self, num_choices: int, *, whole: bool = False) -> None:
        super().__init__(num_choices, whole=whole)
        self._pieces: deque[Piece | None] = deque()
        self._waiters: dict[asyncio.Future[None], asyncio.AbstractEventLoop] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Note that the consumer lives on ``loop``."""
        self._loop = loop

    def put(self, piece: Piece) -> None:
        """Add a piece. Called by the stream-back thread only.

        Raises:
            RuntimeError: the consumer's event loop is closed, so that nobody will read it.
        """
        if self._loop is not None and self._loop.is_closed():
            raise RuntimeError("the event loop of its consumer is closed")
        super().put(piece)

    async def get(self) -> Piece | None:
        """Wait for the next piece; None when all are read.

        Raises:
            WindlassError: the error that ended the call.
        """
        import asyncio  # its user has imported it long ago; an engine without event loops starts without it

        while not self._pieces:
            loop = asyncio.get_running_loop()
            self.attach(loop)
            future: asyncio.Future[None] = loop.create_future()
            self._waiters[future] = loop
            # The producer appends before it looks for waiters, so one of the two sees the other.
            try:
                if not self._pieces:
                    await future
            finally:
                del self._waiters[future]
        piece = self._pieces.popleft()
        if piece is None:
            # For whoever else reads.
            self._send(None)
        if self._error is not None:
            raise self._error
        return piece

    def _send(self, piece: Piece | None) -> None:
        self._pieces.append(piece)
        for future, loop in list(self._waiters.items()):
            # A closed loop raises RuntimeError: nobody waits there any more.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(_wake, future)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class ChoiceOutput:
    """Turns the tokens of one choice into text, on the stream-back thread (an ``engine.request.Output``)."""

    def __init__(
        self,
        index: int,
        mailbox: Mailbox,
        detokenizer: IncrementalDetokenizer,
        stops: StopStrings,
        release: Callable[[Output], None],
        token_bytes: Callable[[int], bytes],
    ) -> None:
        self._index = index
        self._mailbox = mailbox
        self._detokenizer = detokenizer
        self._stops = stops
        self._release = release
        self._token_bytes = token_bytes
        self._num_tokens = 0
        self._scored: list[ScoredToken] = []
        self._finished = False

    def put(self, token_id: int, logprobs: TokenLogprobs | None) -> None:
        """Deliver what the token completes; a stop string ends the choice and the rest of its tokens is ignored."""
        if self._finished:
            return
        self._num_tokens += 1
        if logprobs is not None:
            top = tuple((self._token_bytes(top_id), logprob) for top_id, logprob in logprobs.top)
            self._scored.append(ScoredToken(self._token_bytes(token_id), logprobs.logprob, top))
        text, stopped = self._stops.push(self._detokenizer.push(token_id))
        if stopped:
            self._end(text, FinishReason.STOP)
            self._release(self)
        elif text:
            self._send(text, None)

    def finish(self, reason: FinishReason) -> None:
        """Deliver what was held back, and the reason."""
        if self._finished:
            return
        text, stopped = self._stops.push(self._detokenizer.flush())
        if not stopped:
            text += self._stops.flush()
        self._end(text, FinishReason.STOP if stopped else reason)

    def fail(self, error: BaseException) -> None:
        """End the whole call with ``error``."""
        self._mailbox.fail(error)

    def _end(self, text: str, reason: FinishReason) -> None:
        self._finished = True
        self._send(text, reason)

    def _send(self, text: str, reason: FinishReason | None) -> None:
        stop = self._stops.found
        self._mailbox.put(Piece(self._index, text, self._num_tokens, reason, tuple(self._scored), stop))
        self._scored.clear()
