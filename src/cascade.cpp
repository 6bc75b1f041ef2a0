// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// One budget over all layers while they arrive.
#include "policies.hpp"

namespace kvtrim::c {

/// Protected tokens that a layer has before and behind its candidates.
struct protected_ends {
    index_t prefix, suffix;
};

} // namespace kvtrim::c

struct kvtrim_cascade {
    kvtrim_policy policy;
    kvtrim::eviction_request request;
    std::vector<float> sink_logits; // the request's, which need not outlive its call
    kvtrim::index_t layers;
    kvtrim::layer_cascade state;
    std::vector<kvtrim::c::protected_ends> ends = {}; // of the layers pushed
};

namespace kvtrim::c {
namespace {

/// Those of a layer whose heads may be shorter than what is protected; then they must be equally long.
status read_ends(const call& in, const policy_row& row, const protection& p, protected_ends& out) {
    const layer_parts& l = in.layers[0];
    index_t shortest = std::numeric_limits<index_t>::max(), longest = 0;
    for (index_t g = 0; g < in.policy->kv_heads(); ++g) {
        const bool replayed = (row.needs & KVTRIM_NEEDS_REPLAY) != 0;
        const index_t tokens = replayed ? l.given.replay->state.tokens(g) : l.keys.rows(g);
        shortest = std::min(shortest, tokens);
        longest = std::max(longest, tokens);
    }
    if (const index_t all = saturated_sum(p.prefix(), p.suffix()); shortest < longest && shortest < all) {
        return {errc::rows_differ,
                "cascade_push: a head is shorter than the protected tokens, others are not", all};
    }
    const token_range range = candidates(p, longest);
    out = {range.begin, longest - range.end};
    return {};
}

} // namespace
} // namespace kvtrim::c

using namespace kvtrim;
using namespace kvtrim::c;

extern "C" {

kvtrim_status kvtrim_cascade_create(const kvtrim_policy* policy, const kvtrim_layer* layer,
                                    const kvtrim_request* request, int64_t layers, kvtrim_cascade** cascade) {
    return guarded([&]() -> status {
        call in;
        if (const status s = c::read_call(policy, layer, 1, request, in); !s.ok()) { return s; }
        layer_cascade state = in.policy->begin(in.asked.value, layers);
        if (const status s = state.validate(); !s.ok()) { return s; }
        const auto logits = in.asked.value.attention.sink_logits;
        if (const status s = make(cascade, *policy, in.asked.value,
                                  std::vector<float>(logits.begin(), logits.end()), layers, std::move(state));
            !s.ok()) {
            return s;
        }
        (*cascade)->request.attention.sink_logits = (*cascade)->sink_logits;
        return {};
    });
}
void kvtrim_cascade_destroy(kvtrim_cascade* cascade) {
    delete cascade;
}

kvtrim_status kvtrim_cascade_push(kvtrim_cascade* cascade, const kvtrim_layer* layer,
                                  kvtrim_context* context) {
    return guarded([&]() -> status {
        if (cascade == nullptr || context == nullptr) {
            return invalid("cascade and context must not be null");
        }
        if (cascade->state.layers() >= cascade->layers) {
            return {errc::invalid_parameter, "cascade_push: all layers were pushed", cascade->layers};
        }
        kvtrim_request plain = {};
        kvtrim_request_init(&plain);
        plain.budget_tokens = 1; // the cascade's own request is used
        call in;
        if (const status s = c::read_call(&cascade->policy, layer, 1, &plain, in); !s.ok()) { return s; }
        protected_ends ends = {};
        if (const status s = read_ends(in, *cascade->policy.row, cascade->request.protect, ends); !s.ok()) {
            return s;
        }
        cascade->ends.reserve(cascade->ends.size() + 1); // the last line that may throw
        const status s = in.policy->push(cascade->request, cascade->layers, cascade->state, context->memory,
                                         context->executor);
        if (s.ok()) { cascade->ends.push_back(ends); }
        return s;
    });
}

int64_t kvtrim_cascade_layers(const kvtrim_cascade* cascade) {
    return cascade == nullptr ? 0 : cascade->state.layers();
}

kvtrim_status kvtrim_cascade_plan(const kvtrim_cascade* cascade, int64_t layer, kvtrim_plan* plan,
                                  int32_t* changed) {
    return guarded([&]() -> status {
        if (cascade == nullptr || plan == nullptr) { return invalid("cascade and plan must not be null"); }
        const bool pushed = layer >= 0 && layer < std::ssize(cascade->ends);
        const protected_ends ends =
            pushed ? cascade->ends[static_cast<std::size_t>(layer)] : protected_ends{};
        const status s = cascade->state.plan(layer, ends.prefix, ends.suffix, plan->table);
        if (s.ok() && changed != nullptr) { *changed = cascade->state.changed(layer) ? 1 : 0; }
        return s;
    });
}

} // extern "C"
