// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Tokens with equal keys and values get equal scores, bit by bit: which of them stays is decided by the rule for ties, and
// not by how a matrix product rounds the first rows of a tile and the last ones.

#include "support/checks.hpp"
#include "support/cpu_levels.hpp"

#include <kvtrim/aggregate/dispersion_attention.hpp>
#include <kvtrim/aggregate/worst_case_attention.hpp>
#include <kvtrim/decode/running_scores.hpp>
#include <kvtrim/policy/baselines.hpp>
#include <kvtrim/score/expected_attention_score.hpp>
#include <kvtrim/score/lag_score.hpp>
#include <kvtrim/score/prepared_projection.hpp>
#include <kvtrim/score/projected_norm_weighted.hpp>
#include <kvtrim/score/redundancy_aware.hpp>
#include <kvtrim/score/value_norm_weighted.hpp>

using namespace kvtrim;
using namespace support;

namespace {

constexpr index_t shared_heads = 2, group = 7, queries = 9; // the query heads of Qwen2.5-0.5B, an odd window

// A cache that holds a few different tokens, each many times. Rows start `gap` floats behind the end of the one before,
// and the first one `shift` floats behind an aligned address.
struct repeating_cache {
    index_t tokens, dim, kinds, shift, row;
    std::vector<float> keys, values, query, w_o;

    repeating_cache(index_t token_count, index_t head_dim, index_t kind_count, index_t first, index_t gap)
        : tokens(token_count), dim(head_dim), kinds(kind_count), shift(first), row(head_dim + gap),
          keys(zeros(first + shared_heads * tokens * row)), values(keys),
          query(zeros(shared_heads * group * queries * dim)),
          w_o(zeros(shared_heads * group * dim * hidden)) {
        support::random r(97);
        const auto normals = [&](std::vector<float> out) {
            for (float& x : out) { x = static_cast<float>(r.normal()); }
            return out;
        };
        const std::vector<float> key = normals(zeros(kinds * dim)), value = normals(zeros(kinds * dim));
        query = normals(query);
        w_o = normals(w_o);
        for (index_t t = 0; t < shared_heads * tokens; ++t) {
            std::copy_n(key.data() + kind(t % tokens) * dim, dim, keys.data() + shift + t * row);
            std::copy_n(value.data() + kind(t % tokens) * dim, dim, values.data() + shift + t * row);
        }
    }

    static constexpr index_t hidden = 53;
    [[nodiscard]] index_t kind(index_t token) const { return token * 7 / 3 % kinds; }
    [[nodiscard]] view rows(const std::vector<float>& of) const {
        return view(of.data() + shift, {shared_heads, tokens, dim}, {tokens * row, row, 1});
    }
    [[nodiscard]] view output_projection() const {
        return view(w_o.data(), {shared_heads * group, dim, hidden});
    }
    [[nodiscard]] auto inputs() const {
        return layer(rows(keys), rows(values))
            .with_queries(view(query.data(), {shared_heads * group, queries, dim}));
    }
};

// The first token whose score is not that of the first one of its kind, or -1.
index_t first_odd(const repeating_cache& cache, std::span<const float> scores) {
    std::vector<float> of_kind(static_cast<std::size_t>(cache.kinds), -1e30f);
    for (index_t t = 0; t < std::ssize(scores); ++t) {
        float& expected = of_kind[static_cast<std::size_t>(cache.kind(t))];
        const float score = scores[static_cast<std::size_t>(t)];
        if (expected == -1e30f) { expected = score; }
        if (score != expected) { return t; }
    }
    return -1;
}

// The same of all heads of what a scorer says of the tokens before the window.
template <class Scorer, class Inputs>
index_t first_odd(const repeating_cache& cache, const Scorer& scorer, const Inputs& in) {
    const eviction_request request{.budget = per_head(queries + 9), .protect = {.window_tokens = queries}};
    trace t = run(eviction_policy{scorer, uniform{}, by_importance{}}, in, request);
    REQUIRE(t.answer.ok());
    for (index_t g = 0; g < shared_heads; ++g) {
        if (const index_t odd = first_odd(cache, t.importance_rows().row(g)); odd >= 0) { return odd; }
        if (!t.attention.empty() && first_odd(cache, t.attention_rows().row(g)) >= 0) {
            return first_odd(cache, t.attention_rows().row(g));
        }
    }
    return -1;
}

// Calls fn(cache) at every level, for row counts around the sizes of tiles and vectors, and rows anywhere in memory.
template <class Fn>
void for_each_cache(index_t kinds, Fn&& fn) {
    at_each_cpu_level([&] {
        for (const index_t dim : {33, 64, 128}) {
            for (const index_t tokens : {45, 197, 210, 515}) {
                for (const auto& [shift, gap] : {std::pair{0, 0}, std::pair{1, 0}, std::pair{3, 2}}) {
                    CAPTURE(dim, tokens, shift, gap);
                    fn(repeating_cache(tokens, dim, kinds, shift, gap));
                }
            }
        }
    });
}

} // namespace

