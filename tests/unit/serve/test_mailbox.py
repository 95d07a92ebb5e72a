"""Mailboxes: one ending, nothing after it, whoever ends the call."""

from __future__ import annotations

import asyncio
import threading

import pytest

from windlass.engine.request import FinishReason
from windlass.serve.mailbox import AsyncMailbox, Mailbox, Piece, SyncMailbox

PIECES = [Piece(0, "a", 1, None), Piece(0, "b", 2, None), Piece(0, "c", 3, FinishReason.STOP)]


def read_all(mailbox: SyncMailbox) -> list[Piece]:
    pieces = []
    while (piece := mailbox.get()) is not None:
        pieces.append(piece)
    return pieces


def test_pieces_arrive_in_order_and_end() -> None:
    mailbox = SyncMailbox(1)
    for piece in PIECES:
        mailbox.put(piece)
    mailbox.fail(KeyError("too late"))
    assert read_all(mailbox) == PIECES


def test_an_error_goes_before_what_was_not_read() -> None:
    mailbox = SyncMailbox(1)
    mailbox.put(PIECES[0])
    mailbox.fail(KeyError("first"))
    mailbox.fail(KeyError("second"))
    mailbox.put(PIECES[2])
    with pytest.raises(KeyError, match="first"):
        mailbox.get()


def test_a_whole_answer_wakes_its_consumer_once() -> None:
    for cut in (False, True):
        mailbox = SyncMailbox(1, whole=True)
        later = AsyncMailbox(1, whole=True)
        for box in (mailbox, later):
            for piece in PIECES[:2]:
                box.put(piece)
            if cut:
                box.fail(KeyError("cut"))
        assert mailbox._queue.qsize() == len(later._pieces) == (1 if cut else 0)
        for box in (mailbox, later):
            box.put(PIECES[2])
        if cut:
            with pytest.raises(KeyError, match="cut"):
                mailbox.get()
            with pytest.raises(KeyError, match="cut"):
                asyncio.run(later.get())
        else:
            assert read_all(mailbox) == PIECES
            assert list(later._pieces) == [*PIECES, None]


def test_a_call_ends_when_all_its_choices_have() -> None:
    mailbox = SyncMailbox(2)
    mailbox.put(Piece(1, "x", 1, FinishReason.LENGTH))
    mailbox.put(Piece(0, "y", 1, FinishReason.STOP))
    assert [piece.index for piece in read_all(mailbox)] == [1, 0]


def test_a_race_of_endings_has_one_winner() -> None:
    for _ in range(300):
        mailbox = SyncMailbox(1)
        start = threading.Barrier(3)

        def finish(mailbox: Mailbox = mailbox, start: threading.Barrier = start) -> None:
            start.wait(10)
            mailbox.put(PIECES[2])

        def fail(mailbox: Mailbox = mailbox, start: threading.Barrier = start) -> None:
            start.wait(10)
            mailbox.fail(KeyError("cut"))

        threads = [threading.Thread(target=finish), threading.Thread(target=fail), threading.Thread(target=fail)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        try:
            assert read_all(mailbox) == [PIECES[2]]
        except KeyError:
            left = [mailbox._queue.get() for _ in range(mailbox._queue.qsize())]
            assert PIECES[2] not in left, "a last piece was sent beside the error"


def test_async_pieces_arrive_from_another_thread() -> None:
    async def read() -> list[Piece]:
        mailbox = AsyncMailbox(1)
        pieces = [Piece(0, str(i), i, None) for i in range(2000)] + [PIECES[2]]
        thread = threading.Thread(target=lambda: [mailbox.put(piece) for piece in pieces])
        thread.start()
        got = []
        while (piece := await asyncio.wait_for(mailbox.get(), 10)) is not None:
            got.append(piece)
        thread.join(10)
        assert got == pieces
        return got

    assert len(asyncio.run(read())) == 2001


def test_what_nobody_will_read_is_told_to_the_sender() -> None:
    """The consumer's event loop was closed while it waited."""
    mailbox = AsyncMailbox(1)

    async def wait_in_vain() -> None:
        with pytest.raises(asyncio.CancelledError):
            await mailbox.get()

    loop = asyncio.new_event_loop()
    task = loop.create_task(wait_in_vain())
    loop.call_soon(task.cancel)
    loop.run_until_complete(task)
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        mailbox.put(PIECES[0])
    mailbox.fail(KeyError("cut"))

    async def read() -> None:
        with pytest.raises(KeyError, match="cut"):
            await mailbox.get()

    asyncio.run(read())
