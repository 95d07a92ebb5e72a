from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.text_files import CHATML, bos_processor, byte_level_tokenizer, write_json
from windlass.errors import InvalidRequestError, LoadError
from windlass.text.text_model import TextModel

USER = {"role": "user", "content": "he"}
CONFIG = {"eos_token_id": 258}


def write(directory: Path, tokenizer_config: dict[str, Any] | None = None) -> Path:
    tokenizer = byte_level_tokenizer(post_processor=bos_processor("<|im_start|>", 259))
    return write_json(directory, tokenizer=tokenizer, tokenizer_config=tokenizer_config or {})


def test_a_hugging_face_directory(tmp_path: Path) -> None:
    source = "{{ messages[0].content }}<|im_end|>{{ messages | length }}"
    write(tmp_path, {"eos_token": "<|im_end|>", "chat_template": source})
    write_json(tmp_path, generation_config={"temperature": 0.5})
    text = TextModel.load(tmp_path, CONFIG, None)
    assert text.encode_prompt("he") == [259, 256]
    assert text.encode_chat([USER]) == [256, 260, *b"1"]
    assert text.decode([256, 260]) == "he"
    assert text.stop_token_ids == {258, 260}
    assert text.defaults.temperature == 0.5
    assert text.vocab_size == 261


def test_the_templates_end_of_turn_is_a_stop(tmp_path: Path) -> None:
    text = TextModel.load(write(tmp_path, {"chat_template": CHATML}), CONFIG, None)
    assert text.stop_token_ids == {258, 260}
    text = TextModel.load(write(tmp_path, {"chat_template": CHATML.replace("<|im_end|>", "<|over|>")}), CONFIG, None)
    assert (text.stop_token_ids, text.stop_strings) == ({258}, ("<|over|>",))


def test_an_mlc_directory(tmp_path: Path) -> None:
    conversation = {
        "roles": {"user": "U:", "assistant": "A:"},
        "seps": ["\n"],
        "system_prefix_token_ids": [258],
        "stop_str": ["<|im_end|>"],
        "stop_token_ids": [2],
    }
    write(tmp_path, {"chat_template": CHATML, "eos_token": "<|im_start|>"})
    mlc = {"conv_template": conversation, "eos_token_id": 1}
    text = TextModel.load(tmp_path, {}, mlc)
    assert text.encode_prompt("he") == [256]
    assert text.encode_chat([USER]) == [258, *b"U:", 256, *b"\nA:"]
    assert text.stop_token_ids == {1, 2, 260}
    del mlc["conv_template"]
    assert TextModel.load(tmp_path, {}, mlc).encode_chat([USER])[0] == 259


def test_without_a_template_only_chat_is_refused(tmp_path: Path) -> None:
    text = TextModel.load(write(tmp_path), CONFIG, None)
    assert text.encode_prompt("he") == [259, 256]
    with pytest.raises(InvalidRequestError, match="no chat template; use text completions") as caught:
        text.encode_chat([USER])
    assert caught.value.param == "messages"


def test_template_arguments_are_passed_on(tmp_path: Path) -> None:
    text = TextModel.load(write(tmp_path, {"chat_template": "{{ mood }}"}), CONFIG, None)
    assert text.encode_chat([USER], template_kwargs={"mood": "x"}) == [*b"x"]


def test_streams(tmp_path: Path) -> None:
    text = TextModel.load(write(tmp_path), CONFIG, None)
    stream = text.detokenizer()
    assert [stream.push(token_id) for token_id in (*"é".encode(), 258, 256)] == ["", "é", "", "he"]
    assert text.detokenizer("é".encode()[:1]).push("é".encode()[1]) == "é"


def test_stop_strings_that_are_tokens(tmp_path: Path) -> None:
    text = TextModel.load(write(tmp_path), CONFIG, None)
    assert text.stop_ids_of(["<|im_end|>", "he", "x"]) == {260}


