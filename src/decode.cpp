// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// The state of a living cache: positions, interval eviction, running scores, replays, statistics of queries.
#include "policies.hpp"

#include <kvtrim/decode/close_up.hpp>
#include <kvtrim/decode/interval_policy.hpp>

struct kvtrim_positions {
    kvtrim::cache_positions state;
};

namespace kvtrim::c {
namespace {

status valid_heads(index_t heads) {
    if (heads >= 0 && heads <= most_heads) { return {}; }
    return {errc::invalid_parameter, "heads must not be negative, and at most 2^20", most_heads};
}

/// *out = a new object of a state that says of itself that it is valid.
template <class Handle, class State>
status make_valid(Handle** out, State state) {
    const status s = state.validate();
    return s.ok() ? make(out, std::move(state)) : s;
}

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

/// Calls fn(inputs) with what a replay reads: values and W_O only for losses of outputs.
template <class Fn>
status with_replay_inputs(const replay_scores& state, const kvtrim_layer* layer, Fn&& fn) {
    const bool outputs = state.loss() != token_loss::attention_maximum;
    if (layer == nullptr) { return invalid("the layer must not be null"); }
    layer_parts parts;
    const int values = outputs ? KVTRIM_NEEDS_VALUES : 0;
    if (const status s = read_layer(layer, KVTRIM_NEEDS_QUERIES | values, parts); !s.ok()) { return s; }
    if (!outputs) { return fn(inputs_of<with_queries>(parts)); }
    if (parts.given.output_projection == nullptr) { return fn(inputs_of<with_both>(parts)); }
    parts.output_projection = any_rows::of(parts.given.output_projection);
    return fn(inputs_of<with_all>(parts));
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

// ---- Replays ----

kvtrim_status kvtrim_replay_create(int64_t kv_heads, int64_t tokens, int32_t loss, kvtrim_replay** replay) {
    return guarded([&]() -> status {
        if (const status s = valid_heads(kv_heads); !s.ok()) { return s; }
        if (loss < KVTRIM_ATTENTION_MAXIMUM || loss > KVTRIM_OUTPUT_SQUARE_SUM) {
            return invalid("replay: no such loss");
        }
        return make_valid(replay, replay_scores(kv_heads, tokens, static_cast<token_loss>(loss)));
    });
}
void kvtrim_replay_destroy(kvtrim_replay* replay) {
    delete replay;
}
kvtrim_status kvtrim_replay_add(kvtrim_replay* replay, const kvtrim_layer* layer,
                                const kvtrim_request* request, kvtrim_context* context) {
    return guarded([&]() -> status {
        if (replay == nullptr || context == nullptr) { return no_handle(); }
        c::request asked;
        if (const status s = read_request(request, asked); !s.ok()) { return s; }
        return with_replay_inputs(replay->state, layer, [&](const auto& in) {
            return replay->state.add(in, asked.value.attention, context->memory, {}, context->executor);
        });
    });
}
kvtrim_status kvtrim_replay_add_own(kvtrim_replay* replay, const kvtrim_layer* layer,
                                    const kvtrim_request* request, int64_t nearest, kvtrim_context* context) {
    return guarded([&]() -> status {
        if (replay == nullptr || context == nullptr) { return no_handle(); }
        c::request asked;
        if (const status s = read_request(request, asked); !s.ok()) { return s; }
        return with_replay_inputs(replay->state, layer, [&](const auto& in) {
            return replay->state.add_own(in, asked.value.attention, nearest, context->memory,
                                         context->executor);
        });
    });
}
kvtrim_status kvtrim_replay_append(kvtrim_replay* replay, int64_t count) {
    return guarded([&] { return replay == nullptr ? no_handle() : replay->state.append(count); });
}
kvtrim_status kvtrim_replay_compact(kvtrim_replay* replay, const kvtrim_plan* plan) {
    return guarded([&] {
        return replay == nullptr || plan == nullptr ? no_handle() : replay->state.compact(plan->table);
    });
}
kvtrim_status kvtrim_replay_scores(const kvtrim_replay* replay, int64_t head, float* out, int64_t out_count) {
    return guarded([&]() -> status {
        if (replay == nullptr) { return no_handle(); }
        if (head < 0 || head >= replay->state.kv_heads()) { return invalid("replay_scores: no such head"); }
        const index_t tokens = replay->state.tokens(head);
        if (out_count < tokens || (out == nullptr && tokens > 0)) {
            return {errc::no_room, "replay_scores: out must hold the head's tokens", tokens};
        }
        for (index_t t = 0; t < tokens; ++t) { out[t] = replay->state.score(head, t); }
        return {};
    });
}

// ---- Statistics of queries ----

kvtrim_status kvtrim_statistics_create(int64_t q_heads, int64_t head_dim, int64_t skip_positions,
                                       kvtrim_statistics** statistics) {
    return guarded([&]() -> status {
        if (const status s = valid_heads(q_heads); !s.ok()) { return s; }
        return make_valid(statistics, query_statistics(q_heads, head_dim, skip_positions));
    });
}
void kvtrim_statistics_destroy(kvtrim_statistics* statistics) {
    delete statistics;
}
kvtrim_status kvtrim_statistics_add(kvtrim_statistics* statistics, const kvtrim_view* queries,
                                    kvtrim_context* context) {
    return guarded([&]() -> status {
        if (statistics == nullptr || context == nullptr) { return no_handle(); }
        const any_rows rows = any_rows::of(queries);
        workspace scratch = context->memory.of_bytes(statistics->state.workspace_bytes(context->executor));
        return statistics->state.add(rows, scratch, context->executor);
    });
}

} // extern "C"