TEST_CASE("equal keys get equal scores of a window, whatever their rows", "[regression]") {
    for_each_cache(3, [](const repeating_cache& cache) {
        const auto in = cache.inputs();
        CHECK(first_odd(cache, window_attention{mean_attention{.pool = pooling::none}}, in) == -1);
        CHECK(first_odd(cache, window_attention{worst_case_attention{.kernel_tokens = 1}}, in) == -1);
        CHECK(first_odd(cache, window_attention{mean_variance_attention{.kernel_tokens = 1}}, in) == -1);
        CHECK(first_odd(cache, window_attention{dispersion_attention{}}, in) == -1);
    });
    for_each_cache(1, [](const repeating_cache& cache) { // pooled: neighbours have to be equal, too
        const auto in = cache.inputs();
        const eviction_request request{.budget = per_head(queries + 9),
                                       .protect = {.sink_tokens = 9, .window_tokens = queries + 9}};
        const auto inner = [&](const auto& aggregator) {
            trace t = run(eviction_policy{window_attention{aggregator}, uniform{}, by_importance{}}, in,
                          {.budget = per_head(queries + 18), .protect = request.protect});
            REQUIRE(t.answer.ok());
            // The first and the last ones are pooled over fewer.
            return first_odd(cache,
                             t.importance_rows().row(1).subspan(8, t.importance_rows().row(1).size() - 16));
        };
        CHECK(inner(mean_attention{}) == -1);
        CHECK(inner(worst_case_attention{}) == -1);
    });
}

TEST_CASE("equal keys and values get equal scores without queries", "[regression]") {
    for_each_cache(3, [](const repeating_cache& cache) {
        const auto in = cache.inputs();
        CHECK(first_odd(cache, key_norm_score{}, in) == -1);
        CHECK(first_odd(cache, key_diff_score{}, in) == -1);
        CHECK(first_odd(cache, value_norm_weighted<key_norm_score>{}, in) == -1);
    });
    for_each_cache(1, [](const repeating_cache& cache) {
        const auto in = cache.inputs();
        // One partition after the other; the newest token of a group speaks for it and is charged less.
        trace t = run(eviction_policy{lag_score{.lag = 8, .cross_scoring = true}, uniform{}, by_importance{}},
                      in, {.budget = per_head(queries + 9), .protect = {.window_tokens = queries}});
        REQUIRE(t.answer.ok());
        CHECK(first_odd(cache, t.importance_rows().row(1).first(
                                   static_cast<std::size_t>((cache.tokens / 8 - 2) * 8))) == -1);
        CHECK(first_odd(cache, redundancy_aware<key_norm_score>{}, in) == -1);
    });
}

TEST_CASE("equal keys get equal scores of the queries to come", "[regression]") {
    for_each_cache(3, [](const repeating_cache& cache) {
        query_statistics statistics(shared_heads * group, cache.dim, 0);
        growing_workspace memory;
        workspace scratch = memory.of_bytes(statistics.workspace_bytes());
        REQUIRE(statistics.add(cache.inputs().queries, scratch).ok());
        CHECK(first_odd(cache, expected_attention_score{.statistics = &statistics}, cache.inputs()) == -1);
    });
}

TEST_CASE("equal values get equal projected norms, by every form of W_O", "[regression]") {
    for_each_cache(3, [](const repeating_cache& cache) {
        const view w_o = cache.output_projection();
        const gram_projection gram(w_o);
        const packed_projection packed(w_o);
        const auto odd = [&](const auto& projection) {
            growing_workspace memory;
            const auto in =
                layer(cache.rows(cache.keys), cache.rows(cache.values)).with_output_projection(projection);
            std::vector<index_t> offsets{0, cache.tokens, 2 * cache.tokens};
            std::vector<float> norms = zeros(2 * cache.tokens);
            workspace scratch = memory.of_bytes(projected_value_norms_bytes(in));
            serial_executor ex;
            REQUIRE(projected_value_norms(in, {}, {offsets, norms}, scratch, ex).ok());
            const auto all = std::span<const float>(norms);
            const auto half = static_cast<std::size_t>(cache.tokens);
            return std::max(first_odd(cache, all.first(half)), first_odd(cache, all.last(half)));
        };
        CHECK(odd(w_o) == -1);
        CHECK(odd(gram.view()) == -1);
        CHECK(odd(packed.view()) == -1);
    });
}

TEST_CASE("equal keys get equal running sums", "[regression]") {
    for_each_cache(3, [](const repeating_cache& cache) {
        running_scores scores(shared_heads);
        REQUIRE(scores.append(cache.tokens).ok());
        growing_workspace memory;
        REQUIRE(scores.update(cache.inputs(), {}, memory).ok());
        CHECK(first_odd(cache, scores.sums(0).first(static_cast<std::size_t>(cache.tokens - queries))) == -1);
        CHECK(first_odd(cache, scores.sums(1).first(static_cast<std::size_t>(cache.tokens - queries))) == -1);
    });
}

// All scores tie, so the lowest indices stay.
TEST_CASE("a cache of equal keys keeps its first tokens", "[regression]") {
    at_each_cpu_level([] {
        const repeating_cache cache(197, 64, 1, 0, 0);
        const trace t = run(snapkv({.pool = pooling::none}), cache.inputs(),
                            {.budget = per_head(queries + 9), .protect = {.window_tokens = queries}});
        REQUIRE(t.answer.ok());
        oracle::token_set expected;
        for (std::size_t i = 0; i < 9; ++i) { expected.push_back(i); }
        for (std::size_t i = 0; i < 9; ++i) { expected.push_back(188 + i); }
        CHECK(kept_sets(t.plan)[0] == expected);
        CHECK(kept_sets(t.plan)[1] == expected);
    });
}
