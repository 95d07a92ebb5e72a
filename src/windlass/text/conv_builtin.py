"""Conversation templates that old MLC directories name instead of giving them.

Each states the published prompt format of its model family, in the JSON of ``conv_template``; token ids are those of
the family's original tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def _chatml(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "system_template": "<|im_start|>system\n{system_message}<|im_end|>\n",
        "omit_empty_system": True,
        "roles": {"user": "<|im_start|>user", "assistant": "<|im_start|>assistant", "tool": "<|im_start|>user"},
        "role_templates": {"tool": "<tool_response>\n{tool_message}\n</tool_response>"},
        "role_content_sep": "\n",
        "role_empty_sep": "\n",
        "seps": ["<|im_end|>\n"],
        "stop_str": ["<|im_end|>"],
        **changes,
    }


def _llama3(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "system_template": "<|start_header_id|>system<|end_header_id|>\n\n{system_message}<|eot_id|>",
        "omit_empty_system": True,
        "system_prefix_token_ids": [128000],
        "roles": {
            "user": "<|start_header_id|>user",
            "assistant": "<|start_header_id|>assistant",
            "tool": "<|start_header_id|>ipython",
        },
        "role_content_sep": "<|end_header_id|>\n\n",
        "role_empty_sep": "<|end_header_id|>\n\n",
        "seps": ["<|eot_id|>"],
        "stop_token_ids": [128001, 128008, 128009],
    }


def _gemma(name: str, end_of_turn: int) -> dict[str, Any]:
    return {
        "name": name,
        "system_prefix_token_ids": [2],
        "roles": {"user": "<start_of_turn>user", "assistant": "<start_of_turn>model"},
        "role_content_sep": "\n",
        "role_empty_sep": "\n",
        "seps": ["<end_of_turn>\n"],
        "stop_token_ids": [1, end_of_turn],
    }


_TEMPLATES: list[dict[str, Any]] = [
    _chatml("chatml"),
    _chatml("chatml_nosystem", system_template="{system_message}"),
    _chatml(
        "qwen2", system_message="You are a helpful assistant.", omit_empty_system=False, stop_token_ids=[151643, 151645]
    ),
    _chatml("qwen3", strip_reasoning_in_history=True, stop_token_ids=[151643, 151645]),
    _llama3("llama-3"),
    _llama3("llama-3_1"),
    _gemma("gemma_instruction", 107),
    _gemma("gemma3_instruction", 106),
    {
        "name": "llama-2",
        "system_template": "[INST] <<SYS>>\n{system_message}\n<</SYS>>\n\n",
        "omit_empty_system": True,
        "system_prefix_token_ids": [1],
        "add_role_after_system_message": False,
        "roles": {"user": "[INST] ", "assistant": ""},
        "role_templates": {"assistant": " {assistant_message} "},
        "seps": [" [/INST]", "</s><s>"],
        "stop_token_ids": [2],
    },
    {
        "name": "mistral_default",
        "system_template": "[INST] {system_message}\n\n",
        "omit_empty_system": True,
        "system_prefix_token_ids": [1],
        "add_role_after_system_message": False,
        "roles": {"user": "[INST] ", "assistant": ""},
        "role_templates": {"assistant": " {assistant_message}"},
        "seps": [" [/INST]", "</s>"],
        "stop_token_ids": [2],
    },
    {
        "name": "phi-2",
        "roles": {"user": "Instruct: ", "assistant": "Output:"},
        "role_templates": {"assistant": " {assistant_message}"},
        "seps": ["\n"],
        "stop_token_ids": [50256],
    },
    {
        "name": "phi-3",
        "system_template": "<|system|>\n{system_message}<|end|>\n",
        "omit_empty_system": True,
        "system_prefix_token_ids": [1],
        "roles": {"user": "<|user|>", "assistant": "<|assistant|>"},
        "role_content_sep": "\n",
        "role_empty_sep": "\n",
        "seps": ["<|end|>\n"],
        "stop_token_ids": [2, 32000, 32001, 32007],
    },
    {
        "name": "tinyllama_v1_0",
        "system_template": "<|system|>\n{system_message}</s>\n",
        "omit_empty_system": True,
        "roles": {"user": "<|user|>", "assistant": "<|assistant|>"},
        "role_content_sep": "\n",
        "role_empty_sep": "\n",
        "seps": ["</s>\n"],
        "stop_token_ids": [2],
    },
    {
        "name": "LM",
        "system_prefix_token_ids": [1],
        "roles": {"user": "", "assistant": ""},
        "seps": [""],
        "stop_token_ids": [2],
    },
]

BUILTIN: Mapping[str, dict[str, Any]] = {template["name"]: template for template in _TEMPLATES}
