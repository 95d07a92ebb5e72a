"""Work that an event loop hands to a thread of the engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from windlass.engine.threads import join_started

Result = TypeVar("Result")


class _Job(Generic[Result]):
    """One piece of work and the future, on its caller's loop, that waits for it.

    ``_results`` has the result until somebody takes it: the caller, or whoever undoes it because no caller is there.
    """

    def __init__(self, work: Callable[[], Result], undo: Callable[[Result], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self.loop.create_future()
        self._work = work
        self._undo = undo
        self._results: list[Result] = []
        self._deserted = False

    def run(self) -> None:
        """Do the work and report to the loop; when nobody is there any more, undo it.

        Raises:
            SystemExit: the work did, because the interpreter ends: nobody is told.
        """
        try:
            self._results.append(self._work())
        except SystemExit:
            raise
        except BaseException as error:  # whatever it was, the caller must hear of it
            self._report(partial(self._fail, error))
            return
        if not self._report(self._succeed) or self._deserted:
            self._undo_result()

    def _report(self, callback: Callable[[], None]) -> bool:
        try:
            self.loop.call_soon_threadsafe(callback)
        except RuntimeError:
            # The loop was closed while the work ran.
            return False
        return True

    def _succeed(self) -> None:
        if not self.future.done():
            self.future.set_result(None)

    def _fail(self, error: BaseException) -> None:
        if not self.future.done() and not self._deserted:
            self.future.set_exception(error)

    def _undo_result(self) -> None:
        try:
            result = self._results.pop()
        except IndexError:
            return
        self._undo(result)

    async def wait(self) -> Result:
        """Wait for the result; when the task is cancelled or dropped, whatever the work achieved is undone."""
        try:
            await self.future
            return self._results.pop()
        except BaseException:
            self._deserted = True
            self._undo_result()
            raise


class Preparer:
    """A daemon thread that does one job after the other until ``stop``. It is in the hands of one engine."""

    def __init__(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: it could not be started.
        """
        self._jobs: SimpleQueue[_Job[Any] | None] = SimpleQueue()
        self._stopped = False
        # The thread must not know the preparer, nor anything that leads to the engine.
        self.thread = threading.Thread(target=_work, args=(self._jobs,), name="windlass-prepare", daemon=True)
        try:
            self.thread.start()
        except BaseException:
            self._jobs.put(None)
            join_started([self.thread])
            raise

    async def run(self, work: Callable[[], Result], undo: Callable[[Result], None]) -> Result:
        """Do ``work`` in the thread and return its result; ``undo`` gets a result that nobody waits for any more."""
        job = _Job(work, undo)
        self._jobs.put(job)
        if self._stopped:
            # The thread may be gone already. The engine refuses by now, so this does not take long.
            _run_all(self._jobs)
        return await job.wait()

    def stop(self) -> None:
        """Have the thread end after the jobs it has. Takes no lock."""
        self._stopped = True
        self._jobs.put(None)


def _work(jobs: SimpleQueue[_Job[Any] | None]) -> None:
    while (job := jobs.get()) is not None:
        job.run()
        del job
    _run_all(jobs)


def _run_all(jobs: SimpleQueue[_Job[Any] | None]) -> None:
    stopped = False
    try:
        while True:
            job = jobs.get_nowait()
            if job is None:
                stopped = True
            else:
                job.run()
    except Empty:
        pass
    if stopped:
        # It is for the thread, which this may not be.
        jobs.put(None)


async def run_in_thread(work: Callable[[], None]) -> None:
    """Run ``work`` in a thread of its own and wait for both; a cancelled wait leaves it running to its end."""
    job = _Job(work, lambda _: None)
    thread = threading.Thread(target=job.run, name="windlass-terminate", daemon=True)
    thread.start()
    await job.wait()
    # It has nothing left to do but to end.
    thread.join()
