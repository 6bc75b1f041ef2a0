// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// A cache read through one index per token: row t of every head is row indices[t] of the slots.
//
//   slots     [kv_heads, slots, row length], any cache view: a pool [slots, kv_heads, head_dim] by its strides, a source
//   indices   [tokens] int32 slots, in the order of the sequence: a row of SGLang's req_to_token, llama.cpp's cells of a
//             sequence (cache/list_cells.hpp)
//
// The indices must live as long as the source. Runs of neighbouring slots are read at once.

#include <kvtrim/cache/read_rows.hpp>
#include <kvtrim/core/any_index.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

namespace KVTRIM_NAMESPACE {

/// Returns invalid_table for an index outside [0, slots). O(tokens).
[[nodiscard]] inline status validate_indices(std::span<const std::int32_t> indices, index_t slots) {
    if (any_outside(indices, slots)) {
        return {errc::invalid_table, "row indices: a slot lies outside the pool"};
    }
    return {};
}

/// A row_source (cache/row_source.hpp) of slots that a list of indices names.
template <cache_view Slots>
class indexed_rows {
  public:
    /// The view is empty, and validate() says why, for slots that are not valid, heads of different lengths, an index outside the
    /// slots. O(tokens).
    indexed_rows(const Slots& slots, std::span<const std::int32_t> indices)
        : slots_(slots), indices_(indices), validity_(check()) {
        if (!validity_.ok()) { indices_ = {}; }
    }

    /// Ok, or why the source is empty.
    [[nodiscard]] status validate() const { return validity_; }
    /// {heads, tokens, row length}[r].
    [[nodiscard]] index_t extent(std::size_t r) const {
        return r == 1 ? static_cast<index_t>(indices_.size()) : static_cast<index_t>(slots_.extent(r));
    }
    /// Rows [first, first + count) of a head where they are neighbouring slots; else null data.
    [[nodiscard]] auto rows_in_place(index_t head, index_t first, index_t count) const
        requires(!std::is_void_v<stored_element<Slots>>) {
        element_rows<stored_element<Slots>> found;
        for_each_run(first, count, [&](index_t slot, index_t run) {
            if (run == count) { found = kvtrim::rows_in_place(slots_, head, slot, run); }
        });
        return found;
    }
    /// Whether rows can be copied as the elements in memory.
    [[nodiscard]] bool keeps_elements() const requires requires(const Slots& v) { v.keeps_elements(); }
    { return slots_.keeps_elements(); }
    /// Copies rows [first, first + count) of a head to tile [count, row length], as floats or as the elements in memory.
    template <class Out>
    void load_rows(index_t head, index_t first, index_t count, Out* tile) const {
        for_each_run(first, count, [&](index_t slot, index_t run) {
            kvtrim::load_rows(slots_, head, slot, run, tile);
            tile += run * extent(2);
        });
    }
    /// Writes tile [count, row length] to rows [first, first + count) of a head.
    void store_rows(index_t head, index_t first, index_t count,
                    const float* tile) const requires row_store<Slots> {
        for_each_run(first, count, [&](index_t slot, index_t run) {
            kvtrim::store_rows(slots_, head, slot, run, tile);
            tile += run * extent(2);
        });
    }
    /// Whether floats can become rows, where the type of the slots is known at run time only.
    [[nodiscard]] bool writes_rows() const requires requires(const Slots& v) { v.writes_rows(); }
    { return slots_.writes_rows(); }
    /// The first channels of every row as a source of their own.
    [[nodiscard]] auto first_channels(index_t count) const {
        const auto channels = kvtrim::first_channels(slots_, count);
        return kvtrim::indexed_rows<std::remove_const_t<decltype(channels)>>(channels, indices_);
    }
    /// The slots that store_rows() writes; none may be named twice then.
    [[nodiscard]] std::span<const std::int32_t> written_places() const { return indices_; }
    /// The bytes of all slots.
    [[nodiscard]] auto memory() const { return memory_of(slots_); }
    /// Whether the slots that are read, or their indices, share a byte with other memory. O(tokens) if the pool does, else
    /// O(1).
    [[nodiscard]] bool overlaps(const strided_bytes& other) const {
        if (tables_overlap(other)) { return true; }
        const auto memory = memory_of(slots_);
        if constexpr (memory.size() == 0 && requires { slots_.overlaps(other); }) {
            return slots_.overlaps(other);
        }
        for (const strided_bytes& pool : memory) {
            if (!overlap(pool, other)) { continue; }
            if (pool.extents[2] != kvtrim::extent(slots_, 1)) { return true; } // a table finds its rows
            const bool shares = std::any_of(indices_.begin(), indices_.end(), [&](std::int32_t slot) {
                strided_bytes row = pool;
                row.first = static_cast<const std::byte*>(pool.first) + slot * pool.strides[2];
                row.extents[2] = 1;
                return overlap(row, other);
            });
            if (shares) { return true; }
        }
        return false;
    }
    /// Whether the indices, or the tables of the slots, do.
    [[nodiscard]] bool tables_overlap(const strided_bytes& other) const {
        return overlap(bytes_of(indices_), other) || tables_share_bytes(slots_, other);
    }
    /// Whether a row of one head cannot move alone.
    [[nodiscard]] bool heads_move_together() const requires requires(const Slots& v) {
        v.heads_move_together();
    }
    { return slots_.heads_move_together(); }
    /// Bytes of a row in its slot.
    [[nodiscard]] index_t row_bytes() const requires requires(const Slots& s) { s.row_bytes(); }
    { return slots_.row_bytes(); }

  private:
    [[nodiscard]] status check() const {
        if (const status s = kvtrim::validate(slots_); !s.ok()) { return s; }
        const index_t slots = kvtrim::extent(slots_, 1);
        if (!detail::heads_have_rows(slots_, slots)) {
            return {errc::rows_differ, "indexed_rows: slots hold a row of every head"};
        }
        return validate_indices(indices_, slots);
    }

    // Calls fn(slot, run) for each run of neighbouring slots of the tokens [first, first + count).
    template <class Fn>
    void for_each_run(index_t first, index_t count, Fn&& fn) const {
        const std::int32_t* slot = indices_.data() + first;
        const std::int32_t* const end = slot + count;
        while (slot != end) {
            const std::int32_t* run_end = slot + 1;
            while (run_end != end && *run_end == run_end[-1] + 1) { ++run_end; }
            fn(index_t{*slot}, run_end - slot);
            slot = run_end;
        }
    }

    Slots slots_;
    std::span<const std::int32_t> indices_;
    status validity_;
};

} // namespace KVTRIM_NAMESPACE
