// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Every policy of the C interface with its defaults, and with options, plans what the library's own function plans.
#include <kvtrim/allocate/above_threshold.hpp>
#include <kvtrim/allocate/blended.hpp>
#include <kvtrim/cache/tensor_view.hpp>
#include <kvtrim/compact/edit_cells.hpp>
#include <kvtrim/decode/running_scores.hpp>
#include <kvtrim/policy/baselines.hpp>
#include <kvtrim/policy/consensuskv.hpp>
#include <kvtrim/policy/criticalkv.hpp>
#include <kvtrim/policy/expected_attention.hpp>
#include <kvtrim/policy/lagkv.hpp>
#include <kvtrim/policy/layers.hpp>
#include <kvtrim/policy/plan_pages.hpp>
#include <kvtrim/policy/replay.hpp>
#include <kvtrim/policy/rkv.hpp>
#include <kvtrim/policy/triattention.hpp>
#include <kvtrim/rerank/chunked.hpp>
#include <kvtrim/score/given_scores.hpp>
#include <kvtrim/score/layer_preference.hpp>

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
kvtrim_means* c_means = nullptr;
kvtrim_profile* c_profile = nullptr;
const std::vector<float> frequencies(DIM / 2, 0.1f);
std::vector<double> shares = {1, 3}; // of layers

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
// The engine's own scores of a layer, 1/4 to 4.
strided<float, 2> scores_of(index_t l) {
    static std::vector<float> scores[layer_count];
    std::vector<float>& of = scores[static_cast<std::size_t>(l)];
    for (std::size_t i = of.size(); i < std::size_t{KV_HEADS} * TOKENS; ++i) {
        of.push_back(number(i * 3 + 99 * static_cast<std::size_t>(l)) + 2.25f);
    }
    return {of.data(), {index_t{KV_HEADS}, index_t{TOKENS}}};
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
    kvtrim_view of_scores[layer_count];
    kvtrim_rope rope{sizeof(kvtrim_rope), frequencies.data(), DIM / 2, 0, 0};
    for (index_t l = 0; l < layer_count; ++l) {
        make_layer(&of[l]);
        of[l].keys.data = keys_of(l).data_handle();
        layers[l] = of[l].layer;
        layers[l].replay = c_replays[l];
        layers[l].running = c_running;
        layers[l].statistics = c_statistics;
        layers[l].rope = &rope;
        layers[l].means = c_means;
        kvtrim_view_init(&of_scores[l], KVTRIM_F32, scores_of(l).data_handle(), KV_HEADS, TOKENS, 1);
        layers[l].scores = &of_scores[l];
    }
    kvtrim_request r = make_request();
    r.budget_tokens = budget;
    r.layer_shares = shares.data();
    r.layer_shares_count = std::ssize(shares);
    r.profile = c_profile;
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
    const auto of_scores = [](const auto& allocator) {
        return eviction_policy{given_scores{scores_of(0)}, allocator, by_importance{}};
    };
    compare("given", of_scores(uniform{}), layer(keys_of(0)));
    compare("ada_given", of_scores(adaptive{.safeguard_ratio = 0.3}), layer(keys_of(0)),
            "safeguard_ratio=0.3");
    compare("above_threshold", of_scores(above_threshold{3.5f}), layer(keys_of(0)), "threshold=3.5");
    compare("above_threshold", of_scores(above_threshold{3.0f}), layer(keys_of(0)), "threshold=3", 80);
    compare("key_norm", key_norm(), layer(keys_of(0)));
    compare("key_diff", key_diff(), layer(keys_of(0)));
    compare("key_diff_before_rope", key_diff_before_rope({frequencies}), layer(keys_of(0)));
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

// Layers with scores of their own, in the library's words.
struct given_layer : layer_inputs<strided<float, 3>> {
    strided<float, 2> scores;

    given_layer(const layer_inputs<strided<float, 3>>& keys, const strided<float, 2>& of)
        : layer_inputs<strided<float, 3>>(keys), scores(of) {}
};
struct scores_of_layer {
    static constexpr bool writes_attention = false;

    template <executor Executor>
    [[nodiscard]] status score(const given_layer& in, const eviction_request& request,
                               const token_scores& out, workspace& scratch, Executor& ex) const {
        return given_scores{in.scores}.score(in, request, out, scratch, ex);
    }
};

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
    shares = {1, 0.5, 2, 5}; // of their heads
    compare_layers("snapkv_by_shares", with_layer_shares(snapkv(), shares), in);
    shares = {1, 3};
    compare_layers("layer_dropkv", layer_dropkv(), all);
    const std::vector<given_layer> given = {{layer(keys_of(0)), scores_of(0)},
                                            {layer(keys_of(1)), scores_of(1)}};
    const auto of_scores = [](const auto& allocator) {
        return layer_wise{eviction_policy{scores_of_layer{}, allocator, by_importance{}}};
    };
    compare_layers("layer_given", of_scores(adaptive{.safeguard_ratio = 0}), given);
    compare_layers("layer_given", of_scores(adaptive{.safeguard_ratio = 0.5}), given, "safeguard_ratio=0.5");
    compare_layers("layer_above_threshold", of_scores(above_threshold{3.5f}), given, "threshold=3.5");
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
    row_profile profile;
    std::vector<keep_plan> plans(layer_count);
    status added;
    const status planned =
        layer_replay().plan(std::span<const replay_scores>(replays), library_request(KEPT), std::span(plans),
                            memory, serial_executor{}, [&](const plan_progress& at) {
                                if (at.stage == plan_stage::scored) {
                                    added = profile.add(at.scores.importance_rows());
                                }
                            });
    check(planned.ok() && added.ok() && profile.prompts() == 1, "the library adds", "profile");
    kvtrim_layer layers[layer_count] = {};
    for (index_t l = 0; l < layer_count; ++l) {
        layers[l].size = sizeof(kvtrim_layer);
        layers[l].replay = c_replays[l];
    }
    kvtrim_policy* of_layers = make_policy("layer_replay", nullptr);
    ok(kvtrim_profile_create(&c_profile), "profile");
    ok(kvtrim_profile_add(c_profile, of_layers, layers, layer_count, &r, context), "profile");
    kvtrim_policy_destroy(of_layers);
    compare_layers("profiled", profiled(profile.budgets()), replays);
    compare_layers("profiled", profiled(profile.budgets(), 8), replays, "nearest=8");
    running_scores running(KV_HEADS);
    check(running.append(TOKENS).ok() && running.update(attended(0), {}, memory).ok(), "the library adds",
          "running");
    compare("running", eviction_policy{running.scorer(), uniform{}, by_importance{}}, layer(keys_of(0)));
    compare("running",
            eviction_policy{running.scorer(score_lifetime::normalised), uniform{}, by_importance{}},
            layer(keys_of(0)), "lifetime=normalised");
    query_pair_means means(Q_HEADS, DIM, rope{frequencies});
    workspace room = memory.of_bytes(means.workspace_bytes());
    check(means.add(queries_view(), room).ok(), "the library adds", "means");
    const kvtrim_rope c_rope{sizeof(kvtrim_rope), frequencies.data(), DIM / 2, 0, 0};
    kvtrim_view of_queries;
    kvtrim_view_init(&of_queries, KVTRIM_F32, queries, Q_HEADS, WINDOW, DIM);
    ok(kvtrim_means_create(Q_HEADS, DIM, &c_rope, &c_means), "means");
    ok(kvtrim_means_add(c_means, &of_queries, context), "means");
    compare("triattention", triattention(means, {frequencies}), layer(keys_of(0)));
    compare("triattention", triattention(means, {frequencies}, {4000, 5}), layer(keys_of(0)),
            "next_position=4000 octaves=5");
    query_statistics statistics(Q_HEADS, DIM, 0);
    workspace scratch = memory.of_bytes(statistics.workspace_bytes());
    check(statistics.add(queries_view(), scratch).ok(), "the library adds", "statistics");
    compare("expected_attention", expected_attention(statistics, {frequencies}),
            layer(keys_of(0), values_view()));
    compare("expected_attention", expected_attention(statistics, {frequencies}, {64, false, 0.5f}),
            layer(keys_of(0), values_view()), "future_positions=64 use_covariance=0 epsilon=0.5");
}

