"""Facts about the user: told early in a conversation, asked for later."""

from dataclasses import dataclass

from facts import ANIMALS, CITIES, COLOURS, FOODS
from sampling import Draw
from skills import JsonObject, Turn

NOT_TOLD_ANSWER = "You have not told me that yet."


@dataclass(frozen=True)
class MemoryKind:
    """One thing that a user may tell; no `values` means people's names."""

    tellings: tuple[str, ...]
    questions: tuple[str, ...]
    acknowledgement: str
    answer: str
    values: tuple[str, ...] = ()


MEMORIES: dict[str, MemoryKind] = {
    "name": MemoryKind(
        (
            "My name is {value}.", "I am {value}.", "Hi, I'm {value}.", "Call me {value}.",
            "Hello, my name is {value}.", "Hi, my name is {value}.", "Hello! My name is {value}.",
            "my name is {value}", "I'm {value}.", "My name is {value}. Please remember it.",
        ),
        (
            "What is my name?", "What's my name?", "Do you remember my name?", "Who am I?", "what is my name?",
            "What is my name", "Tell me my name.", "Do you know my name?",
        ),
        "Nice to meet you, {value}!",
        "Your name is {value}.",
    ),
    "colour": MemoryKind(
        (
            "My favourite colour is {value}.", "I like the colour {value} best.", "My favorite color is {value}.",
        ),
        ("What is my favourite colour?", "Which colour do I like best?", "What is my favorite color?"),
        "I will remember that you like {value}.",
        "Your favourite colour is {value}.",
        tuple(COLOURS),
    ),
    "animal": MemoryKind(
        ("My favourite animal is the {value}.", "I love every {value}.", "My favorite animal is the {value}."),
        ("What is my favourite animal?", "Which animal do I like?", "What is my favorite animal?"),
        "I will remember that you like the {value}.",
        "Your favourite animal is the {value}.",
        tuple(ANIMALS),
    ),
    "food": MemoryKind(
        ("My favourite food is {value}.", "I love eating {value}.", "My favorite food is {value}."),
        ("What is my favourite food?", "What do I like to eat?", "What is my favorite food?"),
        "I will remember that you like {value}.",
        "Your favourite food is {value}.",
        tuple(FOODS),
    ),
    "city": MemoryKind(
        ("I live in {value}.", "My home is in {value}."),
        ("Where do I live?", "In which city do I live?"),
        "I will remember that you live in {value}.",
        "You live in {value}.",
        tuple(CITIES),
    ),
    "age": MemoryKind(
        ("I am {value} years old.", "My age is {value}."),
        ("How old am I?", "What is my age?"),
        "I will remember that you are {value}.",
        "You are {value} years old.",
        tuple(str(age) for age in range(5, 100)),
    ),
}  # fmt: skip
_KIND_CHOICES = ["name", "name", "name", *MEMORIES]


def draw_memory(draw: Draw) -> tuple[str, Turn, Turn]:
    """A kind of fact, the turn that tells it, and the turn that asks for it."""
    kind = draw.rng.choice(_KIND_CHOICES)
    memory = MEMORIES[kind]
    value = draw.pick(lambda: draw.rng.choice(memory.values), "memory", kind) if memory.values else draw.name()
    tell = Turn(draw.rng.choice(memory.tellings).format(value=value), memory.acknowledgement.format(value=value))
    fields: JsonObject = {kind: int(value) if value.isdigit() else value}
    ask = Turn(draw.rng.choice(memory.questions), memory.answer.format(value=value), fields)
    return kind, tell, ask


def untold_memory(draw: Draw, told: dict[str, tuple[Turn, Turn]]) -> Turn | None:
    """A question for something that was never told, None if the drawn kind was told."""
    kind = draw.rng.choice(list(MEMORIES))
    if kind in told:
        return None
    return Turn(draw.rng.choice(MEMORIES[kind].questions), NOT_TOLD_ANSWER)
