"""Each operation of a program against the reference executor, and the same bits in whatever batch (L26)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from support.native import KERNELS, KINDS, Chunk, Kind, PlainRope, batch_of, f32_tensor, single
from windlass.native import NativeExecutor
from windlass.program.builder import ProgramBuilder
from windlass.program.ops import ActivationKind, GateKind, Value
from windlass.program.program import Part, Program
from windlass.program.reference import ReferenceExecutor
from windlass.quantization import Format, Tensor

LIMITS = {"num_pages": 12, "max_tokens": 80, "max_positions": 64}
VOCAB, WIDTH, HEAD = 101, 60, 20
INT8, INT4 = KINDS[4], KINDS[7]
# The activations are quantized too where the weights are: to 15 bits for int8, to 8 bits for int4.
TOLERANCE = {Format.INT8: 2e-4, Format.INT4: 3e-2}

Write = Callable[[ProgramBuilder, Value], Value]


def program_of(write: Write, width: int = WIDTH) -> Program:
    """What ``write`` makes of the tokens' embeddings, as the result."""
    b = ProgramBuilder(num_layers=1, num_kv_heads=1, head_dim=HEAD, vocab_size=VOCAB)
    x = b.embed("embed", width)
    b.write_kv(0, x.columns(0, HEAD), x.columns(HEAD, HEAD))
    b.attention(x.columns(0, HEAD), 0, num_heads=1)
    out = write(b, x)
    if out.width > 0:
        b.hidden_states(out)
    return b.build()


def random_weights(program: Program, kind: Kind = KINDS[0], scale: float = 1.0) -> dict[str, Tensor]:
    rng = np.random.default_rng(5)
    weights = {}
    for spec in program.weights:
        if len(spec.shape) == 1:
            weights[spec.name] = f32_tensor(1 + 0.2 * rng.standard_normal(spec.shape, dtype=np.float32))
        elif spec.role == "embedding":
            weights[spec.name] = f32_tensor(np.float32(scale) * rng.standard_normal(spec.shape, dtype=np.float32))
        else:
            weights[spec.name] = (KINDS[0] if spec.role == "router" else kind).tensor(rng, *spec.shape)
    return weights


def chunks() -> list[Chunk]:
    rng = np.random.default_rng(6)
    return [
        Chunk(rng.integers(0, VOCAB, n).tolist(), 0, p)
        for n, p in zip((33, 1, 40), ([4, 2, 9], [0], [3, 1, 7]), strict=True)
    ]


def check(program: Program, weights: dict[str, Tensor], kernels: str, tolerance: float = 2e-6) -> NDArray[np.float32]:
    """Run a ragged batch: near the reference, and sequences alone, and tokens, have the same bits."""
    native = NativeExecutor(program, weights, **LIMITS, num_threads=2, kv_dtype="f32", kernels=kernels)
    reference = ReferenceExecutor(program, weights, **LIMITS)
    batch = batch_of(*chunks())
    expected, actual = reference.run(batch), native.run(batch)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())
    start = 0
    for chunk in chunks():
        alone = native.run(batch_of(chunk))
        np.testing.assert_array_equal(alone, actual[start : start + len(chunk.tokens)])
        start += len(chunk.tokens)
    last = chunks()[-1]
    for i in (0, 13, 39):
        row = native.run(batch_of(Chunk([last.tokens[i]], i, last.pages)))[0]
        np.testing.assert_array_equal(row, actual[i - len(last.tokens)])
    native.close()
    return actual


@dataclass
class InPlace:
    """An operation that changes columns 20 .. 60 of the embeddings."""

    change: Callable[[ProgramBuilder, Value], None]

    def __call__(self, b: ProgramBuilder, x: Value) -> Value:
        self.change(b, x.columns(HEAD, 2 * HEAD))
        return x


def join(b: ProgramBuilder, x: Value) -> Value:
    return b.join_heads(x.columns(0, 21), b.linear(x, "w", 15), num_heads=3)


