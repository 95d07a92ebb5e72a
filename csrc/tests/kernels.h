// What the checks of the kernels share (csrc/tests/kernels.cpp).
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kernels/table.h"

namespace windlass {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;
using Bytes = std::vector<std::uint8_t>;

inline constexpr float kInfinity = std::numeric_limits<float>::infinity(),
                       kNaN = std::numeric_limits<float>::quiet_NaN();
inline constexpr float kUntouched = 12345.0F;

inline std::mt19937 generator(1);
inline std::string now;  // what is being checked
inline std::map<std::string, int> cases;

using Sizes = std::vector<std::pair<const char*, std::int64_t>>;
inline void begin(const KernelTable& table, const std::string& function, const Sizes& sizes) {
    now = std::string(table.name) + ": " + function;
    for (const auto& [name, size] : sizes) now += std::string(", ") + name + " " + std::to_string(size);
    ++cases[function.substr(0, function.find(' '))];
}

// NaN is near NaN. Nothing is near anything with a negative tolerance.
inline void expect_near(double got, double want, double tolerance, std::int64_t at) {
    const bool same = got == want || (std::isnan(got) && std::isnan(want));
    if (!(tolerance < 0) && (same || std::abs(got - want) <= tolerance)) return;
    std::fprintf(stderr, "wrong: %s: [%lld] is %.9g instead of %.9g\n", now.c_str(), static_cast<long long>(at), got,
                 want);
    std::exit(1);
}
inline void expect_equal(double got, double want, std::int64_t at) { expect_near(got, want, 0, at); }
inline void expect_bits(float got, float want, std::int64_t at) {
    if (std::bit_cast<std::uint32_t>(got) != std::bit_cast<std::uint32_t>(want)) expect_near(got, want, -1, at);
}

inline std::int64_t below(std::int64_t end) {
    return static_cast<std::int64_t>(generator() % static_cast<std::uint64_t>(end));
}

inline Floats random_floats(std::int64_t count, float scale) {
    std::normal_distribution<float> normal(0, scale);
    Floats values(count);
    for (float& value : values) value = normal(generator);
    return values;
}

// Aligned floats, NaN until something is written.
struct Scratch {
    explicit Scratch(std::size_t floats) : memory(std::aligned_alloc(64, (floats * 4 + 63) / 64 * 64), &std::free) {
        std::memset(data(), 0xFF, floats * 4);
    }
    float* data() const { return static_cast<float*>(memory.get()); }
    std::unique_ptr<void, decltype(&std::free)> memory;
};

inline float half_value(Format format, std::uint16_t bits) {
    if (format == Format::kBF16) return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
    const int exponent = bits >> 10 & 0x1F, mantissa = bits & 0x3FF;
    const float magnitude = exponent == 31  ? (mantissa == 0 ? kInfinity : kNaN)
                            : exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                            : std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
    return bits >> 15 != 0 ? -magnitude : magnitude;
}

// Rows of values, rotary embedding, the KV cache and attention, sampling.
void check_rows(const KernelTable& table);

}  // namespace windlass
