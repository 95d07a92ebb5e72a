// Halves (IEEE 754 binary16) on any processor, for places where speed does not matter.
#pragma once

#include <bit>
#include <cstdint>

namespace windlass {

inline float half_to_float(std::uint16_t half) {
    const std::uint32_t exponent = half >> 10 & 0x1F, mantissa = half & 0x3FF;
    const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000) << 16;
    if (exponent == 0) {
        return std::bit_cast<float>(std::bit_cast<std::uint32_t>(static_cast<float>(mantissa) * 0x1p-24F) | sign);
    }
    return std::bit_cast<float>((exponent == 31 ? 0x7F800000 : (exponent + 112) << 23) | mantissa << 13 | sign);
}

// To the nearest, ties to even; what is too large becomes infinite.
inline std::uint16_t float_to_half(float value) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t sign = bits >> 16 & 0x8000;
    const std::uint32_t magnitude = bits & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) return static_cast<std::uint16_t>(sign | 0x7E00);
    if (magnitude >= 0x477FF000) return static_cast<std::uint16_t>(sign | 0x7C00);  // 65520 and more
    if (magnitude < 0x38800000) {
        // Below 2^-14 the steps are 2^-24, which are the steps of floats from 0.5 on.
        const float shifted = std::bit_cast<float>(magnitude) + 0.5F;
        return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3F000000));
    }
    return static_cast<std::uint16_t>(sign | ((magnitude + 0xFFF + (magnitude >> 13 & 1)) - 0x38000000) >> 13);
}

}  // namespace windlass
