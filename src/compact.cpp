// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Plans carried out: in place, flat, gathered, in pages, and keys rotated to new positions.
#include "c_api.hpp"

#include <kvtrim/compact/compact_to_flat.hpp>
#include <kvtrim/compact/move_rows.hpp>
#include <kvtrim/compact/plan_page_moves.hpp>
#include <kvtrim/compact/rerotate_keys.hpp>

struct kvtrim_moves {
    kvtrim::move_plan plan;
};

namespace kvtrim::c {
namespace {

// Rows that lie flat, or can be made so, as bytes: an element of one byte stands for all.
using flat_array = std::variant<strided<f8_e4m3, 3>, ragged<f8_e4m3>>;

// Reads a view, and adds the arrays that hold its rows: its elements, and the scales and zero points of codes that rows have of
// their own.
status read_flat(const kvtrim_view* given, any_rows& rows, std::vector<flat_array>& arrays) {
    rows = any_rows::of(given);
    if (const status s = rows.validate(); !s.ok()) { return s; }
    kvtrim_view v = {}; // the caller's may be a shorter one
    if (const status s = read_struct(given, v); !s.ok()) { return s; }
    if ((v.layout != KVTRIM_STRIDED && v.layout != KVTRIM_RAGGED) || v.lengths != nullptr) {
        return invalid("compact_to_flat: STRIDED or RAGGED views, of heads that are filled to the end");
    }
    const auto add = [&](void* memory, index_t row_bytes, index_t head_stride, index_t row_stride) {
        auto* const bytes = static_cast<f8_e4m3*>(memory);
        if (v.layout == KVTRIM_STRIDED) {
            arrays.emplace_back(strided<f8_e4m3, 3>(bytes, {v.extents[0], v.extents[1], row_bytes},
                                                    {head_stride, row_stride, 1}));
        } else {
            arrays.emplace_back(ragged(bytes, counted(v.indptr, v.extents[0] + 1), row_bytes));
        }
    };
    const element_row& e = elements[v.element];
    const index_t units = v.extents[2] / e.values;
    if (v.layout == KVTRIM_STRIDED && units > 1 && v.strides[2] != e.bytes) {
        return invalid("compact_to_flat: channels must lie one after the other");
    }
    add(v.data, to_bytes(units, e.bytes), v.strides[0], v.strides[1]);
    if (e.ggml_type >= 0 || v.scale_strides[1] == 0) { return {}; }
    const index_t scales = v.scale_strides[2] == 0 ? 1 : v.extents[2];
    const index_t row_bytes = to_bytes(scales, sizeof(float));
    const bool lie_flat =
        (scales <= 1 || v.scale_strides[2] == sizeof(float)) &&
        (v.layout == KVTRIM_STRIDED || (v.scale_strides[0] == 0 && v.scale_strides[1] == row_bytes));
    if (!lie_flat) { return invalid("compact_to_flat: scales of rows must lie one after the other"); }
    for (float* const table : {v.scales, v.zeros}) {
        if (table != nullptr) { add(table, row_bytes, v.scale_strides[0], v.scale_strides[1]); }
    }
    return {};
}

// Moves all arrays, each once, or none.
status flatten(std::span<const flat_array> arrays, const keep_plan& plan) {
    const auto same = [](const auto& a, const auto& b) { return detail::same_flat_rows(a, b); };
    const auto share_memory = [](const auto& a, const auto& b) {
        return overlap(memory_of(a).front(), memory_of(b).front());
    };
    for (const flat_array& array : arrays) {
        const auto checked = [&](const auto& a) { return detail::check_flat(a, plan); };
        if (const status s = std::visit(checked, array); !s.ok()) { return s; }
    }
    std::vector<flat_array> once;
    for (const flat_array& array : arrays) {
        bool is_new = true;
        for (const flat_array& other : once) {
            if (std::visit(same, array, other)) {
                is_new = false;
            } else if (std::visit(share_memory, array, other)) {
                return {errc::views_overlap,
                        "compact_to_flat: two arrays share memory, but are not the same rows"};
            }
        }
        if (is_new) { once.push_back(array); }
    }
    for (const flat_array& array : once) {
        std::visit([&](const auto& a) { detail::move_to_front(a, plan); }, array);
    }
    return {};
}

// Copies survivors of rows that are kept as other elements.
template <class T>
void gather_converted(const any_rows& rows, const keep_plan& plan, T* out) {
    const index_t length = rows.extent(2);
    std::vector<float> row(static_cast<std::size_t>(length));
    for (index_t g = 0; g < plan.rows(); ++g) {
        for (const auto kept : plan.row(g)) {
            rows.load_rows(g, kept, 1, row.data());
            kernels::narrow(row.data(), length, out);
            out += length;
        }
    }
}

template <class T>
status gather_as(const any_rows& rows, const keep_plan& plan, void* out, index_t out_bytes) {
    constexpr index_t size = sizeof(T);
    if (const status s = check_plan(rows, plan); !s.ok()) { return s; }
    const index_t needed = to_bytes(plan.total_tokens(), to_bytes(rows.extent(2), size));
    if (out_bytes < needed || (out == nullptr && needed > 0)) {
        return {errc::no_room, "gather: out must hold all survivors", needed};
    }
    if (needed == 0) { return {}; }
    if (reinterpret_cast<std::uintptr_t>(out) % sizeof(T) != 0) {
        return invalid("gather: out must be aligned");
    }
    const std::span target(static_cast<T*>(out), static_cast<std::size_t>(needed / size));
    if (const status s = check_outputs(std::array{bytes_of(target)}, rows, plan.kept(), plan.offsets());
        !s.ok()) {
        return s;
    }
    return rows.visit([&](const auto& v) -> status {
        using view = std::remove_cvref_t<decltype(v)>;
        if constexpr (std::is_same_v<view, ggml_tensor_rows>) {
            if (const auto* same = v.template as<strided<T, 3>>()) { return gather(*same, plan, target); }
        } else if constexpr (std::is_same_v<T, float> || std::is_same_v<T, stored_element<view>>) {
            if (std::is_same_v<T, float> || keeps<T>(v)) { return gather(v, plan, target); }
        }
        gather_converted(rows, plan, target.data());
        return {};
    });
}

status read_page_pool(const kvtrim_page_pool* given, kvtrim_page_pool& out) {
    if (const status s = read_struct(given, out); !s.ok()) { return s; }
    const kvtrim_page_pool& p = out;
    if (const status s = valid_table(p.indptr, p.table_rows, p.indices, p.index_count, p.last_page);
        !s.ok()) {
        return s;
    }
    if (p.order < KVTRIM_FEWEST || p.order > KVTRIM_IN_ORDER || p.copy_shared < 0 || p.copy_shared > 1) {
        return invalid("page pool: no such order, or copy_shared");
    }
    if (p.pages < 0) { return invalid("page pool: pages must not be negative"); }
    return valid_counted(p.free_pages, p.free_count, "page pool: free_pages [free_count]");
}

// The bytes of a pool, of which neither table nor element matters: rows are bytes.
status read_memory(const kvtrim_view& v, const move_plan& plan, paged_memory<std::byte>& out) {
    if (v.layout != KVTRIM_PAGED && v.layout != KVTRIM_PAGED_PER_HEAD) {
        return invalid("moves_run: PAGED or PAGED_PER_HEAD memory");
    }
    if (v.element < 0 || v.element >= std::ssize(elements)) { return invalid("view: no such element"); }
    const index_t size = elements[v.element].bytes, block = elements[v.element].values;
    if (v.extents[2] < 0 || v.extents[2] % block != 0 || v.strides[2] != size || v.extents[0] < 0 ||
        v.extents[0] > most_heads) {
        return invalid("moves_run: rows of whole elements or blocks, one after the other");
    }
    const bool own = v.layout == KVTRIM_PAGED_PER_HEAD;
    out = {.data = static_cast<std::byte*>(v.data),
           .layout = {.page_tokens = v.page_tokens,
                      .page_stride = v.page_stride,
                      .token_stride = v.strides[1],
                      .head_stride = own ? 0 : v.strides[0],
                      .pages = v.pages < 0 ? plan.pages_touched() : v.pages},
           .heads = own ? 1 : v.extents[0],
           .row_length = to_bytes(v.extents[2] / block, size)};
    return {};
}

// Pools that move together: keys, values, and what each has beside its codes.
struct moving_pools {
    std::array<paged_memory<std::byte>, 6> pools; // those without rows have nothing to move
    std::array<bool, 6> moves{};
    std::size_t count = 0;

