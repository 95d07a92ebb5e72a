"""The conversation template that says the same as a Hugging Face chat template, for ``windlass convert``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from windlass.errors import InvalidRequestError
from windlass.text.chat_template import ChatTemplate
from windlass.text.conv_builtin import BUILTIN
from windlass.text.conv_template import ConversationTemplate
from windlass.text.tokenizer import Tokenizer

_SYSTEM, _FIRST, _REPLY, _SECOND = "probe system", "probe first", "probe reply", "probe second"
_REASONING = "probe reasoning"
_S = {"role": "system", "content": _SYSTEM}
_U1 = {"role": "user", "content": _FIRST}
_A = {"role": "assistant", "content": _REPLY}
_U2 = {"role": "user", "content": _SECOND}
_PLAIN = [_U1, _A, _U2]
_REASONED = [_U1, {"role": "assistant", "content": f"<think>\n{_REASONING}\n</think>\n\n{_REPLY}"}, _U2]
_PROBES = [[_U1], _PLAIN, [*_PLAIN, _A, _U1], [_S, _U1], [_S, *_PLAIN], [_S, *_PLAIN, _A, _U1]]


def match_builtin(template: ChatTemplate, tokenizer: Tokenizer) -> dict[str, Any] | None:
    """The JSON of a conversation template that renders text conversations as ``template`` does, or None.

    It is a common one by its name where one fits, else one derived from what ``template`` writes. Compared are
    conversations of one to three turns, with and without a system message (unless ``template`` refuses these). Dates
    that a template takes from the clock are not carried over: it gets to know no clock. Tools are not carried over.
    """
    without_clock = ChatTemplate(
        template.sources, special_tokens=template.special_tokens, origin=template.origin, clock=None
    )
    target = _Target(without_clock)
    if not target.prompts:
        return None
    stops = list(dict.fromkeys([*template.stop_token_ids, *([] if tokenizer.eos_id is None else [tokenizer.eos_id])]))
    bos = [tokenizer.bos_id] if target.begins_with_bos and tokenizer.bos_id is not None else None
    for candidate in [*BUILTIN.values(), *_derive(target, template, tokenizer)]:
        if target.is_rendered_by(candidate):
            return {
                **candidate,
                "system_prefix_token_ids": bos,
                "strip_reasoning_in_history": target.strips_reasoning,
                "stop_str": list(template.stop_strings),
                "stop_token_ids": stops,
            }
    return None


class _Target:
    """What a chat template writes for the probes, without the BOS that it may begin with."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        bos = template.special_tokens.get("bos_token")
        plain = self._render([_U1])
        self.begins_with_bos = isinstance(bos, str) and plain is not None and plain.startswith(bos)
        self._bos = bos if self.begins_with_bos and isinstance(bos, str) else ""
        rendered = [(messages, self.render(messages)) for messages in _PROBES]
        self.prompts = [(messages, text) for messages, text in rendered if text is not None]
        if plain is None or any(text is None for messages, text in rendered if messages[0] is not _S):
            self.prompts = []
        reasoned = self.render(_REASONED)
        self.strips_reasoning = reasoned is not None and _REASONING not in reasoned

    def render(self, messages: list[dict[str, str]]) -> str | None:
        text = self._render(messages)
        return None if text is None else text.removeprefix(self._bos)

    def is_rendered_by(self, candidate: dict[str, Any]) -> bool:
        conversation = ConversationTemplate.from_json(candidate)
        return all(conversation.render(messages) == text for messages, text in self.prompts)

    def _render(self, messages: list[dict[str, str]]) -> str | None:
        try:
            return self._template.render(self._template.adapt(messages))
        except InvalidRequestError:
            return None


def _derive(target: _Target, template: ChatTemplate, tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    """Candidates read off the probes; they still have to be compared."""
    plain = _cut(target.render(_PLAIN), _FIRST, _REPLY, _SECOND)
    if plain is None:
        return
    before, to_reply, between, prompt = plain
    # The assistant's prefix: what the prompt for an answer and an answer in the history both begin with.
    prefix = min(to_reply, prompt, key=len)
    if not (to_reply.startswith(prefix) and prompt.startswith(prefix)):
        return
    ends = [text for text in tokenizer.special_texts if tokenizer.added_token_id(text) in template.stop_token_ids]
    for user in _user_prefixes(before, between, [*ends, *template.stop_strings]):
        end = between[: len(between) - len(user)]
        user_end = end if prefix.startswith(end) else ""
        base = {
            "name": "custom",
            "roles": {"user": user, "assistant": prefix[len(user_end) :]},
            "role_templates": {"assistant": to_reply[len(prefix) :] + "{assistant_message}"},
            "role_empty_sep": prompt[len(prefix) :],
            "seps": [user_end, end],
        }
        yield from _with_system(base, target, user, before[: len(before) - len(user)])


def _user_prefixes(before: str, between: str, ends: list[str]) -> Iterator[str]:
    """What may stand before a user's text: all that follows the end of turn, or all that both places share."""
    stripped = between.lstrip()
    for end in ends:
        if stripped.startswith(end):
            after = stripped[len(end) :]
            for user in (after.lstrip(), after):
                if user and before.endswith(user):
                    yield user
    shared = 0
    while shared < min(len(before), len(between)) and before[-shared - 1] == between[-shared - 1]:
        shared += 1
    if shared:
        yield before[-shared:]


def _with_system(base: dict[str, Any], target: _Target, user: str, preamble: str) -> Iterator[dict[str, Any]]:
    with_system = _cut(target.render([_S, _U1]), _SYSTEM, _FIRST)
    if with_system is None:
        if not preamble:
            yield base
        return
    opening, to_user, _ = with_system
    role_follows = to_user.endswith(user)
    closing = to_user[: len(to_user) - len(user)] if role_follows else to_user
    changes: dict[str, Any] = {
        "system_template": f"{opening}{{system_message}}{closing}",
        "add_role_after_system_message": role_follows,
    }
    if not preamble:
        yield {**base, **changes, "omit_empty_system": bool(opening or closing)}
    elif preamble.startswith(opening) and preamble.endswith(closing) and len(preamble) >= len(opening + closing):
        yield {**base, **changes, "system_message": preamble[len(opening) : len(preamble) - len(closing)]}


def _cut(text: str | None, *at: str) -> list[str] | None:
    """``text`` cut at each of ``at``, in this order, or None where one is not there just once."""
    parts = []
    for mark in at:
        if text is None or text.count(mark) != 1:
            return None
        part, _, text = text.partition(mark)
        parts.append(part)
    return [*parts, text or ""]
