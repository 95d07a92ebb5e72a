"""OpenAI's description of its API, as a judge of what a server answers."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jsonschema
import yaml


class OpenAISchema:
    """The schemas of ``openapi.yaml``, by name."""

    def __init__(self, path: Path) -> None:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        self._document = yaml.load(path.read_bytes(), loader)  # noqa: S506  (both are safe loaders)
        _allow_null(self._document)

    def check(self, name: str, value: Any) -> None:
        """Raise jsonschema.ValidationError where ``value`` is not what the schema of that name says."""
        schema = {**self._document, "$ref": f"#/components/schemas/{name}"}
        jsonschema.Draft202012Validator(schema).validate(value)

    def fields(self, name: str) -> set[str]:
        """The fields that an object of the schema of that name may have."""
        return self._fields({"$ref": f"#/components/schemas/{name}"})

    def _fields(self, schema: dict[str, Any]) -> set[str]:
        if "$ref" in schema:
            schema = self._document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return set(schema.get("properties", ())).union(*map(self._fields, schema.get("allOf", ())))


def _allow_null(node: Any) -> None:
    """Write ``nullable`` of OpenAPI 3.0, which OpenAI's document goes on to use, as JSON Schema does."""
    if isinstance(node, dict) and node.get("nullable") is True and isinstance(node.get("type"), str):
        node["type"] = [node["type"], "null"]
        if "enum" in node:
            node["enum"] = [*node["enum"], None]
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _allow_null(child)


@functools.cache
def openai_schema(data_dir: Path) -> OpenAISchema:
    """The schemas in the directory of test data; reading them takes seconds, so it is done once."""
    return OpenAISchema(data_dir / "openai" / "openapi.yaml")
