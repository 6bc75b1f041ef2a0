// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// What the code of CritiPrefill (66RING/CritiPrefill@3067f1e criti_prefill/ops.py) does to some prompts, and must not
// happen here.

#include "support/prefill.hpp"

#include <kvtrim/policy/critiprefill.hpp>
#include <kvtrim/prefill/block_sparse_attention.hpp>

#include <cmath>
#include <limits>
#include <vector>

using namespace kvtrim;
using namespace support;

namespace {

layer_data prompt(index_t tokens, std::uint64_t seed) {
    return random_prompt({.kv_heads = 2, .group = 2, .tokens = tokens, .head_dim = 8, .value_dim = 8}, seed);
}

// Segments of 12, blocks of 4, a budget of 24 tokens; no protected blocks, as the authors' code.
block_pruner<mid_query, uniform> authors_policy() {
    block_pruner<mid_query, uniform> policy{
        .options = small_options, .criticality = {.scale = 1}, .fusion = {.previous_weight = 0}};
    policy.options.budget_tokens = 24;
    return policy;
}

} // namespace

// 35: only segment >= block is asserted; a segment that is no multiple fails in a reshape.
TEST_CASE("a segment that is no multiple of its blocks is refused before anything is computed",
          "[regression]") {
    auto policy = authors_policy();
    policy.options.segment_tokens = 14;
    const layer_data layer = prompt(100, 1);
    layer_fusion state;
    prune_plan plan = planned_before();
    growing_workspace memory;
    CHECK(policy.plan(layer.queries(), layer.keys(), {}, state, plan, memory).code() ==
          errc::invalid_parameter);
    CHECK(plan == planned_before());
}

// 35: a prompt of one segment or less fails (no whole segment is left).
TEST_CASE("a prompt shorter than two segments is planned", "[regression]") {
    for (const index_t tokens : {0, 1, 3, 12, 13, 23}) {
        const prune_plan plan = plan_prompt(authors_policy(), prompt(tokens, 2));
        CHECK(plan.grid().segments() == (tokens + 11) / 12);
        CHECK(plan.check_invariants());
    }
}

// 36: n 1500 with a budget of 2048: topk raises although nothing would be pruned.
TEST_CASE("a prompt shorter than the budget attends everything", "[regression]") {
    auto policy = authors_policy();
    policy.options.budget_tokens = 200;
    const prune_plan plan = plan_prompt(policy, prompt(150, 3));
    CHECK(plan.planned_pairs() == plan.dense_pairs());
}

// 36: n 4096: 32 of 64 blocks of segment 2 are not allowed ones; with a threshold below the budget the gather fails.
TEST_CASE("a segment with fewer earlier blocks than the budget takes those and no others", "[regression]") {
    auto policy = authors_policy();
    for (const index_t threshold : {0, 12, 36}) {
        policy.options.dense_below_tokens = threshold;
        const prune_plan plan = plan_prompt(policy, prompt(60, 4));
        CHECK(plan.check_invariants());
        for (index_t s = 0; s < 5; ++s) {
            CHECK(static_cast<index_t>(plan.row(0, s).size()) ==
                  std::min<index_t>(3 * s, s < threshold / 12 ? 99 : 6));
        }
    }
}

// 36: masks are finfo.min added to the logit: -infinity in fp16, and NaN for a segment without any allowed block.
TEST_CASE("half-precision extremes make no segment NaN and no future block critical", "[regression]") {
    layer_data layer = prompt(96, 5);
    support::random r(5);
    for (float& x : layer.q) { x = r.chance(0.5) ? 65504.0f : -65504.0f; }
    for (float& x : layer.k) { x = r.chance(0.5) ? 65504.0f : -65504.0f; }
    auto policy = authors_policy();
    policy.fusion.previous_weight = 0.25;
    const auto q = store<f16>(layer.queries(), layout::token_major),
               k = store<f16>(layer.keys(), layout::token_major),
               v = store<f16>(layer.values(), layout::token_major);
    layer_fusion state;
    for (index_t l = 0; l < 4; ++l) {
        prune_plan plan;
        growing_workspace memory;
        REQUIRE(policy.plan(q.get(), k.get(), {.layer = l}, state, plan, memory).ok());
        CHECK(plan.check_invariants());
        CHECK(plan.row(0, 7).size() == 6);
        std::vector<float> out = zeros(4 * 96 * 8);
        REQUIRE(block_sparse_attention(kvtrim::layer(k.get(), v.get()).with_queries(q.get()), plan, {},
                                       strided<float, 3>(out.data(), {4, 96, 8}), {}, memory)
                    .ok());
        CHECK(std::all_of(out.begin(), out.end(), [](float x) { return std::isfinite(x); }));
    }
}

