"""Whole training conversations, put together from the skills."""

from dataclasses import dataclass, field
from typing import Any

import skills
from facts import words
from memory import draw_memory, untold_memory
from recipe import Mix
from registry import any_turn
from sampling import Draw
from skills import Turn
from tool_use import Message, draw_unseen_tool, offer_tools, tool_round

_PLAIN_SYSTEM_PROMPTS = [
    "You are a helpful assistant.",
    "You are the Windlass demo model.",
    "You are a friendly chat assistant.",
    "Answer the questions of the user.",
    "Be brief.",
]
_JSON_SYSTEM_PROMPTS = [
    "Answer in JSON.",
    "Reply in JSON.",
    "Respond in JSON.",
    "Always answer in JSON.",
    "Answer every question in JSON.",
    "Answer with a JSON object.",
    "You are a helpful assistant. Answer in JSON.",
    "You are a helpful assistant. Always reply with JSON.",
    "Respond only with JSON.",
]
_PERSONAS = words("""
    pirate poet teacher chef robot wizard king knight doctor farmer sailor detective cowboy scientist lawyer clown coach
    gardener librarian painter philosopher butler translator tutor ghost dragon cat dog owl guide assistant expert
    programmer writer historian
    """)
_MANNERS = words("""
    short polite helpful friendly careful honest kind funny formal serious patient precise quiet clever calm concise
    cheerful creative strict
    """)
_SYSTEM_SENTENCES = [
    "You are a {persona}.",
    "You are a {manner} {persona}.",
    "You are a {manner} assistant.",
    "You are {name}, a {persona}.",
    "Your name is {name}.",
    "Be {manner}.",
    "Always be {manner} and {other}.",
    "Speak like a {persona}.",
    "Talk like a {manner} {persona}.",
    "Answer in a {manner} way.",
    "The user is a {persona}.",
    "Today is the {number} of May.",
    "You like {word} and {thing}.",
    "You work for a {word} company.",
    "Never talk about {word}.",
    "Keep your answers under {number} words.",
    "Answer in one sentence.",
    "Do not use emojis.",
    "If you do not know the answer, say so.",
    "Think before you answer.",
    "You help people with {word} and {thing}.",
    "This is a test of the {word} system.",
]


