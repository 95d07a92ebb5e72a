#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "bindings/bindings.h"
#include "runtime/faults.h"
#include "text/bpe_encoder.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace windlass {
namespace {

template <typename T>
using Numbers = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// An encoder, and the arrays that it borrows.
class OwningEncoder {
  public:
    OwningEncoder(const nb::dict& arrays, bool normalizes) {
        BpeTables tables;
        take(arrays, "letters", tables.letters);
        take(arrays, "characters", tables.characters);
        take(arrays, "character_ids", tables.character_ids);
        take(arrays, "unknown", tables.unknown);
        take(arrays, "spaces", tables.spaces);
        take(arrays, "pair_starts", tables.pair_starts);
        take(arrays, "pair_rights", tables.pair_rights);
        take(arrays, "pair_ranks", tables.pair_ranks);
        take(arrays, "pair_joined", tables.pair_joined);
        take(arrays, "entry_starts", tables.entry_starts);
        take(arrays, "entries", tables.entries);
        take(arrays, "whole_words", tables.whole_words);
        take(arrays, "blocks", tables.blocks);
        take(arrays, "kinds", tables.kinds);
        take(arrays, "sets", tables.sets);
        take(arrays, "combining", tables.combining);
        take(arrays, "normal", tables.normal);
        take(arrays, "decomposing", tables.decomposing);
        take(arrays, "part_starts", tables.part_starts);
        take(arrays, "parts", tables.parts);
        take(arrays, "compositions", tables.compositions);
        take(arrays, "composed", tables.composed);
        take(arrays, "steps", tables.steps);
        take(arrays, "alternatives", tables.alternatives);
        take(arrays, "patterns", tables.patterns);
        take(arrays, "added", tables.added);
        take(arrays, "added_starts", tables.added_starts);
        take(arrays, "added_ids", tables.added_ids);
        take(arrays, "added_normal", tables.added_normal);
        tables.normalizes = normalizes;
        encoder_ = std::make_unique<BpeEncoder>(tables);
    }

    const BpeEncoder& encoder() const { return *encoder_; }

  private:
    template <typename T>
    void take(const nb::dict& arrays, const char* name, std::span<const T>& out) {
        if (!arrays.contains(name)) throw std::invalid_argument(std::string("there is no table ") + name);
        const nb::object array = nb::borrow(arrays[name]);
        using Stored = std::conditional_t<std::is_same_v<T, char>, std::uint8_t, T>;
        Numbers<Stored> numbers;
        if (!nb::try_cast(array, numbers, false)) {
            throw std::invalid_argument(std::string("the table ") + name + " has the wrong type");
        }
        if (numbers.size() != 0 && reinterpret_cast<std::uintptr_t>(numbers.data()) % alignof(T) != 0) {
            throw std::invalid_argument(std::string("the table ") + name + " is not aligned");
        }
        out = {reinterpret_cast<const T*>(numbers.data()), numbers.shape(0)};
        kept_.push_back(nb::ndarray<nb::ro>(numbers));
    }

    std::vector<nb::ndarray<nb::ro>> kept_;
    std::unique_ptr<BpeEncoder> encoder_;
};

nb::list encode(const OwningEncoder& self, const nb::str& text) {
    Py_ssize_t size = 0;
    const char* const data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
    if (data == nullptr) {
        PyErr_Clear();
        throw nb::type_error("the text holds a lone surrogate");
    }
    std::vector<std::uint32_t> ids;
    {
        const FaultScope fallible;
        const nb::gil_scoped_release released;
        ids = self.encoder().encode({data, static_cast<std::size_t>(size)});
    }
    nb::list out;
    for (const std::uint32_t id : ids) out.append(id);
    return out;
}

}  // namespace

void bind_text(nb::module_& module) {
    nb::class_<OwningEncoder>(module, "BpeEncoder")
        .def(nb::init<const nb::dict&, bool>(), "tables"_a, nb::kw_only(), "normalizes"_a)
        .def("encode", &encode);
}

}  // namespace windlass
