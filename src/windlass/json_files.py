"""Reading JSON files that nobody vouches for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from windlass.errors import LoadError

MAX_JSON_BYTES = 100_000_000
"""Largest JSON document read: the safetensors format's own cap on its header."""


def read_json_object(path: Path, *, unique_keys: bool = False, missing_ok: bool = False) -> dict[str, Any]:
    """Read a file that holds one JSON object; with ``missing_ok`` a file that is not there is an empty one.

    Raises:
        LoadError: the file cannot be read, is larger than ``MAX_JSON_BYTES``, is not UTF-8 JSON of an object, or,
            with ``unique_keys``, has an object in which a key comes twice.
    """
    text = _read(path, missing_ok=missing_ok)
    return {} if text is None else parse_json_object(path, text, unique_keys=unique_keys)


def read_json_list(path: Path, *, missing_ok: bool = False) -> list[Any] | None:
    """Read a file that holds one JSON array; with ``missing_ok`` None stands for a file that is not there.

    Raises:
        LoadError: as ``read_json_object``.
    """
    text = _read(path, missing_ok=missing_ok)
    if text is None:
        return None
    value = _parse(path, text, what="the file", collect=None)
    if not isinstance(value, list):
        raise LoadError(path, f"the file must be a JSON array, not {json_type(value)}")
    return value


def _read(path: Path, *, missing_ok: bool) -> bytes | None:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_JSON_BYTES:
                raise LoadError(path, f"{size} bytes are too many for a JSON file; at most {MAX_JSON_BYTES} are read")
            return file.read(MAX_JSON_BYTES)
    except OSError as error:
        if missing_ok and isinstance(error, FileNotFoundError):
            return None
        raise LoadError(path, f"cannot be read: {error.strerror}") from error


def parse_json_object(path: Path, text: bytes, *, what: str = "the file", unique_keys: bool) -> dict[str, Any]:
    """Parse ``text``, the part of ``path`` that ``what`` names, as one JSON object. Raises as ``read_json_object``."""
    repeated: list[str] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                repeated.append(key)
            result[key] = value
        return result

    value = _parse(path, text, what=what, collect=collect if unique_keys else None)
    if not isinstance(value, dict):
        raise LoadError(path, f"{what} must be a JSON object, not {json_type(value)}")
    if repeated:
        raise LoadError(path, f"{what} has the key {repeated[0]!r} twice")
    return value


def _parse(
    path: Path, text: bytes, *, what: str, collect: Callable[[list[tuple[str, Any]]], dict[str, Any]] | None
) -> Any:
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=collect)
    except json.JSONDecodeError as error:
        raise LoadError(path, f"{what} is not JSON: {error.msg} at line {error.lineno} column {error.colno}") from None
    except UnicodeDecodeError as error:
        raise LoadError(path, f"{what} is not JSON: not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise LoadError(path, f"{what} is not acceptable JSON: it is nested too deeply") from None
    except ValueError as error:  # an integer of thousands of digits
        raise LoadError(path, f"{what} is not acceptable JSON: {error}") from None


def json_type(value: object) -> str:
    """Return what JSON calls the type of a parsed value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    names = {dict: "an object", list: "an array", str: "a string", int: "a number", float: "a number"}
    return names[type(value)]
