// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include "support/named_policies.hpp"
#include "support/policy_oracle.hpp"

#include <kvtrim/decode/ragged_attention.hpp>
#include <kvtrim/policy/baselines.hpp>
#include <kvtrim/policy/criticalkv.hpp>
#include <kvtrim/policy/defensivekv.hpp>
#include <kvtrim/policy/plan_batch.hpp>
#include <kvtrim/prefill/block_pruner.hpp>

using namespace kvtrim;
using namespace support;

namespace {

constexpr auto guard = std::byte{0xa5};
constexpr std::size_t guard_bytes = 256;

// The policy's answer when it has `bytes` of memory that start `misalignment` bytes behind a cache line; writing
// outside of them fails the test.
status plan_in(const named_policy& policy, const inputs& in, const eviction_request& request, index_t bytes,
               std::size_t misalignment, keep_plan& plan) {
    const auto size = static_cast<std::size_t>(bytes);
    std::vector<std::byte> memory(size + 2 * guard_bytes + 128, guard);
    const auto address = reinterpret_cast<std::uintptr_t>(memory.data() + guard_bytes);
    const std::size_t begin = guard_bytes + (64 - address % 64) % 64 + misalignment;
    workspace scratch({memory.data() + begin, size});
    const status s = policy.plan(in, request, plan, scratch);
    const auto end = memory.begin() + static_cast<std::ptrdiff_t>(begin + size);
    CHECK(std::count(end, memory.end(), guard) == memory.end() - end);
    CHECK(std::count(memory.begin(), memory.begin() + static_cast<std::ptrdiff_t>(begin), guard) ==
          static_cast<std::ptrdiff_t>(begin));
    return s;
}

// Views of any size that nobody reads.
struct unread {
    std::array<index_t, 3> extents;

    [[nodiscard]] index_t extent(std::size_t r) const { return extents[r]; }
    void load_rows(index_t, index_t, index_t, float*) const { FAIL("rows were read"); }
};

} // namespace

TEST_CASE("workspace_bytes is enough at any alignment, and the plan the same", "[properties][workspace]") {
    for_random_layers(441, 5, [](const layer_data& layer, const eviction_request& request, support::random&) {
        const auto in = layer.inputs();
        for (const named_policy& policy : named_policies()) {
            CAPTURE(policy.name);
            const keep_plan expected = policy(in, request).plan;
            for (const std::size_t misalignment : {0u, 1u, 8u, 63u}) {
                keep_plan plan = made_before();
                const index_t bytes = policy.workspace_bytes(in, request);
                CHECK(plan_in(policy, in, request, bytes, misalignment, plan).ok());
                CHECK(plan == expected);
            }
        }
    });
}

TEST_CASE("bytes asked for a serial executor serve one of any width, and the plan is the same",
          "[properties][workspace]") {
    for_random_layers(440, 4, [](const layer_data& layer, const eviction_request& request, support::random&) {
        const auto in = layer.inputs();
        const auto check = [&](const auto& policy) {
            keep_plan expected;
            growing_workspace memory;
            REQUIRE(policy.plan(in, request, expected, memory).ok());
            std::vector<std::byte> bytes(static_cast<std::size_t>(policy.workspace_bytes(in, request)));
            for (const int width : {2, 5, 64}) {
                CHECK(policy.workspace_bytes(in, request, counted_executor{width}) >= std::ssize(bytes));
                workspace scratch(bytes);
                keep_plan plan;
                CHECK(policy.plan(in, request, plan, scratch, counted_executor{width}).ok());
                CHECK(plan == expected);
                REQUIRE(policy.plan(in, request, plan, memory, counted_executor{width}).ok());
                CHECK(plan == expected);
            }
        };
        check(ada_snapkv());
        check(ada_criticalkv());
        check(defensivekv());
        check(key_diff());
    });
}

TEST_CASE("bytes asked for a serial executor serve attention, batches and pruning of any width",
          "[properties][workspace]") {
    const layer_data layer = random_layer(
        {.kv_heads = 4, .group = 2, .tokens = 64, .head_dim = 8, .value_dim = 8, .queries = 64}, 443);
    const auto in = layer.inputs();
    // call(scratch, executor); bytes: what was asked for a serial one
    const auto check = [](index_t bytes, auto&& call) {
        std::vector<std::byte> memory(static_cast<std::size_t>(bytes));
        for (const int width : {1, 2, 5, 64}) {
            CAPTURE(width);
            workspace scratch(memory);
            CHECK(call(scratch, counted_executor{width}).code() == errc::ok);
        }
    };
    std::vector<float> out(layer.q.size());
    check(ragged_attention_bytes(in, {}), [&](workspace& scratch, const counted_executor& ex) {
        return ragged_attention(in, {}, strided<float, 3>(out.data(), {8, 64, 8}), {}, scratch, ex);
    });
    const block_pruner<> pruner{.options = {.segment_tokens = 16, .block_tokens = 4, .budget_tokens = 8}};
    const prefill_chunk chunk{.layer = 3};
    check(pruner.workspace_bytes(layer.queries(), layer.keys(), chunk),
          [&](workspace& scratch, const counted_executor& ex) {
              layer_fusion state;
              prune_plan plan;
              return pruner.plan(layer.queries(), layer.keys(), chunk, state, plan, scratch, ex);
          });
    const std::vector inputs(5, in);
    const std::vector<eviction_request> requests(5, {.budget = per_head(20)});
    std::vector<keep_plan> plans(5);
    std::vector<status> answers(5);
    const auto policy = key_norm();
    const std::span<const std::remove_const_t<decltype(in)>> sequences(inputs);
    check(plan_batch_bytes(policy, sequences, std::span(requests)),
          [&](workspace& scratch, const counted_executor& ex) {
              return plan_batch(policy, sequences, std::span(requests), std::span(plans), std::span(answers),
                                scratch, ex);
          });
}

