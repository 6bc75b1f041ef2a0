// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <system_error>

namespace lm {

// The bytes of a file. Throws std::runtime_error with its name if it cannot be read, as a folder cannot.
[[nodiscard]] inline std::string read_file(const std::filesystem::path& file) {
    std::error_code ignored;
    std::ifstream in(file, std::ios::binary);
    const bool is_open = in.is_open() && !std::filesystem::is_directory(file, ignored);
    std::string bytes;
    if (is_open) { bytes.assign((std::istreambuf_iterator<char>(in)), {}); }
    if (!is_open || in.bad()) { throw std::runtime_error(file.string() + ": cannot be read"); }
    return bytes;
}

} // namespace lm
