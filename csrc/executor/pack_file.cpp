#include "executor/pack_file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "runtime/hash.h"

namespace windlass {
namespace {

constexpr std::array<char, 8> kMagic = {'W', 'L', 'P', 'A', 'C', 'K', '0', '3'};
constexpr std::int64_t kAlignment = 4096;
constexpr std::int64_t kMostBytes = std::int64_t{1} << 46;
constexpr std::int64_t kPiece = std::int64_t{kHugePage};

struct Prefix {
    std::array<char, 8> magic;
    std::uint64_t checksum;  // of the header from here on, its padding included
    std::uint64_t fingerprint;
    PackIdentity identity;
    std::int64_t file_bytes;
    std::int64_t num_weights;
};
static_assert(sizeof(Prefix) == 72);

constexpr std::size_t kChecked = sizeof(Prefix::magic) + sizeof(Prefix::checksum);

struct Entry {
    std::int32_t format;
    std::int32_t scale_type;
    std::int32_t is_vector;
    std::int32_t own_zeros;
    std::int32_t minima;
    std::int32_t ordered;
    std::int64_t rows;
    std::int64_t columns;
    std::int64_t group;
};
static_assert(sizeof(Entry) == 48);

std::int64_t whole_pages(std::int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

std::int64_t header_bytes(std::size_t num_weights) {
    return whole_pages(static_cast<std::int64_t>(sizeof(Prefix) + num_weights * sizeof(Entry)));
}

std::uint64_t checksum(const std::uint8_t* header, std::size_t size) {
    return hash_bytes(header + kChecked, size - kChecked, kHashStart);
}

// Where each weight begins, and as the last element where the file ends. Empty when that is out of all proportion.
std::vector<std::int64_t> place(const std::vector<WeightLayout>& layouts) {
    std::vector<std::int64_t> offsets;
    offsets.reserve(layouts.size() + 1);
    std::int64_t end = header_bytes(layouts.size());
    for (const WeightLayout& layout : layouts) {
        offsets.push_back(end);
        const std::int64_t bytes = layout.bytes();
        if (bytes < 1 || bytes > kMostBytes || end > kMostBytes) return {};
        end += whole_pages(bytes);
    }
    offsets.push_back(end);
    return offsets;
}

Entry entry_of(const WeightLayout& layout) {
    return {static_cast<std::int32_t>(layout.format),
            static_cast<std::int32_t>(layout.scale_type),
            layout.is_vector ? 1 : 0,
            layout.own_zeros ? 1 : 0,
            layout.minima ? 1 : 0,
            layout.ordered ? 1 : 0,
            layout.rows,
            layout.columns,
            layout.group};
}

WeightLayout layout_of(const Entry& entry) {
    WeightLayout layout;
    layout.format = static_cast<Format>(entry.format);
    layout.scale_type = static_cast<ScaleType>(entry.scale_type);
    layout.is_vector = entry.is_vector != 0;
    layout.own_zeros = entry.own_zeros != 0;
    layout.minima = entry.minima != 0;
    layout.ordered = entry.ordered != 0;
    layout.rows = entry.rows;
    layout.columns = entry.columns;
    layout.group = entry.group;
    return layout;
}

void write_all(int descriptor, const std::uint8_t* data, std::size_t size, std::int64_t offset) {
    while (size > 0) {
        const ssize_t written = pwrite(descriptor, data, size, offset);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) throw std::system_error(errno, std::generic_category());
        if (written == 0) throw std::system_error(ENOSPC, std::generic_category());
        data += written;
        size -= static_cast<std::size_t>(written);
        offset += written;
    }
}

bool read_all(int descriptor, std::uint8_t* data, std::size_t size) {
    for (std::int64_t offset = 0; size > 0;) {
        const ssize_t got = pread(descriptor, data, size, offset);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return false;
        data += got;
        size -= static_cast<std::size_t>(got);
        offset += got;
    }
    return true;
}

}  // namespace

PackFile::PackFile(const std::vector<Weight>& weights) : weights_(weights) {
    layouts_.reserve(weights.size());
    for (const Weight& weight : weights) layouts_.push_back(weight.layout());
    offsets_ = place(layouts_);
    if (offsets_.empty()) throw std::system_error(EFBIG, std::generic_category());
}

std::int64_t PackFile::num_pieces() const { return (offsets_.back() - 1) / kPiece + 1; }

void PackFile::write(int descriptor, std::int64_t piece) const {
    const std::int64_t begin = piece * kPiece;
    const std::int64_t end = std::min(begin + kPiece, offsets_.back());
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(end - begin));
    for (std::size_t i = 0; i < weights_.size(); ++i) {
        const std::int64_t from = std::max(begin, offsets_[i]);
        const std::int64_t to = std::min(end, offsets_[i] + static_cast<std::int64_t>(weights_[i].bytes()));
        if (from >= to) continue;
        std::memcpy(bytes.data() + (from - begin), weights_[i].data() + (from - offsets_[i]),
                    static_cast<std::size_t>(to - from));
    }
    write_all(descriptor, bytes.data(), bytes.size(), begin);
}

