// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/prefill/block_pruner.hpp>

#include "core/own_views.hpp"
#include "support/prefill.hpp"
#include "support/special_floats.hpp"

#include <kvtrim/allocate/adaptive.hpp>
#include <kvtrim/allocate/blended.hpp>

#include <limits>
#include <vector>

using namespace kvtrim;
using namespace support;

namespace {

layer_shape random_prompt_shape(support::random& r) {
    return {.kv_heads = r.between(1, 3),
            .group = r.between(1, 3),
            .tokens = r.chance(0.2) ? r.between(0, 12) : r.between(12, 130),
            .head_dim = r.one_of({3, 8, 16})};
}

// Plans four layers of random prompts and compares each row with the oracle's.
template <class Pruner>
int compared_with_oracle(std::uint64_t seed, int cases, Pruner policy, double fusion_chance) {
    support::random r(seed);
    int compared = 0;
    for (int n = 0; n < cases; ++n) {
        policy.options = random_options(r);
        policy.criticality.scale = r.chance(0.3) ? 0.2f : 0.0f;
        policy.criticality.group =
            r.one_of({group_reduction::mean, group_reduction::maximum, group_reduction::sum});
        policy.fusion.previous_weight = r.chance(fusion_chance) ? 0.1 + 0.8 * r.uniform() : 0;
        policy.fusion.first_fused_layer = r.between(0, 3);
        const layer_shape shape = random_prompt_shape(r);
        layer_fusion state;
        oracle::fused_layer previous;
        bool drifted =
            false; // a near tie of this layer is no matter for the next one, which sees estimates only
        for (index_t l = 0; l < 4; ++l) {
            const layer_data layer = random_prompt(shape, r.bits());
            prune_plan plan = planned_before();
            REQUIRE(plan_in_bytes(policy, layer.queries(), layer.keys(), {.layer = l}, state, plan).ok());
            CHECK(plan.check_invariants());
            CHECK(plan.grid() == grid_of(policy.options, {}, shape.tokens));
            CHECK(plan.kv_heads() == shape.kv_heads);
            if (shape.tokens == 0) { continue; }
            oracle::near_ties ties;
            const oracle::plan_rows expected =
                oracle::prune(to_oracle(policy), to_oracle(layer.queries()), to_oracle(layer.keys()), 0, true,
                              static_cast<std::size_t>(l), previous, ties);
            if (ties.rounding_may_decide() || drifted) { continue; }
            CAPTURE(n, l, shape.tokens, policy.options.segment_tokens, policy.options.block_tokens,
                    policy.options.budget_tokens, policy.options.sink_blocks, policy.options.local_blocks,
                    policy.fusion.previous_weight, policy.fusion.first_fused_layer);
            CHECK(rows_of(plan) == expected);
            ++compared;
        }
    }
    return compared;
}

// Whether the segments that are pruned have exactly the budget in total, protected blocks in each row, all else all.
template <class Pruner>
void check_rows(const Pruner& policy, const prune_plan& plan, const prefill_chunk& chunk) {
    const segment_grid& grid = plan.grid();
    const pruning_options& o = policy.options;
    const segment_range pruned = pruned_segments(o, chunk, grid);
    CHECK(plan.check_invariants());
    for (index_t s = 0; s < grid.segments(); ++s) {
        const bool is_pruned = pruned.begin <= s && s < pruned.end;
        index_t total = 0;
        for (index_t g = 0; g < plan.kv_heads(); ++g) {
            const auto row = plan.row(g, s);
            total += static_cast<index_t>(row.size());
            const index_t allowed = grid.allowed_blocks(s);
            for (index_t b = 0; b < allowed; ++b) {
                const bool is_protected = !is_pruned || b < o.sink_blocks || b >= allowed - o.local_blocks;
                if (is_protected) { CHECK(std::binary_search(row.begin(), row.end(), b)); }
            }
        }
        CHECK(total == plan.kv_heads() * (is_pruned ? o.budget_blocks() : grid.allowed_blocks(s)));
    }
}

} // namespace

