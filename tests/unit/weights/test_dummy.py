"""Random weights from specs alone."""

from __future__ import annotations

import numpy as np
import pytest

from windlass.program.program import Part, WeightSpec
from windlass.quantization import SCHEMES, Format, get_scheme, mlc_pack
from windlass.weights import dummy_weights

SPECS = (
    WeightSpec("embed.weight", (96, 200), (Part("embed.weight"),), "embedding"),
    WeightSpec("l.weight", (300, 201), (Part("l.weight"),), "linear"),
    WeightSpec("l.bias", (300,), (Part("l.bias"),), "plain"),
    WeightSpec("norm.weight", (200,), (Part("norm.weight"),), "plain"),
)


@pytest.mark.parametrize("name", [*SCHEMES, None])
def test_formats_and_values(name: str | None) -> None:
    scheme = None if name is None else get_scheme(name)
    weights = dict(dummy_weights(SPECS, scheme))
    assert list(weights) == [spec.name for spec in SPECS]
    for spec in SPECS:
        tensor = weights[spec.name]
        assert tensor.shape == spec.shape
        quantized = scheme is not None and scheme.quantizes(spec.role)
        assert tensor.format.grouped == quantized
        if not quantized:
            assert tensor.format is (Format.BF16 if scheme is None else scheme.model_dtype)
        values = tensor.dequantize()
        assert np.isfinite(values).all()
        if len(spec.shape) == 2:
            assert values.var() == pytest.approx(1 / spec.shape[1], rel=0.15)
            assert abs(values.mean()) < 0.02 * values.std()
    assert not weights["l.bias"].dequantize().any()
    assert (weights["norm.weight"].dequantize() == 1).all()


@pytest.mark.parametrize("name", [name for name, scheme in SCHEMES.items() if scheme.grouped])
def test_codes_are_those_of_the_scheme(name: str) -> None:
    scheme = get_scheme(name)
    tensor = dict(dummy_weights(SPECS, scheme))["l.weight"]
    assert tensor.scales is not None
    steps = np.unique(np.rint(tensor.dequantize() / tensor.scales.astype(np.float32)[0, 0]))
    assert steps.tolist() == list(range(-scheme.max_int, scheme.max_int + 1))
    mlc_pack(tensor, scheme)


def test_a_weight_depends_on_name_and_seed_only() -> None:
    scheme = SCHEMES["q4f16_1"]
    first = dict(dummy_weights(SPECS, scheme))
    again = dict(dummy_weights(SPECS[::-1], scheme))
    other = dict(dummy_weights(SPECS, scheme, seed=1))
    twin = dict(dummy_weights([WeightSpec("m.weight", (300, 201), (), "linear")], scheme))
    assert np.array_equal(first["l.weight"].data, again["l.weight"].data)
    assert not np.array_equal(first["l.weight"].data, other["l.weight"].data)
    assert not np.array_equal(first["l.weight"].data, twin["m.weight"].data)
