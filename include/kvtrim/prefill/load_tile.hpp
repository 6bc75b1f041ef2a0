// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Rows of a cache as the elements that a tile of attention wants: floats of any view, or bf16 of one that holds bf16.
//
//   tile [count, row length]

#include <kvtrim/kernels/rows.hpp>

#include <algorithm>

namespace kvtrim::detail {

template <class View>
void load_tile(const View& view, index_t head, index_t first, index_t count, float* tile) {
    kernels::load_rows(view, head, first, count, tile);
}

// The rows as they are.
template <class View>
void load_tile(const View& view, index_t head, index_t first, index_t count, bf16* tile) {
    static_assert(is_memory_of<View, bf16>());
    const index_t length = extent(view, 2);
    if (length == 0) { return; }
    for (index_t t = 0; t < count; ++t, tile += length) {
        if (view.stride(2) == 1) {
            std::copy_n(&view(head, first + t, index_t{0}), length, tile);
        } else {
            for (index_t d = 0; d < length; ++d) { tile[d] = view(head, first + t, d); }
        }
    }
}

} // namespace kvtrim::detail
