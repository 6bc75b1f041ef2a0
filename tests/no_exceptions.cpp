// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Built with -fno-exceptions -fno-rtti in every configuration: plans, compactions and refusals work there too.
// Answers 0 if all is right, else the line of the check that failed.

#include <kvtrim/adapter/eigen.hpp>
#include <kvtrim/kvtrim.hpp>

#include <cstdio>
#include <cstdlib>
#include <vector>

#define REQUIRE_TRUE(condition)                                                                              \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            std::printf("line %d: %s\n", __LINE__, #condition);                                              \
            std::exit(1);                                                                                    \
        }                                                                                                    \
    } while (false)

namespace {

using namespace kvtrim;

constexpr index_t kv_heads = 2;
constexpr index_t q_heads = 4;
constexpr index_t tokens = 200;
constexpr index_t head_dim = 16;
constexpr index_t queries = 8;
constexpr index_t hidden = 24;

std::vector<float> numbers(index_t count, std::uint32_t seed) {
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& x : values) {
        seed = seed * 1664525u + 1013904223u;
        x = static_cast<float>(seed >> 8) * 0x1p-23f - 1.0f;
    }
    return values;
}

struct layer_memory {
    std::vector<float> k = numbers(kv_heads * tokens * head_dim, 1);
    std::vector<float> v = numbers(kv_heads * tokens * head_dim, 2);
    std::vector<float> q = numbers(q_heads * queries * head_dim, 3);
    std::vector<float> w = numbers(q_heads * head_dim * hidden, 4);

    strided<float, 3> keys() { return {k.data(), {kv_heads, tokens, head_dim}}; }
    strided<float, 3> values() { return {v.data(), {kv_heads, tokens, head_dim}}; }
    auto inputs() {
        return layer(keys(), values())
            .with_queries(strided(q.data(), {q_heads, queries, head_dim}))
            .with_output_projection(strided(w.data(), {q_heads, head_dim, hidden}));
    }
};

template <class Policy>
void check(const Policy& policy) {
    layer_memory memory;
    const eviction_request request{.budget = per_head(50),
                                   .protect = {.sink_tokens = 2, .window_tokens = queries}};
    keep_plan plan;
    workspace none({});
    const status too_small = policy.plan(memory.inputs(), request, plan, none);
    REQUIRE_TRUE(too_small.code() == errc::workspace_too_small);
    REQUIRE_TRUE(plan.rows() == 0);

    std::vector<std::byte> bytes(static_cast<std::size_t>(policy.workspace_bytes(memory.inputs(), request)));
    workspace scratch(bytes);
    REQUIRE_TRUE(policy.plan(memory.inputs(), request, plan, scratch).ok());
    REQUIRE_TRUE(plan.rows() == kv_heads);
    REQUIRE_TRUE(plan.total_tokens() == kv_heads * 50);
    REQUIRE_TRUE(plan.check_invariants([](index_t) { return tokens; }));
    for (index_t g = 0; g < kv_heads; ++g) {
        const auto row = plan.row(g);
        REQUIRE_TRUE(row[0] == 0 && row[1] == 1);
        REQUIRE_TRUE(row[row.size() - queries] == tokens - queries);
    }

    std::vector<float> gathered(static_cast<std::size_t>(plan.total_tokens() * head_dim));
    REQUIRE_TRUE(gather(memory.keys(), plan, std::span(gathered)).ok());
    compaction_report report;
    layer_memory flat;
    REQUIRE_TRUE(compact_in_place(memory.keys(), memory.values(), plan, &report).ok());
    REQUIRE_TRUE(compact_to_flat(flat.keys(), plan).ok());
    REQUIRE_TRUE(report.bytes_after * tokens == report.bytes_before * 50);
    std::size_t at = 0;
    for (index_t g = 0; g < kv_heads; ++g) {
        for (index_t i = 0; i < plan.kept_tokens(g); ++i) {
            for (index_t d = 0; d < head_dim; ++d, ++at) {
                REQUIRE_TRUE(memory.keys()(g, i, d) == gathered[at]);
                REQUIRE_TRUE(flat.k[at] == gathered[at]);
            }
        }
    }
}

