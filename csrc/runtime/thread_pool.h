// Threads that share the loops of executors.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace windlass {

// size() - 1 workers and the thread that calls parallel_for. Workers spin for a moment after a loop and then sleep.
// Owns its threads: the destructor joins them. parallel_for is called by one thread at a time; where more than one may
// want to, the one that has acquired the pool.
//
// A loop waits only for workers that took part in it: one that is asleep, or that the system does not run, never holds
// up the caller.
class ThreadPool {
  public:
    // Throws std::system_error when a thread cannot be started; then none is left.
    explicit ThreadPool(int size);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    // False when somebody has it. Who was told true releases it.
    bool try_acquire() { return !acquired_.exchange(true); }
    void release() { acquired_.store(false); }

    int size() const { return static_cast<int>(workers_.size()) + 1; }

    // Memory that a later loop will read: each thread begins it at a place of its own.
    struct Ahead {
        const std::uint8_t* begin = nullptr;  // of thread 0
        std::int64_t stride = 0;              // from thread to thread
        std::int64_t bytes = 0;               // of each
    };
    // While they wait, threads fetch their parts into the processor's caches. The memory may be gone by then. Called
    // by the thread that calls parallel_for.
    void expect(const Ahead& ahead);

    // Calls body(thread, begin, end) for pieces of 0 .. count, each at most `grain` long, 0 <= thread < size(). Pieces
    // are handed out one by one. The first exception of a body is thrown here, after the loop has stopped.
    template <typename Body>
    void parallel_for(std::int64_t count, std::int64_t grain, Body&& body) {
        using Plain = std::remove_reference_t<Body>;
        Loop loop;
        loop.call = [](void* context, int thread, std::int64_t begin, std::int64_t end) {
            (*static_cast<Plain*>(context))(thread, begin, end);
        };
        loop.context = const_cast<std::remove_const_t<Plain>*>(&body);
        loop.count = count;
        loop.grain = grain > 0 ? grain : 1;
        run(loop);
    }

  private:
    struct Loop {
        void (*call)(void* context, int thread, std::int64_t begin, std::int64_t end) = nullptr;
        void* context = nullptr;
        std::int64_t count = 0;
        std::int64_t grain = 1;
        std::atomic<std::int64_t> next{0};
        std::atomic<bool> failed{false};
        std::exception_ptr error;  // written by the thread that set `failed`, read after the loop
    };

    void run(Loop& loop);
    void take_pieces(Loop& loop, int thread);
    void work(int thread);
    // What a thread has fetched of the memory that is expected.
    struct Fetched {
        const std::uint8_t* begin = nullptr;
        std::int64_t bytes = 0;
    };
    void fetch_or_pause(int thread, Fetched& fetched);
    std::uint64_t wait_for_loop(std::uint64_t seen, int thread, Fetched& fetched);
    void stop();

    // The number of the current loop (upper half), whether it may be joined, and how many workers are in it.
    static constexpr std::uint64_t kOpen = std::uint64_t{1} << 31;
    static constexpr std::uint64_t kActive = kOpen - 1;
    alignas(64) std::atomic<std::uint64_t> state_{0};
    Loop* loop_ = nullptr;  // published by state_
    std::atomic<bool> stopping_{false};
    std::atomic<bool> acquired_{false};

    // Read while it is written: what does not belong together is fetched for nothing.
    alignas(64) std::atomic<const std::uint8_t*> ahead_begin_{nullptr};
    std::atomic<std::int64_t> ahead_stride_{0};
    std::atomic<std::int64_t> ahead_bytes_{0};
    Fetched fetched_;  // by the caller of parallel_for

    alignas(64) std::atomic<int> sleepers_{0};
    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<std::thread> workers_;
};

}  // namespace windlass
