"""Rotary position embeddings and their scalings (Su et al., 2021), rounded as Hugging Face transformers rounds them."""

from __future__ import annotations

import math
from array import array
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from windlass.late_numpy import np
from windlass.models.config import ConfigReader
from windlass.program.program import FrequencyTable, RopeTable, tabulated

if TYPE_CHECKING:
    from numpy.typing import NDArray

    F32: TypeAlias = NDArray[np.float32]

DEFAULT_THETA = 10_000.0

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3", "longrope", "su")


@dataclass(frozen=True, slots=True)
class DefaultRope(FrequencyTable):
    """Angle of pair i at position p: p * theta^(-2i / dim); ``factor`` > 1 slows all of them (Chen et al., 2023).

    A factor of 1 is the ``default`` type, any other the ``linear`` one.
    """

    theta: float
    dim: int
    factor: float = 1.0

    def frequencies(self) -> list[float]:
        """See ``FrequencyTable``."""
        return [_quotient(frequency, self.factor) for frequency in _inverse_frequencies(self.theta, self.dim)]


@dataclass(frozen=True, slots=True)
class PairFactorRope(FrequencyTable):
    """Each pair is slowed by a factor of its own: how GGUF files have the scaling of Llama 3.1 (``rope_freqs``)."""

    theta: float
    dim: int
    factors: tuple[float, ...]

    def frequencies(self) -> list[float]:
        """See ``FrequencyTable``."""
        return list(map(_quotient, _inverse_frequencies(self.theta, self.dim), self.factors))


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
        exponents = np.arange(0, self.dim, 2, dtype=np.float32) / np.float32(self.dim)
        powers = np.power(theta[:, None], exponents.astype(np.float64)).astype(np.float32)
        return tabulated(position, np.float32(1) / powers)


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
        frequencies = np.array(_inverse_frequencies(self.theta, self.dim), dtype=np.float32)
        blended = frequencies / np.float32(self.factor) * slowed + frequencies * (1 - slowed)
        cos, sin = tabulated(np.arange(positions), blended)
        scale = np.float32(self.attention_factor)
        return cos * scale, sin * scale

    def _pair_turning(self, turns: float) -> float:
        """The (fractional) pair that makes this many turns over the original length."""
        return self.dim * math.log(self.original_length / (turns * 2 * math.pi)) / (2 * math.log(self.theta))


@dataclass(frozen=True, slots=True)
class Llama3Rope(FrequencyTable):
    """Llama 3.1's scaling: waves longer than original / low_freq_factor are slowed by ``factor``, those shorter than
    original / high_freq_factor stay, and those between are blended (Llama 3.1 reference implementation)."""

    theta: float
    dim: int
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: int

    def frequencies(self) -> list[float]:
        """See ``FrequencyTable``."""
        return list(map(self._blended, _inverse_frequencies(self.theta, self.dim)))

    def pair_factors(self) -> list[float]:
        """How much each pair is slowed, dim / 2 numbers of float32."""
        return list(map(_quotient, _inverse_frequencies(self.theta, self.dim), self.frequencies()))

    def _blended(self, frequency: float) -> float:
        turns = _quotient(self.original_length, _quotient(2 * _f32(math.pi), frequency))
        width = self.high_freq_factor - self.low_freq_factor or 1e-20  # a step instead of a ramp
        kept = min(max(_quotient(_f32(turns - _f32(self.low_freq_factor)), width), 0.0), 1.0)
        slowed = _quotient(_f32(_f32(1 - kept) * frequency), self.factor)
        return _f32(slowed + _f32(kept * frequency))