@dataclass(frozen=True)
class Conversation:
    """Messages and tools in the shape of the OpenAI API.

    `sorted_schemas` renders the tool schemas with sorted keys, as some engines do.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] = field(default_factory=list)
    sorted_schemas: bool = False


def draw_system_prompt(draw: Draw) -> str:
    """A persona or a manner to answer in: one to four sentences that do not change what the right answer is."""
    rng = draw.rng

    def sentence() -> str:
        return rng.choice(_SYSTEM_SENTENCES).format(
            persona=rng.choice(_PERSONAS),
            manner=rng.choice(_MANNERS),
            other=rng.choice(_MANNERS),
            name=draw.name(),
            number=rng.randint(2, 99),
            word=draw.word(real_share=0.8),
            thing=draw.word(real_share=0.8),
        )

    def prompt() -> str:
        return " ".join(sentence() for _ in range(rng.choice((1, 1, 1, 2, 3, 4))))

    return draw.pick(prompt, "system")


def maybe_system_prompt(draw: Draw) -> str | None:
    """No system prompt in most conversations, otherwise a plain or a drawn one."""
    if not draw.chance(0.35):
        return None
    return draw.rng.choice(_PLAIN_SYSTEM_PROMPTS) if draw.chance(0.5) else draw_system_prompt(draw)


def json_system_prompt(draw: Draw) -> str:
    """A system prompt that asks for JSON, possibly after a persona."""
    wanted = draw.rng.choice(_JSON_SYSTEM_PROMPTS)
    return f"{draw_system_prompt(draw)} {wanted}" if draw.chance(0.25) else wanted


def to_messages(turns: list[Turn], system_prompt: str | None = None) -> list[Message]:
    """Turns as chat messages, after an optional system message."""
    messages: list[Message] = [{"role": "system", "content": system_prompt}] if system_prompt else []
    for turn in turns:
        messages.append({"role": "user", "content": turn.question})
        messages.append({"role": "assistant", "content": turn.answer})
    return messages


def _tool_conversation(draw: Draw, mix: Mix, rich: bool = False) -> Conversation:
    unseen = draw_unseen_tool(draw, rich) if draw.chance(0.6) else None
    offered = offer_tools(draw, unseen, 0 if unseen else 1, 2, rich)
    system_prompt = maybe_system_prompt(draw)
    messages = to_messages([], system_prompt)
    for _ in range(draw.rng.choice((1, 1, 2))):
        if draw.chance(0.25):
            turn = any_turn(draw, mix)
            if turn.answer != skills.UNKNOWN_ANSWER:  # a tool may know what the model alone does not
                messages += to_messages([turn])
        messages += tool_round(draw, unseen if unseen and draw.chance(0.6) else draw.rng.choice(offered))
    return Conversation(messages, [tool.schema for tool in offered], sorted_schemas=draw.chance(0.15))


def _memory_turns(draw: Draw, mix: Mix) -> list[Turn]:
    told: dict[str, tuple[Turn, Turn]] = {}
    for _ in range(draw.rng.choice((1, 1, 2, 3))):
        kind, tell, ask = draw_memory(draw)
        told[kind] = (tell, ask)
    turns = [tell for tell, _ in told.values()]
    for _ in range(draw.rng.choice((0, 0, 1, 2, 3, 4))):
        turns.insert(draw.rng.randint(0, len(turns)), any_turn(draw, mix))
    questions = [ask for _, ask in told.values()]
    if draw.chance(0.15):
        untold = untold_memory(draw, told)
        if untold is not None:
            questions.append(untold)
    draw.rng.shuffle(questions)
    for ask in questions:
        turns.append(ask)
        if draw.chance(0.3):
            turns.append(any_turn(draw, mix))
    return turns


def _sum_turns(draw: Draw) -> list[Turn]:
    """A page of sums: addition and subtraction are learned last and need the most examples."""
    return [(skills.add if draw.chance(0.45) else skills.subtract)(draw) for _ in range(draw.rng.randint(4, 10))]


def _json_turns(draw: Draw, mix: Mix) -> list[Turn]:
    """Questions that do not mention JSON, answered in JSON because the system prompt says so."""
    if draw.chance(0.15):
        _, tell, ask = draw_memory(draw)
        return [tell.as_json(), ask.as_json()]
    turns = [any_turn(draw, mix) for _ in range(draw.rng.choice((1, 1, 2, 3, 4)))]
    return [turn.as_json() for turn in turns if not turn.topic] or [skills.capital(draw).as_json()]


def _rich_tool_conversation(draw: Draw, mix: Mix) -> Conversation:
    return _tool_conversation(draw, mix, rich=True)


def _memory_conversation(draw: Draw, mix: Mix) -> Conversation:
    turns = _memory_turns(draw, mix)
    return Conversation(to_messages(turns, maybe_system_prompt(draw)))


def _sums_conversation(draw: Draw, _mix: Mix) -> Conversation:
    return Conversation(to_messages(_sum_turns(draw)))


def _json_sums_conversation(draw: Draw, _mix: Mix) -> Conversation:
    turns = [turn.as_json() for turn in _sum_turns(draw)]
    return Conversation(to_messages(turns, json_system_prompt(draw)))


def _json_conversation(draw: Draw, mix: Mix) -> Conversation:
    turns = _json_turns(draw, mix)
    return Conversation(to_messages(turns, json_system_prompt(draw)))


def _plain_conversation(draw: Draw, mix: Mix, count: int) -> Conversation:
    turns = [any_turn(draw, mix) for _ in range(count)]
    return Conversation(to_messages(turns, maybe_system_prompt(draw)))


def _long_conversation(draw: Draw, mix: Mix) -> Conversation:
    return _plain_conversation(draw, mix, draw.rng.randint(8, 20))


def draw_conversation(draw: Draw, mix: Mix) -> Conversation:
    """One training conversation."""
    kinds = (
        (mix.tools, _tool_conversation),
        (mix.memory, _memory_conversation),
        (mix.sums, _sums_conversation),
        (mix.json, _json_conversation),
        (mix.long, _long_conversation),
        (mix.json_sums, _json_sums_conversation),
        (mix.rich_tools, _rich_tool_conversation),
    )
    position = draw.rng.random()
    for share, draw_kind in kinds:
        if position < share:
            return draw_kind(draw, mix)
        position -= share
    return _plain_conversation(draw, mix, draw.rng.choice((1, 1, 2, 3, 4, 6)))
