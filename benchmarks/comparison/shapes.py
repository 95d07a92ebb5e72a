"""The model shapes that are compared, and what one token of each costs a machine at least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

WEIGHT_BITS = 4.5
"""Four bits and one f16 scale per 32 weights: what every engine's 4-bit format takes at least, or nearly so."""
KV_BYTES = 2


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model without its weights. Embedding and logits layer are one matrix in all of them."""

    name: str
    title: str
    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int

    @property
    def head_norms(self) -> bool:
        """Whether queries and keys are normalized per head."""
        return self.model_type == "qwen3"

    def config(self) -> dict[str, Any]:
        """config.json, as Hugging Face writes it."""
        return {
            "architectures": ["Qwen3ForCausalLM" if self.model_type == "qwen3" else "LlamaForCausalLM"],
            "model_type": self.model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "max_position_embeddings": self.max_position_embeddings,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
        }

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """The tensors of a checkpoint by their Hugging Face names, with their shapes."""
        hidden, inner, head = self.hidden_size, self.intermediate_size, self.head_dim
        queries, keys = self.num_attention_heads * head, self.num_key_value_heads * head
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, hidden)}
        for layer in range(self.num_hidden_layers):
            block = f"model.layers.{layer}"
            shapes[f"{block}.input_layernorm.weight"] = (hidden,)
            for name, rows in (("q", queries), ("k", keys), ("v", keys)):
                shapes[f"{block}.self_attn.{name}_proj.weight"] = (rows, hidden)
            shapes[f"{block}.self_attn.o_proj.weight"] = (hidden, queries)
            if self.head_norms:
                shapes[f"{block}.self_attn.q_norm.weight"] = (head,)
                shapes[f"{block}.self_attn.k_norm.weight"] = (head,)
            shapes[f"{block}.post_attention_layernorm.weight"] = (hidden,)
            for name, rows, columns in (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)):
                shapes[f"{block}.mlp.{name}_proj.weight"] = (rows, columns)
        shapes["model.norm.weight"] = (hidden,)
        return shapes

    @property
    def layer_weights(self) -> int:
        """Weights of all linear layers but the logits layer: one multiply-add each per token."""
        heads = (2 * self.num_attention_heads + 2 * self.num_key_value_heads) * self.head_dim
        return self.num_hidden_layers * self.hidden_size * (heads + 3 * self.intermediate_size)

    @property
    def head_weights(self) -> int:
        """Weights of the logits layer."""
        return self.vocab_size * self.hidden_size

    @property
    def weight_bytes(self) -> float:
        """Bytes of all matrices at ``WEIGHT_BITS``; a decode step reads each once, whatever the batch."""
        return (self.layer_weights + self.head_weights) * WEIGHT_BITS / 8

    def kv_bytes(self, context: int) -> int:
        """Bytes of the f16 KV cache of one sequence of ``context`` tokens, which each of its decode steps reads."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * KV_BYTES * context


SHAPES = {
    shape.name: shape
    for shape in (
        Shape(
            name="M",
            title="1.2B, Llama 3.2",
            model_type="llama",
            vocab_size=128256,
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=16,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=64,
            rms_norm_eps=1e-5,
            rope_theta=500000.0,
            max_position_embeddings=8192,
        ),
        Shape(
            name="S",
            title="0.6B, Qwen3",
            model_type="qwen3",
            vocab_size=151936,
            hidden_size=1024,
            intermediate_size=3072,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            rms_norm_eps=1e-6,
            rope_theta=1000000.0,
            max_position_embeddings=40960,
        ),
    )
}
