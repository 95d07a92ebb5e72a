"""The text of a conversation: as the training sees it, and as the chat template of the shipped model renders it.

Both are written down here, one in Python and one in Jinja, and `check_chat_template` holds them together: a model
this small falls apart when a single character of its prompt differs from what it was trained on.
"""

import json
import random
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import jinja2.ext
import jinja2.sandbox
from conversations import Conversation, draw_conversation
from recipe import EVERYDAY_MIX
from sampling import Draw
from tool_use import Message

END_OF_TEXT = "<|endoftext|>"
MESSAGE_START = "<|im_start|>"
MESSAGE_END = "<|im_end|>"
SPECIAL_TOKENS = [END_OF_TEXT, MESSAGE_START, MESSAGE_END]
# Ordinary text for the decoder: a reader of the answer has to see these.
TOOL_MARKS = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]

_TOOLS_BEFORE = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_TOOLS_AFTER = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
    "</tool_call>"
)

CHAT_TEMPLATE = """\
{%- set first_is_system = messages and messages[0].role == 'system' %}
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if first_is_system %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- TOOLS_BEFORE }}
    {%- for tool in tools %}
        {{- '\\n' }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- TOOLS_AFTER + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if message.content %}
            {{- message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if message.content or not loop.first %}
                {{- '\\n' }}
            {%- endif %}
            {%- set call = tool_call.function or tool_call %}
            {{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif not (tools and loop.first and message.role == 'system') %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""".replace("TOOLS_BEFORE", json.dumps(_TOOLS_BEFORE)).replace("TOOLS_AFTER", json.dumps(_TOOLS_AFTER))

ANSWER_PROMPT = f"{MESSAGE_START}assistant\n"


def tools_prompt(schemas: Iterable[dict[str, Any]], sort_keys: bool = False) -> str:
    """The part of the system prompt that offers tools."""
    lines = (json.dumps(schema, ensure_ascii=False, sort_keys=sort_keys) for schema in schemas)
    return _TOOLS_BEFORE + "".join(f"\n{line}" for line in lines) + _TOOLS_AFTER


def answer_text(message: Message) -> str:
    """What the model itself has to write for an assistant message, without the end mark."""
    functions = [call["function"] for call in message.get("tool_calls", [])]
    calls = [
        f'<tool_call>\n{{"name": "{function["name"]}", "arguments": {function["arguments"]}}}\n</tool_call>'
        for function in functions
    ]
    return "\n".join([message["content"], *calls] if message["content"] else calls)


def training_spans(conversation: Conversation) -> list[tuple[str, bool]]:
    """The text of a conversation in pieces; True marks what the model learns to write."""
    spans: list[tuple[str, bool]] = []
    messages = conversation.messages
    if conversation.tools:
        system_prompt = tools_prompt(conversation.tools, conversation.sorted_schemas)
        if messages and messages[0]["role"] == "system":
            system_prompt = f"{messages[0]['content']}\n\n{system_prompt}"
            messages = messages[1:]
        spans.append((f"{MESSAGE_START}system\n{system_prompt}{MESSAGE_END}\n", False))
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "assistant":
            spans.append((ANSWER_PROMPT, False))
            spans.append((answer_text(message) + MESSAGE_END, True))
            spans.append(("\n", False))
        elif role == "tool":
            response = f"<tool_response>\n{content}\n</tool_response>"
            spans.append((f"{MESSAGE_START}user\n{response}{MESSAGE_END}\n", False))
        else:
            spans.append((f"{MESSAGE_START}{role}\n{content}{MESSAGE_END}\n", False))
    return spans


def training_text(conversation: Conversation) -> str:
    """The whole text of a conversation."""
    return "".join(text for text, _ in training_spans(conversation))


def prompt_text(conversation: Conversation) -> str:
    """The text after which the model has to answer the last message."""
    return training_text(conversation) + ANSWER_PROMPT


def render_template(conversation: Conversation, *, add_generation_prompt: bool, template: str = CHAT_TEMPLATE) -> str:
    """Render the chat template as the common engines do: sandboxed, trimmed blocks, JSON that keeps the key order."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(template).render(
        messages=conversation.messages, tools=conversation.tools or None, add_generation_prompt=add_generation_prompt
    )


def _with_parsed_arguments(conversation: Conversation) -> Conversation:
    """The same conversation with the arguments of the calls as objects, the other form that callers use."""

    def parsed(call: dict[str, Any]) -> dict[str, Any]:
        function = call["function"]
        return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}

    messages = [
        {**message, "content": None, "tool_calls": [parsed(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in conversation.messages
    ]
    return replace(conversation, messages=messages)


def check_chat_template(template: str, count: int = 500, seed: int = 3) -> None:
    """Raise ValueError when the template renders any of `count` conversations differently from the training text."""
    draw = Draw(random.Random(seed))
    for _ in range(count):
        conversation = replace(draw_conversation(draw, EVERYDAY_MIX), sorted_schemas=False)
        for variant in (conversation, _with_parsed_arguments(conversation)):
            for generate, expected in ((False, training_text(conversation)), (True, prompt_text(conversation))):
                rendered = render_template(variant, add_generation_prompt=generate, template=template)
                if rendered != expected:
                    raise ValueError(f"the chat template renders\n{rendered!r}\nbut the training saw\n{expected!r}")
