// Memory straight from the operating system.
#pragma once

#include <cstddef>
#include <cstdint>

namespace windlass {

// An anonymous, zeroed, private mapping. Owns it: unmapped on destruction, so the memory is given back at once. Large
// ones are aligned to 2 MiB and ask for huge pages. Not synchronized.
class Mapping {
  public:
    Mapping() = default;
    // Throws std::bad_alloc. A size of 0 gives an empty mapping.
    explicit Mapping(std::size_t size);
    ~Mapping();
    Mapping(Mapping&& other) noexcept;
    Mapping& operator=(Mapping&& other) noexcept;
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;

    std::uint8_t* data() const { return data_; }
    float* floats() const { return reinterpret_cast<float*>(data_); }
    std::size_t size() const { return size_; }

  private:
    std::uint8_t* data_ = nullptr;
    std::size_t size_ = 0;
};

}  // namespace windlass
