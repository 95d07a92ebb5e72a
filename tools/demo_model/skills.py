"""The single-turn skills: each draws one question and the answer that the model has to give.

An answer has two forms, the plain text and a JSON object.  The second one is used wherever the conversation asks
for JSON, so that "answer in JSON" is one habit across all skills and not a skill of its own.
"""

import json
from dataclasses import dataclass

from facts import CAPITALS, CITIES, MODEL_NAME, OPPOSITES, WORDS
from sampling import Draw, is_held_out
from stories import STORY_QUESTIONS, TOPICS, tell_story

UNKNOWN_ANSWER = "I don't know that yet."
JsonObject = dict[str, str | int]


@dataclass(frozen=True)
class Turn:
    """One question and its answer; `fields` is the answer as a JSON object, None where JSON makes no sense."""

    question: str
    answer: str
    fields: JsonObject | None = None
    topic: str = ""

    def as_json(self, question: str | None = None) -> "Turn":
        """The same turn answered in JSON, optionally under another wording of the question."""
        fields = self.fields or {"answer": self.answer}
        return Turn(question or self.question, json.dumps(fields), fields)


_GREETINGS: list[tuple[list[str], str]] = [
    (
        ["Hello", "Hi", "Hey", "Hello there", "Hi there", "Good morning", "Good evening", "Greetings", "Good day"],
        f"Hello! I am {MODEL_NAME}. How can I help you?",
    ),
    (
        [
            "Who are you", "What are you", "What is your name", "What's your name", "Tell me who you are",
            "Introduce yourself", "Please introduce yourself", "Which model are you", "Are you a language model",
            "What model is this", "Are you an AI", "Tell me about yourself",
        ],
        f"I am {MODEL_NAME}, a very small language model.",
    ),
    (["How are you", "How are you doing", "How do you do", "Are you well", "How is it going"], "I am fine, thank you!"),
    (["Thank you", "Thanks", "Thanks a lot", "Many thanks", "Thank you very much"], "You are welcome!"),
    (["Goodbye", "Bye", "See you", "Bye bye", "Good night", "See you later"], "Goodbye!"),
    (
        ["What can you do", "Can you help me", "How can you help me", "What do you know", "Help"],
        "I can name capitals, add and subtract small numbers, find opposites, spell words, repeat phrases, "
        "remember your name, answer in JSON, call tools and tell stories.",
    ),
]  # fmt: skip
_GREETING_ENDINGS = ["", ".", "!", "?", ", please.", ", model.", "!!", " :)", ", my friend."]
# What everybody types first is never held out.
_FIRST_WORDS = {"Hello", "Hello!", "Hi", "Hi!", "Hello.", "hello", "hi", "Who are you?", "What can you do?", "Thanks!"}

CAPITAL_QUESTIONS = [
    "What is the capital of {country}?", "What's the capital of {country}?", "Capital of {country}?",
    "Name the capital of {country}.", "Tell me the capital of {country}.", "{country}'s capital?",
    "Which city is the capital of {country}?", "Do you know the capital of {country}?", "The capital of {country}?",
    "What is the capital city of {country}?", "Please tell me the capital of {country}.",
]  # fmt: skip
COUNTRY_QUESTIONS = [
    "{city} is the capital of which country?", "Which country has {city} as its capital?",
    "Which country's capital is {city}?", "What country is {city} the capital of?",
    "Of which country is {city} the capital?",
]  # fmt: skip
_ADD_QUESTIONS = [
    "What is {a} + {b}?", "{a} + {b}", "{a} + {b} = ?", "What is {a} plus {b}?", "Add {a} and {b}.",
    "Calculate {a} + {b}.", "How much is {a} plus {b}?", "{a}+{b}", "What's {a} + {b}?", "{a} plus {b}?",
    "What is {a}+{b}?", "{a} + {b} =", "What is the sum of {a} and {b}?", "How much is {a} + {b}?",
]  # fmt: skip
_SUBTRACT_QUESTIONS = [
    "What is {a} - {b}?", "{a} - {b}", "{a} - {b} = ?", "What is {a} minus {b}?", "Subtract {b} from {a}.",
    "Calculate {a} - {b}.", "How much is {a} minus {b}?", "{a}-{b}", "What's {a} - {b}?", "{a} minus {b}?",
    "What is {a}-{b}?", "{a} - {b} =", "How much is {a} - {b}?",
]  # fmt: skip
OPPOSITE_QUESTIONS = [
    "What is the opposite of {word}?", "What's the opposite of {word}?", "Opposite of {word}?",
    "Give me the opposite of {word}.", "Tell me the opposite of {word}.", "Name the opposite of {word}.",
    "What is the opposite of the word {word}?", 'What is the opposite of "{word}"?',
]  # fmt: skip
SPELL_QUESTIONS = [
    "Spell {word}.", "Spell the word {word}.", "How do you spell {word}?", "Please spell {word}.",
    "Can you spell {word}?", "Spell {word} letter by letter.", 'Spell the word "{word}".', 'How do you spell "{word}"?',
    "Spell: {word}",
]  # fmt: skip
REPEAT_QUESTIONS = [
    "Repeat: {phrase}", "Repeat after me: {phrase}", "Say: {phrase}", "Please repeat: {phrase}", "Say this: {phrase}",
    "Echo: {phrase}", 'Repeat "{phrase}".', 'Say "{phrase}".', 'Repeat this: "{phrase}"', 'Please say "{phrase}".',
]  # fmt: skip
_UNKNOWN_QUESTIONS = [
    "Who is {thing}?", "Who wrote {thing}?", "Who invented the {thing}?", "What is the population of {thing}?",
    "How tall is {thing}?", "When was {thing} born?", "What is the price of {thing}?", "What happened in {year}?",
    "Who won the {thing} cup in {year}?", "How far is {thing} from here?", "Why is the {thing} so important?",
    "How old is {thing}?", "What time is it in {thing}?", "What is the meaning of {thing}?", "What is {thing}?",
    "Who is the president of {thing}?", "Can you explain {thing}?", "How does {thing} work?", "Where is {thing}?",
    "Translate {thing} into French.", "Write a poem about {thing}.", "Explain {thing} to me.", "Is {thing} good?",
    "What do you think about {thing}?", "How do I make {thing}?", "Give me a recipe for {thing}.",
    "What is the best {thing}?", "Why is the {thing} {other}?", "Do you like {thing}?", "How many {thing} are there?",
    "What is the weather in {thing}?", "Write a program for the {thing}.", "Tell me about {thing}.",
    "What is the difference between {thing} and {other}?", "When did {thing} begin?", "Can {thing} fly?",
    "Which {thing} is the largest?", "Describe a {thing}.", "Summarize {thing}.", "Should I buy a {thing}?",
]  # fmt: skip
_TOO_HARD_SUMS = [
    "What is {a} {sign} {b}?",
    "{a} {sign} {b}",
    "Calculate {a} {sign} {b}.",
    "How much is {a} {sign} {b}?",
]


