// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// What a caller keeps beside the tokens of a cache: the newest queries, and norms of values.
#include "c_api.hpp"

#include <kvtrim/decode/recent_queries.hpp>

struct kvtrim_queries {
    std::variant<kvtrim::recent_queries<float>, kvtrim::recent_queries<kvtrim::f16>,
                 kvtrim::recent_queries<kvtrim::bf16>>
        state;                            // in the order of KVTRIM_F32, ...
    std::vector<std::int32_t> order = {}; // of the last view: its rows as slots of the ring
};

namespace kvtrim::c {
namespace {

/// A ring's rows in their order, as an INDEXED view of its slots.
template <class T>
void describe(const query_ring_view<T>& rows, int32_t element, std::vector<std::int32_t>& order,
              kvtrim_view& out) {
    const index_t heads = rows.extent(0), count = rows.extent(1), length = rows.extent(2);
    const auto at = [&](index_t head, index_t i) { return rows.rows_in_place(head, i, 1).data; };
    order.reserve(static_cast<std::size_t>(count)); // may throw: before all changes
    kvtrim_view_init(&out, element, nullptr, heads, count, length);
    if (heads == 0 || count == 0 || length == 0) { return; }
    const T* first = at(0, 0); // slot
    for (index_t i = 1; i < count; ++i) { first = std::min(first, at(0, i), std::less<>{}); }
    order.clear();
    for (index_t i = 0; i < count; ++i) {
        order.push_back(static_cast<std::int32_t>((at(0, i) - first) / length));
    }
    out.layout = KVTRIM_INDEXED;
    out.data = const_cast<T*>(first); // a view's data is not const; nothing writes queries
    out.extents[1] = index_t{*std::max_element(order.begin(), order.end())} + 1;
    if (heads > 1) { out.strides[0] = (at(1, 0) - at(0, 0)) * static_cast<index_t>(sizeof(T)); }
    out.indices = order.data();
    out.index_count = count;
}

template <class Projection>
status append_norms(projected_norms& norms, const layer_parts& in, const Projection& w_o, index_t count,
                    kvtrim_context& context) {
    const layer_inputs<any_rows, any_rows, not_given, Projection> made{in.keys, in.values, {}, w_o};
    return norms.append(made, count, context.memory, context.executor);
}

} // namespace
} // namespace kvtrim::c

using namespace kvtrim;
using namespace kvtrim::c;