TEST_CASE("block_pruner: plans of random prompts equal the oracle", "[prefill]") {
    CHECK(compared_with_oracle(121, 25, block_pruner<mid_query, uniform>{}, 0) > 60);
    CHECK(compared_with_oracle(122, 25, block_pruner<mid_query, uniform>{}, 1) > 60);
    CHECK(compared_with_oracle(123, 15, block_pruner<corner_query, uniform>{}, 0.5) > 35);
    CHECK(compared_with_oracle(124, 25, block_pruner<mid_query, adaptive>{}, 0.5) > 60);
    CHECK(compared_with_oracle(
              125, 15, block_pruner<mid_query, adaptive>{.allocator = {.safeguard_ratio = 0.7}}, 0.5) > 35);
}

TEST_CASE("block_pruner: every allocator spends exactly the budget of each segment, protected blocks first",
          "[prefill]") {
    support::random r(126);
    for (int n = 0; n < 30; ++n) {
        const pruning_options options = random_options(r);
        const layer_data layer = random_prompt(random_prompt_shape(r), r.bits());
        const auto check = [&](auto policy) {
            policy.options = options;
            layer_fusion state;
            prune_plan plan;
            const prefill_chunk chunk{.layer = 1};
            REQUIRE(plan_in_bytes(policy, layer.queries(), layer.keys(), chunk, state, plan).ok());
            check_rows(policy, plan, chunk);
        };
        check(block_pruner<mid_query, uniform>{});
        check(block_pruner<corner_query, uniform>{});
        check(block_pruner<mid_query, adaptive>{});
        check(block_pruner<mid_query, adaptive>{.allocator = {.safeguard_ratio = 0}});
        check(block_pruner<corner_query, adaptive>{.allocator = {.safeguard_ratio = 1}});
        check(block_pruner<mid_query, blended>{});
    }
}

TEST_CASE("block_pruner: an adaptive allocator gives heads that differ different budgets", "[prefill]") {
    layer_data layer = random_prompt({.kv_heads = 2, .group = 1, .tokens = 120, .head_dim = 8}, 1);
    for (index_t t = 0; t < 120; ++t) {
        for (index_t d = 0; d < 8; ++d) { layer.key(1, t)[d] *= 0.01f; } // flat: no block stands out
    }
    block_pruner<mid_query, adaptive> policy{.options = small_options};
    const prune_plan plan = plan_prompt(policy, layer);
    bool differ = false;
    for (index_t s = 2; s < 10; ++s) { differ = differ || plan.row(0, s).size() != plan.row(1, s).size(); }
    CHECK(differ);
}

TEST_CASE("block_pruner: views in any order and decoded ones give the same plan", "[prefill]") {
    const layer_data layer = random_prompt({.kv_heads = 2, .group = 2, .tokens = 100, .head_dim = 16}, 2);
    const block_pruner<> policy{.options = small_options};
    const prune_plan expected = plan_prompt(policy, layer);
    const auto check = [&](const auto& queries, const auto& keys) {
        layer_fusion state;
        prune_plan plan;
        REQUIRE(plan_in_bytes(policy, queries, keys, {}, state, plan).ok());
        CHECK(plan == expected);
    };
    for (const layout order : {layout::token_major, layout::transposed, layout::reversed, layout::gapped}) {
        const auto q = store(layer.queries(), order), k = store(layer.keys(), order);
        check(q.get(), k.get());
    }
    check(generic_view{layer.queries()}, decoding_source(layer.keys()));
    check(decoding_source(layer.queries()), generic_view{layer.keys()});
}

