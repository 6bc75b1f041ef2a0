// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// base/row_source.hpp's load_rows and read_rows, with the vector path for contiguous f16 and bf16 rows. The same floats.

#include <kvtrim/base/row_source.hpp>
#include <kvtrim/kernels/widen.hpp>

namespace kvtrim::kernels {

template <cache_view V>
void load_rows(const V& view, index_t head, index_t first, index_t count, float* tile) {
    if constexpr (!row_source<V> && strided_view<V, 3>) {
        using value = std::remove_cvref_t<decltype(*view.data_handle())>;
        if constexpr (std::is_same_v<value, f16> || std::is_same_v<value, bf16>) {
            if (view.stride(2) == 1) {
                const index_t length = extent(view, 2);
                const auto row_stride = static_cast<index_t>(view.stride(1));
                const auto* row =
                    view.data_handle() + head * static_cast<index_t>(view.stride(0)) + first * row_stride;
                if (row_stride == length) {
                    widen(row, count * length, tile);
                    return;
                }
                for (index_t t = 0; t < count; ++t) {
                    widen(row + t * row_stride, length, tile + t * length);
                }
                return;
            }
        }
    }
    kvtrim::load_rows(view, head, first, count, tile);
}

// The same rows without a copy where the source already holds them as contiguous floats, else through tile.
template <cache_view V>
[[nodiscard]] float_rows read_rows(const V& view, index_t head, index_t first, index_t count, float* tile) {
    float_rows rows = contiguous_rows(view, head, first);
    if (rows.data == nullptr) {
        kernels::load_rows(view, head, first, count, tile);
        rows = {tile, extent(view, 2)};
    }
    return rows;
}

} // namespace kvtrim::kernels
