// What this machine can do at most, measured: bytes read from memory, and int8 dot products, per second.
// Usage: limits THREADS...
// Prints one JSON object per thread count, in GB/s and Gop/s; a multiply-add is two operations.

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

constexpr double kSeconds = 0.3;
constexpr std::size_t kBytes = std::size_t{256} << 20;  // per thread: far more than any cache
constexpr int kAccumulators = 12;                       // hides two units' latency, leaves registers for operands

using Clock = std::chrono::steady_clock;
using Vector = std::uint64_t __attribute__((vector_size(64)));

std::atomic<std::uint64_t> sink{0};

// Reads the block once; returns the bytes.
double read_block(const char* block) {
    Vector a{}, b{}, c{}, d{};
    for (std::size_t i = 0; i < kBytes; i += 4 * sizeof(Vector)) {
        const auto* at = reinterpret_cast<const Vector*>(block + i);
        __builtin_prefetch(block + i + 4096);
        __builtin_prefetch(block + i + 4096 + 128);
        a ^= at[0];
        b ^= at[1];
        c ^= at[2];
        d ^= at[3];
    }
    a ^= b ^ c ^ d;
    sink ^= a[0] ^ a[7];
    return static_cast<double>(kBytes);
}

// Some number that depends on all of the accumulators.
template <typename Accumulator>
[[maybe_unused]] std::uint64_t folded(const Accumulator (&sums)[kAccumulators]) {
    std::uint64_t words[kAccumulators * sizeof(Accumulator) / 8], all = 0;
    std::memcpy(words, sums, sizeof(sums));
    for (const std::uint64_t word : words) all ^= word;
    return all;
}

// A few hundred microseconds of int8 dot products in registers; returns the operations. 0 where there is no such unit.
double dot_products() {
    constexpr long kTurns = 100000;
#if defined(__AVX512VNNI__)
    __m512i sums[kAccumulators];
    for (auto& sum : sums) sum = _mm512_set1_epi32(static_cast<int>(sink & 1));
    const __m512i x = sums[0], y = sums[1];
    for (long turn = 0; turn < kTurns; ++turn) {
#pragma GCC unroll 12
        for (int i = 0; i < kAccumulators; ++i) sums[i] = _mm512_dpbusd_epi32(sums[i], x, y);
    }
    sink ^= folded(sums) & 2;
    return 128.0 * kAccumulators * kTurns;
#elif defined(__AVX2__)
    __m256i sums[kAccumulators];
    for (auto& sum : sums) sum = _mm256_set1_epi32(static_cast<int>(sink & 1));
    __m256i x = sums[0];
    const __m256i y = sums[1];
    for (long turn = 0; turn < kTurns; ++turn) {
#pragma GCC unroll 12
        for (int i = 0; i < kAccumulators; ++i) {
#if defined(__AVXVNNI__)
            sums[i] = _mm256_dpbusd_avx_epi32(sums[i], x, y);
#else
            asm volatile("" : "+x"(x));  // or the product would be computed once
            sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(_mm256_maddubs_epi16(x, y), _mm256_set1_epi16(1)));
#endif
        }
    }
    sink ^= folded(sums) & 2;
    return 64.0 * kAccumulators * kTurns;
#elif defined(__ARM_FEATURE_DOTPROD)
    int32x4_t sums[kAccumulators];
    for (auto& sum : sums) sum = vdupq_n_s32(static_cast<int>(sink & 1));
    const int8x16_t x = vreinterpretq_s8_s32(sums[0]), y = vreinterpretq_s8_s32(sums[1]);
    for (long turn = 0; turn < kTurns; ++turn) {
#pragma GCC unroll 12
        for (int i = 0; i < kAccumulators; ++i) sums[i] = vdotq_s32(sums[i], x, y);
    }
    sink ^= folded(sums) & 2;
    return 32.0 * kAccumulators * kTurns;
#else
    (void)kTurns;
    return 0.0;
#endif
}

char* allocate() {
    void* block = std::aligned_alloc(std::size_t{2} << 20, kBytes);
    if (block == nullptr) std::abort();
#if defined(__linux__)
    madvise(block, kBytes, MADV_HUGEPAGE);
#endif
    return static_cast<char*>(block);
}

// Sum of what the threads do per second, in units of 10^9; all of them begin together.
double rate(int threads, const std::function<double(int)>& work) {
    std::atomic<int> ready{0};
    std::vector<double> rates(static_cast<std::size_t>(threads));
    std::vector<std::thread> pool;
    for (int id = 0; id < threads; ++id) {
        pool.emplace_back([&, id] {
            ++ready;
            while (ready < threads) {
            }
            double done = 0.0, seconds = 0.0;
            const auto begin = Clock::now();
            do {
                done += work(id);
                seconds = std::chrono::duration<double>(Clock::now() - begin).count();
            } while (seconds < kSeconds && done > 0.0);
            rates[static_cast<std::size_t>(id)] = done / seconds / 1e9;
        });
    }
    double total = 0.0;
    for (int id = 0; id < threads; ++id) {
        pool[static_cast<std::size_t>(id)].join();
        total += rates[static_cast<std::size_t>(id)];
    }
    return total;
}

}  // namespace

int main(int count, char** arguments) {
    std::vector<char*> blocks;
    for (int i = 1; i < count; ++i) {
        const int threads = std::atoi(arguments[i]);
        if (threads < 1) return 2;
        while (blocks.size() < static_cast<std::size_t>(threads)) {
            blocks.push_back(allocate());
            std::memset(blocks.back(), 1, kBytes);
        }
        const double read = rate(threads, [&](int id) { return read_block(blocks[static_cast<std::size_t>(id)]); });
        const double dots = rate(threads, [](int) { return dot_products(); });
        std::printf("{\"threads\": %d, \"read\": %.3f, \"int8\": %.3f}\n", threads, read, dots);
    }
    return 0;
}
