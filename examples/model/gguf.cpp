// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "gguf.hpp"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace lm {
namespace {

static_assert(std::endian::native == std::endian::little, "the file's numbers are little-endian");

enum class value_type : std::uint32_t {
    u8,
    i8,
    u16,
    i16,
    u32,
    i32,
    f32,
    boolean,
    text,
    array,
    u64,
    i64,
    f64
};

// ggml's numbers of the formats.
std::optional<weight_format> format_of(std::uint32_t type) {
    switch (type) {
    case 0:
        return weight_format::f32;
    case 1:
        return weight_format::f16;
    case 2:
        return weight_format::q4_0;
    case 3:
        return weight_format::q4_1;
    case 8:
        return weight_format::q8_0;
    default:
        return {};
    }
}

} // namespace

// The bytes from the front, each read checked.
class gguf::reader {
  public:
    explicit reader(const gguf& file) : file_(file), bytes_(file.bytes_) {}

    [[nodiscard]] std::size_t position() const { return position_; }
    [[nodiscard]] std::size_t remaining() const { return bytes_.size() - position_; }

    template <class T>
    T number() {
        T read;
        std::memcpy(&read, take(sizeof(T)), sizeof(T));
        return read;
    }
    std::string_view text() {
        const auto length = number<std::uint64_t>();
        return {reinterpret_cast<const char*>(take(length)), static_cast<std::size_t>(length)};
    }
    // How many things of at least `least_bytes` follow.
    std::size_t count(std::size_t least_bytes, const char* what) {
        const auto things = number<std::uint64_t>();
        if (things > remaining() / least_bytes) { file_.fail(std::string("ends within its ") + what); }
        return static_cast<std::size_t>(things);
    }
    value any() { return any(static_cast<value_type>(number<std::uint32_t>())); }

  private:
    const std::byte* take(std::uint64_t size) {
        if (size > remaining()) { file_.fail("ends within its header"); }
        const std::byte* const from = bytes_.data() + position_;
        position_ += static_cast<std::size_t>(size);
        return from;
    }

    std::int64_t integer(value_type type) {
        switch (type) {
        case value_type::u8:
            return number<std::uint8_t>();
        case value_type::i8:
            return number<std::int8_t>();
        case value_type::u16:
            return number<std::uint16_t>();
        case value_type::i16:
            return number<std::int16_t>();
        case value_type::u32:
            return number<std::uint32_t>();
        case value_type::i32:
            return number<std::int32_t>();
        case value_type::boolean:
            return number<std::uint8_t>() != 0 ? 1 : 0;
        case value_type::i64:
            return number<std::int64_t>();
        case value_type::u64: {
            const auto large = number<std::uint64_t>();
            constexpr auto most = std::numeric_limits<std::int64_t>::max();
            return large > static_cast<std::uint64_t>(most) ? most : static_cast<std::int64_t>(large);
        }
        default:
            file_.fail("has a value of an unknown type " + std::to_string(static_cast<int>(type)));
        }
    }
    double floating(value_type type) {
        return type == value_type::f32 ? static_cast<double>(number<float>()) : number<double>();
    }

    value any(value_type type) {
        switch (type) {
        case value_type::f32:
        case value_type::f64:
            return floating(type);
        case value_type::boolean:
            return integer(type) != 0;
        case value_type::text:
            return text();
        case value_type::array:
            return array(static_cast<value_type>(number<std::uint32_t>()));
        default:
            return integer(type);
        }
    }
    value array(value_type type) {
        switch (type) {
        case value_type::text:
            return list<std::string_view>(8, [&] { return text(); });
        case value_type::f32:
            return list<double>(4, [&] { return floating(type); });
        case value_type::f64:
            return list<double>(8, [&] { return floating(type); });
        case value_type::array:
            file_.fail("has an array of arrays, which no LLaMA model needs");
        default:
            return list<std::int64_t>(1, [&] { return integer(type); });
        }
    }
    template <class T, class Read>
    std::vector<T> list(std::size_t least_bytes, Read&& read) {
        std::vector<T> values(count(least_bytes, "arrays"));
        for (T& v : values) { v = read(); }
        return values;
    }

    const gguf& file_;
    std::span<const std::byte> bytes_;
    std::size_t position_ = 0;
};

gguf::gguf(const std::filesystem::path& file) : gguf(file.string(), std::make_shared<mapped_file>(file)) {}

gguf::gguf(std::string name, const std::shared_ptr<const mapped_file>& file)
    : gguf(std::move(name), file->bytes(), file) {}

