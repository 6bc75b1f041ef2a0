// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// base/row_source.hpp's load_rows and read_rows, with the vector path for contiguous f16, bf16 and fp8 rows. The same floats.

#include <kvtrim/base/row_source.hpp>
#include <kvtrim/kernels/narrow.hpp>
#include <kvtrim/kernels/widen.hpp>

#include <algorithm>

namespace kvtrim::kernels {

template <cache_view V>
void load_rows(const V& view, index_t head, index_t first, index_t count, float* tile) {
    if constexpr (!row_source<V> && strided_view<V, 3>) {
        using value = std::remove_cvref_t<decltype(*view.data_handle())>;
        if constexpr (is_widened<value>) {
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

// base/row_source.hpp's store_rows, with the vector path for contiguous elements. The same bits, but for those of a NaN.
template <row_store V>
void store_rows(const V& view, index_t head, index_t first, index_t count, const float* tile) {
    if constexpr (!row_source<V> && strided_view<V, 3>) {
        if (view.stride(2) == 1) {
            const index_t length = extent(view, 2);
            const auto row_stride = static_cast<index_t>(view.stride(1));
            auto* row = view.data_handle() + head * static_cast<index_t>(view.stride(0)) + first * row_stride;
            for (index_t t = 0; t < count; ++t) { narrow(tile + t * length, length, row + t * row_stride); }
            return;
        }
    }
    kvtrim::store_rows(view, head, first, count, tile);
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

// Rows of bf16 somewhere in memory; row t starts at t * stride.
struct bf16_rows {
    const bf16* data;
    index_t stride;
};

// A row_source that can hand out its rows as bf16 [count, row length], where has_bf16_rows() says so.
template <class V>
concept bf16_row_source = row_source<V> && requires(const V& v, index_t i, bf16* tile) {
    { v.has_bf16_rows() } -> std::convertible_to<bool>;
    v.load_bf16_rows(i, i, i, tile);
};

// Whether rows of bf16 can be had of a view: where they lie in memory, or by a copy.
template <cache_view V>
[[nodiscard]] bool has_bf16_rows(const V& view) {
    if constexpr (kvtrim::detail::is_memory_of<V, bf16>()) { return view.stride(2) == 1; }
    if constexpr (bf16_row_source<V>) { return view.has_bf16_rows(); }
    static_cast<void>(view);
    return false;
}

// Of memory, where they lie. Requires has_bf16_rows().
template <cache_view V>
[[nodiscard]] bf16_rows rows_of_bf16(const V& view, index_t head, index_t first) {
    static_assert(kvtrim::detail::is_memory_of<V, bf16>());
    const auto stride = static_cast<index_t>(view.stride(1));
    return {view.data_handle() + head * static_cast<index_t>(view.stride(0)) + first * stride, stride};
}

// Without a copy where that is possible, else through tile. Requires has_bf16_rows().
template <cache_view V>
[[nodiscard]] bf16_rows read_bf16_rows(const V& view, index_t head, index_t first, index_t count,
                                       bf16* tile) {
    if constexpr (bf16_row_source<V>) {
        view.load_bf16_rows(head, first, count, tile);
        return {tile, extent(view, 2)};
    } else {
        static_cast<void>(count);
        static_cast<void>(tile);
        return rows_of_bf16(view, head, first);
    }
}

// Copies rows [first, first + count) of a head into tile [count, row length]. Requires has_bf16_rows().
template <cache_view V>
void load_bf16_rows(const V& view, index_t head, index_t first, index_t count, bf16* tile) {
    if constexpr (bf16_row_source<V>) {
        view.load_bf16_rows(head, first, count, tile);
    } else {
        const bf16_rows rows = rows_of_bf16(view, head, first);
        const index_t length = extent(view, 2);
        for (index_t t = 0; t < count; ++t) {
            std::copy_n(rows.data + t * rows.stride, length, tile + t * length);
        }
    }
}

// Memory that will be read soon: brought near by who computes meanwhile.
struct soon_read {
    const void* data = nullptr;
    index_t bytes = 0;
};

// Prefetches such memory to the second level cache in so many even steps.
class even_prefetch {
  public:
    even_prefetch(const soon_read& next, index_t steps)
        : line_(static_cast<const char*>(next.data)), end_(line_ + next.bytes),
          step_bytes_((next.bytes / steps + line_bytes) / line_bytes * line_bytes) {}

    void step() {
        const char* const stop = line_ + std::min<index_t>(step_bytes_, end_ - line_);
        for (; line_ < stop; line_ += line_bytes) { __builtin_prefetch(line_, 0, 2); }
    }

  private:
    static constexpr index_t line_bytes = 64;
    const char* line_;
    const char* end_;
    index_t step_bytes_;
};

// Rows [first, first + count) of a head, as many as there are, where they lie one after the other; else nothing.
template <cache_view V>
[[nodiscard]] soon_read rows_in_memory(const V& view, index_t head, index_t first, index_t count) {
    if constexpr (!row_source<V> && strided_view<V, 3>) {
        const index_t length = extent(view, 2);
        const index_t rows = std::min(count, row_count(view, head) - first);
        if (view.stride(2) == 1 && static_cast<index_t>(view.stride(1)) == length && rows > 0) {
            const auto* data =
                view.data_handle() + head * static_cast<index_t>(view.stride(0)) + first * length;
            return {data, rows * length * static_cast<index_t>(sizeof(*data))};
        }
    }
    return {};
}

} // namespace kvtrim::kernels