@dataclass(frozen=True, slots=True)
class LongRope:
    """LongRoPE (Ding et al., 2024): each pair is slowed by a factor of its own, of one list or of another.

    The long factors are for sequences of more than ``original_length`` tokens. Keys that are cached were rotated when
    nobody knew how long their sequence would become, and an attention score means something only when key and query
    were rotated with the same list. So the choice is made once, by the number of positions a table is asked for, which
    is the context length of the engine: the long factors, for every token, when that is above ``original_length``.
    (vLLM chooses so by its ``max_model_len``.) Hugging Face chooses by the tokens that a sequence has so far; the
    numbers are the same for sequences on the same side of ``original_length`` as the context length.
    """

    theta: float
    dim: int
    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_length: int
    attention_factor: float

    def cos_sin(self, positions: int) -> tuple[F32, F32]:
        """See ``RopeTable``."""
        factors = self.long_factors if positions > self.original_length else self.short_factors
        cos, sin = PairFactorRope(self.theta, self.dim, factors).cos_sin(positions)
        scale = np.float32(self.attention_factor)
        return cos * scale, sin * scale


@dataclass(frozen=True, slots=True)
class QueryScaledRope:
    """``table`` for queries that are also multiplied by 1 + beta * log(1 + floor(position / length)).

    Attention over long contexts stays sharp so (Nakanishi, 2025, in the form of Llama 4's reference implementation).
    All columns of a head must be rotated.
    """

    table: RopeTable
    beta: float
    length: int

    def cos_sin(self, positions: int) -> tuple[F32, F32]:
        """See ``RopeTable``."""
        cos, sin = self.table.cos_sin(positions)
        factor = 1 + self.beta * np.log1p(np.arange(positions) // self.length)
        scale: F32 = factor.astype(np.float32)[:, None]
        return cos * scale, sin * scale


@dataclass(frozen=True, slots=True)
class QueryScale:
    """No rotation: queries are multiplied by 1 + scale * log(1 + floor((position + 1) / length)).

    Llama 4's layers without rotary embedding have it (its reference implementation; Nakanishi, 2025). All columns of a
    head must be "rotated".
    """

    dim: int
    scale: float
    length: int

    def cos_sin(self, positions: int) -> tuple[F32, F32]:
        """See ``RopeTable``."""
        steps = np.floor((np.arange(positions, dtype=np.float32) + 1) / np.float32(self.length))
        factor: F32 = np.log1p(steps) * np.float32(self.scale) + 1
        cos = np.repeat(factor[:, None], self.dim // 2, axis=1)
        return cos, np.zeros_like(cos)


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """What a configuration says about rotary embeddings.

    ``rotary_dim`` columns of each head are rotated. ``context_factor`` and ``original_length`` tell how many positions
    the scaled embedding was made for: their product, or ``max_position_embeddings`` when ``original_length`` is None.
    """

    table: RopeTable
    rotary_dim: int
    original_length: int | None = None
    context_factor: float = 1.0

    def context_length(self, max_position_embeddings: int) -> int:
        """Positions the model is made for."""
        return int((self.original_length or max_position_embeddings) * self.context_factor)


def read_rope(
    config: ConfigReader,
    *,
    head_dim: int,
    max_position_embeddings: int,
    partial: bool = False,
    theta: float = DEFAULT_THETA,
    own_keys: Collection[str] = (),
) -> RopeConfig:
    """Read the rotary embedding: ``rope_theta`` with ``rope_scaling``, or ``rope_parameters`` (transformers 5).

    ``max_position_embeddings`` is the length before scaling for linear and dynamic (so Hugging Face documents it), and
    the length after it for llama3 and longrope; for yarn, the length before it is
    ``original_max_position_embeddings``, which defaults to ``max_position_embeddings``.

    Args:
        config: the configuration.
        head_dim: columns of a head.
        max_position_embeddings: as the configuration says.
        partial: the architecture rotates only a part of each head where ``partial_rotary_factor`` says so.
        theta: the architecture's default.
        own_keys: keys beside those of the rotary embedding that the architecture itself reads in the same object.

    Raises:
        LoadError: an unknown type, a missing, unknown or unusable key, or two places that contradict each other.
    """
    config.require("rope_interleaved", False, "interleaved rotation is not supported")
    section = rope_section(config)
    rotary_dim = _read_rotary_dim(config, section, head_dim, partial)
    factors = config.numbers("rope_pair_factors", rotary_dim // 2, maximum=1e9)
    outer_theta = config.number("rope_theta", default=theta, above=1.0)
    if factors is not None:
        return RopeConfig(PairFactorRope(outer_theta, rotary_dim, tuple(factors)), rotary_dim)
    if section is None:
        return RopeConfig(DefaultRope(outer_theta, rotary_dim), rotary_dim)
    theta = section.number("rope_theta", default=outer_theta, above=1.0)
    if config.has("rope_theta") and theta != outer_theta:
        raise section.error("rope_theta", f"is {theta:g}, but rope_theta is {outer_theta:g}")
    result = _read_scaling(config, section, theta, rotary_dim, max_position_embeddings)
    section.finish(ignore=own_keys)
    return result


def read_layer_ropes(
    config: ConfigReader, *, head_dim: int, max_position_embeddings: int, theta: float, local_theta: float | None = None
) -> tuple[RopeConfig, RopeConfig]:
    """Read the rotary embeddings of layers without and with a sliding window; only the first are ever scaled.

    They are in ``rope_parameters`` under ``full_attention`` and ``sliding_attention`` (transformers 5), or else the
    first is what ``read_rope`` reads and the second the unscaled one with ``rope_local_base_freq`` or, where the
    architecture has no ``local_theta``, with the same theta.

    Raises:
        LoadError: as ``read_rope``.
    """
    theta = config.number("rope_theta", default=theta, above=1.0)
    if local_theta is None:
        local_theta = theta
    else:
        local_theta = config.number("rope_local_base_freq", default=local_theta, above=1.0)
    section = config.section("rope_parameters")
    if section is None:
        full = read_rope(config, head_dim=head_dim, max_position_embeddings=max_position_embeddings, theta=theta)
        return full, RopeConfig(DefaultRope(local_theta, head_dim), head_dim)
    kinds = ((section.section("full_attention"), theta), (section.section("sliding_attention"), local_theta))
    section.finish()
    full, sliding = (
        RopeConfig(DefaultRope(default, head_dim), head_dim)
        if kind is None
        else _read_kind(kind, default, head_dim, max_position_embeddings)
        for kind, default in kinds
    )
    return full, sliding


def rope_section(config: ConfigReader) -> ConfigReader | None:
    """The object that describes the rotary embedding, if there is one.

    Raises:
        LoadError: there are two.
    """
    old, new = config.section("rope_scaling"), config.section("rope_parameters")
    if old is not None and new is not None:
        raise config.error("rope_scaling", "and rope_parameters are both given; one of them is enough")
    return old if old is not None else new


def _read_kind(section: ConfigReader, theta: float, head_dim: int, max_position_embeddings: int) -> RopeConfig:
    theta = section.number("rope_theta", default=theta, above=1.0)
    result = _read_scaling(section, section, theta, head_dim, max_position_embeddings)
    section.finish()
    return result


def _read_rotary_dim(config: ConfigReader, section: ConfigReader | None, head_dim: int, partial: bool) -> int:
    share = 1.0
    for reader in (config, section):
        if reader is None:
            continue
        if not partial:
            reader.require("partial_rotary_factor", 1.0, "partial rotation is not supported")
        elif reader.has("partial_rotary_factor"):
            share = reader.number("partial_rotary_factor")
    rotary_dim = int(head_dim * share + 1e-6)  # a share that was computed may be a rounding too small
    if share == 1.0 and head_dim % 2:
        raise config.error("head_dim", f"is {head_dim}, which rotary embeddings need to be even")
    if rotary_dim % 2 or not 2 <= rotary_dim <= head_dim:
        raise config.error(
            "partial_rotary_factor", f"is {share:g}: {rotary_dim} of {head_dim} columns cannot be rotated"
        )
    return rotary_dim


def _read_scaling(
    config: ConfigReader, section: ConfigReader, theta: float, dim: int, max_position_embeddings: int
) -> RopeConfig:
    old_name = section.choice("type", ROPE_TYPES, default="default")
    rope_type = section.choice("rope_type", ROPE_TYPES, default=old_name)
    if section.has("type") and old_name != rope_type:
        raise section.error("type", f"is {old_name!r}, but rope_type is {rope_type!r}")
    if rope_type == "default":
        return RopeConfig(DefaultRope(theta, dim), dim)
    if rope_type in ("longrope", "su"):
        return _read_longrope(config, section, theta, dim, max_position_embeddings)
    factor = section.number("factor")
    if factor < 1:
        raise section.error("factor", f"is {factor:g}, which must be at least 1")
    if rope_type == "linear":
        return RopeConfig(DefaultRope(theta, dim, factor), dim, context_factor=factor)
    if rope_type == "dynamic":
        if dim < 4:
            raise section.error("rope_type", f"dynamic needs a head_dim of at least 4, not {dim}")
        return RopeConfig(DynamicRope(theta, dim, factor, max_position_embeddings), dim, context_factor=factor)
    if rope_type == "llama3":
        original_length = section.integer("original_max_position_embeddings")
        low, high = section.number("low_freq_factor"), section.number("high_freq_factor")
        if low > high:
            raise section.error("low_freq_factor", f"is {low:g}, which must not be above high_freq_factor, {high:g}")
        return RopeConfig(Llama3Rope(theta, dim, factor, low, high, original_length), dim)
    return _read_yarn(section, theta, dim, factor, max_position_embeddings)


def _read_yarn(section: ConfigReader, theta: float, dim: int, factor: float, default_length: int) -> RopeConfig:
    original_length = section.integer("original_max_position_embeddings", default=default_length)
    # mscale counts only when both are given and not zero
    mscale = section.number("mscale", default=0.0, above=-1.0)
    mscale_all_dim = section.number("mscale_all_dim", default=0.0, above=-1.0)
    if not (mscale and mscale_all_dim):
        mscale, mscale_all_dim = 1.0, 0.0
    suggested = yarn_scale(factor, mscale) / yarn_scale(factor, mscale_all_dim)
    attention_factor = section.number("attention_factor", default=suggested)
    beta_fast, beta_slow = section.number("beta_fast", default=32.0), section.number("beta_slow", default=1.0)
    if not beta_slow < beta_fast:
        raise section.error("beta_slow", f"is {beta_slow:g}, which must be less than beta_fast, {beta_fast:g}")
    truncate = section.boolean("truncate", default=True)
    section.boolean("finetuned", default=False)  # how the model was made; the maths is the same
    table = YarnRope(theta, dim, factor, original_length, attention_factor, beta_fast, beta_slow, truncate)
    return RopeConfig(table, dim, original_length, factor)


def _read_longrope(
    config: ConfigReader, section: ConfigReader, theta: float, dim: int, max_position_embeddings: int
) -> RopeConfig:
    # Beside the scaling in Phi-3's configurations, and then that one counts.
    place = config if config.has("original_max_position_embeddings") else section
    original_length = place.integer("original_max_position_embeddings", minimum=2)
    section.integer("original_max_position_embeddings", default=original_length)
    factor = section.number("factor", default=max_position_embeddings / original_length)
    suggested = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original_length))
    attention_factor = section.number("attention_factor", default=suggested)
    short, long = (tuple(_read_factors(section, key, dim)) for key in ("short_factor", "long_factor"))
    return RopeConfig(LongRope(theta, dim, short, long, original_length, attention_factor), dim)


def _read_factors(section: ConfigReader, key: str, dim: int) -> list[float]:
    factors = section.numbers(key, dim // 2, maximum=1e9)
    if factors is None:
        raise section.error(key, "is missing")
    return factors


def yarn_scale(factor: float, mscale: float) -> float:
    """How much YaRN with this factor scales queries and keys; ``mscale`` is how strongly."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _inverse_frequencies(theta: float, dim: int) -> list[float]:
    """theta^(-2i / dim) for i < dim / 2, rounded to float32 after the division, the power and the reciprocal."""
    return [_quotient(1, _f32(theta ** _f32(index / dim))) for index in range(0, dim, 2)]


def _quotient(dividend: float, divisor: float) -> float:
    """What float32 makes of the quotient: infinity where its ``divisor`` is 0."""
    divisor = _f32(divisor)
    return _f32(_f32(dividend) / divisor) if divisor else math.copysign(math.inf, dividend)


def _f32(number: float) -> float:
    """The float32 next to ``number``."""
    return array("f", [number])[0]
