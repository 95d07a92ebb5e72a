"""All single-turn skills by name."""

from collections.abc import Callable

import everyday
import skills
from recipe import Mix
from sampling import Draw
from skills import Turn

SKILLS: dict[str, Callable[[Draw], Turn]] = {
    "greet": skills.greet,
    "capital": skills.capital,
    "country": skills.country,
    "add": skills.add,
    "sub": skills.subtract,
    "opposite": skills.opposite,
    "spell": skills.spell,
    "repeat": skills.repeat,
    "json": skills.ask_for_json,
    "unknown": skills.unknown,
    "story": skills.story,
    "more_capitals": everyday.more_capitals,
    "stranger": everyday.stranger,
    "sentence": everyday.sentence,
    "say": everyday.say,
    "spell_piece": everyday.spell_piece,
    "small_talk": everyday.small_talk,
    "free_story": everyday.free_story,
}


def any_turn(draw: Draw, mix: Mix) -> Turn:
    """One turn of a random skill."""
    name = draw.rng.choices(list(mix.skills), list(mix.skills.values()))[0]
    return SKILLS[name](draw)
