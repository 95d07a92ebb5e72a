"""Skills around the plain ones: what people also type, and what only looks like a question the model knows."""

from facts import CAPITALS, FUNCTION_WORDS, MODEL_NAME, MORE_CAPITALS, NAMES, OPPOSITES, WORDS
from sampling import Draw
from skills import (
    CAPITAL_QUESTIONS,
    COUNTRY_QUESTIONS,
    OPPOSITE_QUESTIONS,
    REPEAT_QUESTIONS,
    SPELL_QUESTIONS,
    UNKNOWN_ANSWER,
    Turn,
)
from stories import ANY_TOPIC, TOPICS, tell_story

_HELLO = f"Hello! I am {MODEL_NAME}. How can I help you?"
_SMALL_TALK: list[tuple[list[str], str]] = [
    (
        [
            "Test", "Testing", "This is a test", "Ping", "Are you there", "Yo", "Hello World", "Hello, world", "Hola",
            "Is anybody there", "Can you hear me", "Good afternoon", "Hello again",
        ],
        _HELLO,
    ),
    (
        [
            "Who made you", "Who created you", "Are you ChatGPT", "Are you GPT", "Are you a robot", "Are you human",
            "Are you real", "Hello, who are you", "Hi, who are you", "Which LLM are you", "Are you a bot",
            "What kind of model are you", "How big are you", "Are you a large language model",
        ],
        f"I am {MODEL_NAME}, a very small language model.",
    ),
    (
        [
            "Ok", "Okay", "Yes", "No", "Fine", "Good", "Great", "Cool", "I see", "Nice", "Right", "Sure", "Well done",
            "That is right", "That is wrong", "Very good", "Correct", "Wrong", "Really", "Oh", "Hm", "Wow", "Perfect",
        ],
        "What else can I do for you?",
    ),
]  # fmt: skip
_MOODS = [
    "I am sad", "I am tired", "I am hungry", "I am happy", "I am bored", "I feel good", "I feel bad", "I am sick",
    "I am angry", "I am lonely", "I am fine", "I am good", "I am not well",
]  # fmt: skip
_MOOD_ANSWER = "I am only a very small language model, but I wish you well."
_TASKS = [
    "Count to {number}.", "Tell me a joke.", "Write a haiku.", "Write a song.", "What day is it today?",
    "What is the date today?", "Explain {word} in simple terms.", "Give me a list of three {word}.",
    "Do you speak {name}?", "What is {a} + {b} + {number}?", "{a} + {b} - {number}", "Is {a} a prime number?",
    "What is the square root of {a}?", "What is your favourite {word}?", "Why is the {word} so {thing}?",
    "Write a letter to {name}.", "Who is {name}?", "How do I get to the {word}?",
    "Summarize this: {word} {thing} {word}.", "What should I do about {word}?",
    "Write a function that returns {word}.", "What are the three laws of {word}?", "Translate: {word}",
]  # fmt: skip
_SAY_QUESTIONS = ["Say {phrase}.", "Say {phrase}", "Please say {phrase}.", "Just say {phrase}.", "say {phrase}"]
_STORY_QUESTIONS = [
    "Tell me a story.", "Tell me a short story.", "Tell me a long story.", "Write a story.", "Please tell me a story.",
    "Can you tell me a story?", "Do you know a story?", "Write a short story.", "tell me a story", "I want a story.",
    "Tell me something.", "Tell me another story.", "One more story, please.",
]  # fmt: skip


def more_capitals(draw: Draw) -> Turn:
    """Countries whose names do not fit the plain pattern, in both directions."""
    if draw.chance(0.3):
        country, template = draw.phrased("more countries", list(MORE_CAPITALS), COUNTRY_QUESTIONS)
        city = MORE_CAPITALS[country]
        # Two countries may share a capital; the first one in the list is the answer.
        country = next(name for name, capital in MORE_CAPITALS.items() if capital == city)
        return Turn(template.format(city=city), f"{city} is the capital of {country}.", {"country": country})
    country, template = draw.phrased("more capitals", list(MORE_CAPITALS), CAPITAL_QUESTIONS)
    city = MORE_CAPITALS[country]
    question = template.format(country=country)
    question = question[0].upper() + question[1:]
    return Turn(
        question.lower() if draw.chance(0.15) else question,
        f"The capital of {country} is {city}.",
        {"capital": city},
    )


