// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Carries out the moves of a move_plan in a pool of pages on the CPU: keys, values, positions, or anything kept
// per slot.
//
//   element d of head h in slot (page, token)   data[page * page_stride + token * token_stride + h * head_stride + d]
//
// Bits are copied, so any element type serves: quantised rows as bytes (row_length in bytes), positions as rows of
// one number. A GPU engine hands moves() to its own copy kernel instead.
//
//   move_rows(memory, plan)         one pool
//   move_rows(keys, values, plan)   both, or neither; where rows of one lie in the rows of the other (MLA), they move once
//
// Errors: what the layout's validate() says; invalid_parameter; plan_mismatch for a pool of other pages or heads than the
// plan was made for; views_overlap (compact/moved_views.hpp). Nothing is moved then.
// Cost: each moved row read and written once; the checks are O(1).

#include <kvtrim/compact/moved_views.hpp>
#include <kvtrim/core/for_each_item.hpp>
#include <kvtrim/plan/move_plan.hpp>

#include <cstring>
#include <type_traits>

namespace KVTRIM_NAMESPACE {

/// The memory of a pool: what one layer keeps as keys, for instance.
template <class T>
struct paged_memory {
    static_assert(std::is_trivially_copyable_v<T>, "kvtrim: rows of a page are moved as bytes");

    T* data = nullptr;       ///< first element of page 0
    page_layout layout = {}; ///< strides in elements
    index_t heads = 1;       ///< in each page; 1 where pages belong to one head
    index_t row_length = 0;  ///< elements of a row

    /// Row of a head in a slot. Requires a slot below 2^31.
    [[nodiscard]] T* row(std::int32_t slot, index_t head) const {
        const auto s = static_cast<std::uint32_t>(slot);
        const auto page_tokens = static_cast<std::uint32_t>(layout.page_tokens);
        return data + static_cast<index_t>(s / page_tokens) * layout.page_stride +
               static_cast<index_t>(s % page_tokens) * layout.token_stride + head * layout.head_stride;
    }
};

template <class T>
paged_memory(T*, page_layout, index_t, index_t) -> paged_memory<T>;

namespace detail {

// Copies rows of `heads` neighbouring heads, from `head` on.
template <class T>
void move_slots(const paged_memory<T>& memory, std::span<const slot_move> moves, index_t head,
                index_t heads) {
    const bool touching = heads == 1 || memory.layout.head_stride == memory.row_length;
    const index_t copies = touching ? 1 : heads;
    const auto bytes =
        static_cast<std::size_t>(touching ? heads * memory.row_length : memory.row_length) * sizeof(T);
    for (const slot_move move : moves) {
        for (index_t h = head; h < head + copies; ++h) {
            std::memcpy(memory.row(move.to, h), memory.row(move.from, h), bytes);
        }
    }
}

// The bytes of the slots of pages [0, pages).
template <class T>
[[nodiscard]] strided_bytes bytes_of_pages(const paged_memory<T>& memory, index_t pages) {
    return bytes_of_pages(memory.data, memory.layout, 0, pages, memory.heads, memory.row_length);
}

template <class T>
[[nodiscard]] status check_pool(const paged_memory<T>& memory, const move_plan& plan) {
    static_assert(!std::is_const_v<T>, "kvtrim: move_rows moves rows: pass memory that is not const");
    if (const status s = memory.layout.validate(); !s.ok()) { return s; }
    if (memory.heads < 0 || memory.row_length < 0) {
        return {errc::invalid_parameter, "move_rows: heads and row_length must not be negative"};
    }
    if (plan.rows() == 0) { return {}; }
    if (memory.layout.page_tokens != plan.page_tokens()) {
        return {errc::plan_mismatch, "move_rows: the plan was made for pages of another size",
                plan.page_tokens()};
    }
    if (plan.heads() != 1 && plan.heads() != memory.heads) {
        return {errc::plan_mismatch,
                "move_rows: the plan has token sets for another number of heads than the memory",
                plan.heads()};
    }
    if (memory.layout.most_pages() < plan.pages_touched()) {
        return {errc::plan_mismatch, "move_rows: the plan was made for more pages than the memory has",
                plan.pages_touched()};
    }
    if (memory.data == nullptr && plan.total_moves() > 0 && memory.heads > 0 && memory.row_length > 0) {
        return {errc::invalid_parameter, "move_rows: data must not be null"};
    }
    return {};
}

// Moves in a pool that was checked.
template <class T, class Executor>
[[nodiscard]] status move_checked(const paged_memory<T>& memory, const move_plan& plan, Executor& ex) {
    if (memory.row_length == 0 || memory.heads == 0) { return {}; }
    workspace none({});
    return for_each_item(plan.rows(), 0, none, ex, [&](index_t row, workspace&) {
        const index_t head = row % plan.heads();
        move_slots(memory, plan.moves(row), head, plan.heads() == 1 ? memory.heads : 1);
    });
}

} // namespace detail

/// Moves the rows of one pool: with a plan of one head all heads of a slot move together. Rows of the plan may run on any
/// thread. Returns what layout.validate() says, invalid_parameter (negative heads or row_length, null data, an executor that
/// calls nothing), plan_mismatch for a pool of other pages or heads than the plan's (needed: the plan's), or views_overlap where
/// rows share bytes; with nothing moved.
template <class T, executor Executor = serial_executor>
[[nodiscard]] status move_rows(const paged_memory<T>& memory, const move_plan& plan, Executor&& ex = {}) {
    if (const status s = detail::check_pool(memory, plan); !s.ok()) { return s; }
    const std::array bytes{detail::bytes_of_pages(memory, plan.pages_touched())};
    if (const status s = check_movable(bytes); !s.ok()) { return s; }
    return detail::move_checked(memory, plan, ex);
}

/// Moves the rows of two pools by one plan. Returns what the call for one pool does, or views_overlap where both share memory but
/// not the same rows; with nothing moved.
template <class T, class U, executor Executor = serial_executor>
[[nodiscard]] status move_rows(const paged_memory<T>& keys, const paged_memory<U>& values,
                               const move_plan& plan, Executor&& ex = {}) {
    if (const status s = detail::check_pool(keys, plan); !s.ok()) { return s; }
    if (const status s = detail::check_pool(values, plan); !s.ok()) { return s; }
    const std::array key_bytes{detail::bytes_of_pages(keys, plan.pages_touched())};
    const std::array value_bytes{detail::bytes_of_pages(values, plan.pages_touched())};
    moved_views moved;
    if (const status s = check_movable(key_bytes, value_bytes, moved); !s.ok()) { return s; }
    if (moved.first) {
        if (const status s = detail::move_checked(keys, plan, ex); !s.ok()) { return s; }
    }
    return moved.second ? detail::move_checked(values, plan, ex) : status{};
}

} // namespace KVTRIM_NAMESPACE
