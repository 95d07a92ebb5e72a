"""The demo model in PyTorch: a small Qwen3, written for training on one CPU thread.

Shapes: B sequences, T tokens of this call, S tokens in all (cached ones and T), H query heads, K key and value heads,
D values per head.  Parameter names are those of `Qwen3ForCausalLM`, so the state dict is the shipped file.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

NORM_EPSILON = 1e-6


@dataclass(frozen=True)
class ModelConfig:
    """The size of the model; `context` is the longest sequence in tokens."""

    vocabulary: int = 640
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    key_value_heads: int = 2
    head_size: int = 32
    feed_forward: int = 384
    rope_theta: float = 10_000.0
    context: int = 1024


class KeyValueCache:
    """Keys and values of one layer, [B, K, S, D], growing with every call."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append, and return all of them."""
        if self.keys is not None and self.values is not None:
            keys = torch.cat((self.keys, keys), 2)
            values = torch.cat((self.values, values), 2)
        self.keys, self.values = keys, values
        return keys, values


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), self.weight, NORM_EPSILON)


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding of [B, heads, T, D]; `rope` is cosine and sine, [T, D / 2] each."""
    cosine, sine = rope
    first, second = x.chunk(2, -1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1)


class Attention(nn.Module):
    """Grouped-query attention with normed queries and keys."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.key_value_heads, self.head_size = config.heads, config.key_value_heads, config.head_size
        key_value_size = config.key_value_heads * config.head_size
        self.q_proj = nn.Linear(config.hidden, config.heads * config.head_size, bias=False)
        self.k_proj = nn.Linear(config.hidden, key_value_size, bias=False)
        self.v_proj = nn.Linear(config.hidden, key_value_size, bias=False)
        self.o_proj = nn.Linear(config.heads * config.head_size, config.hidden, bias=False)
        self.q_norm, self.k_norm = RMSNorm(config.head_size), RMSNorm(config.head_size)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: KeyValueCache | None
    ) -> Tensor:
        """[B, T, hidden] -> [B, T, hidden]; without a mask (bool, [B, 1, T, S]) the attention is causal."""
        batch, length, _ = x.shape
        queries = self.q_norm(self.q_proj(x).view(batch, length, self.heads, -1)).transpose(1, 2)
        keys = self.k_norm(self.k_proj(x).view(batch, length, self.key_value_heads, -1)).transpose(1, 2)
        values = self.v_proj(x).view(batch, length, self.key_value_heads, -1).transpose(1, 2)
        queries, keys = rotate(queries, rope), rotate(keys, rope)
        if cache is not None:
            keys, values = cache.extend(keys, values)
        group = self.heads // self.key_value_heads
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
        mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=mask is None)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))


class FeedForward(nn.Module):
    """Gated feed-forward block."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden, config.feed_forward, bias=False)
        self.up_proj = nn.Linear(config.hidden, config.feed_forward, bias=False)
        self.down_proj = nn.Linear(config.feed_forward, config.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One transformer layer, norms first."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden)
        self.mlp = FeedForward(config)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: KeyValueCache | None
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, layers and the last norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocabulary, config.hidden)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.hidden)


class DemoModel(nn.Module):
    """The language model; the embedding is also the output matrix."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self._initialise()
        half = torch.arange(0, config.head_size, 2).float() / config.head_size
        angles = torch.outer(torch.arange(config.context).float(), config.rope_theta**-half)
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)

    def _initialise(self) -> None:
        for parameter in self.model.layers.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=1 / math.sqrt(parameter.shape[1]))
        nn.init.normal_(self.model.embed_tokens.weight, std=0.02)
        # Each layer adds two terms to the residual stream; this keeps its size independent of the depth.
        for layer in self.model.layers:
            for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                weight.data.mul_(1 / math.sqrt(2 * self.config.layers))

    def forward(
        self,
        ids: Tensor,
        rows: Tensor | None = None,
        mask: Tensor | None = None,
        caches: list[KeyValueCache] | None = None,
        start: int = 0,
    ) -> Tensor:
        """Logits [B, T, vocabulary] for ids [B, T] at the positions from `start` on.

        `rows` are flat positions (of B * T); with them only those logits are computed, [rows, vocabulary].
        """
        end = start + ids.shape[1]
        rope = (self.cosine[start:end], self.sine[start:end])
        x = self.model.embed_tokens(ids)
        for index, layer in enumerate(self.model.layers):
            x = layer(x, rope, mask, caches[index] if caches else None)
        if rows is not None:
            x = x.flatten(0, 1)[rows]
        return self.model.norm(x) @ self.model.embed_tokens.weight.T

    def parameter_count(self) -> int:
        """The number of trained values; the shared embedding counts once."""
        return sum(parameter.numel() for parameter in self.parameters())
