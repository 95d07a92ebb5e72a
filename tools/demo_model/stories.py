"""The long answers: a small grammar of stories, and a check that a text belongs to it."""

import re

from facts import ANIMALS, words
from sampling import Draw, stable_hash

TOPICS = ANIMALS + words("king queen wizard dragon robot sailor farmer baker ghost giant pirate knight")

# Stands for a story whose topic the model may choose.
ANY_TOPIC = "*"

STORY_QUESTIONS = [
    "Tell me a story about a {topic}.",
    "Tell me a short story about a {topic}.",
    "Write a story about a {topic}.",
    "Write a short story about a {topic}.",
    "Can you tell me a story about a {topic}?",
    "Please tell me a story about a {topic}.",
]

_HERO_NAMES = words("Milo Luna Pip Nora Toby Ella Max Ruby")

_SLOTS: dict[str, list[str]] = {
    "adjective": words("small brave clever quiet friendly curious old young happy gentle"),
    "place": [
        "a green forest",
        "a quiet village",
        "a house by the sea",
        "a valley full of flowers",
        "an old castle",
        "a garden near the river",
    ],
    "thing": ["a golden key", "a silver lamp", "an old map", "a shiny stone", "a red box", "a tiny boat"],
    "spot": ["under a tree", "behind the hill", "near the bridge", "beside the road", "on the beach", "in the snow"],
    "feeling": words("surprised excited nervous proud hopeful glad"),
    "helper": [
        "a wise owl",
        "a kind farmer",
        "a little mouse",
        "an old sailor",
        "a singing bird",
        "a friendly dragon",
    ],
}

# One sentence per stage.  {topic} and {hero} stay the same through the story, a slot is drawn anew each time.
_STAGES: list[list[str]] = [
    [
        "Once upon a time there was a {adjective} {topic} named {hero}.",
        "Long ago there lived a {adjective} {topic} called {hero}.",
    ],
    ["{hero} lived in {place}.", "The {topic} had a home in {place}."],
    ["One day {hero} found {thing} {spot}.", "One morning {hero} saw {thing} {spot}."],
    ["{hero} was very {feeling} and wanted to know where it came from.", "{hero} felt {feeling} and looked around."],
    ['Then {hero} met {helper}, who said: "Follow me!"', 'Soon {helper} came along and asked: "Do you need help?"'],
    [
        "Together they walked for a long time until they came to {place}.",
        "They talked all day and became good friends.",
    ],
    [
        "There they shared some food and laughed a lot.",
        "In the evening they looked at the stars and sang a song.",
    ],
    [
        "From that day on, {hero} was never alone.",
        "And {hero} lived happily ever after.",
        "That night {hero} slept well and dreamed of new adventures.",
        "Everyone in the land still talks about {hero} today.",
    ],
]


def tell_story(draw: Draw, topic: str) -> str:
    """A random story about the topic; the choices are free, so that the model learns a grammar and not a text."""
    hero = _HERO_NAMES[stable_hash("hero", topic) % len(_HERO_NAMES)]
    sentences = []
    for stage in _STAGES:
        slots = {slot: draw.rng.choice(fillers) for slot, fillers in _SLOTS.items()}
        sentences.append(draw.rng.choice(stage).format(topic=topic, hero=hero, **slots))
    return " ".join(sentences)


def _sentence_pattern(sentence: str, topic: str, hero: str) -> str:
    fixed = {"topic": re.escape(topic), "hero": re.escape(hero)}
    parts = re.split(r"\{(\w+)\}", sentence)
    pattern = ""
    for position, part in enumerate(parts):
        if position % 2 == 0:
            pattern += re.escape(part)
        else:
            pattern += fixed.get(part) or "(?:" + "|".join(map(re.escape, _SLOTS[part])) + ")"
    return pattern


def is_story(text: str, topic: str) -> bool:
    """Whether the text is a sentence of the grammar, about the topic, with one hero from beginning to end."""
    hero = re.search(r"(?:named|called) (\w+)\.", text)
    if hero is None:
        return False
    if topic == ANY_TOPIC:
        return any(is_story(text, each) for each in TOPICS)
    stages = [
        "(?:" + "|".join(_sentence_pattern(sentence, topic, hero[1]) for sentence in stage) + ")" for stage in _STAGES
    ]
    return re.fullmatch(" ".join(stages), text) is not None
