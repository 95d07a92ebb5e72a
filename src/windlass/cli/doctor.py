"""``windlass doctor``: what this machine has, what Windlass makes of it, and what is wrong."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from windlass import __version__, machine
from windlass.config import default_threads, model_roots
from windlass.demo import model_directory

PACKAGES = ("click", "huggingface_hub", "jinja2", "numpy", "pydantic", "rich", "tokenizers")
OPTIONAL = {"huggingface_hub"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def doctor(as_json: bool) -> int:
    """Show processor, kernels, threads, memory, versions and the models found; exit with 1 if something is wrong."""
    findings = examine()
    click.echo(json.dumps(findings, indent=2) if as_json else describe(findings))
    return 1 if findings["problems"] else 0


def examine() -> dict[str, Any]:
    """Return everything that ``windlass doctor`` shows. Sizes are bytes; None means that it is not known, or no limit.

    A part that fails becomes a line of ``problems`` and does not hide the others.
    """
    problems: list[str] = []
    return {
        "windlass": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "packages": _packages(problems),
        "cpu": {"name": machine.processor_name(), "limit_cores": machine.cpu_limit(), **_native(problems)},
        "memory": {
            "total": machine.total_bytes(),
            "available": machine.available_bytes(),
            "limit": machine.memory_limit(),
        },
        "demo_model": _demo_model(problems),
        "models": _models(problems),
        "problems": problems,
    }


def _packages(problems: list[str]) -> dict[str, str | None]:
    packages: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
            if name not in OPTIONAL:
                problems.append(f"the package {name} is not installed")
    return packages


def _native(problems: list[str]) -> dict[str, Any]:
    """What the compiled module says about the processor."""
    try:
        from windlass.native import cpu_info
    except ImportError as error:
        problems.append(f"the compiled module does not load: {error}")
        return {"features": None, "kernels": None, "kernels_chosen": None, "threads": None}
    info = cpu_info()
    threads = info.default_threads
    try:
        threads = default_threads() or threads
    except ValueError as error:
        problems.append(str(error))
    return {
        "features": list(info.features),
        "kernels": list(info.kernels),
        "kernels_chosen": info.kernels[-1],
        "threads": threads,
    }


def _demo_model(problems: list[str]) -> str | None:
    path = model_directory()
    if not (path / "config.json").is_file():
        problems.append(f"the demo model is missing: {path}")
        return None
    return str(path)


def _models(problems: list[str]) -> list[dict[str, Any]]:
    try:
        from windlass.weights.stored_models import find_models
    except ImportError as error:
        problems.append(f"models are not looked for: {error}")
        return []
    return [
        {"name": model.name, "path": str(model.path), "kind": model.kind, "num_bytes": model.num_bytes}
        for model in find_models(model_roots())
    ]


def describe(findings: dict[str, Any]) -> str:
    """Return the findings as text, one line each."""
    cpu, memory = findings["cpu"], findings["memory"]
    packages = ", ".join(f"{name} {found or 'not installed'}" for name, found in findings["packages"].items())
    limits = [
        f"{cpu['limit_cores']:g} cores" if cpu["limit_cores"] is not None else "",
        f"{_gib(memory['limit'])} of memory" if memory["limit"] is not None else "",
    ]
    rows = [
        ("windlass", findings["windlass"]),
        ("python", findings["python"]),
        ("platform", findings["platform"]),
        ("packages", packages),
        ("processor", cpu["name"]),
        ("features", _listed(cpu["features"])),
        ("kernels", f"{_listed(cpu['kernels'])} (chosen: {cpu['kernels_chosen'] or 'unknown'})"),
        ("threads", cpu["threads"] or "unknown"),
        ("memory", f"{_gib(memory['total'])}, available {_gib(memory['available'])}"),
        ("limits", " and ".join(filter(None, limits)) or "none"),
        ("demo model", findings["demo_model"] or "missing"),
        *(("model", f"{model['path']} ({model['kind']}, {_gib(model['num_bytes'])})") for model in findings["models"]),
        *(("PROBLEM", problem) for problem in findings["problems"]),
    ]
    return "\n".join(f"{name:<12}{value}" for name, value in rows)


def _listed(names: list[str] | None) -> str:
    return "unknown" if names is None else " ".join(names) or "none"


def _gib(num_bytes: int | None) -> str:
    return "unknown" if num_bytes is None else f"{num_bytes / 2**30:.2f} GiB"
