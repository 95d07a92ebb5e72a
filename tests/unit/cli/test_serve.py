"""``windlass serve``: what its options mean, each also from the environment, without starting a server."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import pytest

from windlass.cli import main
from windlass.cli.serve import serve
from windlass.server import run
from windlass.server.served import ModelSpec
from windlass.server.settings import ServerSettings

Plan = tuple[list[ModelSpec], ServerSettings]

VALUES = {
    "host": "127.0.0.2",
    "port": "8123",
    "model_name": "mine",
    "additional_models": "other=some/where",
    "lora_modules": "sql=some/where",
    "allow_lora_updates": True,
    "api_key": "sk-1",
    "api_key_file": None,  # a file of the test
    "insecure": True,
    "allowed_host": "example.org",
    "cors_origin": "https://example.org",
    "open_metrics": True,
    "max_body_size": "1000",
    "max_bodies_size": "2000",
    "max_header_size": "3000",
    "max_connections": "7",
    "max_queue": "5",
    "max_queue_tokens": "500",
    "drain_timeout": "1.5",
    "failure_grace": "2.5",
    "stall_timeout": "3.5",
    "send_timeout": "4.5",
    "header_timeout": "5.5",
    "body_timeout": "6.5",
    "upload_timeout": "7.5",
    "keep_alive_timeout": "8.5",
    "quantization": "q4f16_1",
    "load_format": "dummy",
    "no_pack_cache": True,
    "mode": "local",
    "memory": "0.25",
    "context": "128",
    "max_sequences": "3",
    "kv_cache_tokens": "256",
    "kv_cache_dtype": "int8",
    "prefix_cache": "disable",
    "speculative_mode": "disable",
    "draft_model": "some/draft",
    "threads": "1",
    "kernels": "portable",
    "device": "cpu",
    "log_level": "error",
    "log_format": "json",
    "enable_debug": True,
    "enable_tracing": True,
}
OPTIONS = [parameter for parameter in serve.params if isinstance(parameter, click.Option)]
# What these do is not part of the plan; the log has tests of its own.
LOG = {"log_level", "log_format"}


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """What the server would be started with."""
    for name in ("MODEL", *(parameter.name.upper() for parameter in OPTIONS if parameter.name)):
        monkeypatch.delenv(f"WINDLASS_SERVE_{name}", raising=False)
    plans: list[Plan] = []

    def note(specs: Sequence[ModelSpec], settings: ServerSettings, **_: Any) -> int:
        plans.append((list(specs), settings))
        return 0

    monkeypatch.setattr(run, "serve", note)

    def make(*arguments: str) -> Plan:
        assert main(["serve", *arguments]) == 0
        return plans.pop()

    return make


def test_every_option_has_a_value_here() -> None:
    assert {option.name for option in OPTIONS} == VALUES.keys()
    assert all(option.show_envvar and option.help for option in OPTIONS)


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_an_option_and_its_variable_do_the_same(
    plan: Callable[..., Plan], option: click.Option, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = option.name or ""
    value = VALUES[name]
    if name == "api_key_file":
        value = str(tmp_path / "keys")
        Path(value).write_text("sk-2\n\nsk-3\n")
    before = plan()
    flag = option.opts[0]
    given = plan(flag) if value is True else plan(flag, str(value))
    if name not in LOG:
        assert given != before
    monkeypatch.setenv(f"WINDLASS_SERVE_{name.upper()}", "1" if value is True else str(value))
    assert plan() == given


def test_every_variable_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for option in OPTIONS:
        assert f"WINDLASS_SERVE_{(option.name or '').upper()}" in text.replace("- ", "-")


def test_the_model_and_its_names(plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    [demo], _ = plan()
    assert (demo.name, demo.config.model, demo.config.mode, demo.aliases) == ("windlass-demo", None, "server", ())
    [named], _ = plan("--model-name", "gpt-9")
    assert (named.name, named.aliases) == ("gpt-9", ("windlass-demo",))
    [local], _ = plan("/models/Some-1B/")
    assert (local.name, local.aliases) == ("Some-1B", ("/models/Some-1B/",))
    [remote], _ = plan("HF://org/Some-1B")
    assert (remote.name, remote.aliases) == ("org/Some-1B", ("HF://org/Some-1B",))
    monkeypatch.setenv("WINDLASS_SERVE_MODEL", "/models/Some-1B")
    [from_environment], _ = plan()
    assert from_environment.config.model == "/models/Some-1B"


def test_several_models(plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    specs, _ = plan(
        "a/first", "--additional-models", "b/second", "--additional-models", "third=c/x=y", "--threads", "1"
    )
    assert [(spec.name, spec.config.model) for spec in specs] == [
        ("first", "a/first"),
        ("second", "b/second"),
        ("third", "c/x=y"),
    ]
    assert all(spec.config.num_threads == 1 for spec in specs)
    # Together they plan for as much memory as one would.
    assert sum(spec.config.gpu_memory_utilization for spec in specs) == pytest.approx(0.85)
    given, _ = plan("a/first", "--additional-models", "b/second", "--memory", "0.4")
    assert [spec.config.gpu_memory_utilization for spec in given] == [0.4, 0.4]
    monkeypatch.setenv("WINDLASS_SERVE_ADDITIONAL_MODELS", "b/second third=c/x")
    from_environment, _ = plan("a/first")
    assert [spec.name for spec in from_environment] == ["first", "second", "third"]


def test_the_draft_model_is_that_of_the_first(plan: Callable[..., Plan]) -> None:
    specs, _ = plan("a/first", "--draft-model", "a/small", "--additional-models", "b/second")
    assert [(spec.config.speculative_mode, spec.config.draft_model) for spec in specs] == [
        ("small_draft", "a/small"),
        ("ngram", None),
    ]


def test_keys_come_from_all_sides(plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("sk-3\nsk-4")
    monkeypatch.setenv("WINDLASS_SERVE_API_KEY", "sk-1 sk-2")
    _, settings = plan("--api-key-file", str(tmp_path / "keys"), "--host", "0.0.0.0")  # noqa: S104
    assert settings.api_keys == ("sk-1", "sk-2", "sk-3", "sk-4")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "give an API key"),  # noqa: S104
        (["--port", "99999"], "not in the range"),
        (["--quantization", "q9"], "'q9' is not one of"),
        (["--additional-models", "=x"], "NAME=MODEL"),
        (["--speculative-mode", "small_draft"], "--draft-model"),
        (["--draft-model", "x", "--speculative-mode", "ngram"], "go together"),
        (["--drain-timeout", "-1"], "drain_timeout"),
        (["--context", "64", "--kv-cache-tokens", "32"], "is larger than"),
        (["--cors-origin", "*"], "cors_origins"),
        (["--no-such-flag"], "No such option"),
    ],
)
@pytest.mark.usefixtures("plan")
def test_wrong_usage_is_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_without_the_extra_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("windlass.server.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve"]) == 1
    assert capsys.readouterr().err == (
        "error: the server needs more packages (uvicorn is missing): pip install 'windlass[server]'\n"
    )
