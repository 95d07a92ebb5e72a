"""``windlass list``: the models on this machine."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from windlass.serve.listing import ListedModel


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array instead of text.")
def list_models(as_json: bool) -> None:
    """Show the models on this machine.

    These are the downloaded ones, and those in the working directory. The first column is what chat, serve, show,
    convert and rm call a model.
    """
    from windlass.serve.listing import list_models as look

    models = look()
    if as_json:
        click.echo(json.dumps([as_object(model) for model in models], indent=2))
    elif models:
        click.echo(_table(models))
    else:
        click.echo("there are none yet; `windlass pull org/name` downloads one", err=True)


def as_object(listed: ListedModel) -> dict[str, Any]:
    """Return a model as JSON has it. Sizes are bytes, times seconds since 1970."""
    return {
        "name": listed.model.name,
        "path": str(listed.model.path),
        "format": listed.model.kind,
        "num_bytes": listed.model.num_bytes,
        "architecture": listed.architecture,
        "quantization": listed.quantization,
        "last_used": listed.last_used,
        "problem": listed.problem,
    }


def _table(models: list[ListedModel]) -> str:
    from windlass.serve.listing import size_text

    rows = [("NAME", "SIZE", "FORMAT", "ARCHITECTURE", "QUANTIZATION", "LAST USED")]
    for listed in models:
        last = listed.problem or (_date(listed.last_used) if listed.last_used is not None else "-")
        rows.append(
            (
                listed.model.name,
                size_text(listed.model.num_bytes),
                listed.model.kind,
                listed.architecture or "-",
                listed.quantization or "-",
                last,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = (
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[5]]) for row in rows
    )
    return "\n".join(lines)


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