// 37: without 1 / sqrt(d) the softmax is one-hot: weights below e^-104 are 0, and top-k picks among equal zeros.
TEST_CASE("blocks whose softmax weight underflows are ranked by what they are worth", "[regression]") {
    layer_data layer = prompt(96, 6);
    for (float& x : layer.q) { x *= 100; }
    const auto unscaled = authors_policy();
    oracle::near_ties ties;
    oracle::fused_layer none;
    const auto expected = oracle::prune(to_oracle(unscaled), to_oracle(layer.queries()),
                                        to_oracle(layer.keys()), 0, true, 0, none, ties);
    REQUIRE_FALSE(ties.rounding_may_decide());
    CHECK(rows_of(plan_prompt(unscaled, layer)) == expected);
    auto scaled = unscaled; // the order of logits does not depend on their scale
    scaled.criticality.scale = 0.125f;
    CHECK(rows_of(plan_prompt(scaled, layer)) == expected);
    auto fused = unscaled; // a layer that has nothing to mix with
    fused.fusion.previous_weight = 0.25;
    CHECK(rows_of(plan_prompt(fused, layer)) == expected);
}

// 37: the products of maxima are a heuristic: the block of the largest logit may get the lowest estimate.
TEST_CASE("the block that mid_query overlooks is found by corner_query", "[regression]") {
    layer_data layer = random_prompt({.kv_heads = 1, .group = 1, .tokens = 48, .head_dim = 1}, 7);
    for (index_t t = 0; t < 48; ++t) {
        layer.q[static_cast<std::size_t>(t)] = t % 2 == 0 ? 5.0f : -5.0f; // their middle is 0
        *layer.key(0, t) = 0.1f;
    }
    *layer.key(0, 33) = 9; // block 8
    auto mid = authors_policy();
    block_pruner<corner_query, uniform> corner{.options = mid.options, .fusion = mid.fusion};
    mid.options.budget_tokens = corner.options.budget_tokens = 4;
    CHECK(plan_prompt(mid, layer).row(0, 3).front() == 0); // all estimates are equal
    CHECK(plan_prompt(corner, layer).row(0, 3).front() == 8);
}

// 38: one global object holds the previous layer's scores: a second request mixes with the first one's.
TEST_CASE("the fusion of one request does not depend on another", "[regression]") {
    auto policy = authors_policy();
    policy.fusion.previous_weight = 0.9;
    const auto plans = [&](bool disturbed) {
        layer_fusion mine, other;
        std::vector<prune_plan> result(4);
        prune_plan ignored;
        growing_workspace memory;
        for (index_t l = 0; l < 4; ++l) {
            const layer_data layer = prompt(96, static_cast<std::uint64_t>(10 + l));
            const layer_data loud =
                prompt(disturbed && l % 2 == 0 ? 96 : 80, static_cast<std::uint64_t>(20 + l));
            if (disturbed) {
                REQUIRE(policy.plan(loud.queries(), loud.keys(), {.layer = l}, other, ignored, memory).ok());
            }
            REQUIRE(policy
                        .plan(layer.queries(), layer.keys(), {.layer = l}, mine,
                              result[static_cast<std::size_t>(l)], memory)
                        .ok());
        }
        return result;
    };
    CHECK(plans(true) == plans(false));
}

// 38: the state is reset by layer indices 0 and 1 only; a prompt of another length finds the old one's scores.
TEST_CASE("a fusion state that served another prompt is as good as a new one", "[regression]") {
    auto policy = authors_policy();
    policy.fusion.previous_weight = 0.5;
    const layer_data before = prompt(84, 30), layer = prompt(96, 31);
    layer_fusion used, fresh;
    prune_plan plan, expected;
    growing_workspace memory;
    REQUIRE(policy.plan(before.queries(), before.keys(), {.layer = 2}, used, plan, memory).ok());
    REQUIRE(policy.plan(layer.queries(), layer.keys(), {.layer = 3}, used, plan, memory).ok());
    REQUIRE(policy.plan(layer.queries(), layer.keys(), {.layer = 3}, fresh, expected, memory).ok());
    CHECK(plan == expected);
}

// 39: all queries at once, padded to whole segments; K repeated for all query heads; the last segment is dense.
TEST_CASE("a chunk with cached keys and a partial last segment is planned without padding", "[regression]") {
    auto policy = authors_policy();
    policy.options.dense_last_segment = true;
    const layer_data layer = prompt(91, 32);
    const oracle::plan_rows whole = rows_of(plan_prompt(policy, layer));
    layer_fusion state;
    prune_plan plan;
    growing_workspace memory;
    REQUIRE(
        policy.plan(rows_of(layer.queries(), 48, 91), layer.keys(), {.first_token = 48}, state, plan, memory)
            .ok());
    CHECK(plan.grid().segments() == 4);
    for (index_t g = 0; g < 2; ++g) {
        for (index_t s = 0; s < 4; ++s) {
            const oracle::token_set row(plan.row(g, s).begin(), plan.row(g, s).end());
            CHECK(row == whole[static_cast<std::size_t>(g)][static_cast<std::size_t>(s + 4)]);
        }
        CHECK(static_cast<index_t>(plan.row(g, 3).size()) == plan.grid().allowed_blocks(3));
    }
}

// 39: budgets in tokens are floored to blocks, to none at all.
TEST_CASE("a budget below one block is refused", "[regression]") {
    auto policy = authors_policy();
    policy.options.budget_tokens = 3;
    const layer_data layer = prompt(100, 33);
    layer_fusion state;
    prune_plan plan = planned_before();
    growing_workspace memory;
    const status s = policy.plan(layer.queries(), layer.keys(), {}, state, plan, memory);
    CHECK(s.code() == errc::budget_zero);
    CHECK(s.needed() == 4);
    CHECK(plan == planned_before());
}