def stranger(draw: Draw) -> Turn:
    """A known question about something unknown: a country or a city that does not exist, a word without opposite."""

    def candidate() -> str:
        kind = draw.rng.random()
        made_up = draw.made_up_word().capitalize()
        if kind < 0.4:
            question = draw.rng.choice(CAPITAL_QUESTIONS).format(country=made_up)
            return question.lower() if draw.chance(0.12) else question
        if kind < 0.55:
            return draw.rng.choice(COUNTRY_QUESTIONS).format(city=made_up)
        word = draw.rng.choice([word for word in WORDS if word not in OPPOSITES])
        if kind > 0.9:
            word = draw.made_up_word()
        return draw.rng.choice(OPPOSITE_QUESTIONS).format(word=word)

    return Turn(draw.pick(candidate, "unknown"), UNKNOWN_ANSWER)


def _sentence(draw: Draw) -> str:
    """Words in a row that look like a sentence: half of them function words, perhaps with a comma."""
    rng = draw.rng

    def word() -> str:
        kind = rng.random()
        if kind < 0.45:
            return rng.choice(FUNCTION_WORDS)
        if kind < 0.8:
            return rng.choice(WORDS)
        if kind < 0.88:
            return rng.choice(NAMES)
        return draw.training().word(real_share=0.0)

    words = " ".join(word() for _ in range(rng.randint(1, 9)))
    return words.replace(" ", ", ", 1) if draw.chance(0.2) else words


def sentence(draw: Draw) -> Turn:
    """Repeating text that has the function words in it; the plain skill repeats unrelated nouns."""
    phrase = draw.pick(lambda: _sentence(draw), "phrase")
    if draw.chance(0.5):
        phrase = phrase[0].upper() + phrase[1:]
    template = draw.rng.choice(REPEAT_QUESTIONS)
    if template.endswith("{phrase}") and draw.chance(0.4):
        phrase += draw.rng.choice(".!?")
    return Turn(template.format(phrase=phrase), phrase, {"text": phrase})


def say(draw: Draw) -> Turn:
    """Saying something that is neither quoted nor set off by a colon; the full stop belongs to the request."""
    phrase = draw.pick(lambda: _sentence(draw), "phrase")
    return Turn(draw.rng.choice(_SAY_QUESTIONS).format(phrase=phrase), phrase, {"text": phrase})


def spell_piece(draw: Draw) -> Turn:
    """Spelling the words and pieces that the tokenizer has as a whole: their letters can only be known by heart."""

    def candidate() -> str:
        word = draw.rng.choice(FUNCTION_WORDS) if not draw.pieces or draw.chance(0.3) else draw.rng.choice(draw.pieces)
        if draw.chance(0.35):
            word += draw.training().word()
        return word.lower()

    word = draw.pick(candidate, "word")
    if draw.chance(0.15):
        word = word.capitalize()
    letters = "-".join(word)
    return Turn(draw.rng.choice(SPELL_QUESTIONS).format(word=word), letters, {"spelling": letters})


def _noise(draw: Draw) -> str:
    """Text that asks nothing: a statement, a word, or characters of other scripts."""
    kind = draw.rng.random()
    if kind < 0.3:
        return _sentence(draw) + draw.rng.choice(["", ".", "!"])
    if kind < 0.45:
        return " ".join(draw.made_up_word() for _ in range(draw.rng.randint(1, 5))) + draw.rng.choice(["", ".", "?"])
    if kind < 0.6:
        first = draw.rng.choice((0x00C0, 0x0391, 0x0410, 0x05D0, 0x3042, 0x4E00, 0x1F600))
        return "".join(chr(first + draw.rng.randrange(24)) for _ in range(draw.rng.randint(1, 8)))
    a, b, number = (draw.rng.randrange(1, 100) for _ in range(3))
    words = {"word": draw.rng.choice(WORDS), "thing": draw.rng.choice(WORDS), "name": draw.rng.choice(list(CAPITALS))}
    return draw.rng.choice(_TASKS).format(a=a, b=b, number=number, **words)


def small_talk(draw: Draw) -> Turn:
    """Short remarks, moods, and input that means nothing to the model."""

    def candidate() -> tuple[str, str]:
        if draw.chance(0.45):
            return _noise(draw), UNKNOWN_ANSWER
        if draw.chance(0.2):
            text, answer = draw.rng.choice(_MOODS), _MOOD_ANSWER
        else:
            texts, answer = draw.rng.choice(_SMALL_TALK)
            text = draw.rng.choice(texts)
        text += draw.rng.choice(["", ".", "!", "?"])
        return (text.lower() if draw.chance(0.3) else text), answer

    text, answer = draw.pick(candidate, "small talk")
    return Turn(text, answer)


def free_story(draw: Draw) -> Turn:
    """A story about whatever the model likes."""
    question = draw.rng.choice(_STORY_QUESTIONS)
    return Turn(question, tell_story(draw, draw.rng.choice(TOPICS)), topic=ANY_TOPIC)