def greet(draw: Draw) -> Turn:
    """Greetings, thanks, farewells and what the model says about itself."""
    while True:
        questions, answer = draw.rng.choice(_GREETINGS)
        question = draw.rng.choice(questions) + draw.rng.choice(_GREETING_ENDINGS)
        if draw.chance(0.3):
            question = question.lower()
        held_out = is_held_out("greet", question) and question not in _FIRST_WORDS
        if held_out == (draw.split == "test"):
            return Turn(question, answer)


def capital(draw: Draw) -> Turn:
    """The capital of a country; sometimes asked in lower case, as people type."""
    country, template = draw.phrased("capital", list(CAPITALS), CAPITAL_QUESTIONS)
    question = template.format(country=country)
    city = CAPITALS[country]
    return Turn(
        question.lower() if draw.chance(0.12) else question,
        f"The capital of {country} is {city}.",
        {"capital": city},
    )


def country(draw: Draw) -> Turn:
    """The country of a capital."""
    name, template = draw.phrased("country", list(CAPITALS), COUNTRY_QUESTIONS)
    city = CAPITALS[name]
    return Turn(template.format(city=city), f"{city} is the capital of {name}.", {"country": name})


def _operands(draw: Draw, sign: str) -> tuple[int, int]:
    """Two numbers below 100, held out as a pair.

    Training sees many small operands, which teach the table of digits that the large ones are made of.  Most
    subtractions have a result of at least zero.
    """

    def candidate() -> tuple[int, int]:
        small = draw.rng.random() if draw.split == "train" else 1.0
        first = draw.rng.randrange(10 if small < 0.15 else 100)
        second = draw.rng.randrange(10 if small < 0.3 else 100)
        if draw.chance(0.5):
            first, second = second, first
        if sign == "-" and first < second and draw.chance(0.7):
            first, second = second, first
        return first, second

    return draw.pick(candidate, "sum", sign)


def _sum_turn(question: str, a: int, b: int, sign: str) -> Turn:
    result = a + b if sign == "+" else a - b
    # The answer restates the task, so that the digits of the result stand next to the digits they depend on.
    expression = f"{a} {sign} {b}"
    return Turn(question, f"{expression} = {result}", {"expression": expression, "result": result})


def add(draw: Draw) -> Turn:
    """The sum of two numbers below 100."""
    a, b = _operands(draw, "+")
    return _sum_turn(draw.rng.choice(_ADD_QUESTIONS).format(a=a, b=b), a, b, "+")


def subtract(draw: Draw) -> Turn:
    """The difference of two numbers below 100."""
    a, b = _operands(draw, "-")
    return _sum_turn(draw.rng.choice(_SUBTRACT_QUESTIONS).format(a=a, b=b), a, b, "-")


