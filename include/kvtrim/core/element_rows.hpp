// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Rows of elements where they lie in memory.

#include <kvtrim/core/status.hpp>

namespace kvtrim {

/// Rows of one head in memory: row t starts at data + t * stride, its elements follow each other.
template <class Element>
struct element_rows {
    const Element* data = nullptr;
    index_t stride = 0;

    [[nodiscard]] const Element* row(index_t t) const { return data + t * stride; }
    [[nodiscard]] element_rows from(index_t t) const { return {row(t), stride}; }
};
using float_rows = element_rows<float>;

} // namespace kvtrim
