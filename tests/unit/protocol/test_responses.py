"""Objects of responses that are made without their checks."""

from __future__ import annotations

import json
import subprocess
import sys

from windlass.protocol.responses import ChatChunkChoice, ChatDelta, Completion, CompletionChoice, unchecked


def test_an_unchecked_object_is_the_checked_one() -> None:
    choice = unchecked(CompletionChoice, index=0, text="x", finish_reason="stop")
    made = unchecked(Completion, id="a", created=1, model="m", choices=[choice])
    checked = Completion(
        id="a", created=1, model="m", choices=[CompletionChoice(index=0, text="x", finish_reason="stop")]
    )
    assert made == checked
    assert repr(made) == repr(checked)
    assert made.model_fields_set == checked.model_fields_set
    assert made.model_dump_json() == checked.model_dump_json()
    assert Completion.model_validate_json(made.model_dump_json()) == checked


def test_fields_that_json_leaves_out() -> None:
    chunk = unchecked(ChatChunkChoice, index=0, delta=unchecked(ChatDelta, content="x"), stop_string="y")
    assert json.loads(chunk.model_dump_json()) == {"index": 0, "delta": {"content": "x"}, "finish_reason": None}
    assert chunk.stop_string == "y"


def test_the_way_to_json_is_made_when_it_is_asked_for() -> None:
    script = (
        "import pydantic\n"
        "from windlass.protocol.responses import Completion, CompletionChoice, unchecked\n"
        "choice = unchecked(CompletionChoice, index=0, text='x')\n"
        "waits = tuple(map(int, pydantic.VERSION.split('.')[:2])) >= (2, 14)\n"
        "assert CompletionChoice.__pydantic_complete__ is not waits\n"
        "assert choice.model_dump()['text'] == 'x'\n"
        "assert CompletionChoice.__pydantic_complete__\n"
        # As part of something that does not know the type, which is not made yet either.
        "whole = unchecked(Completion, id='a', created=1, model='m', choices=[choice])\n"
        "assert b'\"text\":\"x\"' in pydantic.TypeAdapter(dict).dump_json({'part': whole})\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
