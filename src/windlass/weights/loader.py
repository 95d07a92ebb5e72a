"""From a source's tensors to the weights that a program names, in the format wanted."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from windlass.errors import LoadError
from windlass.late_numpy import np
from windlass.quantization import Format, Scheme, Tensor, as_int8, cast, mlc_shapes, mlc_unpack, quantize, take_rows
from windlass.weights.source import StoredTensor, WeightSource

if TYPE_CHECKING:
    from numpy.typing import NDArray

Progress: TypeAlias = Callable[[int, int], None]
"""Called with (bytes read so far, bytes in all), counted in the files."""


Quantizer: TypeAlias = Callable[[Tensor, Scheme], Tensor]
"""Does what ``windlass.quantization.quantize`` does."""


class RowOrder(Protocol):
    """Which rows are taken, in which order; see ``windlass.program.RowOrder``."""

    @property
    def groups(self) -> int:
        """Equal runs that the rows are."""
        ...

    def indices(self, rows: int) -> NDArray[np.int64]:
        """Return the numbers of the rows taken, of ``rows``. ValueError when they cannot be taken."""
        ...


class Part(Protocol):
    """A stored tensor and what happens to it; see ``windlass.program.Part``."""

    @property
    def name(self) -> str:
        """The tensor's Hugging Face name."""
        ...

    @property
    def rows(self) -> RowOrder | None:
        """The rows that are taken; None for all."""
        ...

    @property
    def transposed(self) -> bool:
        """Its last two axes are swapped first."""
        ...

    @property
    def plus(self) -> float:
        """What is added to every number."""
        ...

    @property
    def matrices(self) -> RowOrder | None:
        """The rows that become matrices of their own before that."""
        ...


class WeightSpec(Protocol):
    """What a program says about a weight it needs; see ``windlass.program.WeightSpec`` for the meaning."""

    @property
    def name(self) -> str:
        """The program's name, and the name in MLC directories, with the suffix ``.weight`` where it has one."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """[K] or [N, K]."""
        ...

    @property
    def parts(self) -> Sequence[Part]:
        """The Hugging Face tensors whose rows make it up."""
        ...

    @property
    def role(self) -> str:
        """One of linear, experts, embedding, head, router, plain."""
        ...

    @property
    def experts(self) -> int:
        """How many equal matrices are stacked; with more than one, files may have an axis more."""
        ...

    @property
    def mlc_as_stored(self) -> bool:
        """An MLC directory has the rows as the tensor that the parts are taken from."""
        ...


def load_weights(
    specs: Sequence[WeightSpec],
    source: WeightSource,
    scheme: Scheme | None = None,
    *,
    ignored: Sequence[str] = (),
    quantizer: Quantizer = quantize,
    anew: bool = False,
    progress: Progress | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Check the source against the specs, at once, and return an iterator that loads weight by weight, in their order.

    Args:
        specs: every weight of the program.
        source: open, and kept open until the iterator is exhausted.
        scheme: what to quantize Hugging Face weights to; None keeps the dtype they are stored in. An MLC directory
            has its scheme, and only that one may be given.
        ignored: see ``check_weights``.
        quantizer: what quantizes.
        anew: give the scheme to weights that are quantized otherwise in the file too, which loses; else they are
            refused.
        progress: told after every weight.

    Returns:
        Pairs of the spec's name and its tensor. A tensor may be a view of the source's files and keep them mapped;
        only weights that need no conversion are.

    Raises:
        LoadError: as ``check_weights``, at once; while iterating, when a weight is not finite or does not fit the
            scheme's dtype, or its file has changed.
    """
    stored = source.scheme
    if stored is not None and scheme is not None and scheme != stored:
        raise LoadError(
            source.path,
            f"these weights are stored as {stored.name} and cannot become {scheme.name}; quantize the original model",
        )
    check_weights(specs, source, ignored=ignored)
    return _load(specs, source, scheme, quantizer, progress, anew=anew)


