// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Rows of elements where they lie in memory, at even distances.

#include <kvtrim/core/status.hpp>

namespace KVTRIM_NAMESPACE {

/// Rows of one head in memory: row t starts at data + t * stride, its elements follow each other.
template <class Element>
struct element_rows {
    const Element* data = nullptr; ///< null: the rows do not lie like this
    index_t stride = 0;            ///< elements from row to row

    /// The first element of row t.
    [[nodiscard]] const Element* row(index_t t) const { return data + t * stride; }
    /// The rows from t on.
    [[nodiscard]] element_rows from(index_t t) const { return {row(t), stride}; }
};
/// Rows of floats.
using float_rows = element_rows<float>;

} // namespace KVTRIM_NAMESPACE
