"""What several commands share."""

from __future__ import annotations

import click


def check_quantization(_context: click.Context, _parameter: click.Parameter, name: str | None) -> str | None:
    """Refuse the name of a scheme that does not exist (a click callback)."""
    # Imported late: numpy comes with it, and `windlass --version` should not wait for that.
    from windlass.quantization import SCHEMES

    if name is not None and name not in SCHEMES:
        raise click.BadParameter(f"{name!r} is not one of {', '.join(SCHEMES)}")
    return name
