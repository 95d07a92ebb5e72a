"""Rotary embeddings of the sizes that real models have, against Hugging Face's numbers, and reading their settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from windlass.errors import LoadError
from windlass.models.config import ConfigReader
from windlass.models.rope import DefaultRope, DynamicRope, RopeConfig, YarnRope, read_rope

GOLDENS = Path(__file__).parents[2] / "conformance" / "goldens" / "rope.npz"
POSITIONS = [0, 1, 2, 31, 1000, 8191, 8192, 20000, 131071]

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
DEEPSEEK_YARN = {
    "rope_type": "yarn",
    "factor": 40.0,
    "original_max_position_embeddings": 4096,
    "mscale": 0.9,
    "mscale_all_dim": 0.7,
    "truncate": False,
}


def read(config: dict[str, Any], *, head_dim: int = 128, max_position_embeddings: int = 32768) -> RopeConfig:
    reader = ConfigReader(config, Path("config.json"))
    return read_rope(reader, head_dim=head_dim, max_position_embeddings=max_position_embeddings)


@pytest.mark.parametrize(
    ("name", "length", "config"),
    [
        ("default", 32768, {"rope_theta": 1e6}),
        ("linear", 32768, {"rope_scaling": {"type": "linear", "factor": 4.0}}),
        ("yarn", 32768, {"rope_theta": 1e6, "rope_scaling": YARN}),
        ("yarn-mscale", 163840, {"rope_theta": 1e4, "rope_parameters": DEEPSEEK_YARN}),
        ("llama3", 131072, {"rope_theta": 500000, "rope_scaling": LLAMA3}),
        ("dynamic", 8192, {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
    ],
)
def test_tables_are_those_of_transformers(name: str, length: int, config: dict[str, Any]) -> None:
    cos, sin = read(config, max_position_embeddings=length).table.cos_sin(POSITIONS[-1] + 1)
    assert cos.dtype == sin.dtype == np.float32
    assert cos.shape == sin.shape == (131072, 64)
    with np.load(GOLDENS) as golden:
        expected = golden[name]
    actual = np.stack((cos[POSITIONS], sin[POSITIONS]), axis=1)
    # Frequencies may be one float32 rounding apart, which the position multiplies.
    tolerance = 2e-7 * np.array(POSITIONS)[:, None, None] + 5e-7
    assert (np.abs(actual - expected) / tolerance).max() < 1


def test_dynamic_angles_do_not_depend_on_the_table_length() -> None:
    rope = DynamicRope(10000.0, 16, 2.0, original_length=8)
    short, long = rope.cos_sin(20)[0], rope.cos_sin(50)[0]
    np.testing.assert_array_equal(short, long[:20])
    np.testing.assert_array_equal(short[:8], DefaultRope(10000.0, 16).cos_sin(8)[0])
    assert not np.allclose(short[8:], DefaultRope(10000.0, 16).cos_sin(20)[0][8:])


@pytest.mark.parametrize(
    ("context", "config"),
    [
        (32768, {}),
        (32768, {"rope_scaling": None}),
        (32768, {"rope_scaling": {"rope_type": "default"}}),
        (65536, {"rope_scaling": {"type": "linear", "factor": 2.0}}),
        (98304, {"rope_scaling": {"rope_type": "dynamic", "factor": 3}}),
        (131072, {"rope_scaling": YARN}),
        (131072, {"rope_scaling": {"type": "yarn", "factor": 4.0}}),
        (32768, {"rope_scaling": LLAMA3}),
    ],
)
def test_context_length(context: int, config: dict[str, Any]) -> None:
    assert read(config).context_length(32768) == context


def test_theta_from_every_place() -> None:
    assert read({}).table == DefaultRope(10000.0, 128)
    assert read({"rope_theta": 500000}).table == DefaultRope(500000.0, 128)
    assert read({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}).table == DefaultRope(1e6, 128)
    both = {"rope_theta": 1e6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    assert read(both).table == DefaultRope(1e6, 128)


def test_yarn_settings() -> None:
    table = read({"rope_scaling": {**YARN, "finetuned": True}}).table
    assert table == YarnRope(10000.0, 128, 4.0, 32768, 0.1 * np.log(4.0) + 1.0)
    given = {**YARN, "attention_factor": 1.5, "beta_fast": 16, "beta_slow": 2, "truncate": False}
    assert read({"rope_scaling": given}).table == YarnRope(10000.0, 128, 4.0, 32768, 1.5, 16.0, 2.0, False)


@pytest.mark.parametrize(
    ("message", "config"),
    [
        (
            "rope_scaling.rope_type is 'axial'; supported: default, linear, ",
            {"rope_scaling": {"rope_type": "axial"}},
        ),
        ("rope_scaling.type is 'mrope'; supported: ", {"rope_scaling": {"type": "mrope"}}),
        ("rope_parameters.rope_type is 3; supported: ", {"rope_parameters": {"rope_type": 3}}),
        ("rope_scaling.type is 'linear', but rope_type is 'yarn'", {"rope_scaling": {**YARN, "type": "linear"}}),
        ("rope_scaling is 'linear', which must be an object", {"rope_scaling": "linear"}),
        ("rope_scaling.factor is missing", {"rope_scaling": {"type": "linear"}}),
        ("rope_scaling.factor is 0.5, which must be at least 1", {"rope_scaling": {"type": "linear", "factor": 0.5}}),
        ("rope_scaling.factor is -2", {"rope_scaling": {"type": "dynamic", "factor": -2}}),
        ("rope_scaling.factor is '4'", {"rope_scaling": {"type": "linear", "factor": "4"}}),
        ("rope_scaling.factor is nan", {"rope_scaling": {"type": "linear", "factor": float("nan")}}),
        ("rope_scaling.factor is True", {"rope_scaling": {"type": "linear", "factor": True}}),
        ("unknown keys: rope_scaling.long_factor", {"rope_scaling": {**YARN, "long_factor": [1.0]}}),
        ("unknown keys: rope_scaling.beta_fast", {"rope_scaling": {**LLAMA3, "beta_fast": 32}}),
        (
            "unknown keys: rope_parameters.full_attention",
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        ),
        ("rope_scaling.low_freq_factor is 5, which must not be", {"rope_scaling": {**LLAMA3, "low_freq_factor": 5}}),
        (
            "rope_scaling.original_max_position_embeddings is missing",
            {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": None}},
        ),
        (
            "rope_scaling.original_max_position_embeddings is 0",
            {"rope_scaling": {**YARN, "original_max_position_embeddings": 0}},
        ),
        ("rope_scaling.beta_slow is 40, which must be less", {"rope_scaling": {**YARN, "beta_slow": 40}}),
        ("rope_scaling.truncate is 1", {"rope_scaling": {**YARN, "truncate": 1}}),
        ("rope_theta is 0", {"rope_theta": 0}),
        ("rope_theta is inf", {"rope_theta": float("inf")}),
        (
            "rope_parameters.rope_theta is 10000, but rope_theta is 1e+06",
            {"rope_theta": 1e6, "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}},
        ),
        ("both given", {"rope_scaling": YARN, "rope_parameters": YARN}),
        ("partial_rotary_factor is 0.5: partial rotation", {"partial_rotary_factor": 0.5}),
        (
            "rope_parameters.partial_rotary_factor is 0.5",
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        ),
        ("rope_interleaved is True", {"rope_interleaved": True}),
    ],
)
def test_what_is_refused(message: str, config: dict[str, Any]) -> None:
    with pytest.raises(LoadError) as caught:
        read(config)
    assert caught.value.path == "config.json"
    assert message in str(caught.value)


def test_heads_that_cannot_be_rotated() -> None:
    with pytest.raises(LoadError, match="head_dim is 15"):
        read({}, head_dim=15)
    with pytest.raises(LoadError, match="head_dim of at least 4"):
        read({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, head_dim=2)


@pytest.mark.parametrize("factor", [0.0, 1e-40, 1e10, float("nan"), float("inf"), True, "1"])
def test_factors_that_no_angle_survives(factor: Any) -> None:
    with pytest.raises(LoadError, match=r"rope_pair_factors is .* numbers from 1e-6 to 1e\+09"):
        read({"rope_pair_factors": [1.0] * 7 + [factor]}, head_dim=16)
