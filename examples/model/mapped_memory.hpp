// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Memory by whole pages: a file that is read where it is touched, and an array whose end can be given back.

#include <cstddef>
#include <filesystem>
#include <span>

namespace lm {

// A file's bytes, read only. The file must not be made shorter meanwhile.
class mapped_file {
  public:
    // Throws std::runtime_error, with the file's name in the text, if it cannot be opened.
    explicit mapped_file(const std::filesystem::path& file);
    mapped_file(const mapped_file&) = delete;
    mapped_file& operator=(const mapped_file&) = delete;
    ~mapped_file();

    [[nodiscard]] std::span<const std::byte> bytes() const { return {data_, size_}; }

  private:
    const std::byte* data_ = nullptr;
    std::size_t size_ = 0;
};

// Bytes that start as zeros. Unlike a vector's, memory behind a smaller size is the system's again at once, so that the
// process's resident size shows what a cut has freed.
class page_memory {
  public:
    page_memory() = default;
    page_memory(page_memory&& other) noexcept;
    page_memory& operator=(page_memory&& other) noexcept;
    ~page_memory();

    [[nodiscard]] std::byte* data() { return data_; }
    [[nodiscard]] const std::byte* data() const { return data_; }
    [[nodiscard]] std::size_t size() const { return size_; }

    // What fits stays. Throws std::bad_alloc.
    void resize(std::size_t size);

  private:
    std::byte* data_ = nullptr;
    std::size_t size_ = 0;
};

// The process's memory in RAM, in bytes; 0 where the system does not say (no /proc/self/statm).
[[nodiscard]] std::size_t resident_bytes();

} // namespace lm
