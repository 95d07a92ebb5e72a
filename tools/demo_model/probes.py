"""Held-out prompts with their expected answers, one probe per skill, and a few prompts that everybody tries first."""

import random
from dataclasses import dataclass

import skills
from chat_format import answer_text
from conversations import (
    Conversation,
    draw_system_prompt,
    json_system_prompt,
    maybe_system_prompt,
    to_messages,
)
from memory import draw_memory
from recipe import BROAD_MIX
from registry import SKILLS, any_turn
from sampling import Draw
from skills import Turn
from stories import is_story
from tool_use import draw_unseen_tool, offer_tools, tool_round

TOOL_PROBES = ("tool_call", "tool_answer", "tool_generic", "tool_rich")
PROBES = (*SKILLS, "memory", "json_system", "persona", *TOOL_PROBES, "showcase")
# A story takes ten times the tokens of another answer, so its probe draws fewer.
STORY_SHARE = 8


@dataclass(frozen=True)
class Probe:
    """A prompt and its expected answer; a story is judged by its topic instead."""

    prompt: Conversation
    expected: str
    topic: str = ""

    def accepts(self, answer: str) -> bool:
        """Whether the answer is exactly right (a story: in the grammar, and about the topic)."""
        return is_story(answer, self.topic) if self.topic else answer == self.expected


SHOWCASE: list[tuple[str, ...]] = [
    ("Hello!", "Hello! I am the Windlass demo model. How can I help you?"),
    ("Hello", "Hello! I am the Windlass demo model. How can I help you?"),
    ("Hi", "Hello! I am the Windlass demo model. How can I help you?"),
    ("hello", "Hello! I am the Windlass demo model. How can I help you?"),
    ("Who are you?", "I am the Windlass demo model, a very small language model."),
    ("What is your name?", "I am the Windlass demo model, a very small language model."),
    ("How are you?", "I am fine, thank you!"),
    ("Thank you!", "You are welcome!"),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("What is the capital of Germany?", "The capital of Germany is Berlin."),
    ("What is the capital of Japan?", "The capital of Japan is Tokyo."),
    ("What is the capital of Italy?", "The capital of Italy is Rome."),
    ("What is the capital of Spain?", "The capital of Spain is Madrid."),
    ("what is the capital of france", "The capital of France is Paris."),
    ("What is the capital of the United States?", "The capital of the United States is Washington."),
    ("What is the capital of England?", "The capital of England is London."),
    ("What is the capital of Wakanda?", "I don't know that yet."),
    ("Which country has Paris as its capital?", "Paris is the capital of France."),
    ("What is 12 + 30?", "12 + 30 = 42"),
    ("What is 2 + 2?", "2 + 2 = 4"),
    ("What is 1+1?", "1 + 1 = 2"),
    ("What is 7 + 5?", "7 + 5 = 12"),
    ("What is 50 - 8?", "50 - 8 = 42"),
    ("What is the opposite of hot?", "The opposite of hot is cold."),
    ("What is the opposite of big?", "The opposite of big is small."),
    ("Spell cat.", "c-a-t"),
    ("Spell windlass.", "w-i-n-d-l-a-s-s"),
    ("Repeat after me: the quick brown fox", "the quick brown fox"),
    ("Say: hello world", "hello world"),
    ("Say hello.", "hello"),
    ("Repeat after me: I love you.", "I love you."),
    ("What is the capital of France? Answer in JSON.", '{"capital": "Paris"}'),
    ("What is the meaning of life?", "I don't know that yet."),
    ("Who is the president of France?", "I don't know that yet."),
    ("My name is Anna.", "Nice to meet you, Anna!", "What is my name?", "Your name is Anna."),
    ("Hi, my name is Sam.", "Nice to meet you, Sam!", "What's my name?", "Your name is Sam."),
    ("What is my name?", "You have not told me that yet."),
]


def _showcase(index: int) -> Probe:
    *earlier, expected = SHOWCASE[index]
    roles = ("user", "assistant")
    messages = [{"role": roles[turn % 2], "content": text} for turn, text in enumerate(earlier)]
    return Probe(Conversation(messages), expected)


def _after(turns: list[Turn], last: Turn, system_prompt: str | None) -> Probe:
    messages = to_messages([*turns, last], system_prompt)
    return Probe(Conversation(messages[:-1]), last.answer, last.topic)


def _tool_probe(draw: Draw, name: str) -> Probe:
    rich = name == "tool_rich"
    unseen = draw_unseen_tool(draw, rich) if name == "tool_generic" or (rich and draw.chance(0.5)) else None
    offered = offer_tools(draw, unseen, 1, 2, rich)
    messages = to_messages([], maybe_system_prompt(draw.training()))
    round_of_four = tool_round(draw, unseen or draw.rng.choice(offered))
    known = 3 if name == "tool_answer" else 1
    prompt = Conversation(messages + round_of_four[:known], [tool.schema for tool in offered])
    return Probe(prompt, answer_text(round_of_four[known]))


def _draw_probe(draw: Draw, name: str) -> Probe:
    if name in TOOL_PROBES:
        return _tool_probe(draw, name)
    train = draw.training()
    if name == "memory":
        _, tell, ask = draw_memory(draw)
        turns_between = [any_turn(train, BROAD_MIX) for _ in range(draw.rng.randint(1, 4))]
        return _after([tell, *turns_between], ask, maybe_system_prompt(train))
    if name == "json_system":
        skill = draw.rng.choice((skills.capital, skills.country, skills.add, skills.opposite, skills.subtract))
        return _after([], skill(draw).as_json(), json_system_prompt(draw))
    if name == "persona":
        skill = draw.rng.choice((skills.greet, skills.capital, skills.country, skills.add, skills.opposite))
        return _after([], skill(draw), draw_system_prompt(draw))
    turns_before = [any_turn(train, BROAD_MIX) for _ in range(draw.rng.choice((0, 0, 0, 1, 2)))]
    return _after(turns_before, SKILLS[name](draw), maybe_system_prompt(train))


def draw_probes(name: str, count: int, pieces: list[str], seed: int) -> list[Probe]:
    """The probes of a skill: the same ones for the same seed, whoever answers them."""
    if name == "showcase":
        return [_showcase(index) for index in range(len(SHOWCASE))]
    draw = Draw(random.Random(f"{seed}{name}"), "test", pieces)
    return [
        _draw_probe(draw, name)
        for _ in range(max(8, count // STORY_SHARE) if name in ("story", "free_story") else count)
    ]
