"""``windlass show``: what a model is, and whether it fits."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from windlass.cli.options import check_quantization, complete_models

if TYPE_CHECKING:
    from windlass.serve.show import MemoryNeed, ShownModel

_FIRST_LINES = 3
_LINE = 88


@click.command()
@click.argument("model", metavar="MODEL", shell_complete=complete_models)
@click.option("--context", type=click.IntRange(min=1), help="Tokens to plan for; by default the model's context.")
@click.option(
    "--quantization",
    metavar="NAME",
    callback=check_quantization,
    help="Plan to quantize while loading, e.g. to q4f16_1.",
)
@click.option("--template", "whole_template", is_flag=True, help="Print the chat template and nothing else.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def show(model: str, context: int | None, quantization: str | None, whole_template: bool, as_json: bool) -> int:
    """Show what MODEL is and whether it fits.

    Nothing is loaded. MODEL is a name that `windlass list` shows, a directory, or a GGUF file. The exit code is 1
    when it cannot be run.
    """
    from windlass.serve.show import show_model

    try:
        shown = show_model(model, context=context, quantization=quantization)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if whole_template:
        if shown.template is None:
            raise click.ClickException(shown.problem or f"{model} has no chat template")
        click.echo(shown.template)
    else:
        click.echo(json.dumps(_as_object(shown), indent=2) if as_json else _text(shown))
    return 1 if shown.problem else 0


def _as_object(shown: ShownModel) -> dict[str, Any]:
    from windlass.cli.list import as_object

    values = {**as_object(shown.listed), **asdict(shown)}
    del values["listed"]
    return values


def _text(shown: ShownModel) -> str:
    from windlass.serve.listing import size_text

    listed, model = shown.listed, shown.listed.model
    files = "file" if len(model.files) == 1 else "files"
    types = ", ".join(
        f"{name} {100 * count / sum(shown.tensor_types.values()):.0f} %" for name, count in shown.tensor_types.items()
    )
    rows = [
        ("path", str(model.path)),
        ("format", f"{model.kind}, {size_text(model.num_bytes)} in {len(model.files)} {files}"),
        ("architecture", listed.architecture or "unknown"),
        ("parameters", "" if shown.parameters is None else _count(shown.parameters)),
        ("quantization", types or listed.quantization or "unknown"),
        ("context", "" if shown.context_length is None else f"{shown.context_length} tokens"),
        ("sizes", ", ".join(f"{name} {size}" for name, size in shown.sizes.items())),
        ("licence", shown.licence or "not said"),
        ("tokenizer", shown.tokenizer or ""),
        (
            "special",
            "  ".join(f"{name} {token}" for name, token in shown.special_tokens.items() if isinstance(token, str)),
        ),
        ("stops at", "  ".join(shown.stop_tokens)),
        *_template_rows(shown),
        *(() if shown.memory is None else _memory_rows(shown.memory)),
        ("PROBLEM", shown.problem or ""),
    ]
    return "\n".join([model.name, *(f"  {name:<14}{value}" for name, value in rows if value)])


def _template_rows(shown: ShownModel) -> list[tuple[str, str]]:
    if shown.pooling is not None:
        return [("embeddings", f"by {shown.pooling} pooling")]
    if shown.template is None:
        return [] if shown.problem else [("template", "none: text completions only")]
    lines = shown.template.splitlines()
    knows = [name for name, known in (("tools", shown.takes_tools), ("reasoning", shown.thinks)) if known]
    rows = [("template", f"{shown.template_origin}, {len(lines)} lines{': ' if knows else ''}{', '.join(knows)}")]
    return rows + [("", line if len(line) <= _LINE else f"{line[:_LINE]}...") for line in lines[:_FIRST_LINES]]


def _memory_rows(memory: MemoryNeed) -> list[tuple[str, str]]:
    from windlass.serve.listing import size_text

    total = memory.weights + memory.kv_cache
    need = f"weights {size_text(memory.weights)} + KV cache {size_text(memory.kv_cache)} = {size_text(total)}"
    room = f"{size_text(memory.usable)} may be used now"
    if memory.fits:
        verdict = f"yes: {room}"
    elif memory.longest_context:
        verdict = f"no: {room}; with a context of {memory.longest_context} tokens it would fit"
    else:
        verdict = f"no: {room}, which the weights alone do not fit in"
    return [
        ("memory", f"for {memory.context} tokens: {need}, and at most {size_text(memory.buffers)} of buffers"),
        ("fits", verdict),
    ]


def _count(number: int) -> str:
    for unit, size in (("billion", 10**9), ("million", 10**6)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return str(number)
