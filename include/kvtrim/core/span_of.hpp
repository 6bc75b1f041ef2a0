// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The elements of a vector as a span.
//
// span's own constructor for containers asks the concepts of ranges: 30 ms of compilation for every element type.

#include <kvtrim/core/region.hpp>

#include <span>
#include <vector>

namespace KVTRIM_NAMESPACE {

/// All elements, to be read.
template <class T>
[[nodiscard]] constexpr std::span<const T> span_of(const std::vector<T>& list) {
    return {list.data(), list.size()};
}
/// All elements, to be read and written.
template <class T>
[[nodiscard]] constexpr std::span<T> span_of(std::vector<T>& list) {
    return {list.data(), list.size()};
}

} // namespace KVTRIM_NAMESPACE
