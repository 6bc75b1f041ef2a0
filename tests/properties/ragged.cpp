// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include "support/policy_oracle.hpp"

#include <kvtrim/compact/compact_to_flat.hpp>
#include <kvtrim/policy/baselines.hpp>
#include <kvtrim/policy/criticalkv.hpp>
#include <kvtrim/policy/defensivekv.hpp>

using namespace kvtrim;
using namespace support;

namespace {

// A layer whose heads have lengths of their own, each at least `queries`.
struct ragged_layer {
    layer_data full;
    ragged_cache keys;
    ragged_cache values;

    ragged_layer(const layer_data& layer, const std::vector<index_t>& lengths)
        : full(layer), keys(layer.keys(), lengths), values(layer.values(), lengths) {}

    [[nodiscard]] auto inputs() const {
        return kvtrim::layer(keys.get(), values.get())
            .with_queries(full.queries())
            .with_output_projection(full.projection());
    }
};

std::vector<index_t> random_lengths(support::random& r, const layer_shape& s) {
    std::vector<index_t> lengths;
    for (index_t g = 0; g < s.kv_heads; ++g) { lengths.push_back(r.between(s.queries, s.tokens)); }
    return lengths;
}

// fn(name, policy) for policies that serve heads of different length.
template <class Fn>
void for_ragged_policies(Fn&& fn) {
    fn("snapkv", snapkv());
    fn("ada_snapkv", ada_snapkv());
    fn("criticalkv", criticalkv());
    fn("ada_criticalkv", ada_criticalkv());
    fn("defensivekv", defensivekv());
    fn("key_diff", key_diff());
    fn("streaming_llm", streaming_llm());
}

} // namespace

TEST_CASE("heads of different length: budgets sum exactly, protected tokens stay", "[properties][ragged]") {
    support::random r(451);
    for (int i = 0; i < 30; ++i) {
        const layer_data layer = random_layer(policy_shape(r), 8000 + static_cast<std::uint64_t>(i));
        const ragged_layer cut(layer, random_lengths(r, layer.shape));
        const auto in = cut.inputs();
        eviction_request request{
            .budget = {},
            .protect = {.sink_tokens = r.between(0, 3), .window_tokens = r.between(0, layer.shape.queries)}};
        const index_t budget = random_budget(r, in, request.protect);
        if (budget == 0) { continue; }
        request.budget = over_all_heads(budget);
        for_ragged_policies([&](const char* name, const auto& policy) {
            const trace t = run(policy, in, request);
            CAPTURE(i, name, budget);
            REQUIRE(t.answer.ok());
            CHECK(is_valid(t.plan, in));
            CHECK(keeps_protected(t.plan, in, request.protect));
            CHECK(t.plan.total_tokens() == budget);
        });
    }
}

TEST_CASE("heads of different length: the kept tokens are the oracle's", "[properties][ragged][oracle]") {
    support::random r(452);
    int compared = 0;
    for (int i = 0; i < 40; ++i) {
        const layer_data layer = random_layer(policy_shape(r), 8100 + static_cast<std::uint64_t>(i));
        const ragged_layer cut(layer, random_lengths(r, layer.shape));
        const auto in = cut.inputs();
        eviction_request request{.budget = {},
                                 .protect = {.window_tokens = r.between(0, layer.shape.queries)}};
        const index_t budget = random_budget(r, in, request.protect);
        if (budget == 0) { continue; }
        request.budget = over_all_heads(budget);
        const layer_oracle slow(in, request);
        const std::size_t total = slow.total(budget);
        const auto scores = slow.snapkv();
        oracle::near_ties ties;
        const auto uniform_sets =
            best_of_rows(scores, oracle::uniform_budgets(oracle::lengths(scores), total), ties);
        const auto adaptive_sets = best_of_rows(
            scores, oracle::adaptive_budgets(scores, total, share_of(total, scores.size(), 0.2), ties), ties);
        if (ties.rounding_may_decide()) { continue; }
        const auto with_uniform = kept_sets(run(snapkv(), in, request).plan);
        const auto with_adaptive = kept_sets(run(ada_snapkv(), in, request).plan);
        for (std::size_t g = 0; g < slow.heads(); ++g) {
            const std::size_t tokens = slow.keys[g].size();
            CAPTURE(i, g, budget, tokens);
            CHECK(with_uniform[g] == oracle::with_protected(slow.protect, tokens, uniform_sets[g]));
            CHECK(with_adaptive[g] == oracle::with_protected(slow.protect, tokens, adaptive_sets[g]));
        }
        ++compared;
    }
    CHECK(compared >= 25);
}

TEST_CASE("a cache that was cut can be cut again: what stays are rows of the first cache",
          "[properties][ragged]") {
    support::random r(453);
    for (int i = 0; i < 15; ++i) {
        layer_shape shape{
            .kv_heads = r.between(1, 4), .group = 2, .tokens = r.between(60, 150), .queries = 6};
        layer_data layer = random_layer(shape, 8200 + static_cast<std::uint64_t>(i));
        const layer_data before = layer;
        const protection protect{.sink_tokens = 2, .window_tokens = 6};
        for_ragged_policies([&](const char* name, const auto& policy) {
            layer = before;
            const trace first = run(policy, layer.inputs(), {.budget = per_head(50), .protect = protect});
            REQUIRE(first.answer.ok());
            const strided<float, 3> k(layer.k.data(), {shape.kv_heads, shape.tokens, shape.head_dim});
            const strided<float, 3> v(layer.v.data(), {shape.kv_heads, shape.tokens, shape.value_dim});
            REQUIRE(compact_to_flat(k, first.plan).ok());
            REQUIRE(compact_to_flat(v, first.plan).ok());

            const auto flat_k = flat_view(layer.k.data(), first.plan, shape.head_dim);
            const auto flat_v = flat_view(layer.v.data(), first.plan, shape.value_dim);
            const auto in = kvtrim::layer(flat_k, flat_v)
                                .with_queries(layer.queries())
                                .with_output_projection(layer.projection());
            const trace second = run(policy, in, {.budget = per_head(20), .protect = protect});
            REQUIRE(second.answer.ok());
            CAPTURE(i, name);
            CHECK(second.plan.total_tokens() == 20 * shape.kv_heads);
            CHECK(keeps_protected(second.plan, in, protect));
            REQUIRE(compact_to_flat(flat_k, second.plan).ok());
            const auto twice = flat_view(layer.k.data(), second.plan, shape.head_dim);
            bool same = true;
            for (index_t g = 0; g < shape.kv_heads; ++g) {
                for (index_t t = 0; t < second.plan.kept_tokens(g); ++t) {
                    const auto in_flat = second.plan.row(g)[static_cast<std::size_t>(t)];
                    const auto original = first.plan.row(g)[static_cast<std::size_t>(in_flat)];
                    for (index_t d = 0; d < shape.head_dim; ++d) {
                        same = same && twice.row(g, t)[d] == before.keys()(g, original, d);
                    }
                }
            }
            CHECK(same);
        });
    }
}
