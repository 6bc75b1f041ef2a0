// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Replays: what a pass over the prompt wants of its rows.
#include "policies.hpp"

#include <kvtrim/score/add_pass.hpp>

#include <limits>

namespace kvtrim::c {
namespace {

/// Calls fn(inputs) with what a replay reads: values and W_O only for losses of outputs.
template <class Fn>
status with_replay_inputs(const replay_scores& state, const kvtrim_layer* layer, Fn&& fn) {
    const bool outputs = state.loss() != token_loss::attention_maximum;
    if (layer == nullptr) { return invalid("the layer must not be null"); }
    layer_parts parts;
    const int values = outputs ? KVTRIM_NEEDS_VALUES : 0;
    if (const status s = read_layer(layer, KVTRIM_NEEDS_QUERIES | values, parts); !s.ok()) { return s; }
    if (!outputs) { return fn(inputs_of<with_queries>(parts)); }
    if (const kvtrim_projection* prepared = parts.given.projection; prepared != nullptr) {
        const auto* const gram = std::get_if<gram_projection>(&prepared->state);
        if (gram == nullptr) { return invalid("replay: W_O is read as it is, or prepared as KVTRIM_GRAM"); }
        using with_gram = layer_inputs<any_rows, any_rows, any_rows, gram_view>;
        return fn(with_gram{parts.keys, parts.values, parts.queries, gram->view()});
    }
    if (parts.given.output_projection == nullptr) { return fn(inputs_of<with_both>(parts)); }
    parts.output_projection = any_rows::of(parts.given.output_projection);
    return fn(inputs_of<with_all>(parts));
}

status add_to(kvtrim_replay* replay, const kvtrim_layer* layer, const kvtrim_request* request,
              kvtrim_context* context, const replay_part& part) {
    if (replay == nullptr || context == nullptr) { return no_handle(); }
    c::request asked;
    if (const status s = read_request(request, asked); !s.ok()) { return s; }
    return with_replay_inputs(replay->state, layer, [&](const auto& in) {
        return replay->state.add(in, asked.value.attention, context->memory, part, context->executor);
    });
}

} // namespace
} // namespace kvtrim::c

using namespace kvtrim;
using namespace kvtrim::c;

extern "C" {

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
    return guarded([&] { return add_to(replay, layer, request, context, {}); });
}
kvtrim_status kvtrim_replay_add_part(kvtrim_replay* replay, const kvtrim_layer* layer,
                                     const kvtrim_request* request, int64_t first, int64_t end,
                                     int64_t sink_tokens, kvtrim_context* context) {
    return guarded([&]() -> status {
        return add_to(replay, layer, request, context, {{first, end}, sink_tokens});
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
kvtrim_status kvtrim_replay_add_pass(kvtrim_replay* replay, const kvtrim_replay* other, int64_t own_nearest,
                                     double weight) {
    return guarded([&]() -> status {
        if (replay == nullptr || other == nullptr) { return no_handle(); }
        const bool fits = weight >= 0 && weight <= double{std::numeric_limits<float>::max()};
        return add_pass(replay->state, other->state, own_nearest, fits ? static_cast<float>(weight) : -1.0f);
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
kvtrim_status kvtrim_replay_weigh(kvtrim_replay* replay, const kvtrim_norms* norms) {
    return guarded([&] {
        return replay == nullptr || norms == nullptr ? no_handle()
                                                     : replay->state.weigh(norms->state.view().rows);
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
kvtrim_status kvtrim_replay_save(const kvtrim_replay* replay, void* out, int64_t out_bytes, int64_t* needed) {
    return guarded(
        [&] { return replay == nullptr ? no_handle() : save_state(replay->state, out, out_bytes, needed); });
}
kvtrim_status kvtrim_replay_restore(kvtrim_replay* replay, const void* bytes, int64_t byte_count) {
    return guarded(
        [&] { return replay == nullptr ? no_handle() : restore_state(replay->state, bytes, byte_count); });
}

} // extern "C"
