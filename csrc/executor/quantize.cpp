#include "executor/quantize.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <vector>

#include "runtime/half.h"

namespace windlass {
namespace {

constexpr std::uint32_t kMagnitude = 0x7FFFFFFF;
constexpr std::uint32_t kInfinity = 0x7F800000;

// To the nearest whole number, ties to even, for magnitudes below 2^22.
float nearest(float value) {
    constexpr float kShift = 0x1.8p23F;
    return value + kShift - kShift;
}

// Rows as floats, padded with zeros to whole groups, and their codes.
class RowQuantizer {
  public:
    explicit RowQuantizer(const QuantizeTask& task)
        : task_(task),
          largest_code_(static_cast<float>((1 << (task.bits - 1)) - 1)),
          groups_((task.columns - 1) / task.group + 1),
          values_(static_cast<std::size_t>(groups_ * task.group)),
          codes_(values_.size() + 1) {}

    bool quantize(std::int64_t row) {
        widen(row);
        for (std::int64_t group = 0; group < groups_; ++group) {
            float scale = 0;
            if (!find_scale(values_.data() + group * task_.group, scale)) return false;
            store_scale(row * groups_ + group, scale);
            encode(group, scale == 0 ? 1.0F : scale);
        }
        task_.bits == 8 ? store_bytes(row) : store_nibbles(row);
        return true;
    }

  private:
    void widen(std::int64_t row) {
        const std::int64_t columns = task_.columns;
        float* const to = values_.data();
        if (task_.format == Format::kF32) {
            std::memcpy(to, task_.data + row * columns * 4, static_cast<std::size_t>(columns) * sizeof(float));
            return;
        }
        const auto* const from = reinterpret_cast<const std::uint16_t*>(task_.data) + row * columns;
        if (task_.format == Format::kF16) {
            for (std::int64_t c = 0; c < columns; ++c) to[c] = half_to_float(from[c]);
        } else {
            for (std::int64_t c = 0; c < columns; ++c) {
                to[c] = std::bit_cast<float>(static_cast<std::uint32_t>(from[c]) << 16);
            }
        }
    }

    bool find_scale(const float* values, float& scale) const {
        // Floats without their signs are ordered as their bits are, NaN above infinity.
        std::uint32_t largest = 0;
        for (std::int64_t c = 0; c < task_.group; ++c) {
            largest = std::max(largest, std::bit_cast<std::uint32_t>(values[c]) & kMagnitude);
        }
        if (largest >= kInfinity) return false;
        scale = std::bit_cast<float>(largest) / largest_code_;
        if (task_.rounding == ScaleRounding::kF16) scale = half_to_float(float_to_half(scale));
        if (task_.rounding == ScaleRounding::kBF16) {
            std::uint32_t bits = std::bit_cast<std::uint32_t>(scale);
            bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000;
            scale = std::bit_cast<float>(bits);
        }
        return std::bit_cast<std::uint32_t>(scale) < kInfinity;
    }

    void store_scale(std::int64_t index, float scale) const {
        if (task_.rounding == ScaleRounding::kF16) {
            const std::uint16_t half = float_to_half(scale);
            std::memcpy(task_.scales + index * 2, &half, sizeof half);
        } else {
            std::memcpy(task_.scales + index * 4, &scale, sizeof scale);
        }
    }

    void encode(std::int64_t group, float scale) {
        const float* const from = values_.data() + group * task_.group;
        std::uint8_t* const to = codes_.data() + group * task_.group;
        const float middle = largest_code_, top = 2 * largest_code_;
        for (std::int64_t c = 0; c < task_.group; ++c) {
            const float code = nearest(from[c] / scale + middle);
            to[c] = static_cast<std::uint8_t>(static_cast<std::int32_t>(std::min(std::max(code, 0.0F), top)));
        }
    }

    void store_bytes(std::int64_t row) const {
        const auto middle = static_cast<std::uint8_t>(largest_code_);
        std::uint8_t* const to = task_.codes + row * task_.columns;
        for (std::int64_t c = 0; c < task_.columns; ++c) to[c] = static_cast<std::uint8_t>(codes_[c] - middle);
    }

    void store_nibbles(std::int64_t row) {
        const std::int64_t pairs = (task_.columns + 1) / 2;
        if (task_.columns % 2 != 0) codes_[static_cast<std::size_t>(task_.columns)] = 0;
        std::uint8_t* const to = task_.codes + row * pairs;
        for (std::int64_t i = 0; i < pairs; ++i) {
            to[i] = static_cast<std::uint8_t>(codes_[2 * i] | codes_[2 * i + 1] << 4);
        }
    }

    const QuantizeTask& task_;
    const float largest_code_;
    const std::int64_t groups_;
    std::vector<float> values_;
    std::vector<std::uint8_t> codes_;  // one more, so that the last pair is whole
};

}  // namespace

bool quantize_matrix(const QuantizeTask& task, ThreadPool& pool) {
    constexpr std::int64_t kGrain = 64;
    std::atomic<bool> good{true};
    pool.parallel_for(task.rows, kGrain, [&](int, std::int64_t begin, std::int64_t end) {
        RowQuantizer rows(task);
        for (std::int64_t row = begin; row < end && good.load(std::memory_order_relaxed); ++row) {
            if (!rows.quantize(row)) good.store(false);
        }
    });
    return good.load();
}

}  // namespace windlass
