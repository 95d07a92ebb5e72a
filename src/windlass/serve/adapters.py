"""Loading LoRA adapters beside a model, and which of them a request means."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from windlass.config import check_adapter_name
from windlass.engine.adapters import Adapter, Adapters
from windlass.errors import InvalidRequestError, LoadError
from windlass.json_files import read_json_object
from windlass.late_numpy import np
from windlass.machine import available_bytes
from windlass.program.adapter import LowRank, Update, linear_shapes
from windlass.program.executor import Executor
from windlass.program.program import Program, RowOrder
from windlass.quantization import Format, Tensor
from windlass.serve import alive
from windlass.weights.hub import resolve_model
from windlass.weights.safetensors import read_header
from windlass.weights.source import StoredTensor, WeightSource

if TYPE_CHECKING:
    from windlass.models.lora import LoraConfig
    from windlass.protocol.arguments import CommonArguments

WEIGHTS_NAME = "adapter_model.safetensors"
_PREFIX = "base_model.model."
"""PEFT's name of the model in an adapter."""


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """What is known of an adapter that is loaded.

    Attributes:
        path: where it was loaded from, as it was given.
        nbytes: memory that it takes.
    """

    path: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class _Place:
    """Where some rows of a linear layer are in a weight of the program: ``count`` from ``first_row`` on."""

    weight: str
    first_row: int
    count: int
    order: RowOrder | None


@dataclass(frozen=True, slots=True)
class _Module:
    """A linear layer of the Hugging Face model, [rows, columns], and where the program has it."""

    columns: int
    places: list[_Place] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum(place.count for place in self.places)


class AdapterSource:
    """An adapter on the disk, whose configuration and tensors fit a program. Numbers are read by ``updates`` only."""

    def __init__(self, directory: Path, program: Program) -> None:
        """Check everything but the numbers.

        Raises:
            LoadError: the adapter is broken, asks for more than plain LoRA, or is for another model.
        """
        from windlass.models.lora import CONFIG_NAME, read_lora_config  # most engines never have an adapter

        config_path, file = directory / CONFIG_NAME, directory / WEIGHTS_NAME
        if not config_path.is_file():
            raise LoadError(directory, f"this is not a PEFT adapter: {CONFIG_NAME} is missing")
        self._config = read_lora_config(read_json_object(config_path), config_path)
        if not file.is_file():
            raise LoadError(directory, f"{WEIGHTS_NAME} is missing; accepted is no other format")
        self._file = file
        self._tensors = {tensor.name: tensor for tensor in read_header(file)}
        self._modules = _targets(program, self._config, config_path)
        self._check()

    @property
    def nbytes(self) -> int:
        """Size of its numbers."""
        return sum(tensor.nbytes for tensor in self._tensors.values())

    def updates(self, interrupt: Callable[[], None]) -> Generator[Update, None, None]:
        """Read the adapter weight by weight.

        Args:
            interrupt: called for each; what it raises ends the reading.

        Raises:
            LoadError: a number is not finite, or the file has changed.
        """
        by_weight: dict[str, list[tuple[str, _Place]]] = {}
        for name, module in self._modules.items():
            for place in module.places:
                by_weight.setdefault(place.weight, []).append((name, place))
        with closing(WeightSource(self._file, self._tensors.values())) as source:
            for weight, places in by_weight.items():
                interrupt()
                yield weight, [self._piece(source, name, place) for name, place in places]

    def _piece(self, source: WeightSource, module: str, place: _Place) -> LowRank:
        a, b = (_read(source, name) for name in _tensor_names(module))
        if place.order is not None:
            rows = b.data[place.order.indices(b.shape[0])]
            b = Tensor(b.format, rows.shape, rows)
        return LowRank(place.first_row, a, b, self._config.scale(module))

    def _check(self) -> None:
        wanted = {}
        for name, module in self._modules.items():
            rank = self._config.rank(name)
            for tensor, shape in zip(_tensor_names(name), ((rank, module.columns), (module.rows, rank)), strict=True):
                wanted[tensor] = shape
        unknown = sorted(self._tensors.keys() - wanted.keys())
        if unknown:
            raise LoadError(
                self._file,
                f"tensor {unknown[0]!r} is not the A or B of a linear layer of this model that target_modules name; "
                f"one that is accepted is {next(iter(wanted))!r}",
            )
        for tensor, shape in wanted.items():
            found = self._tensors.get(tensor)
            if found is None:
                raise LoadError(self._file, f"tensor {tensor!r} is missing")
            if found.shape != shape:
                raise LoadError(
                    self._file,
                    f"tensor {tensor!r} has shape {list(found.shape)}; this model and the configuration ask for "
                    f"{list(shape)}",
                )