TEST_CASE("block_pruner: rows of the cache behind the chunk change nothing", "[prefill]") {
    layer_data layer = random_prompt({.kv_heads = 2, .group = 2, .tokens = 100, .head_dim = 8}, 3);
    const block_pruner<> policy{.options = small_options};
    layer_fusion state;
    prune_plan alone, more;
    const view queries = rows_of(layer.queries(), 0, 70);
    REQUIRE(plan_in_bytes(policy, queries, rows_of(layer.keys(), 0, 70), {}, state, alone).ok());
    for (index_t g = 0; g < 2; ++g) { std::fill_n(layer.key(g, 70), 30 * 8, not_a_number); }
    REQUIRE(plan_in_bytes(policy, queries, layer.keys(), {}, state, more).ok());
    CHECK(more == alone);
}

TEST_CASE("block_pruner: a row depends on its own queries and the keys before them", "[prefill]") {
    const layer_data layer = random_prompt({.kv_heads = 1, .group = 2, .tokens = 96, .head_dim = 8}, 4);
    layer_data other = layer;
    for (index_t h = 0; h < 2; ++h) {
        for (index_t t = 60; t < 96; ++t) { other.q[static_cast<std::size_t>((h * 96 + t) * 8)] += 10; }
    }
    for (index_t t = 48; t < 96; ++t) { other.key(0, t)[3] -= 7; }
    const block_pruner<> policy{.options = small_options};
    const auto a = rows_of(plan_prompt(policy, layer)), b = rows_of(plan_prompt(policy, other));
    for (std::size_t s = 0; s < 5; ++s) { CHECK(a[0][s] == b[0][s]); } // the fifth segment begins at 48
}

TEST_CASE("block_pruner: where nothing is mixed, blocks are ranked by logits that the softmax would drop",
          "[prefill]") {
    // One query direction; blocks of rising logits, all but the last 80 and more below the maximum.
    layer_data layer = random_prompt({.kv_heads = 1, .group = 1, .tokens = 48, .head_dim = 1}, 5);
    std::fill(layer.q.begin(), layer.q.end(), 1.0f);
    for (index_t t = 0; t < 48; ++t) { *layer.key(0, t) = static_cast<float>(100 * (t / 4)); }
    block_pruner<> policy{.options = small_options, .criticality = {.scale = 1}};
    const std::vector<std::int32_t> best{6, 7, 8};
    for (const double weight : {0.0, 0.25}) {
        policy.fusion.previous_weight = weight;
        const prune_plan plan = plan_prompt(policy, layer);
        CAPTURE(weight);
        CHECK(std::vector(plan.row(0, 3).begin(), plan.row(0, 3).end()) == best);
    }
}

TEST_CASE("block_pruner: odd numbers give a plan within its rules", "[prefill]") {
    support::random r(127);
    for (const float odd : {not_a_number, infinity, -infinity, 65504.0f, -65504.0f, 3e38f, -3e38f}) {
        for (int n = 0; n < 4; ++n) {
            layer_data layer =
                random_prompt({.kv_heads = 2, .group = 2, .tokens = 90, .head_dim = 4}, r.bits());
            const double share = r.one_of({0.01, 0.3, 1.0});
            for (auto* values : {&layer.q, &layer.k}) {
                for (float& x : *values) { x = r.chance(share) ? odd : x; }
            }
            const auto check = [&](auto policy) {
                policy.options = small_options;
                policy.options.sink_blocks = policy.options.local_blocks = 1;
                layer_fusion state;
                for (index_t l = 0; l < 4; ++l) {
                    prune_plan plan, again;
                    layer_fusion copy = state;
                    REQUIRE(
                        plan_in_bytes(policy, layer.queries(), layer.keys(), {.layer = l}, state, plan).ok());
                    check_rows(policy, plan, {.layer = l});
                    REQUIRE(
                        plan_in_bytes(policy, layer.queries(), layer.keys(), {.layer = l}, copy, again).ok());
                    CHECK(again == plan);
                }
            };
            check(block_pruner<mid_query, uniform>{});
            check(block_pruner<corner_query, uniform>{});
            check(block_pruner<mid_query, adaptive>{});
        }
    }
}

