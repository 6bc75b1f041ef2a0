// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "live_policies.hpp"

#include "engine.hpp"

#include <kvtrim/kvtrim.hpp>

#include <stdexcept>
#include <utility>

namespace needle {
namespace {

// make(layer) gives the policy for the cache as it is now.
template <class Make>
live_policy made_each_time(std::string name, kept_state state, bool heads_differ, const Make& make) {
    return {.name = std::move(name),
            .state = state,
            .heads_differ = heads_differ,
            .cut = [make](const live_layer& layer, const kvtrim::eviction_request& request,
                          kvtrim::growing_workspace& memory, kvtrim::keep_plan& plan) {
                return make(layer).plan(layer.inputs(), request, plan, memory);
            }};
}

template <class Scorer>
auto best_of(const Scorer& scorer) {
    return kvtrim::eviction_policy{scorer, kvtrim::uniform{}, kvtrim::by_importance{}};
}

template <class Scorer, class Allocator, class Reranker>
live_policy named(std::string name, const kvtrim::eviction_policy<Scorer, Allocator, Reranker>& policy) {
    return made_each_time(std::move(name), kept_state::none, !Allocator::is_uniform,
                          [policy](const live_layer&) { return policy; });
}

live_policy h2o(std::string name, kvtrim::score_lifetime lifetime) {
    return made_each_time(
        std::move(name), kept_state::received_attention, false,
        [lifetime](const live_layer& layer) { return best_of(layer.received().scorer(lifetime)); });
}

live_policy expected_attention() {
    return {.name = "expected_attention",
            .state = kept_state::query_statistics,
            .heads_differ = false,
            .cut = [](const live_layer& layer, const kvtrim::eviction_request& request,
                      kvtrim::growing_workspace& memory, kvtrim::keep_plan& plan) {
                return kvtrim::expected_attention(layer.statistics(), layer.rotation())
                    .plan(layer.inputs(), request, plan, memory);
            }};
}

// With the means of the sequence's own queries so far, where its authors gather them on another text.
live_policy triattention() {
    return made_each_time("triattention", kept_state::query_pair_means, false, [](const live_layer& layer) {
        return kvtrim::triattention(layer.pair_means(), layer.rotation(),
                                    {.next_position = layer.positions().next_position()});
    });
}

// Another seed for each cut: rows move, and a row's number would decide forever.
live_policy random() {
    return made_each_time("random", kept_state::none, false, [](const live_layer& layer) {
        return kvtrim::random(static_cast<std::uint64_t>(layer.positions().next_position()));
    });
}

} // namespace

const std::vector<live_policy>& live_policies() {
    static const std::vector<live_policy> policies{
        named("snapkv", kvtrim::snapkv()),
        named("ada_snapkv", kvtrim::ada_snapkv()),
        named("criticalkv", kvtrim::criticalkv()),
        named("ada_criticalkv", kvtrim::ada_criticalkv()),
        named("defensivekv", kvtrim::defensivekv()),
        named("consensuskv", kvtrim::consensuskv()),
        named("tova", kvtrim::tova()),
        named("dropkv", kvtrim::dropkv()),
        h2o("h2o", kvtrim::score_lifetime::ignored),
        h2o("h2o_normalised", kvtrim::score_lifetime::normalised),
        expected_attention(),
        triattention(),
        named("rkv", kvtrim::rkv()),
        named("lagkv", kvtrim::lagkv(small_lag)),
        named("streaming_llm", kvtrim::streaming_llm()),
        named("key_norm", kvtrim::key_norm()),
        named("key_diff", kvtrim::key_diff()),
        random(),
    };
    return policies;
}

const live_policy& live_policy_named(const std::string& name) {
    for (const live_policy& p : live_policies()) {
        if (p.name == name) { return p; }
    }
    throw std::invalid_argument("no policy for generation: " + name);
}

} // namespace needle