    // What rows of `view` are made of. The plan says how many pages there are.
    status add(const kvtrim_view* given, const move_plan& plan) {
        kvtrim_view v = {};
        if (const status s = read_struct(given, v); !s.ok()) { return s; }
        if (const status s = read_memory(v, plan, pools[count]); !s.ok()) { return s; }
        const paged_memory<std::byte> codes = pools[count++];
        if (v.element < KVTRIM_I8 || v.extents[2] == 0) { return {}; }
        for (float* const factors : {v.scales, v.zeros}) {
            if (factors == nullptr) { continue; }
            if (const status s = add_factors(v, factors, codes, plan); !s.ok()) { return s; }
        }
        return {};
    }

    // Scales that a token has of its own, or zeros.
    status add_factors(const kvtrim_view& v, float* factors, const paged_memory<std::byte>& codes,
                       const move_plan& plan) {
        const bool per_channel = v.scale_strides[2] != 0, all_heads = codes.layout.head_stride != 0;
        if (v.scale_strides[1] == 0) {
            if (v.scale_page_stride == 0 || plan.total_moves() == 0) { return {}; }
            return invalid("moves_run: tokens of a page share a scale, and cannot move to another page");
        }
        if (per_channel && v.scale_strides[2] != sizeof(float)) {
            return invalid("moves_run: scales of a row, one after the other");
        }
        const bool shared = all_heads && v.scale_strides[0] == 0;
        if (shared && plan.heads() != 1) { return invalid("moves_run: heads that move apart share scales"); }
        page_layout layout = codes.layout;
        layout.page_stride = v.scale_page_stride;
        layout.token_stride = v.scale_strides[1];
        layout.head_stride = all_heads ? v.scale_strides[0] : 0;
        pools[count++] = {.data = reinterpret_cast<std::byte*>(factors),
                          .layout = layout,
                          .heads = shared ? 1 : codes.heads,
                          .row_length = to_bytes(per_channel ? v.extents[2] : 1, sizeof(float))};
        return {};
    }