def position(b: ProgramBuilder, x: Value) -> Value:
    b.add(x, b.embed_position("positions", 60, WIDTH))
    return x


def rope_of_another_head(b: ProgramBuilder, x: Value) -> Value:
    b.rope(x.columns(6, 54), b.rope_table(PlainRope(4)), head_dim=9, rotary_dim=8)
    return x


CASES: dict[str, Write] = {
    "layer norm": lambda b, x: b.layer_norm(x, "n", 0.1),
    "layer norm without bias": lambda b, x: b.layer_norm(x, "n", 1e-5, bias=False),
    "head norm": InPlace(lambda b, x: b.head_norm(x, "n", 0.1)),
    "head norm without weight": InPlace(lambda b, x: b.head_norm(x, None, 0.1)),
    "head norm, centered": InPlace(lambda b, x: b.head_norm(x, "n", 0.1, centered=True)),
    "head norm, centered, without weight": InPlace(lambda b, x: b.head_norm(x, None, 0.1, centered=True)),
    "head norm, a weight per head": InPlace(lambda b, x: b.head_norm(x, "n", 0.1, per_head=True)),
    "join heads": join,
    "positions": position,
    "rope of another head": rope_of_another_head,
    "add bias": InPlace(lambda b, x: b.add_bias(x, "c", Part("c"))),
    "scale": InPlace(lambda b, x: b.scale(x, 0.3)),
    "sigmoid gate": InPlace(lambda b, x: b.sigmoid_gate(x, b.linear(x, "w", 1))),
    "hidden states": lambda _, x: x.columns(7, 40),
}


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("case", CASES)
def test_operations_agree_with_the_reference(case: str, kernels: str) -> None:
    program = program_of(CASES[case])
    check(program, random_weights(program), kernels)


def route_of(experts: int, **options: Any) -> Write:
    return lambda b, x: b.route(b.linear(x, "router", experts, role="router"), **options)


ROUTES: dict[str, Write] = {
    "softmax": route_of(7, top_k=3, scores="softmax", normalize=False),
    "one expert": route_of(5, top_k=1, scores="sigmoid", normalize=False),
    "all experts": route_of(40, top_k=40, scores="softmax", normalize=True, scale=2.5),
    "bias": route_of(33, top_k=4, scores="sigmoid", normalize=True, bias=("c", Part("c")), scale=2.5),
    "groups by their best": route_of(
        24, top_k=5, scores="softmax", normalize=False, num_groups=4, top_groups=2, scale=16.0
    ),
    "groups by their best two": route_of(
        32,
        top_k=8,
        scores="sigmoid",
        normalize=True,
        bias=("c", Part("c")),
        num_groups=8,
        top_groups=4,
        group_score="top2_sum",
    ),
}


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("case", ROUTES)
def test_routes_agree_with_the_reference(case: str, kernels: str) -> None:
    program = program_of(ROUTES[case])
    check(program, random_weights(program), kernels)


def experts_of(
    experts: int, inner: int, *, top_k: int, biased: bool = False, share: float = 1.0, **options: Any
) -> Write:
    if biased:
        options |= {"gate_up_bias": ("gate_up.bias", [Part("a")]), "down_bias": ("down.bias", [Part("b")])}

    def write(b: ProgramBuilder, x: Value) -> Value:
        logits = b.linear(x, "router", experts, role="router")
        shares = b.route(logits, top_k=top_k, scores="softmax", normalize=True, scale=share)
        return b.experts(x, shares, gate_up="gate_up", down="down", intermediate_size=inner, **options)

    return write


