// Exercises the native core without Python, to be run under the sanitizers (scripts/sanitize). Exits with 1 when a
// result is wrong; the sanitizer ends it when memory or threads are misused. Takes the seconds that each race lasts.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <new>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "executor/executor.h"
#include "kernels/dispatch.h"
#include "runtime/faults.h"
#include "runtime/thread_pool.h"
#include "sampling/sampler.h"

namespace windlass {
namespace {

constexpr std::int64_t kVocab = 71, kHidden = 64, kHeadDim = 20, kFfn = 24;
constexpr std::int64_t kExperts = 5, kExpertFfn = 16, kTopK = 2;
constexpr int kThreads = 4;
constexpr std::int64_t kMaxTokens = 48, kMaxPositions = 64, kPages = 4;

void expect(bool right, const char* what) {
    if (right) return;
    std::fprintf(stderr, "wrong: %s\n", what);
    std::exit(1);
}

template <typename Error>
void expect_throw(const char* what, const std::function<void()>& action) {
    try {
        action();
    } catch (const Error&) {
        return;
    }
    expect(false, what);
}

// One decoder layer with a plain and an expert feed-forward part.
Program little_program() {
    Program p;
    p.num_ropes = 1;
    p.num_layers = 1;
    p.num_kv_heads = 1;
    p.head_dim = static_cast<int>(kHeadDim);
    p.vocab_size = kVocab;
    p.buffer_widths = {kHidden, kHidden, 4 * kHeadDim, 2 * kHeadDim, kHidden, 2 * kFfn, kFfn, kExperts, kExperts};
    p.weights = {{"table", kVocab, kHidden, false},
                 {"norm", 1, kHidden, true},
                 {"qkv", 4 * kHeadDim, kHidden, false},
                 {"bias", 1, 4 * kHeadDim, true},
                 {"head", 1, kHeadDim, true},
                 {"out", kHidden, 2 * kHeadDim, false},
                 {"up", 2 * kFfn, kHidden, false},
                 {"down", kHidden, kFfn, false},
                 {"router", kExperts, kHidden, false},
                 {"expert up", kExperts * 2 * kExpertFfn, kHidden, false},
                 {"expert down", kExperts * kHidden, kExpertFfn, false}};
    const View x = {0, 0, kHidden}, normed = {1, 0, kHidden}, qkv = {2, 0, 4 * kHeadDim};
    const View q = {2, 0, 2 * kHeadDim}, k = {2, 2 * kHeadDim, kHeadDim}, v = {2, 3 * kHeadDim, kHeadDim};
    const View attended = {3, 0, 2 * kHeadDim}, more = {4, 0, kHidden}, up = {5, 0, 2 * kFfn}, gated = {6, 0, kFfn};
    const View scores = {7, 0, kExperts}, shares = {8, 0, kExperts};
    p.ops = {Embed{x, 0},
             RmsNorm{normed, x, 1, 1e-5F},
             Linear{qkv, normed, 2, 3},
             HeadNorm{q, 4, kHeadDim, 1e-5F, false},
             Rope{q, 0, kHeadDim, kHeadDim},
             Rope{k, 0, kHeadDim, kHeadDim},
             WriteKV{0, k, v},
             Attention{attended, q, 0, 2, 0.2F, 0},
             Linear{more, attended, 5, kNoWeight},
             Add{x, more},
             RmsNorm{normed, x, 1, 1e-5F},
             Linear{up, normed, 6, kNoWeight},
             GatedActivation{gated, up, ActivationKind::kSilu},
             Linear{more, gated, 7, kNoWeight},
             Add{x, more},
             RmsNorm{normed, x, 1, 1e-5F},
             Linear{scores, normed, 8, kNoWeight},
             Route{shares, scores, kTopK, true, true, 1.0F, kNoWeight, 1, 1, false},
             Experts{more, normed, shares, 9, 10, ActivationKind::kGelu, kNoWeight, kNoWeight, false},
             Add{x, more},
             Logits{x, 0, 0}};
    return p;
}

std::vector<float> random_floats(std::mt19937& random, std::size_t count, float scale) {
    std::normal_distribution<float> normal(0, scale);
    std::vector<float> values(count);
    for (float& value : values) value = normal(random);
    return values;
}

// The matrices in floats, or in codes of four bits.
void fill(Executor& executor, Format format = Format::kF32) {
    std::mt19937 random(1);
    std::int64_t index = 0;
    for (const Program::WeightShape& shape : executor.program().weights) {
        const std::vector<float> values =
            random_floats(random, static_cast<std::size_t>(shape.rows * shape.columns), 0.3F);
        SourceTensor source;
        source.rows = shape.rows;
        source.columns = shape.columns;
        source.data = {reinterpret_cast<const std::uint8_t*>(values.data()), shape.columns * 4, 4};
        const float scale = 0.05F;
        const std::uint8_t zero = 7;
        if (format == Format::kInt4 && !shape.is_vector) {
            // Any bytes are codes.
            source.format = format;
            source.data = {reinterpret_cast<const std::uint8_t*>(values.data()), (shape.columns + 1) / 2, 1};
            source.group = 32;
            source.scale_type = ScaleType::kF32;
            source.scales = {reinterpret_cast<const std::uint8_t*>(&scale), 0, 0};
            source.zeros = {&zero, 0, 0};
        }
        executor.set_weight(index++, source);
    }
    const std::vector<float> angles = random_floats(random, kMaxPositions * kHeadDim / 2, 1);
    executor.set_rope_frequencies(0, std::span(angles).first(kHeadDim / 2));
    executor.set_rope(0, angles.data(), angles.data(), kMaxPositions, kHeadDim / 2);
}

ExecutorOptions options(const std::string& kernels, int threads = kThreads, KVType type = KVType::kF16) {
    return {kPages, kMaxTokens, kMaxPositions, threads, type, kernels};
}

// Two sequences in one step.
struct LittleBatch {
    std::vector<std::int32_t> ids, positions, starts, pages, page_starts, rows;
    LittleBatch() : starts{0, 33, 40}, pages{2, 0, 3, 1}, page_starts{0, 3, 4}, rows{32, 39, 5} {
        for (std::int32_t t = 0; t < 40; ++t) {
            ids.push_back(t * 7 % static_cast<std::int32_t>(kVocab));
            positions.push_back(t < 33 ? t : t - 33);
        }
    }
    BatchView view() const { return {ids, positions, starts, pages, page_starts, rows}; }
    std::vector<float> room() const { return std::vector<float>(rows.size() * kVocab); }
};

// An adapter of two of the weights, one of them in two pieces.
std::shared_ptr<const Adapter> little_adapter(const Executor& executor) {
    constexpr std::int64_t kRank = 5;
    std::mt19937 random(2);
    std::shared_ptr<Adapter> adapter = executor.make_adapter();
    const auto matrix = [&](std::int64_t rows, std::int64_t columns, const auto& give) {
        const std::vector<float> values = random_floats(random, static_cast<std::size_t>(rows * columns), 0.3F);
        SourceTensor source;
        source.rows = rows;
        source.columns = columns;
        source.data = {reinterpret_cast<const std::uint8_t*>(values.data()), columns * 4, 4};
        give(source);
    };
    for (const std::int64_t weight : {2, 7}) {
        const Program::WeightShape& shape = executor.program().weights[static_cast<std::size_t>(weight)];
        matrix(2 * kRank, shape.columns, [&](const SourceTensor& a) { adapter->set_a(weight, a); });
        for (std::int64_t piece = 0; piece < 2; ++piece) {
            const std::int64_t rows = piece == 0 ? shape.rows - 3 : 3, first = piece * (shape.rows - 3);
            matrix(rows, kRank,
                   [&](const SourceTensor& b) { adapter->add_piece(weight, first, piece * kRank, 0.5F, b); });
        }
    }
    return adapter;
}

// The same batch, whose second sequence has an adapter.
struct AdaptedBatch : LittleBatch {
    std::vector<std::shared_ptr<const Adapter>> adapters;
    std::vector<std::int32_t> sequence_adapters{-1, 0};
    explicit AdaptedBatch(const Executor& executor) : adapters{little_adapter(executor)} {}
    BatchView view() const {
        BatchView view = LittleBatch::view();
        view.adapters = adapters;
        view.sequence_adapters = sequence_adapters;
        return view;
    }
};

void check_adapter(Executor& executor, const std::vector<float>& plain, std::vector<float>& expected) {
    AdaptedBatch batch(executor);
    std::vector<float> logits = batch.room();
    expect(executor.run(batch.view(), logits.data()), "a run with an adapter ends");
    if (expected.empty()) expected = logits;
    expect(logits == expected, "the same bits with an adapter on every number of threads");
    for (std::size_t row = 0; row < 3; ++row) {
        const auto begin = static_cast<std::ptrdiff_t>(row * kVocab);
        const bool same = std::equal(logits.begin() + begin, logits.begin() + begin + kVocab, plain.begin() + begin);
        expect(same == (row != 1), "an adapter changes the rows of its sequence");
    }
    batch.sequence_adapters[0] = 1;
    expect_throw<std::invalid_argument>("no such adapter", [&] { executor.run(batch.view(), logits.data()); });
    batch.sequence_adapters = {0};
    expect_throw<std::invalid_argument>("adapters missing", [&] { executor.run(batch.view(), logits.data()); });
    batch.sequence_adapters = {0, 0};
    batch.adapters[0] = nullptr;
    expect_throw<std::invalid_argument>("a closed adapter", [&] { executor.run(batch.view(), logits.data()); });
}

void check_executor(const std::string& kernels) {
    const LittleBatch batch;
    for (const KVType type : {KVType::kF32, KVType::kF16, KVType::kBF16, KVType::kInt8, KVType::kInt16}) {
        std::vector<float> expected, adapted;
        for (int threads = 1; threads <= kThreads; ++threads) {
            Executor executor(little_program(), options(kernels, threads, type));
            fill(executor, type == KVType::kInt8 ? Format::kInt4 : Format::kF32);
            std::vector<float> logits = batch.room();
            expect(executor.run(batch.view(), logits.data()), "a run ends");
            if (expected.empty()) expected = logits;
            expect(logits == expected, "the same bits on every number of threads");
            check_adapter(executor, expected, adapted);
            LittleBatch bad;
            bad.ids[3] = kVocab;
            expect_throw<std::invalid_argument>("a bad batch", [&] { executor.run(bad.view(), logits.data()); });
            executor.close();
            expect_throw<std::runtime_error>("closed", [&] { executor.run(batch.view(), logits.data()); });
        }
    }
}

// Callers that run, cancel, look, and try to run or close at the wrong moment, for a while; then the last close. The
// third caller has an executor of its own on the same threads, and makes another one now and then.
void race_executor(const std::string& kernels, double seconds) {
    const LittleBatch batch;
    Executor executor(little_program(), options(kernels));
    fill(executor, Format::kInt4);
    std::vector<float> expected = batch.room();
    executor.run(batch.view(), expected.data());
    std::vector<float> adapted = batch.room();
    executor.run(AdaptedBatch(executor).view(), adapted.data());
    auto other = std::make_unique<Executor>(little_program(), options(kernels), executor.pool());
    fill(*other, Format::kInt4);
    std::atomic<bool> stop{false};
    std::atomic<int> finished{0}, cancelled{0}, refused{0};
    std::vector<std::thread> callers;
    for (int i = 0; i < 2; ++i) {
        callers.emplace_back([&, i] {
            std::vector<float> logits = batch.room();
            while (!stop) {
                try {
                    // The second caller packs an adapter each time, also while the first one runs.
                    const std::unique_ptr<AdaptedBatch> own =
                        i == 1 ? std::make_unique<AdaptedBatch>(executor) : nullptr;
                    if (executor.run(own ? own->view() : batch.view(), logits.data())) {
                        expect(logits == (own ? adapted : expected), "a run beside cancels");
                        ++finished;
                    } else {
                        ++cancelled;
                    }
                } catch (const std::runtime_error&) {
                    ++refused;
                }
            }
        });
    }
    std::atomic<int> beside{0};
    callers.emplace_back([&] {
        std::vector<float> logits = batch.room();
        for (int i = 0; !stop; ++i) {
            try {
                if (i % 64 == 63) {
                    auto next = std::make_unique<Executor>(little_program(), options(kernels), other->pool());
                    fill(*next, Format::kInt4);
                    other = std::move(next);
                }
                expect(other->run(batch.view(), logits.data()) && logits == expected, "a run on shared threads");
                ++beside;
            } catch (const std::runtime_error&) {
                ++refused;
            }
        }
    });
    callers.emplace_back([&] {
        for (int i = 0; !stop; ++i) {
            executor.cancel();
            if (i % 3 == 0) executor.clear_cancel();
            std::this_thread::sleep_for(std::chrono::microseconds(i * 37 % 400));
        }
    });
    callers.emplace_back([&] {
        std::uint64_t last = 0;
        while (!stop) {
            const std::uint64_t now = executor.progress();
            expect(now >= last && executor.weight_bytes() + executor.kv_cache_bytes() < 1 << 30, "progress grows");
            last = now;
        }
    });
    std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
    // From now on it may close between two runs, or be refused.
    callers.emplace_back([&] {
        for (;;) {
            try {
                executor.close();
                return;
            } catch (const std::runtime_error&) {
                std::this_thread::yield();
            }
        }
    });
    stop = true;
    for (std::thread& caller : callers) caller.join();
    executor.close();
    std::vector<float> logits = batch.room();
    expect(other->run(batch.view(), logits.data()) && logits == expected,
           "the threads are there for the last executor");
    std::printf("  %s: %d runs finished, %d cancelled, %d refused, %d beside them\n", kernels.c_str(), finished.load(),
                cancelled.load(), refused.load(), beside.load());
    expect(finished > 0 && cancelled > 0, "runs finish and are cancelled");
}

void check_pool() {
    for (int round = 0; round < 40; ++round) {
        ThreadPool pool(1 + round % 6);
        for (int loop = 0; loop < 60; ++loop) {
            if (loop % 20 == 19) std::this_thread::sleep_for(std::chrono::milliseconds(1));  // the workers sleep
            std::atomic<std::int64_t> sum{0};
            const std::int64_t count = loop * 13;
            // Threads may still fetch it when it is gone.
            const std::vector<std::uint8_t> memory(static_cast<std::size_t>(loop % 3 * pool.size()) * 4096);
            pool.expect({memory.data(), loop % 3 * 4096, loop % 3 * 4096});
            pool.parallel_for(count, 3, [&](int thread, std::int64_t begin, std::int64_t end) {
                expect(thread >= 0 && thread < pool.size(), "the number of a thread");
                for (std::int64_t i = begin; i < end; ++i) sum += i;
            });
            expect(sum == count * (count - 1) / 2, "every piece once");
        }
        expect_throw<std::out_of_range>("an exception of a body", [&] {
            pool.parallel_for(100, 1, [](int, std::int64_t begin, std::int64_t) {
                if (begin == 57) throw std::out_of_range("57");
            });
        });
    }
}

// Each thread has a sampler and sequences of its own; all get the same tokens.
void check_sampler(const std::string& kernels) {
    std::vector<std::vector<std::int64_t>> drawn(3);
    std::vector<std::thread> threads;
    for (std::vector<std::int64_t>& tokens : drawn) {
        threads.emplace_back([&tokens, &kernels] {
            std::mt19937 random(5);
            for (const std::int64_t size : {1, 5, 64, 65, 700, 20'000}) {
                Sampler sampler(size, kernels);
                for (int round = 0; round < 40; ++round) {
                    // Exactly as large as it says, so that a read beyond its end is seen.
                    const std::vector<float> logits = random_floats(random, static_cast<std::size_t>(size), 3);
                    std::vector<std::int32_t> mask(static_cast<std::size_t>((size + 31) / 32), -1);
                    if (size > 5) mask[0] = static_cast<std::int32_t>(random());
                    SamplingParameters parameters;
                    parameters.temperature = round % 7 * 0.3;
                    parameters.top_p = round % 2 == 0 ? 1 : 0.9;
                    parameters.top_k = round % 3 == 0 ? 0 : round * 3;
                    parameters.min_p = round % 5 == 0 ? 0.05 : 0;
                    parameters.presence_penalty = round % 4 == 0 ? 0.5F : 0;
                    parameters.repetition_penalty = round % 4 == 0 ? 1.2F : 1;
                    parameters.logit_bias = {{0, 1.0F}, {size, 1.0F}};
                    parameters.seed = static_cast<std::uint64_t>(round);
                    SequenceSampler sequence(parameters);
                    sequence.note_prompt(std::vector<std::int64_t>{0, size - 1, size, 3});
                    sequence.note_generated(std::vector<std::int64_t>{0, 0, size + 9});
                    const SamplingResult result =
                        sampler.sample({logits, &sequence, 3, mask.data(), round % 4 * 5 - 1});
                    expect(result.status == SamplingResult::Status::kDrawn && result.id < size, "a token is drawn");
                    tokens.push_back(result.id);
                }
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    expect(drawn[0] == drawn[1] && drawn[1] == drawn[2], "the same tokens on every thread");
}

// The k-th failure of each kind, until none is left.
void check_faults() {
    const LittleBatch batch;
    for (const Fault fault : {Fault::kMapping, Fault::kThread, Fault::kPack, Fault::kOperation, Fault::kPiece}) {
        std::int64_t turn = 0;
        do {
            arm_fault(fault, ++turn);
            try {
                Executor executor(little_program(), options(""));
                fill(executor);
                std::vector<float> logits = batch.room();
                executor.run(batch.view(), logits.data());
                expect(!fault_fired(), "no fault is swallowed");
            } catch (const std::exception&) {
                expect(fault_fired(), "nothing but the fault fails");
            }
        } while (fault_fired());
        arm_fault(fault, 0);
        expect(turn > 3, "there are points to fail at");
    }
}

}  // namespace
}  // namespace windlass

int main(int argc, char** argv) {
    using namespace windlass;
    const double seconds = argc > 1 ? std::atof(argv[1]) : 1;
    check_pool();
    check_faults();
    for (const KernelTable* table : available_kernels()) {
        check_executor(table->name);
        check_sampler(table->name);
        race_executor(table->name, seconds);
    }
    std::puts("  nothing wrong");
    return 0;
}
