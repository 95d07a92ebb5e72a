#include "runtime/faults.h"

#include <atomic>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <system_error>

namespace windlass {
namespace {

std::atomic<Fault> armed{Fault::kMapping};
std::atomic<std::int64_t> turns_left{0};
std::atomic<bool> fired{false};
thread_local bool in_scope = false;

}  // namespace

void fault_point(Fault fault) {
    if (turns_left.load() <= 0 || armed.load() != fault || turns_left.fetch_sub(1) != 1) return;
    fired.store(true);
    switch (fault) {
        case Fault::kMapping:
        case Fault::kAllocation:
            throw std::bad_alloc();
        case Fault::kThread:
            throw std::system_error(std::make_error_code(std::errc::resource_unavailable_try_again));
        case Fault::kPack:
        case Fault::kOperation:
        case Fault::kPiece:
            throw std::runtime_error("a fault was injected");
    }
}

void arm_fault(Fault fault, std::int64_t turn) {
    turns_left.store(0);
    armed.store(fault);
    fired.store(false);
    turns_left.store(turn);
}

bool fault_fired() { return fired.load(); }

FaultScope::FaultScope() : outer_(in_scope) { in_scope = true; }
FaultScope::~FaultScope() { in_scope = outer_; }

}  // namespace windlass

// The sanitizers have an operator new of their own, whose blocks must not meet our delete.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

void* operator new(std::size_t size) {
    if (windlass::in_scope) windlass::fault_point(windlass::Fault::kAllocation);
    void* const block = std::malloc(size > 0 ? size : 1);
    if (block == nullptr) throw std::bad_alloc();
    return block;
}
void operator delete(void* block) noexcept { std::free(block); }
void operator delete(void* block, std::size_t) noexcept { std::free(block); }

#endif
