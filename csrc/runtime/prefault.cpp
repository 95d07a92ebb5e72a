#include "runtime/prefault.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <system_error>

namespace windlass {
namespace {

// Little enough to notice `stopping_` soon also when the disk is slow.
constexpr std::size_t kStep = std::size_t{2} << 20;

}  // namespace

Prefault::Prefault(const std::uint8_t* data, std::size_t size) {
    try {
        thread_ = std::thread([this, data, size] { work(data, size); });
    } catch (const std::system_error&) {
    }
}

Prefault::~Prefault() {
    stopping_.store(true);
    if (thread_.joinable()) thread_.join();
}

void Prefault::work(const std::uint8_t* data, std::size_t size) {
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    for (std::size_t begin = 0; begin < size && !stopping_.load(std::memory_order_relaxed); begin += kStep) {
        const std::size_t length = std::min(kStep, size - begin);
#if defined(MADV_POPULATE_READ)
        if (madvise(const_cast<std::uint8_t*>(data + begin), length, MADV_POPULATE_READ) == 0) continue;
#endif
        for (std::size_t at = begin; at < begin + length; at += page) {
            static_cast<void>(*static_cast<const volatile std::uint8_t*>(data + at));
        }
    }
}

}  // namespace windlass