EXPERTS: dict[str, Write] = {
    "a few": experts_of(7, 48, top_k=2),
    "one": experts_of(3, 16, top_k=1, scale_input=True, kind="gelu"),
    "many": experts_of(50, 16, top_k=6, biased=True, kind="clamped_swiglu"),
    "none at all": experts_of(3, 16, top_k=1, share=0.0),
    "every one": experts_of(4, 112, top_k=4, kind="gelu_tanh"),
}


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kind", [KINDS[0], KINDS[2], INT8, INT4], ids=str)
@pytest.mark.parametrize("case", EXPERTS)
def test_experts_agree_with_the_reference(case: str, kind: Kind, kernels: str) -> None:
    program = program_of(EXPERTS[case], width=64)
    check(program, random_weights(program, kind), kernels, TOLERANCE.get(kind.format, 2e-6))


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kind", [KINDS[1], INT8, INT4], ids=str)
def test_heads_with_matrices_of_their_own(kind: Kind, kernels: str) -> None:
    def write(b: ProgramBuilder, x: Value) -> Value:
        return b.head_linear(x, "w", num_heads=3, in_features=17, out_features=64)

    program = program_of(write)
    check(program, random_weights(program, kind), kernels, TOLERANCE.get(kind.format, 2e-6))


def test_matrices_must_begin_with_a_panel() -> None:
    for write in (
        experts_of(3, 20, top_k=1),
        lambda b, x: b.head_linear(x, "w", num_heads=3, in_features=17, out_features=40),
    ):
        program = program_of(write, width=60)
        with pytest.raises(ValueError, match=r"program: the matrices of weight .* must be a multiple of 32"):
            NativeExecutor(program, random_weights(program), **LIMITS)


def test_shares_that_no_route_made_are_refused() -> None:
    def write(b: ProgramBuilder, x: Value) -> Value:
        shares = b.route(b.linear(x, "router", 4), top_k=1, scores="softmax", normalize=True)
        b.scale(shares, 0.5)
        return b.experts(x, shares, gate_up="gate_up", down="down", intermediate_size=32)

    program = program_of(write, width=64)
    with pytest.raises(ValueError, match="not what a Route made"):
        NativeExecutor(program, random_weights(program), **LIMITS)


