"""Rotary position embeddings and their scalings (Su et al., 2021), rounded as Hugging Face transformers rounds them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from windlass.models.config import ConfigReader
from windlass.program.program import RopeTable

F32: TypeAlias = NDArray[np.float32]

DEFAULT_THETA = 10_000.0

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3")


@dataclass(frozen=True, slots=True)
class DefaultRope:
    """Angle of pair i at position p: p * theta^(-2i / dim); ``factor`` > 1 slows all of them (Chen et al., 2023).

    A factor of 1 is the ``default`` type, any other the ``linear`` one.
    """

    theta: float
    dim: int
    factor: float = 1.0

    def cos_sin(self, positions: int) -> tuple[F32, F32]:
        """See ``RopeTable``."""
        return _cos_sin(np.arange(positions), _inverse_frequencies(self.theta, self.dim) / np.float32(self.factor))


@dataclass(frozen=True, slots=True)
class PairFactorRope:
    """Each pair is slowed by a factor of its own: how GGUF files have the scaling of Llama 3.1 (``rope_freqs``)."""

    theta: float
    dim: int
    factors: tuple[float, ...]

    def cos_sin(self, positions: int) -> tuple[F32, F32]:
        """See ``RopeTable``."""
        factors: F32 = np.array(self.factors, dtype=np.float32)
        return _cos_sin(np.arange(positions), _inverse_frequencies(self.theta, self.dim) / factors)


@dataclass(frozen=True, slots=True)
class DynamicRope:
    """NTK-aware scaling that begins where the model's own length ends ("dynamic").

    A token at position p >= ``original_length`` is rotated with the frequencies for a sequence of p + 1 tokens, one
    before it with the unscaled ones. So an angle depends on the token's own position only: results do not depend on
    how a prompt is cut into chunks or batched. Hugging Face gives the same numbers when it is fed token by token, and
    others when a longer prompt is fed at once, where it uses the prompt's length for all of it.
    """

    theta: float
    dim: int
    factor: float
    original_length: int

    def cos_sin(self, positions: int) -> tuple[F32, F32]:
        """See ``RopeTable``."""
        position = np.arange(positions)
        length = np.maximum(position + 1, self.original_length)
        stretch = self.factor * length / self.original_length - (self.factor - 1)
        theta = self.theta * stretch ** (self.dim / (self.dim - 2))
        return _cos_sin(position, _inverse_frequencies(theta[:, None], self.dim))


@dataclass(frozen=True, slots=True)
class YarnRope:
    """YaRN (Peng et al., 2023): fast pairs stay, slow pairs are slowed by ``factor``, those between are blended.

    ``beta_fast`` and ``beta_slow`` are the turns within ``original_length`` at which the blend ends and begins;
    ``attention_factor`` scales cos and sin, and so the attention scores by its square.
    """

    theta: float
    dim: int
    factor: float
    original_length: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def cos_sin(self, positions: int) -> tuple[F32, F32]:
        """See ``RopeTable``."""
        low, high = self._pair_turning(self.beta_fast), self._pair_turning(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.dim - 1)
        if low == high:
            high += 0.001  # a step instead of a ramp, without dividing by zero
        slowed = np.clip((np.arange(self.dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)
        frequencies = _inverse_frequencies(self.theta, self.dim)
        blended = frequencies / np.float32(self.factor) * slowed + frequencies * (1 - slowed)
        cos, sin = _cos_sin(np.arange(positions), blended)
        scale = np.float32(self.attention_factor)
        return cos * scale, sin * scale

    def _pair_turning(self, turns: float) -> float:
        """The (fractional) pair that makes this many turns over the original length."""
        return self.dim * math.log(self.original_length / (turns * 2 * math.pi)) / (2 * math.log(self.theta))


@dataclass(frozen=True, slots=True)
class Llama3Rope:
    """Llama 3.1's scaling: waves longer than original / low_freq_factor are slowed by ``factor``, those shorter than
    original / high_freq_factor stay, and those between are blended (Llama 3.1 reference implementation)."""

    theta: float
    dim: int
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: int

    def cos_sin(self, positions: int) -> tuple[F32, F32]:
        """See ``RopeTable``."""
        frequencies = _inverse_frequencies(self.theta, self.dim)
        turns = self.original_length / (2 * np.float32(math.pi) / frequencies)
        share = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept: F32 = np.clip(share, 0, 1).astype(np.float32)
        scaled: F32 = (1 - kept) * frequencies / np.float32(self.factor) + kept * frequencies
        return _cos_sin(np.arange(positions), scaled)


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """What a configuration says about rotary embeddings.

    ``context_factor`` and ``original_length`` tell how many positions the scaled embedding was made for:
    their product, or ``max_position_embeddings`` when ``original_length`` is None.
    """

    table: RopeTable
    original_length: int | None = None
    context_factor: float = 1.0

    def context_length(self, max_position_embeddings: int) -> int:
        """Positions the model is made for."""
        return int((self.original_length or max_position_embeddings) * self.context_factor)


def read_rope(config: ConfigReader, *, head_dim: int, max_position_embeddings: int) -> RopeConfig:
    """Read the rotary embedding: ``rope_theta`` with ``rope_scaling``, or ``rope_parameters`` (transformers 5).

    ``max_position_embeddings`` is the length before scaling for linear and dynamic (so Hugging Face documents it), and
    the length after it for llama3; for yarn, the length before it is ``original_max_position_embeddings``, which
    defaults to ``max_position_embeddings``.

    Raises:
        LoadError: an unknown type, a missing, unknown or unusable key, or two places that contradict each other.
    """
    if head_dim % 2:
        raise config.error("head_dim", f"is {head_dim}, which rotary embeddings need to be even")
    config.require("partial_rotary_factor", 1.0, "partial rotation is not supported")
    config.require("rope_interleaved", False, "interleaved rotation is not supported")
    factors = config.numbers("rope_pair_factors", head_dim // 2)
    if factors is not None:
        return RopeConfig(PairFactorRope(config.number("rope_theta", default=DEFAULT_THETA), head_dim, tuple(factors)))
    old, new = config.section("rope_scaling"), config.section("rope_parameters")
    if old is not None and new is not None:
        raise config.error("rope_scaling", "and rope_parameters are both given; one of them is enough")
    outer_theta = config.number("rope_theta", default=DEFAULT_THETA, above=1.0)
    section = old if old is not None else new
    if section is None:
        return RopeConfig(DefaultRope(outer_theta, head_dim))
    theta = section.number("rope_theta", default=outer_theta, above=1.0)
    if config.has("rope_theta") and theta != outer_theta:
        raise section.error("rope_theta", f"is {theta:g}, but rope_theta is {outer_theta:g}")
    section.require("partial_rotary_factor", 1.0, "partial rotation is not supported")
    result = _read_scaling(section, theta, head_dim, max_position_embeddings)
    section.finish()
    return result


def _read_scaling(section: ConfigReader, theta: float, dim: int, max_position_embeddings: int) -> RopeConfig:
    old_name = section.choice("type", ROPE_TYPES, default="default")
    rope_type = section.choice("rope_type", ROPE_TYPES, default=old_name)
    if section.has("type") and old_name != rope_type:
        raise section.error("type", f"is {old_name!r}, but rope_type is {rope_type!r}")
    if rope_type == "default":
        return RopeConfig(DefaultRope(theta, dim))
    factor = section.number("factor")
    if factor < 1:
        raise section.error("factor", f"is {factor:g}, which must be at least 1")
    if rope_type == "linear":
        return RopeConfig(DefaultRope(theta, dim, factor), context_factor=factor)
    if rope_type == "dynamic":
        if dim < 4:
            raise section.error("rope_type", f"dynamic needs a head_dim of at least 4, not {dim}")
        return RopeConfig(DynamicRope(theta, dim, factor, max_position_embeddings), context_factor=factor)
    if rope_type == "llama3":
        original_length = section.integer("original_max_position_embeddings")
        low, high = section.number("low_freq_factor"), section.number("high_freq_factor")
        if not low < high:
            raise section.error("low_freq_factor", f"is {low:g}, which must be less than high_freq_factor, {high:g}")
        return RopeConfig(Llama3Rope(theta, dim, factor, low, high, original_length))
    return _read_yarn(section, theta, dim, factor, max_position_embeddings)


def _read_yarn(section: ConfigReader, theta: float, dim: int, factor: float, default_length: int) -> RopeConfig:
    original_length = section.integer("original_max_position_embeddings", default=default_length)
    # mscale counts only when both are given and not zero
    mscale = section.number("mscale", default=0.0, above=-1.0)
    mscale_all_dim = section.number("mscale_all_dim", default=0.0, above=-1.0)
    if not (mscale and mscale_all_dim):
        mscale, mscale_all_dim = 1.0, 0.0
    suggested = _yarn_attention_factor(factor, mscale) / _yarn_attention_factor(factor, mscale_all_dim)
    attention_factor = section.number("attention_factor", default=suggested)
    beta_fast, beta_slow = section.number("beta_fast", default=32.0), section.number("beta_slow", default=1.0)
    if not beta_slow < beta_fast:
        raise section.error("beta_slow", f"is {beta_slow:g}, which must be less than beta_fast, {beta_fast:g}")
    truncate = section.boolean("truncate", default=True)
    section.boolean("finetuned", default=False)  # how the model was made; the maths is the same
    table = YarnRope(theta, dim, factor, original_length, attention_factor, beta_fast, beta_slow, truncate)
    return RopeConfig(table, original_length, factor)


def _yarn_attention_factor(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _inverse_frequencies(theta: float | NDArray[np.float64], dim: int) -> F32:
    """theta^(-2i / dim) for i < dim / 2, rounded to float32 after the division, the power and the reciprocal."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    powers = np.power(theta, exponents.astype(np.float64)).astype(np.float32)
    frequencies: F32 = np.float32(1) / powers
    return frequencies


def _cos_sin(positions: NDArray[np.integer], frequencies: F32) -> tuple[F32, F32]:
    """cos and sin of the angles: the angles in float32, as transformers has them, their cosines correctly rounded."""
    angles = positions[:, None].astype(np.float32) * frequencies
    cos, sin = np.empty_like(angles), np.empty_like(angles)
    np.cos(angles, out=cos, dtype=np.float64, casting="same_kind")
    np.sin(angles, out=sin, dtype=np.float64, casting="same_kind")
    return cos, sin
