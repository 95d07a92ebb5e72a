"""``windlass convert``: quantize a Hugging Face model into an MLC directory."""

from __future__ import annotations

from pathlib import Path

import click

from windlass.cli.options import check_quantization
from windlass.cli.progress import progress_bar


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

    with progress_bar() as progress:
        convert_directory(source, output, quantization, conv_template=conv_template, progress=progress)
    size = sum(file.stat().st_size for file in output.iterdir())
    click.echo(f"{output}: {size / 1e6:.1f} MB in {quantization}")
