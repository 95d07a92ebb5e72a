"""Conversations with tools: schemas in the system prompt, calls as JSON, answers from the results."""

import json
from dataclasses import dataclass
from typing import Any

from facts import CAPITALS, CITIES
from sampling import Draw

Message = dict[str, Any]

_SKIES = ["sunny", "rainy", "cloudy", "windy", "snowy", "foggy", "stormy", "clear"]
_LANGUAGES = ["French", "German", "Spanish", "Italian", "Latin", "Greek", "Polish", "Dutch"]
_STATUSES = ["ok", "done", "failed", "ready"]
_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("unit", {"type": "string", "enum": ["celsius", "fahrenheit"]}),
    ("unit", {"type": "string", "description": "The unit of the result"}),
    ("format", {"type": "string", "enum": ["short", "long"]}),
    ("limit", {"type": "integer", "description": "The number of results"}),
    ("country", {"type": "string"}),
    ("verbose", {"type": "boolean"}),
]


@dataclass(frozen=True)
class Parameter:
    """A parameter of a tool: the kind of its values, and the names it may have in a schema."""

    kind: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Tool:
    """A tool as the corpus knows it.

    `names`, and the names of the parameters, are alternatives: the call has to use the one that the schema shows.
    Templates refer to parameters by their key in `parameters`; `{result}` is the value that the tool returned.
    """

    names: tuple[str, ...]
    description: str
    parameters: dict[str, Parameter]
    questions: tuple[str, ...]
    result_field: str
    result_kind: str
    answer: str


_CITY = Parameter("city", ("city", "city", "city", "location", "place"))

KNOWN_TOOLS: list[Tool] = [
    Tool(
        ("get_weather", "get_weather", "weather", "get_current_weather"),
        "Get the weather of a city",
        {"city": _CITY},
        (
            "What is the weather in {city}?",
            "How is the weather in {city}?",
            "Weather in {city}?",
            "What's the weather like in {city}?",
        ),
        "weather",
        "sky",
        "The weather in {city} is {result}.",
    ),
    Tool(
        ("get_time", "get_time", "get_current_time"),
        "Get the time in a city",
        {"city": _CITY},
        ("What time is it in {city}?", "Tell me the time in {city}.", "What is the time in {city}?"),
        "time",
        "clock",
        "It is {result} in {city}.",
    ),
    Tool(
        ("get_price",),
        "Get the price of an item",
        {"item": Parameter("word", ("item", "item", "product"))},
        ("What is the price of {item}?", "How much does {item} cost?"),
        "price",
        "number",
        "The price of {item} is {result}.",
    ),
    Tool(
        ("get_population",),
        "Get the population of a city",
        {"city": _CITY},
        ("How many people live in {city}?", "What is the population of {city}?"),
        "population",
        "number",
        "{city} has {result} people.",
    ),
    Tool(
        ("get_phone", "get_phone", "find_phone"),
        "Look up a phone number",
        {"name": Parameter("name", ("name", "name", "person"))},
        ("What is the phone number of {name}?", "Find the phone number of {name}."),
        "phone",
        "number",
        "The phone number of {name} is {result}.",
    ),
    Tool(
        ("translate",),
        "Translate a word",
        {"word": Parameter("word", ("word", "word", "text")), "language": Parameter("language", ("language",))},
        ("Translate {word} into {language}.", "How do you say {word} in {language}?"),
        "translation",
        "word",
        "{word} in {language} is {result}.",
    ),
    Tool(
        ("multiply",),
        "Multiply two numbers",
        {"a": Parameter("number", ("a", "a", "x")), "b": Parameter("number", ("b", "b", "y"))},
        ("What is {a} times {b}?", "Multiply {a} by {b}.", "What is {a} * {b}?"),
        "result",
        "number",
        "{a} times {b} is {result}.",
    ),
    Tool(
        ("set_alarm",),
        "Set an alarm",
        {"time": Parameter("clock", ("time",))},
        ("Set an alarm for {time}.", "Wake me at {time}."),
        "status",
        "status",
        "The alarm for {time} is {result}.",
    ),
    Tool(
        ("send_message", "send_message", "send_mail"),
        "Send a message to a person",
        {"to": Parameter("name", ("to", "to", "name")), "text": Parameter("phrase", ("text", "text", "message"))},
        ("Send {to} the message: {text}", "Tell {to}: {text}"),
        "status",
        "status",
        "The message to {to} is {result}.",
    ),
    Tool(
        ("play_music", "play_music", "play_song"),
        "Play a song",
        {"song": Parameter("phrase", ("song", "song", "title"))},
        ("Play the song {song}.", "Play {song}."),
        "status",
        "status",
        "The song {song} is {result}.",
    ),
    Tool(
        ("search", "search", "web_search"),
        "Search the web",
        {"query": Parameter("phrase", ("query",))},
        ("Search for {query}.", "Search the web for {query}."),
        "result",
        "word",
        "I found this: {result}.",
    ),
]


