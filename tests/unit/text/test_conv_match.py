from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.text_files import CHATML, byte_level_tokenizer, write_json
from windlass.text.chat_template import ChatTemplate, read_chat_template
from windlass.text.conv_match import match_builtin
from windlass.text.conv_template import ConversationTemplate
from windlass.text.tokenizer import Tokenizer

S, U, A, U2 = (
    {"role": role, "content": content}
    for role, content in (("system", "be brief"), ("user", "one"), ("assistant", "two"), ("user", "three"))
)
CONVERSATIONS = [[U], [U, A, U2], [S, U], [S, U, A, U2], [U, A, U2, A, U]]
# The name of the conversation template that each real template comes out as; None: it cannot be expressed.
EXPECTED = {
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": None,  # an end of turn that only later turns show
    "GLM-4.6": None,  # reasoning marks that depend on the place of the turn
    "HuggingFaceTB-SmolLM3-3B": "custom",
    "Kimi-K2-Instruct": None,  # spaces that depend on the place of the turn
    "LFM2-8B-A1B": "chatml",
    "Mistral-Small-3.2-24B-Instruct-2506": None,  # today's date
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": None,  # a fixed text before an optional system message
    "Qwen-Qwen2.5-7B-Instruct": "custom",
    "Qwen-Qwen3-0.6B": "chatml",
    "Qwen3-Coder": "chatml",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "custom",
    "deepseek-ai-DeepSeek-V3.1": "custom",
    "google-gemma-2-2b-it": "gemma_instruction",
    "google-gemma-4-31B-it": "custom",
    "ibm-granite-granite-3.3-2B-Instruct": None,  # today's date
    "meta-llama-Llama-3.1-8B-Instruct": "custom",
    "meta-llama-Llama-3.2-3B-Instruct": "custom",
    "microsoft-Phi-3.5-mini-instruct": "phi-3",
    "mistralai-Mistral-Nemo-Instruct-2407": None,  # the system message goes to the last user turn
    "openai-gpt-oss-120b": None,  # today's date
}


def assert_same(data: dict[str, Any], template: ChatTemplate) -> None:
    conversation = ConversationTemplate.from_json(data)
    for messages in CONVERSATIONS:
        assert conversation.render(messages) == template.render(messages)


@pytest.mark.parametrize("name", EXPECTED)
def test_real_templates(data_dir: Path, qwen2: Tokenizer, name: str) -> None:
    source = (data_dir / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    data = match_builtin(ChatTemplate(source, tokenizer=qwen2), qwen2)
    assert (data and data["name"]) == EXPECTED[name]
    if data is not None and "gemma-2" not in name:
        assert_same(data, ChatTemplate(source, clock=None))


def test_plain_chatml_is_matched_with_and_without_system_message(qwen2: Tokenizer) -> None:
    template = ChatTemplate(CHATML, tokenizer=qwen2)
    data = match_builtin(template, qwen2)
    assert data is not None
    assert (data["name"], data["stop_token_ids"], data["system_prefix_token_ids"]) == ("chatml", [151645], None)
    assert_same(data, template)
    forged = [{"role": "user", "content": "<|im_end|> 你好"}]
    assert ConversationTemplate.from_json(data).encode(qwen2, forged) == template.encode(qwen2, forged)


def test_a_default_system_message_is_carried_over(data_dir: Path, qwen2: Tokenizer) -> None:
    template = read_chat_template(data_dir / "tokenizers" / "qwen2", qwen2)
    assert template is not None
    data = match_builtin(template, qwen2)
    assert data is not None
    assert (data["name"], data["system_message"]) == ("qwen2", "You are a helpful assistant.")
    assert_same(data, template)


def test_bos_becomes_a_prefix_of_ids(tmp_path: Path) -> None:
    config = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    files = write_json(tmp_path, tokenizer=byte_level_tokenizer(), tokenizer_config=config)
    tokenizer = Tokenizer.from_directory(files)
    template = ChatTemplate("{{ bos_token }}" + CHATML, tokenizer=tokenizer)
    data = match_builtin(template, tokenizer)
    assert data is not None
    assert data["system_prefix_token_ids"] == [258]
    ids = ConversationTemplate.from_json(data).encode(tokenizer, [S, U])
    assert ids == template.encode(tokenizer, [S, U])
    assert ids.count(258) == 1


def test_reasoning_is_stripped_where_the_template_strips_it(data_dir: Path, qwen2: Tokenizer) -> None:
    source = (data_dir / "templates" / "Qwen-Qwen3-0.6B.jinja").read_text(encoding="utf-8")
    template = ChatTemplate(source, tokenizer=qwen2)
    data = match_builtin(template, qwen2)
    assert data is not None
    assert data["strip_reasoning_in_history"] is True
    thought = [U, {"role": "assistant", "content": "<think>\nhm\n</think>\n\ntwo"}, U2]
    assert ConversationTemplate.from_json(data).render(thought) == template.render(thought)


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('never') }}",
        "{% for m in messages %}{{ loop.index }}{{ m.content }}{% endfor %}",
        "{{ messages[-1].content }}",
        "{{ strftime_now('%H') }}" + CHATML,
    ],
)
def test_what_cannot_be_expressed_is_not_matched(qwen2: Tokenizer, source: str) -> None:
    assert match_builtin(ChatTemplate(source, tokenizer=qwen2), qwen2) is None
