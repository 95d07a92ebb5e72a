"""Specs against sources: fusing, quantizing, checking, and what stays open afterwards."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.quantized_files import gptq
from support.weight_files import open_in, write_mlc, write_safetensors
from windlass.errors import LoadError
from windlass.models.quantization_config import read_quantization
from windlass.program.program import EVEN_THEN_ODD, Part, RowOrder, WeightSpec
from windlass.quantization import SCHEMES, Format, Tensor, f32_to_bf16, get_scheme, mlc_pack, quantize
from windlass.weights import check_weights, count_parameters, load_weights, open_mlc, open_safetensors
from windlass.weights.quantized import WHOLE, Grouping

RNG = np.random.default_rng(7)
HF: dict[str, Any] = {
    "embed.weight": RNG.standard_normal((10, 64)).astype(np.float32),
    "l.q.weight": RNG.standard_normal((8, 64)).astype(np.float32),
    "l.k.weight": RNG.standard_normal((4, 64)).astype(np.float32),
    "l.q.bias": RNG.standard_normal(8).astype(np.float32),
    "l.k.bias": RNG.standard_normal(4).astype(np.float32),
    "norm.weight": RNG.standard_normal(64).astype(np.float32),
    "lm_head.weight": RNG.standard_normal((10, 64)).astype(np.float32),
}
SPECS = (
    WeightSpec("embed.weight", (10, 64), (Part("embed.weight"),), "embedding"),
    WeightSpec("l.qk.weight", (12, 64), (Part("l.q.weight"), Part("l.k.weight")), "linear"),
    WeightSpec("l.qk.bias", (12,), (Part("l.q.bias"), Part("l.k.bias")), "plain"),
    WeightSpec("norm.weight", (64,), (Part("norm.weight"),), "plain"),
    WeightSpec("lm_head.weight", (10, 64), (Part("lm_head.weight"),), "head"),
)
FUSED = {
    "embed.weight": HF["embed.weight"],
    "l.qk.weight": np.concatenate([HF["l.q.weight"], HF["l.k.weight"]]),
    "l.qk.bias": np.concatenate([HF["l.q.bias"], HF["l.k.bias"]]),
    "norm.weight": HF["norm.weight"],
    "lm_head.weight": HF["lm_head.weight"],
}


def hf(directory: Path, tensors: dict[str, Any] = HF) -> Any:
    write_safetensors(directory / "model.safetensors", tensors)
    return open_safetensors(directory)


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in HF.items() if key != name}


def same(left: Tensor, right: Tensor) -> bool:
    def equal(a: Any, b: Any) -> bool:
        return (a is None and b is None) or (a.dtype == b.dtype and np.array_equal(a, b))

    return (left.format, left.shape, left.group_size) == (right.format, right.shape, right.group_size) and all(
        equal(getattr(left, part), getattr(right, part)) for part in ("data", "scales", "zeros")
    )


def test_the_stored_dtype_is_kept_without_a_scheme(tmp_path: Path) -> None:
    half = {name: array.astype(np.float16) for name, array in HF.items()}
    bfloat = {name: f32_to_bf16(array) for name, array in HF.items()}
    for tensors, form in ((HF, Format.F32), (half, Format.F16), (bfloat, Format.BF16)):
        with hf(tmp_path, tensors) as source:
            loaded = dict(load_weights(SPECS, source))
        assert list(loaded) == [spec.name for spec in SPECS]
        for spec in SPECS:
            expected = np.concatenate([tensors[part.name] for part in spec.parts])
            assert loaded[spec.name].format is form
            assert loaded[spec.name].shape == spec.shape
            assert np.array_equal(loaded[spec.name].data, expected)


def test_parts_of_different_dtypes_become_float32(tmp_path: Path) -> None:
    with hf(tmp_path, {**HF, "l.k.weight": f32_to_bf16(np.ones((4, 64), np.float32))}) as source:
        fused = dict(load_weights(SPECS, source))["l.qk.weight"]
    assert fused.format is Format.F32
    assert np.array_equal(fused.data, np.concatenate([HF["l.q.weight"], np.ones((4, 64), np.float32)]))


@pytest.mark.parametrize("name", SCHEMES)
def test_quantizing_while_loading(tmp_path: Path, name: str) -> None:
    scheme = get_scheme(name)
    with hf(tmp_path) as source:
        loaded = dict(load_weights(SPECS, source, scheme))
    for spec in SPECS:
        grouped = len(spec.shape) == 2 and name[1] != "0" and (name != "q4f16_2" or spec.role == "linear")
        assert loaded[spec.name].format.grouped == grouped
        plain = get_scheme({Format.F16: "q0f16", Format.BF16: "q0bf16", Format.F32: "q0f32"}[scheme.model_dtype])
        fused = Tensor(Format.F32, spec.shape, FUSED[spec.name])
        assert same(loaded[spec.name], quantize(fused, scheme if grouped else plain))


def mlc_tensors(scheme: Any) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    for spec in SPECS:
        if scheme.quantizes(spec.role):
            words, scales = mlc_pack(quantize(FUSED[spec.name], scheme), scheme, role=spec.role)
            stem = spec.name.removesuffix(".weight")
            tensors |= {f"{stem}.q_weight": words, f"{stem}.q_scale": scales}
        else:
            bfloat = scheme.model_dtype is Format.BF16
            tensors[spec.name] = f32_to_bf16(FUSED[spec.name]) if bfloat else FUSED[spec.name].astype(np.float16)
    return tensors


@pytest.mark.parametrize("name", ["q4f16_1", "q4f16_0", "q4bf16_1", "q3f16_0", "q4f16_2", "q8f16_1"])
def test_mlc_directories(tmp_path: Path, name: str) -> None:
    scheme = get_scheme(name)
    write_mlc(tmp_path, mlc_tensors(scheme))
    with hf(tmp_path) as source:
        direct = dict(load_weights(SPECS, source, scheme))
    with open_mlc(tmp_path, scheme) as source:
        for given in (None, scheme):
            loaded = dict(load_weights(SPECS, source, given))
            assert list(loaded) == [spec.name for spec in SPECS]
            assert all(same(loaded[spec.name], direct[spec.name]) for spec in SPECS)


def test_an_mlc_directory_is_not_quantized_again(tmp_path: Path) -> None:
    write_mlc(tmp_path, mlc_tensors(SCHEMES["q4f16_1"]))
    with (
        open_mlc(tmp_path, SCHEMES["q4f16_1"]) as source,
        pytest.raises(LoadError, match="stored as q4f16_1 and cannot become q8f16_1"),
    ):
        load_weights(SPECS, source, SCHEMES["q8f16_1"])


def test_progress_counts_stored_bytes(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with hf(tmp_path) as source:
        list(load_weights(SPECS, source, progress=lambda done, total: seen.append((done, total))))
    total = sum(array.nbytes for array in HF.values())
    assert [item[1] for item in seen] == [total] * len(SPECS)
    assert [item[0] for item in seen] == sorted({item[0] for item in seen})
    assert seen[-1][0] == total


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (without("l.k.weight"), "1 tensor is missing: l.k.weight"),
        ({"norm.weight": HF["norm.weight"]}, "6 tensors are missing: embed.weight, .*, ..."),
        ({**HF, "l.v.weight": HF["norm.weight"]}, "1 tensor is left over, unknown to this architecture: l.v.weight"),
        (
            {**HF, "norm.weight": np.ones(63, "f4")},
            r"norm.weight has shape \[63\], the configuration asks for \[64\]",
        ),
        ({**HF, "norm.weight": np.ones((64, 2), "f4")}, r"has shape \[64, 2\], the configuration asks for \[64\]"),
        (
            {**HF, "l.q.weight": np.ones((8, 32), "f4")},
            r"'l.q.weight' has shape \[8, 32\], .* \[12, 64\] for all parts",
        ),
        (
            {**HF, "l.q.weight": np.ones((9, 64), "f4")},
            r"l.q.weight, l.k.weight has shape \[9, 64\], \[4, 64\], the configuration asks for \[12, 64\]",
        ),
        ({**HF, "norm.weight": np.array(1, "f4")}, r"'norm.weight' has shape \[\]"),
    ],
)
def test_sources_that_do_not_fit(tmp_path: Path, tensors: dict[str, Any], message: str) -> None:
    with hf(tmp_path, tensors) as source, pytest.raises(LoadError, match=message) as caught:
        load_weights(SPECS, source)
    assert caught.value.path == str(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("l.qk.q_scale"), "missing: l.qk.q_scale"),
        (lambda tensors: tensors.pop("norm.weight"), "missing: norm.weight"),
        (lambda tensors: tensors.pop("l.qk.q_weight"), "missing: l.qk.q_weight"),
        (
            lambda tensors: tensors.update({"l.qk.weight": np.ones(2, "f2")}),
            "left over, .*: l.qk.q_scale, l.qk.q_weight",
        ),
        (
            lambda tensors: tensors.update({"l.qk.q_weight": np.ones((12, 4), "u4")}),
            r"'l.qk.q_weight' has shape \[12, 4\]; q4f16_1 needs \[12, 8\]",
        ),
        (
            lambda tensors: tensors.update({"l.qk.q_scale": np.ones((2, 12), "f2")}),
            r"'l.qk.q_scale' has shape \[2, 12\]; q4f16_1 needs \[12, 2\]",
        ),
        (
            lambda tensors: tensors.update({"l.qk.q_weight": np.ones((12, 8), "f4")}),
            "'l.qk.q_weight' has dtype float32, uint32 is needed",
        ),
        (
            lambda tensors: tensors.update({"l.qk.q_scale": np.ones((12, 2), "u4")}),
            "'l.qk.q_scale' has dtype uint32, a float type is needed",
        ),
        (
            lambda tensors: tensors.update({"norm.weight": np.ones(64, "u4")}),
            "'norm.weight' has dtype uint32, a float type is needed",
        ),
    ],
)
def test_mlc_sources_that_do_not_fit(tmp_path: Path, change: Any, message: str) -> None:
    tensors = mlc_tensors(SCHEMES["q4f16_1"])
    change(tensors)
    write_mlc(tmp_path, tensors)
    with open_mlc(tmp_path, SCHEMES["q4f16_1"]) as source, pytest.raises(LoadError, match=message):
        load_weights(SPECS, source)


def test_a_quantized_tensor_in_an_unquantized_directory(tmp_path: Path) -> None:
    write_mlc(tmp_path, mlc_tensors(SCHEMES["q4f16_1"]))
    with (
        open_mlc(tmp_path, SCHEMES["q0f16"]) as source,
        pytest.raises(LoadError, match=r"'embed.q_weight' is quantized, but q0f16 does not quantize it"),
    ):
        load_weights(SPECS, source)


def test_ignored_tensors_may_be_there(tmp_path: Path) -> None:
    ignored = (r"l\.\d+\.rotary_emb\.inv_freq", r"lm_head\.weight")
    tied = SPECS[:-1]
    with hf(tmp_path, {**HF, "l.0.rotary_emb.inv_freq": np.ones(4, "f4")}) as source:
        check_weights(tied, source, ignored=ignored)
        with pytest.raises(LoadError, match=r"left over, .*: lm_head.weight"):
            check_weights(tied, source, ignored=ignored[:1])
    with (
        hf(tmp_path, {**HF, "x.lm_head.weight": HF["norm.weight"]}) as source,
        pytest.raises(LoadError, match=r"left over, .*: x.lm_head.weight"),
    ):
        check_weights(tied, source, ignored=ignored)
    write_mlc(tmp_path, mlc_tensors(SCHEMES["q4f16_1"]))
    with open_mlc(tmp_path, SCHEMES["q4f16_1"]) as source:
        check_weights(tied, source, ignored=ignored)


def part_weight(directory: Path, stored: dict[str, Any], spec: WeightSpec) -> Tensor:
    with hf(directory, stored) as source:
        return dict(load_weights([spec], source))[spec.name]


def numbers(*shape: int) -> Any:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


PAIRS = RowOrder(2, EVEN_THEN_ODD)  # of two heads of four rows
PARTS: dict[str, tuple[dict[str, Any], WeightSpec, Any]] = {
    "rows": (
        {"a": numbers(8, 3)},
        WeightSpec("w", (8, 3), (Part("a", rows=PAIRS),)),
        numbers(8, 3)[[0, 2, 1, 3, 4, 6, 5, 7]],
    ),
    "rows of a vector": (
        {"a": numbers(8)},
        WeightSpec("w", (4,), (Part("a", rows=RowOrder(2, ((1, 3, 1),))),), "plain"),
        np.float32([1, 2, 5, 6]),
    ),
    "the same tensor twice": (
        {"a": numbers(6, 2)},
        WeightSpec("w", (6, 2), (Part("a", rows=RowOrder(2, ((1, 3, 1),))), Part("a", rows=RowOrder(2, ((0, 1, 1),))))),
        numbers(6, 2)[[1, 2, 4, 5, 0, 3]],
    ),
    "transposed": ({"a": numbers(3, 4)}, WeightSpec("w", (4, 3), (Part("a", transposed=True),)), numbers(3, 4).T),
    "transposed, then rows": (
        {"a": numbers(3, 4)},
        WeightSpec("w", (4, 3), (Part("a", rows=RowOrder(1, EVEN_THEN_ODD), transposed=True),)),
        numbers(3, 4).T[[0, 2, 1, 3]],
    ),
    "plus": ({"a": numbers(4)}, WeightSpec("w", (4,), (Part("a", plus=1.0),), "plain"), np.float32([1, 2, 3, 4])),
    "three axes": (
        {"a": numbers(2, 3, 4)},
        WeightSpec("w", (6, 4), (Part("a"),), experts=2),
        numbers(6, 4),
    ),
    "three axes, transposed": (
        {"a": numbers(2, 3, 4)},
        WeightSpec("w", (8, 3), (Part("a", rows=PAIRS, transposed=True),), experts=2),
        np.concatenate([expert.T for expert in numbers(2, 3, 4)])[[0, 2, 1, 3, 4, 6, 5, 7]],
    ),
    "biases of experts": (
        {"a": numbers(2, 4)},
        WeightSpec("w", (8,), (Part("a"),), "plain", experts=2),
        numbers(8),
    ),
}


@pytest.mark.parametrize("case", PARTS)
def test_parts(tmp_path: Path, case: str) -> None:
    stored, spec, expected = PARTS[case]
    assert np.array_equal(part_weight(tmp_path, stored, spec).dequantize(), expected)


UNFIT: dict[str, tuple[dict[str, Any], WeightSpec]] = {
    "an axis too many": ({"a": numbers(2, 3, 4)}, WeightSpec("w", (6, 4), (Part("a"),))),
    "not transposed": ({"a": numbers(3, 4)}, WeightSpec("w", (4, 3), (Part("a"),))),
    "rows that are no equal runs": ({"a": numbers(7, 3)}, WeightSpec("w", (7, 3), (Part("a", rows=PAIRS),))),
    "a transposed vector": ({"a": numbers(4)}, WeightSpec("w", (4,), (Part("a", transposed=True),), "plain")),
}


@pytest.mark.parametrize("case", UNFIT)
def test_parts_that_do_not_fit(tmp_path: Path, case: str) -> None:
    stored, spec = UNFIT[case]
    with pytest.raises(LoadError, match=r"model\.safetensors.*tensor 'a' has shape"):
        part_weight(tmp_path, stored, spec)


def test_parts_of_quantized_tensors(tmp_path: Path) -> None:
    config = {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32}}
    matrix = gptq(np.random.default_rng(3), 8, 64)
    write_safetensors(tmp_path / "model.safetensors", {f"a.{name}": array for name, array in matrix.pieces.items()})
    with open_safetensors(tmp_path, read_quantization(config, tmp_path / "config.json")) as source:
        ordered = WeightSpec("w", (8, 64), (Part("a.weight", rows=PAIRS),))
        loaded = dict(load_weights([ordered], source))["w"]
        assert loaded.format is Format.INT4
        assert np.array_equal(loaded.dequantize(), matrix.numbers[[0, 2, 1, 3, 4, 6, 5, 7]])
        for part in (Part("a.weight", transposed=True), Part("a.weight", plus=1.0)):
            spec = WeightSpec("w", (64, 8) if part.transposed else (8, 64), (part,))
            with pytest.raises(LoadError, match=r"a\.weight: it is quantized in the file, along the rows"):
                dict(load_weights([spec], source))


def test_the_check_comes_before_any_reading(tmp_path: Path) -> None:
    with hf(tmp_path, without("norm.weight")) as source:
        with pytest.raises(LoadError):
            load_weights(SPECS, source)
        assert open_in(tmp_path) == (0, 0)


def test_nothing_stays_open_after_loading(tmp_path: Path) -> None:
    with hf(tmp_path) as source:
        converted = dict(load_weights(SPECS, source, SCHEMES["q4f16_1"]))
        assert open_in(tmp_path) == (1, 1)
    assert open_in(tmp_path) == (0, 0)
    assert len(converted) == len(SPECS)


def test_a_weight_that_was_handed_over_is_let_go(tmp_path: Path) -> None:
    handed: list[Any] = []
    alive: list[bool] = []
    with hf(tmp_path) as source:
        for _, tensor in load_weights(
            SPECS, source, SCHEMES["q4f16_1"], progress=lambda *_: alive.append(handed[-1]() is not None)
        ):
            handed.append(weakref.ref(tensor.data))
            del tensor
    assert alive == [False] * len(SPECS)


def test_nothing_stays_open_after_giving_up(tmp_path: Path) -> None:
    with hf(tmp_path) as source:
        weights = load_weights(SPECS, source)
        _, tensor = next(weights)
        del tensor
    del weights
    assert open_in(tmp_path) == (0, 0)


def test_a_bad_number_names_its_tensor_and_keeps_nothing_open(tmp_path: Path) -> None:
    bad = HF["l.k.weight"].copy()
    bad[3, 5] = np.nan
    for scheme, tensors in (
        (SCHEMES["q4f16_1"], {**HF, "l.k.weight": bad}),
        (SCHEMES["q0f16"], {**HF, "norm.weight": HF["norm.weight"] * 1e9}),
    ):
        with hf(tmp_path, tensors) as source, pytest.raises(LoadError, match=r"not finite|too large") as caught:
            list(load_weights(SPECS, source, scheme))
        assert caught.value.path == str(tmp_path / "model.safetensors")
        # The error is still held here, with its traceback.
        assert open_in(tmp_path) == (0, 0)


def test_tensors_go_by_the_names_that_the_program_has(tmp_path: Path) -> None:
    (tmp_path / "prefixed").mkdir()
    with (
        hf(tmp_path / "prefixed", {f"text.{name}": array for name, array in HF.items()}) as source,
        hf(tmp_path) as own,
    ):
        source.rename([("vision.", ""), ("text.l.", "l."), ("text.", "")])
        loaded = dict(load_weights(SPECS, source))
        assert all(same(loaded[name], tensor) for name, tensor in load_weights(SPECS, own))


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    with (
        hf(tmp_path, {**HF, "text.norm.weight": HF["norm.weight"]}) as source,
        pytest.raises(LoadError, match=r"'text.norm.weight' and another would both be 'norm.weight'"),
    ):
        source.rename([("text.", "")])


def test_counting() -> None:
    assert count_parameters(SPECS) == 10 * 64 + 12 * 64 + 12 + 64 + 10 * 64


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_load_holds_the_pages_of_one_tensor_at_a_time(tmp_path: Path) -> None:
    """Of the mapped file too: pages that were read are let go of, and come back when they are read again."""
    arrays = {f"{i}.weight": np.full((1 << 11, 1 << 10), i, np.float32) for i in range(16)}  # 8 MiB each
    with hf(tmp_path, arrays) as source:
        specs = [WeightSpec(name, array.shape, (Part(name),)) for name, array in arrays.items()]
        kept = []
        before = resident_bytes()
        for i, (_, tensor) in enumerate(load_weights(specs, source)):
            assert (tensor.data == i).all()
            kept.append(tensor)
            assert resident_bytes() - before < 24 << 20
        assert all((tensor.data == i).all() for i, tensor in enumerate(kept))


def fingerprint(directory: Path) -> bytes:
    with open_safetensors(directory) as source:
        return source.fingerprint()


def test_a_fingerprint_tells_tensors_apart(tmp_path: Path) -> None:
    hf(tmp_path, HF).close()
    file = tmp_path / "model.safetensors"
    times = file.stat()
    first = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == first
    os.utime(file, ns=(0, times.st_mtime_ns + 1))
    touched = fingerprint(tmp_path)
    data = bytearray(file.read_bytes())
    data[len(data) * 3 // 4 :] = bytes(len(data) - len(data) * 3 // 4)
    file.write_bytes(data)
    os.utime(file, ns=(0, times.st_mtime_ns))
    changed = fingerprint(tmp_path)
    assert len({first, touched, changed}) == 3


def test_a_file_that_has_gone_has_no_fingerprint(tmp_path: Path) -> None:
    with hf(tmp_path, HF) as source:
        (tmp_path / "model.safetensors").unlink()
        with pytest.raises(LoadError, match="cannot be read"):
            source.fingerprint()


def load_one(directory: Path, spec: WeightSpec, tensors: dict[str, Any]) -> Any:
    with hf(directory, tensors) as source:
        return dict(load_weights([spec], source))[spec.name].dequantize()


def test_heads_of_a_matrix_are_transposed_one_by_one(tmp_path: Path) -> None:
    array = RNG.standard_normal((3 * 5, 7)).astype(np.float32)
    part = Part("w", matrices=RowOrder(3, ((1, 3, 1),)), transposed=True)
    expected = np.concatenate([array.reshape(3, 5, 7)[head, 1:3].T for head in range(3)])
    spec = WeightSpec("w_uk", (3 * 7, 2), (part,), "plain", experts=3)
    np.testing.assert_array_equal(load_one(tmp_path, spec, {"w": array}), expected)
    with hf(tmp_path, {"w": array[:14]}) as source, pytest.raises(LoadError, match=r"'w' has shape \[14, 7\]"):
        check_weights([spec], source)


def test_matrices_of_experts_may_have_an_axis_of_their_own_and_be_transposed(tmp_path: Path) -> None:
    array = RNG.standard_normal((3, 4, 6)).astype(np.float32)
    spec = WeightSpec("w", (3 * 6, 4), (Part("w", RowOrder(3, EVEN_THEN_ODD), transposed=True),), "experts", experts=3)
    turned = array.swapaxes(1, 2)
    expected = np.concatenate([np.concatenate((matrix[0::2], matrix[1::2])) for matrix in turned])
    np.testing.assert_array_equal(load_one(tmp_path, spec, {"w": array}), expected)


def test_a_row_may_be_stored_as_a_vector(tmp_path: Path) -> None:
    row = HF["norm.weight"]
    spec = WeightSpec("gate", (1, 64), (Part("gate"),), "router")
    np.testing.assert_array_equal(load_one(tmp_path, spec, {"gate": row}), row[None])
    np.testing.assert_array_equal(load_one(tmp_path, spec, {"gate": row[None]}), row[None])


def test_what_is_quantized_is_dequantized_to_be_transposed(tmp_path: Path) -> None:
    """As the latent attention of DeepSeek needs it, of a GGUF file or an FP8 checkpoint."""
    codes = RNG.integers(-127, 128, (2 * 4, 32)).astype(np.int8)
    scales = np.linspace(0.5, 2, 8, dtype=np.float32)[:, None]
    write_safetensors(tmp_path / "model.safetensors", {"m.weight": codes, "m.weight_scale": scales})
    part = Part("m.weight", matrices=RowOrder(2, ((0, 3, 1),)), transposed=True)
    spec = WeightSpec("m", (2 * 32, 3), (part,), "plain", experts=2)
    with open_safetensors(tmp_path, [Grouping("bytes", 8, WHOLE, scale="weight_scale", zeros=False)]) as source:
        tensor = dict(load_weights([spec], source))["m"]
    numbers = (codes * scales).reshape(2, 4, 32)[:, :3].swapaxes(1, 2).reshape(64, 3)
    assert tensor.format is Format.F32
    np.testing.assert_array_equal(tensor.data, numbers)
