"""The sandbox in which Hugging Face chat templates run.

A template comes with the model, that is, from outside: it gets Jinja's immutable sandbox, no way to attributes of
classes, no other templates to load, and a limit on what it may write. Filters and globals are those that templates on
the Hub rely on.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from os import PathLike
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from windlass.errors import InvalidRequestError, LoadError
from windlass.text.tokenizer_facts import MARK

# Characters; far more than any context holds.
MAX_OUTPUT = 16 << 20
_MAX_REPEAT = 1 << 20
_MAX_REASON = 500
_ESCAPED_MARK = json.dumps(MARK)[1:-1]
_OLDEST_JINJA = (3, 1, 6)


class _RaisedByTemplateError(jinja2.TemplateError):
    """``raise_exception(message)`` in a template."""


class _Generation(Extension):
    """``{% generation %}...{% endgeneration %}`` marks the assistant's part for training; here it is only a scope."""

    tags = {"generation"}  # noqa: RUF012  (Jinja declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Namespace(Namespace):
    """Jinja's namespace without names that begin with an underscore."""

    def __init__(self, *args: Any, **values: Any) -> None:
        for name in dict(*args, **values):
            _check_name(name)
        super().__init__(*args, **values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise jinja2.exceptions.SecurityError("powers are not allowed in a chat template")
        for sequence, count in ((left, right), (right, left)):
            if (
                isinstance(sequence, (str, list, tuple))
                and isinstance(count, int)
                and len(sequence) * count > _MAX_REPEAT
            ):
                raise jinja2.exceptions.SecurityError("the template repeats a value too often")
        return super().call_binop(context, operator, left, right)

    def handle_exception(self, source: str | None = None) -> NoReturn:  # noqa: ARG002  (Jinja's signature)
        """Raise the exception being handled as it is.

        Jinja would rewrite its traceback into one that refers to itself, which keeps every caller's frame alive, and
        with them the engine.
        """
        raise


def _check_name(name: object) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"{name!r} is not allowed as a name in a namespace")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own filter it does not escape HTML."""
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return text.replace(_ESCAPED_MARK, MARK) if ensure_ascii else text


def _raise_exception(message: object) -> None:
    raise _RaisedByTemplateError(str(message))


def _new_dict(*args: Any, **values: Any) -> dict[Any, Any]:
    """``dict(...)`` as a function: the class itself, with its methods, is not handed to a template."""
    return dict(*args, **values)


def compile_template(
    source: str, origin: str | PathLike[str], clock: Callable[[], dt.datetime] | None
) -> jinja2.Template:
    """A template ready to render.

    Args:
        source: the Jinja source.
        origin: the file it came from, for the error.
        clock: the current local time for ``strftime_now``; None leaves that function undefined.

    Raises:
        LoadError: the source is not valid Jinja, or the installed Jinja has known holes in its sandbox.
    """
    installed = version("jinja2")
    if tuple(int(part) for part in installed.split(".")[:3] if part.isdigit()) < _OLDEST_JINJA:
        raise LoadError(origin, f"chat templates need jinja2 3.1.6 or newer, but {installed} is installed")
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"], cache_size=0
    )
    environment.filters["tojson"] = _tojson
    environment.globals.pop("lipsum", None)
    environment.globals.update(raise_exception=_raise_exception, namespace=_Namespace, dict=_new_dict)
    if clock is not None:
        environment.globals["strftime_now"] = lambda form: clock().strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise LoadError(origin, f"the chat template is not valid, line {error.lineno}: {error.message}") from error
    except (RecursionError, ValueError, OverflowError) as error:
        raise LoadError(origin, f"the chat template cannot be compiled ({type(error).__name__})") from error


def render_template(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    """The rendered text.

    Raises:
        InvalidRequestError: the template rejects the messages, fails on them, or writes more than ``MAX_OUTPUT``.
    """
    pieces: list[str] = []
    size = 0
    try:
        for piece in template.generate(**variables):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_OUTPUT:
                break
    except MemoryError:
        raise
    except Exception as error:
        raise InvalidRequestError(_reason(error), param="messages") from error
    if size > MAX_OUTPUT:
        raise InvalidRequestError(f"the prompt is longer than {MAX_OUTPUT} characters", param="messages")
    return "".join(pieces)


def _reason(error: Exception) -> str:
    if isinstance(error, _RaisedByTemplateError):
        return f"the model's chat template rejects the messages: {str(error.message)[:_MAX_REASON]}"
    # Jinja's own messages name only fields; those of other exceptions may hold anything and stay in __cause__.
    if isinstance(error, jinja2.TemplateError):
        return f"the model's chat template fails on these messages: {str(error.message)[:_MAX_REASON]}"
    return f"the model's chat template fails on these messages ({type(error).__name__})"