void PackFile::write_header(int descriptor, const PackIdentity& identity) const {
    std::vector<std::uint8_t> header(static_cast<std::size_t>(header_bytes(layouts_.size())));
    Prefix prefix = {
        kMagic, 0, packing_fingerprint(), identity, offsets_.back(), static_cast<std::int64_t>(layouts_.size())};
    for (std::size_t i = 0; i < layouts_.size(); ++i) {
        const Entry entry = entry_of(layouts_[i]);
        std::memcpy(header.data() + sizeof prefix + i * sizeof entry, &entry, sizeof entry);
    }
    std::memcpy(header.data(), &prefix, sizeof prefix);
    prefix.checksum = checksum(header.data(), header.size());
    std::memcpy(header.data(), &prefix, sizeof prefix);
    if (ftruncate(descriptor, offsets_.back()) != 0) throw std::system_error(errno, std::generic_category());
    write_all(descriptor, header.data(), header.size(), 0);
}

std::optional<MappedPack> PackFile::map(int descriptor, const std::vector<Program::WeightShape>& shapes,
                                        const PackIdentity& identity) {
    std::vector<std::uint8_t> header(static_cast<std::size_t>(header_bytes(shapes.size())));
    Prefix prefix;
    if (!read_all(descriptor, header.data(), header.size())) return std::nullopt;
    std::memcpy(&prefix, header.data(), sizeof prefix);
    if (prefix.magic != kMagic || prefix.checksum != checksum(header.data(), header.size()) ||
        prefix.identity != identity || prefix.num_weights != static_cast<std::int64_t>(shapes.size()) ||
        prefix.fingerprint != packing_fingerprint()) {
        return std::nullopt;
    }
    std::vector<WeightLayout> layouts;
    layouts.reserve(shapes.size());
    for (std::size_t i = 0; i < shapes.size(); ++i) {
        Entry entry;
        std::memcpy(&entry, header.data() + sizeof prefix + i * sizeof entry, sizeof entry);
        const WeightLayout layout = layout_of(entry);
        if (!layout.possible() || layout.rows != shapes[i].rows || layout.columns != shapes[i].columns ||
            layout.is_vector != shapes[i].is_vector) {
            return std::nullopt;
        }
        layouts.push_back(layout);
    }
    const std::vector<std::int64_t> offsets = place(layouts);
    struct stat status;
    if (offsets.empty() || offsets.back() != prefix.file_bytes || fstat(descriptor, &status) != 0 ||
        status.st_size != prefix.file_bytes) {
        return std::nullopt;
    }
    MappedPack pack;
    pack.memory = Mapping::of_file(descriptor, static_cast<std::size_t>(prefix.file_bytes));
    pack.weights.reserve(layouts.size());
    for (std::size_t i = 0; i < layouts.size(); ++i) {
        if (!layouts[i].order_fits(pack.memory.data() + offsets[i])) return std::nullopt;
        pack.weights.push_back(Weight::borrow(layouts[i], pack.memory.data() + offsets[i]));
    }
    return pack;
}

}  // namespace windlass
