"""Work that callers hand to a thread of the engine, and wait for: by blocking, or on an event loop.

Nothing here takes a lock, so that a signal handler or a finalizer may call, or stop a preparer, in the middle of it.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from windlass.engine.threads import EndOfThread, EngineThread, join_started

if TYPE_CHECKING:
    import asyncio

Result = TypeVar("Result")


class _Job(ABC, Generic[Result]):
    """One piece of work for one caller.

    ``_results`` has the result until somebody takes it: the caller, or whoever undoes it because no caller is there.
    An error is likewise taken from ``_errors``, since what went through its traceback must not lead to it again.
    """

    def __init__(self, work: Callable[[], Result], undo: Callable[[Result], None]) -> None:
        self._works = [work]
        self._undo = undo
        self._results: list[Result] = []
        self._errors: list[BaseException] = []
        self.deserted = False

    def run(self) -> None:
        """Do the work, unless somebody else has begun it, and wake the caller; when there is none any more, undo it.

        Raises:
            EndOfThread: the interpreter exits; the caller is not told.
        """
        try:
            work = self._works.pop()
        except IndexError:
            return
        try:
            self._results.append(work())
        except EndOfThread:
            raise
        except BaseException as error:  # whatever it was, the caller must hear of it
            # It leads to the engine, which must not depend on how soon this thread goes on.
            del work
            self.fail(error)
            return
        del work
        if not self._wake() or self.deserted:
            self._drop()

    def fail(self, error: BaseException) -> None:
        """Have the caller raise ``error``, unless it has been woken already."""
        self._errors.append(error)
        if not self._wake() or self.deserted:
            self._errors.clear()

    def desert(self) -> None:
        """Note that the caller waits no longer: whatever the work achieves is undone."""
        self.deserted = True
        self._drop()

    def _drop(self) -> None:
        self._errors.clear()
        try:
            result = self._results.pop()
        except IndexError:
            return
        self._undo(result)

    def _take(self) -> Result:
        if self._results:
            return self._results.pop()
        raise self._errors.pop()

    @abstractmethod
    def _wake(self) -> bool:
        """Wake the caller, who may have been woken before; return False when there is none any more."""


class _ThreadJob(_Job[Result]):
    """A job whose caller is a thread."""

    def __init__(self, work: Callable[[], Result], undo: Callable[[Result], None]) -> None:
        super().__init__(work, undo)
        self._over: SimpleQueue[None] = SimpleQueue()

    def wait(self) -> Result:
        """Wait for the result; raise what the work raised. Interrupted, the caller must desert the job."""
        self._over.get()
        return self._take()

    def _wake(self) -> bool:
        self._over.put(None)
        return True


class _TaskJob(_Job[Result]):
    """A job whose caller is a task of the running event loop."""

    def __init__(self, work: Callable[[], Result], undo: Callable[[Result], None]) -> None:
        import asyncio  # its user has imported it long ago; an engine without event loops starts without it

        super().__init__(work, undo)
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()

    async def wait(self) -> Result:
        """Wait for the result; raise what the work raised. When cancelled, the caller must desert the job."""
        await self._over
        return self._take()

    def _wake(self) -> bool:
        try:
            self._loop.call_soon_threadsafe(self._finish)
        except RuntimeError:
            # The loop was closed meanwhile.
            return False
        return True

    def _finish(self) -> None:
        if not self._over.done():
            self._over.set_result(None)


class Preparer:
    """A daemon thread that does one job after the other until ``stop``. It is in the hands of one engine."""

    def __init__(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: it could not be started.
        """
        # Up to the end of a job the first one is that which the thread is doing.
        self._jobs: deque[_Job[Any]] = deque()
        self._wakeups: SimpleQueue[bool] = SimpleQueue()
        self._stopped = False
        # The thread must not know the preparer, nor anything that leads to the engine.
        self.thread = EngineThread(_work, "windlass-prepare", (self._jobs, self._wakeups))
        try:
            self.thread.start()
        except BaseException:
            self._wakeups.put(False)
            join_started([self.thread])
            raise

    def call(self, work: Callable[[], Result], undo: Callable[[Result], None]) -> Result:
        """Do ``work`` in the thread, wait, and return its result.

        Args:
            undo: gets a result that nobody waits for any more, since the wait was interrupted by an exception.
        """
        if self._is_here():
            return work()
        job = _ThreadJob(work, undo)
        try:
            self._submit(job)
            return job.wait()
        except BaseException:
            job.desert()
            raise

    async def run(self, work: Callable[[], Result], undo: Callable[[Result], None]) -> Result:
        """As ``call``, for a task, which may be cancelled or dropped while it waits."""
        if self._is_here():
            return work()
        job = _TaskJob(work, undo)
        try:
            self._submit(job)
            return await job.wait()
        except BaseException:
            job.desert()
            raise

    def stop(self) -> None:
        """Have the thread end after the jobs it has."""
        self._stopped = True
        self._wakeups.put(False)

    def fail_all(self, error: Callable[[], BaseException]) -> None:
        """Have every caller who waits raise an ``error`` of its own at once, also that of the job in progress."""
        for job in list(self._jobs):
            job.fail(error())

    def _is_here(self) -> bool:
        # A finalizer may call, in the middle of a job, that the garbage collector runs in the thread.
        return threading.get_ident() == self.thread.ident

    def _submit(self, job: _Job[Any]) -> None:
        self._jobs.append(job)
        self._wakeups.put(True)
        if self._stopped:
            # The thread may be gone already. The engine refuses by now, so this does not take long.
            job.run()


def _work(jobs: deque[_Job[Any]], wakeups: SimpleQueue[bool]) -> None:
    # A caller may have been interrupted between the two, so there can be more jobs than wake-ups.
    while wakeups.get():
        while jobs:
            if not jobs[0].deserted:
                jobs[0].run()
            jobs.popleft()


async def run_in_thread(work: Callable[[], None]) -> None:
    """Run ``work`` in a thread of its own and wait for both; a cancelled wait leaves it running to its end."""
    job = _TaskJob(work, lambda _: None)
    thread = threading.Thread(target=job.run, name="windlass-task", daemon=True)
    thread.start()
    try:
        await job.wait()
    except BaseException:
        job.desert()
        raise
    # It has nothing left to do but to end.
    thread.join()
