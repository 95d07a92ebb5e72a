"""Hugging Face chat templates: where they live, what they expect, how a prompt comes out."""

from __future__ import annotations

import datetime as dt
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from windlass.errors import InvalidRequestError, LoadError
from windlass.json_files import read_json_object
from windlass.text.guard import guard_value, make_guard
from windlass.text.messages import Message, check_messages, check_tools, joined_text, parse_arguments, text_parts
from windlass.text.probes import Habits, find_end_of_turn, probe_habits, renders
from windlass.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import jinja2

_RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now"})


@dataclass(frozen=True, slots=True)
class Findings:
    """What rendering a template has shown: whether it takes None for tools, and the attributes of ``ChatTemplate``."""

    takes_no_tools: bool
    habits: Habits
    stop_strings: tuple[str, ...]
    stop_token_ids: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """As an object of JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Findings:
        """What ``to_json`` gave, when JSON has carried it."""
        return cls(
            takes_no_tools=values["takes_no_tools"],
            habits=Habits(**values["habits"]),
            stop_strings=tuple(values["stop_strings"]),
            stop_token_ids=tuple(values["stop_token_ids"]),
        )


class ChatTemplate:
    """A model's Jinja chat template.

    Immutable after construction, safe to use from many threads. What the template accepts (lists as content, tools,
    arguments as objects) is found out once, by rendering small conversations.

    Args:
        source: the template, or several by name: ``default``, and ``tool_use`` for requests with tools.
        tokenizer: gives the special tokens that the template names, and the ids of its end of turn.
        special_tokens: named special tokens, instead of the tokenizer's.
        origin: the file it came from, for errors.
        clock: the local time for ``strftime_now``; None leaves that function undefined.
        findings: what the constructor found out about the same template and tokenizer before; the template is then
            compiled when it is first needed.

    Raises:
        LoadError: the source is not valid Jinja.
    """

    def __init__(
        self,
        source: str | Mapping[str, str],
        *,
        tokenizer: Tokenizer | None = None,
        special_tokens: Mapping[str, Any] | None = None,
        origin: str | PathLike[str] = "chat template",
        clock: Callable[[], dt.datetime] | None = dt.datetime.now,
        findings: Findings | None = None,
    ) -> None:
        sources = {"default": source} if isinstance(source, str) else dict(source)
        if "default" not in sources:
            raise LoadError(origin, f"has no chat template named 'default', only {', '.join(sources) or 'none'}")
        self.sources = {name: text for name, text in sources.items() if name in ("default", "tool_use")}
        self.origin = origin
        self.special_tokens = dict(special_tokens or (tokenizer.special_tokens if tokenizer else {}))
        self._clock = clock
        self._lock = threading.Lock()
        self._compiled: dict[str, jinja2.Template] | None = None
        source_text = "".join(self.sources.values())
        self._takes_no_tools = findings is None or findings.takes_no_tools
        if findings is None:
            findings = self._find_out(source_text, tokenizer)
        self.findings = findings
        self.habits: Habits = findings.habits
        self.stop_strings, self.stop_token_ids = findings.stop_strings, findings.stop_token_ids

    def _find_out(self, source_text: str, tokenizer: Tokenizer | None) -> Findings:
        self._takes_no_tools = renders(self.render)
        habits = probe_habits(self.render, source_text)
        stop_strings, stop_token_ids = find_end_of_turn(self.render, tokenizer)
        return Findings(self._takes_no_tools, habits, stop_strings, stop_token_ids)

    def _templates(self) -> dict[str, jinja2.Template]:
        from windlass.text.template_env import compile_template  # Jinja takes 50 ms to import

        with self._lock:
            if self._compiled is None:
                self._compiled = {
                    name: compile_template(text, self.origin, self._clock) for name, text in self.sources.items()
                }
            return self._compiled

    @cached_property
    def thinks(self) -> bool:
        """Whether the template knows of reasoning."""
        from windlass.text.answer import knows_thinking  # with the parsers of answers, which a start can do without

        return knows_thinking("".join(self.sources.values()))

    @cached_property
    def is_harmony(self) -> bool:
        """Whether the models of this template answer in OpenAI's harmony format."""
        return all(mark in "".join(self.sources.values()) for mark in ("<|start|>", "<|channel|>", "<|message|>"))

    def effort_arguments(self, effort: str) -> dict[str, Any]:
        """What tells the template how much the model shall think: those of its variables that are known to say so."""
        values = {"enable_thinking": effort != "none", "reasoning_effort": effort}
        source = "".join(self.sources.values())
        return {name: value for name, value in values.items() if name in source}

    @property
    def supports_tools(self) -> bool:
        """Whether the template shows tools to the model."""
        return self.habits.tools

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **template_kwargs: Any,
    ) -> str:
        """The template applied to the messages exactly as they are given, as ``apply_chat_template`` would.

        Raises:
            InvalidRequestError: the template rejects the messages or fails on them.
        """
        from windlass.text.template_env import render_template

        compiled = self._templates()
        name = "tool_use" if tools and "tool_use" in compiled else "default"
        variables = {
            **self.special_tokens,
            "documents": None,
            **template_kwargs,
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
        }
        # Transformers passes None when there are no tools; a template made for tools only may not take that.
        if tools is not None or self._takes_no_tools:
            variables["tools"] = tools
        return render_template(compiled[name], variables)

    def write(
        self,
        tokenizer: Tokenizer,  # noqa: ARG002  (the face of PromptTemplate)
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt as text for OpenAI-shaped messages; see :class:`PromptTemplate`.

        Raises:
            InvalidRequestError: as :meth:`encode`.
        """
        return self._write(messages, tools, template_kwargs, lambda text: text)

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The prompt's token ids for OpenAI-shaped messages; see :class:`PromptTemplate`. No BOS is added to it.

        Raises:
            InvalidRequestError: as :meth:`render`; also tools for a template without tool calling, or a template
                argument whose name the template uses otherwise.
        """
        guard = make_guard(tokenizer.special_texts, "".join(self.sources.values()))
        return tokenizer.encode_template(self._write(messages, tools, template_kwargs, guard))

    def _write(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        template_kwargs: Mapping[str, Any] | None,
        guard: Callable[[str], str],
    ) -> str:
        checked_tools = check_tools(tools)
        if checked_tools and not self.supports_tools:
            raise InvalidRequestError("the model's chat template has no tool calling", param="tools")
        extra = dict(template_kwargs or {})
        if refused := sorted(name for name in extra if name in _RESERVED or name in self.special_tokens):
            reason = f"chat_template_kwargs must not set {', '.join(refused)}"
            raise InvalidRequestError(reason, param="chat_template_kwargs")
        return self.render(
            guard_value(self.adapt(messages), guard, param="messages"),
            tools=guard_value(checked_tools, guard, param="tools") or None,
            **guard_value(extra, guard, param="chat_template_kwargs"),
        )

    def adapt(self, messages: Sequence[Mapping[str, Any]]) -> list[Message]:
        """OpenAI-shaped messages in the shape that this template expects.

        Raises:
            InvalidRequestError: messages that are malformed or hold other content than text.
        """
        return [self._adapt_message(message) for message in check_messages(messages)]

    def _adapt_message(self, message: Message) -> Message:
        habits = self.habits
        if message["role"] == "developer" and not habits.developer:
            message["role"] = "system"
        content = message["content"]
        if not content:
            message["content"] = None if "tool_calls" in message and habits.null_content else ""
        elif not habits.string_content or (not isinstance(content, str) and habits.list_content):
            message["content"] = [{"type": "text", "text": text} for text in text_parts(content)]
        else:
            message["content"] = joined_text(content)
        if self.is_harmony and "reasoning" in message and not (content and "tool_calls" in message):
            message["thinking"] = message["reasoning"]  # such a template takes one text before a call
        if "tool_calls" in message:
            message["tool_calls"] = parse_arguments(message["tool_calls"])
            if not habits.object_arguments:
                message["tool_calls"] = [_arguments_as_text(call) for call in message["tool_calls"]]
        return message


def _arguments_as_text(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


def read_chat_template(
    directory: Path, tokenizer: Tokenizer | None, findings: Findings | None = None
) -> ChatTemplate | None:
    """The chat template of a Hugging Face directory, or None.

    ``chat_template.jinja`` and ``additional_chat_templates/*.jinja`` come before ``tokenizer_config.json``, which comes
    before ``chat_template.json``.

    Raises:
        LoadError: a file that cannot be read, or a template that is not valid.
    """
    path = directory / "chat_template.jinja"
    if path.is_file():
        named = {file.stem: _read_text(file) for file in sorted(directory.glob("additional_chat_templates/*.jinja"))}
        return ChatTemplate({**named, "default": _read_text(path)}, tokenizer=tokenizer, origin=path, findings=findings)
    for name in ("tokenizer_config.json", "chat_template.json"):
        source = read_json_object(directory / name, missing_ok=True).get("chat_template")
        if source:
            sources = _named_sources(source, directory / name)
            return ChatTemplate(sources, tokenizer=tokenizer, origin=directory / name, findings=findings)
    return None


def gguf_chat_template(
    metadata: Mapping[str, Any], tokenizer: Tokenizer, path: Path, findings: Findings | None = None
) -> ChatTemplate | None:
    """The chat template of the GGUF file ``path``, or None: ``tokenizer.chat_template``, and others by their names.

    Raises:
        LoadError: it is not valid.
    """
    key = "tokenizer.chat_template"
    source = metadata.get(key)
    if source is None:
        return None
    named = {name.removeprefix(f"{key}."): text for name, text in metadata.items() if name.startswith(f"{key}.")}
    if not all(isinstance(text, str) for text in (source, *named.values())):
        raise LoadError(path, f"{key} must be a string")
    return ChatTemplate({**named, "default": source}, tokenizer=tokenizer, origin=path, findings=findings)


def _named_sources(source: object, path: Path) -> dict[str, str]:
    if isinstance(source, str):
        return {"default": source}
    entries = source if isinstance(source, list) else [source]
    named = {}
    for entry in entries:
        name, text = (entry.get("name"), entry.get("template")) if isinstance(entry, Mapping) else (None, None)
        if not isinstance(name, str) or not isinstance(text, str):
            raise LoadError(path, "chat_template must be a string, or a list of objects with name and template")
        named[name] = text
    return named if "default" in named or len(named) != 1 else {"default": next(iter(named.values()))}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(path, f"cannot be read as UTF-8 text ({type(error).__name__})") from error
