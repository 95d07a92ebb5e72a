"""What the routes tell the OpenAPI document: their bodies, the events of their streams, their errors, who may call.

A route that reads its own body says so with ``openapi_extra=request_body(ItsTypedDict)``; one that may answer with a
stream adds ``event_stream(ItsEvent)`` to its ``responses``, beside what ``errors()`` gives.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, cast

from pydantic import BaseModel, TypeAdapter

from windlass.server.settings import ServerSettings

_REF = "#/components/schemas/{model}"
_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer KEY`"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "`x-api-key: KEY`"},
}


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """OpenAI's error body, the same on every route and status."""

    error: ErrorDetail


_DESCRIPTIONS = {
    400: "The request is not valid; `param` names the field.",
    401: "No valid API key.",
    403: "The Host header names no host of this server.",
    404: "There is no such model, or no such route.",
    408: "The request did not come in time.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "Too many requests wait; `Retry-After` says when to try again.",
    431: "The headers are too large.",
    500: "The server failed.",
    503: "The model is loading, the server has too much to do or is shutting down, or its engine failed.",
    504: "The request's own `timeout` is over.",
}
_ANYWHERE = (400, 401, 403, 408, 431, 500, 503)
_BODY = (413, 415, 429)
_REFUSAL = {"content": {"application/json": {"schema": {"$ref": _REF.format(model="ErrorBody")}}}}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the ``responses`` of a route that may fail with ``statuses``, besides what every route may."""
    chosen = sorted({*_ANYWHERE, *statuses})
    return {status: {"model": ErrorBody, "description": _DESCRIPTIONS[status]} for status in chosen}


GENERATION_ERRORS = errors(404, 413, 415, 429, 504)
"""How a route that has a model generate may fail."""


def request_body(
    kind: type,
    *,
    without: Iterable[str] = (),
    ignored: Iterable[str] = (),
    streams: bool = False,
    example: Any = None,
) -> dict[str, Any]:
    """Return the ``openapi_extra`` of a route whose body is a ``kind``: a TypedDict, or a model of pydantic's.

    The document describes each field with the docstring that follows it in the source.

    Args:
        without: fields of ``kind`` that a body may not have.
        ignored: further fields that are taken and change nothing.
        streams: whether there is a field ``stream``.
        example: a body.
    """
    schema = TypeAdapter(kind).json_schema(ref_template=_REF)
    properties = schema["properties"]
    for name in without:
        properties.pop(name, None)
    if streams:
        properties["stream"] = {
            "anyOf": [{"type": "boolean"}, {"type": "null"}],
            "description": "Answer with server-sent events.",
        }
    for name in sorted(ignored):
        properties[name] = {"description": "Accepted for compatibility; not used."}
    for name, text in _field_docstrings(kind).items():
        if name in properties:
            properties[name].setdefault("description", text)
    content: dict[str, Any] = {"schema": schema}
    if example is not None:
        content["example"] = example
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def event_stream(kind: Any, *, ends_with_done: bool = False) -> dict[str, Any]:
    """Return the response of a route that may answer with server-sent events whose data are JSON of a ``kind``.

    It goes by ``itemSchema`` as OpenAPI 3.2 has it.

    Args:
        kind: of each event, that of a failure included.
        ends_with_done: whether the data of the last event are ``[DONE]``, unless the answer failed.
    """
    schema = TypeAdapter(kind).json_schema(ref_template=_REF, mode="serialization")
    data: dict[str, Any] = {"contentMediaType": "application/json", "contentSchema": schema}
    if ends_with_done:
        data = {"anyOf": [data, {"const": "[DONE]"}]}
    item = {
        "type": "object",
        "properties": {"data": {"type": "string", **data}, "event": {"type": "string"}},
        "required": ["data"],
    }
    return {"content": {"text/event-stream": {"itemSchema": item}}}


def finish(document: dict[str, Any], settings: ServerSettings, open_paths: Iterable[str]) -> dict[str, Any]:
    """Make what FastAPI generates whole and true.

    Args:
        document: changed in place, and returned.
        open_paths: those of routes that need no key.
    """
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    _hoist(document["paths"], schemas)
    for operation in _operations(document):
        responses = operation["responses"]
        responses.pop("422", None)  # FastAPI's way; here it is a 400
        for status in (*_ANYWHERE, *(_BODY if "requestBody" in operation else ())):
            responses.setdefault(str(status), {"description": _DESCRIPTIONS[status], **_REFUSAL})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    components["schemas"] = dict(sorted(schemas.items()))
    if settings.api_keys:
        components["securitySchemes"] = _SECURITY
        document["security"] = [{name: []} for name in _SECURITY]
        for path in document["paths"].keys() & set(open_paths):
            for operation in document["paths"][path].values():
                operation["security"] = []
    return document


def _operations(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for path in document["paths"].values() for operation in path.values()]


def _hoist(node: Any, schemas: dict[str, Any]) -> None:
    """Move the ``$defs`` of every schema below ``node``, and each schema of a body, to where references find them."""
    if isinstance(node, list):
        for one in node:
            _hoist(one, schemas)
    if not isinstance(node, dict):
        return
    for name, schema in node.pop("$defs", {}).items():
        schemas.setdefault(name, schema)
    for name, child in node.items():
        _hoist(child, schemas)
        title = child.get("title") if name in ("schema", "contentSchema") and isinstance(child, dict) else None
        if title is not None and title.isidentifier():
            schemas.setdefault(title, child)
            node[name] = {"$ref": _REF.format(model=title)}


def _field_docstrings(kind: type) -> dict[str, str]:
    """Return what stands below the fields of ``kind`` in its source, and of what it is derived from."""
    found: dict[str, str] = {}
    for base in getattr(kind, "__orig_bases__", kind.__bases__):
        if isinstance(base, type) and base.__module__.startswith("windlass."):
            found.update(_field_docstrings(base))
    body = cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]).body
    for field, text in pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            found[field.target.id] = inspect.cleandoc(str(text.value.value))
    return found
