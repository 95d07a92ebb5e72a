"""``windlass serve``: an OpenAI-compatible server."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, get_args

import click

from windlass.cli.options import check_quantization, complete_models
from windlass.config import EngineConfig, KVCacheDtype, LoadFormat, Mode, PrefixCacheMode, SpeculativeMode
from windlass.server.logs import FORMATS, LEVELS, logging_to
from windlass.server.signals import Signals

if TYPE_CHECKING:
    from windlass.server.served import ModelSpec
    from windlass.server.settings import ServerSettings

log = logging.getLogger("windlass.server")

# Option of the command -> field of EngineConfig.
_ENGINE_FIELDS = {
    "mode": "mode",
    "quantization": "quantization",
    "load_format": "load_format",
    "context": "max_single_sequence_length",
    "max_sequences": "max_num_sequence",
    "max_queue": "max_waiting_requests",
    "max_queue_tokens": "max_waiting_tokens",
    "kv_cache_tokens": "max_total_sequence_length",
    "kv_cache_dtype": "kv_cache_dtype",
    "memory": "gpu_memory_utilization",
    "prefix_cache": "prefix_cache_mode",
    "speculative_mode": "speculative_mode",
    "threads": "num_threads",
    "kernels": "kernels",
}

# Option of the command -> field of ServerSettings.
_SERVER_FIELDS = {
    "host": "host",
    "port": "port",
    "insecure": "insecure",
    "allowed_host": "allowed_hosts",
    "cors_origin": "cors_origins",
    "max_body_size": "max_body_bytes",
    "max_bodies_size": "max_bodies_bytes",
    "drain_timeout": "drain_timeout",
    "failure_grace": "failure_grace",
    "stall_timeout": "stall_timeout",
    "send_timeout": "send_timeout",
    "header_timeout": "header_timeout",
    "body_timeout": "body_timeout",
    "upload_timeout": "upload_timeout",
    "keep_alive_timeout": "keep_alive_timeout",
    "max_connections": "max_connections",
    "max_header_size": "max_header_bytes",
    "open_metrics": "open_metrics",
    "enable_debug": "enable_debug",
    "allow_lora_updates": "allow_lora_updates",
}


def _option(*names: str, **settings: Any) -> Callable[[Callable[..., int]], Callable[..., int]]:
    return click.option(*names, show_envvar=True, **settings)


@click.command(context_settings={"auto_envvar_prefix": "WINDLASS_SERVE", "show_default": True})
@click.argument("model", required=False, envvar="WINDLASS_SERVE_MODEL", shell_complete=complete_models)
@_option("--host", default="127.0.0.1", help="Address to listen on.")
@_option("--port", default=8000, type=click.IntRange(0, 65535), help="Port to listen on; 0 takes a free one.")
@_option("--model-name", metavar="NAME", help="What requests call MODEL; by default the last part of its path.")
@_option(
    "--additional-models",
    metavar="[NAME=]MODEL",
    multiple=True,
    help="Serve this model too; may be given several times.",
)
@_option(
    "--lora-modules", metavar="NAME=PATH", multiple=True, help="LoRA adapter of MODEL; may be given several times."
)
@_option("--allow-lora-updates", is_flag=True, help="Serve routes that load and unload LoRA adapters.")
@_option("--api-key", metavar="KEY", multiple=True, help="A key that opens all routes; safer in the environment.")
@_option("--api-key-file", type=click.Path(exists=True, dir_okay=False), help="File with one API key per line.")
@_option("--insecure", is_flag=True, help="Serve a host that other machines reach without a key.")
@_option("--allowed-host", metavar="NAME", multiple=True, help="Another name that the Host header may say.")
@_option("--cors-origin", metavar="ORIGIN", multiple=True, help="Origin of pages that may call; none by default.")
@_option("--open-metrics", is_flag=True, help="Let /metrics be read without a key.")
@_option("--max-body-size", type=click.IntRange(min=1), default=4 << 20, help="Most bytes of a request's body.")
@_option("--max-bodies-size", type=click.IntRange(min=1), default=64 << 20, help="Most bytes of all large bodies.")
@_option("--max-header-size", type=click.IntRange(min=1), default=16384, help="Most bytes of a request's head.")
@_option("--max-connections", type=click.IntRange(min=1), default=1000, help="Connections at a time.")
@_option("--max-queue", type=click.IntRange(min=1), help="Requests that may wait; beyond it they get 429.")
@_option("--max-queue-tokens", type=click.IntRange(min=1), help="Prompt tokens that may wait; beyond it they get 429.")
@_option("--drain-timeout", default=30.0, help="Seconds that open requests get after the first signal.")
@_option("--failure-grace", default=5.0, help="Seconds between a failure of the engine and the exit.")
@_option("--stall-timeout", default=10.0, help="Seconds without progress after which /livez says so.")
@_option("--send-timeout", default=30.0, help="Seconds that a client may leave what it was sent unread.")
@_option("--header-timeout", default=10.0, help="Seconds that a client may take to send the head of a request.")
@_option("--body-timeout", default=10.0, help="Seconds that a client may be silent while it sends a body.")
@_option("--upload-timeout", default=120.0, help="Seconds that a client may take to send a body.")
@_option("--keep-alive-timeout", default=30.0, help="Seconds that a connection stays open between two requests.")
@_option("--quantization", metavar="NAME", callback=check_quantization, help="Quantize while loading, e.g. to q4f16_1.")
@_option("--load-format", type=click.Choice(get_args(LoadFormat)), help="dummy: random weights from the config.")
@_option("--no-pack-cache", is_flag=True, help="Neither use nor keep a file of packed weights.")
@_option("--mode", type=click.Choice(get_args(Mode)), default="server", help="Memory to plan for.")
@_option("--memory", type=click.FloatRange(0, 1, min_open=True), help="Share of the free memory that a model takes.")
@_option("--context", type=click.IntRange(min=1), help="Longest sequence in tokens.")
@_option("--max-sequences", type=click.IntRange(min=1), help="Sequences that run at the same time.")
@_option("--kv-cache-tokens", type=click.IntRange(min=1), help="Capacity of the KV cache in tokens.")
@_option("--kv-cache-dtype", type=click.Choice(get_args(KVCacheDtype)), help="Type of the KV cache.")
@_option("--prefix-cache", type=click.Choice(get_args(PrefixCacheMode)), help="Keep what prompts have in common.")
@_option("--speculative-mode", type=click.Choice(get_args(SpeculativeMode)), help="How to guess tokens ahead.")
@_option("--draft-model", metavar="MODEL", help="Smaller model that guesses for MODEL.")
@_option("--threads", type=click.IntRange(min=1), help="Threads that compute.")
@_option("--kernels", metavar="NAME", help="Instruction set, one of those that windlass doctor lists.")
@_option("--device", default="auto", help="Where to run.")
@_option("--log-level", type=click.Choice(LEVELS), default="info", help="Least to log.")
@_option("--log-format", type=click.Choice(FORMATS), default="text", help="What a line of the log looks like.")
@_option("--enable-debug", is_flag=True, help="Serve /debug routes and take debug_config.")
@_option("--enable-tracing", is_flag=True, help="Record what happens, for /debug/dump_event_trace.")
def serve(model: str | None, **options: Any) -> int:
    """Serve MODEL over HTTP.

    MODEL is a path, a name that `windlass list` shows, or HF://org/name; without it, the bundled demo model. Every
    option can be set in the environment too; several values are separated by spaces there.
    """
    with Signals(process_ends=bool(click.get_current_context().obj)) as signals:
        return _serve(model, options, signals)


def _serve(model: str | None, options: dict[str, Any], signals: Signals) -> int:
    # Imported late: it takes a while, and other commands need not wait for it.
    try:
        from windlass.server.run import serve as run
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"the server needs more packages ({error.name} is missing): pip install 'windlass[server]'"
        ) from error

    try:
        settings = _settings(options)
        specs = _specs(model, options)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    announcer = _Announcer(settings, specs, as_log=options["log_format"] == "json")
    with logging_to(sys.stderr, options["log_level"], options["log_format"]):
        try:
            return run(specs, settings, signals=signals, started=announcer.started, ready=announcer.ready)
        except ValueError as error:
            raise click.ClickException(str(error)) from error


class _Announcer:
    """Says where the server is and when it is ready: to people, or as lines of a log that programs read."""

    def __init__(self, settings: ServerSettings, specs: Sequence[ModelSpec], *, as_log: bool) -> None:
        self._host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self._names = [spec.name for spec in specs]
        self._as_log = as_log

    def started(self, port: int) -> None:
        """The port is open."""
        url = f"http://{self._host}:{port}"
        if self._as_log:
            log.info("listening", extra={"fields": {"url": url, "models": self._names}})
        else:
            click.echo(f"windlass listens on {url} (page at {url}/) and loads {', '.join(self._names)}", err=True)

    def ready(self) -> None:
        """All models are loaded."""
        if self._as_log:
            log.info("ready")
        else:
            click.echo("windlass is ready", err=True)


def _settings(options: dict[str, Any]) -> ServerSettings:
    from windlass.server.settings import ServerSettings

    fields = {field: options[option] for option, field in _SERVER_FIELDS.items()}
    return ServerSettings(**fields, api_keys=(*options["api_key"], *_read_keys(options["api_key_file"])))


def _specs(model: str | None, options: dict[str, Any]) -> list[ModelSpec]:
    """Return the models to serve, the default one first."""
    from windlass.server.served import ModelSpec, default_name

    fields = {field: options[option] for option, field in _ENGINE_FIELDS.items() if options[option] is not None}
    fields["pack_cache"] = not options["no_pack_cache"]
    given = [(options["model_name"], model), *map(_name_and_model, options["additional_models"])]
    if options["memory"] is None:
        # Each engine plans for what is free when it starts, of which it then touches only what requests need.
        fields["gpu_memory_utilization"] = EngineConfig.gpu_memory_utilization / len(given)
    adapters = _adapters(options["lora_modules"])
    specs = []
    for number, (name, path) in enumerate(given):
        own = default_name(path)
        chosen = name or own
        specs.append(
            ModelSpec(
                chosen,
                EngineConfig(
                    model=path,
                    adapters=adapters if number == 0 else None,
                    **_drafting(fields, options["draft_model"], is_first=number == 0),
                ),
                options["device"],
                aliases=tuple(alias for alias in (own, path) if alias and alias != chosen),
                enable_tracing=options["enable_tracing"],
            )
        )
    return specs


def _drafting(fields: dict[str, Any], draft: str | None, *, is_first: bool) -> dict[str, Any]:
    """Return the fields of a model's config: the draft model is that of the first one, whose vocabulary it has."""
    mode = fields.get("speculative_mode", EngineConfig.speculative_mode if draft is None else "small_draft")
    if (mode == "small_draft") != (draft is not None):
        raise ValueError("--speculative-mode small_draft and --draft-model go together")
    if not is_first:
        return {**fields, "speculative_mode": EngineConfig.speculative_mode if mode == "small_draft" else mode}
    return {**fields, "speculative_mode": mode, "additional_models": () if draft is None else (draft,)}


def _adapters(given: Sequence[str]) -> dict[str, str] | None:
    """Return the adapters of the first model; names are checked where they are used."""
    adapters: dict[str, str] = {}
    for one in given:
        name, sign, path = one.partition("=")
        if not sign or not path:
            raise ValueError(f"--lora-modules must be NAME=PATH, not {one!r}")
        if name in adapters:
            raise ValueError(f"--lora-modules has the name {name!r} twice")
        adapters[name] = path
    return adapters or None


def _name_and_model(given: str) -> tuple[str | None, str]:
    """Split ``NAME=MODEL``; a path may have the sign too, but not before its first slash."""
    name, sign, path = given.partition("=")
    if not sign or "/" in name:
        return None, given
    if not name or not path:
        raise ValueError(f"--additional-models must be MODEL or NAME=MODEL, not {given!r}")
    return name, path


def _read_keys(path: str | None) -> tuple[str, ...]:
    if path is None:
        return ()
    with click.open_file(path, encoding="utf-8") as lines:
        keys = tuple(line.strip() for line in lines if line.strip())
    if not keys:
        raise ValueError(f"{path} has no API key")
    return keys