extern "C" {

// ---- The newest queries ----

kvtrim_status kvtrim_queries_create(int64_t q_heads, int64_t window, int64_t head_dim,
                                    int64_t rollback_tokens, int32_t element, kvtrim_queries** queries) {
    return guarded([&]() -> status {
        if (const status s = valid_queries(q_heads, head_dim); !s.ok()) { return s; }
        if (rollback_tokens < 0) { return invalid("queries: rollback_tokens must not be negative"); }
        const auto make_of = [&]<class T>(T state) {
            const status s = state.validate();
            return s.ok() ? make(queries, std::move(state)) : s;
        };
        switch (element) {
        case KVTRIM_F32:
            return make_of(recent_queries<float>(q_heads, window, head_dim, rollback_tokens));
        case KVTRIM_F16:
            return make_of(recent_queries<f16>(q_heads, window, head_dim, rollback_tokens));
        case KVTRIM_BF16:
            return make_of(recent_queries<bf16>(q_heads, window, head_dim, rollback_tokens));
        default:
            return invalid("queries: of f32, f16 or bf16");
        }
    });
}
void kvtrim_queries_destroy(kvtrim_queries* queries) {
    delete queries;
}
kvtrim_status kvtrim_queries_append(kvtrim_queries* queries, const kvtrim_view* newest) {
    return guarded([&]() -> status {
        if (queries == nullptr) { return no_handle(); }
        const any_rows rows = any_rows::of(newest);
        return std::visit([&](auto& state) { return state.append(rows); }, queries->state);
    });
}
kvtrim_status kvtrim_queries_rollback(kvtrim_queries* queries, int64_t count) {
    return guarded([&]() -> status {
        if (queries == nullptr) { return no_handle(); }
        return std::visit([&](auto& state) { return state.rollback(count); }, queries->state);
    });
}
int64_t kvtrim_queries_held(const kvtrim_queries* queries) {
    return queries == nullptr ? 0
                              : std::visit([](const auto& state) { return state.held(); }, queries->state);
}
kvtrim_status kvtrim_queries_view(kvtrim_queries* queries, int64_t rollback_tokens, kvtrim_view* view) {
    return guarded([&]() -> status {
        if (queries == nullptr || view == nullptr) { return no_handle(); }
        return std::visit(
            [&](const auto& state) -> status {
                const auto rows = state.view(rollback_tokens);
                if (const status s = rows.validate(); !s.ok()) { return s; }
                describe(rows, static_cast<int32_t>(queries->state.index()), queries->order, *view);
                return {};
            },
            queries->state);
    });
}
kvtrim_status kvtrim_queries_save(const kvtrim_queries* queries, void* out, int64_t out_bytes,
                                  int64_t* needed) {
    return guarded([&]() -> status {
        if (queries == nullptr) { return no_handle(); }
        return std::visit([&](const auto& state) { return save_state(state, out, out_bytes, needed); },
                          queries->state);
    });
}
kvtrim_status kvtrim_queries_restore(kvtrim_queries* queries, const void* bytes, int64_t byte_count) {
    return guarded([&]() -> status {
        if (queries == nullptr) { return no_handle(); }
        return std::visit([&](auto& state) { return restore_state(state, bytes, byte_count); },
                          queries->state);
    });
}

// ---- Norms of values ----

kvtrim_status kvtrim_projection_create(const kvtrim_view* output_projection, int32_t form,
                                       kvtrim_projection** projection) {
    return guarded([&]() -> status {
        const any_rows w_o = any_rows::of(output_projection);
        const auto make_of = [&](auto state) {
            const status s = state.validate();
            return s.ok() ? make(projection, std::move(state)) : s;
        };
        if (form == KVTRIM_PACKED) { return make_of(packed_projection(w_o)); }
        if (form == KVTRIM_GRAM) { return make_of(gram_projection(w_o)); }
        return invalid("projection: no such form");
    });
}
void kvtrim_projection_destroy(kvtrim_projection* projection) {
    delete projection;
}

kvtrim_status kvtrim_norms_create(int64_t kv_heads, kvtrim_norms** norms) {
    return guarded([&]() -> status {
        if (const status s = valid_heads(kv_heads); !s.ok()) { return s; }
        return make_valid(norms, projected_norms(kv_heads));
    });
}
void kvtrim_norms_destroy(kvtrim_norms* norms) {
    delete norms;
}
kvtrim_status kvtrim_norms_append(kvtrim_norms* norms, const kvtrim_layer* layer, int64_t count,
                                  kvtrim_context* context) {
    return guarded([&]() -> status {
        if (norms == nullptr || context == nullptr) { return no_handle(); }
        layer_parts in;
        if (const status s = read_layer(layer, KVTRIM_NEEDS_VALUES, in); !s.ok()) { return s; }
        if (in.given.projection == nullptr) {
            if (in.given.output_projection == nullptr) { return invalid("layer: this call needs W_O"); }
            return append_norms(norms->state, in, any_rows::of(in.given.output_projection), count, *context);
        }
        return std::visit(
            [&](const auto& w_o) { return append_norms(norms->state, in, w_o.view(), count, *context); },
            in.given.projection->state);
    });
}
kvtrim_status kvtrim_norms_rollback(kvtrim_norms* norms, int64_t count) {
    return guarded([&] { return norms == nullptr ? no_handle() : norms->state.rollback(count); });
}
kvtrim_status kvtrim_norms_compact(kvtrim_norms* norms, const kvtrim_plan* plan) {
    return guarded([&] {
        return norms == nullptr || plan == nullptr ? no_handle() : norms->state.compact(plan->table);
    });
}
const float* kvtrim_norms_of_head(const kvtrim_norms* norms, int64_t head, int64_t* count) {
    const bool exists = norms != nullptr && head >= 0 && head < norms->state.kv_heads();
    const std::span<const float> row = exists ? norms->state.row(head) : std::span<const float>{};
    if (count != nullptr) { *count = std::ssize(row); }
    return row.data();
}
kvtrim_status kvtrim_norms_save(const kvtrim_norms* norms, void* out, int64_t out_bytes, int64_t* needed) {
    return guarded(
        [&] { return norms == nullptr ? no_handle() : save_state(norms->state, out, out_bytes, needed); });
}
kvtrim_status kvtrim_norms_restore(kvtrim_norms* norms, const void* bytes, int64_t byte_count) {
    return guarded(
        [&] { return norms == nullptr ? no_handle() : restore_state(norms->state, bytes, byte_count); });
}

} // extern "C"
