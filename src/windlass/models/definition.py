"""What an architecture makes of a configuration."""

from __future__ import annotations

from dataclasses import dataclass

from windlass.program.pooling import Pooling
from windlass.program.program import Program


@dataclass(frozen=True, slots=True)
class ModelDefinition:
    """A model without its weights."""

    model_type: str
    """The architecture's name, as ``model_type`` in config.json."""
    program: Program
    context_length: int
    """Positions the model is made for, with the scaling of its rotary embedding counted in."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    ignored_tensors: tuple[str, ...]
    """Regular expressions for whole names of Hugging Face tensors that a checkpoint may hold and nobody needs."""
    stored_prefixes: tuple[tuple[str, str], ...] = ()
    """How the names of a checkpoint's tensors may begin, and how the program's parts have it: the first that fits."""
    pooling: Pooling | None = None
    """What becomes of hidden states, in a model for embeddings; None for one that generates."""
    needs_whole_prompts: bool = False
    """Every token sees all others, so that a prompt cannot be cut into pieces."""
