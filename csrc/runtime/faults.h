// Places where tests make the native core fail. In a build without WINDLASS_TESTING they are nothing.
#pragma once

#if defined(WINDLASS_TESTING)
#include <cstdint>
#endif

namespace windlass {

enum class Fault {
    kMapping,     // memory from the operating system
    kAllocation,  // memory from the heap, while a FaultScope of the thread lives
    kThread,      // the start of a thread
    kPack,        // the packing of a weight
    kOperation,   // an operation of a step
    kPiece,       // a piece of an operation, on whichever thread it is done
};

#if defined(WINDLASS_TESTING)

// Throws what its place throws when it fails, when that was armed and it is its turn.
void fault_point(Fault fault);

// From now on the `turn`-th point of this kind fails, once; a turn of 0 disarms.
void arm_fault(Fault fault, std::int64_t turn);
bool fault_fired();

// While one lives, heap allocations of its thread count.
class FaultScope {
  public:
    FaultScope();
    ~FaultScope();
    FaultScope(const FaultScope&) = delete;
    FaultScope& operator=(const FaultScope&) = delete;

  private:
    bool outer_;
};

#else

inline void fault_point(Fault) {}
class FaultScope {
  public:
    FaultScope() {}  // not trivial, so that nobody is warned of an unused variable
};

#endif

}  // namespace windlass
