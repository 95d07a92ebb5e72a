// Checks of the kernels that have no weights (csrc/tests/kernels.cpp).
#include <algorithm>
#include <numbers>

#include "executor/kv_cache.h"
#include "tests/kernels.h"

namespace windlass {
namespace {

// The nearest number of `bits` bits whose smallest normal exponent is `lowest`, ties to even.
float nearest(float x, int bits, int lowest, double end) {
    if (!std::isfinite(x) || x == 0.0F) return x;
    const int exponent = std::max(std::ilogb(x), lowest) - bits + 1;
    const double rounded = std::ldexp(std::nearbyint(std::ldexp(static_cast<double>(x), -exponent)), exponent);
    return std::abs(rounded) >= end ? std::copysign(kInfinity, x) : static_cast<float>(rounded);
}

// One token's keys or values of a head as the KV cache keeps them.
Floats stored(KVType type, Floats x) {
    if (type == KVType::kF32) return x;
    float magnitude = 0;
    bool finite = true;
    for (float& value : x) {
        finite = finite && std::isfinite(value);
        magnitude = std::max(magnitude, std::abs(value));
        if (type == KVType::kF16) value = nearest(value, 11, -14, 65536);
        if (type == KVType::kBF16) value = nearest(value, 8, -126, 0x1p128);
    }
    if (type != KVType::kInt8 && type != KVType::kInt16) return x;
    const float scale = magnitude < 0x1p-100F ? 0 : magnitude / (type == KVType::kInt8 ? 127 : 8191);
    for (float& value : x) value = !finite ? kNaN : scale == 0 ? 0 : std::nearbyint(value * (1 / scale)) * scale;
    return x;
}

// Which positions a query sees, and what happens to its scores.
struct Seen {
    std::int64_t window = 0, chunk = 0, last = -1;
    float softcap = 0;
    Floats sinks = {};  // one per head, if any

    std::int64_t oldest(std::int64_t position) const {
        if (chunk > 0) return position - position % chunk;
        return window > 0 ? std::max<std::int64_t>(0, position - window + 1) : 0;
    }
    std::int64_t newest(std::int64_t position) const { return last >= 0 ? last : position; }
};

// A sequence in a cache of one layer and one KV head, its pages in no order and full of NaN where nothing is stored.
class Sequence {
  public:
    Sequence(const KernelTable& table, KVType type, int head_dim, std::int64_t positions)
        : table_(table), shape_{1, 1, head_dim, type}, ids_((positions - 1) / kPageSize + 1) {
        for (std::int64_t i = 0; i < std::ssize(ids_); ++i) ids_[i] = static_cast<std::int32_t>(i);
        std::shuffle(ids_.begin(), ids_.end(), generator);
        memory_.assign(ids_.size() * shape_.page_bytes(), 0xFF);
    }

    void store(std::int64_t position, const Floats& k, const Floats& v) {
        std::uint8_t* const page = memory_.data() + ids_[position / kPageSize] * shape_.page_bytes();
        table_.store_kv(
            {k.data(), v.data(), page, static_cast<int>(position % kPageSize), shape_.head_dim, shape_.type});
    }

    // `heads` query heads of the tokens from `position` on, segment by segment; [tokens][heads][head_dim].
    Floats attend(const float* q, std::int64_t q_stride, int tokens, int heads, std::int64_t position, float scale,
                  const Seen& seen) const {
        const std::size_t floats = table_.attention_state(shape_.head_dim) * (tokens * heads);
        const Scratch scratch(table_.attention_scratch(shape_.head_dim)), states(floats), later(floats);
        const std::int64_t begin = seen.oldest(position) / kPageSize;
        const std::int64_t end = seen.newest(position + tokens - 1) / kPageSize + 1;
        const std::int64_t first = begin / kSegmentPages;
        for (std::int64_t segment = first; segment * kSegmentPages < end; ++segment) {
            table_.attention({q, q_stride, tokens, position, heads, shape_.head_dim, scale, seen.window, seen.chunk,
                              seen.last, seen.softcap, memory_.data(), shape_.page_bytes(), ids_.data(),
                              std::max(begin, segment * kSegmentPages), std::min(end, (segment + 1) * kSegmentPages),
                              shape_.type, segment == first ? states.data() : later.data(), scratch.data()});
            if (segment > first) table_.merge_attention(states.data(), later.data(), tokens * heads, shape_.head_dim);
        }
        Floats out(tokens * heads * shape_.head_dim);
        table_.finish_attention(states.data(), tokens, heads, shape_.head_dim,
                                seen.sinks.empty() ? nullptr : seen.sinks.data(), out.data(), heads * shape_.head_dim);
        return out;
    }

