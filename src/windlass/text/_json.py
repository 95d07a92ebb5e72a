"""Reading the small JSON files of a model directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from windlass.errors import LoadError


def read_json_object(path: Path) -> dict[str, Any] | None:
    """The object in ``path``, or None when there is no such file.

    Raises:
        LoadError: the file cannot be read, is not JSON, or is not an object.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(path, f"cannot be read as UTF-8 text ({type(error).__name__})") from error
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise LoadError(path, f"is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise LoadError(path, f"must hold a JSON object, not a {type(value).__name__}")
    return value
