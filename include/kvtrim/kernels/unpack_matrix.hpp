// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The inverse of what packs a matrix of bf16, for any order of its elements.

#include <kvtrim/core/element.hpp>
#include <kvtrim/core/status.hpp>

namespace KVTRIM_NAMESPACE::kernels {

/// projection_kernels::unpack_bf16, where element (row, column) of a packed matrix is at Index(inner, row, column).
template <auto Index>
void unpack_matrix(const bf16* packed, index_t first_row, index_t count, index_t inner, index_t columns,
                   float* rows) {
    for (index_t i = first_row; i < first_row + count; ++i) {
        for (index_t c = 0; c < columns; ++c) { *rows++ = to_float(packed[Index(inner, i, c)]); }
    }
}

} // namespace KVTRIM_NAMESPACE::kernels