  private:
    const KernelTable& table_;
    KVCache::Shape shape_;
    std::vector<std::int32_t> ids_;
    Bytes memory_;
};

// With a single key, attention gives back what was stored as its value.
void check_store(const KernelTable& table, KVType type) {
    begin(table, "store_kv", {{"type", static_cast<int>(type)}});
    for (int round = 0; round < 200; ++round) {
        const int head_dim = round < 100 ? 256 : 1 + round % 40;
        const float factor = std::ldexp(1.0F, static_cast<int>(below(60)) - 40);
        Floats v = random_floats(head_dim, round == 0 ? 0 : factor);
        for (float& value : v) {
            const std::uint16_t half = static_cast<std::uint16_t>(generator());
            const Format format = round % 2 == 0 ? Format::kF16 : Format::kBF16;
            // Halfway between two numbers of 16 bits.
            const std::uint16_t next = static_cast<std::uint16_t>(half + 1);
            if (round % 4 >= 2) value = half_value(format, half) / 2 + half_value(format, next) / 2;
        }
        Sequence sequence(table, type, head_dim, 1);
        sequence.store(0, Floats(head_dim, 1.0F), v);
        const Floats q(head_dim, 1.0F);
        const Floats out = sequence.attend(q.data(), head_dim, 1, 1, 0, 1.0F, {}), want = stored(type, v);
        // The weight of the key is a code too, whose scale is rounded.
        const double tolerance = type == KVType::kInt16 ? 0x1p-22 : 0;
        for (std::int64_t i = 0; i < std::ssize(out); ++i)
            expect_near(out[i], want[i], tolerance * std::abs(want[i]), i);
    }
}

struct AttentionSizes {
    int head_dim, heads, tokens;
    std::int64_t position;
    Seen seen = {};
};
// Head sizes that pad, queries shared or not, windows and chunks that end within pages, blocks and segments, up to
// three segments.
const AttentionSizes kAttentions[] = {{1, 1, 1, 0},
                                      {20, 3, 5, 0},
                                      {16, 2, 3, 5},
                                      {64, 4, 8, 60},
                                      {80, 3, 5, 130, {.window = 33}},
                                      {24, 5, 2, 515, {.window = 1}},
                                      {32, 2, 8, 515, {.window = 10}},
                                      {128, 8, 8, 508},
                                      {64, 2, kQueryTokens, 1030},
                                      {64, 1, 8, 1100, {.window = 600}},
                                      {32, 3, 8, 60, {.chunk = 7}},
                                      {24, 2, 8, 1020, {.chunk = 512}},
                                      {20, 3, 8, 0, {.last = 7}},
                                      {32, 2, kQueryTokens, 0, {.last = 600}},
                                      {32, 3, 5, 70, {.softcap = 3}},
                                      {40, 3, 5, 600, {.window = 90, .softcap = 0.5F, .sinks = {-2, 0.5F, 9}}},
                                      {576, 16, 2, 70, {.sinks = Floats(16, 1.0F)}}};

// A query with a number that is not finite gets NaN, and nothing else does.
void check_broken_query(const KernelTable& table, KVType type) {
    begin(table, "attention of a query that is not finite", {{"type", static_cast<int>(type)}});
    const int head_dim = 40, heads = 7, broken = 2;
    const std::int64_t positions = 600;
    Sequence sequence(table, type, head_dim, positions);
    for (std::int64_t p = 0; p < positions; ++p) {
        sequence.store(p, random_floats(head_dim, 1), random_floats(head_dim, 1));
    }
    for (const float number : {kInfinity, -kInfinity, kNaN, -kNaN}) {
        Floats q = random_floats(heads * head_dim, 1);
        q[broken * head_dim + below(head_dim)] = number;
        const Floats out = sequence.attend(q.data(), q.size(), 1, heads, positions - 1, 0.2F, {});
        for (std::int64_t i = 0; i < std::ssize(out); ++i) {
            expect_equal(std::isnan(out[i]), i / head_dim == broken, i);
        }
    }
}

void check_attention(const KernelTable& table, KVType type, const AttentionSizes& sizes) {
    const int head_dim = sizes.head_dim, heads = sizes.heads, tokens = sizes.tokens;
    const std::int64_t position = sizes.position;
    const Seen& seen = sizes.seen;
    begin(table, "attention",
          {{"type", static_cast<int>(type)},
           {"head_dim", head_dim},
           {"heads", heads},
           {"tokens", tokens},
           {"position", position},
           {"window", seen.window},
           {"chunk", seen.chunk},
           {"last", seen.last},
           {"softcap", seen.softcap > 0},
           {"sinks", !seen.sinks.empty()}});
    const float scale = 1 / std::sqrt(static_cast<float>(head_dim));
    const std::int64_t end = seen.newest(position + tokens - 1) + 1;
    const std::int64_t width = std::int64_t{heads} * head_dim, q_stride = width + 3;
    Sequence sequence(table, type, head_dim, end);
    std::map<std::int64_t, Floats> keys, values;
    for (std::int64_t p = seen.oldest(position); p < end; ++p) {
        const Floats k = random_floats(head_dim, 2), v = random_floats(head_dim, 1);
        sequence.store(p, k, v);
        keys[p] = stored(type, k);
        values[p] = stored(type, v);
    }
    const Floats q = random_floats(tokens * q_stride, 1);
    const Floats out = sequence.attend(q.data(), q_stride, tokens, heads, position, scale, seen);
    for (int i = 0; i < tokens * heads; ++i) {
        const std::int64_t token = i / heads, head = i % heads, at_position = position + token;
        const std::int64_t first = seen.oldest(at_position), last = seen.newest(at_position);
        const float* const query = q.data() + token * q_stride + head * head_dim;
        Doubles scores, sums(head_dim);
        for (std::int64_t p = first; p <= last; ++p) {
            double score = 0;
            for (int d = 0; d < head_dim; ++d) score += double{query[d]} * keys[p][d];
            score *= scale;
            scores.push_back(seen.softcap > 0 ? seen.softcap * std::tanh(score / seen.softcap) : score);
        }
        Seen alone_seen = seen;
        if (!seen.sinks.empty()) alone_seen.sinks = {seen.sinks[head]};
        const double sink = seen.sinks.empty() ? -kInfinity : seen.sinks[head];
        const double largest = std::max(sink, *std::max_element(scores.begin(), scores.end()));
        // Queries and weights become codes too; those of a query have fewer bits the more columns there are.
        const double tolerance = type != KVType::kInt16 ? 2e-5 : head_dim > 256 ? 1e-2 : 5e-4;
        double total = std::exp(sink - largest);
        for (std::int64_t p = first; p <= last; ++p) {
            const double weight = std::exp(scores[p - first] - largest);
            total += weight;
            for (std::int64_t d = 0; d < std::ssize(sums); ++d) sums[d] += weight * values[p][d];
        }
        for (std::int64_t d = 0; d < std::ssize(sums); ++d) {
            const std::int64_t at = std::int64_t{i} * head_dim + d;
            expect_near(out[at], sums[d] / total, tolerance, at);
        }
        // The same bits, whatever else is in the job.
        const Floats alone = sequence.attend(query, q_stride, 1, 1, at_position, scale, alone_seen);
        for (std::int64_t d = 0; d < std::ssize(alone); ++d) {
            const std::int64_t at = std::int64_t{i} * head_dim + d;
            expect_bits(alone[d], out[at], at);
        }
    }
}

void check_norms(const KernelTable& table, std::int64_t width) {
    const Floats x = random_floats(width, 20), weight = random_floats(width, 1), bias = random_floats(width, 1);
    const auto expect_rows = [&](const Floats& out, double mean, double root, bool weighted, bool biased) {
        for (std::int64_t i = 0; i < width; ++i) {
            const double one = (x[i] - mean) / root * (weighted ? weight[i] : 1);
            const double size = (std::abs(x[i]) + std::abs(mean)) / root * (weighted ? std::abs(weight[i]) : 1);
            expect_near(out[i], one + (biased ? bias[i] : 0), 4e-6 * (size + 1), i);
        }
        expect_equal(out[width], kUntouched, width);
    };
    double sum = 0, squares = 0, centered = 0;
    for (const float value : x) sum += value;
    const double mean = sum / static_cast<double>(width);
    for (const float value : x) {
        squares += double{value} * value;
        centered += (value - mean) * (value - mean);
    }
    for (const bool weighted : {false, true}) {
        const float* const weights = weighted ? weight.data() : nullptr;
        begin(table, "rms_norm", {{"width", width}, {"weighted", weighted}});
        Floats out(width + 1, kUntouched);
        table.rms_norm(x.data(), weights, 50, width, out.data());
        expect_rows(out, 0, std::sqrt(squares / static_cast<double>(width) + 50), weighted, false);
        for (const bool biased : {false, true}) {
            begin(table, "layer_norm", {{"width", width}, {"weighted", weighted}, {"biased", biased}});
            std::copy(x.begin(), x.end(), out.begin());
            table.layer_norm(out.data(), weights, biased ? bias.data() : nullptr, 50, width, out.data());
            expect_rows(out, mean, std::sqrt(centered / static_cast<double>(width) + 50), weighted, biased);
        }
    }
}

double activated(ActivationKind kind, double x) {
    const double inner = 2 * std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x);
    switch (kind) {
        case ActivationKind::kSilu:
            return x / (1 + std::exp(-x));
        case ActivationKind::kGelu:
            return x * std::erfc(-x * std::numbers::sqrt2 / 2) / 2;
        case ActivationKind::kGeluTanh:
            return x / (1 + std::exp(-inner));
        case ActivationKind::kRelu:
            return std::isnan(x) ? x : std::max(x, 0.0);
        default: {
            const double gate = std::isnan(x) ? x : std::min(x, 7.0);
            return gate / (1 + std::exp(-1.702 * gate));
        }
    }
}

void check_activations(const KernelTable& table, std::int64_t width) {
    Floats x = random_floats(2 * width, 5), out(width + 1, kUntouched);
    x[0] = width % 2 == 0 ? -200.0F : kNaN;
    for (const ActivationKind kind :
         {ActivationKind::kSilu, ActivationKind::kGelu, ActivationKind::kGeluTanh, ActivationKind::kRelu}) {
        begin(table, "activation", {{"kind", static_cast<int>(kind)}, {"width", width}});
        table.activation(kind, x.data(), width, out.data());
        for (std::int64_t i = 0; i < width; ++i) {
            const double want = activated(kind, x[i]);
            expect_near(out[i], want, 1e-5 * std::abs(want) + 1e-33, i);
        }
    }
    for (const ActivationKind kind :
         {ActivationKind::kSilu, ActivationKind::kGelu, ActivationKind::kGeluTanh, ActivationKind::kClampedSwiglu}) {
        begin(table, "gated_activation", {{"kind", static_cast<int>(kind)}, {"width", width}});
        table.gated_activation(kind, x.data(), width, out.data());
        for (std::int64_t i = 0; i < width; ++i) {
            const double up = x[width + i];
            const double factor = kind == ActivationKind::kClampedSwiglu ? std::clamp(up, -7.0, 7.0) + 1 : up;
            const double want = activated(kind, x[i]) * factor;
            expect_near(out[i], want, 1e-5 * std::abs(want) + 1e-33, i);
        }
    }
    expect_equal(out[width], kUntouched, width);
}

// What changes a row in place.
void check_changes(const KernelTable& table, std::int64_t width) {
    const Floats x = random_floats(2 * width, 5), y = random_floats(width, 1);
    const auto expect_row = [&](const Floats& out, double tolerance, const auto& want) {
        for (std::int64_t i = 0; i < 2 * width; ++i) {
            const double one = i < width ? want(i) : x[i];
            expect_near(out[i], one, tolerance * (std::abs(one) + (i < width ? 0.01 : 0)), i);
        }
    };
    Floats out = x;
    begin(table, "add", {{"width", width}});
    table.add(out.data(), y.data(), width);
    expect_row(out, 0, [&](std::int64_t i) { return x[i] + y[i]; });

    out = x;
    begin(table, "add_scaled", {{"width", width}});
    table.add_scaled(out.data(), y.data(), -1.7F, width);
    expect_row(out, 2e-5, [&](std::int64_t i) { return x[i] + double{y[i]} * -1.7F; });

    out = x;
    begin(table, "scale", {{"width", width}});
    table.scale(out.data(), 0.3F, width);
    expect_row(out, 0, [&](std::int64_t i) { return x[i] * 0.3F; });

    out = x;
    begin(table, "sigmoid_gate", {{"width", width}});
    table.sigmoid_gate(out.data(), y[0], width);
    expect_row(out, 1e-6, [&](std::int64_t i) { return x[i] / (1 + std::exp(-double{y[0]})); });

    for (const float cap : {0.1F, 3.0F, 50.0F}) {
        out = x;
        begin(table, "softcap", {{"width", width}});
        table.softcap(out.data(), cap, width);
        expect_row(out, 1e-6, [&](std::int64_t i) { return cap * std::tanh(double{x[i]} / cap); });
    }
}

// Against sorted lists; two experts have the same logit.
void check_route(const KernelTable& table, int experts, int groups, int top_groups, int top_k) {
    for (int variant = 0; variant < 8; ++variant) {
        const bool sigmoid = variant % 2 == 1, biased = variant / 2 % 2 == 1, top2_sum = variant / 4 == 1;
        if (top2_sum && experts / groups < 2) continue;
        begin(table, "route",
              {{"experts", experts},
               {"groups", groups},
               {"top_groups", top_groups},
               {"top_k", top_k},
               {"variant", variant}});
        Floats x = random_floats(experts, 2), bias = random_floats(experts, 0.5F), out(experts + 1, kUntouched);
        if (!biased) bias.assign(experts, 0);
        if (experts > 3) x[3] = x[1];
        const Scratch scratch(static_cast<std::size_t>(kRouteNumbers * experts));
        table.route({x.data(), experts, top_k, sigmoid, biased, 2.5F, biased ? bias.data() : nullptr, groups,
                     top_groups, top2_sum, out.data(), scratch.data()});
        Doubles scores;
        double sum = 0;
        for (const float value : x) scores.push_back(sigmoid ? 1 / (1 + std::exp(-double{value})) : std::exp(value));
        for (const double score : scores) sum += score;
        for (double& score : scores) score /= sigmoid ? 1 : sum;
        const int size = experts / groups;
        std::vector<int> order, group_order;
        Doubles group_scores;
        const auto choice = [&](int e) { return scores[e] + bias[e]; };
        for (int group = 0; group < groups; ++group) {
            Doubles own;
            for (int e = group * size; e < (group + 1) * size; ++e) own.push_back(choice(e));
            std::sort(own.rbegin(), own.rend());
            group_scores.push_back(top2_sum ? own[0] + own[1] : own[0]);
            group_order.push_back(group);
        }
        std::stable_sort(group_order.begin(), group_order.end(),
                         [&](int a, int b) { return group_scores[a] > group_scores[b]; });
        group_order.resize(top_groups);
        std::sort(group_order.begin(), group_order.end());
        for (const int group : group_order) {
            for (int e = group * size; e < (group + 1) * size; ++e) order.push_back(e);
        }
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return choice(a) > choice(b); });
        Doubles want(experts);
        double taken = 0;
        for (int i = 0; i < top_k; ++i) taken += scores[order[i]];
        for (int i = 0; i < top_k; ++i) want[order[i]] = scores[order[i]] / (biased ? taken : 1) * 2.5;
        for (int e = 0; e < experts; ++e) expect_near(out[e], want[e], 1e-5 * want[e], e);
        expect_equal(out[experts], kUntouched, experts);
    }
}

