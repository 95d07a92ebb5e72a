"""``windlass convert``: a model in another format."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import click

from windlass.cli.options import check_quantization, complete_models
from windlass.cli.progress import progress_bar


@click.command()
@click.argument("source", metavar="MODEL", shell_complete=complete_models)
@click.option(
    "-o", "--output", metavar="OUT", required=True, type=click.Path(path_type=Path), help="Directory to make."
)
@click.option(
    "--quantization",
    metavar="NAME",
    callback=check_quantization,
    help="Make an MLC directory in this scheme, e.g. q4f16_1.",
)
@click.option(
    "--dtype",
    type=click.Choice(["f32", "f16", "bf16"]),
    help="Make a Hugging Face directory, with weights as these floats.",
)
@click.option("--conv-template", metavar="NAME", help="MLC conversation template to name in OUT.")
@click.option("--force", is_flag=True, help="Replace the model in OUT, if there is one.")
def convert(
    source: str, output: Path, quantization: str | None, dtype: str | None, conv_template: str | None, force: bool
) -> None:
    """Write MODEL to the directory OUT in another format.

    With --quantization, a Hugging Face directory or a GGUF file becomes an MLC directory; with --dtype, a GGUF file or
    an MLC directory becomes a Hugging Face one. MODEL is a path, or a name that `windlass list` shows.
    """
    if (quantization is None) == (dtype is None):
        raise click.UsageError("give --quantization for an MLC directory, or --dtype for a Hugging Face one")
    if conv_template is not None and quantization is None:
        raise click.UsageError("--conv-template is for MLC directories")
    from windlass.serve import convert as to_mlc
    from windlass.serve import convert_to_hf as to_hf
    from windlass.weights.hub import resolve_model

    with progress_bar() as progress:
        path = resolve_model(source, report=progress)
        if quantization is not None:
            done = to_mlc.convert(
                path, output, quantization, conv_template=conv_template, force=force, progress=progress
            )
        else:
            done = to_hf.convert_to_hf(path, output, cast("to_hf.FloatName", dtype), force=force, progress=progress)
    click.echo(f"{output}: {done.num_bytes / 1e6:.1f} MB in {quantization or dtype}")
    for what, names in done.changes.items():
        click.echo(f"  {what}: {', '.join(f'{count} x {name}' for name, count in names.items())}")
    for note in done.notes:
        click.echo(f"  {note}")
