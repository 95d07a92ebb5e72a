"""Directories that appear whole or not at all."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from windlass.errors import LoadError
from windlass.weights.directory import HF_CONFIG_NAME, MLC_CONFIG_NAME


@contextmanager
def new_directory(source: Path, output: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a directory to write to, which becomes ``output`` at the end of the block, and is gone if that raises.

    Args:
        source: what is read meanwhile.
        output: a directory that does not exist, or is empty.
        force: it may also hold a model, which is then replaced; nothing else is.

    Raises:
        LoadError: there is something else at ``output``, or it cannot be written.
    """
    check_output(source, output, force=force)
    output = output.absolute()
    # Hidden and unique, and in the same file system, so that the move is one step.
    part, old = (output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}.{suffix}") for suffix in ("part", "old"))
    try:
        part.mkdir(parents=True)
        yield part
        check_output(source, output, force=force)
        try:
            if output.is_dir():
                output.rename(old)
            part.rename(output)
        except BaseException:
            if old.is_dir() and not output.exists():
                old.rename(output)
            raise
    except OSError as error:
        raise LoadError(output, f"cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def check_output(source: Path, output: Path, *, force: bool) -> None:
    """Raise LoadError unless a model made of ``source`` may be written to ``output``."""
    try:
        if source.resolve().is_relative_to(output.resolve()):
            raise LoadError(output, "holds the model that is read")
        if output.is_symlink() or (output.exists() and not output.is_dir()):
            raise LoadError(output, "there is a file of this name")
        if output.is_dir() and any(output.iterdir()):
            is_model = any((output / name).is_file() for name in (HF_CONFIG_NAME, MLC_CONFIG_NAME))
            if not force:
                hint = "; --force replaces a model" if is_model else ""
                raise LoadError(output, f"the directory exists and is not empty{hint}")
            if not is_model:
                raise LoadError(output, "the directory holds something else than a model, and is not replaced")
    except OSError as error:
        raise LoadError(output, f"cannot be read: {error.strerror}") from error