def test_a_dummy_without_tokenizer_takes_token_ids_only(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="has no tokenizer"):
        TextModel.load(tmp_path, CONFIG, None)
    text = TextModel.load(tmp_path, CONFIG, None, dummy=True)
    assert text.vocab_size is None
    assert text.stop_token_ids == {258}
    assert text.decode([1, 23]) == "<1><23>"
    stream = text.detokenizer([5])
    assert [stream.push(1), stream.push(999999), stream.flush()] == ["<1>", "<999999>", ""]
    with pytest.raises(InvalidRequestError, match="the prompt must be token ids"):
        text.encode_prompt("he")
    with pytest.raises(InvalidRequestError, match="text completions with token ids"):
        text.encode_chat([USER])
    assert text.stop_ids_of(["<|im_end|>"]) == frozenset()


def test_a_dummy_with_a_tokenizer_uses_it(tmp_path: Path) -> None:
    assert TextModel.load(write(tmp_path), CONFIG, None, dummy=True).encode_prompt("he") == [259, 256]


def test_importing_the_room_is_light() -> None:
    code = (
        "import sys, windlass.text.text_model, windlass.text.conv_match\n"
        "heavy = {'transformers', 'torch', 'jinja2', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_conversation_is_written_as_it_is_encoded(tmp_path: Path) -> None:
    kwargs = {"template_kwargs": {"n": 3}, "tools": None}
    write(tmp_path, {"chat_template": CHATML + "{{ n }}"})
    text = TextModel.load(tmp_path, CONFIG, None)
    assert text.write_chat([USER], **kwargs).endswith("<|im_start|>assistant\n3")
    assert text.tokenizer.encode_template(text.write_chat([USER], **kwargs)) == text.encode_chat([USER], **kwargs)
    # Special tokens in the users' own text are shown as they wrote them.
    assert "<|im_end|>x" in text.write_chat([{"role": "user", "content": "<|im_end|>x"}])
    with pytest.raises(InvalidRequestError, match="must not set messages"):
        text.write_chat([USER], template_kwargs={"messages": []})
    conversation = {"roles": {"user": "U:", "assistant": "A:"}, "seps": ["\n"], "system_prefix_token_ids": [260]}
    mlc = TextModel.load(tmp_path, {}, {"conv_template": conversation, "eos_token_id": 1})
    assert mlc.write_chat([USER]) == "<|im_end|>U:he\nA:"
    with pytest.raises(InvalidRequestError, match="takes no arguments"):
        mlc.write_chat([USER], template_kwargs={"n": 3})


@pytest.mark.parametrize(
    ("source", "effort", "arguments"),
    [
        ("", "low", {}),
        ("{{ enable_thinking }}", "none", {"enable_thinking": False}),
        ("{{ enable_thinking }}", "minimal", {"enable_thinking": True}),
        ("{{ reasoning_effort }}", "high", {"reasoning_effort": "high"}),
        ("{{ reasoning_effort }}{{ enable_thinking }}", "none", {"reasoning_effort": "none", "enable_thinking": False}),
    ],
)
def test_an_effort_reaches_templates_that_know_of_it(
    tmp_path: Path, source: str, effort: str, arguments: dict[str, Any]
) -> None:
    text = TextModel.load(write(tmp_path, {"chat_template": CHATML + source}), CONFIG, None)
    assert text.effort_arguments(effort) == arguments
    if not source:
        conversation = {"roles": {"user": "U:", "assistant": "A:"}, "seps": ["\n"]}
        mlc = TextModel.load(tmp_path, {}, {"conv_template": conversation, "eos_token_id": 1})
        assert mlc.effort_arguments(effort) == {}
    assert TextModel.load(write(tmp_path, {"chat_template": None}), CONFIG, None).effort_arguments(effort) == {}


def test_bos_can_be_asked_for(tmp_path: Path) -> None:
    text = TextModel.load(write(tmp_path), CONFIG, None)
    assert [text.encode_prompt("he", bos=bos) for bos in (None, True, False)] == [[259, 256], [259, 256], [256]]
