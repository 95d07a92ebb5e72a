#include "runtime/thread_pool.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <cfenv>
#include <chrono>

#include "runtime/faults.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace windlass {
namespace {

// Longer than the serial stretches of a step, shorter than anyone notices.
constexpr std::chrono::microseconds kSpin{50};
constexpr int kSpinsPerLook = 32;
// Fetched between two looks for work: less than the processor has under way at a time.
constexpr std::int64_t kFetchBytes = 512;
constexpr std::int64_t kCacheLine = 64;

void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// Threads started while it lives have all signals blocked: signals are for the threads of the program.
class SignalsBlocked {
  public:
    SignalsBlocked() {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before_);
    }
    ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
    SignalsBlocked(const SignalsBlocked&) = delete;
    SignalsBlocked& operator=(const SignalsBlocked&) = delete;

  private:
    sigset_t before_;
};

}  // namespace

ThreadPool::ThreadPool(int size) {
    const SignalsBlocked blocked;
    workers_.reserve(static_cast<std::size_t>(std::max(size - 1, 0)));
    try {
        for (int thread = 1; thread < size; ++thread) {
            fault_point(Fault::kThread);
            workers_.emplace_back([this, thread] { work(thread); });
        }
    } catch (...) {
        stop();
        throw;
    }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
    {
        const std::lock_guard lock(mutex_);
        stopping_.store(true);
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
}

void ThreadPool::run(Loop& loop) {
    if (workers_.empty() || loop.count <= loop.grain) {
        if (loop.count > 0) take_pieces(loop, 0);
    } else {
        loop_ = &loop;
        const std::uint64_t number = (state_.load(std::memory_order_relaxed) >> 32) + 1;
        state_.store((number << 32) | kOpen);
        if (sleepers_.load() > 0) {
            {
                const std::lock_guard lock(mutex_);
            }
            wake_.notify_all();
        }
        take_pieces(loop, 0);
        state_.fetch_and(~kOpen, std::memory_order_acq_rel);
        for (int spins = 0; (state_.load(std::memory_order_acquire) & kActive) != 0; ++spins) {
            if (spins < 1000) {
                fetch_or_pause(0, fetched_);
            } else {
                std::this_thread::yield();
            }
        }
    }
    if (loop.error) std::rethrow_exception(loop.error);
}

void ThreadPool::take_pieces(Loop& loop, int thread) {
    for (;;) {
        const std::int64_t begin = loop.next.fetch_add(loop.grain, std::memory_order_relaxed);
        if (begin >= loop.count) return;
        try {
            loop.call(loop.context, thread, begin, std::min(begin + loop.grain, loop.count));
        } catch (...) {
            if (!loop.failed.exchange(true)) loop.error = std::current_exception();
            loop.next.store(loop.count, std::memory_order_relaxed);
            return;
        }
    }
}

void ThreadPool::expect(const Ahead& ahead) {
    ahead_begin_.store(ahead.begin, std::memory_order_relaxed);
    ahead_stride_.store(ahead.stride, std::memory_order_relaxed);
    ahead_bytes_.store(ahead.bytes, std::memory_order_relaxed);
}

void ThreadPool::fetch_or_pause(int thread, Fetched& fetched) {
    const std::uint8_t* const begin = ahead_begin_.load(std::memory_order_relaxed);
    if (begin != fetched.begin) fetched = {begin, 0};
    if (begin == nullptr || fetched.bytes >= ahead_bytes_.load(std::memory_order_relaxed)) return pause();
    const std::uint8_t* const from = begin + thread * ahead_stride_.load(std::memory_order_relaxed) + fetched.bytes;
    for (std::int64_t byte = 0; byte < kFetchBytes; byte += kCacheLine) __builtin_prefetch(from + byte, 0, 2);
    fetched.bytes += kFetchBytes;
}

// Returns the state in which a loop newer than `seen` is open, or any state once the pool is stopping.
std::uint64_t ThreadPool::wait_for_loop(std::uint64_t seen, int thread, Fetched& fetched) {
    const auto ready = [&](std::uint64_t state) {
        return ((state & kOpen) != 0 && (state >> 32) != seen) || stopping_.load(std::memory_order_relaxed);
    };
    const auto until = std::chrono::steady_clock::now() + kSpin;
    do {
        for (int i = 0; i < kSpinsPerLook; ++i) {
            const std::uint64_t state = state_.load(std::memory_order_acquire);
            if (ready(state)) return state;
            fetch_or_pause(thread, fetched);
        }
    } while (std::chrono::steady_clock::now() < until);
    std::unique_lock lock(mutex_);
    sleepers_.fetch_add(1);
    std::uint64_t state = 0;
    wake_.wait(lock, [&] { return ready(state = state_.load()); });
    sleepers_.fetch_sub(1);
    return state;
}

void ThreadPool::work(int thread) {
#if defined(__linux__)
    pthread_setname_np(pthread_self(), "windlass-worker");
#endif
    std::fesetenv(FE_DFL_ENV);
    std::uint64_t seen = 0;
    Fetched fetched;
    for (;;) {
        std::uint64_t state = wait_for_loop(seen, thread, fetched);
        if (stopping_.load()) return;
        // Join the loop, unless it was closed meanwhile.
        while ((state & kOpen) != 0 && (state >> 32) != seen &&
               !state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel)) {
        }
        if ((state & kOpen) == 0 || (state >> 32) == seen) continue;
        seen = state >> 32;
        take_pieces(*loop_, thread);
        state_.fetch_sub(1, std::memory_order_acq_rel);
    }
}

}  // namespace windlass
