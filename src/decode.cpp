// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// The state of a living cache: positions, interval eviction, running scores.
#include "policies.hpp"

#include <kvtrim/decode/close_up.hpp>
#include <kvtrim/decode/interval_policy.hpp>

struct kvtrim_positions {
    kvtrim::cache_positions state;
};

namespace kvtrim::c {
namespace {

/// The policy of an interval, over a layer that was read.
struct planned_call {
    const call* in = nullptr;

    [[nodiscard]] index_t kv_heads() const { return in->policy->kv_heads(); } // as the inputs
    [[nodiscard]] index_t workspace_bytes(const planned_call& c, const eviction_request& r) const {
        return c.in->policy->bytes(r, {});
    }
    [[nodiscard]] status plan(const planned_call& c, const eviction_request& r, keep_plan& out,
                              growing_workspace& memory, const any_executor& ex) const {
        workspace scratch = memory.of_bytes(c.in->policy->bytes(r, ex));
        return c.in->policy->plan(r, std::span(&out, 1), scratch, ex);
    }
};

status read_interval(const kvtrim_interval* given, request& asked, interval_policy<planned_call>& out) {
    kvtrim_interval i = {};
    if (const status s = read_struct(given, i); !s.ok()) { return s; }
    if (const status s = read_request(i.request, asked); !s.ok()) { return s; }
    out.request = asked.value;
    out.buffer_tokens = i.buffer_tokens;
    out.pending_drafts = i.pending_drafts;
    return {};
}

} // namespace
} // namespace kvtrim::c

using namespace kvtrim;
using namespace kvtrim::c;

