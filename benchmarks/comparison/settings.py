"""Options of the command lines that set a field of an engine's config."""

from __future__ import annotations

import argparse
import json
from typing import Any


def setting(text: str) -> tuple[str, Any]:
    """Take ``FIELD=VALUE`` apart; the value is JSON, or else text as it stands.

    Raises:
        argparse.ArgumentTypeError: there is no value.
    """
    name, _, value = text.partition("=")
    if not value:
        raise argparse.ArgumentTypeError(f"{text!r} is not FIELD=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