def draw_value(draw: Draw, kind: str) -> str | int:
    """A value of one of the parameter kinds."""
    rng = draw.rng
    match kind:
        case "city":
            if draw.chance(0.7):
                return rng.choice(CITIES)
            return draw.pick(lambda: draw.made_up_word().capitalize(), "city")
        case "place":
            country = rng.choice(list(CAPITALS))
            made_up = f"{draw.made_up_word().capitalize()} {draw.made_up_word().capitalize()}"
            return rng.choice((rng.choice(CITIES), f"{CAPITALS[country]}, {country}", made_up))
        case "word":
            return draw.word()
        case "name":
            return draw.name()
        case "phrase":
            return draw.phrase(1, 4)
        case "number":
            return rng.randrange(1000) if draw.chance(0.7) else rng.randrange(100_000)
        case "clock":
            return f"{rng.randrange(24):02d}:{rng.randrange(60):02d}"
        case "language":
            return rng.choice(_LANGUAGES)
        case "sky":
            return rng.choice(_SKIES)
        case "status":
            return rng.choice(_STATUSES)
    raise ValueError(f"unknown kind of value: {kind}")


@dataclass(frozen=True)
class OfferedTool:
    """A tool as one conversation shows it, with its names chosen.

    `names` maps the parameter keys of the tool to the names in the schema.  `fixed_request` is set for tools that
    nobody has seen before: their question spells out the arguments (name and value), as nothing else could tell.
    """

    tool: Tool
    name: str
    names: dict[str, str]
    schema: dict[str, Any]
    fixed_request: tuple[str, dict[str, str | int]] | None = None
    rich: bool = False

    @classmethod
    def of(cls, draw: Draw, tool: Tool, rich: bool = False) -> "OfferedTool":
        """Choose the names, and how detailed the schema is.

        A rich schema has an optional parameter that the question does not mention and the call leaves out; places
        in its question may have a country or two words, and be followed by "today".
        """
        name = draw.rng.choice(tool.names)
        names = {key: draw.rng.choice(parameter.names) for key, parameter in tool.parameters.items()}
        with_descriptions = draw.chance(0.25)
        properties: dict[str, dict[str, str]] = {}
        for key, parameter in tool.parameters.items():
            properties[names[key]] = {"type": "integer" if parameter.kind == "number" else "string"}
            if with_descriptions:
                properties[names[key]]["description"] = f"The {key}"
        parameters: dict[str, Any] = {"type": "object", "properties": properties}
        if rich or draw.chance(0.85):
            parameters["required"] = list(properties)
        if rich and draw.chance(0.7):
            name_of_option, option = draw.rng.choice(_OPTIONS)
            properties.setdefault(name_of_option, option)
        function: dict[str, Any] = {"name": name}
        if draw.chance(0.85):
            function["description"] = tool.description
        function["parameters"] = parameters
        return cls(tool, name, names, {"type": "function", "function": function}, rich=rich)

    def request(self, draw: Draw) -> tuple[str, dict[str, str | int]]:
        """A question that needs the tool, and the values it mentions, by parameter key."""
        if self.fixed_request is not None:
            return self.fixed_request
        kinds = {key: parameter.kind for key, parameter in self.tool.parameters.items()}
        if self.rich:
            kinds = {key: "place" if kind == "city" else kind for key, kind in kinds.items()}
        values = {key: draw_value(draw, kind) for key, kind in kinds.items()}
        question = draw.rng.choice(self.tool.questions).format(**values)
        if "place" in kinds.values() and draw.chance(0.3):
            question = question[:-1] + draw.rng.choice((" today", " now", " right now", " tomorrow", ", please")) + "?"
        return question, values


