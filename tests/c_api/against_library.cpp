// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Every policy of the C interface with its defaults, and with options, plans what the library's own function plans.
#include <kvtrim/allocate/blended.hpp>
#include <kvtrim/cache/tensor_view.hpp>
#include <kvtrim/decode/running_scores.hpp>
#include <kvtrim/policy/baselines.hpp>
#include <kvtrim/policy/consensuskv.hpp>
#include <kvtrim/policy/criticalkv.hpp>
#include <kvtrim/policy/expected_attention.hpp>
#include <kvtrim/policy/lagkv.hpp>
#include <kvtrim/policy/layers.hpp>
#include <kvtrim/policy/replay.hpp>
#include <kvtrim/policy/rkv.hpp>
#include <kvtrim/rerank/chunked.hpp>

#include <atomic>
#include <set>
#include <string>
#include <thread>
#include <vector>

// C, so without the warnings about C casts.
#include "support.h"

namespace {

using namespace kvtrim;

constexpr index_t layer_count = 2;

std::vector<float> other_keys(NUMBERS);
std::set<std::string> compared;
kvtrim_context* context = nullptr;
kvtrim_replay* c_replays[layer_count] = {};
kvtrim_running* c_running = nullptr;
kvtrim_statistics* c_statistics = nullptr;
const std::vector<float> frequencies(DIM / 2, 0.1f);
const std::vector<double> shares = {1, 3};

// The engine's: C's calls run on three threads, the library's on one.
void run_on_threads(void*, int64_t count, void (*task)(void*, int64_t), void* argument) {
    std::atomic<int64_t> next{0};
    const auto work = [&] {
        for (int64_t i = next++; i < count; i = next++) { task(argument, i); }
    };
    std::thread more[] = {std::thread(work), std::thread(work)};
    work();
    for (std::thread& t : more) { t.join(); }
}

eviction_request library_request(index_t budget) {
    return {.budget = per_head(budget), .protect = {.sink_tokens = 2, .window_tokens = WINDOW}};
}

strided<float, 3> rows_of(float* data, index_t heads, index_t rows, index_t channels) {
    return {data, {heads, rows, channels}};
}
auto keys_of(index_t l) {
    return rows_of(l == 0 ? keys : other_keys.data(), KV_HEADS, TOKENS, DIM);
}
auto queries_view() {
    return rows_of(queries, Q_HEADS, WINDOW, DIM);
}
auto values_view() {
    return rows_of(values, KV_HEADS, TOKENS, DIM);
}
auto projection_view() {
    return rows_of(projection, Q_HEADS, DIM, HIDDEN);
}
auto attended(index_t l) {
    return layer(keys_of(l)).with_queries(queries_view());
}
auto everything(index_t l) {
    return layer(keys_of(l), values_view())
        .with_queries(queries_view())
        .with_output_projection(projection_view());
}

// What C plans is `expected`, with the engine's memory described as views.
void same(const char* name, const char* options, std::span<const keep_plan> expected, index_t budget) {
    layer_of_test of[layer_count];
    kvtrim_layer layers[layer_count];
    kvtrim_rope rope{sizeof(kvtrim_rope), frequencies.data(), DIM / 2, 0, 0};
    for (index_t l = 0; l < layer_count; ++l) {
        make_layer(&of[l]);
        of[l].keys.data = keys_of(l).data_handle();
        layers[l] = of[l].layer;
        layers[l].replay = c_replays[l];
        layers[l].running = c_running;
        layers[l].statistics = c_statistics;
        layers[l].rope = &rope;
    }
    kvtrim_request r = make_request();
    r.budget_tokens = budget;
    r.layer_shares = shares.data();
    r.layer_shares_count = layer_count;
    kvtrim_policy* policy = make_policy(name, options);
    kvtrim_plan* plans[layer_count] = {make_plan(), make_plan()};
    const auto count = static_cast<int64_t>(expected.size());
    ok(kvtrim_plan_layers(policy, layers, count, &r, plans, count, context), name);
    for (std::size_t l = 0; l < expected.size(); ++l) {
        const keep_plan& e = expected[l];
        const bool equal =
            kvtrim_plan_rows(plans[l]) == e.rows() &&
            std::equal(e.offsets().begin(), e.offsets().end(), kvtrim_plan_offsets(plans[l])) &&
            std::equal(e.kept().begin(), e.kept().end(), kvtrim_plan_kept(plans[l]));
        check(equal && e.total_tokens() > 0 && e.total_tokens() < KV_HEADS * TOKENS,
              "C plans as the library does", name);
    }
    for (kvtrim_plan* plan : plans) { kvtrim_plan_destroy(plan); }
    kvtrim_policy_destroy(policy);
    compared.insert(name);
}

template <class Policy, class Inputs>
void compare(const char* name, const Policy& policy, const Inputs& in, const char* options = nullptr,
             index_t budget = KEPT) {
    growing_workspace memory;
    keep_plan plan;
    check(policy.plan(in, library_request(budget), plan, memory).ok(), "the library plans", name);
    same(name, options, {&plan, 1}, budget);
}

template <class Policy, class Inputs>
void compare_layers(const char* name, const Policy& policy, const std::vector<Inputs>& in,
                    const char* options = nullptr) {
    growing_workspace memory;
    std::vector<keep_plan> plans(in.size());
    const status s =
        policy.plan(std::span<const Inputs>(in), library_request(KEPT), std::span<keep_plan>(plans), memory);
    check(s.ok(), "the library plans", name);
    same(name, options, plans, KEPT);
}

void policies_of_one_layer() {
    const auto in = attended(0);
    const auto all = everything(0);
    const mean_attention wide{
        .pool = pooling::maximum, .kernel_tokens = 9, .group = group_reduction::maximum};
    compare("snapkv", snapkv(), in);
    compare("snapkv", snapkv(wide), in, "kernel_tokens=9 pooling=maximum group=maximum");
    compare("ada_snapkv", ada_snapkv(), in);
    compare("ada_snapkv", ada_snapkv({}, adaptive{.safeguard_ratio = 0.5}), in, "safeguard_ratio=0.5");
    compare("ada_snapkv_blended", ada_snapkv({.pool = pooling::maximum, .kernel_tokens = 7}, blended{}), in);
    compare("chunkkv", eviction_policy{window_attention{mean_attention{}}, uniform{}, chunked{}}, in);
    compare("shared_snapkv", eviction_policy{window_attention{mean_attention{}}, uniform{}, shared{}}, in);
    compare("shared_snapkv",
            eviction_policy{window_attention{mean_attention{}}, uniform{}, shared{head_reduction::votes}}, in,
            "fold=votes");
    compare("consensuskv", consensuskv(), in);
    compare("consensuskv_shared", consensuskv_shared(), in);
    compare("rkv", rkv(), in);
    compare("h2o", h2o(), in);
    compare("observed_attention", observed_attention(), in);
    compare("tova", tova(), in);
    compare("key_norm", key_norm(), layer(keys_of(0)));
    compare("key_diff", key_diff(), layer(keys_of(0)));
    compare("streaming_llm", streaming_llm(), layer(keys_of(0)));
    compare("random", kvtrim::random(7), layer(keys_of(0)), "seed=7");
    compare("criticalkv", criticalkv(), all);
    compare("criticalkv", criticalkv({.first_ratio = 0.25, .epsilon = 0.5f, .epsilon_relative = true}), all,
            "first_ratio=0.25,epsilon=0.5,epsilon_relative=1");
    compare("ada_criticalkv", ada_criticalkv(), all);
    compare("defensivekv", defensivekv(), all);
    compare("defensivekv",
            defensivekv({.attention = {3, 0.5f},
                         .scope = norm_scope::raw,
                         .attention_mass = 0.5,
                         .safeguard_ratio = 0.1}),
            all, "kernel_tokens=3 floor_weight=0.5 norm_scope=raw attention_mass=0.5 safeguard_ratio=0.1");
    compare("dropkv", dropkv(), all);
    compare("lagkv", lagkv({.lag = 16}), layer(keys_of(0), values_view()), "lag=16", 60);
    compare("lagkv", lagkv({.lag = 16, .cross_scoring = true}), layer(keys_of(0), values_view()),
            "lag=16 cross_scoring=1", 60);
}

void policies_of_layers() {
    const std::vector in = {attended(0), attended(1)};
    const std::vector all = {everything(0), everything(1)};
    compare_layers("layer_ada_snapkv", layer_ada_snapkv(), in);
    compare_layers("layer_ada_snapkv", layer_ada_snapkv({}, 0.25), in, "safeguard_ratio=0.25");
    compare_layers("layer_defensivekv", layer_defensivekv(), all);
    compare_layers("pyramidkv", pyramidkv(), in);
    compare_layers("pyramidkv", pyramidkv({}, {.beta = 4}), in, "beta=4");
    compare_layers("cake", cake(shares), in);
    compare_layers("snapkv_by_shares", with_layer_shares(snapkv(), shares), in);
    compare_layers("layer_dropkv", layer_dropkv(), all);
}

void policies_with_state() {
    growing_workspace memory;
    std::vector<replay_scores> replays;
    kvtrim_request r = make_request();
    for (index_t l = 0; l < layer_count; ++l) {
        layer_of_test of;
        make_layer(&of);
        of.keys.data = keys_of(l).data_handle();
        replays.emplace_back(KV_HEADS, TOKENS);
        check(replays.back().add(attended(l), {}, memory).ok(), "the library adds", "replay");
        ok(kvtrim_replay_create(KV_HEADS, TOKENS, KVTRIM_ATTENTION_MAXIMUM, &c_replays[l]), "replay");
        ok(kvtrim_replay_add(c_replays[l], &of.layer, &r, context), "replay");
        if (l > 0) { continue; }
        ok(kvtrim_running_create(KV_HEADS, 0, &c_running), "running");
        ok(kvtrim_running_append(c_running, TOKENS), "running");
        ok(kvtrim_running_update(c_running, &of.layer, &r, context), "running");
        ok(kvtrim_statistics_create(Q_HEADS, DIM, 0, &c_statistics), "statistics");
        ok(kvtrim_statistics_add(c_statistics, &of.queries, context), "statistics");
    }
    compare("replay", replay(), replays[0]);
    compare("replay", replay(0.5), replays[0], "safeguard_ratio=0.5");
    compare("replay_uniform", replay_uniform(), replays[0]);
    compare_layers("layer_replay", layer_replay(), replays);
    compare_layers("layer_afar", layer_afar(), replays);
    running_scores running(KV_HEADS);
    check(running.append(TOKENS).ok() && running.update(attended(0), {}, memory).ok(), "the library adds",
          "running");
    compare("running", eviction_policy{running.scorer(), uniform{}, by_importance{}}, layer(keys_of(0)));
    compare("running",
            eviction_policy{running.scorer(score_lifetime::normalised), uniform{}, by_importance{}},
            layer(keys_of(0)), "lifetime=normalised");
    query_statistics statistics(Q_HEADS, DIM, 0);
    workspace scratch = memory.of_bytes(statistics.workspace_bytes());
    check(statistics.add(queries_view(), scratch).ok(), "the library adds", "statistics");
    compare("expected_attention", expected_attention(statistics, {frequencies}),
            layer(keys_of(0), values_view()));
    compare("expected_attention", expected_attention(statistics, {frequencies}, {64, false, 0.5f}),
            layer(keys_of(0), values_view()), "future_positions=64 use_covariance=0 epsilon=0.5");
}

} // namespace

int main() {
    use_all();
    fill();
    for (std::size_t i = 0; i < other_keys.size(); ++i) { other_keys[i] = number(i + 7777); }
    const kvtrim_executor threads{sizeof threads, 3, nullptr, run_on_threads};
    ok(kvtrim_context_create(&threads, &context), "a context with threads");
    policies_of_one_layer();
    policies_of_layers();
    policies_with_state();
    for (int64_t p = 0; p < kvtrim_policy_count(); ++p) {
        kvtrim_policy_info info{sizeof(kvtrim_policy_info), nullptr, nullptr, 0, 0};
        ok(kvtrim_policy_describe(p, &info), "describe");
        check(compared.contains(info.name), "every policy of the table was compared", info.name);
    }
    for (kvtrim_replay* r : c_replays) { kvtrim_replay_destroy(r); }
    kvtrim_running_destroy(c_running);
    kvtrim_statistics_destroy(c_statistics);
    kvtrim_context_destroy(context);
    return done();
}
