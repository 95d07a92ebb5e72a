"""The calls an engine has accepted: by what ids, how many of their requests wait, and who waits for the last one."""

from __future__ import annotations

import threading
from queue import Empty, SimpleQueue

from windlass.engine.adapters import Adapter
from windlass.engine.request import Request
from windlass.errors import EngineOverloadedError, InvalidRequestError

RETRY_SECONDS = 1.0
"""What an overloaded engine asks callers to wait before they try again."""


class Accounts:
    """The calls that were accepted and are not finished. Any thread may use them; only ``open`` takes a lock.

    Invariant: a request that waits for its first step belongs to an open call, or to one that is being opened.
    """

    def __init__(self, *, max_waiting_requests: int, max_waiting_tokens: int | None) -> None:
        self._max_waiting_requests = max_waiting_requests
        self._max_waiting_tokens = max_waiting_tokens
        # Reentrant: the garbage collector may run a finalizer that calls, wherever it happens to be.
        self._lock = threading.RLock()
        self._open: dict[str, tuple[Request, ...]] = {}
        self._waiting: dict[Request, None] = {}
        # Queues and not events: an event takes a lock, which whoever is interrupted by the waking may hold.
        self._idle_waiters: list[SimpleQueue[None]] = []
        self._adapter_waiters: list[SimpleQueue[None]] = []
        self._given_up = False

    def __len__(self) -> int:
        return len(self._open)

    def open(self, requests: tuple[Request, ...]) -> None:
        """Take in the requests of a call, which share a request id.

        Raises:
            EngineOverloadedError: too many requests, or tokens, wait already.
            InvalidRequestError: the request id is in use.
        """
        request_id = requests[0].request_id
        with self._lock:
            self._refuse_overload(requests)
            if self._open.setdefault(request_id, requests) is not requests:
                raise InvalidRequestError(f"the request id {request_id!r} is in use", param="request_id")
            self._waiting.update(dict.fromkeys(requests))

    def find(self, request_id: str) -> tuple[Request, ...]:
        """Return the requests of the open call of that id; empty when there is none."""
        return self._open.get(request_id, ())

    def is_open(self, requests: tuple[Request, ...]) -> bool:
        """Return whether exactly this call, and not another one of its id, is open."""
        return self._open.get(requests[0].request_id) is requests

    def all(self) -> list[tuple[Request, ...]]:
        """Return the requests of each open call."""
        return list(self._open.values())

    def starts(self, request: Request) -> None:
        """Note that ``request`` waits no more."""
        self._waiting.pop(request, None)

    def ends(self, request: Request) -> None:
        """Mark ``request`` as ended; its call is closed when its siblings have ended too."""
        request.ended = True
        self._waiting.pop(request, None)
        siblings = self.find(request.request_id)
        if request in siblings and all(sibling.ended for sibling in siblings):
            self.close(siblings)

    def close(self, requests: tuple[Request, ...]) -> None:
        """Drop a call that is over. No-op when that was done."""
        for request in requests:
            self._waiting.pop(request, None)
        if self.is_open(requests):
            del self._open[requests[0].request_id]
            if not self._open:
                self._wake(self._idle_waiters)
            adapter = requests[0].adapter
            if adapter is not None and adapter.retired:
                # Here, since whoever retired it may have been interrupted.
                self._free(adapter)
                self._wake(self._adapter_waiters)

    def forget_all(self) -> None:
        """Drop every call, without waking anybody."""
        self._open.clear()

    def wait_until_empty(self, timeout: float | None) -> bool:
        """Wait until no call is open, or ``give_up``; return False when ``timeout`` seconds pass first."""
        waiter: SimpleQueue[None] = SimpleQueue()
        self._idle_waiters.append(waiter)
        try:
            if self._open and not self._given_up:
                waiter.get(timeout=timeout)
            return True
        except Empty:
            return False
        finally:
            self._idle_waiters.remove(waiter)

    def wait_until_free(self, adapter: Adapter) -> bool:
        """Wait until no call uses ``adapter``, which is retired, and its memory is free; False after ``give_up``."""
        waiter: SimpleQueue[None] = SimpleQueue()
        self._adapter_waiters.append(waiter)
        try:
            while not self._free(adapter):
                if self._given_up:
                    return False
                waiter.get()
            return True
        finally:
            self._adapter_waiters.remove(waiter)

    def give_up(self) -> None:
        """Let everybody who waits return, those to come too: nothing will be finished any more."""
        self._given_up = True
        self._wake(self._idle_waiters)
        self._wake(self._adapter_waiters)

    @staticmethod
    def _wake(waiters: list[SimpleQueue[None]]) -> None:
        for waiter in list(waiters):
            waiter.put(None)

    def _free(self, adapter: Adapter) -> bool:
        """Free the memory of ``adapter``, which is retired, unless an open call uses it; return whether it is free."""
        if any(requests[0].adapter is adapter for requests in self.all()):
            return False
        adapter.packed.close()
        return True

    def _refuse_overload(self, requests: tuple[Request, ...]) -> None:
        waiting = len(self._waiting)
        # A call that generates nothing is over soon, and may have thousands of texts.
        added = len(requests) if requests[0].max_tokens else 1
        if waiting + added > self._max_waiting_requests:
            raise EngineOverloadedError(
                f"{waiting} requests wait already, and EngineConfig.max_waiting_requests is "
                f"{self._max_waiting_requests}; try again later",
                retry_after=RETRY_SECONDS,
            )
        if self._max_waiting_tokens is None or not waiting:
            return
        tokens = sum(len(request.prompt_ids) for request in list(self._waiting))
        if tokens + sum(len(request.prompt_ids) for request in requests) > self._max_waiting_tokens:
            raise EngineOverloadedError(
                f"requests of {tokens} tokens wait already, and EngineConfig.max_waiting_tokens is "
                f"{self._max_waiting_tokens}; try again later",
                retry_after=RETRY_SECONDS,
            )
