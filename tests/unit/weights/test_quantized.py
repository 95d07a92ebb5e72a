"""Quantized Hugging Face checkpoints: the numbers that their tools make of them, and damaged ones are refused."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from support.quantized_files import Matrix, awq, compressed, fp8, gptq, groups_of
from support.weight_files import safetensors_bytes, write_safetensors
from windlass.errors import LoadError
from windlass.models.quantization_config import read_quantization
from windlass.program.program import Part, WeightSpec
from windlass.quantization import Format, Tensor, f32_to_bf16
from windlass.weights.loader import load_weights
from windlass.weights.safetensors import open_safetensors

ROWS, COLUMNS = 40, 192


def weights_config(layout: str = "pack-quantized", **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "symmetric": True, **weights}}
    return {"quant_method": "compressed-tensors", "format": layout, "config_groups": {"group_0": group}}


def gptq_config(**values: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq", **values}


def awq_config(**values: Any) -> dict[str, Any]:
    return {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True, **values}


def fp8_config(**values: Any) -> dict[str, Any]:
    return {"quant_method": "fp8", "activation_scheme": "dynamic", **values}


def opened(directory: Path, config: Mapping[str, Any], pieces: Mapping[str, NDArray[Any]]) -> Tensor:
    """The tensor ``m.weight`` of a checkpoint that has these pieces of it."""
    write_safetensors(directory / "model.safetensors", {f"m.{name}": array for name, array in pieces.items()})
    groupings = read_quantization({"quantization_config": config}, directory / "config.json")
    with open_safetensors(directory, groupings) as source:
        assert set(source.names) == {"m.weight"}
        return source.read_quantized("m.weight")


def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def shuffled(group: int, columns: int = COLUMNS) -> NDArray[np.int32]:
    return groups_of(columns, group, np.random.default_rng(5))


EXACT: dict[str, tuple[dict[str, Any], Matrix, Format]] = {}
for bits, kind in ((4, Format.INT4), (8, Format.INT8)):
    for size in (32, 64, 128, -1):
        for sym in (True, False):
            for layout in ("gptq", "gptq_v2"):
                EXACT[f"{layout}-{bits}-{size}-{sym}"] = (
                    gptq_config(bits=bits, group_size=size, checkpoint_format=layout, sym=sym),
                    gptq(rng(), ROWS, COLUMNS, bits=bits, group=size, sym=sym, layout=layout),
                    kind,
                )
            EXACT[f"words-{bits}-{size}-{sym}"] = (
                weights_config(num_bits=bits, group_size=size, strategy="group", symmetric=sym),
                compressed(rng(), ROWS, COLUMNS + 5, bits=bits, group=size, sym=sym),
                kind,
            )
    for sym in (True, False):
        EXACT[f"act-order-{bits}-{sym}"] = (
            gptq_config(bits=bits, desc_act=True, sym=sym),
            gptq(rng(), ROWS, COLUMNS, bits=bits, sym=sym, order=shuffled(32)),
            kind,
        )
        EXACT[f"bfloat16-scales-{bits}-{sym}"] = (
            gptq_config(bits=bits, sym=sym),
            gptq(rng(), ROWS, COLUMNS, bits=bits, sym=sym, scales="bf16"),
            kind,
        )
        EXACT[f"words-act-order-{bits}-{sym}"] = (
            weights_config(num_bits=bits, group_size=32, strategy="group", symmetric=sym, actorder="group"),
            compressed(rng(), ROWS, COLUMNS + 5, bits=bits, sym=sym, order=shuffled(32, COLUMNS + 5)),
            kind,
        )
        EXACT[f"words-f16-{bits}-{sym}"] = (
            weights_config(num_bits=bits, group_size=32, symmetric=sym),
            compressed(rng(), ROWS, COLUMNS, bits=bits, sym=sym, scales="f16", packed_zeros=False),
            kind,
        )
        EXACT[f"words-tensor-{bits}-{sym}"] = (
            weights_config(num_bits=bits, strategy="tensor", symmetric=sym),
            compressed(rng(), ROWS, COLUMNS, bits=bits, group=None, sym=sym, packed_zeros=False),
            kind,
        )
        for strategy, group in (("tensor", None), ("channel", -1), ("group", 64)):
            EXACT[f"bytes-{bits}-{strategy}-{sym}"] = (
                weights_config("int-quantized", num_bits=bits, strategy=strategy, symmetric=sym, group_size=group),
                compressed(rng(), ROWS, COLUMNS, bits=bits, group=group, sym=sym, layout="int-quantized"),
                Format.INT8,
            )
    # Float32 scales have too many bits for a code and a minimum apart.
    EXACT[f"f32-scales-{bits}"] = (
        gptq_config(bits=bits, sym=False, desc_act=True),
        gptq(rng(), ROWS, COLUMNS, bits=bits, sym=False, scales="f32", order=shuffled(32)),
        kind if bits == 4 else Format.F32,
    )
for size in (32, 64, -1):
    EXACT[f"awq-{size}"] = (awq_config(group_size=size), awq(rng(), ROWS, COLUMNS, group=size), Format.INT4)
EXACT["fp8-blocks"] = (
    fp8_config(weight_block_size=[128, 128], fmt="e4m3"),
    fp8(rng(), 200, 320, block=(128, 128), scale="weight_scale_inv"),
    Format.FP8,
)
EXACT["fp8-tensor"] = (fp8_config(), fp8(rng(), ROWS, COLUMNS, block=None), Format.FP8)
EXACT["fp8-tensor-inv"] = (fp8_config(), fp8(rng(), ROWS, COLUMNS, block=None, scale="weight_scale_inv"), Format.FP8)
EXACT["fbgemm"] = ({"quant_method": "fbgemm_fp8"}, fp8(rng(), ROWS, COLUMNS, block=(1, -1)), Format.FP8)
for strategy, block in (("tensor", None), ("channel", (1, -1)), ("group", (1, 64)), ("block", (16, 128))):
    EXACT[f"float-{strategy}"] = (
        weights_config(
            "float-quantized",
            num_bits=8,
            type="float",
            strategy=strategy,
            group_size=64 if strategy == "group" else None,
            block_structure=[16, 128] if strategy == "block" else None,
        ),
        fp8(rng(), ROWS, COLUMNS, block=block, scales="bf16"),
        Format.FP8,
    )


@pytest.mark.parametrize("name", EXACT)
def test_the_numbers_are_those_of_the_formula(tmp_path: Path, name: str) -> None:
    config, matrix, kind = EXACT[name]
    tensor = opened(tmp_path, config, matrix.pieces)
    assert tensor.format is kind
    assert tensor.shape == matrix.numbers.shape
    np.testing.assert_array_equal(tensor.dequantize(), matrix.numbers)


GOLDENS = Path(__file__).parents[2] / "conformance" / "goldens" / "quantized.npz"
GOLDEN_CONFIGS = {
    **{
        f"gptq-{bits}-{'sym' if sym else 'asym'}{'-act-order' * act_order}": gptq_config(
            bits=bits, sym=sym, desc_act=act_order
        )
        for bits in (4, 8)
        for sym in (True, False)
        for act_order in (True, False)
    },
    "awq": awq_config(group_size=64),
    **{
        f"words-{bits}-{'sym' if sym else 'asym'}": weights_config(num_bits=bits, symmetric=sym, group_size=32)
        for bits in (4, 8)
        for sym in (True, False)
    },
    "words-4-channels": weights_config(strategy="channel"),
    "bytes-8-channels": weights_config("int-quantized", num_bits=8, strategy="channel"),
    **{
        f"float-{strategy}": weights_config(
            "float-quantized", num_bits=8, type="float", strategy=strategy, block_structure=[16, 64]
        )
        for strategy in ("tensor", "channel", "block")
    },
    "fp8-blocks": fp8_config(weight_block_size=[32, 64]),
}


@pytest.fixture(scope="module")
def goldens() -> dict[str, dict[str, NDArray[Any]]]:
    """Pieces and numbers of each case of tools/make_quantized_goldens.py."""
    cases: dict[str, dict[str, NDArray[Any]]] = {}
    with np.load(GOLDENS) as file:
        for key in file.files:
            case, _, name = key.partition("/")
            cases.setdefault(case, {})[name] = file[key]
    assert cases.keys() == GOLDEN_CONFIGS.keys()
    return cases


@pytest.mark.parametrize("name", GOLDEN_CONFIGS)
def test_the_numbers_are_those_of_the_tools(
    tmp_path: Path, goldens: dict[str, dict[str, NDArray[Any]]], name: str
) -> None:
    """To the last bit of the type that the tool makes them in: ours have what it rounds away."""
    pieces = dict(goldens[name])
    numbers = pieces.pop("numbers")
    ours = opened(tmp_path, GOLDEN_CONFIGS[name], pieces).dequantize()
    rounded = f32_to_bf16(ours) if numbers.dtype == np.uint16 else ours.astype(numbers.dtype)
    np.testing.assert_array_equal(rounded, numbers)


def test_a_subtraction_that_borrowed_is_undone(tmp_path: Path) -> None:
    """GPTQModel takes 1 from each zero point of a whole word at once; one from 0 borrows from its neighbour."""
    matrix = gptq(rng(), ROWS, COLUMNS, sym=False, layout="gptq_v2")
    zeros = matrix.pieces["qzeros"].view(np.uint32)
    assert ((zeros & 15) == 0).any()
    pieces = {**matrix.pieces, "qzeros": (zeros - np.uint32(0x11111111)).view(np.int32)}
    np.testing.assert_array_equal(opened(tmp_path, gptq_config(sym=False), pieces).dequantize(), matrix.numbers)


def test_columns_are_put_in_order_only_where_they_are_not(tmp_path: Path) -> None:
    """Static groups leave every column in its place, whatever order they were quantized in."""
    config = gptq_config(desc_act=True, static_groups=True)
    assert opened(tmp_path, config, gptq(rng(), ROWS, COLUMNS).pieces).order is None
    ordered = opened(tmp_path, config, gptq(rng(), ROWS, COLUMNS, order=shuffled(32)).pieces).order
    assert ordered is not None
    assert sorted(ordered) == list(range(COLUMNS))
    without = compressed(rng(), ROWS, COLUMNS, order=np.full(COLUMNS, -1, np.int32) * 0 + groups_of(COLUMNS, 32))
    pieces = {**without.pieces, "weight_g_idx": np.full(COLUMNS, -1, np.int32)}
    assert opened(tmp_path, weights_config(group_size=32), pieces).order is None


def test_gptqmodel_may_quantize_some_modules_otherwise(tmp_path: Path) -> None:
    config = gptq_config(dynamic={r"+:.*down.*": {"bits": 8, "group_size": 64}, r"-:.*up.*": {}})
    for bits, group in ((4, 32), (8, 64)):
        matrix = gptq(rng(), ROWS, COLUMNS, bits=bits, group=group)
        np.testing.assert_array_equal(opened(tmp_path, config, matrix.pieces).dequantize(), matrix.numbers)


def test_groups_of_modules_may_have_different_formats(tmp_path: Path) -> None:
    config = weights_config("mixed-precision", group_size=32)
    config["config_groups"]["group_0"]["format"] = "pack-quantized"
    config["config_groups"]["group_1"] = {
        "targets": ["re:.*down_proj"],
        "format": "float-quantized",
        "weights": {"num_bits": 8, "type": "float", "strategy": "channel"},
        "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
    }
    for matrix in (compressed(rng(), ROWS, COLUMNS), fp8(rng(), ROWS, COLUMNS, block=(1, -1))):
        np.testing.assert_array_equal(opened(tmp_path, config, matrix.pieces).dequantize(), matrix.numbers)


@pytest.mark.parametrize("layout", ["pack-quantized", "int-quantized"])
def test_symmetric_codes_may_have_zero_points(tmp_path: Path, layout: str) -> None:
    """First versions of compressed-tensors stored them: zeros."""
    matrix = compressed(rng(), ROWS, COLUMNS, bits=8, layout=layout)
    pieces = {**matrix.pieces, "weight_zero_point": np.zeros((ROWS, COLUMNS // 32), np.int8)}
    tensor = opened(tmp_path, weights_config(layout, num_bits=8, group_size=32), pieces)
    assert tensor.minima is None
    np.testing.assert_array_equal(tensor.dequantize(), matrix.numbers)


def test_what_a_file_says_of_activations_and_the_cache_is_left_out(tmp_path: Path) -> None:
    matrix = fp8(rng(), ROWS, COLUMNS, block=None)
    one = np.ones((), np.float32)
    pieces = {**matrix.pieces, "input_scale": one, "k_scale": one, "v_scale": one}
    np.testing.assert_array_equal(
        opened(tmp_path, fp8_config(activation_scheme="static"), pieces).dequantize(), matrix.numbers
    )


Change = Callable[[dict[str, NDArray[Any]]], object]

DAMAGED: dict[str, tuple[dict[str, Any], Matrix, Change, str]] = {
    "no scales": (gptq_config(), gptq(rng(), 8, 64), lambda p: p.pop("scales"), "'m.scales' is missing"),
    "no zeros": (awq_config(), awq(rng(), 8, 64), lambda p: p.pop("qzeros"), "'m.qzeros' is missing"),
    "scales of another size": (
        gptq_config(group_size=64),
        gptq(rng(), 8, 64),
        lambda _: None,
        r"'m.qzeros' has shape \[2, 1\]; 4 bits in groups of 64 need \[1, 1\]",
    ),
    "floats as codes": (
        gptq_config(),
        gptq(rng(), 8, 64),
        lambda p: p.update(qweight=p["qweight"].astype(np.float32)),
        "'m.qweight' must be a matrix of int32, not float32",
    ),
    "three axes": (
        gptq_config(),
        gptq(rng(), 8, 64),
        lambda p: p.update(qweight=p["qweight"][None]),
        r"'m.qweight' must be a matrix of int32, not int32 \[1, 8, 8\]",
    ),
    "nothing": (
        gptq_config(),
        gptq(rng(), 8, 64),
        lambda p: p.update(qweight=np.zeros((0, 8), np.int32)),
        "'m.qweight' must be a matrix",
    ),
    "odd rows": (
        gptq_config(),
        gptq(rng(), 8, 64),
        lambda p: p.update(qweight=p["qweight"][:, :5]),
        "has 5 columns, not a multiple of 8",
    ),
    "groups that nobody made": (
        gptq_config(),
        gptq(rng(), 8, 64),
        lambda p: p.update(g_idx=np.zeros(64, np.int32)),
        "the groups of its columns are not 0, 1, ... with 32 columns each",
    ),
    "groups out of range": (
        gptq_config(),
        gptq(rng(), 8, 64),
        lambda p: p.update(g_idx=np.full(64, 2**31 - 1, np.int32)),
        "the groups of its columns are not",
    ),
    "a short g_idx": (
        gptq_config(),
        gptq(rng(), 8, 64),
        lambda p: p.update(g_idx=np.zeros(63, np.int32)),
        r"'m.g_idx' has shape \[63\]",
    ),
    "an endless scale": (
        gptq_config(),
        gptq(rng(), 8, 64),
        lambda p: p["scales"].__setitem__((1, 3), np.inf),
        "a number is not finite",
    ),
    "columns of no group": (
        awq_config(group_size=48),
        awq(rng(), 8, 64),
        lambda _: None,
        "has 64 rows, which cannot be 4 bits in groups of 48",
    ),
    "no shape": (
        weights_config(group_size=32),
        compressed(rng(), 8, 64),
        lambda p: p.pop("weight_shape"),
        "'m.weight_shape' is missing",
    ),
    "another shape": (
        weights_config(group_size=32),
        compressed(rng(), 8, 64),
        lambda p: p.update(weight_shape=np.array([8, 1 << 60])),
        r"'m.weight_shape' is \(8, 1152921504606846976\), which 8 words a row cannot be",
    ),
    "a negative shape": (
        weights_config(group_size=32),
        compressed(rng(), 8, 64),
        lambda p: p.update(weight_shape=np.array([8, -64])),
        "'m.weight_shape' is",
    ),
    "a shape of floats": (
        weights_config(group_size=32),
        compressed(rng(), 8, 64),
        lambda p: p.update(weight_shape=np.ones(2, np.float32)),
        "'m.weight_shape' must be two integers",
    ),
    "packed zeros of symmetric codes": (
        weights_config(group_size=32),
        compressed(rng(), 8, 64, sym=False),
        lambda _: None,
        "'m.weight_zero_point' has dtype int32, int8 is needed",
    ),
    "no zeros of others": (
        weights_config(group_size=32, symmetric=False),
        compressed(rng(), 8, 64),
        lambda _: None,
        "'m.weight_zero_point' is missing",
    ),
    "other bits": (
        weights_config(group_size=32, num_bits=8),
        compressed(rng(), 8, 64),
        lambda _: None,
        r"'m.weight_shape' is \(8, 64\), which 8 words a row cannot be: 8 bits in groups of 32",
    ),
    "a NaN": (
        fp8_config(),
        fp8(rng(), 8, 64, block=None),
        lambda p: p["weight"].__setitem__((1, 1), 0xFF),
        "a number is not finite",
    ),
    "small groups of fp8": (
        fp8_config(weight_block_size=[32, 32]),
        fp8(rng(), 64, 64, block=(32, 32), scale="weight_scale_inv"),
        lambda _: None,
        "floats of 8 bits in groups of 32 are not supported",
    ),
    "scales of integers": (
        fp8_config(),
        fp8(rng(), 8, 64, block=None),
        lambda p: p.update(weight_scale=np.ones((), np.int32)),
        "'m.weight_scale' has dtype int32, float16 or bfloat16 or float32 is needed",
    ),
    "twice": (
        gptq_config(),
        gptq(rng(), 8, 64),
        lambda p: p.update(weight=np.zeros((8, 64), np.float32)),
        "'m.weight' is there twice, once quantized",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_checkpoints_are_refused(tmp_path: Path, name: str) -> None:
    config, matrix, change, message = DAMAGED[name]
    pieces = {piece: array.copy() for piece, array in matrix.pieces.items()}
    change(pieces)
    with pytest.raises((LoadError, ValueError), match=message):
        opened(tmp_path, config, pieces)


def test_blocks_may_be_larger_than_a_matrix(tmp_path: Path) -> None:
    """However large: nothing of their size is made."""
    matrix = fp8(rng(), 8, 64, block=(8, 64), scale="weight_scale_inv")
    config = fp8_config(weight_block_size=[2**31 - 1, 2**31 - 1])
    np.testing.assert_array_equal(opened(tmp_path, config, matrix.pieces).dequantize(), matrix.numbers)


VALUES = [None, 0, 1, -1, 4, 8, 64, 128, 2**31, -(2**63), 1.5, "", "gptq", "I32", "F16", True, [], [1], [128, 128], {}]


def changed(draw: random.Random, value: Any) -> Any:
    """A copy of some JSON with something in it changed or left out."""
    value = copy.deepcopy(value)
    node, places = value, []
    while isinstance(node, dict | list) and node and (not places or draw.random() < 0.75):
        places.append((node, draw.choice(list(node) if isinstance(node, dict) else range(len(node)))))
        node = places[-1][0][places[-1][1]]
    if places:
        parent, key = places[-1]
        if isinstance(parent, dict) and draw.random() < 0.2:
            del parent[key]
        else:
            parent[key] = draw.choice(VALUES)
    return value


def test_damage_is_refused_or_harmless(tmp_path: Path) -> None:
    """Whatever is changed in a configuration, a header or the numbers: a tensor of that shape, or LoadError."""
    draw = random.Random(1)  # noqa: S311
    file = tmp_path / "model.safetensors"
    outcomes = {True: 0, False: 0}
    for _ in range(300):
        config, matrix, _ = EXACT[draw.choice(list(EXACT))]
        raw = safetensors_bytes({f"m.{name}": array for name, array in matrix.pieces.items()})
        size = struct.unpack("<Q", raw[:8])[0]
        header, numbers = raw[8 : 8 + size], bytearray(raw[8 + size :])
        damage = draw.randrange(3)
        if damage == 0:
            config = changed(draw, config)
        elif damage == 1:
            header = json.dumps(changed(draw, json.loads(header))).encode()
            header += b" " * (-len(header) % 8)
        else:
            for _ in range(draw.randrange(1, 40)):
                numbers[draw.randrange(len(numbers))] = draw.choice((0, 255, 127, 128, draw.randrange(256)))
        file.write_bytes(struct.pack("<Q", len(header)) + header + numbers)
        spec = WeightSpec("m.weight", matrix.numbers.shape, (Part("m.weight"),))
        try:
            groupings = read_quantization({"quantization_config": config}, tmp_path / "config.json")
            with open_safetensors(tmp_path, groupings) as source:
                ((_, tensor),) = load_weights([spec], source)
            assert tensor.shape == spec.shape
            outcomes[True] += 1
        except LoadError:
            outcomes[False] += 1
    assert min(outcomes.values()) > 50


def test_a_plain_checkpoint_has_no_integers(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", {"m.qweight": np.zeros((2, 2), np.int32)})
    with pytest.raises(LoadError, match=r"'m\.qweight' has dtype 'I32'; supported: F32, F16, BF16"):
        open_safetensors(tmp_path)


def test_another_configuration_is_another_fingerprint(tmp_path: Path) -> None:
    """Two that differ in what is added to the zero points only must not share packed weights."""
    pieces = {f"m.{name}": array for name, array in gptq(rng(), 8, 64).pieces.items()}
    write_safetensors(tmp_path / "model.safetensors", pieces)
    prints = set()
    for layout in ("gptq", "gptq_v2"):
        config = {"quantization_config": gptq_config(checkpoint_format=layout)}
        with open_safetensors(tmp_path, read_quantization(config, tmp_path)) as source:
            prints.add(source.fingerprint())
    assert len(prints) == 2
