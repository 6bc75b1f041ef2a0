// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Reads fp32 tensors and metadata from a .safetensors file.
//
// Layout: u64 little-endian header length, JSON header, raw data; data_offsets [begin, end) count
// from the first byte after the header. Whatever is wrong with a file is thrown as
// std::runtime_error, with the file's name in the text.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace lm {

class safetensors {
  public:
    // Reads the whole file.
    explicit safetensors(const std::filesystem::path& file);

    // The elements of a tensor in memory order; throws unless it is F32 and has this shape.
    [[nodiscard]] std::vector<float> tensor(const std::string& name,
                                            const std::vector<std::int64_t>& shape) const;

    // A number from __metadata__, where values are text.
    [[nodiscard]] double metadata_number(const std::string& name) const;

    // Throws std::runtime_error: the file's name and what is wrong with it.
    [[noreturn]] void fail(const std::string& what) const;

  private:
    struct entry {
        std::string dtype;
        std::vector<std::int64_t> shape;
        std::size_t begin = 0; // bytes in data_
        std::size_t end = 0;
    };

    void parse_header(const std::string& text);

    std::string file_;
    std::map<std::string, entry> entries_;
    std::map<std::string, std::string> metadata_;
    std::vector<char> data_;
};

} // namespace lm
