// FNV-1a over words of eight bytes: finds damage, keeps nobody out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace windlass {

inline constexpr std::uint64_t kHashStart = 0xCBF29CE484222325;

inline std::uint64_t hash_bytes(const void* data, std::size_t size, std::uint64_t hash) {
    constexpr std::uint64_t kPrime = 0x100000001B3;
    const auto* at = static_cast<const unsigned char*>(data);
    for (; size > 0;) {
        std::uint64_t word = 0;
        const std::size_t part = size < sizeof word ? size : sizeof word;
        std::memcpy(&word, at, part);
        hash = (hash ^ word) * kPrime;
        hash ^= hash >> 32;
        at += part;
        size -= part;
    }
    return hash;
}

}  // namespace windlass
