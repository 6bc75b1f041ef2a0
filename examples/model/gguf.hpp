// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Reads a GGUF file, version 2 or 3: key/value metadata and tensors, which stay where they are in the mapped file.
//
// Layout, all little-endian: "GGUF", u32 version, u64 tensors, u64 pairs; per pair a name, u32 type, value; per tensor a
// name, u32 dimensions, u64 extents (innermost first), u32 type, u64 offset; then, from the next multiple of
// general.alignment (32 unless said), the data that offsets count from. A string is u64 length and bytes; an array u32 type,
// u64 count and values.
//
// A file is not trusted: every count, length and offset is checked against the bytes that are there, and whatever is wrong
// is thrown as std::runtime_error, with the file's name in the text.

#include "mapped_memory.hpp"
#include "weight.hpp"

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace lm {

class gguf {
  public:
    explicit gguf(const std::filesystem::path& file);
    // Bytes in memory, which `owner` keeps alive; `name` is for errors.
    gguf(std::string name, std::span<const std::byte> bytes, std::shared_ptr<const void> owner);

    [[nodiscard]] bool has(const std::string& key) const { return values_.contains(key); }
    // A whole number in [least, most]; throws if it is missing (and has no default), none, or outside.
    [[nodiscard]] std::int64_t integer(const std::string& key, std::int64_t least, std::int64_t most,
                                       std::optional<std::int64_t> otherwise = {}) const;
    // A finite number.
    [[nodiscard]] double number(const std::string& key, std::optional<double> otherwise = {}) const;
    [[nodiscard]] std::string_view text(const std::string& key,
                                        std::optional<std::string_view> otherwise = {}) const;
    [[nodiscard]] const std::vector<std::string_view>& texts(const std::string& key) const;
    [[nodiscard]] const std::vector<std::int64_t>& integers(const std::string& key) const;

    [[nodiscard]] bool has_tensor(const std::string& name) const { return tensors_.contains(name); }
    // The extents of a tensor of two dimensions, [rows, columns]; throws if there is none.
    [[nodiscard]] std::pair<index_t, index_t> matrix_shape(const std::string& name) const;
    // A tensor [rows, columns] of one of the formats of weight.hpp, in place; one dimension may stand for one row.
    [[nodiscard]] weight tensor(const std::string& name, index_t rows, index_t columns) const;

    // Throws std::runtime_error: the file's name and what is wrong with it.
    [[noreturn]] void fail(const std::string& what) const;

  private:
    gguf(std::string name, const std::shared_ptr<const mapped_file>& file);

    using value = std::variant<std::monostate, std::int64_t, double, bool, std::string_view,
                               std::vector<std::int64_t>, std::vector<double>, std::vector<std::string_view>>;
    struct entry {
        std::uint32_t type = 0;
        std::vector<std::uint64_t> extents; // innermost first
        std::uint64_t offset = 0;           // in the data
    };
    class reader;

    template <class T>
    [[nodiscard]] const T* find(const std::string& key, const char* kind) const;
    [[nodiscard]] const entry& find_tensor(const std::string& name) const;

    std::string name_;
    std::span<const std::byte> bytes_;
    std::shared_ptr<const void> owner_;
    std::map<std::string, value, std::less<>> values_;
    std::map<std::string, entry, std::less<>> tensors_;
    std::size_t data_begin_ = 0;
};

} // namespace lm