TEST_CASE("block_pruner: ties go to the earlier block", "[prefill]") {
    layer_data layer = random_prompt({.kv_heads = 1, .group = 1, .tokens = 96, .head_dim = 2}, 6);
    std::fill(layer.k.begin(), layer.k.end(), 0.5f);
    block_pruner<> policy{.options = small_options};
    policy.options.local_blocks = 1;
    const prune_plan plan = plan_prompt(policy, layer);
    CHECK(std::vector(plan.row(0, 4).begin(), plan.row(0, 4).end()) == std::vector<std::int32_t>{0, 1, 11});
}

// ---- Degenerate prompts and options ------------------------------------------------------------------------

TEST_CASE("block_pruner: prompts shorter than anything attend everything", "[prefill]") {
    block_pruner<> policy{
        .options = {.dense_below_tokens = 0, .dense_layers = 0}}; // segment 512, budget 2048
    for (const index_t tokens : {0, 1, 31, 32, 33, 511, 512, 513, 1500, 2100}) {
        layer_shape shape{.kv_heads = 2, .group = 1, .tokens = tokens, .head_dim = 2};
        const layer_data layer = random_prompt(shape, 7);
        const prune_plan plan = plan_prompt(policy, layer);
        prune_plan dense;
        REQUIRE(plan_dense(plan.grid(), 2, dense).ok());
        CAPTURE(tokens);
        CHECK(plan == dense);
    }
}

TEST_CASE("block_pruner: a threshold below the budget does not choose blocks that are not there",
          "[prefill]") {
    block_pruner<> policy{.options = small_options};
    policy.options.budget_tokens = 32;
    policy.options.dense_below_tokens = 12;
    const layer_data layer = random_prompt({.kv_heads = 2, .group = 1, .tokens = 100, .head_dim = 4}, 8);
    const prune_plan plan = plan_prompt(policy, layer);
    check_rows(policy, plan, {});
    CHECK(plan.row(0, 2).size() == 6);
    CHECK(plan.row(0, 3).size() == 8);
}

TEST_CASE(
    "block_pruner: each refusal has its code, asks for no memory, and leaves plan and fusion state alone",
    "[prefill]") {
    const layer_data layer = random_prompt({.kv_heads = 2, .group = 2, .tokens = 100, .head_dim = 4}, 9);
    const layer_data next = random_prompt({.kv_heads = 2, .group = 2, .tokens = 100, .head_dim = 4}, 10);
    const block_pruner<mid_query, adaptive> good{.options = small_options};
    const auto refuse = [&](auto policy, const prefill_chunk& chunk, errc code, index_t needed = 0) {
        layer_fusion state;
        prune_plan plan;
        REQUIRE(plan_in_bytes(good, layer.queries(), layer.keys(), {.layer = 1}, state, plan).ok());
        layer_fusion untouched = state;
        plan = planned_before();
        growing_workspace memory;
        const status s = policy.plan(next.queries(), next.keys(), chunk, state, plan, memory);
        CHECK(s.code() == code);
        CHECK(s.needed() == needed);
        CHECK(plan == planned_before());
        CHECK(policy.validate(next.queries(), next.keys(), chunk).code() == code);
        CHECK(policy.workspace_bytes(next.queries(), next.keys(), chunk) == 0);
        prune_plan after, expected; // the next layer is mixed with the one before the refusal
        REQUIRE(plan_in_bytes(good, next.queries(), next.keys(), {.layer = 2}, state, after).ok());
        REQUIRE(plan_in_bytes(good, next.queries(), next.keys(), {.layer = 2}, untouched, expected).ok());
        CHECK(after == expected);
    };
    auto policy = good;
    policy.options.block_tokens = 5;
    refuse(policy, {.layer = 2}, errc::invalid_parameter);
    policy = good;
    policy.options.budget_tokens = 3;
    refuse(policy, {.layer = 2}, errc::budget_zero, 4);
    policy = good;
    policy.options.sink_blocks = 2;
    policy.options.local_blocks = 2;
    refuse(policy, {.layer = 2}, errc::budget_below_protection, 16);
    policy = good;
    policy.options.local_blocks = -1;
    refuse(policy, {.layer = 2}, errc::invalid_parameter);
    policy = good;
    policy.criticality.scale = not_a_number;
    refuse(policy, {.layer = 2}, errc::invalid_parameter);
    policy = good;
    policy.fusion.previous_weight = 1;
    refuse(policy, {.layer = 2}, errc::ratio_out_of_range);
    policy = good;
    policy.allocator.safeguard_ratio = 2;
    refuse(policy, {.layer = 2}, errc::ratio_out_of_range);
    refuse(good, {.layer = -1}, errc::invalid_parameter);
    refuse(good, {.layer = 2, .first_token = 5}, errc::invalid_parameter, 105);
    refuse(good, {.layer = 2, .first_token = 12}, errc::invalid_parameter, 112);
}

