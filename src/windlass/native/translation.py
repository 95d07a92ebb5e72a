"""Programs as the native executor takes them: names become numbers."""

from __future__ import annotations

from collections.abc import Mapping

from windlass.native import _core
from windlass.program.ops import (
    Activation,
    Add,
    AddBias,
    Attention,
    Embed,
    EmbedPosition,
    Experts,
    GatedActivation,
    HeadLinear,
    HeadNorm,
    HiddenStates,
    JoinHeads,
    LayerNorm,
    Linear,
    Logits,
    Op,
    RmsNorm,
    Rope,
    Route,
    Scale,
    SigmoidGate,
    Value,
    WriteKV,
)
from windlass.program.program import Program

_NO_WEIGHT = -1


def translate(program: Program) -> _core.Program:
    """Return the program for the native executor, which checks it when it gets it.

    Raises:
        ValueError: an operation does not fit the program.
    """
    native = _core.Program(
        num_ropes=len(program.ropes),
        num_layers=program.num_layers,
        num_kv_heads=program.num_kv_heads,
        head_dim=program.head_dim,
        vocab_size=program.vocab_size,
    )
    for width in program.buffer_widths:
        native.add_buffer(width)
    for spec in program.weights:
        rows, columns = (1, *spec.shape)[-2:]
        native.add_weight(spec.name, rows, columns, len(spec.shape) == 1)
    weights = _Weights({spec.name: index for index, spec in enumerate(program.weights)})
    for op in program.ops:
        if isinstance(op, Attention) and (op.num_kv_heads, op.head_dim) != (program.num_kv_heads, program.head_dim):
            raise ValueError("program: an attention operation does not fit the KV cache")
        if not (_add_row_op(native, op, weights) or _add_other_op(native, op, weights)):
            raise ValueError(f"program: {type(op).__name__} is not supported")
    return native


class _Weights:
    """The numbers of a program's weights."""

    def __init__(self, numbers: Mapping[str, int]) -> None:
        self._numbers = numbers

    def __getitem__(self, name: str | None) -> int:
        return _NO_WEIGHT if name is None else self._numbers[name]


def _columns(value: Value) -> tuple[int, int, int]:
    return value.buffer, value.offset, value.width


def _add_row_op(native: _core.Program, op: Op, weights: _Weights) -> bool:
    """Add an operation that looks at one token at a time; False when it is another one."""
    if isinstance(op, Embed):
        native.embed(_columns(op.out), weights[op.table])
    elif isinstance(op, EmbedPosition):
        native.embed_position(_columns(op.out), weights[op.table])
    elif isinstance(op, RmsNorm):
        native.rms_norm(_columns(op.out), _columns(op.x), weights[op.weight], op.eps)
    elif isinstance(op, LayerNorm):
        native.layer_norm(_columns(op.out), _columns(op.x), weights[op.weight], weights[op.bias], op.eps)
    elif isinstance(op, HeadNorm):
        native.head_norm(_columns(op.x), weights[op.weight], op.head_dim, op.eps, op.centered)
    elif isinstance(op, JoinHeads):
        native.join_heads(_columns(op.out), _columns(op.left), _columns(op.right), op.num_heads)
    elif isinstance(op, Rope):
        native.rope(_columns(op.x), op.table, op.head_dim, op.rotary_dim)
    elif isinstance(op, Activation):
        native.activation(_columns(op.out), _columns(op.x), op.activation)
    elif isinstance(op, GatedActivation):
        native.gated_activation(_columns(op.out), _columns(op.x), op.activation)
    elif isinstance(op, Add):
        native.add(_columns(op.x), _columns(op.y))
    elif isinstance(op, AddBias):
        native.add_bias(_columns(op.x), weights[op.bias])
    elif isinstance(op, Scale):
        native.scale(_columns(op.x), op.factor)
    elif isinstance(op, SigmoidGate):
        native.sigmoid_gate(_columns(op.x), _columns(op.gate))
    else:
        return False
    return True


def _add_other_op(native: _core.Program, op: Op, weights: _Weights) -> bool:
    if isinstance(op, Linear):
        native.linear(_columns(op.out), _columns(op.x), weights[op.weight], weights[op.bias])
    elif isinstance(op, HeadLinear):
        native.head_linear(_columns(op.out), _columns(op.x), weights[op.weight], op.num_heads)
    elif isinstance(op, Route):
        choice = (op.top_k, op.scores == "sigmoid", op.normalize, op.scale, weights[op.bias])
        groups = (op.num_groups, op.top_groups, op.group_score == "top2_sum")
        native.route(_columns(op.out), _columns(op.x), *choice, *groups)
    elif isinstance(op, Experts):
        matrices = (weights[op.gate_up], weights[op.down])
        biases = (weights[op.gate_up_bias], weights[op.down_bias])
        values = (_columns(op.out), _columns(op.x), _columns(op.shares))
        native.experts(*values, *matrices, op.activation, *biases, op.scale_input)
    elif isinstance(op, WriteKV):
        native.write_kv(op.layer, _columns(op.k), _columns(op.v))
    elif isinstance(op, Attention):
        sizes = (op.layer, op.num_heads, op.scale, op.window or 0, op.chunk or 0, op.softcap or 0.0)
        native.attention(_columns(op.out), _columns(op.q), *sizes, weights[op.sinks], op.causal)
    elif isinstance(op, Logits):
        native.logits(_columns(op.x), weights[op.weight], op.softcap or 0.0)
    elif isinstance(op, HiddenStates):
        native.hidden_states(_columns(op.x))
    else:
        return False
    return True
