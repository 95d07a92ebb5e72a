"""Reading and writing the model as a directory in the layout of Hugging Face."""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from chat_format import CHAT_TEMPLATE, END_OF_TEXT, MESSAGE_END
from model import NORM_EPSILON, DemoModel, ModelConfig
from tokenizer import token_id
from tokenizers import Tokenizer


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _config_json(config: ModelConfig, end_id: int, pad_id: int) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": config.vocabulary,
        "hidden_size": config.hidden,
        "intermediate_size": config.feed_forward,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_value_heads,
        "head_dim": config.head_size,
        "max_position_embeddings": config.context,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "rms_norm_eps": NORM_EPSILON,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "sliding_window": None,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": None,
        "eos_token_id": end_id,
        "pad_token_id": pad_id,
    }


def _tokenizer_config_json(tokenizer: Tokenizer, context: int) -> dict[str, Any]:
    added = {
        str(token_id): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for token_id, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "bos_token": None,
        "eos_token": MESSAGE_END,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "chat_template": CHAT_TEMPLATE,
    }


def save_model(model: DemoModel, tokenizer: Tokenizer, directory: Path) -> None:
    """Write weights (bfloat16), configuration, tokenizer and chat template; each file is replaced at once."""
    directory.mkdir(parents=True, exist_ok=True)
    end_id, pad_id = token_id(tokenizer, MESSAGE_END), token_id(tokenizer, END_OF_TEXT)
    weights = {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    unfinished = directory / "model.safetensors.part"
    safetensors.torch.save_file(weights, unfinished, metadata={"format": "pt"})
    unfinished.chmod(0o644)
    unfinished.replace(directory / "model.safetensors")
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_json(directory / "config.json", _config_json(model.config, end_id, pad_id))
    _write_json(
        directory / "generation_config.json",
        {"do_sample": False, "eos_token_id": [end_id, pad_id], "pad_token_id": pad_id},
    )
    _write_json(directory / "tokenizer_config.json", _tokenizer_config_json(tokenizer, model.config.context))


def load_model(directory: Path) -> tuple[DemoModel, Tokenizer]:
    """Read what `save_model` wrote; the weights become float32."""
    values = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    config = ModelConfig(
        vocabulary=values["vocab_size"],
        hidden=values["hidden_size"],
        layers=values["num_hidden_layers"],
        heads=values["num_attention_heads"],
        key_value_heads=values["num_key_value_heads"],
        head_size=values["head_dim"],
        feed_forward=values["intermediate_size"],
        rope_theta=values["rope_theta"],
        context=values["max_position_embeddings"],
    )
    model = DemoModel(config)
    weights = safetensors.torch.load_file(directory / "model.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return model.eval(), Tokenizer.from_file(str(directory / "tokenizer.json"))