// Rotates the first 2 * half columns of each head.
void check_rope(const KernelTable& table, std::int64_t heads, std::int64_t head_dim, std::int64_t half) {
    begin(table, "rope", {{"heads", heads}, {"head_dim", head_dim}, {"half", half}});
    const Floats before = random_floats(heads * head_dim, 1), cos = random_floats(half, 1),
                 sin = random_floats(half, 1);
    Floats x = before;
    table.rope(x.data(), cos.data(), sin.data(), heads, head_dim, half);
    for (std::int64_t at = 0; at < heads * head_dim; ++at) {
        const std::int64_t d = at % head_dim, angle = d % half;
        if (d >= 2 * half) {
            expect_equal(x[at], before[at], at);
            continue;
        }
        const double other = d < half ? -double{before[at + half]} : double{before[at - half]};
        expect_near(x[at], double{before[at]} * cos[angle] + other * sin[angle], 3e-6, at);
    }
}

void check_sampling(const KernelTable& table, std::int64_t count) {
    Floats x = random_floats(count, 100);
    begin(table, "block_maxima", {{"count", count}});
    if (count > 1) x[0] = -kInfinity;
    const std::int64_t blocks = (count - 1) / kSamplingBlock + 1;
    Floats maxima(blocks);
    expect_equal(table.block_maxima(x.data(), count, maxima.data()), true, 0);
    for (std::int64_t block = 0; block < blocks; ++block) {
        const auto from = x.begin() + block * kSamplingBlock;
        const auto to = x.begin() + std::min(count, (block + 1) * kSamplingBlock);
        expect_equal(maxima[block], *std::max_element(from, to), block);
    }
    for (std::int64_t i = 0; i < std::min<std::int64_t>(count, 200); ++i) {
        Floats broken = x;
        broken[i] = i % 2 == 0 ? kNaN : -kNaN;
        expect_equal(table.block_maxima(broken.data(), count, maxima.data()), false, i);
    }

    begin(table, "likelihoods", {{"count", count}});
    const float largest = *std::max_element(x.begin(), x.end());
    for (const double inverse_temperature : {0.5, 1.0, 5.0}) {
        Doubles out(x.size());
        const double sum = table.likelihoods(x.data(), count, largest, inverse_temperature, out.data());
        double total = 0;
        for (std::int64_t i = 0; i < std::ssize(out); ++i) {
            const double want = std::exp(double{x[i] - largest} * inverse_temperature);
            expect_near(out[i], want, 5e-16 * want + 1e-307, i);
            if (x[i] == largest) expect_equal(out[i], 1, i);
            total += out[i];
        }
        expect_near(sum, total, 1e-14 * total, count);
    }
}

}  // namespace

void check_rows(const KernelTable& table) {
    for (const KVType type : {KVType::kF32, KVType::kF16, KVType::kBF16, KVType::kInt8, KVType::kInt16}) {
        check_store(table, type);
        check_broken_query(table, type);
        for (const AttentionSizes& sizes : kAttentions) check_attention(table, type, sizes);
    }
    for (const std::int64_t width : {1, 3, 4, 8, 15, 16, 17, 40, 127, 1000}) {
        check_norms(table, width);
        check_activations(table, width);
        check_changes(table, width);
        check_rope(table, 3, 2 * width, width);
        check_rope(table, 2, 2 * width + 5, width);
    }
    for (int round = 0; round < 20; ++round) {
        check_route(table, 1 + round, 1, 1, 1 + round / 3);
        check_route(table, 48, 8, 3, 1 + round % 8);
        check_route(table, 32, 4, 1, 8);
    }
    for (const std::int64_t count : {1, 3, 8, 17, 63, 64, 65, 128, 1000, 20'000}) check_sampling(table, count);
}

}  // namespace windlass
