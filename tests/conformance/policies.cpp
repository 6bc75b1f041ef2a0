// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include "policies.hpp"

#include <kvtrim/kvtrim.hpp>

#include <cmath>
#include <functional>
#include <stdexcept>

namespace conformance {
namespace {

using kvtrim::index_t;
using view = kvtrim::strided<const float, 3>;

// ---- Inputs -----------------------------------------------------------------------------------------------

view keys_of(const layer_data& l) {
    return {l["keys"], {l.kv_heads, l.tokens, l.head_dim}};
}
view values_of(const layer_data& l) {
    return {l["values"], {l.kv_heads, l.tokens, l.head_dim}};
}
view projection_of(const layer_data& l) {
    return {l["wo"], {l.q_heads, l.head_dim, l.hidden}};
}
view window_of(const layer_data& l) {
    return {l["q_window"], {l.q_heads, l.window, l.head_dim}};
}
view prompt_of(const layer_data& l) {
    return {l["q_all"], {l.q_heads, l.tokens, l.head_dim}};
}

auto with_window(const layer_data& l) {
    return kvtrim::layer(keys_of(l)).with_queries(window_of(l));
}
auto with_everything(const layer_data& l) {
    return kvtrim::layer(keys_of(l), values_of(l))
        .with_queries(window_of(l))
        .with_output_projection(projection_of(l));
}

const layer_data& only_layer(const golden_case& c) {
    if (c.layers.size() != 1) { throw std::runtime_error("the case needs one input set"); }
    return c.layers.front();
}

// ---- Parameters -------------------------------------------------------------------------------------------

[[noreturn]] void unknown(const char* what, const std::string& value) {
    throw std::runtime_error(std::string("unknown ") + what + ": " + value);
}

kvtrim::group_reduction group_of(const golden_case& c) {
    const std::string group = c.text("group", "mean");
    if (group == "mean") { return kvtrim::group_reduction::mean; }
    if (group == "max") { return kvtrim::group_reduction::maximum; }
    if (group == "sum") { return kvtrim::group_reduction::sum; }
    unknown("group", group);
}

kvtrim::mean_attention mean_of(const golden_case& c) {
    kvtrim::mean_attention mean;
    const std::string pooling = c.text("pooling", "avg");
    if (pooling == "none") {
        mean.pool = kvtrim::pooling::none;
    } else if (pooling == "max") {
        mean.pool = kvtrim::pooling::maximum;
    } else if (pooling != "avg") {
        unknown("pooling", pooling);
    }
    mean.kernel_tokens = c.get<index_t>("kernel_size", 5);
    mean.group = group_of(c);
    const std::string order = c.text("order", "pool_then_group");
    if (order == "group_then_pool") {
        mean.order = kvtrim::pooling_order::group_then_pool;
    } else if (order != "pool_then_group") {
        unknown("order", order);
    }
    const std::string reduce = c.text("window_reduce", "mean");
    if (reduce == "sum") {
        mean.queries = kvtrim::query_normalisation::sum;
    } else if (reduce != "mean") {
        unknown("window_reduce", reduce);
    }
    return mean;
}

index_t kept_of(const golden_case& c, const layer_data& l) {
    return kvtrim::kept_tokens_kvpress(l.tokens, c.need<double>("ratio"));
}

// int(tokens * ratio), as the reference code truncates.
index_t truncated(index_t tokens, double ratio) {
    return static_cast<index_t>(static_cast<double>(tokens) * ratio);
}

using padded_window = kvtrim::padded<kvtrim::window_attention<kvtrim::mean_attention>>;

padded_window padded_of(const golden_case& c, const layer_data& l) {
    return {.scorer = {mean_of(c)}, .window_tokens = l.window};
}

// ---- Results ----------------------------------------------------------------------------------------------

void check(const kvtrim::status& s) {
    if (!s.ok()) { throw std::runtime_error(std::string("kvtrim answers: ") + s.what()); }
}

template <class Range>
std::vector<double> numbers(const Range& range) {
    return {range.begin(), range.end()};
}

// What a plan leaves behind: the plan, and the scores and budgets at each stage.
struct trace {
    kvtrim::keep_plan plan;
    std::vector<double> scored;    // importance as the scorer left it
    std::vector<double> attention; // likewise
    std::vector<double> mass;      // attention on the protected tokens
    std::vector<double> selected;  // importance as the selection saw it
    std::vector<double> budgets;   // candidates per row, as allocated
};

template <class Policy, class Inputs>
trace plan_with(const Policy& policy, const Inputs& in, kvtrim::eviction_request request) {
    trace t;
    kvtrim::growing_workspace memory;
    check(policy.plan(in, request, t.plan, memory, kvtrim::serial_executor{},
                      [&](const kvtrim::plan_progress& at) {
                          if (at.stage == kvtrim::plan_stage::scored) {
                              t.scored = numbers(at.scores.importance);
                              t.attention = numbers(at.scores.attention);
                              t.mass = numbers(at.scores.protected_mass);
                          } else if (at.stage == kvtrim::plan_stage::allocated) {
                              t.budgets = numbers(at.budgets);
                          } else {
                              t.selected = numbers(at.scores.importance);
                          }
                      }));
    if (t.scored.empty() && in.kv_heads() > 0 && in.longest_row() > 1) {
        // The budget holds the whole prompt, which is then not scored: one token less shows the scores.
        request.budget = kvtrim::over_all_heads(t.plan.total_tokens() - 1);
        const kvtrim::keep_plan whole = t.plan;
        t = plan_with(policy, in, request);
        t.plan = whole;
        for (std::size_t g = 0; g < t.budgets.size(); ++g) { // every candidate stays
            const auto row = static_cast<index_t>(g);
            t.budgets[g] = static_cast<double>(kvtrim::candidates(request.protect, in.tokens(row)).size());
        }
    }
    return t;
}

results tables_of(const kvtrim::keep_plan& plan) {
    return {{"indices", numbers(plan.kept())}, {"offsets", numbers(plan.offsets())}};
}

results with(results base, results more) {
    base.merge(more);
    return base;
}

// Kept tokens per head, the window included.
std::vector<double> row_sizes(const kvtrim::keep_plan& plan) {
    std::vector<double> sizes;
    for (index_t r = 0; r < plan.rows(); ++r) { sizes.push_back(static_cast<double>(plan.kept_tokens(r))); }
    return sizes;
}

// ---- Policies ---------------------------------------------------------------------------------------------

results run_window_attention(const golden_case& c) {
    const layer_data& l = only_layer(c);
    const auto in = with_window(l);
    const kvtrim::eviction_request request{};
    kvtrim::workspace counting = kvtrim::workspace::counting();
    static_cast<void>(kvtrim::attention_rows(in, request, 0, 0, 0, counting));
    kvtrim::growing_workspace memory;
    std::vector<double> attention(static_cast<std::size_t>(l.q_heads * l.window * l.tokens), 0.0);
    for (index_t g = 0; g < l.kv_heads; ++g) {
        kvtrim::workspace scratch = memory.of_bytes(counting.needed_bytes());
        kvtrim::attention_rows rows(in, request, g, 0, 0, scratch);
        for (index_t first = 0; first < rows.rows(); first += kvtrim::kernels::tile_query_rows) {
            rows.begin_row_group(first, std::min(kvtrim::kernels::tile_query_rows, rows.rows() - first));
            for (index_t t = 0; t < l.tokens; t += rows.tile_tokens()) {
                const index_t count = std::min(rows.tile_tokens(), l.tokens - t);
                const float* tile = rows.attention(t, count);
                for (index_t i = 0; i < count * rows.current_rows(); ++i) {
                    const index_t row = g * rows.rows() + first + i % rows.current_rows();
                    const index_t token = t + i / rows.current_rows();
                    attention[static_cast<std::size_t>(row * l.tokens + token)] =
                        static_cast<double>(tile[i]);
                }
            }
        }
    }
    return {{"attention", attention}};
}

results run_snapkv(const golden_case& c) {
    const layer_data& l = only_layer(c);
    const trace t =
        plan_with(kvtrim::snapkv(mean_of(c)), with_window(l),
                  {.budget = kvtrim::per_head(kept_of(c, l)), .protect = {.window_tokens = l.window}});
    return with(tables_of(t.plan), {{"scores", t.scored}});
}

results run_adakv_kvpress(const golden_case& c) {
    const layer_data& l = only_layer(c);
    const index_t kept = kept_of(c, l);
    const kvtrim::adaptive adaptive{.safeguard_tokens = truncated(kept, c.need<double>("alpha"))};
    const trace t = plan_with(kvtrim::eviction_policy{padded_of(c, l), adaptive, kvtrim::by_importance{}},
                              with_window(l), {.budget = kvtrim::per_head(kept)});
    return with(tables_of(t.plan), {{"scores", t.scored}, {"budgets", t.budgets}});
}

results run_adakv_repo(const golden_case& c) {
    const layer_data& l = only_layer(c);
    const std::string variant = c.text("variant", "exact");
    if (variant != "exact" && variant != "repo") { unknown("variant", variant); }
    kvtrim::blended blended{.floor_ratio = c.need<double>("floor"),
                            .weight_by_kept_mass = c.get("normalize", 0) != 0,
                            .rounding = variant == "repo" ? kvtrim::budget_rounding::authors
                                                          : kvtrim::budget_rounding::exact};
    const kvtrim::eviction_request request{.budget = kvtrim::per_head(c.need<index_t>("capacity")),
                                           .protect = {.window_tokens = l.window}};
    const trace t = plan_with(kvtrim::ada_snapkv(mean_of(c), blended), with_window(l), request);
    blended.floor_ratio = 0; // nothing spread evenly: the budgets are the counts of the common cut
    blended.rounding = kvtrim::budget_rounding::exact;
    const trace counts = plan_with(kvtrim::ada_snapkv(mean_of(c), blended), with_window(l), request);
    return with(tables_of(t.plan),
                {{"scores", t.scored}, {"budgets", t.budgets}, {"counts", counts.budgets}});
}

results run_adakv_blend(const golden_case& c) {
    std::vector<double> budgets;
    for (const index_t base : c.need<std::vector<index_t>>("base_list")) {
        for (const double floor_ratio : c.need<std::vector<double>>("floor_list")) {
            for (index_t count = 0; count < c.need<index_t>("count_stop"); ++count) {
                budgets.push_back(static_cast<double>(kvtrim::blend_as_authors(count, base, floor_ratio)));
            }
        }
    }
    return {{"budgets", budgets}};
}

results run_kept_count(const golden_case& c) {
    std::vector<double> kept;
    for (const index_t tokens : c.need<std::vector<index_t>>("n_list")) {
        for (const double ratio : c.need<std::vector<double>>("ratio_list")) {
            kept.push_back(static_cast<double>(kvtrim::kept_tokens_kvpress(tokens, ratio)));
        }
    }
    return {{"kept", kept}};
}

results run_projected_value_norm(const golden_case& c) {
    const layer_data& l = only_layer(c);
    const auto in = kvtrim::layer(keys_of(l), values_of(l)).with_output_projection(projection_of(l));
    std::vector<index_t> offsets;
    for (index_t g = 0; g <= l.kv_heads; ++g) { offsets.push_back(g * l.tokens); }
    std::vector<float> norms(static_cast<std::size_t>(l.kv_heads * l.tokens));
    kvtrim::growing_workspace memory;
    kvtrim::workspace scratch = memory.of_bytes(kvtrim::projected_value_norms_bytes(in));
    kvtrim::serial_executor ex;
    check(kvtrim::projected_value_norms(in, {}, kvtrim::score_rows{offsets, norms}, scratch, ex));
    return {{"pnorm", numbers(norms)}};
}

results run_criticalkv(const golden_case& c) {
    const layer_data& l = only_layer(c);
    const index_t kept = kept_of(c, l);
    const double ratio = c.need<double>("ratio");
    const double first_ratio = c.get("first_ratio", 0.5);
    const auto epsilon = c.get<float>("epsilon", 1e-4f);
    const std::string variant = c.text("variant", "paper");
    trace t;
    if (variant == "kvpress") {
        const auto first = static_cast<index_t>((1.0 - ratio) * static_cast<double>(l.tokens) * first_ratio);
        const kvtrim::projected_norm_weighted<padded_window> scorer{padded_of(c, l), epsilon};
        t = plan_with(
            kvtrim::eviction_policy{scorer, kvtrim::uniform{}, kvtrim::two_stage{.first_tokens = first}},
            with_everything(l), {.budget = kvtrim::per_head(kept)});
    } else if (variant == "paper") {
        auto policy =
            kvtrim::criticalkv({.attention = mean_of(c), .first_ratio = first_ratio, .epsilon = epsilon});
        policy.reranker.rounding = kvtrim::share_rounding::truncated;
        t = plan_with(policy, with_everything(l),
                      {.budget = kvtrim::per_head(kept), .protect = {.window_tokens = l.window}});
    } else {
        unknown("variant", variant);
    }
    return with(tables_of(t.plan), {{"scores", t.selected}});
}

results run_critical_adakv(const golden_case& c) {
    const layer_data& l = only_layer(c);
    const index_t kept = kept_of(c, l);
    const double alpha = c.need<double>("alpha");
    const auto epsilon = c.get<float>("epsilon", 1e-4f);
    const std::string variant = c.text("variant", "paper");
    kvtrim::two_stage reranker{.first_ratio = c.get("first_ratio", 0.5),
                               .rounding = kvtrim::share_rounding::truncated};
    trace t;
    if (variant == "kvpress") {
        reranker.first_at_least = truncated(kept, alpha);
        const kvtrim::projected_norm_weighted<padded_window> scorer{padded_of(c, l), epsilon};
        const kvtrim::adaptive adaptive{.safeguard_tokens = truncated(kept, alpha)};
        t = plan_with(kvtrim::eviction_policy{scorer, adaptive, reranker}, with_everything(l),
                      {.budget = kvtrim::per_head(kept)});
    } else if (variant == "paper") {
        const auto ada = kvtrim::ada_criticalkv({.attention = mean_of(c), .epsilon = epsilon},
                                                kvtrim::blended{.floor_ratio = alpha});
        t = plan_with(kvtrim::eviction_policy{ada.scorer, ada.allocator, reranker}, with_everything(l),
                      {.budget = kvtrim::per_head(kept), .protect = {.window_tokens = l.window}});
    } else {
        unknown("variant", variant);
    }
    return with(tables_of(t.plan), {{"scores", t.selected}, {"budgets", t.budgets}});
}

results run_defensivekv(const golden_case& c) {
    const layer_data& l = only_layer(c);
    const double ratio = c.need<double>("ratio");
    const auto in = with_everything(l);
    auto policy = kvtrim::defensivekv({.attention = {.kernel_tokens = c.get<index_t>("kernel_size", 5)},
                                       .attention_mass = c.get("threshold", 0.9)});
    policy.reranker.first_limit_tokens = std::max<index_t>(0, kept_of(c, l) - l.window);
    const auto total =
        static_cast<index_t>(static_cast<double>(l.tokens) * (1.0 - ratio) * static_cast<double>(l.kv_heads));
    const kvtrim::eviction_request request{.budget = kvtrim::over_all_heads(total),
                                           .protect = {.window_tokens = l.window}};
    const trace t = plan_with(policy, in, request);
    const trace unweighted =
        plan_with(kvtrim::eviction_policy{policy.scorer.scorer, policy.allocator, kvtrim::by_importance{}},
                  in, request);
    // The case lists forced tokens and the window as +infinity, and counts the former.
    const index_t candidates = l.tokens - l.window;
    std::vector<double> scores;
    std::vector<double> stage1;
    for (index_t g = 0; g < l.kv_heads; ++g) {
        const auto row = t.selected.begin() + g * candidates;
        stage1.push_back(static_cast<double>(
            std::count_if(row, row + candidates, [](double s) { return std::isinf(s); })));
        scores.insert(scores.end(), row, row + candidates);
        scores.insert(scores.end(), static_cast<std::size_t>(l.window),
                      std::numeric_limits<double>::infinity());
    }
    return with(tables_of(t.plan), {{"aggregated", unweighted.scored},
                                    {"weighted", t.scored},
                                    {"scores", scores},
                                    {"stage1", stage1},
                                    {"window_bias", t.mass},
                                    {"budgets", row_sizes(t.plan)}});
}

results run_streaming_llm(const golden_case& c) {
    const layer_data& l = only_layer(c);
    const trace t = plan_with(
        kvtrim::streaming_llm(), kvtrim::layer(keys_of(l)),
        {.budget = kvtrim::per_head(kept_of(c, l)), .protect = {.sink_tokens = c.need<index_t>("n_sink")}});
    std::vector<double> scores(static_cast<std::size_t>(l.kv_heads * l.tokens), 0.0);
    for (index_t g = 0; g < l.kv_heads; ++g) {
        for (const auto token : t.plan.row(g)) {
            scores[static_cast<std::size_t>(g * l.tokens + token)] = 1.0;
        }
    }
    return with(tables_of(t.plan), {{"scores", scores}});
}

results run_h2o(const golden_case& c) {
    const layer_data& l = only_layer(c);
    const trace t =
        plan_with(kvtrim::h2o(group_of(c)), kvtrim::layer(keys_of(l)).with_queries(prompt_of(l)),
                  {.budget = kvtrim::per_head(kept_of(c, l)), .protect = {.window_tokens = l.window}});
    return with(tables_of(t.plan), {{"scores", t.scored}});
}

results run_observed_attention(const golden_case& c) {
    const layer_data& l = only_layer(c);
    const trace t =
        plan_with(kvtrim::observed_attention(), kvtrim::layer(keys_of(l)).with_queries(prompt_of(l)),
                  {.budget = kvtrim::per_head(kept_of(c, l))});
    return with(tables_of(t.plan), {{"scores", t.scored}});
}

results run_tova(const golden_case& c) {
    const layer_data& l = only_layer(c);
    const trace t = plan_with(kvtrim::tova(), with_window(l),
                              {.budget = kvtrim::per_head(kept_of(c, l)), .protect = {.window_tokens = 1}});
    // The case lists the mean over all heads, and the protected last token as the maximum + 1.
    std::vector<double> row(static_cast<std::size_t>(l.tokens - 1));
    for (std::size_t i = 0; i < row.size(); ++i) { row[i] = t.selected[i] / static_cast<double>(l.kv_heads); }
    row.push_back(*std::max_element(row.begin(), row.end()) + 1.0);
    std::vector<double> scores;
    for (index_t g = 0; g < l.kv_heads; ++g) { scores.insert(scores.end(), row.begin(), row.end()); }
    return with(tables_of(t.plan), {{"scores", scores}});
}

template <class Policy>
results run_key_policy(const golden_case& c, const Policy& policy) {
    const layer_data& l = only_layer(c);
    const trace t = plan_with(policy, kvtrim::layer(keys_of(l)), {.budget = kvtrim::per_head(kept_of(c, l))});
    return with(tables_of(t.plan), {{"scores", t.scored}});
}

// The statistics of the whole prompt's queries before RoPE.
kvtrim::query_statistics statistics_of(const layer_data& l, index_t skip) {
    kvtrim::query_statistics statistics(l.q_heads, l.head_dim, skip);
    kvtrim::growing_workspace memory;
    kvtrim::workspace scratch = memory.of_bytes(statistics.workspace_bytes());
    check(statistics.add(view(l["q_pre"], {l.q_heads, l.tokens, l.head_dim}), scratch));
    return statistics;
}

kvtrim::rope rope_of(const layer_data& l) {
    return {.inverse_frequencies = {l["inv_freq"], static_cast<std::size_t>(l.head_dim / 2)}};
}

// Scores of the candidates behind `protected_value` for each of the sinks.
std::vector<double> behind_sinks(const layer_data& l, const std::vector<double>& scores, index_t sinks,
                                 double protected_value) {
    std::vector<double> all;
    const index_t scored = l.tokens - sinks;
    for (index_t g = 0; g < l.kv_heads; ++g) {
        all.insert(all.end(), static_cast<std::size_t>(sinks), protected_value);
        all.insert(all.end(), scores.begin() + g * scored, scores.begin() + (g + 1) * scored);
    }
    return all;
}

results run_expected_attention(const golden_case& c) {
    const layer_data& l = only_layer(c);
    const auto sinks = c.need<index_t>("n_sink");
    const kvtrim::query_statistics statistics = statistics_of(l, sinks);
    const auto policy = kvtrim::expected_attention(
        statistics, rope_of(l),
        {c.need<index_t>("n_future"), c.need<int>("use_covariance") != 0, c.need<float>("epsilon")});
    const auto in = kvtrim::layer(keys_of(l), values_of(l));
    const kvtrim::eviction_request request{.budget = kvtrim::per_head(kept_of(c, l)),
                                           .protect = {.sink_tokens = sinks}};
    const trace t = c.need<int>("use_vnorm") != 0
                        ? plan_with(policy, in, request)
                        : plan_with(kvtrim::eviction_policy{policy.scorer.scorer, kvtrim::uniform{},
                                                            kvtrim::by_importance{}},
                                    in, request);
    // The case lists sinks as the maximum + 1.
    const double padding = *std::max_element(t.scored.begin(), t.scored.end()) + 1.0;
    return with(tables_of(t.plan), {{"scores", behind_sinks(l, t.scored, sinks, padding)}});
}

results run_lagkv(const golden_case& c) {
    const layer_data& l = only_layer(c);
    const auto sinks = c.need<index_t>("n_sink");
    const auto policy = kvtrim::lagkv({c.need<index_t>("lag"), c.need<int>("cross_scoring") != 0});
    trace t = plan_with(policy, kvtrim::layer(keys_of(l), values_of(l)),
                        {.budget = kvtrim::per_head(kept_of(c, l)), .protect = {.sink_tokens = sinks}});
    // The case lists 1 for all that always stays; kvtrim orders it, newer tokens higher.
    for (double& s : t.scored) { s = std::min(s, 1.0); }
    return with(tables_of(t.plan), {{"scores", behind_sinks(l, t.scored, sinks, 1.0)}});
}

results run_key_rerotation(const golden_case& c) {
    const layer_data& l = only_layer(c);
    const trace t =
        plan_with(kvtrim::snapkv(mean_of(c)), with_window(l),
                  {.budget = kvtrim::per_head(kept_of(c, l)), .protect = {.window_tokens = l.window}});
    std::vector<float> kept(static_cast<std::size_t>(t.plan.total_tokens() * l.head_dim));
    check(kvtrim::gather(keys_of(l), t.plan, std::span(kept)));
    const auto keys = kvtrim::flat_view(kept.data(), t.plan, l.head_dim);
    kvtrim::growing_workspace memory;
    kvtrim::workspace scratch = memory.of_bytes(kvtrim::rerotate_keys_bytes(keys, rope_of(l)));
    check(kvtrim::rerotate_keys(keys, rope_of(l), kvtrim::positions_of(t.plan), scratch));
    return with(tables_of(t.plan), {{"rerotated_keys", numbers(kept)}});
}

results run_chunkkv(const golden_case& c) {
    const layer_data& l = only_layer(c);
    const auto chunk = c.need<index_t>("chunk_length");
    const index_t chunks = (l.tokens + chunk - 1) / chunk;
    const kvtrim::chunked reranker{
        .chunk_tokens = chunk,
        .kept_chunks = std::max<index_t>(1, truncated(chunks, 1.0 - c.need<double>("ratio")))};
    // Any budget below the whole cache: the count of chunks decides.
    const kvtrim::eviction_request request{.budget = kvtrim::per_head(std::max<index_t>(1, l.tokens - 1))};
    const std::string scorer = c.need<std::string>("scorer");
    trace t;
    if (scorer == "snapkv") {
        t = plan_with(kvtrim::eviction_policy{padded_of(c, l), kvtrim::uniform{}, reranker}, with_window(l),
                      request);
    } else if (scorer == "keydiff") {
        t = plan_with(kvtrim::eviction_policy{kvtrim::key_diff_score{}, kvtrim::uniform{}, reranker},
                      with_window(l), request);
    } else {
        unknown("scorer", scorer);
    }
    return with(tables_of(t.plan), {{"scores", t.scored}});
}

results run_eviction_loss(const golden_case& c) {
    const layer_data& l = only_layer(c);
    const auto in = with_everything(l);
    const kvtrim::eviction_request request{.budget = kvtrim::per_head(kept_of(c, l)),
                                           .protect = {.window_tokens = l.window}};
    const trace t = plan_with(kvtrim::snapkv(mean_of(c)), in, request);
    kvtrim::eviction_loss loss;
    check(kvtrim::measure_eviction(in, request, t.plan, loss));
    std::vector<double> per_kv_head(static_cast<std::size_t>(l.kv_heads), 0.0);
    const auto group = static_cast<std::size_t>(l.q_heads / l.kv_heads);
    for (std::size_t h = 0; h < loss.kept_mass.size(); ++h) {
        per_kv_head[h / group] += loss.kept_mass[h] / static_cast<double>(group);
    }
    return with(tables_of(t.plan), {{"kept_mass", loss.kept_mass},
                                    {"kept_mass_kv", per_kv_head},
                                    {"l1", loss.error},
                                    {"l1_projected", {loss.layer_error}}});
}

// Fused estimates are intermediate results of the library, so they are composed here from its parts; the kept blocks
// come from the whole policy. The case leaves the last segment out and calls the first one's estimate uniform.
results run_critiprefill(const golden_case& c) {
    kvtrim::block_pruner<kvtrim::mid_query, kvtrim::uniform> policy{
        .options = {.segment_tokens = c.need<index_t>("segment"),
                    .block_tokens = c.need<index_t>("block"),
                    .budget_tokens = c.need<index_t>("topk") * c.need<index_t>("block"),
                    .dense_below_tokens = 0,
                    .dense_layers = 0,
                    .sink_blocks = 0,
                    .local_blocks = 0},
        .criticality = {.scale = c.need<float>("scale")},
        .fusion = {.previous_weight = c.need<int>("fusion") != 0 ? c.need<double>("previous_weight") : 0.0}};
    std::vector<double> all_logits, all_estimates, indices, offsets{0};
    kvtrim::layer_fusion state, shown;
    kvtrim::growing_workspace memory;
    for (std::size_t i = 0; i < c.layers.size(); ++i) {
        const layer_data& l = c.layers[i];
        const kvtrim::prefill_chunk chunk{.layer = static_cast<index_t>(i)};
        kvtrim::prune_plan plan;
        check(policy.plan(prompt_of(l), keys_of(l), chunk, state, plan, memory));
        const kvtrim::segment_grid& grid = plan.grid();
        const index_t segments = grid.segments() - 1;
        const index_t blocks = segments * grid.segment_tokens / grid.block_tokens;

        const auto floats = [](index_t count) { return std::vector<float>(static_cast<std::size_t>(count)); };
        auto q_high = floats(l.q_heads * segments * l.head_dim), q_low = q_high;
        auto k_high = floats(l.kv_heads * blocks * l.head_dim), k_low = k_high;
        const kvtrim::block_bounds queries{q_high, q_low, segments, l.head_dim};
        const kvtrim::block_bounds keys{k_high, k_low, blocks, l.head_dim};
        std::vector<std::byte> bytes(1 << 20);
        kvtrim::workspace scratch(bytes);
        kvtrim::serial_executor ex;
        check(kvtrim::compute_block_bounds(prompt_of(l), segments * grid.segment_tokens, grid.segment_tokens,
                                           0, queries, scratch, ex));
        check(kvtrim::compute_block_bounds(keys_of(l), blocks * grid.block_tokens, grid.block_tokens, 0, keys,
                                           scratch, ex));
        if (policy.fusion.is_on()) { check(shown.begin_layer(chunk.layer, grid, l.kv_heads, policy.fusion)); }
        for (index_t g = 0; g < l.kv_heads; ++g) {
            auto logits = floats(segments * blocks);
            auto spare = floats(kvtrim::block_logits_floats(policy.estimator, segments, blocks, l.head_dim));
            kvtrim::block_logits(policy.estimator, policy.criticality, queries, keys, l.q_heads / l.kv_heads,
                                 g, 0, segments, blocks, logits.data(), spare.data());
            const float scale = policy.criticality.scale;
            for (const float x : logits) { all_logits.push_back(static_cast<double>(x / scale)); }
            for (index_t s = 0; s < segments; ++s) {
                const index_t allowed = grid.allowed_blocks(s);
                std::vector<float> row(logits.begin() + s * blocks, logits.begin() + s * blocks + allowed);
                kvtrim::kernels::softmax(row.data(), allowed);
                if (policy.fusion.is_on()) { check(shown.fuse(g, s, row)); }
                row.resize(static_cast<std::size_t>(blocks),
                           s == 0 ? 1.0f / static_cast<float>(blocks) : 0.0f);
                all_estimates.insert(all_estimates.end(), row.begin(), row.end());
                indices.insert(indices.end(), plan.row(g, s).begin(), plan.row(g, s).end());
                offsets.push_back(static_cast<double>(indices.size()));
            }
        }
    }
    return {{"block_logits", all_logits},
            {"estimate", all_estimates},
            {"indices", indices},
            {"offsets", offsets}};
}

// ---- Budgets over layers ------------------------------------------------------------------------------------

kvtrim::pyramid_schedule schedule_of(const std::string& variant) {
    if (variant == "adakv") { return kvtrim::pyramid_schedule::adakv; }
    if (variant == "factory") { return kvtrim::pyramid_schedule::kvcache_factory; }
    if (variant == "kvpress") { return kvtrim::pyramid_schedule::kvpress; }
    if (variant == "exact") { return kvtrim::pyramid_schedule::exact; }
    unknown("variant", variant);
}

std::vector<index_t> pyramid_of(const std::string& variant, double beta, index_t tokens, index_t window,
                                double kept, std::size_t layers) {
    const kvtrim::pyramid pyramid{.beta = beta, .schedule = schedule_of(variant)};
    std::vector<index_t> budgets(layers);
    kvtrim::growing_workspace memory;
    kvtrim::workspace scratch = memory.of_bytes(pyramid.workspace_bytes(std::ssize(budgets)));
    check(pyramid.allocate(tokens, window, kept, budgets, scratch));
    return budgets;
}

// The table lists pre-window budgets, but for kvpress, and -1 where everything is kept.
results run_pyramid_budgets(const golden_case& c) {
    results out;
    const auto& rows = c.expected.at("rows").values; // (n, w, layers, beta, permille, capacity)
    for (const char* variant : {"adakv", "factory", "kvpress", "exact"}) {
        auto& budgets = out[std::string("budgets_") + variant];
        for (std::size_t r = 0; r + 6 <= rows.size(); r += 6) {
            const auto n = static_cast<index_t>(rows[r]);
            const auto w = static_cast<index_t>(rows[r + 1]);
            const bool doubles = std::string(variant) == "kvpress";
            const double ratio = 1.0 - rows[r + 4] / 1000.0;
            const double kept = doubles ? rows[r] * (1.0 - ratio) : rows[r + 5];
            const bool everything = std::string(variant) == "factory" && rows[r] < rows[r + 5];
            for (const index_t budget :
                 pyramid_of(variant, rows[r + 3], n, w, kept, static_cast<std::size_t>(rows[r + 2]))) {
                budgets.push_back(static_cast<double>(everything ? -1 : doubles ? budget : budget - w));
            }
        }
    }
    out["rows"] = rows;
    out["offsets"] = c.expected.at("offsets").values;
    return out;
}

// Appends a plan's rows to ragged lists.
void append(const kvtrim::keep_plan& plan, std::vector<double>& indices, std::vector<double>& offsets) {
    for (index_t g = 0; g < plan.rows(); ++g) {
        indices.insert(indices.end(), plan.row(g).begin(), plan.row(g).end());
        offsets.push_back(static_cast<double>(indices.size()));
    }
}

results run_pyramidkv(const golden_case& c) {
    const layer_data& first = c.layers.front();
    const std::string variant = c.need<std::string>("variant");
    const bool doubles = variant == "kvpress";
    const double kept = doubles ? static_cast<double>(first.tokens) * (1.0 - c.need<double>("ratio"))
                                : c.need<double>("capacity");
    const auto budgets =
        pyramid_of(variant, c.need<double>("beta"), first.tokens, first.window, kept, c.layers.size());
    std::vector<double> listed, indices, offsets{0};
    for (std::size_t l = 0; l < c.layers.size(); ++l) {
        const trace t =
            plan_with(kvtrim::snapkv(mean_of(c)), with_window(c.layers[l]),
                      {.budget = kvtrim::per_head(budgets[l]), .protect = {.window_tokens = first.window}});
        append(t.plan, indices, offsets);
        listed.push_back(static_cast<double>(budgets[l] - (doubles ? 0 : first.window)));
    }
    return {{"budgets", listed}, {"indices", indices}, {"offsets", offsets}};
}

std::vector<index_t> preference_of(std::span<const double> preferences, std::span<const index_t> caps,
                                   index_t total) {
    const kvtrim::preference preference{.rule = kvtrim::preference_rule::authors};
    std::vector<index_t> budgets(preferences.size());
    kvtrim::growing_workspace memory;
    kvtrim::workspace scratch = memory.of_bytes(preference.workspace_bytes(std::ssize(budgets)));
    check(preference.allocate(preferences, caps, total, budgets, scratch));
    return budgets;
}

results run_cake_budgets(const golden_case& c) {
    const auto& rows = c.expected.at("rows").values; // (layers, cap, total)
    const auto& preferences = c.expected.at("preferences").values;
    std::vector<double> budgets;
    for (std::size_t r = 0, begin = 0; r + 3 <= rows.size(); r += 3) {
        const auto layers = static_cast<std::size_t>(rows[r]);
        const std::vector<index_t> caps(layers, static_cast<index_t>(rows[r + 1]));
        const auto row = preference_of(std::span(preferences).subspan(begin, layers), caps,
                                       static_cast<index_t>(rows[r + 2]));
        budgets.insert(budgets.end(), row.begin(), row.end());
        begin += layers;
    }
    return {{"rows", rows},
            {"preferences", preferences},
            {"budgets", budgets},
            {"offsets", c.expected.at("offsets").values}};
}

results run_cake(const golden_case& c) {
    const layer_data& first = c.layers.front();
    const kvtrim::layer_preference spread{.tau1 = c.need<double>("tau1"), .tau2 = c.need<double>("tau2")};
    const kvtrim::mean_variance_attention aggregator{.gamma = c.need<float>("gamma"),
                                                     .kernel_tokens = c.need<index_t>("kernel_size")};
    const kvtrim::eviction_policy policy{kvtrim::window_attention{aggregator}, kvtrim::uniform{},
                                         kvtrim::by_importance{}};
    std::vector<double> preferences(c.layers.size());
    const kvtrim::eviction_request request{.budget = kvtrim::per_head(first.window + 1),
                                           .protect = {.window_tokens = first.window}};
    kvtrim::growing_workspace memory;
    for (std::size_t l = 0; l < c.layers.size(); ++l) {
        check(spread.measure(with_window(c.layers[l]), request, preferences[l], memory));
    }
    const double kept = static_cast<double>(first.tokens) * (1.0 - c.need<double>("ratio"));
    const auto total = static_cast<index_t>((kept - static_cast<double>(first.window)) *
                                            static_cast<double>(c.layers.size()));
    const std::vector<index_t> caps(c.layers.size(), first.tokens - first.window);
    const auto budgets = preference_of(preferences, caps, total);
    std::vector<double> scores, indices, offsets{0};
    for (std::size_t l = 0; l < c.layers.size(); ++l) {
        kvtrim::eviction_request own = request;
        own.budget = kvtrim::per_head(first.window + budgets[l]);
        const trace t = plan_with(policy, with_window(c.layers[l]), own);
        scores.insert(scores.end(), t.scored.begin(), t.scored.end());
        append(t.plan, indices, offsets);
    }
    return {{"preferences", preferences},
            {"budgets", numbers(budgets)},
            {"scores", scores},
            {"indices", indices},
            {"offsets", offsets}};
}

// One shot over all layers; the cascade must end with the same tokens.
results run_layer_defensivekv(const golden_case& c) {
    const layer_data& first = c.layers.front();
    const auto layers = std::ssize(c.layers);
    const double ratio = c.need<double>("ratio");
    auto policy = kvtrim::layer_defensivekv({.attention = {.kernel_tokens = c.get<index_t>("kernel_size", 5)},
                                             .attention_mass = c.get("threshold", 0.9)});
    policy.policy.reranker.first_limit_tokens = std::max<index_t>(0, kept_of(c, first) - first.window);
    const auto total = static_cast<index_t>(static_cast<double>(first.tokens) * (1.0 - ratio) *
                                            static_cast<double>(first.kv_heads * layers));
    const kvtrim::eviction_request request{.budget = kvtrim::over_all_layers(total),
                                           .protect = {.window_tokens = first.window}};
    std::vector<decltype(with_everything(first))> inputs;
    for (const layer_data& l : c.layers) { inputs.push_back(with_everything(l)); }
    const std::span<const decltype(with_everything(first))> all(inputs);
    std::vector<kvtrim::keep_plan> plans(c.layers.size());
    kvtrim::growing_workspace memory;
    check(policy.plan(all, request, plans, memory));

    kvtrim::layer_cascade cascade = policy.begin(inputs.front(), request, layers);
    for (const auto& in : inputs) { check(policy.push(in, request, layers, cascade, memory)); }
    std::vector<double> scores, layer_budgets, head_budgets, indices, offsets{0};
    for (std::size_t l = 0; l < plans.size(); ++l) {
        append(plans[l], indices, offsets);
        const auto sizes = row_sizes(plans[l]);
        head_budgets.insert(head_budgets.end(), sizes.begin(), sizes.end());
        layer_budgets.push_back(static_cast<double>(plans[l].total_tokens()));
        for (index_t g = 0; g < plans[l].rows(); ++g) {
            const auto kept =
                plans[l].row(g).first(plans[l].row(g).size() - static_cast<std::size_t>(first.window));
            if (!std::equal(kept.begin(), kept.end(), cascade.kept(static_cast<index_t>(l), g).begin(),
                            cascade.kept(static_cast<index_t>(l), g).end())) {
                throw std::runtime_error("the cascade differs from the one-shot plan");
            }
        }
        // Scores with pass one marked, as the allocator saw them.
        trace t;
        kvtrim::keep_plan ignored;
        kvtrim::eviction_request one_layer = request;
        one_layer.budget = kvtrim::over_all_heads(total / layers);
        check(policy.policy.plan(
            inputs[l], one_layer, ignored, memory, kvtrim::serial_executor{},
            [&](const kvtrim::plan_progress& at) { t.selected = numbers(at.scores.importance); }));
        for (index_t g = 0; g < first.kv_heads; ++g) {
            const auto row = t.selected.begin() + g * (first.tokens - first.window);
            scores.insert(scores.end(), row, row + (first.tokens - first.window));
            scores.insert(scores.end(), static_cast<std::size_t>(first.window),
                          std::numeric_limits<double>::infinity());
        }
    }
    return {{"scores", scores},
            {"layer_budgets", layer_budgets},
            {"head_budgets", head_budgets},
            {"indices", indices},
            {"offsets", offsets}};
}

const std::map<std::string, std::function<results(const golden_case&)>>& policies() {
    static const std::map<std::string, std::function<results(const golden_case&)>> table{
        {"adakv_blend", run_adakv_blend},
        {"adakv_kvpress", run_adakv_kvpress},
        {"adakv_repo", run_adakv_repo},
        {"cake", run_cake},
        {"cake_budgets", run_cake_budgets},
        {"chunkkv", run_chunkkv},
        {"critical_adakv", run_critical_adakv},
        {"criticalkv", run_criticalkv},
        {"critiprefill", run_critiprefill},
        {"defensivekv", run_defensivekv},
        {"eviction_loss", run_eviction_loss},
        {"expected_attention", run_expected_attention},
        {"h2o", run_h2o},
        {"kept_count", run_kept_count},
        {"keydiff", [](const golden_case& c) { return run_key_policy(c, kvtrim::key_diff()); }},
        {"layer_defensivekv", run_layer_defensivekv},
        {"pyramid_budgets", run_pyramid_budgets},
        {"pyramidkv", run_pyramidkv},
        {"knorm", [](const golden_case& c) { return run_key_policy(c, kvtrim::key_norm()); }},
        {"key_rerotation", run_key_rerotation},
        {"lagkv", run_lagkv},
        {"observed_attention", run_observed_attention},
        {"projected_value_norm", run_projected_value_norm},
        {"snapkv", run_snapkv},
        {"streaming_llm", run_streaming_llm},
        {"tova", run_tova},
        {"window_attention", run_window_attention},
    };
    return table;
}

} // namespace

std::optional<std::string> reason_to_skip(const golden_case& c) {
    if (c.text("compat", "") == "repo") { return "pins a defect of the authors' code"; }
    return std::nullopt;
}

results run(const golden_case& c) {
    const auto found = policies().find(c.text("policy", ""));
    if (found == policies().end()) { unknown("policy", c.text("policy", "")); }
    return found->second(c);
}

std::optional<double> gram_agreement(const golden_case& c) {
    if (c.text("policy", "") != "criticalkv") { return std::nullopt; }
    const layer_data& l = only_layer(c);
    if (kept_of(c, l) <= l.window) { return std::nullopt; } // nothing but the window is kept
    const kvtrim::eviction_request request{.budget = kvtrim::per_head(kept_of(c, l)),
                                           .protect = {.window_tokens = l.window}};
    const auto in = with_everything(l);
    const kvtrim::gram_projection gram(projection_of(l));
    const auto exact = plan_with(kvtrim::criticalkv(), in, request).plan;
    const auto other = plan_with(kvtrim::criticalkv(), in.with_output_projection(gram.view()), request).plan;
    index_t common = 0;
    for (index_t g = 0; g < l.kv_heads; ++g) {
        const auto kept = other.row(g);
        common += std::count_if(exact.row(g).begin(), exact.row(g).end(), [&](auto token) {
            return std::binary_search(kept.begin(), kept.end(), token);
        });
    }
    return static_cast<double>(common) / static_cast<double>(exact.total_tokens());
}

} // namespace conformance