    // Whether all of them may move, and which do: one that lies in the rows of another moves with it.
    status check(const move_plan& plan) {
        std::array<strided_bytes, 6> memory{};
        for (std::size_t i = 0; i < count; ++i) {
            if (const status s = kvtrim::detail::check_pool(pools[i], plan); !s.ok()) { return s; }
            memory[i] = kvtrim::detail::bytes_of_pages(pools[i], plan.pages_touched());
            const auto own = std::span(memory).subspan(i, 1);
            if (const status s = check_movable(own); !s.ok()) { return s; }
            moves[i] = true;
            for (std::size_t j = 0; j < i; ++j) {
                moved_views moved;
                if (const status s = check_movable(std::span(memory).subspan(j, 1), own, moved); !s.ok()) {
                    return s;
                }
                moves[j] = moves[j] && moved.first;
                moves[i] = moves[i] && moved.second;
            }
        }
        return {};
    }
};

} // namespace
} // namespace kvtrim::c

using namespace kvtrim;
using namespace kvtrim::c;

extern "C" {

kvtrim_status kvtrim_compact_in_place(const kvtrim_view* keys, const kvtrim_view* values,
                                      const kvtrim_plan* plan) {
    return guarded([&]() -> status {
        if (plan == nullptr) { return invalid("the plan must not be null"); }
        const any_rows k = any_rows::of(keys, true);
        const any_rows v = values == nullptr ? k : any_rows::of(values, true);
        for (const any_rows* rows : {&k, &v}) {
            if (const status s = rows->validate(); !s.ok()) { return s; }
            if (!rows->moves_rows()) { return invalid("compact_in_place: STRIDED or RAGGED views"); }
        }
        return compact_in_place(k, v, plan->table); // one tensor as both moves once
    });
}

kvtrim_status kvtrim_compact_to_flat(const kvtrim_view* keys, const kvtrim_view* values,
                                     const kvtrim_plan* plan) {
    return guarded([&]() -> status {
        if (plan == nullptr) { return invalid("the plan must not be null"); }
        std::vector<flat_array> arrays;
        any_rows k, v;
        if (const status s = read_flat(keys, k, arrays); !s.ok()) { return s; }
        if (values != nullptr) {
            if (const status s = read_flat(values, v, arrays); !s.ok()) { return s; }
        }
        for (const flat_array& array : arrays) {
            const auto memory = std::visit([](const auto& a) { return memory_of(a); }, array);
            if (const status s = check_tables(memory, k, v); !s.ok()) { return s; }
        }
        return flatten(arrays, plan->table);
    });
}

kvtrim_status kvtrim_gather(const kvtrim_view* cache, const kvtrim_plan* plan, int32_t element, void* out,
                            int64_t out_bytes) {
    return guarded([&]() -> status {
        if (plan == nullptr) { return invalid("the plan must not be null"); }
        const any_rows rows = any_rows::of(cache);
        if (const status s = rows.validate(); !s.ok()) { return s; }
        switch (element) {
        case KVTRIM_F32:
            return gather_as<float>(rows, plan->table, out, out_bytes);
        case KVTRIM_F16:
            return gather_as<f16>(rows, plan->table, out, out_bytes);
        case KVTRIM_BF16:
            return gather_as<bf16>(rows, plan->table, out, out_bytes);
        default:
            return invalid("gather: an output of f32, f16 or bf16");
        }
    });
}

kvtrim_status kvtrim_rerotate_keys(const kvtrim_view* keys, const kvtrim_rope* rope,
                                   const int32_t* from_offsets, const int32_t* from, const int32_t* to,
                                   kvtrim_context* context) {
    return guarded([&]() -> status {
        if (context == nullptr || from_offsets == nullptr) {
            return invalid("rerotate_keys: from_offsets and context must not be null");
        }
        const any_rows rows = any_rows::of(keys);
        kvtrim::rope turn;
        if (const status s = rows.validate(); !s.ok()) { return s; }
        if (const status s = read_rope(rope, turn); !s.ok()) { return s; }
        const auto offsets = counted(from_offsets, rows.extent(0) + 1);
        if (!std::is_sorted(offsets.begin(), offsets.end()) || offsets.front() < 0 ||
            (from == nullptr && offsets.back() > 0)) {
            return {errc::invalid_table, "rerotate_keys: from_offsets must not decrease, from [its last]"};
        }
        const row_positions old{offsets, counted(from, offsets.back())};
        workspace scratch = context->memory.of_bytes(rerotate_keys_bytes(rows, turn, context->executor));
        if (to == nullptr) { return rerotate_keys(rows, turn, old, scratch, context->executor); }
        return rerotate_keys(rows, turn, old, row_positions{offsets, counted(to, offsets.back())}, scratch,
                             context->executor);
    });
}

kvtrim_status kvtrim_moves_create(kvtrim_moves** moves) {
    return guarded([&] { return make(moves); });
}
void kvtrim_moves_destroy(kvtrim_moves* moves) {
    delete moves;
}

kvtrim_status kvtrim_moves_plan(kvtrim_moves* moves, const kvtrim_plan* plan, const kvtrim_page_pool* pool,
                                kvtrim_context* context) {
    return guarded([&]() -> status {
        if (moves == nullptr || plan == nullptr || context == nullptr) {
            return invalid("moves_plan: moves, plan and context must not be null");
        }
        kvtrim_page_pool p = {};
        if (const status s = read_page_pool(pool, p); !s.ok()) { return s; }
        const page_table table = table_of(p.indptr, p.table_rows, p.indices, p.index_count, p.last_page);
        const page_pool pages{.pages = p.pages,
                              .page_tokens = p.page_tokens,
                              .heads = p.heads,
                              .ref_counts = counted(p.ref_counts, p.pages),
                              .free_pages = counted(p.free_pages, p.free_count)};
        workspace scratch = context->memory.of_bytes(plan_page_moves_bytes(table, pages));
        return plan_page_moves(plan->table, table, pages,
                               {static_cast<move_order>(p.order), static_cast<shared_pages>(p.copy_shared)},
                               moves->plan, scratch);
    });
}

int64_t kvtrim_moves_rows(const kvtrim_moves* moves) {
    return moves == nullptr ? 0 : moves->plan.rows();
}
kvtrim_ints kvtrim_moves_of_row(const kvtrim_moves* moves, int64_t row) {
    static_assert(sizeof(slot_move) == 2 * sizeof(int32_t));
    if (moves == nullptr || row < 0 || row >= moves->plan.rows()) { return {nullptr, 0}; }
    const auto list = moves->plan.moves(row);
    return {list.empty() ? nullptr : &list.front().from, 2 * std::ssize(list)};
}
kvtrim_ints kvtrim_moves_origins(const kvtrim_moves* moves, int64_t row) {
    if (moves == nullptr || row < 0 || row >= moves->plan.rows()) { return {nullptr, 0}; }
    return ints(moves->plan.origins(row));
}
kvtrim_ints kvtrim_moves_indptr(const kvtrim_moves* moves) {
    return moves == nullptr ? kvtrim_ints{} : ints(moves->plan.table().indptr);
}
kvtrim_ints kvtrim_moves_indices(const kvtrim_moves* moves) {
    return moves == nullptr ? kvtrim_ints{} : ints(moves->plan.table().indices);
}
kvtrim_ints kvtrim_moves_last_page(const kvtrim_moves* moves) {
    return moves == nullptr ? kvtrim_ints{} : ints(moves->plan.table().last_page_len);
}
kvtrim_ints kvtrim_moves_freed(const kvtrim_moves* moves) {
    return moves == nullptr ? kvtrim_ints{} : ints(moves->plan.freed_pages());
}
kvtrim_ints kvtrim_moves_released(const kvtrim_moves* moves) {
    return moves == nullptr ? kvtrim_ints{} : ints(moves->plan.released_pages());
}
int64_t kvtrim_moves_taken(const kvtrim_moves* moves) {
    return moves == nullptr ? 0 : moves->plan.taken_pages();
}

kvtrim_status kvtrim_moves_run(const kvtrim_moves* moves, const kvtrim_view* keys, const kvtrim_view* values,
                               kvtrim_context* context) {
    return guarded([&]() -> status {
        if (moves == nullptr || context == nullptr) { return invalid("moves and context must not be null"); }
        moving_pools all;
        if (const status s = all.add(keys, moves->plan); !s.ok()) { return s; }
        if (values != nullptr) {
            if (const status s = all.add(values, moves->plan); !s.ok()) { return s; }
        }
        if (const status s = all.check(moves->plan); !s.ok()) { return s; }
        for (std::size_t i = 0; i < all.count; ++i) {
            if (!all.moves[i]) { continue; }
            const status s = kvtrim::detail::move_checked(all.pools[i], moves->plan, context->executor);
            if (!s.ok()) { return s; }
        }
        return {};
    });
}

} // extern "C"