def check_weights(specs: Sequence[WeightSpec], source: WeightSource, *, ignored: Sequence[str] = ()) -> None:
    """Check, without reading tensors, that the source has exactly the weights of the specs, with fitting shapes.

    Tensors whose whole name one of the regular expressions ``ignored`` matches may be there or not; the words and
    scales of a quantized ``x.weight`` go by that name.

    Raises:
        LoadError: a tensor is missing or left over, or has an unfitting shape or dtype.
    """
    needed = {name for spec in specs for name in _stored_names(spec, source)}
    missing = [name for name in sorted(needed) if name not in source.names]
    if missing:
        raise LoadError(source.path, f"{_count(missing)} missing: {_some(missing)}")
    unused = re.compile("|".join(f"(?:{pattern})" for pattern in ignored) or r"(?!)")
    left_over = [
        name
        for name in sorted(source.names - needed)
        if not unused.fullmatch(re.sub(r"\.q_(weight|scale)$", ".weight", name)) and not _adds_nothing(name, source)
    ]
    if left_over:
        raise LoadError(source.path, f"{_count(left_over)} left over, unknown to this architecture: {_some(left_over)}")
    for spec in specs:
        _check_shapes(spec, source)


def stored_tensors(spec: WeightSpec, source: WeightSource) -> list[StoredTensor]:
    """Return the tensors of the source that make up a weight."""
    return [source.info(name) for name in _stored_names(spec, source)]


def _load(
    specs: Sequence[WeightSpec],
    source: WeightSource,
    scheme: Scheme | None,
    quantizer: Quantizer,
    progress: Progress | None,
    *,
    anew: bool,
) -> Iterator[tuple[str, Tensor]]:
    total = sum(source.info(name).nbytes for spec in specs for name in _stored_names(spec, source))
    done = 0
    for spec in specs:
        names = _stored_names(spec, source)
        reason = None
        try:
            # Part by part: rows are quantized by themselves, and codes are less to join than floats.
            tensor = _joined(
                [_converted(part, spec, source, scheme, quantizer, anew=anew) for part in _read(spec, source)]
            )
        except ValueError as error:
            reason = str(error)
        if reason is not None:
            # Raised here, not above: an error that someone keeps must not keep the mapped file through its frames.
            raise LoadError(source.info(names[0]).file, f"tensor {_some(list(names))}: {reason}")
        yield spec.name, tensor
        del tensor
        for name in names:
            source.let_go(name)
            done += source.info(name).nbytes
        if progress is not None:
            progress(done, total)


def _read(spec: WeightSpec, source: WeightSource) -> list[Tensor]:
    """Read the parts of one weight in the format they are stored in."""
    names = _stored_names(spec, source)
    if source.scheme is None:
        return [_prepared(_stored(source.info(part.name), source), part, spec) for part in spec.parts]
    if len(names) == 2:
        rows, columns = spec.shape
        words, scales = (_flat(source.read(name), 2) for name in names)
        tensor = mlc_unpack(words, scales, (rows, columns), source.scheme, role=spec.role)
    else:
        tensor = _stored(source.info(names[0]), source)
        tensor = dataclasses.replace(tensor, shape=spec.shape, data=tensor.data.reshape(spec.shape))
    return [_prepared(tensor, part, spec) for part in spec.parts] if spec.mlc_as_stored else [tensor]


def _prepared(tensor: Tensor, part: Part, spec: WeightSpec) -> Tensor:
    """Do to a stored tensor what a part says. ValueError when that cannot be done to codes."""
    if part.matrices is not None:
        tensor = take_rows(tensor, part.matrices.indices(tensor.shape[0]))
        if tensor.format.grouped:
            tensor = Tensor(Format.F32, tensor.shape, tensor.dequantize())
    if tensor.format.grouped and (part.transposed or part.plus):
        raise ValueError("it is quantized in the file, along the rows; the columns would be needed")
    if not tensor.format.grouped:
        data = tensor.data
        if part.matrices is not None:
            data = data.reshape(part.matrices.groups, -1, data.shape[-1])
        data = np.ascontiguousarray(data.swapaxes(-1, -2)) if part.transposed else data
        data = data.reshape(spec.shape) if data.ndim < len(spec.shape) else _flat(data, len(spec.shape))
        tensor = dataclasses.replace(tensor, shape=data.shape, data=data)
    if part.rows is not None:
        tensor = take_rows(tensor, part.rows.indices(tensor.shape[0]))
    if part.plus:
        tensor = Tensor(Format.F32, tensor.shape, tensor.dequantize() + np.float32(part.plus))
    return tensor


def _flat(data: NDArray[Any], axes: int) -> NDArray[Any]:
    """Join the leading axes until there are ``axes``."""
    return data.reshape((-1, *data.shape[data.ndim - axes + 1 :])) if data.ndim > axes else data


def _stored(info: StoredTensor, source: WeightSource) -> Tensor:
    """Read one tensor in the format it is stored in, or in the one that has exactly its numbers."""
    if info.quantized_bits is None:
        return Tensor(_float_format(info), info.shape, source.read(info.name))
    try:
        return source.read_quantized(info.name)
    except ValueError as error:
        reason = str(error)
    # Raised here: an error that someone keeps must not keep the mapped file through its frames.
    raise LoadError(info.file, f"tensor {info.name}: {reason}")