def _identifier(draw: Draw) -> str:
    """A name of one letter, one word or several, in the usual ways of writing them."""
    kind = draw.rng.random()
    if kind < 0.25:
        return draw.rng.choice("abcdefghijklmnopqrstuvwxyz")
    if kind < 0.6:
        return draw.word()
    if kind < 0.75:
        return draw.word() + draw.word().capitalize()
    return "_".join(draw.word() for _ in range(draw.rng.choice((2, 2, 3))))


def draw_unseen_tool(draw: Draw, rich: bool = False) -> OfferedTool:
    """A tool with made-up names: all of the call has to be copied from the schema and the question."""
    parameter_name = (lambda: _identifier(draw)) if rich else draw.word
    keys = list(dict.fromkeys(parameter_name() for _ in range(draw.rng.choice((1, 1, 2, 2, 3)))))
    kinds = {key: draw.rng.choice(("word", "number", "phrase", "name")) for key in keys}
    name = _identifier(draw) if rich else f"{draw.word()}_{draw.word()}"
    tool = Tool(
        (name,),
        draw.phrase(2, 4).capitalize(),
        {key: Parameter(kind, (key,)) for key, kind in kinds.items()},
        (),
        "result",
        draw.rng.choice(("word", "number")),
        "The result is {result}.",
    )
    offered = OfferedTool.of(draw, tool, rich)
    values = {key: draw_value(draw, kind) for key, kind in kinds.items()}
    pairs = " and ".join(f"{key} = {value}" for key, value in values.items())
    verb = draw.rng.choice(("Call", "Use", "Please call", "Run"))
    return OfferedTool(tool, name, offered.names, offered.schema, (f"{verb} {name} with {pairs}.", values), rich)


def call_message(name: str, arguments: dict[str, str | int]) -> Message:
    """An assistant message with one tool call, in the shape of the OpenAI API (arguments as a JSON text)."""
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


def tool_round(draw: Draw, offered: OfferedTool) -> list[Message]:
    """Four messages: the question, the call, the result of the tool, the answer."""
    question, values = offered.request(draw)
    arguments = {offered.names[key]: value for key, value in values.items()}
    result = draw_value(draw, offered.tool.result_kind)
    bare = draw.chance(0.15)
    # An unseen tool may have a parameter whose name is no identifier of a template; its answer uses none of them.
    known_values = {} if offered.fixed_request else values
    return [
        {"role": "user", "content": question},
        call_message(offered.name, arguments),
        {"role": "tool", "content": str(result) if bare else json.dumps({offered.tool.result_field: result})},
        {"role": "assistant", "content": offered.tool.answer.format(result=result, **known_values)},
    ]


def offer_tools(
    draw: Draw, unseen: OfferedTool | None, fewest: int, most: int, rich: bool = False
) -> list[OfferedTool]:
    """Some known tools and the unseen one, in random order."""
    tools = [OfferedTool.of(draw, tool, rich) for tool in draw.rng.sample(KNOWN_TOOLS, draw.rng.randint(fewest, most))]
    if unseen is not None:
        tools.append(unseen)
    draw.rng.shuffle(tools)
    return tools
