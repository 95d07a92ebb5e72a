"""Work that an event loop hands to a thread of the engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class _Job(Generic[Result]):
    """One piece of work and the future, on its caller's loop, that waits for it."""

    def __init__(self, work: Callable[[], Result], undo: Callable[[Result], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Result] = self.loop.create_future()
        self._work = work
        self._undo = undo

    def run(self) -> None:
        """Do the work and report to the loop; when nobody is there any more, undo it."""
        try:
            result = self._work()
        except BaseException as error:  # whatever it was, the caller must hear of it
            self._report(partial(self._fail, error))
            return
        if not self._report(partial(self._succeed, result)):
            self._undo(result)

    def _report(self, callback: Callable[[], None]) -> bool:
        try:
            self.loop.call_soon_threadsafe(callback)
        except RuntimeError:
            # The loop was closed while the work ran.
            return False
        return True

    def _succeed(self, result: Result) -> None:
        if self.future.cancelled():
            self._undo(result)
        else:
            self.future.set_result(result)

    def _fail(self, error: BaseException) -> None:
        if not self.future.cancelled():
            self.future.set_exception(error)

    async def wait(self) -> Result:
        """Wait for the result; when the task is cancelled, whatever the work achieved is undone."""
        try:
            return await self.future
        except asyncio.CancelledError:
            if self.future.done() and not self.future.cancelled() and self.future.exception() is None:
                self._undo(self.future.result())
            raise


class Preparer:
    """A daemon thread, started at the first job, that does one job after the other until ``stop``."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job[Any] | None] = SimpleQueue()
        self._start_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopped = False

    async def run(self, work: Callable[[], Result], undo: Callable[[Result], None]) -> Result:
        """Do ``work`` in the thread and return its result; ``undo`` gets a result that nobody waits for any more."""
        job = _Job(work, undo)
        self._jobs.put(job)
        if self._stopped:
            # The thread may be gone already. The engine refuses by now, so this does not take long.
            _run_all(self._jobs)
        else:
            self._ensure_started()
        return await job.wait()

    def stop(self) -> None:
        """Have the thread end after the jobs it has. Takes no lock."""
        self._stopped = True
        self._jobs.put(None)

    def join(self) -> None:
        """Wait until the thread has ended."""
        with self._start_lock:
            thread = self._thread
        if thread is not None:
            thread.join()

    def _ensure_started(self) -> None:
        with self._start_lock:
            if self._thread is None and not self._stopped:
                # The thread must not know the preparer, nor anything that leads to the engine.
                self._thread = threading.Thread(target=_work, args=(self._jobs,), name="windlass-prepare", daemon=True)
                self._thread.start()


def _work(jobs: SimpleQueue[_Job[Any] | None]) -> None:
    while (job := jobs.get()) is not None:
        job.run()
        del job
    _run_all(jobs)


def _run_all(jobs: SimpleQueue[_Job[Any] | None]) -> None:
    try:
        while True:
            job = jobs.get_nowait()
            if job is not None:
                job.run()
    except Empty:
        return


async def run_in_thread(work: Callable[[], None]) -> None:
    """Run ``work`` in a thread of its own and wait for it; a cancelled wait leaves it running to its end."""
    job = _Job(work, lambda _: None)
    threading.Thread(target=job.run, name="windlass-terminate", daemon=True).start()
    await job.wait()
