// Bringing a mapped file into memory before it is needed.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>

namespace windlass {

// Reads a range of memory, page by page, on a thread of its own. Borrows the range. The destructor stops the thread and
// waits for it: no longer than the disk takes for two megabytes.
class Prefault {
  public:
    // Never throws: without the thread the pages come when they are used.
    Prefault(const std::uint8_t* data, std::size_t size);
    ~Prefault();
    Prefault(const Prefault&) = delete;
    Prefault& operator=(const Prefault&) = delete;

  private:
    void work(const std::uint8_t* data, std::size_t size);

    std::atomic<bool> stopping_{false};
    std::thread thread_;
};

}  // namespace windlass
