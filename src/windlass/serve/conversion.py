"""What becomes of a model's numbers when it is converted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from windlass.quantization import Format
from windlass.weights.source import StoredTensor

FORMAT_NAMES = {Format.F32: "float32", Format.F16: "float16", Format.BF16: "bfloat16"}


@dataclass(frozen=True, slots=True)
class Conversion:
    """A finished conversion.

    Attributes:
        path: the directory that was made.
        num_bytes: its size.
        changes: what happened to the weights, such as ``exact`` or ``rounded to float16`` -> what they were stored as,
            such as ``Q4_K`` -> how many.
        notes: what could not be carried over.
    """

    path: Path
    num_bytes: int
    changes: dict[str, dict[str, int]]
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class Changes:
    """Counts what happens to weights."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)

    def to_float(self, stored: list[StoredTensor], target: Format, packed: str | None = None) -> None:
        """A weight made of ``stored`` becomes floats; ``packed`` names a scheme that it is quantized by.

        What blocks and codes stand for is what they are as float32, so that nothing is lost there.
        """
        for tensor in stored:
            name = packed or stored_name(tensor)
            exact = target is Format.F32 or name == FORMAT_NAMES[target]
            self.add("exact" if exact else f"rounded to {FORMAT_NAMES[target]}", name)

    def add(self, what: str, name: str) -> None:
        """Count a tensor stored as ``name``."""
        self.counts.setdefault(what, Counter())[name] += 1

    def finish(self, path: Path, notes: tuple[str, ...] = ()) -> Conversion:
        """Return all of it for the directory ``path``."""
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return Conversion(path, size, {what: dict(names.most_common()) for what, names in self.counts.items()}, notes)


def stored_name(tensor: StoredTensor) -> str:
    """Return what the numbers of a tensor are stored as."""
    if tensor.kind is not None:
        return tensor.kind.name
    return FORMAT_NAMES[Format.BF16] if tensor.widened else tensor.dtype
