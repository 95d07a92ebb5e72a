// The noise that draws are made with.
#pragma once

#include <cstdint>
#include <initializer_list>

namespace windlass {

// In [0, 1), a pure function of its key, so that no history can change it. Each part of the key goes through the
// finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
inline double uniform(std::uint64_t seed, std::uint64_t choice, std::uint64_t position) {
    std::uint64_t x = 0;
    for (const std::uint64_t part : {seed, choice, position}) {
        x += part + 0x9E3779B97F4A7C15U;
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9U;
        x = (x ^ (x >> 27)) * 0x94D049BB133111EBU;
        x ^= x >> 31;
    }
    return static_cast<double>(x >> 11) * 0x1p-53;
}

}  // namespace windlass
