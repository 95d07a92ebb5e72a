"""Dockerfile and Kubernetes manifest: what they say of the server is true of it, and their times agree."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.server import serving
from windlass.cli.serve import serve
from windlass.server.guard import open_paths
from windlass.server.run import END_SECONDS
from windlass.server.settings import ServerSettings

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = "WINDLASS_SERVE_"
OPTIONS = {name: option for option in serve.params for name in option.opts}
VARIABLES = {ENVIRONMENT + (option.name or "").upper() for option in serve.params}


@pytest.fixture(scope="module")
def dockerfile() -> list[tuple[str, str]]:
    """(instruction, the rest) of each, with continued lines joined."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = (line for line in text.split("\n") if not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.split("\n") if line)]


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    documents = yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text(encoding="utf-8"))
    return {document["kind"]: document for document in documents}


@pytest.fixture(scope="module")
def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    template: dict[str, Any] = manifest["Deployment"]["spec"]["template"]["spec"]
    return template


@pytest.fixture(scope="module")
def container(pod: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod["containers"]
    return dict(only)


def image(dockerfile: list[tuple[str, str]]) -> dict[str, str]:
    """The last word of each instruction of the last stage."""
    last = max(place for place, (word, _) in enumerate(dockerfile) if word == "FROM")
    return dict(dockerfile[last:])


def variables(dockerfile: list[tuple[str, str]]) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in image(dockerfile)["ENV"].split())


def check_flags(words: Iterable[str]) -> dict[str, str]:
    """The flags with their values; all of them exist, and take these."""
    given = list(words)
    serve.make_context("serve", [*given, "--insecure"])
    return dict(zip(given[::2], given[1::2], strict=True))


# Docker


def test_it_is_built_from_what_the_wheel_needs(dockerfile: list[tuple[str, str]]) -> None:
    copied = [words.split() for word, words in dockerfile if word == "COPY" and not words.startswith("--from")]
    sources = {source for words in copied for source in words[:-1]}
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    assert sources == kept
    assert all((ROOT / source).exists() for source in sources)
    # The same list as that of the scripts, which make a wheel too.
    script = (ROOT / "scripts" / "environment.sh").read_text(encoding="utf-8")
    listed = re.search(r"find (.*?) -type f", script)
    assert listed is not None
    assert sources == set(listed[1].split())


def test_it_runs_the_command_as_nobody_special(dockerfile: list[tuple[str, str]]) -> None:
    last = image(dockerfile)
    assert json.loads(last["ENTRYPOINT"]) == ["windlass", "serve"]
    user, _, group = last["USER"].partition(":")
    assert int(user) > 0
    assert int(group) > 0
    assert f"--uid {user} " in last["RUN"]
    assert last["STOPSIGNAL"] == "SIGTERM"


def test_its_variables_are_the_server_s(dockerfile: list[tuple[str, str]]) -> None:
    given = variables(dockerfile)
    assert {name for name in given if name.startswith(ENVIRONMENT)} <= VARIABLES
    assert given["WINDLASS_SERVE_HOST"] == "0.0.0.0"  # noqa: S104
    assert given["WINDLASS_SERVE_PORT"] == image(dockerfile)["EXPOSE"]
    volume = Path(image(dockerfile)["VOLUME"])
    for name in ("WINDLASS_CACHE_DIR", "HF_HOME"):
        assert volume in Path(given[name]).parents
    assert f"install -d -o windlass -g windlass {volume}" in image(dockerfile)["RUN"]


def test_its_examples_are_commands_that_work() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert set(re.findall(r"(?<!\S)(--[a-z-]+)", text.split("ARG")[0])) - {"--time"} <= set(OPTIONS)
    assert set(re.findall(ENVIRONMENT + r"[A-Z_]+", text)) <= VARIABLES


def test_its_health_check_tells_a_live_server_from_none(dockerfile: list[tuple[str, str]]) -> None:
    options, _, command = image(dockerfile)["HEALTHCHECK"].partition("CMD ")
    program, *arguments = json.loads(command)
    assert program == "python"

    def check(port: int) -> int:
        environment = {**os.environ, "WINDLASS_SERVE_PORT": str(port)}
        return subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, timeout=20, check=False
        ).returncode

    with serving() as server:
        assert check(server.port) == 0
        port = server.port
    assert check(port) != 0
    timeout = re.search(r"--timeout=(\d+)s", options)
    assert timeout is not None
    assert int(timeout[1]) > 4, "the probe gives up first"


# Kubernetes


def test_the_three_times_agree(pod: dict[str, Any], container: dict[str, Any]) -> None:
    command, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    drain = float(check_flags(container["args"])["--drain-timeout"])
    ends_at_the_latest = float(seconds) + drain + 2 * END_SECONDS
    assert ends_at_the_latest <= pod["terminationGracePeriodSeconds"]
    # What the comment says.
    text = (ROOT / "deploy" / "kubernetes.yaml").read_text(encoding="utf-8").split("apiVersion")[0]
    assert re.findall(r"\((\d+) s\)", text) == [seconds, f"{drain:.0f}", str(pod["terminationGracePeriodSeconds"])]
    # A pod that is not ready any more is out of the Service before preStop is over.
    probe = container["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] < float(seconds)


def test_probes_ask_open_routes(container: dict[str, Any]) -> None:
    asked = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {name: probe["path"] for name, probe in asked.items()} == {
        "startup": "/readyz",
        "readiness": "/readyz",
        "liveness": "/livez",
    }
    assert {probe["path"] for probe in asked.values()} <= open_paths(ServerSettings())
    assert {probe["port"] for probe in asked.values()} == {port["name"] for port in container["ports"]}


def test_the_container_is_confined(
    pod: dict[str, Any], container: dict[str, Any], dockerfile: list[tuple[str, str]]
) -> None:
    user, _, group = image(dockerfile)["USER"].partition(":")
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) == (int(user), int(group))
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["limits"] == container["resources"]["requests"]


def test_what_is_mounted_is_what_is_used(
    pod: dict[str, Any], container: dict[str, Any], dockerfile: list[tuple[str, str]]
) -> None:
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert set(volumes) == set(mounts)
    assert "emptyDir" in volumes["cache"]
    assert mounts["cache"]["mountPath"] == image(dockerfile)["VOLUME"]
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    assert set(environment) <= VARIABLES
    keys = Path(environment["WINDLASS_SERVE_API_KEY_FILE"])
    assert keys.parent == Path(mounts["keys"]["mountPath"])
    # The comment makes the secret with this name and key.
    text = (ROOT / "deploy" / "kubernetes.yaml").read_text(encoding="utf-8")
    assert f"secret generic {volumes['keys']['secret']['secretName']} --from-file={keys.name}=" in text
    assert volumes["keys"]["secret"]["defaultMode"] == 0o440


def test_the_service_finds_the_pods(manifest: dict[str, Any], container: dict[str, Any]) -> None:
    deployment, service = manifest["Deployment"], manifest["Service"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"] == labels
    (port,), (opened,) = service["spec"]["ports"], container["ports"]
    assert port["targetPort"] == opened["name"]
