"""``windlass serve``: an OpenAI-compatible server."""

from __future__ import annotations

from typing import Any

import click

from windlass.cli.options import check_quantization
from windlass.config import EngineConfig
from windlass.server.signals import Signals


@click.command(context_settings={"auto_envvar_prefix": "WINDLASS_SERVE", "show_default": True})
@click.argument("model", required=False)
@click.option("--host", default="127.0.0.1", show_envvar=True, help="Address to listen on.")
@click.option("--port", default=8000, type=click.IntRange(0, 65535), help="Port to listen on; 0 takes a free one.")
@click.option("--api-key-file", type=click.Path(exists=True, dir_okay=False), help="File with one API key per line.")
@click.option("--insecure", is_flag=True, help="Serve a host that other machines reach without a key.")
@click.option("--drain-timeout", default=30.0, help="Seconds that open requests get after the first signal.")
@click.option("--failure-grace", default=5.0, help="Seconds between a failure of the engine and the exit.")
@click.option("--max-queue", type=click.IntRange(min=1), help="Requests that may wait; beyond it they get 429.")
@click.option(
    "--quantization", metavar="NAME", callback=check_quantization, help="Quantize while loading, e.g. to q4f16_1."
)
@click.option("--load-format", type=click.Choice(["auto", "dummy"]), help="dummy: random weights from the config.")
@click.option("--no-pack-cache", is_flag=True, help="Neither use nor keep a file of packed weights.")
@click.option("--context", type=click.IntRange(min=1), help="Longest sequence in tokens.")
@click.option("--max-sequences", type=click.IntRange(min=1), help="Sequences that run at the same time.")
@click.option(
    "--kv-cache-dtype", type=click.Choice(["auto", "f32", "f16", "bf16", "int8"]), help="Type of the KV cache."
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads that compute.")
@click.option("--device", default="auto", help="Where to run.")
@click.option(
    "--mode", type=click.Choice(["local", "interactive", "server"]), default="server", help="Memory to plan for."
)
@click.option("--enable-debug", is_flag=True, help="Serve /debug routes and take debug_config.")
def serve(model: str | None, **options: Any) -> int:
    """Serve MODEL over HTTP: a directory, HF://org/name, or nothing for the bundled demo model."""
    with Signals() as signals:
        return _serve(model, options, signals)


def _serve(model: str | None, options: dict[str, Any], signals: Signals) -> int:
    # Imported late: it takes a while, and other commands need not wait for it.
    try:
        from windlass.server.run import serve as run
        from windlass.server.served import ModelSpec, default_name
        from windlass.server.settings import ServerSettings
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"the server needs more packages ({error.name} is missing): pip install 'windlass[server]'"
        ) from error

    try:
        settings = ServerSettings(
            host=options["host"],
            port=options["port"],
            api_keys=_read_keys(options["api_key_file"]),
            insecure=options["insecure"],
            drain_timeout=options["drain_timeout"],
            failure_grace=options["failure_grace"],
            enable_debug=options["enable_debug"],
        )
        spec = ModelSpec(default_name(model), _engine_config(model, options), options["device"])
    except ValueError as error:
        raise click.UsageError(str(error)) from error

    def started(port: int) -> None:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        click.echo(f"windlass listens on http://{host}:{port} and loads {spec.name}", err=True)

    def ready() -> None:
        click.echo("windlass is ready", err=True)

    try:
        return run([spec], settings, signals=signals, started=started, ready=ready)
    except ValueError as error:
        raise click.ClickException(str(error)) from error


def _engine_config(model: str | None, options: dict[str, Any]) -> EngineConfig:
    fields = {
        "model": model,
        "mode": options["mode"],
        "quantization": options["quantization"],
        "load_format": options["load_format"],
        "max_single_sequence_length": options["context"],
        "max_num_sequence": options["max_sequences"],
        "max_waiting_requests": options["max_queue"],
        "kv_cache_dtype": options["kv_cache_dtype"],
        "num_threads": options["threads"],
        "pack_cache": not options["no_pack_cache"],
    }
    return EngineConfig(**{name: value for name, value in fields.items() if value is not None})


def _read_keys(path: str | None) -> tuple[str, ...]:
    if path is None:
        return ()
    with click.open_file(path, encoding="utf-8") as lines:
        keys = tuple(line.strip() for line in lines if line.strip())
    if not keys:
        raise ValueError(f"{path} has no API key")
    return keys
