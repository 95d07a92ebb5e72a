"""The builder writes what it is told, and refuses what breaks an invariant of ``Program``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from windlass.program.builder import ProgramBuilder, ProgramError
from windlass.program.ops import Attention, Experts, Linear, Logits, Value
from windlass.program.program import Part, Program, WeightSpec


@dataclass(frozen=True)
class NoRotation:
    dim: int

    def cos_sin(self, positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        ones = np.ones((positions, self.dim // 2), dtype=np.float32)
        return ones, 0 * ones


def new_builder(**sizes: int) -> ProgramBuilder:
    return ProgramBuilder(**{"num_layers": 1, "num_kv_heads": 1, "head_dim": 4, "vocab_size": 10, **sizes})


def write_layer(b: ProgramBuilder, x: Value) -> Value:
    """One attention layer of two query heads on ``x``, 8 columns wide."""
    qkv = b.linear(x, "qkv", 16, parts=("q", "k", "v"), bias=True)
    b.rope(qkv.columns(0, 8), b.rope_table(NoRotation(4)))
    b.write_kv(0, qkv.columns(8, 4), qkv.columns(12, 4))
    return b.attention(qkv.columns(0, 8), 0, num_heads=2)


def test_a_whole_program() -> None:
    b = new_builder()
    x = b.embed("embed", 8)
    b.add(x, write_layer(b, b.rms_norm(x, "norm", 1e-5)))
    b.logits(x, "head")
    program = b.build()
    assert program.weights == (
        WeightSpec("embed.weight", (10, 8), (Part("embed.weight"),), "embedding"),
        WeightSpec("norm.weight", (8,), (Part("norm.weight"),), "plain"),
        WeightSpec("qkv.weight", (16, 8), (Part("q.weight"), Part("k.weight"), Part("v.weight")), "linear"),
        WeightSpec("qkv.bias", (16,), (Part("q.bias"), Part("k.bias"), Part("v.bias")), "plain"),
        WeightSpec("head.weight", (10, 8), (Part("head.weight"),), "head"),
    )
    assert program.buffer_widths == (8, 8, 16, 8)
    assert Linear(Value(2, 0, 16), Value(1, 0, 8), "qkv.weight", "qkv.bias") in program.ops
    assert Attention(Value(3, 0, 8), Value(2, 0, 8), 0, 2, 1, 4, scale=0.5) in program.ops
    assert program.ops[-1] == Logits(Value(0, 0, 8), "head.weight")


def test_a_tied_head_shares_the_embedding() -> None:
    b = new_builder()
    x = b.embed("embed", 8)
    b.add(x, write_layer(b, x))
    b.logits(x, "embed")
    assert [spec.name for spec in b.build().weights] == ["embed.weight", "qkv.weight", "qkv.bias"]


def finished(b: ProgramBuilder) -> Program:
    x = b.embed("embed", 8)
    b.logits(write_layer(b, x), "head")
    return b.build()


MISTAKES: dict[str, tuple[str, Callable[[ProgramBuilder], object]]] = {
    "unwritten buffer": ("never written", lambda b: b.linear(Value(0, 0, 4), "w", 4)),
    "columns outside a buffer": ("do not lie", lambda b: b.linear(Value(b.embed("e", 8).buffer, 4, 8), "w", 4)),
    "weight declared twice": ("declared twice", lambda b: (b.embed("e", 8), b.embed("e", 8))),
    "no columns": ("at least one column", lambda b: b.linear(b.embed("e", 8), "w", 0)),
    "negative eps": ("eps", lambda b: b.rms_norm(b.embed("e", 8), "n", -1e-5)),
    "eps that is no number": ("eps", lambda b: b.rms_norm(b.embed("e", 8), "n", float("nan"))),
    "half a head": ("heads of 4", lambda b: b.head_norm(b.embed("e", 6), "n", 1e-5)),
    "no such rope table": ("rope table 0", lambda b: b.rope(b.embed("e", 8), 0)),
    "keys too wide": ("4 columns wide", lambda b: b.write_kv(0, b.embed("e", 8), b.embed("f", 4))),
    "layer outside the program": ("layer 1", lambda b: b.write_kv(1, b.embed("e", 4), b.embed("f", 4))),
    "attention before its keys": ("before its write_kv", lambda b: b.attention(b.embed("e", 8), 0, num_heads=2)),
    "heads that do not fill the value": ("3 heads", lambda b: b.attention(b.embed("e", 8), 0, num_heads=3)),
    "odd gate": ("even width", lambda b: b.gated_activation(b.embed("e", 7))),
    "adding another width": ("width 4", lambda b: b.add(b.embed("e", 8), b.embed("f", 4))),
    "head that does not fit": ("shape", lambda b: b.logits(b.embed("e", 8).columns(0, 4), "e")),
    "nothing at all": ("ends with logits", lambda b: b.build()),
    "no logits": ("ends with logits", lambda b: (b.embed("e", 8), b.build())),
    "a layer left out": (r"layers \[0\]", lambda b: (b.logits(b.embed("e", 8), "h"), b.build())),
    "something after logits": ("last operation", lambda b: (b.logits(b.embed("e", 8), "h"), b.embed("f", 8))),
    "cache written twice": ("twice", lambda b: [b.write_kv(0, v, v) for v in [b.embed("e", 4)] * 2]),
    "something after hidden states": ("last operation", lambda b: (b.hidden_states(b.embed("e", 8)), b.embed("f", 8))),
    "half a head of a norm": ("heads of 4", lambda b: b.head_norm(b.embed("e", 10), None, 1e-5, centered=True)),
    "layer norm with a negative eps": ("eps", lambda b: b.layer_norm(b.embed("e", 8), "n", -1.0)),
    "heads that do not divide": (
        "do not have 3 columns",
        lambda b: b.head_linear(b.embed("e", 8), "w", num_heads=3, in_features=3, out_features=2),
    ),
    "heads with too few columns": (
        "do not have 5 columns",
        lambda b: b.head_linear(b.embed("e", 8), "w", num_heads=2, in_features=5, out_features=2),
    ),
    "joining no heads": ("3 heads", lambda b: b.join_heads(b.embed("e", 6), b.embed("f", 8), num_heads=3)),
    "rotating another head": (
        "heads of 3",
        lambda b: b.rope(b.embed("e", 8), b.rope_table(NoRotation(2)), head_dim=3, rotary_dim=2),
    ),
    "rotating too much": (
        "6 of the 4 columns",
        lambda b: b.rope(b.embed("e", 8), b.rope_table(NoRotation(6)), rotary_dim=6),
    ),
    "groups of no size": ("1 of 3 groups", lambda b: route(b, num_groups=3)),
    "more groups than there are": ("5 of 4 groups", lambda b: route(b, num_groups=4, top_groups=5)),
    "more experts than there are": ("9 experts cannot be taken", lambda b: route(b, top_k=9)),
    "more experts than the groups have": ("3 experts cannot", lambda b: route(b, top_k=3, num_groups=4)),
    "the best two of one": ("groups of 1", lambda b: route(b, num_groups=8, group_score="top2_sum")),
    "a gate of two columns": ("one column, not 2", lambda b: b.sigmoid_gate(b.embed("e", 8), b.embed("f", 2))),
    "a cap of nothing": ("softcap is 0", lambda b: b.logits(b.embed("e", 8), "h", softcap=0.0)),
}


def route(b: ProgramBuilder, **options: Any) -> Value:
    """Choose among eight experts."""
    return b.route(b.embed("e", 8), **{"top_k": 1, "scores": "softmax", "normalize": True, **options})


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_refused(mistake: str) -> None:
    message, write = MISTAKES[mistake]
    with pytest.raises(ProgramError, match=message):
        write(new_builder())


def test_heads_that_cannot_share_are_refused() -> None:
    b = new_builder(num_kv_heads=2)
    x = b.embed("e", 12)
    b.write_kv(0, x.columns(0, 8), x.columns(4, 8))
    with pytest.raises(ProgramError, match="3 query heads cannot share 2"):
        b.attention(x, 0, num_heads=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window of 0"),
        ({"chunk": 0}, "chunk of 0"),
        ({"window": 2, "chunk": 2}, "a window or a chunk, not both"),
        ({"window": 2, "causal": False}, "not causal sees all"),
        ({"chunk": 2, "causal": False}, "not causal sees all"),
        ({"softcap": -1.0}, "softcap is -1.0"),
    ],
)
def test_attention_must_make_sense(options: dict[str, Any], message: str) -> None:
    b = new_builder()
    x = b.embed("e", 4)
    b.write_kv(0, x, x)
    with pytest.raises(ProgramError, match=message):
        b.attention(x, 0, num_heads=1, **options)


def test_a_program_of_experts() -> None:
    b = new_builder()
    x = b.embed("embed", 4)
    b.write_kv(0, x, x)
    b.attention(x, 0, num_heads=1)
    logits = b.linear(x, "router", 3, role="router")
    shares = b.route(logits, top_k=2, scores="sigmoid", normalize=True, bias=("bias", Part("b")))
    out = b.experts(
        x,
        shares,
        gate_up="gate_up",
        down="down",
        intermediate_size=5,
        gate_up_parts=("gate", Part("up", transposed=True)),
        gate_up_bias=("c", [Part("c1"), Part("c2")]),
    )
    b.hidden_states(out)
    program = b.build()
    assert program.weights[-4:] == (
        WeightSpec("bias", (3,), (Part("b"),), "plain"),
        WeightSpec("gate_up", (30, 4), (Part("gate"), Part("up", transposed=True)), "experts", experts=3),
        WeightSpec("down", (12, 5), (Part("down"),), "experts", experts=3),
        WeightSpec("c", (30,), (Part("c1"), Part("c2")), "plain", experts=3),
    )
    assert Experts(out, x, shares, "gate_up", "down", "silu", "c") in program.ops
    assert program.output_width == 4


def test_rotation_needs_an_even_head() -> None:
    b = new_builder(head_dim=3)
    with pytest.raises(ProgramError, match="even head_dim"):
        b.rope(b.embed("e", 6), b.rope_table(NoRotation(4)))


@pytest.mark.parametrize("size", ["num_layers", "num_kv_heads", "head_dim", "vocab_size"])
def test_sizes_must_be_positive(size: str) -> None:
    with pytest.raises(ProgramError, match=size):
        new_builder(**{size: 0})


def test_a_program_cannot_be_changed() -> None:
    program = finished(new_builder())
    with pytest.raises(AttributeError):
        program.num_layers = 2  # type: ignore[misc]