TEST_CASE("block_pruner: query heads that are no multiple are refused", "[prefill]") {
    const layer_data queries = random_prompt({.kv_heads = 3, .group = 1, .tokens = 50, .head_dim = 4}, 11);
    const layer_data keys = random_prompt({.kv_heads = 2, .group = 1, .tokens = 50, .head_dim = 4}, 12);
    const block_pruner<> policy{.options = small_options};
    layer_fusion state;
    prune_plan plan = planned_before();
    growing_workspace memory;
    CHECK(policy.plan(queries.queries(), keys.keys(), {}, state, plan, memory).code() ==
          errc::heads_not_divisible);
    CHECK(policy.plan(rows_of(queries.queries(), 0, 0), keys.keys(), {}, state, plan, memory).code() ==
          errc::heads_not_divisible);
    CHECK(plan == planned_before());
}

TEST_CASE("block_pruner: a cache with a head that is too short is refused", "[prefill]") {
    const layer_data layer = random_prompt({.kv_heads = 2, .group = 1, .tokens = 60, .head_dim = 4}, 13);
    const block_pruner<> policy{.options = small_options};
    layer_fusion state;
    prune_plan plan = planned_before();
    growing_workspace memory;
    const ragged_cache whole(layer.keys(), {60, 60}), cut(layer.keys(), {60, 40});
    const status s = policy.plan(layer.queries(), cut.get(), {}, state, plan, memory);
    CHECK(s.code() == errc::invalid_parameter);
    CHECK(s.needed() == 60);
    CHECK(plan == planned_before());
    REQUIRE(policy.plan(layer.queries(), whole.get(), {}, state, plan, memory).ok());
    CHECK(plan == plan_prompt(policy, layer));
}

TEST_CASE(
    "block_pruner: views that are not valid or disagree are refused, and plan and state are as they were",
    "[prefill][errors]") {
    const layer_data a = random_prompt({.kv_heads = 1, .group = 1, .tokens = 60, .head_dim = 4}, 14);
    const layer_data b = random_prompt({.kv_heads = 1, .group = 1, .tokens = 60, .head_dim = 5}, 15);
    const block_pruner<> policy{.options = small_options};
    layer_fusion state;
    prune_plan first;
    REQUIRE(plan_in_bytes(policy, a.queries(), a.keys(), {.layer = 1}, state, first).ok());
    const index_t bytes = state.bytes();
    growing_workspace memory;
    const auto refuses = [&](const view& queries, const view& keys) {
        prune_plan plan = planned_before();
        const status s = policy.plan(queries, keys, {.layer = 2}, state, plan, memory);
        CHECK(plan == planned_before());
        CHECK(state.bytes() == bytes);
        CHECK(policy.workspace_bytes(queries, keys, {.layer = 2}) == 0);
        return s.code() == errc::invalid_parameter;
    };
    CHECK(refuses(a.queries(), b.keys()));
    CHECK(refuses(b.queries(), a.keys()));
    CHECK(refuses(view(nullptr, {1, 60, 4}), a.keys()));
    CHECK(refuses(a.queries(), view(nullptr, {1, 60, 4})));
    CHECK(refuses(view(a.q.data(), {1, -60, 4}), a.keys()));
    CHECK(refuses(a.queries(), view(a.k.data(), {1, index_t{1} << 62, 4})));
    CHECK(memory.capacity_bytes() == 0);
}