void check_decode() {
    layer_memory memory;
    cache_positions positions(kv_heads);
    running_scores scores(kv_heads);
    recent_queries<> window(q_heads, queries, head_dim);
    REQUIRE_TRUE(positions.append(tokens).ok() && scores.append(tokens).ok());
    REQUIRE_TRUE(window.append(memory.inputs().queries).ok());
    REQUIRE_TRUE(window.rollback(-1).code() == errc::invalid_parameter);
    REQUIRE_TRUE(running_scores(1, -1).append(1).code() == errc::invalid_parameter);
    growing_workspace scratch;
    REQUIRE_TRUE(scores.update(memory.inputs(), {}, scratch).ok());
    const interval_policy decode{eviction_policy{scores.scorer(), adaptive{}, by_importance{}},
                                 {.budget = per_head(50), .protect = {.window_tokens = 25}},
                                 100};
    REQUIRE_TRUE(decode.is_due(positions));
    REQUIRE_TRUE(decode.admits(positions).ok() && decode.admits(positions, 101).code() == errc::no_room);
    keep_plan plan;
    REQUIRE_TRUE(decode.plan(memory.inputs().with_queries(window.view()), plan, scratch).ok());
    REQUIRE_TRUE(positions.compact(plan).ok() && scores.compact(plan).ok());
    std::vector<std::byte> bytes(static_cast<std::size_t>(saved_bytes(scores)));
    REQUIRE_TRUE(save(scores, bytes).ok() && restore(scores, bytes).ok());
    REQUIRE_TRUE(restore(positions, bytes).code() == errc::invalid_parameter);
    REQUIRE_TRUE(positions.total_tokens() == kv_heads * 50);
}

// A prompt planned and attended; under a plan of everything the first query attends its own key only.
void check_prefill() {
    layer_memory memory;
    const auto prompt = numbers(q_heads * tokens * head_dim, 5);
    const strided prompt_queries(prompt.data(), {q_heads, tokens, head_dim});
    auto policy = critiprefill();
    policy.options = {.segment_tokens = 32, .block_tokens = 8, .budget_tokens = 24, .dense_below_tokens = 0};
    layer_fusion state;
    prune_plan plan;
    growing_workspace scratch;
    REQUIRE_TRUE(policy.plan(prompt_queries, memory.keys(), {.layer = 1}, state, plan, scratch).ok());
    REQUIRE_TRUE(plan.check_invariants());
    REQUIRE_TRUE(plan.planned_pairs() < plan.dense_pairs());
    std::vector<float> out(prompt.size());
    const strided output(out.data(), {q_heads, tokens, head_dim});
    const auto in = layer(memory.keys(), memory.values()).with_queries(prompt_queries);
    workspace none({});
    REQUIRE_TRUE(block_sparse_attention(in, plan, {}, output, {}, none).code() == errc::workspace_too_small);
    REQUIRE_TRUE(block_sparse_attention(in, plan, {}, output, {}, scratch).ok());
    for (index_t d = 0; d < head_dim; ++d) {
        const float difference = output(3, 0, d) - memory.values()(1, 0, d);
        REQUIRE_TRUE(difference < 1e-6f && difference > -1e-6f);
    }
    policy.options.budget_tokens = 7;
    REQUIRE_TRUE(policy.plan(prompt_queries, memory.keys(), {.layer = 1}, state, plan, scratch).code() ==
                 errc::budget_zero);
}

void check_refusals() {
    layer_memory memory;
    growing_workspace scratch;
    keep_plan plan;
    REQUIRE_TRUE(snapkv().plan(memory.inputs(), {.budget = per_head(0)}, plan, scratch).code() ==
                 errc::budget_zero);
    REQUIRE_TRUE(
        snapkv()
            .plan(memory.inputs(), {.budget = per_head(5), .protect = {.sink_tokens = 6}}, plan, scratch)
            .code() == errc::budget_below_protection);
    REQUIRE_TRUE(compact_in_place(memory.keys(), plan).code() == errc::plan_mismatch);
    REQUIRE_TRUE(valid_ratio(0).code() == errc::ratio_out_of_range);
}

} // namespace

int main() {
    check(snapkv());
    check(ada_criticalkv());
    check(defensivekv());
    check_decode();
    check_prefill();
    check_refusals();
}