@pytest.mark.parametrize("kind", [KINDS[1], INT4], ids=str)
def test_more_tokens_than_experts_take_at_once(kind: Kind) -> None:
    def write(b: ProgramBuilder, x: Value) -> Value:
        heads = b.head_linear(x, "w", num_heads=2, in_features=30, out_features=32)
        made = experts_of(5, 16, top_k=2)(b, x)
        b.add(made, heads)
        return made

    program = program_of(write, width=64)
    weights = random_weights(program, kind)
    limits = {"num_pages": 80, "max_tokens": 1200, "max_positions": 1200}
    executor = NativeExecutor(program, weights, **limits, num_threads=2, kv_dtype="f32")
    tokens = np.random.default_rng(8).integers(0, VOCAB, 1200).tolist()
    actual = executor.run(single(tokens))
    expected = ReferenceExecutor(program, weights, **limits).run(single(tokens))
    tolerance = TOLERANCE.get(kind.format, 2e-6) * np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)
    for at in (0, 511, 512, 1023, 1024, 1199):
        row = executor.run(batch_of(Chunk(tokens[at : at + 1], at, range(at // 16 + 1))))
        np.testing.assert_array_equal(row[0], actual[at])
    executor.close()


PRODUCTS: dict[str, Write] = {
    "layer norm": lambda b, x: b.linear(b.layer_norm(x, "n", 0.1), "w", 45),
    "activation": lambda b, x: b.linear(b.activation(x, "gelu"), "w", 45),
    "gate": lambda b, x: b.linear(b.gated_activation(x, "clamped_swiglu"), "w", 45),
}


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kind", [INT8, INT4], ids=str)
@pytest.mark.parametrize("case", PRODUCTS)
def test_what_is_quantized_where_it_is_made(case: str, kind: Kind, kernels: str) -> None:
    program = program_of(PRODUCTS[case])
    check(program, random_weights(program, kind), kernels, TOLERANCE[kind.format])


@pytest.mark.parametrize("kernels", KERNELS)
def test_capped_logits(kernels: str) -> None:
    def write(b: ProgramBuilder, x: Value) -> Value:
        b.logits(x, "head", softcap=2.0)
        return Value(0, 0, 0)

    program = program_of(write)
    actual = check(program, random_weights(program, scale=3), kernels)
    assert 1.9 < np.abs(actual).max() <= 2


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh", "relu"])
def test_activations_over_the_whole_range(kind: ActivationKind, kernels: str) -> None:
    x = np.concatenate([np.linspace(-100, 100, 1001), np.linspace(-13, 6, 2000), [0, 1e-10, -1e-10, 3e38, -3e38]])
    actual = of_one_row(lambda b, row: b.activation(row, kind), x, kernels)
    np.testing.assert_allclose(actual, exact_activation(np.float32(x).astype(np.float64), kind), rtol=1e-5, atol=1e-35)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh", "clamped_swiglu"])
def test_gates_over_the_whole_range(kind: GateKind, kernels: str) -> None:
    x = np.concatenate([np.linspace(-100, 100, 1001), np.linspace(-10, 10, 100), [0.0, 1e-10, -1e-10, 3e37, -3e37]])
    up = np.linspace(9, -9, len(x))
    actual = of_one_row(lambda b, row: b.gated_activation(row, kind), np.concatenate([x, up]), kernels)
    gate, up = np.float32(x).astype(np.float64), np.float32(up).astype(np.float64)
    if kind == "clamped_swiglu":
        gate = np.minimum(gate, 7)
        expected = gate / (1 + np.exp(np.minimum(-1.702 * gate, 700))) * (np.clip(up, -7, 7) + 1)
    else:
        expected = exact_activation(gate, kind) * up
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-34)


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_cap_over_the_whole_range(kernels: str) -> None:
    x = np.concatenate([np.linspace(-100, 100, 1001), np.geomspace(1e-20, 1, 100), [0.0, 3e38, -3e38]])
    b = ProgramBuilder(num_layers=1, num_kv_heads=1, head_dim=1, vocab_size=len(x))
    row = b.embed("embed", 1)
    b.write_kv(0, row, row)
    b.attention(row, 0, num_heads=1)
    b.logits(row, "head", softcap=30.0)
    weights = {"embed.weight": f32_tensor(np.ones((len(x), 1))), "head.weight": f32_tensor(x[:, None])}
    executor = NativeExecutor(b.build(), weights, **LIMITS, kernels=kernels)
    expected = 30 * np.tanh(np.float32(x).astype(np.float64) / 30)
    np.testing.assert_allclose(executor.run(single([0]))[0], expected, rtol=1e-6)
    executor.close()


def of_one_row(write: Write, x: NDArray[np.float64], kernels: str) -> NDArray[np.float32]:
    b = ProgramBuilder(num_layers=1, num_kv_heads=1, head_dim=1, vocab_size=1)
    row = b.embed("embed", len(x))
    b.write_kv(0, row.columns(0, 1), row.columns(0, 1))
    b.attention(row.columns(0, 1), 0, num_heads=1)
    b.hidden_states(write(b, row))
    executor = NativeExecutor(b.build(), {"embed.weight": f32_tensor(x[None])}, **LIMITS, kernels=kernels)
    result = executor.run(single([0]))[0]
    executor.close()
    return result


def exact_activation(x: NDArray[np.float64], kind: str) -> NDArray[np.float64]:
    if kind == "relu":
        return np.maximum(x, 0)
    if kind == "gelu":
        return np.array([value * math.erfc(-value / math.sqrt(2)) / 2 for value in x])
    inner = x
    if kind == "gelu_tanh":
        inner = 2 * math.sqrt(2 / math.pi) * (x + 0.044715 * np.clip(x, -1e6, 1e6) ** 3)
    return x / (1 + np.exp(np.clip(-inner, None, 700)))


def test_a_table_of_positions_ends_the_sequences() -> None:
    program = program_of(position)
    executor = NativeExecutor(program, random_weights(program), **LIMITS, kv_dtype="f32")
    executor.run(batch_of(Chunk([1], 59, [0, 1, 2, 3])))
    with pytest.raises(ValueError, match=r"positions has the value 60, which must lie in 0 \.\. 59"):
        executor.run(batch_of(Chunk([1], 60, [0, 1, 2, 3])))
    executor.close()
