// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include "support/named_policies.hpp"
#include "support/policy_oracle.hpp"

using namespace kvtrim;
using namespace support;

namespace {

// Heads of `v` in another order; each old head is `group` wide.
std::vector<float> permuted(const view& v, const std::vector<index_t>& order, index_t group) {
    std::vector<float> result;
    for (const index_t old : order) {
        for (index_t h = old * group; h < (old + 1) * group; ++h) {
            for (index_t i = 0; i < v.extent(1); ++i) {
                for (index_t d = 0; d < v.extent(2); ++d) { result.push_back(v(h, i, d)); }
            }
        }
    }
    return result;
}

} // namespace

TEST_CASE("KV heads in another order give the same sets in that order", "[properties]") {
    for_random_layers(411, 25, [](const layer_data& layer, eviction_request request, support::random& r) {
        const layer_shape& s = layer.shape;
        std::vector<index_t> order;
        for (index_t g = 0; g < s.kv_heads; ++g) { order.insert(order.begin() + r.between(0, g), g); }
        const layer_data other{s, permuted(layer.keys(), order, 1), permuted(layer.values(), order, 1),
                               permuted(layer.queries(), order, s.group),
                               permuted(layer.projection(), order, s.group)};
        std::vector<float> sinks;
        for (const index_t g : order) {
            for (index_t h = g * s.group; h < (g + 1) * s.group && !request.attention.sink_logits.empty();
                 ++h) {
                sinks.push_back(request.attention.sink_logits[static_cast<std::size_t>(h)]);
            }
        }
        // The order of heads decides ties between them: tokens that no query sees, and, below, an uneven budget.
        request.attention.sliding_window = 0;
        const index_t spent = protected_tokens(layer.inputs(), request.protect);
        const index_t even = (request.budget.tokens - spent) / s.kv_heads * s.kv_heads + spent;
        if (even == 0) { return; }
        request.budget = over_all_heads(even);
        eviction_request reordered = request;
        reordered.attention.sink_logits = sinks;
        for (const named_policy& policy : named_policies()) {
            if (policy.name == "random") { continue; } // scores by head index
            // Their order also decides how sums over heads and shares are rounded.
            if (policy.one_set || policy.name == "ada_snapkv, blended") { continue; }
            const auto sets = kept_sets(policy(layer.inputs(), request).plan);
            const auto others = kept_sets(policy(other.inputs(), reordered).plan);
            CAPTURE(policy.name);
            for (std::size_t i = 0; i < order.size(); ++i) {
                CHECK(others[i] == sets[static_cast<std::size_t>(order[i])]);
            }
        }
    });
}

TEST_CASE("policies that treat heads separately give each head what it gets alone", "[properties]") {
    for_random_layers(412, 15, [](const layer_data& layer, eviction_request request, support::random&) {
        const layer_shape& s = layer.shape;
        const index_t spent = protected_tokens(layer.inputs(), request.protect);
        const index_t each = request.budget.tokens / s.kv_heads;
        if (each == 0 || each * s.kv_heads < spent) { return; }
        request.budget = per_head(each);
        for (const named_policy& policy : named_policies()) {
            if (policy.across_heads || policy.name == "random") { continue; }
            const auto sets = kept_sets(policy(layer.inputs(), request).plan);
            for (index_t g = 0; g < s.kv_heads; ++g) {
                layer_data alone{s, permuted(layer.keys(), {g}, 1), permuted(layer.values(), {g}, 1),
                                 permuted(layer.queries(), {g}, s.group),
                                 permuted(layer.projection(), {g}, s.group)};
                alone.shape.kv_heads = 1;
                eviction_request own = request;
                if (!request.attention.sink_logits.empty()) {
                    own.attention.sink_logits = request.attention.sink_logits.subspan(
                        static_cast<std::size_t>(g * s.group), static_cast<std::size_t>(s.group));
                }
                CAPTURE(policy.name, g);
                CHECK(kept_sets(policy(alone.inputs(), own).plan)[0] == sets[static_cast<std::size_t>(g)]);
            }
        }
    });
}

TEST_CASE("a group of equal query heads is the same as one query head per KV head", "[properties]") {
    for_random_layers(413, 20, [](const layer_data& layer, eviction_request request, support::random& r) {
        layer_data single = layer;
        single.shape.group = 1;
        single.q.resize(
            static_cast<std::size_t>(single.shape.kv_heads * single.shape.queries * single.shape.head_dim));
        single.w.resize(
            static_cast<std::size_t>(single.shape.kv_heads * single.shape.value_dim * single.shape.hidden));
        request.attention.sink_logits = {};
        const index_t copies = r.one_of({2, 3, 4});
        layer_data repeated = single;
        repeated.shape.group = copies;
        repeated.q.clear();
        repeated.w.clear();
        for (index_t g = 0; g < single.shape.kv_heads; ++g) {
            for (index_t i = 0; i < copies; ++i) {
                const auto q = permuted(single.queries(), {g}, 1);
                const auto w = permuted(single.projection(), {g}, 1);
                repeated.q.insert(repeated.q.end(), q.begin(), q.end());
                repeated.w.insert(repeated.w.end(), w.begin(), w.end());
            }
        }
        for (const named_policy& policy : named_policies()) {
            trace one = policy(single.inputs(), request);
            trace many = policy(repeated.inputs(), request);
            const oracle::row expected(one.importance.begin(), one.importance.end());
            CAPTURE(policy.name, copies);
            CHECK(difference(many.importance, expected) == "");
        }
    });
}