TEST_CASE("a byte less than workspace_bytes, aligned, is refused with that number and the plan unchanged",
          "[properties][workspace]") {
    for_random_layers(442, 3, [](const layer_data& layer, const eviction_request& request, support::random&) {
        const auto in = layer.inputs();
        for (const named_policy& policy : named_policies()) {
            CAPTURE(policy.name);
            // A cache line of the number is for alignment, which an aligned address does not need.
            const index_t reported = policy.workspace_bytes(in, request);
            keep_plan plan;
            CHECK(plan_in(policy, in, request, reported - 64, 0, plan).ok());
            for (const index_t bytes : {reported - 65, reported / 2 - 64, index_t{63}, index_t{0}}) {
                if (bytes < 0) { continue; }
                keep_plan untouched = made_before();
                const status s = plan_in(policy, in, request, bytes, 0, untouched);
                CHECK(s.code() == errc::workspace_too_small);
                CHECK(s.needed() == reported);
                CHECK(untouched == made_before());
            }
        }
    });
}

TEST_CASE("a workspace that is too small is refused before anything is read, with what is taken of it added",
          "[properties][workspace]") {
    const unread cache{{2, 5000, 64}};
    const auto in = kvtrim::layer(cache, cache)
                        .with_queries(unread{{4, 32, 64}})
                        .with_output_projection(unread{{4, 64, 256}});
    const eviction_request request{.budget = per_head(100), .protect = {.window_tokens = 32}};
    const auto check = [&](const auto& policy, const char* name) {
        CAPTURE(name);
        const index_t reported = policy.workspace_bytes(in, request);
        std::vector<std::byte> memory(static_cast<std::size_t>(reported) + 64);
        workspace scratch({memory.data(), memory.size() - 192});
        const workspace::frame frame(scratch);
        static_cast<void>(scratch.take<std::byte>(64)); // the engine's own
        keep_plan plan = made_before();
        int observed = 0;
        const status s = policy.plan(in, request, plan, scratch, serial_executor{},
                                     [&](const plan_progress&) { ++observed; });
        CHECK(s.code() == errc::workspace_too_small);
        CHECK(s.needed() == reported + 64);
        CHECK(plan == made_before());
        CHECK(observed == 0);
    };
    check(snapkv(), "snapkv");
    check(ada_snapkv(), "ada_snapkv");
    check(criticalkv(), "criticalkv");
    check(defensivekv(), "defensivekv");
    check(key_diff(), "key_diff");
}

TEST_CASE("what is kept whole needs a workspace of one cache line and a few counts",
          "[properties][workspace]") {
    const layer_data layer = random_layer({.kv_heads = 3, .tokens = 20, .queries = 4}, 1);
    const eviction_request whole{.budget = per_head(20)};
    for (const named_policy& policy : named_policies()) {
        keep_plan plan;
        CAPTURE(policy.name);
        CHECK(policy.workspace_bytes(layer.inputs(), whole) <= 128);
        CHECK(plan_in(policy, layer.inputs(), whole, 128, 0, plan).ok());
        plan = made_before();
        CHECK(plan_in(policy, layer.inputs(), whole, 10, 0, plan).code() == errc::workspace_too_small);
        CHECK(plan == made_before());
    }
}

TEST_CASE("at 131072 tokens, 32 query and 8 KV heads every policy needs less than 96 MiB",
          "[properties][workspace]") {
    constexpr index_t tokens = 131072;
    constexpr index_t head_dim = 128;
    constexpr index_t hidden = 4096;
    const unread cache{{8, tokens, head_dim}};
    const auto with_queries = [&](index_t queries) {
        return kvtrim::layer(cache, cache)
            .with_queries(unread{{32, queries, head_dim}})
            .with_output_projection(unread{{32, head_dim, hidden}});
    };
    const auto check = [&](const auto& policy, index_t queries, const char* name) {
        const eviction_request request{.budget = per_head(4096), .protect = {.window_tokens = 32}};
        const index_t bytes = policy.workspace_bytes(with_queries(queries), request);
        CAPTURE(name, bytes);
        CHECK(bytes > 0);
        CHECK(bytes < index_t{96} << 20);
    };
    const mean_attention most_lanes{.pool = pooling::maximum, .group = group_reduction::maximum};
    check(snapkv(), 32, "snapkv");
    check(snapkv(most_lanes), 32, "snapkv, group maximum");
    check(ada_snapkv(), 32, "ada_snapkv");
    check(criticalkv(), 32, "criticalkv");
    check(ada_criticalkv({.attention = most_lanes}), 32, "ada_criticalkv, group maximum");
    check(defensivekv(), 32, "defensivekv");
    check(h2o(), tokens, "h2o");
    check(observed_attention(), tokens, "observed_attention");
    check(tova(), 1, "tova");
    check(key_norm(), 0, "key_norm");
    check(key_diff(), 0, "key_diff");
    check(streaming_llm(), 0, "streaming_llm");
    check(kvtrim::random(), 0, "random");
}
