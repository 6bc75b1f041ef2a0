// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "mapped_memory.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <new>
#include <stdexcept>
#include <utility>

namespace lm {
namespace {

std::size_t page_size() {
    static const auto size = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    return size;
}

// The mapping that holds `size` bytes. Requires size <= the largest size minus a page.
std::size_t whole_pages(std::size_t size) {
    return (size + page_size() - 1) / page_size() * page_size();
}

std::byte* map_pages(std::size_t size) {
    if (size == 0) { return nullptr; }
    if (size > SIZE_MAX - page_size()) { throw std::bad_alloc(); }
    void* const pages =
        mmap(nullptr, whole_pages(size), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) { throw std::bad_alloc(); }
    return static_cast<std::byte*>(pages);
}

} // namespace

mapped_file::mapped_file(const std::filesystem::path& file) {
    const auto fail = [&](const char* what) { throw std::runtime_error(file.string() + ": " + what); };
    const int descriptor = open(file.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) { fail("cannot be opened"); }
    struct stat about = {};
    const bool is_file = fstat(descriptor, &about) == 0 && S_ISREG(about.st_mode);
    void* pages = nullptr;
    if (is_file && about.st_size > 0) {
        size_ = static_cast<std::size_t>(about.st_size);
        pages = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor, 0);
    }
    close(descriptor);
    if (!is_file || pages == MAP_FAILED) { fail("cannot be read"); }
    data_ = static_cast<const std::byte*>(pages);
}

mapped_file::~mapped_file() {
    if (data_ != nullptr) { munmap(const_cast<std::byte*>(data_), size_); }
}

page_memory::page_memory(page_memory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

page_memory& page_memory::operator=(page_memory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
}

page_memory::~page_memory() {
    if (data_ != nullptr) { munmap(data_, whole_pages(size_)); }
}

void page_memory::resize(std::size_t size) {
    if (size > 0 && size <= size_) {
        const std::size_t kept = whole_pages(size), held = whole_pages(size_);
        if (kept < held) { munmap(data_ + kept, held - kept); }
        size_ = size;
        return;
    }
    page_memory next;
    next.data_ = map_pages(size);
    next.size_ = size;
    if (size > 0 && size_ > 0) { std::memcpy(next.data_, data_, std::min(size, size_)); }
    *this = std::move(next);
}

std::size_t resident_bytes() {
    std::ifstream statm("/proc/self/statm");
    std::size_t all = 0, resident = 0;
    return statm >> all >> resident ? resident * page_size() : 0;
}

} // namespace lm