extern "C" {

// ---- Positions ----

kvtrim_status kvtrim_positions_create(int64_t kv_heads, kvtrim_positions** positions) {
    return guarded([&]() -> status {
        if (const status s = valid_heads(kv_heads); !s.ok()) { return s; }
        return make_valid(positions, cache_positions(kv_heads));
    });
}
void kvtrim_positions_destroy(kvtrim_positions* positions) {
    delete positions;
}
kvtrim_status kvtrim_positions_append(kvtrim_positions* positions, int64_t count) {
    return guarded([&] { return positions == nullptr ? no_handle() : positions->state.append(count); });
}
kvtrim_status kvtrim_positions_rollback(kvtrim_positions* positions, int64_t count) {
    return guarded([&] { return positions == nullptr ? no_handle() : positions->state.rollback(count); });
}
kvtrim_status kvtrim_positions_compact(kvtrim_positions* positions, const kvtrim_plan* plan) {
    return guarded([&] {
        return positions == nullptr || plan == nullptr ? no_handle() : positions->state.compact(plan->table);
    });
}
kvtrim_ints kvtrim_positions_text(const kvtrim_positions* positions, int64_t head) {
    if (positions == nullptr || head < 0 || head >= positions->state.kv_heads()) { return {nullptr, 0}; }
    return ints(positions->state.positions(head));
}
kvtrim_ints kvtrim_positions_rotary(const kvtrim_positions* positions, int64_t head) {
    if (positions == nullptr || head < 0 || head >= positions->state.kv_heads()) { return {nullptr, 0}; }
    return ints(positions->state.rotary_positions(head));
}
int64_t kvtrim_positions_next(const kvtrim_positions* positions) {
    return positions == nullptr ? 0 : positions->state.next_position();
}
int64_t kvtrim_positions_seen(const kvtrim_positions* positions) {
    return positions == nullptr ? 0 : positions->state.seen_tokens();
}
kvtrim_status kvtrim_positions_close_up(kvtrim_positions* positions, const kvtrim_view* keys,
                                        const kvtrim_rope* rope, int64_t pinned_tokens,
                                        kvtrim_context* context) {
    return guarded([&]() -> status {
        if (positions == nullptr || context == nullptr) { return no_handle(); }
        const any_rows rows = any_rows::of(keys);
        kvtrim::rope turn;
        if (const status s = rows.validate(); !s.ok()) { return s; }
        if (const status s = read_rope(rope, turn); !s.ok()) { return s; }
        workspace scratch = context->memory.of_bytes(rerotate_keys_bytes(rows, turn, context->executor));
        return close_up(rows, positions->state, turn, {.pinned_tokens = pinned_tokens}, scratch,
                        context->executor);
    });
}
kvtrim_status kvtrim_positions_save(const kvtrim_positions* positions, void* out, int64_t out_bytes,
                                    int64_t* needed) {
    return guarded([&] {
        return positions == nullptr ? no_handle() : save_state(positions->state, out, out_bytes, needed);
    });
}
kvtrim_status kvtrim_positions_restore(kvtrim_positions* positions, const void* bytes, int64_t byte_count) {
    return guarded([&] {
        return positions == nullptr ? no_handle() : restore_state(positions->state, bytes, byte_count);
    });
}

// ---- Interval eviction ----

kvtrim_status kvtrim_interval_admits(const kvtrim_interval* interval, const kvtrim_positions* positions,
                                     int64_t incoming, int32_t* due) {
    return guarded([&]() -> status {
        if (positions == nullptr || due == nullptr) { return no_handle(); }
        request asked;
        interval_policy<planned_call> policy{{}, {}};
        if (const status s = read_interval(interval, asked, policy); !s.ok()) { return s; }
        if (const status s = policy.admits(positions->state, incoming); !s.ok()) { return s; }
        *due = policy.is_due(positions->state, incoming) ? 1 : 0;
        return {};
    });
}
kvtrim_status kvtrim_interval_plan(const kvtrim_interval* interval, const kvtrim_layer* layer,
                                   kvtrim_plan* plan, kvtrim_context* context) {
    return guarded([&]() -> status {
        if (plan == nullptr || context == nullptr) { return no_handle(); }
        call in;
        interval_policy<planned_call> policy{{}, {}};
        if (const status s = read_interval(interval, in.asked, policy); !s.ok()) { return s; }
        if (const status s = read_call(interval->policy, layer, 1, interval->request, in); !s.ok()) {
            return s;
        }
        return policy.plan(planned_call{&in}, plan->table, context->memory, context->executor);
    });
}

// ---- Running scores ----

kvtrim_status kvtrim_running_create(int64_t kv_heads, int64_t rollback_tokens, kvtrim_running** running) {
    return guarded([&]() -> status {
        if (const status s = valid_heads(kv_heads); !s.ok()) { return s; }
        if (rollback_tokens > 4096) { return invalid("running scores: at most 4096 rollback_tokens"); }
        return make_valid(running, running_scores(kv_heads, rollback_tokens));
    });
}
void kvtrim_running_destroy(kvtrim_running* running) {
    delete running;
}
kvtrim_status kvtrim_running_append(kvtrim_running* running, int64_t count) {
    return guarded([&] { return running == nullptr ? no_handle() : running->state.append(count); });
}
kvtrim_status kvtrim_running_add(kvtrim_running* running, const float* attention, int64_t rows,
                                 int64_t columns, int64_t queries) {
    return guarded([&]() -> status {
        if (running == nullptr) { return no_handle(); }
        return running->state.add(strided<const float, 2>(attention, {rows, columns}), queries);
    });
}
kvtrim_status kvtrim_running_update(kvtrim_running* running, const kvtrim_layer* layer,
                                    const kvtrim_request* request, kvtrim_context* context) {
    return guarded([&]() -> status {
        if (running == nullptr || context == nullptr) { return no_handle(); }
        layer_parts parts;
        c::request asked;
        if (const status s = read_layer(layer, KVTRIM_NEEDS_QUERIES, parts); !s.ok()) { return s; }
        if (const status s = read_request(request, asked); !s.ok()) { return s; }
        return running->state.update(inputs_of<with_queries>(parts), asked.value.attention, context->memory,
                                     context->executor);
    });
}
kvtrim_status kvtrim_running_rollback(kvtrim_running* running, int64_t count) {
    return guarded([&]() -> status {
        if (running == nullptr) { return no_handle(); }
        return count < 0 ? invalid("rollback: the number of tokens must not be negative")
                         : running->state.rollback(count);
    });
}
kvtrim_status kvtrim_running_compact(kvtrim_running* running, const kvtrim_plan* plan) {
    return guarded([&] {
        return running == nullptr || plan == nullptr ? no_handle() : running->state.compact(plan->table);
    });
}
const float* kvtrim_running_sums(const kvtrim_running* running, int64_t head, int64_t* count) {
    const bool exists = running != nullptr && head >= 0 && head < running->state.kv_heads();
    const std::span<const float> sums = exists ? running->state.sums(head) : std::span<const float>{};
    if (count != nullptr) { *count = std::ssize(sums); }
    return sums.data();
}
kvtrim_status kvtrim_running_save(const kvtrim_running* running, void* out, int64_t out_bytes,
                                  int64_t* needed) {
    return guarded([&] {
        return running == nullptr ? no_handle() : save_state(running->state, out, out_bytes, needed);
    });
}
kvtrim_status kvtrim_running_restore(kvtrim_running* running, const void* bytes, int64_t byte_count) {
    return guarded(
        [&] { return running == nullptr ? no_handle() : restore_state(running->state, bytes, byte_count); });
}

} // extern "C"
