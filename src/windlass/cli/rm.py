"""``windlass rm``: remove a downloaded model."""

from __future__ import annotations

import click

from windlass.cli.options import complete_models


@click.command()
@click.argument("model", metavar="MODEL", shell_complete=complete_models)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def rm(model: str, yes: bool) -> None:
    """Remove a downloaded MODEL.

    The packed weights that loads have kept of it go too. org/name is all of a repository, org/name@revision one
    revision, org/name:FILE.gguf one GGUF model. Models that lie elsewhere are not removed, nor are those that a
    running engine has mapped.
    """
    from windlass.serve.listing import size_text
    from windlass.serve.remove import plan_removal

    removal = plan_removal(model)
    users = removal.users()
    if users:
        processes = ", ".join(map(str, users))
        raise click.ClickException(f"{model} is in use by process {processes}; end it first")
    what = str(removal.directory) if removal.directory is not None else f"{len(removal.files)} files of {model}"
    if not yes and not click.confirm(f"Remove {what} ({size_text(removal.num_bytes)})?", err=True):
        raise click.ClickException("nothing was removed")
    click.echo(f"removed {model}: {size_text(removal.run())}")
