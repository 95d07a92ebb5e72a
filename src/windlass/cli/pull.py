"""``windlass pull``: download a model."""

from __future__ import annotations

import click

from windlass.cli.progress import progress_bar


@click.command()
@click.argument("model", metavar="MODEL")
def pull(model: str) -> None:
    """Download MODEL from Hugging Face.

    MODEL is org/name, org/name@revision, or org/name:Q4_K_M (or :FILE.gguf) for one of several GGUF models. Only
    the files that Windlass needs are downloaded, to the cache of huggingface_hub. An interrupted download goes on
    where it was, every file is checked, and what is there already is not downloaded again. Private models need a
    token in HF_TOKEN, or `hf auth login`.
    """
    from windlass.weights.hub import pull_model

    with progress_bar(speed=True) as progress:
        path = pull_model(model, report=progress)
    click.echo(path)
