// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// The table of a flat cache that grows.
#include "c_api.hpp"

#include <kvtrim/compact/flat_cache.hpp>

struct kvtrim_flat {
    explicit kvtrim_flat(double g, kvtrim::flat_cache cache) : growth(g) { set(std::move(cache)); }
    void set(kvtrim::flat_cache cache) {
        lengths.assign(cache.lengths().begin(), cache.lengths().end());
        state = std::move(cache);
    }

    double growth;
    kvtrim::flat_cache state{0};
    std::vector<kvtrim::index_t> lengths; // as a view says them
};

namespace kvtrim::c {
namespace {

// Calls change(cache) with a copy, which becomes the state if it answers ok.
template <class Fn>
kvtrim_status changed(kvtrim_flat* flat, Fn&& change) {
    return guarded([&]() -> status {
        if (flat == nullptr) { return no_handle(); }
        flat_cache next = flat->state;
        const status s = change(next);
        if (s.ok()) { flat->set(std::move(next)); }
        return s;
    });
}

} // namespace
} // namespace kvtrim::c

using namespace kvtrim;
using namespace kvtrim::c;

extern "C" {

kvtrim_status kvtrim_flat_create(int64_t kv_heads, double growth, kvtrim_flat** flat) {
    return guarded([&]() -> status {
        const double reserved = growth == 0 ? 0.25 : growth;
        flat_cache cache(kv_heads, reserved);
        const status s = cache.validate();
        return s.ok() ? make(flat, reserved, std::move(cache)) : s;
    });
}
void kvtrim_flat_destroy(kvtrim_flat* flat) {
    delete flat;
}
kvtrim_status kvtrim_flat_assign(kvtrim_flat* flat, const kvtrim_plan* plan) {
    return changed(flat, [&](flat_cache& next) -> status {
        if (plan == nullptr) { return no_handle(); }
        next = flat_cache(plan->table, flat->growth);
        return next.validate();
    });
}
kvtrim_status kvtrim_flat_append(kvtrim_flat* flat, int64_t count) {
    return changed(flat, [&](flat_cache& next) { return next.append(count); });
}
kvtrim_status kvtrim_flat_compact(kvtrim_flat* flat, const kvtrim_plan* plan) {
    return changed(
        flat, [&](flat_cache& next) { return plan == nullptr ? no_handle() : next.compact(plan->table); });
}
kvtrim_status kvtrim_flat_spread(kvtrim_flat* flat, int64_t rows, int64_t* out, int64_t out_count,
                                 int64_t* needed) {
    return changed(flat, [&](flat_cache& next) -> status {
        std::vector<index_t> moves;
        const status s = next.spread(rows, [&](index_t from, index_t to, index_t count) {
            moves.insert(moves.end(), {from, to, count});
        });
        return s.ok() ? write_list(std::span<const index_t>(moves), out, out_count, needed) : s;
    });
}
kvtrim_ints kvtrim_flat_begins(const kvtrim_flat* flat) {
    return flat == nullptr ? kvtrim_ints{} : ints(flat->state.begins());
}
kvtrim_ints kvtrim_flat_lengths(const kvtrim_flat* flat) {
    return flat == nullptr ? kvtrim_ints{} : ints(flat->state.lengths());
}
kvtrim_status kvtrim_flat_view(const kvtrim_flat* flat, kvtrim_view* view) {
    return guarded([&]() -> status {
        if (flat == nullptr) { return no_handle(); }
        kvtrim_view v = {};
        if (const status s = read_struct(view, v); !s.ok()) { return s; }
        view->layout = KVTRIM_RAGGED;
        view->extents[0] = flat->state.kv_heads();
        view->indptr = flat->state.begins().data();
        view->lengths = flat->lengths.data();
        return {};
    });
}

} // extern "C"
