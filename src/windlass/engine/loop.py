"""The engine core: one thread owns all inference state, another delivers what it publishes.

Callers talk to the core through queues only. ``SimpleQueue.put`` and the reads and writes of single attributes used
here are atomic and take no lock of ours, so ``exit_background_loop`` and ``abort_request`` may run anywhere: in a
signal handler, or in a finalizer that the garbage collector starts in the middle of any other code.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue

import numpy as np
from numpy.typing import NDArray

from windlass.engine.batch import make_batch
from windlass.engine.metrics import EngineMetrics
from windlass.engine.pages import PagePool
from windlass.engine.recorder import AbortCause, MetricsRecorder
from windlass.engine.request import SPENT, FinishReason, Output, Request, TokenLogprobs
from windlass.engine.sampler import Sampler
from windlass.engine.scheduler import Chunk, Scheduler
from windlass.engine.state import EngineState, Lifecycle
from windlass.engine.stream import StreamBack, TokenEvent
from windlass.engine.threads import EndOfThread, EngineThread, join_started
from windlass.engine.tracing import TraceRecorder
from windlass.errors import (
    EngineOverloadedError,
    InvalidRequestError,
    RequestAbortedError,
    RequestError,
    RequestTimeoutError,
)
from windlass.native.sampling import SampledToken
from windlass.program.executor import Executor, StepCancelledError

STEP_SECONDS = 0.1
"""How long a step may take while something decodes; a prefill chunk is cut to fit."""

FIRST_CHUNK = 32
"""Prefill tokens beside decoding while the speed of this model on this machine is not known yet."""

PACE_TOKENS = 16
"""A step of fewer tokens says nothing about the speed of prefill."""

RETRY_SECONDS = 1.0
"""What an overloaded engine asks callers to wait before they try again."""

MAX_RERUNS = 2
"""How often aborts may cut one step short; further aborts are honoured at its end."""


@dataclass(frozen=True, slots=True, eq=False)
class Runtime:
    """What a loaded model brings to the core. The engine thread alone uses it, and closes the executor."""

    executor: Executor
    scheduler: Scheduler
    sampler: Sampler

    @classmethod
    def build(
        cls,
        executor: Executor,
        *,
        num_pages: int,
        max_num_sequence: int,
        max_tokens: int,
        active_vocab_size: int,
        prefix_cache: bool = True,
        kernels: str | None = None,
    ) -> Runtime:
        """Put a scheduler over ``num_pages`` pages and a sampler that uses ``kernels`` beside an executor."""
        pool = PagePool(num_pages, prefix_cache=prefix_cache)
        scheduler = Scheduler(pool, max_num_sequence=max_num_sequence, max_tokens=max_tokens)
        return cls(executor, scheduler, Sampler(active_vocab_size, kernels))


class EngineCore:
    """The state and the two loops of one engine. Knows nothing of the engine object, so that it can be dropped.

    The engine thread (``run_background_loop``) alone touches the runtime once it runs, and closes it when it ends.
    ``_open`` holds every accepted request until it is finished, by request id.
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
        self._max_waiting_requests = max_waiting_requests
        self._max_waiting_tokens = max_waiting_tokens
        # Reentrant: the garbage collector may run a finalizer that calls, wherever it happens to be.
        self._admission_lock = threading.RLock()
        self._waiting: dict[Request, None] = {}
        self._runtime: Runtime | None = runtime
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._stream_back = StreamBack()
        self._recorder = MetricsRecorder(trace=trace)
        self._open: dict[str, tuple[Request, ...]] = {}
        self._exiting = False
        self._ended = False
        self._reruns = 0
        self._seconds_per_token = 0.0
        # Queues and not events: an event takes a lock, which whoever is interrupted by the waking may hold.
        self._idle_waiters: list[SimpleQueue[None]] = []
        self._unpublished: list[TokenEvent] = []
        self._threads: tuple[threading.Thread, ...] = ()
        self._silent_but_for: tuple[threading.Thread, ...] | None = None

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
        request_id = requests[0].request_id
        with self._admission_lock:
            self._refuse_overload(requests)
            if self._open.setdefault(request_id, requests) is not requests:
                raise InvalidRequestError(f"the request id {request_id!r} is in use", param="request_id")
            self._waiting.update(dict.fromkeys(requests))
        try:
            # An exit that began after the first look has either seen the entry in _open or is seen here.
            self._refuse()
            self._inbox.put(partial(self._admit, requests, self._recorder.now()))
            deadline = requests[0].deadline
            if deadline is not None:
                self._stream_back.expect(requests, deadline)
        except BaseException:
            self._inbox.put(partial(self._remove, requests, AbortCause.CALLER))
            self._forget(requests)
            raise

    def abort_request(self, request_id: str, error: RequestError | None = None) -> None:
        """End the requests of ``request_id`` with ``error``; unknown and finished ids are ignored."""
        requests = self._open.get(request_id)
        if requests is not None:
            self.drop(requests, error)

    def drop(
        self,
        requests: tuple[Request, ...],
        error: RequestError | None = None,
        cause: AbortCause = AbortCause.CALLER,
    ) -> None:
        """End exactly these ``requests`` of one call with ``error``, unless they are finished."""
        request_id = requests[0].request_id
        if self._open.get(request_id) is not requests or self.lifecycle.forked:
            return
        for request in requests:
            request.output.fail(error or RequestAbortedError(f"request {request_id!r} was aborted"))
        self._inbox.put(partial(self._remove, requests, cause))
        if self._reruns < MAX_RERUNS:
            self._cancel_step()

    def finish_early(self, request_id: str, output: Output) -> None:
        """Stop generating the choice whose ``output`` has ended well by itself (a stop string)."""
        # The id may belong to another call by now.
        requests = self._open.get(request_id, ())
        self._inbox.put(partial(self._remove, tuple(r for r in requests if r.output is output), None))

    def abort_all(self, reason: str, cause: AbortCause) -> None:
        """End every open request with ``RequestAbortedError``."""
        for requests in list(self._open.values()):
            self.drop(requests, RequestAbortedError(f"request {requests[0].request_id!r} was aborted: {reason}"), cause)

    def reset(self) -> None:
        """Abort every open request and forget all cached prefixes."""
        self.abort_all("the engine was reset", AbortCause.RESET)
        self._perform(self._clear_cache)

    def unload(self) -> None:
        """Abort every open request and free the model. Returns when its memory is free; no-op without a model."""
        self.abort_all("the model was unloaded", AbortCause.UNLOAD)
        self._perform(self._close_runtime)

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
        self._open.clear()
        self.exit_background_loop()

    def wait_until_idle(self, timeout: float | None) -> bool:
        """Wait until no accepted request is unfinished; return False when ``timeout`` seconds pass first."""
        waiter: SimpleQueue[None] = SimpleQueue()
        self._idle_waiters.append(waiter)
        try:
            if self._open and not self._exiting:
                waiter.get(timeout=timeout)
            return True
        except Empty:
            return False
        finally:
            self._idle_waiters.remove(waiter)

    def wake_idle_waiters(self) -> None:
        """Let every ``wait_until_idle`` return."""
        for waiter in list(self._idle_waiters):
            waiter.put(None)

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
        return len(self._open)

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

    def _refuse_overload(self, requests: tuple[Request, ...]) -> None:
        waiting = len(self._waiting)
        if waiting + len(requests) > self._max_waiting_requests:
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

    def _forget(self, requests: tuple[Request, ...]) -> None:
        """Drop a call that is over from the accounts."""
        for request in requests:
            self._waiting.pop(request, None)
        if self._open.get(requests[0].request_id) is requests:
            del self._open[requests[0].request_id]
            if not self._open:
                self.wake_idle_waiters()

    def _cancel_step(self) -> None:
        runtime = self._runtime
        if runtime is not None:
            runtime.executor.cancel()

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
        for requests in list(self._open.values()):
            for request in requests:
                request.output.fail(error())
        self.wake_idle_waiters()

    # The engine thread.

    def run_background_loop(self) -> None:
        """Serve requests until ``exit_background_loop``; then free the model. The engine thread's whole life."""
        cause = AbortCause.TERMINATION
        try:
            while not self._exiting:
                self._run_commands(block=not self._has_work)
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
                self._run_commands(block=False)

    @property
    def _has_work(self) -> bool:
        return self._runtime is not None and self._runtime.scheduler.has_work

    def _run_commands(self, *, block: bool) -> None:
        try:
            self._inbox.get(block=block)()
            while True:
                self._inbox.get_nowait()()
        except Empty:
            pass

    def _fail(self, error: BaseException) -> None:
        if self.lifecycle.advance(EngineState.FAILED, error):
            self._end_all(self.lifecycle.failure)
        else:
            self._end_all(self.lifecycle.terminated)
        # These may have left _open already.
        for event in list(self._unpublished):
            event.request.output.fail(self.lifecycle.failure())
        self._open.clear()

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
            self._end(request)
            # Its output has ended, or whoever removes it would not.
            request.output = SPENT

    def _install(self, runtime: Runtime) -> None:
        if self._ended or self._runtime is not None:
            runtime.executor.close()
        else:
            self._runtime = runtime
            self._seconds_per_token = 0.0

    def _clear_cache(self) -> None:
        if self._runtime is not None:
            self._runtime.scheduler.pool.clear()
        self._recorder.reset()
        self._publish_metrics()

    def _close_runtime(self) -> None:
        runtime, self._runtime = self._runtime, None
        self._publish_metrics()
        if runtime is not None:
            runtime.executor.close()

    def _end(self, request: Request) -> None:
        """Mark ``request`` as ended; its call is finished when its siblings have ended too."""
        request.ended = True
        self._waiting.pop(request, None)
        siblings = self._open.get(request.request_id)
        if siblings is not None and request in siblings and all(sibling.ended for sibling in siblings):
            self._forget(siblings)

    def _step(self) -> None:
        runtime = self._runtime
        if runtime is None:
            return
        chunks = runtime.scheduler.schedule(self._prefill_budget(runtime.scheduler))
        for chunk in chunks:
            self._waiting.pop(chunk.request, None)
        while runtime.scheduler.preempted:
            self._recorder.preempted(runtime.scheduler.preempted.pop())
        started = self._recorder.now()
        try:
            logits = runtime.executor.run(make_batch(chunks))
        except StepCancelledError:
            self._reruns += 1
            self._recorder.step_cancelled(started, self._recorder.now())
            return
        self._reruns = 0
        ended = self._recorder.now()
        self._recorder.step(chunks, started, ended)
        self._pace(sum(chunk.num_tokens for chunk in chunks), ended - started)
        self._publish(runtime, chunks, logits)

    def _prefill_budget(self, scheduler: Scheduler) -> int:
        """Tokens of prefill that fit a step beside decoding, by the speed of the last large step."""
        if not scheduler.decoding:
            return scheduler.max_tokens
        if not self._seconds_per_token:
            return min(scheduler.max_tokens, FIRST_CHUNK)
        # Never less than what measures the speed again: a step that was slow by chance must not slow all others.
        return min(scheduler.max_tokens, max(PACE_TOKENS, int(STEP_SECONDS / self._seconds_per_token)))

    def _pace(self, num_tokens: int, seconds: float) -> None:
        if num_tokens >= PACE_TOKENS:
            self._seconds_per_token = seconds / num_tokens

    def _publish(self, runtime: Runtime, chunks: Sequence[Chunk], logits: NDArray[np.float32]) -> None:
        """Account for a step that ran: draw the next tokens, end what is finished, hand all of it over."""
        completed = [chunk.request for chunk in chunks if chunk.completes]
        for chunk in chunks:
            runtime.scheduler.advance(chunk)
        tokens = runtime.sampler.sample(logits, completed)
        for request, token in zip(completed, tokens, strict=True):
            self._advance(runtime.scheduler, request, token)
        # Before the callers hear of it, so that whoever has an answer finds it counted.
        self._recorder.publish(runtime.scheduler)
        if self._unpublished:
            self._stream_back.publish(self._unpublished)
            self._unpublished = []

    def _advance(self, scheduler: Scheduler, request: Request, token: SampledToken) -> None:
        token_id = token.token_id
        logprobs = None if token.logprob is None else TokenLogprobs(token.logprob, token.top)
        request.token_ids.append(token_id)
        stopped = token_id in request.stop_token_ids
        self._recorder.token(request, stop=stopped)
        reason = FinishReason.STOP if stopped else None
        if reason is None and request.num_generated >= request.max_tokens:
            reason = FinishReason.LENGTH
        self._unpublished.append(TokenEvent(request, None if stopped else token_id, logprobs, reason))
        if reason is not None:
            self._recorder.finished(request, reason)
            scheduler.remove(request)
            self._end(request)

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
        for requests in list(self._open.values()):
            for request in requests:
                request.output = SPENT

    def _time_out(self, requests: tuple[Request, ...]) -> None:
        self.drop(requests, RequestTimeoutError("the request did not finish within its timeout"), AbortCause.TIMEOUT)

    def _give_up(self, request: Request, cause: BaseException) -> None:
        """End the call of a request whose output does not work."""
        error = RequestAbortedError(f"its output could not be delivered ({type(cause).__name__})")
        error.__cause__ = cause
        request.output.fail(error)
        requests = self._open.get(request.request_id)
        if requests is not None and request in requests:
            self.drop(requests, error, AbortCause.DELIVERY)


def _nothing() -> None:
    """Wake the engine thread."""
