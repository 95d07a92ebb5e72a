"""``windlass chat``: one answer, or a conversation."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any, get_args

import click

from windlass.cli.conversation import Conversation
from windlass.cli.options import check_quantization, complete_models
from windlass.config import KVCacheDtype, LoadFormat, Mode
from windlass.errors import EngineError, WindlassError

if TYPE_CHECKING:
    from windlass.serve.engine import MLCEngine

PROMPT = "> "
HELP = """\
/help    this list
/reset   forget the conversation so far, but not the system prompt
/stats   tokens and speed of the last answer and of all
/exit    leave; Ctrl-D does the same
Ctrl-C stops an answer; at the prompt, pressed twice, it leaves."""
INTERRUPTED = 130


@click.command()
@click.argument("model", required=False, shell_complete=complete_models)
@click.option("-p", "--prompt", metavar="TEXT", help="Answer TEXT and leave.")
@click.option("--system", metavar="TEXT", help="System prompt.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="0 always takes the most likely token.")
@click.option(
    "--top-p", type=click.FloatRange(0, 1, min_open=True), help="Draw from the likeliest tokens that sum to this."
)
@click.option("--max-tokens", type=click.IntRange(min=1), help="Most tokens of one answer.")
@click.option("--seed", type=int, help="The same seed gives the same answer.")
@click.option("--stop", metavar="TEXT", multiple=True, help="End the answer before TEXT; may be given several times.")
@click.option(
    "--quantization",
    metavar="NAME",
    callback=check_quantization,
    help="Quantize a Hugging Face model while loading, e.g. to q4f16_1.",
)
@click.option("--load-format", type=click.Choice(get_args(LoadFormat)), help="dummy: random weights from the config.")
@click.option("--no-pack-cache", is_flag=True, help="Neither use nor keep a file of packed weights.")
@click.option("--context", type=click.IntRange(min=1), help="Longest conversation in tokens.")
@click.option(
    "--kv-cache-dtype",
    type=click.Choice(get_args(KVCacheDtype)),
    help="Type of the KV cache.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads that compute.")
@click.option("--device", default="auto", show_default=True, help="Where to run.")
@click.option(
    "--mode",
    type=click.Choice(get_args(Mode)),
    default="interactive",
    show_default=True,
    help="How much memory to plan for: interactive is one conversation.",
)
def chat(model: str | None, prompt: str | None, system: str | None, device: str, mode: str, **options: Any) -> int:
    """Chat with MODEL.

    MODEL is a path, a name that `windlass list` shows, or HF://org/name; without it the bundled demo model
    answers. With --prompt, or with text on standard input, prints one answer and leaves.
    """
    interactive = prompt is None and sys.stdin.isatty()
    if prompt is None and not interactive:
        prompt = _read_standard_input()
    if prompt is not None and not prompt.strip():
        raise click.UsageError("the prompt is empty")
    arguments = {
        "temperature": options["temperature"],
        "top_p": options["top_p"],
        "max_tokens": options["max_tokens"],
        "seed": options["seed"],
        "stop": list(options["stop"]) or None,
    }
    with _open_engine(model, device, mode, options) as engine:
        conversation = Conversation(engine, system, {k: v for k, v in arguments.items() if v is not None})
        if prompt is None:
            _converse(conversation, model)
            return 0
        reason = conversation.ask(prompt, _write)
        click.echo()
        return 0 if reason else INTERRUPTED


def _open_engine(model: str | None, device: str, mode: str, options: dict[str, Any]) -> MLCEngine:
    from windlass import EngineConfig, MLCEngine

    settings = {
        "load_format": options["load_format"],
        "max_single_sequence_length": options["context"],
        "kv_cache_dtype": options["kv_cache_dtype"],
        "num_threads": options["threads"],
        "pack_cache": not options["no_pack_cache"],
    }
    try:
        config = EngineConfig(**{name: value for name, value in settings.items() if value is not None})
        return MLCEngine(model, device, mode=mode, engine_config=config, quantization=options["quantization"])
    except ValueError as error:
        raise click.ClickException(str(error)) from error


def _read_standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise click.ClickException(f"standard input is not UTF-8 text: {error}") from None


def _write(text: str) -> None:
    click.echo(text, nl=False)


def _converse(conversation: Conversation, model: str | None) -> None:
    """Answer lines from the terminal until the user leaves."""
    _enable_line_editing()
    click.echo(f"Chatting with {model or 'the demo model'}. /help lists the commands, /exit leaves.", err=True)
    interrupted = False
    while True:
        try:
            line = _read_line().strip()
            interrupted = False
            if not line.startswith("/"):
                _answer(conversation, line)
            elif not _obey(line, conversation):
                return
        except EOFError:
            click.echo(err=True)
            return
        except KeyboardInterrupt:
            click.echo(err=True)
            if interrupted:
                return
            interrupted = True
            click.echo("Ctrl-C once more, or Ctrl-D, leaves.", err=True)


def _read_line() -> str:
    """Return the next line, empty if it cannot be read."""
    on_terminal = sys.stdout.isatty()
    if not on_terminal:  # standard output is a file for the answers alone
        click.echo(PROMPT, err=True, nl=False)
    try:
        return input(PROMPT if on_terminal else "")
    except UnicodeDecodeError:
        click.echo("That is not UTF-8 text.", err=True)
        return ""


def _enable_line_editing() -> None:
    """Give ``input`` arrow keys and a history, where Python was built with them."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401


def _obey(line: str, conversation: Conversation) -> bool:
    """Carry out a slash command; return whether the conversation goes on."""
    if line == "/exit":
        return False
    if line == "/help":
        click.echo(HELP, err=True)
    elif line == "/reset":
        conversation.reset()
        click.echo("The conversation starts afresh.", err=True)
    elif line == "/stats":
        click.echo(f"last answer: {conversation.last}", err=True)
        click.echo(f"all answers ({conversation.total.answers}): {conversation.total}", err=True)
    else:
        click.echo(f"Unknown command {line.split()[0]}; /help lists the commands.", err=True)
    return True


def _answer(conversation: Conversation, text: str) -> None:
    if not text:
        return
    try:
        reason = conversation.ask(text, _write)
    except EngineError:
        raise
    except WindlassError as error:
        click.echo(f"error: {error} (/reset starts the conversation afresh)", err=True)
        return
    click.echo()
    if reason is None:
        click.echo("(stopped)", err=True)
    elif reason == "length":
        click.echo("(cut off: the answer reached --max-tokens or the end of the context)", err=True)