def _tensor_names(module: str) -> tuple[str, str]:
    return f"{_PREFIX}{module}.lora_A.weight", f"{_PREFIX}{module}.lora_B.weight"


def _targets(program: Program, config: LoraConfig, config_path: Path) -> dict[str, _Module]:
    """Return the linear layers that an adapter is for."""
    shapes = linear_shapes(program)
    found: dict[str, _Module] = {}
    for spec in program.weights:
        if spec.name not in shapes:
            continue
        rows, columns = shapes[spec.name]
        first = 0
        for part in spec.parts:
            count = rows if len(spec.parts) == 1 else part.num_rows
            if count is None:
                break
            name = part.name.removesuffix(".weight")
            if config.is_target(name):
                place = _Place(spec.name, first, count, part.rows)
                found.setdefault(name, _Module(columns)).places.append(place)
            first += count
    if not found:
        raise LoadError(config_path, "target_modules name no linear layer of this model; those of its blocks can be")
    return found


def _read(source: WeightSource, name: str) -> Tensor:
    info: StoredTensor = source.info(name)
    if info.format is None:
        raise LoadError(info.file, f"tensor {name!r} has dtype {info.dtype}, a float type is needed")
    data = source.read(name)
    finite = (data & 0x7F80) != 0x7F80 if info.format is Format.BF16 else np.isfinite(data)
    if not finite.all():
        raise LoadError(info.file, f"tensor {name!r}: a number is not finite")
    return Tensor(info.format, info.shape, data)


def adapter_bytes(paths: Mapping[str, str]) -> int:
    """About how much memory the adapters at ``paths`` will take; 0 for those that are not there."""
    files = [Path(path).expanduser() / WEIGHTS_NAME for path in paths.values()]
    return sum(file.stat().st_size for file in files if file.is_file())


def load_adapter(
    name: str,
    path: str | os.PathLike[str],
    *,
    program: Program,
    executor: Executor,
    adapters: Adapters,
    interrupt: Callable[[], None],
) -> bool:
    """Load a PEFT adapter and let requests choose it as ``name``; return False when the model is gone meanwhile.

    Args:
        path: a directory or ``HF://org/name``.
        interrupt: called every now and then; what it raises ends the load.

    Raises:
        LoadError: the adapter is at fault, or memory does not suffice; nothing of it stays behind.
        ValueError: the name cannot be one, or another adapter has it.
    """
    check_adapter_name(name)
    if name in adapters:
        raise InvalidRequestError(f"there is an adapter {name!r} already; unload it first", param="name")
    directory = resolve_model(path)
    source = AdapterSource(directory, program)
    available = available_bytes()
    if available is not None and source.nbytes > available:
        raise LoadError(
            directory,
            f"the adapter takes {source.nbytes >> 20} MiB, but {available >> 20} MiB of memory are available"
            f"{alive.hint()}",
        )
    updates = source.updates(interrupt)
    try:
        with closing(updates):
            packed = executor.pack_adapter(updates)
    except MemoryError as error:
        raise LoadError(directory, f"there is not enough memory for the adapter{alive.hint()}") from error
    except ValueError as error:
        raise LoadError(directory, str(error)) from None
    try:
        interrupt()
    except BaseException:
        packed.close()
        raise
    return adapters.add(Adapter(name, os.fspath(path), packed))


def chosen_adapter(arguments: CommonArguments, adapters: Adapters, model: str) -> tuple[Adapter | None, str]:
    """Return the adapter that a call means, and what its responses call the model.

    A call names an adapter in ``lora``, or behind a colon in ``model``. There, a name that is not an adapter's counts
    only behind the model's own: an engine ignores what else ``model`` says.

    Args:
        model: the model's own name.

    Raises:
        InvalidRequestError: there is no such adapter, or the two name different ones.
    """
    lora, given = arguments.get("lora"), arguments.get("model")
    base, colon, behind = (given or "").rpartition(":")
    named = behind if colon and (behind in adapters or base == model) else None
    if lora is not None and named is not None and lora != named:
        raise InvalidRequestError(f"model names the adapter {named!r}, lora names {lora!r}", param="lora")
    if lora is None and named is None:
        return None, given or model
    adapter = adapters.find(lora or named or "", param="model" if lora is None else "lora")
    return adapter, given if named is not None and given else f"{given or model}:{adapter.name}"
