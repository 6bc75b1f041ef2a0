// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Rows at strides of any element, and rows that a table finds in a pool: pages of all heads or of each, and heads one after the other,
// with or without room behind them. Where elements are f32, f16 or bf16, the library's own paged_rows and ragged read most of these.
//
// A pool is read through the strided view [pages, slots of a page, channels] of a head, made anew for each call: O(1), as dear as a
// few rows. RAGGED is a pool of one page.

#include <kvtrim_c.h>

#include <kvtrim/cache/ggml_tensor_rows.hpp>
#include <kvtrim/cache/page_table.hpp>
#include <kvtrim/cache/scaled_rows.hpp>
#include <kvtrim/core/fp8.hpp>

#include <variant>

namespace kvtrim::c {

struct element_row {
    int ggml_type;  // -1: 8-bit codes
    index_t bytes;  // of an element or a block
    index_t values; // of a block
};
/// In the order of KVTRIM_F32, ...
inline constexpr element_row elements[] = {
    {0, 4, 1},   {1, 2, 1},   {30, 2, 1},   {8, 34, 32}, {2, 18, 32}, {3, 20, 32},
    {6, 22, 32}, {7, 24, 32}, {20, 18, 32}, {-1, 1, 1},  {-1, 1, 1},  {-1, 1, 1},
};

template <class Code>
using scaled = scaled_rows<Code, float>;
/// Rows at strides.
using slots = std::variant<ggml_tensor_rows, scaled<std::int8_t>, scaled<f8_e4m3>, scaled<f8_e5m2>>;
/// Those of a STRIDED view, or of the slots of an INDEXED one. Not valid, and empty: what the typed view refuses.
[[nodiscard]] slots slots_of(const kvtrim_view& v);

/// Strides of bytes are whole units of a type, and data is aligned to it.
[[nodiscard]] bool whole_units(std::initializer_list<index_t> byte_strides, const void* data, index_t unit);

/// Rows in pages or ragged: a row source (cache/row_source.hpp).
class pooled_rows {
  public:
    /// Of a PAGED, PAGED_PER_HEAD or RAGGED view whose struct, element and heads were checked, and whose tables are null or as long
    /// as its counts say. Not valid, and empty: what tables, strides and scales of such a view cannot be. O(pages) or O(heads).
    explicit pooled_rows(const kvtrim_view& v);

    [[nodiscard]] status validate() const { return validity_; }
    [[nodiscard]] index_t extent(std::size_t r) const {
        return r == 0 ? v_.extents[0] : r == 1 ? longest_ : v_.extents[2];
    }
    [[nodiscard]] index_t rows(index_t head) const {
        if (is_ragged()) {
            return v_.lengths != nullptr ? v_.lengths[head] : v_.indptr[head + 1] - v_.indptr[head];
        }
        return table_.tokens(table_row(head), v_.page_tokens);
    }
    [[nodiscard]] index_t row_bytes() const;
    /// Of heads with rows of their own: where each begins.
    [[nodiscard]] std::span<const std::int32_t> offsets() const {
        if (is_ragged()) { return {v_.indptr, static_cast<std::size_t>(v_.extents[0] + 1)}; }
        return v_.layout == KVTRIM_PAGED_PER_HEAD ? table_.indptr : std::span<const std::int32_t>{};
    }

    void load_rows(index_t head, index_t first, index_t count, float* tile) const {
        for_each_run(head, first, count, [&](const auto& rows, index_t page, index_t slot, index_t run) {
            kvtrim::load_rows(rows, page, slot, run, tile);
            tile += run * v_.extents[2];
        });
    }
    [[nodiscard]] bool writes_rows() const;
    void store_rows(index_t head, index_t first, index_t count, const float* tile) const {
        for_each_run(head, first, count, [&](const auto& rows, index_t page, index_t slot, index_t run) {
            kvtrim::store_rows(rows, page, slot, run, tile);
            tile += run * v_.extents[2];
        });
    }
    /// The first channels of every row, or the blocks that hold them.
    [[nodiscard]] pooled_rows first_channels(index_t count) const;
    /// The pages that store_rows() may write.
    [[nodiscard]] std::span<const std::int32_t> written_places() const { return pages_; }
    /// The bytes of all slots: codes, and scales and zero points that are the tokens' own.
    [[nodiscard]] std::array<strided_bytes, 3> memory() const { return memory_of_pages(0, v_.pages, false); }
    [[nodiscard]] bool overlaps(const strided_bytes& other) const;
    [[nodiscard]] bool tables_overlap(const strided_bytes& other) const;
    /// Whether a head's rows are neighbours, so that survivors can move to its first ones.
    [[nodiscard]] bool moves_rows() const { return is_ragged(); }
    void move_row(index_t head, index_t from, index_t to) const;

  private:
    [[nodiscard]] bool is_ragged() const { return v_.layout == KVTRIM_RAGGED; }
    [[nodiscard]] index_t table_row(index_t head) const {
        return v_.layout == KVTRIM_PAGED ? v_.row : v_.row * heads_ + head;
    }
    [[nodiscard]] status check_ragged();
    [[nodiscard]] status check_pages();
    [[nodiscard]] status check_scales() const;
    [[nodiscard]] slots slots_of_head(index_t head) const;
    // With `all` also scales that rows share.
    [[nodiscard]] std::array<strided_bytes, 3> memory_of_pages(index_t first, index_t count, bool all) const;

    // Calls fn(rows of the pool, page, slot, run) for each run of neighbouring slots of the head's rows [first, first + count).
    template <class Fn>
    void for_each_run(index_t head, index_t first, index_t count, Fn&& fn) const {
        std::visit(
            [&](const auto& rows) {
                if (is_ragged()) {
                    fn(rows, index_t{0}, v_.indptr[head] + first, count);
                    return;
                }
                const auto pages = table_.row(table_row(head));
                for (index_t i = 0; i < count;) {
                    const index_t slot = (first + i) % v_.page_tokens;
                    const index_t run = std::min(v_.page_tokens - slot, count - i);
                    fn(rows, index_t{pages[static_cast<std::size_t>((first + i) / v_.page_tokens)]}, slot,
                       run);
                    i += run;
                }
            },
            slots_of_head(head));
    }

    // pages: up to the last that is read; of a ragged view one, with all rows as its page_tokens
    kvtrim_view v_;
    page_table table_;
    std::span<const std::int32_t> pages_; // of all heads
    index_t heads_;                       // that have rows of the table
    index_t longest_ = 0;
    status validity_;
};

} // namespace kvtrim::c
