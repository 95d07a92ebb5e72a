"""What several commands share."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem


def check_quantization(_context: click.Context, _parameter: click.Parameter, name: str | None) -> str | None:
    """Refuse the name of a scheme that does not exist (a click callback)."""
    # Imported late: numpy comes with it, and `windlass --version` should not wait for that.
    from windlass.quantization import SCHEMES

    if name is not None and name not in SCHEMES:
        raise click.BadParameter(f"{name!r} is not one of {', '.join(SCHEMES)}")
    return name


def complete_models(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the names of models on this machine that begin so, and leave other paths to the shell."""
    from windlass.config import model_roots
    from windlass.weights.stored_models import find_models

    names = [model.name for model in find_models(model_roots()) if model.kind != "partial"]
    found = [CompletionItem(name) for name in names if name.startswith(incomplete) and name != "."]
    return found or [CompletionItem(incomplete, type="file")]
