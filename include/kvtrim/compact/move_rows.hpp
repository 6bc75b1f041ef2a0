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
// Cost: each moved row read and written once.

#include <kvtrim/base/executor.hpp>
#include <kvtrim/plan/move_plan.hpp>

#include <cstring>
#include <type_traits>

namespace kvtrim {

// The memory of a pool: what one layer keeps as keys, for instance.
template <class T>
struct paged_memory {
    static_assert(std::is_trivially_copyable_v<T>, "kvtrim: rows of a page are moved as bytes");

    T* data = nullptr;
    page_layout layout = {};
    index_t heads = 1; // in each page; 1 where pages belong to one head
    index_t row_length = 0;

    // Row of a head in a slot. Requires a slot below 2^31.
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

} // namespace detail

// Requires memory with the heads that the plan has (or a plan of one: then all heads of a slot move together), and
// the page_tokens it was made for. Rows of the plan may run on any thread.
template <class T, executor Executor = serial_executor>
void move_rows(const paged_memory<T>& memory, const move_plan& plan, Executor&& ex = {}) {
    KVTRIM_EXPECTS(plan.heads() == 1 || plan.heads() == memory.heads,
                   "move_rows: the plan has token sets for another number of heads than the memory");
    KVTRIM_EXPECTS(memory.data != nullptr || plan.total_moves() == 0, "move_rows: data must not be null");
    if (memory.row_length == 0) { return; }
    ex(plan.rows(), [&](index_t row) {
        const index_t head = row % plan.heads();
        detail::move_slots(memory, plan.moves(row), head, plan.heads() == 1 ? memory.heads : 1);
    });
}

} // namespace kvtrim