def _converted(
    part: Tensor, spec: WeightSpec, source: WeightSource, scheme: Scheme | None, quantizer: Quantizer, *, anew: bool
) -> Tensor:
    if scheme is None or source.scheme is not None:
        return part
    if part.format.grouped:
        if not anew:
            raise ValueError(f"it is quantized in the file, and cannot become {scheme.name} without loss")
        part = Tensor(Format.F32, part.shape, part.dequantize())
    return quantizer(part, scheme) if scheme.quantizes(spec.role) else cast(part, scheme.model_dtype)


def _joined(parts: list[Tensor]) -> Tensor:
    """Put the rows of one tensor below those of the next; parts of different formats get one that has both exactly."""
    if len(parts) == 1:
        return parts[0]
    if len({_kind(part) for part in parts}) > 1:
        parts = _plain(parts)
    first = parts[0]
    shape = (sum(part.shape[0] for part in parts), *first.shape[1:])
    factors = None
    if first.factors is not None:
        pairs = [part.factors for part in parts if part.factors is not None]
        scales, minima = _stacked([pair.scales for pair in pairs]), _stacked([pair.minima for pair in pairs])
        factors = dataclasses.replace(first.factors, scales=scales, minima=minima)
    return Tensor(
        first.format,
        shape,
        np.concatenate([part.data for part in parts]),
        first.group_size,
        _stacked([part.scales for part in parts]),
        _stacked_zeros([part.zeros for part in parts]),
        _stacked([part.minima for part in parts]),
        factors,
        first.order,
    )


def _kind(part: Tensor) -> tuple[object, ...]:
    """What parts that are put together must have in common."""
    scales = None if part.scales is None else part.scales.dtype
    order = None if part.order is None else part.order.tobytes()
    return part.format, part.group_size, scales, part.minima is None, part.factors is None, order


def _plain(parts: Sequence[Tensor]) -> list[Tensor]:
    """The parts in one format that has the numbers of all.

    Codes with the same order of columns become int8 with scales of float32, and with minima where one of them has
    those; fp8 gets groups that all of them are made of; else it is float32.
    """
    group = math.gcd(*(part.group_size for part in parts))
    formats = {part.format for part in parts}
    if formats == {Format.FP8}:
        from windlass.quantization.checkpoints import fp8_group  # for such checkpoints only

        if fp8_group(parts[0].shape[1], group):
            return [_regrouped(part, group) for part in parts]
    orders = {None if part.order is None else part.order.tobytes() for part in parts}
    if not formats <= {Format.INT8, Format.INT4} or len(orders) > 1:
        return [_as_f32(part) for part in parts]
    plain = [as_int8(part, group) for part in parts]
    if all(part.minima is None for part in plain):
        return plain
    return [
        part if part.minima is not None else dataclasses.replace(part, minima=np.zeros_like(part.scales))
        for part in plain
    ]