gguf::gguf(std::string name, std::span<const std::byte> bytes, std::shared_ptr<const void> owner)
    : name_(std::move(name)), bytes_(bytes), owner_(std::move(owner)) {
    reader in(*this);
    if (in.remaining() < 4 || in.number<std::uint32_t>() != 0x46554747u) { fail("is no GGUF file"); }
    const auto version = in.number<std::uint32_t>();
    if (version != 2 && version != 3) {
        fail("is GGUF of version " + std::to_string(version) + ", not 2 or 3 (or of a big-endian machine)");
    }
    const std::size_t tensors = in.count(24, "tensors");
    const std::size_t pairs = in.count(13, "metadata");
    for (std::size_t i = 0; i < pairs; ++i) {
        const std::string key(in.text());
        if (!values_.emplace(key, in.any()).second) { fail("has two values of " + key); }
    }
    for (std::size_t i = 0; i < tensors; ++i) {
        const std::string tensor(in.text());
        entry e;
        const auto dimensions = in.number<std::uint32_t>();
        if (dimensions < 1 || dimensions > 4) { fail("tensor " + tensor + " has no 1 to 4 dimensions"); }
        for (std::uint32_t d = 0; d < dimensions; ++d) { e.extents.push_back(in.number<std::uint64_t>()); }
        e.type = in.number<std::uint32_t>();
        e.offset = in.number<std::uint64_t>();
        if (!tensors_.emplace(tensor, std::move(e)).second) { fail("has two tensors " + tensor); }
    }
    const std::int64_t alignment = integer("general.alignment", 1, 1 << 20, 32);
    if (!std::has_single_bit(static_cast<std::uint64_t>(alignment)) || alignment % 8 != 0) {
        fail("general.alignment is no power of two from 8 on");
    }
    const auto step = static_cast<std::size_t>(alignment);
    data_begin_ = (in.position() + step - 1) / step * step;
    for (const auto& [tensor, e] : tensors_) {
        if (e.offset % step != 0) { fail("tensor " + tensor + " is not aligned"); }
    }
}

template <class T>
const T* gguf::find(const std::string& key, const char* kind) const {
    const auto found = values_.find(key);
    if (found == values_.end()) { return nullptr; }
    const T* const v = std::get_if<T>(&found->second);
    if (v == nullptr) { fail(key + " is not " + kind); }
    return v;
}

std::int64_t gguf::integer(const std::string& key, std::int64_t least, std::int64_t most,
                           std::optional<std::int64_t> otherwise) const {
    const auto* const found = find<std::int64_t>(key, "a whole number");
    if (found == nullptr && !otherwise) { fail("has no " + key); }
    const std::int64_t v = found != nullptr ? *found : *otherwise;
    if (v < least || v > most) {
        fail(key + " is " + std::to_string(v) + ", not in [" + std::to_string(least) + ", " +
             std::to_string(most) + "]");
    }
    return v;
}

double gguf::number(const std::string& key, std::optional<double> otherwise) const {
    const auto* const found = find<double>(key, "a number");
    if (found == nullptr && !otherwise) { fail("has no " + key); }
    const double v = found != nullptr ? *found : *otherwise;
    if (!std::isfinite(v)) { fail(key + " is not finite"); }
    return v;
}

std::string_view gguf::text(const std::string& key, std::optional<std::string_view> otherwise) const {
    const auto* const found = find<std::string_view>(key, "a text");
    if (found == nullptr && !otherwise) { fail("has no " + key); }
    return found != nullptr ? *found : *otherwise;
}

const std::vector<std::string_view>& gguf::texts(const std::string& key) const {
    const auto* const found = find<std::vector<std::string_view>>(key, "a list of texts");
    if (found == nullptr) { fail("has no " + key); }
    return *found;
}

const std::vector<std::int64_t>& gguf::integers(const std::string& key) const {
    const auto* const found = find<std::vector<std::int64_t>>(key, "a list of whole numbers");
    if (found == nullptr) { fail("has no " + key); }
    return *found;
}

const gguf::entry& gguf::find_tensor(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) { fail("has no tensor " + name); }
    return found->second;
}

std::pair<index_t, index_t> gguf::matrix_shape(const std::string& name) const {
    const entry& e = find_tensor(name);
    constexpr std::uint64_t most = 1u << 30;
    if (e.extents.size() != 2 || e.extents[0] > most || e.extents[1] > most) {
        fail("tensor " + name + " is no matrix");
    }
    return {static_cast<index_t>(e.extents[1]), static_cast<index_t>(e.extents[0])};
}

weight gguf::tensor(const std::string& name, index_t rows, index_t columns) const {
    const entry& e = find_tensor(name);
    std::vector<std::uint64_t> shape{static_cast<std::uint64_t>(columns), static_cast<std::uint64_t>(rows)};
    for (std::size_t d = 0; d < std::max(shape.size(), e.extents.size()); ++d) {
        const auto extent_of = [d](const auto& extents) { return d < extents.size() ? extents[d] : 1; };
        if (extent_of(e.extents) != extent_of(shape)) { fail("tensor " + name + " has an unexpected shape"); }
    }
    const std::optional<weight_format> format = format_of(e.type);
    if (!format) {
        fail("tensor " + name + " has ggml's type " + std::to_string(e.type) +
             ", not one of F32, F16, Q4_0, Q4_1, Q8_0");
    }
    if (columns % block_elements(*format) != 0) {
        fail("tensor " + name + " has rows that are no whole blocks");
    }
    // Rows and columns are at most 2^30 each, so the product fits.
    const auto bytes = static_cast<std::uint64_t>(rows * row_bytes(*format, columns));
    const std::uint64_t file_bytes = bytes_.size();
    if (data_begin_ > file_bytes || e.offset > file_bytes - data_begin_ ||
        bytes > file_bytes - data_begin_ - e.offset) {
        fail("tensor " + name + " lies outside the file");
    }
    return {*format, rows, columns, bytes_.data() + data_begin_ + e.offset, owner_};
}

void gguf::fail(const std::string& what) const {
    throw std::runtime_error(name_ + ": " + what);
}

} // namespace lm
