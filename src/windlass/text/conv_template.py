"""MLC conversation templates: the ``conv_template`` of an mlc-chat-config.json."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

from windlass.errors import InvalidRequestError, LoadError
from windlass.text.conv_builtin import BUILTIN
from windlass.text.guard import guard_value, make_guard
from windlass.text.messages import Message, check_messages, check_tools, joined_text, parse_arguments, refuse_messages
from windlass.text.tokenizer import Tokenizer

_SYSTEM = "{system_message}"
_FUNCTIONS = "{function_string}"
_END_OF_REASONING = "</think>"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationTemplate:
    """A conversation template. Immutable, safe to use from many threads.

    The prompt is the system text, then for each message the role's prefix, ``role_content_sep``, the content in the
    role's template, and a separator (the second of ``seps`` after an assistant); at the end the assistant's prefix and
    ``role_empty_sep``. ``system_prefix_token_ids`` come before its token ids. The last ``{function_string}`` of the
    templates becomes the JSON of the tools, the others nothing.

    ``omit_empty_system`` is this project's own field, which others ignore: with no system message at all the system
    text is left out, as the ChatML templates of Hugging Face do.
    """

    name: str | None
    system_template: str
    system_message: str
    system_prefix_token_ids: tuple[int, ...]
    add_role_after_system_message: bool
    roles: Mapping[str, str]
    role_templates: Mapping[str, str]
    messages: tuple[tuple[str, str], ...]
    seps: tuple[str, str]
    role_content_sep: str
    role_empty_sep: str
    stop_strings: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    strip_reasoning_in_history: bool
    omit_empty_system: bool

    @classmethod
    def from_json(
        cls, data: object, *, path: str | PathLike[str] = "conv_template", tokenizer: Tokenizer | None = None
    ) -> ConversationTemplate:
        """The template that ``data`` describes, or names.

        Args:
            data: the JSON object, or the name of a common template.
            path: the file it came from, for errors.
            tokenizer: when given, a stop string that is one special token also stops by its id, since special tokens
                do not show in the text.

        Raises:
            LoadError: an unknown name or field, or a field of the wrong kind.
        """
        return _Reader(data, path).template(tokenizer)

    @property
    def thinks(self) -> bool:
        """Whether the models of this template think aloud between ``<think>`` and ``</think>``."""
        return self.strip_reasoning_in_history

    def effort_arguments(self, effort: str) -> dict[str, Any]:  # noqa: ARG002  (the face of PromptTemplate)
        """None: a conversation template takes no arguments."""
        return {}

    @property
    def supports_tools(self) -> bool:
        """Whether tools can be shown to the model."""
        return any(_FUNCTIONS in text for text in (self.system_template, *self.role_templates.values()))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **template_kwargs: Any,
    ) -> str:
        """The prompt as text, without ``system_prefix_token_ids``.

        Raises:
            InvalidRequestError: a role that the template does not know, content that is not text, tools for a template
                without tool calling, or any template argument: a conversation template takes none.
        """
        if template_kwargs:
            reason = f"this model's template takes no arguments, but got {', '.join(sorted(template_kwargs))}"
            raise InvalidRequestError(reason, param="chat_template_kwargs")
        checked_tools = check_tools(tools)
        if checked_tools and not self.supports_tools:
            raise InvalidRequestError("the model's chat template has no tool calling", param="tools")
        functions = json.dumps([tool["function"] for tool in checked_tools], ensure_ascii=False) if tools else ""
        pieces = list(self._pieces(check_messages(messages), add_generation_prompt))
        last = max((index for index, piece in enumerate(pieces) if piece is None), default=None)
        return "".join(functions if index == last else piece or "" for index, piece in enumerate(pieces))

    def write(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt as text; see :class:`PromptTemplate`.

        Raises:
            InvalidRequestError: as :meth:`render`.
        """
        prefix = b"".join(map(tokenizer.token_bytes, self.system_prefix_token_ids)).decode(errors="replace")
        return prefix + self.render(list(messages), tools=check_tools(tools), **(template_kwargs or {}))

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The prompt's token ids; see :class:`PromptTemplate`.

        Raises:
            InvalidRequestError: as :meth:`render`.
        """
        guard = make_guard(tokenizer.special_texts, _END_OF_REASONING)
        text = self.render(
            guard_value(list(messages), guard, param="messages"),
            tools=guard_value(check_tools(tools), guard, param="tools"),
            **(template_kwargs or {}),
        )
        return [*self.system_prefix_token_ids, *tokenizer.encode_template(text)]

    def _pieces(self, messages: list[Message], add_generation_prompt: bool) -> Iterator[str | None]:
        """The prompt in pieces; None stands where ``{function_string}`` was."""
        heading = 0
        while heading < len(messages) and messages[heading]["role"] in ("system", "developer"):
            heading += 1
        given = "\n\n".join(joined_text(message["content"]) for message in messages[:heading])
        system = given if heading else self.system_message
        has_system = bool(system or not self.omit_empty_system) and bool(self.system_template.replace(_SYSTEM, system))
        if has_system:
            yield from _fill(self.system_template, _SYSTEM, system)
        turns = [*self.messages, *self._turns(messages[heading:])]
        for index, (role, content) in enumerate(turns):
            if role not in self.roles:
                raise refuse_messages(f"this model's template knows the roles {', '.join(self.roles)}, not {role!r}")
            if index > 0 or self.add_role_after_system_message or not has_system:
                yield self.roles[role] + self.role_content_sep
            yield from _fill(self.role_templates[role], f"{{{role}_message}}", content)
            yield self.seps[role == "assistant"]
        if add_generation_prompt:
            yield self.roles["assistant"] + self.role_empty_sep

    def _turns(self, messages: list[Message]) -> Iterator[tuple[str, str]]:
        last_user = max((index for index, message in enumerate(messages) if message["role"] == "user"), default=-1)
        for index, message in enumerate(messages):
            role, content = message["role"], joined_text(message["content"])
            if role == "assistant" and self.strip_reasoning_in_history and index < last_user:
                content = (
                    content.rpartition(_END_OF_REASONING)[2].lstrip("\n") if _END_OF_REASONING in content else content
                )
            if "tool_calls" in message:
                calls = [call["function"] for call in parse_arguments(message["tool_calls"])]
                texts = [
                    json.dumps({key: call[key] for key in ("name", "arguments")}, ensure_ascii=False) for call in calls
                ]
                content = "\n".join([content, *texts] if content else texts)
            yield role, content


def _fill(template: str, placeholder: str, content: str) -> Iterator[str | None]:
    for index, part in enumerate(template.split(_FUNCTIONS)):
        if index:
            yield None
        yield part.replace(placeholder, content)


_DEFAULTS: Mapping[str, Any] = {
    "name": "",
    "system_template": _SYSTEM,
    "system_message": "",
    "system_prefix_token_ids": [],
    "add_role_after_system_message": True,
    "roles": {},
    "role_templates": {},
    "messages": [],
    "seps": [],
    "role_content_sep": "",
    "role_empty_sep": "",
    "stop_str": [],
    "stop_token_ids": [],
    "strip_reasoning_in_history": False,
    "omit_empty_system": False,
    # State of a running request in MLC; stored empty.
    "function_string": "",
    "use_function_calling": False,
}
_ITEMS: Mapping[str, type] = {
    "system_prefix_token_ids": int,
    "seps": str,
    "stop_str": str,
    "stop_token_ids": int,
    "roles": str,
    "role_templates": str,
}
_KINDS = {str: "a string", int: "an integer", bool: "true or false", list: "a list", dict: "an object"}


class _Reader:
    """Checks the JSON of one conversation template."""

    def __init__(self, data: object, path: str | PathLike[str]) -> None:
        self._path = path
        if isinstance(data, str):
            if data not in BUILTIN:
                accepted = f"known are {', '.join(BUILTIN)}; or give the template itself"
                raise self._error(f"names the unknown template {data!r}; {accepted}")
            data = BUILTIN[data]
        if not isinstance(data, Mapping):
            raise self._error("must be an object or the name of a template")
        if unknown := sorted(set(data) - set(_DEFAULTS)):
            raise self._error(f"has unknown fields: {', '.join(unknown)}; known are {', '.join(_DEFAULTS)}")
        self._values = {key: self._check(key, data.get(key)) for key in _DEFAULTS}

    def template(self, tokenizer: Tokenizer | None) -> ConversationTemplate:
        values = self._values
        roles, seps = values["roles"], values["seps"]
        if not {"user", "assistant"} <= set(roles):
            raise self._error("roles must name at least user and assistant")
        if len(seps) not in (1, 2):
            raise self._error(f"seps must have one or two entries, not {len(seps)}")
        templates = {role: f"{{{role}_message}}" for role in roles} | values["role_templates"]
        ids = [tokenizer.added_token_id(text) for text in values["stop_str"]] if tokenizer else []
        stop_ids = [*values["stop_token_ids"], *(token_id for token_id in ids if token_id is not None)]
        return ConversationTemplate(
            name=values["name"] or None,
            system_template=values["system_template"],
            system_message=values["system_message"],
            system_prefix_token_ids=tuple(values["system_prefix_token_ids"]),
            add_role_after_system_message=values["add_role_after_system_message"],
            roles=dict(roles),
            role_templates=templates,
            messages=tuple(self._turn(turn) for turn in values["messages"]),
            seps=(seps[0], seps[-1]),
            role_content_sep=values["role_content_sep"],
            role_empty_sep=values["role_empty_sep"],
            stop_strings=tuple(text for text in values["stop_str"] if text),
            stop_token_ids=tuple(dict.fromkeys(stop_ids)),
            strip_reasoning_in_history=values["strip_reasoning_in_history"],
            omit_empty_system=values["omit_empty_system"],
        )

    def _check(self, key: str, value: Any) -> Any:
        default = _DEFAULTS[key]
        if value is None:
            return default
        kind = type(default)
        if type(value) is not kind:
            raise self._error(f"{key} must be {_KINDS[kind]}")
        item = _ITEMS.get(key)
        if item is not None and any(type(entry) is not item for entry in _entries(value)):
            raise self._error(f"{key} must hold only entries that are {_KINDS[item]}")
        return value

    def _turn(self, turn: Any) -> tuple[str, str]:
        if not isinstance(turn, list) or len(turn) != 2 or not isinstance(turn[0], str):
            raise self._error("messages must be pairs of a role and a content")
        try:
            return turn[0], joined_text(turn[1])
        except InvalidRequestError as error:
            raise self._error(f"messages: {error}") from error

    def _error(self, reason: str) -> LoadError:
        return LoadError(self._path, f"conv_template {reason}")


def _entries(value: list[Any] | dict[str, Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value
