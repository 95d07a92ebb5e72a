"""``windlass convert``: quantize a Hugging Face model into an MLC directory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from windlass.cli.options import check_quantization

if TYPE_CHECKING:
    from windlass.serve.progress import Progress


@click.command()
@click.argument("source", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", metavar="OUT", required=True, type=click.Path(path_type=Path), help="Directory to make."
)
@click.option(
    "--quantization", metavar="NAME", required=True, callback=check_quantization, help="The scheme, e.g. q4f16_1."
)
@click.option("--conv-template", metavar="NAME", help="MLC conversation template to name in OUT.")
def convert(source: Path, output: Path, quantization: str, conv_template: str | None) -> None:
    """Quantize the Hugging Face model in DIR and write it to OUT in MLC's layout."""
    from windlass.serve.convert import convert as convert_directory

    with _progress_bar() as progress:
        convert_directory(source, output, quantization, conv_template=conv_template, progress=progress)
    size = sum(file.stat().st_size for file in output.iterdir())
    click.echo(f"{output}: {size / 1e6:.1f} MB in {quantization}")


@contextmanager
def _progress_bar() -> Iterator[Progress | None]:
    """Yield what draws a bar on stderr, gone at the end, or None where nobody would see it."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("converting", total=None)

        def report(phase: str, done: int, total: int) -> None:
            bar.update(task, description=phase, completed=done, total=total or None)

        yield report
