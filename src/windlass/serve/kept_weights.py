"""Packed weights from one load to the next: which file in the cache is theirs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from windlass.config import EngineConfig, cache_directory, cache_limit
from windlass.models.definition import ModelDefinition
from windlass.native.executor import NativeExecutor, PackFile
from windlass.quantization import SCHEMES, Scheme
from windlass.serve.progress import Progress
from windlass.weights.file_cache import FileCache
from windlass.weights.source import WeightSource

LEAST_BYTES = 64 << 20
"""Less than this is packed in a moment."""

_REVISION = 1
"""To be raised when the same files give other numbers than before. Layouts take care of themselves."""


@dataclass(frozen=True, slots=True)
class KeptWeights:
    """The place of one model's packed weights in the cache. ``identity`` says what they were made from."""

    cache: FileCache
    identity: bytes
    size: int

    @property
    def _name(self) -> str:
        return _file_name(self.identity)

    @contextmanager
    def opened(self) -> Iterator[PackFile | None]:
        """Yield the file, or None when there is none."""
        descriptor = self.cache.open(self._name)
        if descriptor is None:
            yield None
            return
        try:
            yield PackFile(descriptor, self.identity)
        finally:
            os.close(descriptor)

    def keep(self, executor: NativeExecutor, progress: Progress) -> None:
        """Write the weights of ``executor``. When that is interrupted the executor is closed."""

        def fill(descriptor: int) -> None:
            executor.write_weights(
                descriptor, self.identity, progress=lambda done, total: progress("keeping packed weights", done, total)
            )

        try:
            self.cache.write(self._name, self.size, fill)
        except BaseException:
            executor.close()
            raise


def load_cache(config: EngineConfig) -> FileCache | None:
    """Return the cache of what loads make, or None when there shall be none.

    Raises:
        ValueError: the environment does not say properly how large it may be.
    """
    limit = cache_limit()
    return FileCache(cache_directory(), limit) if config.pack_cache and limit != 0 else None


def kept_weights(
    config: EngineConfig, definition: ModelDefinition, scheme: Scheme | None, source: WeightSource, size: int
) -> KeptWeights | None:
    """Return where the weights of a model are kept, or None when they are not.

    Args:
        scheme: what they end in; None keeps them as stored.
        source: where they come from.
        size: about how many bytes they take, packed.

    Raises:
        LoadError: the source cannot be read.
        ValueError: the environment does not say properly how large the cache may be.
    """
    cache = load_cache(config)
    if cache is None or size < LEAST_BYTES:
        return None
    return KeptWeights(cache, _identity(definition, scheme, source.fingerprint()), size)


def kept_names(definition: ModelDefinition, source: WeightSource) -> list[str]:
    """Return what the cache would call the packed weights of a model, for each scheme that they may end in.

    Raises:
        LoadError: the source cannot be read.
    """
    fingerprint = source.fingerprint()
    return [_file_name(_identity(definition, scheme, fingerprint)) for scheme in (None, *SCHEMES.values())]


def _identity(definition: ModelDefinition, scheme: Scheme | None, fingerprint: bytes) -> bytes:
    digest = hashlib.sha256(fingerprint)
    digest.update(repr((_REVISION, scheme, definition.program.weights)).encode())
    return digest.digest()


def _file_name(identity: bytes) -> str:
    return f"{identity.hex()}.weights"
