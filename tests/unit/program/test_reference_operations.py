"""The reference executor: the operations that not every family has, each against a formula written out here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from windlass.program.builder import ProgramBuilder
from windlass.program.executor import Batch
from windlass.program.ops import ActivationKind, GateKind, Value
from windlass.program.program import Part
from windlass.program.reference import ReferenceExecutor
from windlass.quantization.tensor import Format, Tensor

F32 = NDArray[np.float32]
RNG = np.random.default_rng(17)
VOCAB, WIDTH, HEAD = 11, 8, 4
IDS = [1, 5, 2, 8, 3]


def normal(*shape: int) -> F32:
    return RNG.standard_normal(shape, dtype=np.float32)


def batch_of(*sequences: list[int], start: int = 0) -> Batch:
    """Sequences of up to 16 tokens, a page each."""
    lengths = [len(sequence) for sequence in sequences]
    arrays: list[Any] = [
        np.concatenate(sequences),
        np.concatenate([np.arange(start, start + length) for length in lengths]),
        np.cumsum([0, *lengths]),
        np.arange(len(sequences)),
        np.arange(len(sequences) + 1),
        np.arange(sum(lengths)),
    ]
    return Batch(*(array.astype(np.int32) for array in arrays))


def run(
    write: Callable[[ProgramBuilder, Value], Value], *sequences: list[int], table: F32 | None = None, **weights: Any
) -> tuple[F32, F32]:
    """Run what ``write`` writes on embeddings; return it and the embeddings.

    Layer 0 has their left halves as keys and their right halves as values.
    """
    b = ProgramBuilder(num_layers=1, num_kv_heads=1, head_dim=HEAD, vocab_size=VOCAB)
    x = b.embed("e", WIDTH)
    b.write_kv(0, x.columns(0, 4), x.columns(4, 4))
    b.attention(x.columns(0, 4), 0, num_heads=1)
    b.hidden_states(write(b, x))
    table = normal(VOCAB, WIDTH) if table is None else table
    tensors = {name: Tensor(Format.F32, a.shape, a) for name, a in {"e.weight": table, **weights}.items()}
    executor = ReferenceExecutor(b.build(), tensors, num_pages=4, max_tokens=16, max_positions=16)
    batch = batch_of(*sequences or (IDS,))
    return executor.run(batch), table[batch.token_ids]


def close(actual: F32, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def test_hidden_states_are_the_wanted_rows() -> None:
    actual, x = run(lambda _, x: x.columns(2, 5))
    np.testing.assert_array_equal(actual, x[:, 2:7])


def test_embed_position() -> None:
    def write(b: ProgramBuilder, _: Value) -> Value:
        return b.embed_position("p", 16, 3)

    positions = normal(16, 3)
    actual, _ = run(write, [4, 4], [5, 5, 5], **{"p.weight": positions})
    np.testing.assert_array_equal(actual, positions[[0, 1, 0, 1, 2]])


@pytest.mark.parametrize("bias", [False, True])
def test_layer_norm(bias: bool) -> None:
    weights = {"n.weight": normal(WIDTH), "n.bias": normal(WIDTH)}
    if not bias:
        del weights["n.bias"]
    actual, x = run(lambda b, x: b.layer_norm(x, "n", 0.5, bias=bias), **weights)
    for row, result in zip(x, actual, strict=True):
        mean = sum(row) / WIDTH
        variance = sum((value - mean) ** 2 for value in row) / WIDTH
        close(result, (row - mean) / math.sqrt(variance + 0.5) * weights["n.weight"] + weights.get("n.bias", 0))


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("width", [None, HEAD, WIDTH])
def test_head_norm(centered: bool, width: int | None) -> None:
    weight = np.ones(HEAD, np.float32) if width is None else normal(width)

    def write(b: ProgramBuilder, x: Value) -> Value:
        b.head_norm(x, None if width is None else "n", 0.5, centered=centered, per_head=width == WIDTH)
        return x

    actual, x = run(write, **({} if width is None else {"n.weight": weight}))
    for head in (0, 1):
        columns = slice(head * HEAD, (head + 1) * HEAD)
        part = x[:, columns] - (x[:, columns].mean(axis=1, keepdims=True) if centered else 0)
        root = np.sqrt((part**2).mean(axis=1, keepdims=True) + 0.5)
        close(actual[:, columns], part / root * (weight[columns] if width == WIDTH else weight))


def test_head_linear_reads_the_first_columns_of_each_head() -> None:
    w = normal(6, 3)
    actual, x = run(lambda b, x: b.head_linear(x, "w", num_heads=2, in_features=3, out_features=3), w=w)
    close(actual, np.hstack([x[:, :3] @ w[:3].T, x[:, 4:7] @ w[3:].T]))


def test_join_heads() -> None:
    actual, x = run(lambda b, x: b.join_heads(x.columns(0, 6), x.columns(4, 2), num_heads=2))
    np.testing.assert_array_equal(actual, x[:, [0, 1, 2, 4, 3, 4, 5, 5]])


def test_changes_in_place() -> None:
    bias = normal(4)

    def write(b: ProgramBuilder, x: Value) -> Value:
        b.scale(x.columns(0, 3), -2.5)
        b.sigmoid_gate(x.columns(0, 2), x.columns(3, 1))
        b.add_bias(x.columns(4, 4), "c", Part("c"))
        return x

    actual, x = run(write, c=bias)
    close(actual[:, :2], x[:, :2] * -2.5 * sigmoid(x[:, 3:4]))
    close(actual[:, 2], x[:, 2] * -2.5)
    close(actual[:, 3], x[:, 3])
    close(actual[:, 4:], x[:, 4:] + bias)


def test_capped_logits() -> None:
    b = ProgramBuilder(num_layers=1, num_kv_heads=1, head_dim=HEAD, vocab_size=VOCAB)
    x = b.embed("e", HEAD)
    b.write_kv(0, x, x)
    b.attention(x, 0, num_heads=1)
    b.logits(x, "e", softcap=1.5)
    table = normal(VOCAB, HEAD)
    tensors = {"e.weight": Tensor(Format.F32, table.shape, table)}
    executor = ReferenceExecutor(b.build(), tensors, num_pages=1, max_tokens=5, max_positions=16)
    close(executor.run(batch_of(IDS)), [[1.5 * math.tanh(row @ table[id_] / 1.5) for row in table] for id_ in IDS])


def activated(value: float, kind: str) -> float:
    if kind == "relu":
        return max(value, 0.0)
    if kind == "gelu":
        return value * (1 + math.erf(value / math.sqrt(2))) / 2
    if kind == "gelu_tanh":
        return value / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)))
    return value / (1 + math.exp(-value))


def gated(gate: float, up: float, kind: str) -> float:
    if kind != "clamped_swiglu":
        return activated(gate, kind) * up
    gate, up = min(gate, 7.0), max(-7.0, min(up, 7.0))
    return gate / (1 + math.exp(-1.702 * gate)) * (up + 1)


@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh", "relu"])
def test_activations(kind: ActivationKind) -> None:
    actual, x = run(lambda b, x: b.activation(x, kind), table=normal(VOCAB, WIDTH) * 3)
    close(actual, [[activated(float(value), kind) for value in row] for row in x])


@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh", "clamped_swiglu"])
def test_gates(kind: GateKind) -> None:
    actual, x = run(lambda b, x: b.gated_activation(x, kind), table=normal(VOCAB, WIDTH) * 6)
    close(actual, [[gated(float(row[i]), float(row[i + 4]), kind) for i in range(4)] for row in x])


SINKS = np.float32([-1.0, 2.0])


@pytest.mark.parametrize(
    "options",
    [{"chunk": 2}, {"softcap": 0.4}, {"sinks": "s"}, {"sinks": "s", "window": 2, "softcap": 0.8}, {"causal": False}],
    ids=str,
)
def test_attention(options: dict[str, Any]) -> None:
    # Two query heads read the one head of layer 0.
    weights = {"s": SINKS} if "sinks" in options else {}
    actual, x = run(lambda b, x: b.attention(x, 0, num_heads=2, scale=0.7, **options), IDS, [4, 6], **weights)
    for first, last in ((0, 5), (5, 7)):
        for token in range(first, last):
            position = token - first
            start = position - position % options["chunk"] if "chunk" in options else 0
            start = max(0, position - options["window"] + 1) if "window" in options else start
            end = position if options.get("causal", True) else last - first - 1
            seen = x[first + start : first + end + 1]
            for head in range(2):
                scores = [0.7 * float(x[token, 4 * head : 4 * head + 4] @ row[:4]) for row in seen]
                if "softcap" in options:
                    scores = [options["softcap"] * math.tanh(score / options["softcap"]) for score in scores]
                total = sum(map(math.exp, scores)) + (math.exp(SINKS[head]) if "sinks" in options else 0)
                expected = sum(math.exp(score) / total * row[4:] for score, row in zip(scores, seen, strict=True))
                close(actual[token, 4 * head : 4 * head + 4], expected)


def chosen_by(row: Any, bias: Any, options: dict[str, Any]) -> list[int]:
    """The experts a token with these scores gets: the definition, by sorting."""
    size = len(row) // options.get("num_groups", 1)
    groups = [list(range(start, start + size)) for start in range(0, len(row), size)]
    choice = {expert: row[expert] + bias[expert] for expert in range(len(row))}
    best = 2 if options.get("group_score") == "top2_sum" else 1
    groups.sort(key=lambda group: -sum(sorted((choice[expert] for expert in group), reverse=True)[:best]))
    allowed = [expert for group in groups[: options.get("top_groups", 1)] for expert in group]
    return sorted(allowed, key=lambda expert: (-choice[expert], expert))[: options["top_k"]]


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 3, "scores": "softmax", "normalize": False},
        {"top_k": 2, "scores": "softmax", "normalize": True, "scale": 2.5},
        {"top_k": 3, "scores": "sigmoid", "normalize": True, "bias": ("c", Part("c"))},
        {"top_k": 3, "scores": "softmax", "normalize": False, "num_groups": 4, "top_groups": 2},
        {
            "top_k": 4,
            "scores": "sigmoid",
            "normalize": True,
            "bias": ("c", Part("c")),
            "num_groups": 2,
            "top_groups": 1,
            "group_score": "top2_sum",
        },
    ],
    ids=str,
)
def test_route(options: dict[str, Any]) -> None:
    weights = {"c": normal(WIDTH)} if "bias" in options else {}
    bias = ("c", Part("c")) if "bias" in options else None
    actual, x = run(lambda b, x: b.route(x, **{**options, "bias": bias}), **weights)
    for row, shares in zip(x.astype(np.float64), actual, strict=True):
        scores = np.exp(row) / np.exp(row).sum() if options["scores"] == "softmax" else sigmoid(row)
        chosen = chosen_by(scores, weights.get("c", np.zeros(WIDTH)), options)
        total = sum(scores[chosen]) if options["normalize"] else 1
        expected = [scores[e] / total * options.get("scale", 1.0) if e in chosen else 0 for e in range(WIDTH)]
        close(shares, expected)


def test_of_equal_experts_the_first_are_chosen() -> None:
    def write(b: ProgramBuilder, x: Value) -> Value:
        return b.route(x, top_k=2, scores="softmax", normalize=True)

    actual, _ = run(write, [0], table=np.float32([[1, 2, 2, 1, 2, 2, 0, 0]] * VOCAB))
    np.testing.assert_array_equal(actual, [[0, 0.5, 0.5, 0, 0, 0, 0, 0]])


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("scale_input", [False, True])
def test_experts(biased: bool, scale_input: bool) -> None:
    experts, inner = 4, 3
    weights = {"gu": normal(experts * 2 * inner, WIDTH), "d": normal(experts * WIDTH, inner)}
    biases = {"gu.b": normal(experts * 2 * inner), "d.b": normal(experts * WIDTH)} if biased else {}

    def write(b: ProgramBuilder, x: Value) -> Value:
        shares = b.route(x.columns(0, experts), top_k=2, scores="sigmoid", normalize=False)
        named = {name: (f"{short}.b", [Part(f"{short}.b")]) for name, short in NAMES.items()} if biased else {}
        options: dict[str, Any] = {"kind": "gelu", "scale_input": scale_input, **named}
        return b.experts(x, shares, gate_up="gu", down="d", intermediate_size=inner, **options)

    actual, x = run(write, **weights, **biases)
    for row, result in zip(x, actual, strict=True):
        scores = sigmoid(row[:experts])
        expected = np.zeros(WIDTH)
        for e in sorted(range(experts), key=lambda e: -scores[e])[:2]:
            entry = row * scores[e] if scale_input else row
            both = weights["gu"][e * 6 : e * 6 + 6] @ entry + (biases["gu.b"][e * 6 : e * 6 + 6] if biased else 0)
            between = [gated(float(both[i]), float(both[i + 3]), "gelu") for i in range(3)]
            rows = slice(e * WIDTH, (e + 1) * WIDTH)
            made = weights["d"][rows] @ between + (biases["d.b"][rows] if biased else 0)
            expected += made if scale_input else made * scores[e]
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


NAMES = {"gate_up_bias": "gu", "down_bias": "d"}
