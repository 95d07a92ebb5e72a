"""What the sync and the async engine share: construction, state and the documented ``terminate()``."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

from windlass.config import EngineConfig
from windlass.demo import model_directory
from windlass.engine.exit import forget, stop_at_exit
from windlass.engine.loop import EngineCore
from windlass.engine.metrics import EngineMetrics
from windlass.engine.state import EngineHealth, EngineState, Lifecycle
from windlass.engine.threads import EngineThread, join
from windlass.engine.tracing import TraceRecorder
from windlass.errors import EngineError, InvalidRequestError, RequestAbortedError
from windlass.serve import alive
from windlass.serve.adapters import AdapterInfo
from windlass.serve.build import LoadedModel, load_model
from windlass.serve.memory import release_frames, return_free_memory
from windlass.serve.preparer import Preparer
from windlass.serve.progress import Interruptible, TerminalProgress
from windlass.text.text_model import TextModel
from windlass.weights.hub import resolve_model

DEMO_NAME = "windlass-demo"
"""What responses call the bundled model."""


class MLCEngineBase:
    """An engine: a loaded model, and a thread each that prepares calls, serves them, and delivers.

    ``terminate()`` is the documented way to end it; ``with`` does it at the end of a block. The threads know the core
    only, never this object, so that dropping the last reference ends them too (with a ``ResourceWarning``).
    """

    _terminated = False

    def __init__(
        self,
        model: str | None = None,
        device: str = "auto",
        *,
        model_lib: str | None = None,
        mode: str | None = None,
        engine_config: EngineConfig | None = None,
        enable_tracing: bool = False,
        quantization: str | None = None,
        exit_drain_timeout: float = 5.0,
    ) -> None:
        """Load a model and start serving it.

        Args:
            model: a model directory (Hugging Face or MLC layout) or ``HF://org/name``; None is the bundled demo model.
            device: ``auto`` or ``cpu``.
            model_lib: accepted for compatibility with MLC-LLM and ignored.
            mode: ``local`` (the default), ``interactive`` or ``server``; see ``EngineConfig``.
            engine_config: everything else that can be set.
            enable_tracing: record what each request and step does; see ``trace_recorder``.
            quantization: scheme to quantize a Hugging Face model to while loading, such as ``q4f16_1``.
            exit_drain_timeout: seconds that open requests get to finish when a ``with`` block ends well.

        Raises:
            LoadError: the model cannot be loaded; nothing of it stays behind.
            ValueError: an argument is out of range or conflicts with ``engine_config``.
            EngineTerminatedError: another thread called ``terminate()`` meanwhile.
        """
        self._closed = False
        self._in_terminate = False
        self._terminate_lock = threading.RLock()
        self._load_lock = threading.RLock()
        self._lifecycle = Lifecycle()  # after the locks: terminate() takes an engine without it for one not begun
        self._exit_drain_timeout = exit_drain_timeout
        self._trace = TraceRecorder() if enable_tracing else None
        check_device(device)
        self._settings = (engine_config or EngineConfig()).with_arguments(
            model=model, model_lib=model_lib, mode=mode, quantization=quantization
        )
        self._loader: int | None = None
        self._loops_told = False
        with self._load_lock:
            try:
                self._start(_load(self._settings, self._refuse_load))
            except BaseException as error:
                release_frames(error)
                return_free_memory()
                raise
        if self._terminated:
            self.terminate()
            raise self._lifecycle.terminated()

    def _start(self, loaded: LoadedModel) -> None:
        """Start the engine's threads, the last thing that construction does; when that fails, all is undone."""
        self._core: EngineCore | None = None
        self._preparer: Preparer | None = None
        try:
            self._start_threads(loaded)
        except BaseException:
            self.__dict__.pop("_ffi", None)
            if self._core is not None:
                self._core.exit_background_loop()
                self._core.join()
            if self._preparer is not None:
                self._preparer.stop()
            self._join_loops()
            loaded.close()
            self._release()
            raise

    def _start_threads(self, loaded: LoadedModel) -> None:
        self._model: LoadedModel | None = loaded
        core = EngineCore(
            self._lifecycle,
            loaded.runtime(),
            max_waiting_requests=loaded.config.max_waiting_requests,
            max_waiting_tokens=loaded.config.max_waiting_tokens,
            trace=self._trace,
        )
        self._core = core
        self._preparer = Preparer()
        self._background_loop_thread, self._background_stream_back_loop_thread = core.init_threaded_engine()
        stop_at_exit(core, self._own_threads(), self._preparer.stop)
        alive.add(self)
        self._ffi: dict[str, Callable[..., Any]] = {
            "init_threaded_engine": core.init_threaded_engine,
            "run_background_loop": core.run_background_loop,
            "run_background_stream_back_loop": core.run_background_stream_back_loop,
            "reload": core.reload,
            "unload": core.unload,
            "reset": core.reset,
            "add_request": core.add_request,
            "abort_request": core.abort_request,
            "exit_background_loop": core.exit_background_loop,
            "get_complete_engine_config": partial(getattr, loaded, "config"),
        }
        self._lifecycle.advance(EngineState.READY)

    def _own_threads(self) -> tuple[EngineThread, ...]:
        """Return the threads that were started; they end with the engine."""
        parts = self.__dict__
        loops = [parts.get("_background_loop_thread"), parts.get("_background_stream_back_loop_thread")]
        preparer = self._preparer.thread if self._preparer is not None else None
        return tuple(thread for thread in (*loops, preparer) if thread is not None)

    @property
    def state(self) -> EngineState:
        """Where the engine is in its life."""
        return self._lifecycle.current

    @property
    def health(self) -> EngineHealth:
        """What can be told of the engine from outside. Works in every state, waits for nothing."""
        core = self._core
        return EngineHealth(
            self.state,
            self._lifecycle.cause,
            is_busy=core is not None and core.num_open > 0,
            progress=0 if core is None else core.progress,
        )

    @property
    def trace_recorder(self) -> TraceRecorder | None:
        """With ``enable_tracing`` what was recorded, as Chrome trace events: ``dump(path)`` writes a file for Perfetto.

        Works in every state, also after ``terminate()``.
        """
        return self._trace

    @property
    def engine_config(self) -> EngineConfig:
        """The settings in force, with everything chosen that was left open."""
        return self._loaded().config

    @property
    def tokenizer(self) -> TextModel:
        """The text side of the model.

        Raises:
            EngineTerminatedError: the engine was terminated.
        """
        return self._loaded().text

    @property
    def adapters(self) -> dict[str, AdapterInfo]:
        """The LoRA adapters that requests may choose, by name.

        Raises:
            EngineError: no model is loaded.
        """
        loaded = self._loaded().adapters.all
        return {adapter.name: AdapterInfo(adapter.path, adapter.packed.nbytes) for adapter in loaded}

    def __repr__(self) -> str:
        lifecycle = self.__dict__.get("_lifecycle")
        state = lifecycle.current.value if lifecycle is not None else "not constructed"
        model = self.__dict__.get("_model")
        return f"<{type(self).__name__} {model.name if model is not None else '-'}: {state}>"

    def _loaded(self) -> LoadedModel:
        model = self._model
        if model is None:
            raise self._lifecycle.refusal() or self._lifecycle.terminated()
        return model

    def _parts(self) -> tuple[EngineCore, LoadedModel]:
        """Return what serves requests, or raise why there is nothing."""
        refusal = self._lifecycle.refusal()
        if refusal is not None:
            raise refusal
        core, model = self._core, self._model
        if core is None or model is None:
            raise self._lifecycle.terminated()
        return core, model

    def _count_refusal(self, error: EngineError | InvalidRequestError) -> None:
        """Count a call that was refused with ``error``."""
        core = self._core
        if core is not None:
            core.count_refusal(error)

    def _preparing(self) -> Preparer:
        """Return who prepares calls, or raise why none is accepted."""
        refusal = self._lifecycle.refusal()
        if refusal is not None:
            # Whoever tries again without a pause lets the engine's threads go on that load a model, or end, meanwhile:
            # Python alone would have them wait for 5 ms, times the number of such callers, at every lock they take.
            time.sleep(0)
            self._count_refusal(refusal)
            raise refusal
        if self._preparer is None:
            raise self._lifecycle.terminated()
        return self._preparer

    def _metrics(self) -> EngineMetrics:
        core = self._core
        if core is None:
            raise self._lifecycle.terminated()
        return core.metrics()

    def terminate(self, *, drain: bool = False, timeout: float | None = None) -> None:
        """End the engine and give back everything it holds: threads, weights, KV cache, tokenizer.

        Idempotent and safe from any thread, also on an engine whose constructor raised. Open requests raise
        ``EngineTerminatedError``; with ``drain=True`` new requests are refused first while accepted ones finish, for
        at most ``timeout`` seconds. When another thread is terminating, this waits for it; from an engine thread, or
        from within a terminate of the same thread, it returns at once. A constructor that is at work in another thread
        is cut short, and waited for.
        """
        lifecycle: Lifecycle | None = self.__dict__.get("_lifecycle")
        if lifecycle is None or self._closed or lifecycle.forked:
            self._terminated = True
            return
        built = "_ffi" in self.__dict__
        # Whoever is called by an engine thread, or in the middle of a load, cannot wait for it.
        within = built and (threading.current_thread() in self._own_threads() or self._loader == threading.get_ident())
        if drain and not within and not self._terminated:
            self._drain(timeout)
        self._terminated = True
        if "_ffi" not in self.__dict__:
            # A constructor in another thread sees the flag, and undoes what it has built, unless it has just finished.
            with self._load_lock:
                if "_ffi" not in self.__dict__:
                    return
        if within:
            self._stop_loops()
            return
        with self._terminate_lock:
            if self._closed or self._in_terminate:
                return
            try:
                self._in_terminate = True
                self._stop_loops()
                self._join_loops()
                # A reload that is under way notices, and frees what it has.
                with self._load_lock:
                    self._release()
                self._closed = True
            finally:
                # An interrupted terminate leaves _closed unset: the next call goes on where this one stopped.
                self._in_terminate = False

    def _drain(self, timeout: float | None) -> None:
        core = self.__dict__.get("_core")
        if core is None:
            return
        self._lifecycle.advance(EngineState.DRAINING)
        if self._lifecycle.current is EngineState.DRAINING:
            core.wait_until_idle(timeout)

    def _stop_loops(self) -> None:
        """Tell the consumers and all loops, once per termination unless that was interrupted."""
        self._lifecycle.advance(EngineState.TERMINATING)
        if not self._loops_told:
            self._tell_loops()
            self._loops_told = True

    def _tell_loops(self) -> None:
        """Tell the consumers and all loops. Takes no lock."""
        self._ffi["exit_background_loop"]()
        if self._preparer is not None:
            self._preparer.stop()
            self._preparer.fail_all(self._lifecycle.terminated)

    @contextmanager
    def _loading(self) -> Iterator[None]:
        """Exchange the model in this thread; a terminate from within is completed afterwards."""
        try:
            with self._load_lock:
                outer, self._loader = self._loader, threading.get_ident()
                try:
                    yield
                finally:
                    self._loader = outer
        finally:
            if self._terminated and not self._lifecycle.forked:
                self.terminate()

    def _unload(self) -> None:
        """Free the model but keep the engine; see ``MLCEngine.unload``."""
        self._check_process()
        with self._loading():
            if self._lifecycle.advance(EngineState.UNLOADED):
                self._free_model()
            elif self._lifecycle.current is not EngineState.UNLOADED:
                raise self._lifecycle.refusal() or self._lifecycle.terminated()

    def _reload(self, model: str | None) -> None:
        """Load a model, in place of the one that is loaded; see ``MLCEngine.reload``."""
        self._check_process()
        with self._loading():
            if not self._lifecycle.advance(EngineState.LOADING):
                raise self._lifecycle.refusal() or self._lifecycle.terminated()
            ffi = self._ffi
            try:
                self._free_model()
                settings = self._settings if model is None else dataclasses.replace(self._settings, model=model)
                loaded = _load(settings, self._refuse_load)
                # Closes the executor when the engine has ended meanwhile.
                ffi["reload"](loaded.runtime())
            except BaseException:
                self._lifecycle.advance(EngineState.UNLOADED)
                raise
            self._settings, self._model = settings, loaded
            ffi["get_complete_engine_config"] = partial(getattr, loaded, "config")
            if not self._lifecycle.advance(EngineState.READY):
                self._model = None
                raise self._lifecycle.terminated()

    def _load_adapter(self, name: str, path: str | os.PathLike[str], given_up: Collection[bool] = ()) -> None:
        """Load an adapter; see ``MLCEngine.load_adapter``. It is cut short when there is something in ``given_up``."""
        self._check_process()
        with self._loading():
            _, model = self._parts()
            try:
                if not model.load_adapter(name, os.fspath(path), partial(self._refuse_adapter, given_up)):
                    raise self._lifecycle.refusal() or self._lifecycle.terminated()
            except BaseException as error:
                release_frames(error)
                raise

    def _unload_adapter(self, name: str) -> None:
        """Unload an adapter; see ``MLCEngine.unload_adapter``."""
        self._check_process()
        core, model = self._parts()
        core.wait_until_free(model.adapters.retire(name))
        return_free_memory()

    def _refuse_adapter(self, given_up: Collection[bool]) -> None:
        """Cut the load of an adapter short when nobody waits for it, or the engine accepts no requests any more."""
        if given_up:
            raise RequestAbortedError("nobody waits for the adapter any more")
        refusal = self._lifecycle.refusal()
        if refusal is not None or self._terminated:
            raise refusal or self._lifecycle.terminated()

    def _free_model(self) -> None:
        self._ffi["unload"]()
        self._model = None
        return_free_memory()

    def _check_process(self) -> None:
        if self._lifecycle.forked:
            raise self._lifecycle.foreign()

    def _refuse_load(self) -> None:
        """Cut a load short when the engine is being terminated."""
        if self._terminated:
            self._lifecycle.advance(EngineState.TERMINATING)
            raise self._lifecycle.terminated()

    def _join_loops(self) -> None:
        for thread in self._own_threads():
            join(thread)
            if self._core is not None and thread is getattr(self, "_background_loop_thread", None):
                # However the engine thread came to its end.
                self._core.stop_delivery()

    def _release(self) -> None:
        """Drop what the loops left: the text side, and the last references to weights and KV cache."""
        if self._core is not None:
            forget(self._core)
        self._core = None
        self._model = None
        if "_ffi" in self.__dict__:
            self._ffi = {"exit_background_loop": _nothing}
        alive.discard(self)
        return_free_memory()
        self._lifecycle.advance(EngineState.TERMINATING)
        self._lifecycle.advance(EngineState.TERMINATED)

    def __del__(self) -> None:
        # Runs wherever the garbage collector happens to be, so: no lock, no join. The engine thread frees the model.
        if "_ffi" not in self.__dict__ or self._terminated or self._lifecycle.forked:
            return
        self._terminated = True
        self._tell_loops()
        if self._core is not None and self._core.silent:
            return
        warnings.warn(f"{self!r} was dropped without terminate()", ResourceWarning, source=self, stacklevel=2)

    def _exit(self, kind: type[BaseException] | None) -> None:
        """End a ``with`` block: drain when it ended well, else terminate at once."""
        try:
            self.terminate(drain=kind is None, timeout=self._exit_drain_timeout)
        except BaseException:
            # Whoever interrupts the drain wants the end, and nobody else will see to it.
            self.terminate()
            raise


def _load(settings: EngineConfig, interrupt: Callable[[], None]) -> LoadedModel:
    """Load the model that ``settings`` name, or the demo model."""
    if settings.model is None:
        return load_model(DEMO_NAME, model_directory(), settings, interrupt=interrupt)
    with closing(TerminalProgress(enabled=settings.verbose)) as progress:
        path = resolve_model(settings.model, report=Interruptible(progress, interrupt))
    return load_model(settings.model, path, settings, interrupt=interrupt)


def check_device(device: str) -> None:
    """Raise ValueError unless ``device`` is one this version runs on."""
    if device not in ("auto", "cpu", "cpu:0"):
        raise ValueError(f"device {device!r} is not supported; Windlass runs on 'cpu' (or 'auto') in this version")


def _nothing() -> None:
    """What a terminated engine does to stop its loops."""
