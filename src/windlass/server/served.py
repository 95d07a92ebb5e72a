"""The models a server has: loaded after the port is open, found by name, ended together."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from windlass.config import EngineConfig
from windlass.engine.state import EngineState
from windlass.errors import EngineError
from windlass.serve.engine import AsyncMLCEngine
from windlass.serve.engine_base import DEMO_NAME
from windlass.server.api_errors import ApiError, not_ready, shutting_down
from windlass.weights.gguf import stem_of


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model to serve.

    Attributes:
        name: what requests call it.
        config: with ``model`` set, or None there for the demo model.
        device: as the engine takes it.
        aliases: what requests may call it too.
        enable_tracing: record what each request and step does.
    """

    name: str
    config: EngineConfig
    device: str = "auto"
    aliases: tuple[str, ...] = ()
    enable_tracing: bool = False


def default_name(model: str | None) -> str:
    """Return what a model is called unless somebody says otherwise: that of its repository, directory or file."""
    if model is None:
        return DEMO_NAME
    if model.startswith("HF://"):
        return model.removeprefix("HF://").strip("/")
    return stem_of(PurePath(model).name) or model


class ServedModel:
    """One model on its way from LOADING to TERMINATED. Belongs to the event loop."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._engine: AsyncMLCEngine | None = None
        self._progress = 0
        self._still_for = 0.0

    @property
    def name(self) -> str:
        """What requests call it."""
        return self.spec.name

    @property
    def state(self) -> EngineState:
        """Where it is in its life."""
        return EngineState.LOADING if self._engine is None else self._engine.state

    @property
    def loaded(self) -> AsyncMLCEngine | None:
        """Its engine, in whatever state, once it is loaded."""
        return self._engine

    @property
    def engine(self) -> AsyncMLCEngine:
        """Its engine.

        Raises:
            ApiError: it is not loaded yet.
        """
        if self._engine is None:
            raise not_ready(self.name)
        return self._engine

    @property
    def adapters(self) -> Mapping[str, int]:
        """Its LoRA adapters, and how many bytes each takes; 0 while the model loads, none while there is no model."""
        if self._engine is None:
            return dict.fromkeys(self.spec.config.adapters or (), 0)
        try:
            return {name: info.nbytes for name, info in self._engine.adapters.items()}
        except EngineError:
            return {}

    @property
    def context_length(self) -> int | None:
        """Tokens of the longest sequence, prompt and answer together; None while there is no model."""
        try:
            return None if self._engine is None else self._engine.engine_config.max_single_sequence_length
        except EngineError:
            return None

    @property
    def failure(self) -> BaseException | None:
        """What made its engine fail, whatever its state is by now."""
        return None if self._engine is None else self._engine.health.failure

    @property
    def still_for(self) -> float:
        """Seconds, as far as they were watched, for which its engine has had work and has not got on with it."""
        return self._still_for

    def look(self, interval: float) -> None:
        """See whether the engine gets on; to be called every ``interval`` seconds.

        A look counts for its interval only, so that a process that was stopped for an hour has not stood still.
        """
        health = None if self._engine is None else self._engine.health
        if health is None or not health.is_busy or health.progress != self._progress:
            self._still_for = 0.0
        else:
            self._still_for += interval
        self._progress = 0 if health is None else health.progress

    async def load(self) -> None:
        """Build the engine; cancelling cuts that short.

        Raises:
            LoadError, ValueError: it cannot be loaded.
        """
        spec = self.spec
        self._engine = await AsyncMLCEngine.load(
            None, spec.device, engine_config=spec.config, enable_tracing=spec.enable_tracing
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """What a request names: a model, and perhaps one of its adapters."""

    model: ServedModel
    adapter: str | None = None

    @property
    def name(self) -> str:
        """What responses, lists and logs call it."""
        return self.model.name if self.adapter is None else f"{self.model.name}:{self.adapter}"

    @property
    def engine(self) -> AsyncMLCEngine:
        """The model's engine.

        Raises:
            ApiError: it is not loaded yet.
        """
        return self.model.engine


class ServedModels:
    """All models of a server; the first is the one that requests mean which name none."""

    def __init__(self, specs: Sequence[ModelSpec]) -> None:
        """Raises ValueError when there is none, or two have the same name."""
        if not specs:
            raise ValueError("a server needs a model")
        self._models = {spec.name: ServedModel(spec) for spec in specs}
        if len(self._models) < len(specs):
            raise ValueError(f"two models have the same name; names are {', '.join(spec.name for spec in specs)}")
        self._by_name = {**self._models}
        for model in self._models.values():
            for alias in model.spec.aliases:
                # The first of two copies of a model, where no name tells which is meant.
                self._by_name.setdefault(alias, model)
        self._draining = False
        self._ending: asyncio.Future[list[None]] | None = None

    async def load(self) -> None:
        """Load one after the other.

        Raises:
            LoadError, ValueError: one cannot be loaded.
        """
        for model in self.all:
            await model.load()

    @property
    def all(self) -> tuple[ServedModel, ...]:
        """The models, the default one first."""
        return tuple(self._models.values())

    @property
    def state(self) -> EngineState:
        """That of the model which is furthest from READY: what the server as a whole can do."""
        states = {model.state for model in self.all}
        if self._draining and EngineState.FAILED not in states:
            return EngineState.DRAINING
        return next(state for state in _WORST_FIRST if state in states)

    def find(self, name: object = None) -> ServedModel:
        """Return the model that a request names, with an adapter or without; None means the default.

        Raises:
            ApiError: there is none of that name, or the server is shutting down.
        """
        return self.choose(name).model

    def choose(self, name: object = None, lora: object = None) -> Choice:
        """Return the model that a request names, and its adapter: ``model:adapter``, or the adapter's name alone.

        Args:
            lora: the adapter, if it is named apart from the model. What is none is left for the engine to refuse.

        Raises:
            ApiError: there is none of that name, or the server is shutting down.
        """
        if self._draining:
            raise shutting_down()
        choice = self._named(name)
        if choice.adapter is None and isinstance(lora, str) and lora in choice.model.adapters:
            return Choice(choice.model, lora)
        return choice

    def _named(self, name: object) -> Choice:
        if name is None:
            return Choice(self.all[0])
        known = ", ".join(self._models)
        if isinstance(name, str):
            if name in self._by_name:
                return Choice(self._by_name[name])
            base, _, adapter = name.rpartition(":")
            model = self._by_name.get(base)
            if model is not None:
                if adapter in model.adapters:
                    return Choice(model, adapter)
                known = (
                    ", ".join(f"{model.name}:{other}" for other in model.adapters) or f"{model.name} without adapters"
                )
            for model in self.all:
                if name in model.adapters:
                    return Choice(model, name)
        raise ApiError(
            404,
            f"the model {str(name)[:200]!r} does not exist; served are {known}",
            code="model_not_found",
            param="model",
        )

    @property
    def failure(self) -> BaseException | None:
        """What made an engine fail, if one has."""
        return next((model.failure for model in self.all if model.failure is not None), None)

    def look(self, interval: float) -> None:
        """See whether the engines get on; to be called every ``interval`` seconds."""
        for model in self.all:
            model.look(interval)

    def is_stuck(self, limit: float) -> bool:
        """Whether an engine has had work for ``limit`` seconds and has not got on with it."""
        return any(model.still_for >= limit for model in self.all)

    def refuse(self) -> None:
        """Take no new requests from here on."""
        self._draining = True

    async def drain(self, timeout: float) -> None:
        """Refuse new requests, let open ones finish for ``timeout`` seconds, and end all engines."""
        self.refuse()
        await asyncio.gather(*(engine.aterminate(drain=True, timeout=timeout) for engine in self._engines()))

    async def end(self, limit: float) -> bool:
        """End all engines at once; cuts a drain short. Return False when that takes longer than ``limit`` seconds.

        Idempotent. Whoever waits for an answer is told at once, also by an engine that is stuck.
        """
        self.refuse()
        if self._ending is None:
            self._ending = asyncio.gather(*(engine.aterminate() for engine in self._engines()))
            await asyncio.wait((self._ending,), timeout=limit)
        return self._ending.done() and self._ending.exception() is None

    def _engines(self) -> list[AsyncMLCEngine]:
        return [model.loaded for model in self.all if model.loaded is not None]


_WORST_FIRST = (
    EngineState.FAILED,
    EngineState.TERMINATED,
    EngineState.TERMINATING,
    EngineState.DRAINING,
    EngineState.LOADING,
    EngineState.UNLOADED,
    EngineState.READY,
)