namespace {

// Deals out what it is told, whatever it is asked for.
struct odd_allocator {
    static constexpr bool is_uniform = false;
    index_t budget = 0;
    errc answer = errc::ok;
    bool writes = true;

    status allocate(const score_rows&, index_t, std::span<index_t> budgets, workspace&) const {
        if (answer != errc::ok) { return {answer, "no", 17}; }
        if (writes) { std::fill(budgets.begin(), budgets.end(), budget); }
        return {};
    }
};

} // namespace

TEST_CASE("block_pruner: an allocator that refuses or deals out nonsense is a status, the plan as it was, "
          "the state "
          "forgotten",
          "[prefill][errors]") {
    const layer_data layer = random_prompt({.kv_heads = 2, .group = 1, .tokens = 90, .head_dim = 4}, 16);
    const block_pruner<> good{.options = small_options};
    constexpr index_t most = std::numeric_limits<index_t>::max();
    for (const odd_allocator& odd :
         {odd_allocator{.answer = errc::rows_differ}, odd_allocator{.writes = false}, odd_allocator{-1},
          odd_allocator{4}, odd_allocator{most}, odd_allocator{-most}}) {
        const block_pruner<mid_query, odd_allocator> policy{.options = small_options, .allocator = odd};
        layer_fusion state;
        prune_plan plan;
        REQUIRE(plan_in_bytes(good, layer.queries(), layer.keys(), {.layer = 2}, state, plan).ok());
        plan = planned_before();
        growing_workspace memory;
        const status s =
            policy.plan(layer.queries(), layer.keys(), {.layer = 3}, state, plan, memory, thread_executor{3});
        CHECK(s.code() == (odd.answer == errc::ok ? errc::invalid_parameter : odd.answer));
        CHECK(plan == planned_before());
        prune_plan after, alone; // the next layer is a first one
        layer_fusion fresh;
        REQUIRE(plan_in_bytes(good, layer.queries(), layer.keys(), {.layer = 4}, state, after).ok());
        REQUIRE(plan_in_bytes(good, layer.queries(), layer.keys(), {.layer = 4}, fresh, alone).ok());
        CHECK(after == alone);
        CHECK_FALSE(state.is_mixing());
    }
    const block_pruner<mid_query, odd_allocator> less{.options = small_options, .allocator = {2}};
    layer_fusion state;
    prune_plan plan;
    REQUIRE(plan_in_bytes(less, layer.queries(), layer.keys(), {.layer = 3}, state, plan).ok());
    CHECK(plan.check_invariants());
    CHECK(plan.row(1, 5).size() == 2);
}

