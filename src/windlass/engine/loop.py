"""The engine core: one thread owns all inference state, another delivers what it publishes.

Callers talk to the core through queues only. ``SimpleQueue.put`` and the reads and writes of single attributes used
here are atomic and take no lock of ours, so ``exit_background_loop`` and ``abort_request`` may run anywhere: in a
signal handler, or in a finalizer that the garbage collector starts in the middle of any other code.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue

from windlass.engine.accounts import Accounts
from windlass.engine.adapters import Adapter, unknown_adapter
from windlass.engine.metrics import EngineMetrics
from windlass.engine.recorder import AbortCause, MetricsRecorder, RefusalCause
from windlass.engine.request import SPENT, FinishReason, Output, Request
from windlass.engine.runtime import Runtime
from windlass.engine.state import EngineState, Lifecycle
from windlass.engine.stream import StreamBack, TokenEvent
from windlass.engine.threads import EndOfThread, EngineThread, join_started
from windlass.engine.tracing import TraceRecorder
from windlass.errors import (
    ContextLengthError,
    EngineError,
    EngineFailedError,
    EngineOverloadedError,
    EngineTerminatedError,
    EngineUnloadedError,
    InvalidRequestError,
    RequestAbortedError,
    RequestError,
    RequestTimeoutError,
)
from windlass.program.executor import StepCancelledError

_REFUSALS = {
    EngineOverloadedError: RefusalCause.OVERLOAD,
    InvalidRequestError: RefusalCause.INVALID,
    ContextLengthError: RefusalCause.CONTEXT_LENGTH,
    EngineUnloadedError: RefusalCause.UNLOADED,
    EngineTerminatedError: RefusalCause.TERMINATION,
    EngineFailedError: RefusalCause.FAILURE,
}
"""What is counted. A forked child counts nothing: it has no part in the engine."""

MAX_RERUNS = 2
"""How often aborts may cut one step short; further aborts are honoured at its end."""


class EngineCore:
    """The state and the two loops of one engine. Knows nothing of the engine object, so that it can be dropped.

    The engine thread (``run_background_loop``) alone touches the runtime once it runs, and closes it when it ends.
    The accounts hold every accepted call until it is finished.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        runtime: Runtime,
        *,
        max_waiting_requests: int = 1024,
        max_waiting_tokens: int | None = None,
        trace: TraceRecorder | None = None,
    ) -> None:
        self.lifecycle = lifecycle
        self._accounts = Accounts(max_waiting_requests=max_waiting_requests, max_waiting_tokens=max_waiting_tokens)
        self._runtime: Runtime | None = runtime
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._stream_back = StreamBack()
        self._recorder = MetricsRecorder(trace=trace)
        self._exiting = False
        self._ended = False
        self._reruns = 0
        # Those whose step was cut short, and has not come to its end since.
        self._cut: set[Request] = set()
        self._turns = 0
        self._unpublished: list[TokenEvent] = []
        self._threads: tuple[threading.Thread, ...] = ()
        self._silent_but_for: tuple[threading.Thread, ...] | None = None
        self._publish_metrics()

    def init_threaded_engine(self) -> tuple[EngineThread, EngineThread]:
        """Start the engine thread and the stream-back thread, daemons both, and return them.

        Raises:
            RuntimeError: a thread could not be started; none is left.
        """
        loop = EngineThread(self.run_background_loop, "windlass-engine")
        stream_back = EngineThread(self.run_background_stream_back_loop, "windlass-stream-back")
        self._threads = (loop, stream_back)
        try:
            stream_back.start()
            loop.start()
            return loop, stream_back
        except BaseException:
            self._exiting = True
            self._inbox.put(_nothing)
            self._stream_back.stop()
            self.join()
            raise

    def join(self) -> None:
        """Wait until both loops have ended, if they were started."""
        join_started(self._threads)

    # Called by any thread.

    def add_request(self, requests: tuple[Request, ...]) -> None:
        """Accept the sequences of one call, which share a request id.

        Raises:
            EngineOverloadedError: too many requests, or tokens, wait already.
            EngineError: the engine does not accept requests now.
            InvalidRequestError: the request id is in use.
        """
        self._refuse()
        self._accounts.open(requests)
        try:
            # An exit that began after the first look has either seen the call in the accounts or is seen here. So has
            # the end of its adapter.
            self._refuse()
            adapter = requests[0].adapter
            if adapter is not None and adapter.retired:
                raise unknown_adapter(adapter.name, (), "lora")
            self._inbox.put(partial(self._admit, requests, self._recorder.now()))
            deadline = requests[0].deadline
            if deadline is not None:
                self._stream_back.expect(requests, deadline)
        except BaseException:
            self._inbox.put(partial(self._remove, requests, AbortCause.CALLER))
            self._accounts.close(requests)
            raise

    def count_refusal(self, error: EngineError | InvalidRequestError) -> None:
        """Count a call that was refused with ``error``. Takes no lock; the engine thread does it."""
        cause = _REFUSALS.get(type(error))
        if cause is not None:
            self._inbox.put(partial(self._recorder.refused, cause))
            if self._ended:
                self._run_commands(block=False)
                self._publish_metrics()

    def abort_request(self, request_id: str, error: RequestError | None = None) -> None:
        """End the requests of ``request_id`` with ``error``; unknown and finished ids are ignored."""
        requests = self._accounts.find(request_id)
        if requests:
            self.drop(requests, error)

    def drop(
        self,
        requests: tuple[Request, ...],
        error: RequestError | None = None,
        cause: AbortCause = AbortCause.CALLER,
    ) -> None:
        """End exactly these ``requests`` of one call with ``error``, unless they are finished."""
        if not self._accounts.is_open(requests) or self.lifecycle.forked:
            return
        for request in requests:
            request.output.fail(error or RequestAbortedError(f"request {request.request_id!r} was aborted"))
        self._inbox.put(partial(self._remove, requests, cause))
        if self._reruns < MAX_RERUNS:
            self._cancel_step()

    def finish_early(self, request_id: str, output: Output) -> None:
        """Stop generating the choice whose ``output`` has ended well by itself (a stop string)."""
        # The id may belong to another call by now.
        requests = self._accounts.find(request_id)
        self._inbox.put(partial(self._remove, tuple(r for r in requests if r.output is output), None))

    def abort_all(self, reason: str, cause: AbortCause) -> None:
        """End every open request with ``RequestAbortedError``."""
        for requests in self._accounts.all():
            self.drop(requests, RequestAbortedError(f"request {requests[0].request_id!r} was aborted: {reason}"), cause)

    def reset(self) -> None:
        """Abort every open request and forget all cached prefixes."""
        self.abort_all("the engine was reset", AbortCause.RESET)
        self._perform(self._clear_cache)

    def unload(self) -> None:
        """Abort every open request and free the model. Returns when its memory is free; no-op without a model."""
        self.abort_all("the model was unloaded", AbortCause.UNLOAD)
        self._perform(self._close_runtime)

    def wait_until_free(self, adapter: Adapter) -> None:
        """Wait until no request uses ``adapter``, which is retired, and its memory is free.

        Raises:
            EngineError: the engine ended first, which frees it too.
        """
        if not self._accounts.wait_until_free(adapter):
            raise self.lifecycle.refusal() or self.lifecycle.terminated()

    def reload(self, runtime: Runtime) -> None:
        """Serve ``runtime`` from now on, after ``unload``; when the engine has ended, the runtime is closed instead."""
        self._perform(partial(self._install, runtime))

    def exit_background_loop(self) -> None:
        """Tell every consumer and both loops to end. Returns at once; takes no lock."""
        self._exiting = True
        self._cancel_step()
        self._end_all(self.lifecycle.terminated)
        self._inbox.put(_nothing)

    def stop_delivery(self) -> None:
        """Tell the stream-back loop to end; for when the engine loop has ended."""
        self._stream_back.stop()

    def stop_silently(self, own_threads: tuple[threading.Thread, ...]) -> None:
        """Tell both loops to end, but no consumer: for the end of the interpreter.

        From here on a daemon thread that calls waits for its end here, instead of hearing of an error that nobody
        will handle; of these, ``own_threads`` of the engine end.
        """
        self._silent_but_for = own_threads
        self._accounts.forget_all()
        self.exit_background_loop()

    def wait_until_idle(self, timeout: float | None) -> bool:
        """Wait until no accepted request is unfinished; return False when ``timeout`` seconds pass first."""
        return self._accounts.wait_until_empty(timeout)

    @property
    def silent(self) -> bool:
        """True once the interpreter has begun to end."""
        return self._silent_but_for is not None

    def metrics(self) -> EngineMetrics:
        """Return what the engine has counted. Takes no lock, waits for nothing."""
        return self._recorder.snapshot(self.lifecycle.current)

    @property
    def num_open(self) -> int:
        """Calls that were accepted and are not finished."""
        return len(self._accounts)

    @property
    def computed(self) -> int:
        """A counter that grows while a step is computed. Takes no lock."""
        runtime = self._runtime
        return 0 if runtime is None else runtime.progress

    @property
    def progress(self) -> int:
        """A counter that changes while the engine thread gets on, in the middle of a step too. Takes no lock."""
        return self._turns + self.computed

    def num_free_pages(self) -> int:
        """Return the pages that no request holds, after checking that every page is accounted for.

        Raises:
            RuntimeError: a page is lost or held twice.
        """
        free: list[int] = []

        def count() -> None:
            if self._runtime is not None:
                self._runtime.scheduler.check()
                free.append(self._runtime.scheduler.pool.num_available)

        self._perform(count)
        return sum(free)

    def _refuse(self) -> None:
        if self._silent_but_for is not None and threading.current_thread().daemon:
            if threading.current_thread() in self._silent_but_for:
                raise EndOfThread
            SimpleQueue[None]().get()
        error = self.lifecycle.refusal()
        if error is not None:
            raise error
        if self._exiting:
            raise self.lifecycle.terminated()

    def _cancel_step(self) -> None:
        runtime = self._runtime
        if runtime is not None:
            runtime.cancel()

    def _perform(self, command: Callable[[], None]) -> None:
        """Have the engine thread run ``command``, and wait until it has; when that thread has ended, run it here.

        Raises:
            Exception: whatever the command raised.
        """
        done: SimpleQueue[None] = SimpleQueue()
        errors: list[Exception] = []

        def run() -> None:
            try:
                command()
            except Exception as error:  # it belongs to the caller, not to the engine thread
                errors.append(error)
            done.put(None)

        self._inbox.put(run)
        if self._ended:
            # The engine thread looks at its inbox once more after it set the flag, so one of the two runs the command.
            self._run_commands(block=False)
        done.get()
        if errors:
            raise errors[0]

    def _end_all(self, error: Callable[[], BaseException]) -> None:
        for requests in self._accounts.all():
            for request in requests:
                request.output.fail(error())
        self._accounts.give_up()

    # The engine thread.

    def run_background_loop(self) -> None:
        """Serve requests until ``exit_background_loop``; then free the model. The engine thread's whole life."""
        cause = AbortCause.TERMINATION
        try:
            while not self._exiting:
                self._turns += 1
                if self._run_commands(block=not self._has_work):
                    self._publish_metrics()
                if self._has_work and not self._exiting:
                    self._step()
        except BaseException as error:  # whatever it was, every waiter must hear of it
            cause = AbortCause.FAILURE
            self._fail(error)
        finally:
            self._recorder.aborted_all(cause)
            self._stream_back.stop()
            try:
                self._close_runtime()
            finally:
                self._ended = True
                if self._run_commands(block=False):
                    self._publish_metrics()

    @property
    def _has_work(self) -> bool:
        return self._runtime is not None and self._runtime.scheduler.has_work

    def _run_commands(self, *, block: bool) -> bool:
        """Do what callers asked for, and return whether there was anything."""
        ran = False
        try:
            self._inbox.get(block=block)()
            ran = True
            while True:
                self._inbox.get_nowait()()
        except Empty:
            return ran

    def _fail(self, error: BaseException) -> None:
        if self.lifecycle.advance(EngineState.FAILED, error):
            self._end_all(self.lifecycle.failure)
        else:
            self._end_all(self.lifecycle.terminated)
        # These may have left the accounts already.
        for event in list(self._unpublished):
            event.request.output.fail(self.lifecycle.failure())
        self._accounts.forget_all()

    def _publish_metrics(self) -> None:
        self._recorder.publish(None if self._runtime is None else self._runtime.scheduler)

    def _admit(self, requests: tuple[Request, ...], at: float) -> None:
        for request in requests:
            if not request.ended and self._runtime is not None:
                self._recorder.accepted(request, at)
                self._runtime.scheduler.add(request)

    def _remove(self, requests: tuple[Request, ...], cause: AbortCause | None) -> None:
        """End ``requests`` for ``cause``; None when their outputs ended well by themselves."""
        for request in requests:
            if cause is None:
                self._recorder.finished(request, FinishReason.STOP)
            else:
                self._recorder.aborted(request, cause)
            if self._runtime is not None:
                self._runtime.scheduler.remove(request)
            self._accounts.ends(request)
            self._cut.discard(request)
            if not self._cut:
                # Nobody is left for whom a step would be run again.
                self._reruns = 0
            # Its output has ended, or whoever removes it would not.
            request.output = SPENT

    def _install(self, runtime: Runtime) -> None:
        if self._ended or self._runtime is not None:
            runtime.close()
        else:
            self._runtime = runtime

    def _clear_cache(self) -> None:
        if self._runtime is not None:
            self._runtime.scheduler.pool.clear()
        self._recorder.reset()
        self._publish_metrics()

    def _close_runtime(self) -> None:
        runtime, self._runtime = self._runtime, None
        self._publish_metrics()
        if runtime is not None:
            runtime.close()

    def _step(self) -> None:
        runtime = self._runtime
        if runtime is None:
            return
        chunks = runtime.schedule(self._recorder)
        for chunk in chunks:
            self._accounts.starts(chunk.request)
        try:
            self._unpublished = runtime.run(chunks, self._recorder)
        except StepCancelledError:
            self._reruns += 1
            self._cut = {chunk.request for chunk in chunks}
            return
        self._reruns = 0
        self._cut.clear()
        while runtime.broken:
            self._end_broken(runtime.broken.pop())
        for event in self._unpublished:
            if event.reason is not None:
                self._accounts.ends(event.request)
        # Before the callers hear of it, so that whoever has an answer finds it counted.
        self._publish_metrics()
        if self._unpublished:
            self._stream_back.publish(self._unpublished)
            self._unpublished = []

    def _end_broken(self, request: Request) -> None:
        """End the call of a request whose adapter cannot go on with it; the engine can."""
        name = "" if request.adapter is None else request.adapter.name
        error = RequestAbortedError(f"the adapter {name!r} made numbers that are not finite")
        request.output.fail(error)
        siblings = self._accounts.find(request.request_id)
        self._remove((request,), AbortCause.FAILURE)
        if request in siblings:
            self.drop(siblings, error, AbortCause.FAILURE)

    # The stream-back thread.

    def run_background_stream_back_loop(self) -> None:
        """Deliver what the engine thread publishes until it ends. The stream-back thread's whole life."""
        try:
            self._stream_back.run(self._time_out, self._give_up)
        except BaseException as error:  # nobody would be answered any more
            self._fail(error)
            self._exiting = True
            self._cancel_step()
            self._inbox.put(_nothing)
            self._stream_back.abandon(self.lifecycle.failure)
        # Once more, for an exit that was interrupted before it had told everybody.
        self._end_all(self.lifecycle.terminated)
        for requests in self._accounts.all():
            for request in requests:
                request.output = SPENT

    def _time_out(self, requests: tuple[Request, ...]) -> None:
        self.drop(requests, RequestTimeoutError("the request did not finish within its timeout"), AbortCause.TIMEOUT)

    def _give_up(self, request: Request, cause: BaseException) -> None:
        """End the call of a request whose output does not work."""
        error = RequestAbortedError(f"its output could not be delivered ({type(cause).__name__})")
        error.__cause__ = cause
        request.output.fail(error)
        requests = self._accounts.find(request.request_id)
        if request in requests:
            self.drop(requests, error, AbortCause.DELIVERY)


def _nothing() -> None:
    """Wake the engine thread."""
