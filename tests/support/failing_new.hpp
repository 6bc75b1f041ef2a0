// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Replaces operator new by one that can be told to fail, for the whole program, also for libraries that it loads: included once, in
// a program of its own.

#include <cstdlib>
#include <new>

namespace {

long allowed = -1; // allocations that still succeed; below 0: all

} // namespace

void* operator new(std::size_t bytes) {
    if (allowed == 0) { throw std::bad_alloc(); }
    if (allowed > 0) { --allowed; }
    if (void* p = std::malloc(bytes)) { return p; }
    throw std::bad_alloc();
}
// Of temporary buffers. A sanitizer's own would not go with the operator delete below.
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
    try {
        return operator new(bytes);
    } catch (const std::bad_alloc&) { return nullptr; }
}
void operator delete(void* p) noexcept {
    std::free(p);
}
void operator delete(void* p, std::size_t) noexcept {
    std::free(p);
}