TEST_CASE(
    "block_pruner: workspace_bytes is enough at any alignment, and a byte less at an aligned address is not",
    "[prefill]") {
    support::random r(128);
    for (int n = 0; n < 12; ++n) {
        block_pruner<mid_query, adaptive> policy{.options = random_options(r)};
        policy.fusion.previous_weight = r.chance(0.5) ? 0.25 : 0;
        const layer_data layer = random_prompt({.kv_heads = r.between(1, 3),
                                                .group = r.between(1, 3),
                                                .tokens = r.between(0, 150),
                                                .head_dim = 7},
                                               r.bits());
        const prefill_chunk chunk{.layer = 1};
        const index_t reported = policy.workspace_bytes(layer.queries(), layer.keys(), chunk);
        layer_fusion state;
        prune_plan expected;
        REQUIRE(plan_in_bytes(policy, layer.queries(), layer.keys(), chunk, state, expected).ok());
        std::vector<std::byte> memory(static_cast<std::size_t>(reported) + 512, std::byte{0x5a});
        const auto answer = [&](index_t bytes, std::size_t misalignment, prune_plan& plan) {
            std::fill(memory.begin(), memory.end(), std::byte{0x5a});
            const auto address = reinterpret_cast<std::uintptr_t>(memory.data()) + 64;
            const std::size_t begin = 64 + (64 - address % 64) % 64 + misalignment;
            const auto size = static_cast<std::size_t>(bytes);
            workspace scratch({memory.data() + begin, size});
            const status s = policy.plan(layer.queries(), layer.keys(), chunk, state, plan, scratch);
            const auto kept = [](auto from, auto to) {
                return std::all_of(from, to, [](std::byte b) { return b == std::byte{0x5a}; });
            };
            CHECK(kept(memory.begin() + static_cast<std::ptrdiff_t>(begin + size), memory.end()));
            CHECK(kept(memory.begin(), memory.begin() + static_cast<std::ptrdiff_t>(begin)));
            return s;
        };
        for (const std::size_t misalignment : {0u, 1u, 8u, 63u}) {
            prune_plan plan;
            CHECK(answer(reported, misalignment, plan).ok());
            CHECK(plan == expected);
        }
        prune_plan plan;
        CHECK(answer(reported - 64, 0, plan).ok());
        for (const index_t bytes : {reported - 65, reported / 3, index_t{0}}) {
            plan = planned_before();
            const status s = answer(bytes, 0, plan);
            CHECK(s.code() == errc::workspace_too_small);
            CHECK(s.needed() == reported);
            CHECK(plan == planned_before());
        }
    }
}

TEST_CASE("block_pruner: a workspace that is too small leaves the fusion state alone", "[prefill]") {
    const layer_data one = random_prompt({.kv_heads = 2, .group = 2, .tokens = 100, .head_dim = 4}, 16);
    const layer_data two = random_prompt({.kv_heads = 2, .group = 2, .tokens = 100, .head_dim = 4}, 17);
    const block_pruner<> policy{.options = small_options, .fusion = {.previous_weight = 0.6}};
    layer_fusion state, untouched;
    prune_plan plan, expected;
    REQUIRE(plan_in_bytes(policy, one.queries(), one.keys(), {.layer = 3}, state, plan).ok());
    untouched = state;
    workspace none({});
    CHECK(policy.plan(two.queries(), two.keys(), {.layer = 4}, state, plan, none).code() ==
          errc::workspace_too_small);
    REQUIRE(plan_in_bytes(policy, two.queries(), two.keys(), {.layer = 4}, state, plan).ok());
    REQUIRE(plan_in_bytes(policy, two.queries(), two.keys(), {.layer = 4}, untouched, expected).ok());
    CHECK(plan == expected);
}

TEST_CASE("block_pruner: scratch grows with the tokens, not with their square", "[prefill]") {
    struct unread {
        std::array<index_t, 3> extents;
        [[nodiscard]] index_t extent(std::size_t r) const { return extents[r]; }
        void load_rows(index_t, index_t, index_t, float*) const { FAIL("rows were read"); }
    };
    struct one_worker {
        static int workers() { return 1; }
    };
    const block_pruner<> policy{};
    const auto bytes = [&](index_t tokens) {
        return policy.workspace_bytes(unread{{32, tokens, 128}}, unread{{8, tokens, 128}}, {.layer = 1},
                                      one_worker{});
    };
    CHECK(bytes(131072) > 0);
    CHECK(bytes(131072) < index_t{64} << 20);
    CHECK(bytes(131072) < 3 * bytes(65536));
}
