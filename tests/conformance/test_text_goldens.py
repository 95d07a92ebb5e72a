"""Reference renders of real chat templates, and reference ids of real tokenizers."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest

from windlass.errors import InvalidRequestError
from windlass.text.chat_template import ChatTemplate
from windlass.text.tokenizer import Tokenizer

NUM_RENDERS = 60
NUM_CASES = 46
END_OF_CASE = "\n__ggml_vocab_test__\n"


def test_chat_templates_render_as_the_reference(data_dir: Path) -> None:
    directory = data_dir / "templates"
    goldens = [json.loads(line) for line in (directory / "goldens.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(goldens) == NUM_RENDERS
    templates: dict[str, ChatTemplate] = {}
    wrong = []
    for golden in goldens:
        name = golden["template"]
        if name not in templates:
            source = (directory / name).read_text(encoding="utf-8")
            templates[name] = ChatTemplate(source, clock=lambda: dt.datetime(2024, 7, 26))
        output: str | None
        context: dict[str, Any] = json.loads((directory / f"{golden['context']}.json").read_text(encoding="utf-8"))
        try:
            output = templates[name].render(context.pop("messages"), **context)
        except InvalidRequestError:
            output = None
        if output != golden.get("output"):
            wrong.append((name, golden["context"]))
    assert wrong == []


@pytest.mark.parametrize("name", ["qwen2", "phi-3"])
def test_tokenizers_give_the_reference_ids(data_dir: Path, name: str) -> None:
    tokenizer = Tokenizer.from_directory(data_dir / "tokenizers" / name)
    vectors = data_dir / "tokenizers" / "vectors" / f"ggml-vocab-{name}.gguf"
    texts = vectors.with_suffix(".gguf.inp").read_text(encoding="utf-8").split(END_OF_CASE)
    assert texts.pop() == ""
    expected = vectors.with_suffix(".gguf.out").read_text().removesuffix("\n").split("\n")
    assert len(texts) == len(expected) == NUM_CASES
    for text, line in zip(texts, expected, strict=True):
        assert tokenizer.encode(text) == [int(token_id) for token_id in line.split()], repr(text)