keep_plan library_plan(const kvtrim_plan* plan) {
    std::vector<index_t> counts;
    for (index_t h = 0; h < kvtrim_plan_rows(plan); ++h) { counts.push_back(kept_of(plan, h)); }
    keep_plan made;
    check(made.reset(counts).ok(), "a plan", "copy");
    for (index_t h = 0; h < made.rows(); ++h) {
        std::copy_n(row_of(plan, h), kept_of(plan, h), made.writable_row(h).begin());
    }
    return made;
}
bool same_as_c(const keep_plan& e, const kvtrim_plan* plan) {
    const keep_plan copy = library_plan(plan);
    return std::ranges::equal(copy.offsets(), e.offsets()) && std::ranges::equal(copy.kept(), e.kept());
}

// Folds, edits of cells and page plans: random ones, all by the library too.
void cells_and_pages() {
    growing_workspace memory;
    kvtrim_request r = make_request();
    kvtrim_policy* snapkv_by_name = make_policy("snapkv", nullptr);
    kvtrim_policy* given = make_policy("given", nullptr);
    kvtrim_plan* plan = make_plan();
    for (int fold = KVTRIM_FOLD_SUM; fold <= KVTRIM_FOLD_SQUARES; ++fold) {
        const cell_scores::request asked{.tokens = TOKENS,
                                         .kept_tokens = KEPT,
                                         .protect = library_request(KEPT).protect,
                                         .reduction = static_cast<head_reduction>(fold)};
        growing_workspace of_cells;
        workspace scratch = of_cells.of_bytes(asked.workspace_bytes());
        cell_scores cells(asked, scratch);
        kvtrim_cells* c_cells = nullptr;
        ok(kvtrim_cells_create(&r, TOKENS, fold, &c_cells), "cells");
        for (index_t l = 0; l < layer_count; ++l) {
            layer_of_test of;
            make_layer(&of);
            of.keys.data = keys_of(l).data_handle();
            check(cells.add(snapkv(), attended(l), {}, memory).ok(), "the library adds", "cells");
            ok(kvtrim_cells_add(c_cells, snapkv_by_name, &of.layer, context), "cells");
        }
        keep_plan expected;
        check(cells.plan(expected).ok(), "the library folds", "cells");
        ok(kvtrim_cells_plan(c_cells, plan), "cells");
        check(same_as_c(expected, plan), "C folds as the library does", "cells");
        kvtrim_cells_destroy(c_cells);
        // The edits of this plan, at positions with gaps and images.
        std::vector<std::int32_t> positions;
        for (std::size_t i = 0; i < TOKENS; ++i) {
            const auto step = static_cast<std::int32_t>(number(i + 31) + 2) % 3; // 0, 1, 2
            positions.push_back(i == 0 ? 3 : positions.back() + step);
        }
        for (int close = KVTRIM_KEEP_POSITIONS; close <= KVTRIM_TOWARDS_HORIZON; ++close) {
            const index_t horizon = close == KVTRIM_TOWARDS_HORIZON ? positions[TOKENS - 5] : -1;
            cell_edit_options options{.close = static_cast<closing>(close)};
            if (horizon >= 0) { options.horizon = horizon; }
            std::vector<index_t> calls;
            cell_edit_report report;
            const status s = edit_cells(
                expected.row(0), positions, options,
                [&](token_range gone) {
                    calls.insert(calls.end(), {gone.begin, gone.end, 0});
                },
                [&](position_shift by) {
                    calls.insert(calls.end(), {by.begin, by.end, by.delta});
                },
                &report);
            check(s.ok() && !calls.empty(), "the library edits", "cells");
            std::vector<index_t> c_calls(3 * TOKENS);
            kvtrim_cell_edit edit{sizeof edit, positions.data(), TOKENS, horizon, close, 0, 0, 0};
            int64_t count = 0;
            ok(kvtrim_edit_cells(plan, &edit, c_calls.data(), std::ssize(c_calls), &count), "edits");
            c_calls.resize(static_cast<std::size_t>(count));
            check(c_calls == calls && edit.kept_cells == report.kept_cells &&
                      edit.shared_cells == report.shared_cells && report.shared_cells > 0,
                  "C edits as the library does", "cells");
        }
        keep_plan whole;
        check(keep_whole_positions(expected, positions, whole).ok(), "the library keeps images whole",
              "cells");
        kvtrim_plan* c_whole = make_plan();
        ok(kvtrim_plan_whole_positions(plan, positions.data(), TOKENS, c_whole), "whole positions");
        check(same_as_c(whole, c_whole), "C keeps as the library does", "cells");
        kvtrim_plan_destroy(c_whole);
    }
    // Pages of 5 tokens: policy "given" is plan_pages().
    constexpr index_t page_tokens = 5, pages = (TOKENS + page_tokens - 1) / page_tokens;
    std::vector<float> scores(KV_HEADS * pages), c_scores(scores.size());
    for (std::size_t h = 0; h < KV_HEADS; ++h) {
        const std::span tokens(scores_of(0).data_handle() + h * TOKENS, TOKENS);
        const auto row = std::span(scores).subspan(h * pages, pages);
        check(score_pages(tokens, page_tokens, page_reduction::mean, row).ok(), "the library scores",
              "pages");
        ok(kvtrim_score_pages(tokens.data(), TOKENS, page_tokens, KVTRIM_PAGE_MEAN,
                              c_scores.data() + h * pages, pages),
           "pages");
    }
    check(scores == c_scores, "C scores as the library does", "pages");
    const strided<float, 2> view(scores.data(), {index_t{KV_HEADS}, pages});
    const protection protect{.sink_tokens = 1, .window_tokens = 2};
    workspace scratch = memory.of_bytes(plan_pages_bytes(view, 9, protect));
    keep_plan expected;
    check(plan_pages(view, 9, protect, expected, scratch).ok(), "the library plans", "pages");
    kvtrim_layer layer{};
    kvtrim_view c_view;
    kvtrim_view_init(&c_view, KVTRIM_F32, c_scores.data(), KV_HEADS, pages, 1);
    layer.size = sizeof layer;
    layer.scores = &c_view;
    kvtrim_request_init(&r);
    r.budget_tokens = 9, r.sink_tokens = 1, r.window_tokens = 2;
    ok(kvtrim_plan_layers(given, &layer, 1, &r, &plan, 1, context), "pages");
    check(same_as_c(expected, plan), "C plans pages as the library does", "pages");
    keep_plan tokens;
    workspace more = memory.of_bytes(expand_pages_bytes(expected));
    check(expand_pages(expected, page_tokens, TOKENS, tokens, more).ok(), "the library expands", "pages");
    kvtrim_plan* expanded = make_plan();
    ok(kvtrim_expand_pages(plan, page_tokens, TOKENS, expanded, context), "pages");
    check(same_as_c(tokens, expanded), "C expands as the library does", "pages");
    double expected_preference = 0, preference = 0;
    layer_of_test of;
    make_layer(&of);
    check(layer_preference{}.measure(attended(0), library_request(KEPT), expected_preference, memory).ok(),
          "the library measures", "preference");
    r = make_request();
    ok(kvtrim_layer_preference(&of.layer, &r, 0, 0, &preference, context), "preference");
    check(preference == expected_preference && preference > 0, "C measures as the library does",
          "preference");
    kvtrim_plan_destroy(expanded);
    kvtrim_plan_destroy(plan);
    kvtrim_policy_destroy(snapkv_by_name);
    kvtrim_policy_destroy(given);
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
    cells_and_pages();
    for (int64_t p = 0; p < kvtrim_policy_count(); ++p) {
        kvtrim_policy_info info{sizeof(kvtrim_policy_info), nullptr, nullptr, 0, 0};
        ok(kvtrim_policy_describe(p, &info), "describe");
        check(compared.contains(info.name), "every policy of the table was compared", info.name);
    }
    for (kvtrim_replay* r : c_replays) { kvtrim_replay_destroy(r); }
    kvtrim_running_destroy(c_running);
    kvtrim_statistics_destroy(c_statistics);
    kvtrim_means_destroy(c_means);
    kvtrim_profile_destroy(c_profile);
    kvtrim_context_destroy(context);
    return done();
}
