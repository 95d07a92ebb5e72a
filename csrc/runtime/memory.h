// Memory straight from the operating system.
#pragma once

#include <cstddef>
#include <cstdint>

namespace windlass {

inline constexpr std::size_t kHugePage = std::size_t{2} << 20;

// A private mapping, anonymous and zeroed, or of a file. Owns it: unmapped on destruction, so the memory is given back
// at once. Large ones ask for huge pages, and anonymous ones are aligned to them. Not synchronized.
class Mapping {
  public:
    Mapping() = default;
    // Throws std::bad_alloc. A size of 0 gives an empty mapping.
    explicit Mapping(std::size_t size);
    // The first `size` bytes of a file, to be read only; the descriptor may be closed afterwards. Reading what somebody
    // has cut off the file meanwhile kills the process, so the file is one that nobody writes to in place.
    // Throws std::bad_alloc.
    static Mapping of_file(int descriptor, std::size_t size);
    ~Mapping();
    Mapping(Mapping&& other) noexcept;
    Mapping& operator=(Mapping&& other) noexcept;
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;

    std::uint8_t* data() const { return data_; }
    float* floats() const { return reinterpret_cast<float*>(data_); }
    std::size_t size() const { return size_; }

  private:
    void ask_for_huge_pages();

    std::uint8_t* data_ = nullptr;
    std::size_t size_ = 0;
};

}  // namespace windlass