def _regrouped(part: Tensor, group: int) -> Tensor:
    scales, _ = part.group_numbers()
    columns = -(-part.shape[1] // group)
    return dataclasses.replace(
        part, group_size=group, scales=np.repeat(scales, part.group_size // group, axis=1)[:, :columns]
    )


def _stacked_zeros(arrays: Sequence[NDArray[np.uint8] | None]) -> NDArray[np.uint8] | None:
    """The zero points below each other: as a view of one byte where all of them are that."""
    found = [array for array in arrays if array is not None]
    if not found:
        return None
    first = found[0]
    if all(array.strides == (0, 0) and array[0, 0] == first[0, 0] for array in found):
        return np.broadcast_to(first[0, 0], (sum(array.shape[0] for array in found), first.shape[1]))
    return np.concatenate(found)


def _stacked(arrays: Sequence[NDArray[Any] | None]) -> Any:
    """The arrays below each other, or None when there are none."""
    found = [array for array in arrays if array is not None]
    return np.concatenate(found) if found else None


def _as_f32(part: Tensor) -> Tensor:
    return part if part.format is Format.F32 else Tensor(Format.F32, part.shape, part.dequantize())


def _stored_names(spec: WeightSpec, source: WeightSource) -> tuple[str, ...]:
    """Return the stored tensors that make up a weight; of an MLC directory one, or two: the words and the scales."""
    if source.scheme is None:
        return tuple(dict.fromkeys(part.name for part in spec.parts))
    stem = spec.name.removesuffix(".weight")
    packed = (f"{stem}.q_weight", f"{stem}.q_scale")
    if spec.name in source.names or not (packed[0] in source.names or source.scheme.quantizes(spec.role)):
        return (spec.name,)
    return packed


def _adds_nothing(name: str, source: WeightSource) -> bool:
    """True for a bias of zeros beside a packed matrix: AutoGPTQ gave one to every matrix once."""
    stem, _, kind = name.rpartition(".")
    matrix, info = f"{stem}.weight", source.info(name)
    if kind != "bias" or matrix not in source.names or source.info(matrix).packing is None:
        return False
    return len(info.shape) == 1 and info.format is not None and not source.read(name).any()


def _check_shapes(spec: WeightSpec, source: WeightSource) -> None:
    names = _stored_names(spec, source)
    if source.scheme is not None and len(names) == 2:
        _check_packed(spec, source.info(names[0]), source.info(names[1]), source.scheme)
        return
    parts: Sequence[Part | None] = spec.parts if source.scheme is None else (None,)
    infos = [source.info(names[0] if part is None else part.name) for part in parts]
    rows = 0
    for info, part in zip(infos, parts, strict=True):
        if info.quantized_bits is None:
            _float_format(info)
        shape = _prepared_shape(info.shape, part, spec)
        if shape is None or shape[1:] != spec.shape[1:]:
            raise LoadError(info.file, f"tensor {info.name!r} has shape {list(info.shape)}, {_wanted(spec, names)}")
        rows += shape[0]
    if rows != spec.shape[0]:
        shapes = ", ".join(str(list(info.shape)) for info in infos)
        raise LoadError(infos[0].file, f"tensor {_some(list(names))} has shape {shapes}, {_wanted(spec, names)}")


def _prepared_shape(shape: tuple[int, ...], part: Part | None, spec: WeightSpec) -> tuple[int, ...] | None:
    """The shape that ``_prepared`` gives, or None when it cannot."""
    axes = len(spec.shape)
    if len(shape) == 1 and axes == 2 and spec.shape[0] == 1:
        shape = (1, *shape)  # files may have a single row as a vector
    if not axes <= len(shape) <= (axes + 1 if spec.experts > 1 or axes == 1 else axes):
        return None
    if part is not None and part.matrices is not None:
        try:
            rows = len(part.matrices.indices(shape[0]))
        except ValueError:
            return None
        shape = (part.matrices.groups, rows // part.matrices.groups, *shape[1:])
    if part is not None and part.transposed:
        if len(shape) < 2:
            return None
        shape = (*shape[:-2], shape[-1], shape[-2])
    if len(shape) > axes:
        shape = (shape[0] * shape[1], *shape[2:])
    if part is not None and part.rows is not None:
        try:
            shape = (len(part.rows.indices(shape[0])), *shape[1:])
        except ValueError:
            return None
    return shape


def _check_packed(spec: WeightSpec, words: StoredTensor, scales: StoredTensor, scheme: Scheme) -> None:
    if not scheme.grouped or len(spec.shape) != 2:
        raise LoadError(words.file, f"tensor {words.name!r} is quantized, but {scheme.name} does not quantize it")
    if words.dtype != "uint32":
        raise LoadError(words.file, f"tensor {words.name!r} has dtype {words.dtype}, uint32 is needed")
    _float_format(scales)
    for info, matrix in zip((words, scales), mlc_shapes(spec.shape, scheme, role=spec.role), strict=True):
        shape: tuple[int, ...] = matrix
        if spec.experts > 1:
            shape = (spec.experts, matrix[0] // spec.experts, matrix[1])
        if info.shape != shape:
            raise LoadError(
                info.file,
                f"tensor {info.name!r} has shape {list(info.shape)}; {scheme.name} needs {list(shape)}",
            )


def _float_format(info: StoredTensor) -> Format:
    if info.format is None:
        raise LoadError(info.file, f"tensor {info.name!r} has dtype {info.dtype}, a float type is needed")
    return info.format


def _wanted(spec: WeightSpec, names: tuple[str, ...]) -> str:
    together = " for all parts together" if len(names) > 1 else ""
    return f"the configuration asks for {list(spec.shape)}{together}"


def _count(names: list[str]) -> str:
    return "1 tensor is" if len(names) == 1 else f"{len(names)} tensors are"


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def count_parameters(specs: Sequence[WeightSpec]) -> int:
    """Return the number of single weights that the specs have together."""
    return sum(math.prod(spec.shape) for spec in specs)
