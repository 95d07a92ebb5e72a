#include "runtime/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <limits>
#include <new>
#include <utility>

#include "runtime/faults.h"

namespace windlass {
namespace {

std::uint8_t* map(std::size_t size) {
    fault_point(Fault::kMapping);
    void* at = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) throw std::bad_alloc();
    return static_cast<std::uint8_t*>(at);
}

}  // namespace

Mapping::Mapping(std::size_t size) {
    if (size == 0) return;
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    if (size > std::numeric_limits<std::size_t>::max() / 2) throw std::bad_alloc();
    size = (size + page - 1) / page * page;
    if (size < kHugePage) {
        data_ = map(size);
        size_ = size;
        return;
    }
    std::uint8_t* const begin = map(size + kHugePage);
    const std::size_t offset = (kHugePage - reinterpret_cast<std::uintptr_t>(begin) % kHugePage) % kHugePage;
    if (offset > 0) munmap(begin, offset);
    if (offset < kHugePage) munmap(begin + offset + size, kHugePage - offset);
    data_ = begin + offset;
    size_ = size;
    ask_for_huge_pages();
}

Mapping Mapping::of_file(int descriptor, std::size_t size) {
    fault_point(Fault::kMapping);
    void* at = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (at == MAP_FAILED) throw std::bad_alloc();
    Mapping mapping;
    mapping.data_ = static_cast<std::uint8_t*>(at);
    mapping.size_ = size;
    if (size >= kHugePage) mapping.ask_for_huge_pages();
    return mapping;
}

void Mapping::ask_for_huge_pages() {
#if defined(MADV_HUGEPAGE)
    madvise(data_, size_, MADV_HUGEPAGE);
#endif
}

Mapping::~Mapping() {
    if (data_ != nullptr) munmap(data_, size_);
}

Mapping::Mapping(Mapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
}

}  // namespace windlass
