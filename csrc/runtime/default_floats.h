// The floating-point environment of numerical work.
#pragma once

#include <cfenv>

namespace windlass {

// Rounding and denormals as C++ defines them, whatever the calling thread has set: results must not depend on it.
class DefaultFloats {
  public:
    DefaultFloats() {
        std::fegetenv(&before_);
        std::fesetenv(FE_DFL_ENV);
    }
    ~DefaultFloats() { std::fesetenv(&before_); }
    DefaultFloats(const DefaultFloats&) = delete;
    DefaultFloats& operator=(const DefaultFloats&) = delete;

  private:
    std::fenv_t before_;
};

}  // namespace windlass
