// Searches for tables, which come from a file in the cache, and texts that lead the encoder astray: for libFuzzer, see
// scripts/fuzz. An input says what to change in tables that are right, and then holds a text.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "tests/text_tables.h"
#include "text/bpe_encoder.h"

namespace windlass {
namespace {

// Takes numbers from the front of an input; zeros when it has ended.
class Input {
  public:
    Input(const std::uint8_t* data, std::size_t size) : at_(data), end_(data + size) {}

    template <typename Number>
    Number take() {
        Number value{};
        const std::size_t size = std::min(sizeof value, left());
        if (size > 0) std::memcpy(&value, at_, size);
        at_ += size;
        return value;
    }

    std::size_t left() const { return static_cast<std::size_t>(end_ - at_); }
    const std::uint8_t* rest() const { return at_; }

  private:
    const std::uint8_t* at_;
    const std::uint8_t* end_;
};

template <typename Number>
void change(std::vector<Number>& table, Input& input) {
    const auto how = input.take<std::uint8_t>();
    const auto at = input.take<std::uint16_t>();
    const auto value = static_cast<Number>(input.take<std::uint32_t>());
    if (how % 8 == 0) {
        table.resize(std::min<std::size_t>(at, table.size() + 64), value);
    } else if (!table.empty()) {
        table[at % table.size()] = value;
    }
}

// Makes a copy that is exactly as large as what it holds, so that a read beyond its end is seen.
template <typename Map>
void fit(Map& tables) {
    for (auto& [name, table] : tables) table = typename Map::mapped_type(table.begin(), table.end());
}

const Tables& right_tables() {
    static const Tables tables = [] {
        std::mt19937 generator(1);
        return make_tables(
            random_pairs([&](std::uint32_t end) { return static_cast<std::uint32_t>(generator() % end); }));
    }();
    return tables;
}

// Words of characters instead of bytes.
void use_characters(Tables& tables, std::uint32_t spaces) {
    tables.words["characters"] = {' ', 'a', 'b', 'c', 'z', 0xE0, 0x300, 0x1F98A};
    tables.words["character_ids"] = {' ', 'a', 'b', 'c', 'd', 500, 501, 502};
    tables.words["unknown"] = {0};
    tables.words["spaces"] = {spaces};
}

void try_input(Input input) {
    Tables tables = right_tables();
    const auto kind = input.take<std::uint8_t>();
    if (kind & 8) use_characters(tables, kind >> 5);
    if (kind & 16) tables.words["patterns"] = {};
    for (int changes = kind % 8; changes > 0; --changes) {
        const auto which = input.take<std::uint8_t>();
        const std::size_t count = tables.words.size() + tables.bytes.size() + 1;
        const std::size_t number = which % count;
        if (number < tables.words.size()) {
            change(std::next(tables.words.begin(), static_cast<std::ptrdiff_t>(number))->second, input);
        } else if (number < count - 1) {
            const auto offset = static_cast<std::ptrdiff_t>(number - tables.words.size());
            change(std::next(tables.bytes.begin(), offset)->second, input);
        } else {
            change(tables.compositions, input);
        }
    }
    fit(tables.words);
    fit(tables.bytes);
    const std::vector<char> text(input.rest(), input.rest() + input.left());
    try {
        const BpeEncoder encoder(tables.view());
        const std::vector<std::uint32_t> ids = encoder.encode({text.data(), text.size()});
        // Ids of the tables are below their number, which a change may have made another one.
        for (const std::uint32_t id : ids) {
            if (id > tables.words.at("pair_starts").size()) std::abort();
        }
        if (encoder.encode({text.data(), text.size()}) != ids) std::abort();
    } catch (const std::invalid_argument&) {
    }
}

}  // namespace
}  // namespace windlass

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    windlass::try_input({data, size});
    return 0;
}