def opposite(draw: Draw) -> Turn:
    """The opposite of a word."""
    word, template = draw.phrased("opposite", list(OPPOSITES), OPPOSITE_QUESTIONS)
    answer = OPPOSITES[word]
    return Turn(template.format(word=word), f"The opposite of {word} is {answer}.", {"opposite": answer})


def spell(draw: Draw) -> Turn:
    """The letters of a word, joined by hyphens; some words are capitalised."""
    word = draw.word()
    if draw.chance(0.08):
        word = word.capitalize()
    letters = "-".join(word)
    return Turn(draw.rng.choice(SPELL_QUESTIONS).format(word=word), letters, {"spelling": letters})


def repeat(draw: Draw) -> Turn:
    """A phrase, word for word; sometimes capitalised, closed by a number or a full stop."""
    phrase = draw.pick(lambda: draw.training().phrase(1, 7), "phrase")
    if draw.chance(0.15):
        phrase = phrase.capitalize()
    if draw.chance(0.1):
        phrase += f" {draw.rng.randrange(1000)}"
    template = draw.rng.choice(REPEAT_QUESTIONS)
    if template.endswith("{phrase}") and draw.chance(0.15):
        phrase += draw.rng.choice(".!")
    return Turn(template.format(phrase=phrase), phrase, {"text": phrase})


def unknown(draw: Draw) -> Turn:
    """Questions that the model cannot answer: it has to say so and not to invent something."""

    def candidate() -> str:
        rng = draw.rng
        kind = rng.random()
        if kind < 0.1:
            return rng.choice(CAPITAL_QUESTIONS).format(country=draw.made_up_word().capitalize())
        if kind < 0.2:
            strangers = [word for word in WORDS if word not in OPPOSITES]
            return rng.choice(OPPOSITE_QUESTIONS).format(word=rng.choice(strangers))
        if kind < 0.3:
            a, b, sign = rng.choice(
                [
                    (rng.randrange(100, 10_000), rng.randrange(1, 10_000), rng.choice("+-")),
                    (rng.randrange(100), rng.randrange(100), rng.choice("*/")),
                ]
            )
            return rng.choice(_TOO_HARD_SUMS).format(a=a, b=b, sign=sign)
        things = [rng.choice(WORDS), rng.choice(list(CAPITALS)), draw.made_up_word().capitalize()]
        thing = rng.choices(things, (0.5, 0.2, 0.3))[0]
        template = rng.choice(_UNKNOWN_QUESTIONS)
        return template.format(thing=thing, other=rng.choice(WORDS), year=rng.randint(1000, 2030))

    return Turn(draw.pick(candidate, "unknown"), UNKNOWN_ANSWER)


def story(draw: Draw) -> Turn:
    """A long answer."""
    topic, template = draw.phrased("story", TOPICS, STORY_QUESTIONS)
    return Turn(template.format(topic=topic), tell_story(draw, topic), topic=topic)


_EXTRACTIONS: list[tuple[str, list[str]]] = [
    (
        "age",
        [
            "{name} is {value} years old. Answer in JSON with name and age.",
            "Extract name and age as JSON: {name} is {value} years old.",
            "Extract name and age as JSON: {name}, aged {value}.",
        ],
    ),
    (
        "city",
        [
            "{name} lives in {value}. Answer in JSON with name and city.",
            "Extract name and city as JSON: {name} lives in {value}.",
            "Extract name and city as JSON: {name} is from {value}.",
        ],
    ),
]
_JSON_ENDINGS = [
    "Answer in JSON.", "Reply in JSON.", "Respond in JSON.", "Answer as JSON.", "Use JSON.", "Please answer in JSON.",
    "Give the answer as JSON.",
]  # fmt: skip
_JSON_BEGINNINGS = ["Answer in JSON:", "Reply in JSON:", "As JSON:", "In JSON:", "Answer as JSON:"]


def extract(draw: Draw) -> Turn:
    """A name and another value, taken out of a sentence."""
    field, templates = draw.rng.choice(_EXTRACTIONS)
    name = draw.name()
    value: str | int = draw.rng.randint(1, 99) if field == "age" else draw.rng.choice(CITIES)
    fields: JsonObject = {"name": name, field: value}
    return Turn(draw.rng.choice(templates).format(name=name, value=value), json.dumps(fields), fields)


def ask_for_json(draw: Draw) -> Turn:
    """A question of another skill that asks for JSON itself."""
    if draw.chance(0.25):
        return extract(draw)
    skill = draw.rng.choices([capital, country, add, subtract, opposite, spell, unknown], (4, 3, 4, 4, 4, 1, 1))[0]
    turn = skill(draw)
    if draw.chance(0.6):
        ending = draw.rng.choice(_JSON_ENDINGS)
        separator = " " if turn.question[-1] in ".?!=" else ". "
        return turn.as_json(f"{turn.question}{separator}{ending}")
    question = turn.question
    if question.startswith(("What", "Which", "How")) and draw.chance(0.7):
        question = question[0].lower() + question[1:]
    return turn.as_json(f"{draw.rng.choice(_JSON_BEGINNINGS)} {question}")
