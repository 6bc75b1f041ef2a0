// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/score/window_attention.hpp>

#include <kvtrim/aggregate/mean_attention.hpp>
#include <kvtrim/aggregate/worst_case_attention.hpp>
#include <kvtrim/cache/ragged.hpp>

#include "support/checks.hpp"

#include <cmath>

using namespace kvtrim;
using namespace support;

namespace {

struct mean_pair {
    mean_attention fast;
    oracle::snapkv_setup slow;
};

mean_pair random_mean(support::random& r) {
    constexpr pooling pools[] = {pooling::none, pooling::average, pooling::maximum};
    constexpr oracle::pool_kind slow_pools[] = {oracle::pool_kind::none, oracle::pool_kind::average,
                                                oracle::pool_kind::maximum};
    constexpr group_reduction groups[] = {group_reduction::mean, group_reduction::maximum,
                                          group_reduction::sum};
    constexpr oracle::reduction slow_groups[] = {oracle::reduction::mean, oracle::reduction::maximum,
                                                 oracle::reduction::sum};
    constexpr query_normalisation averages[] = {query_normalisation::mean, query_normalisation::sum,
                                                query_normalisation::lifetime};
    constexpr oracle::query_average slow_averages[] = {
        oracle::query_average::mean, oracle::query_average::sum, oracle::query_average::lifetime};
    const auto pool = r.bits() % 3;
    const auto group = r.bits() % 3;
    const auto average = r.bits() % 3;
    const index_t kernel = r.one_of({1, 3, 5, 7, 21});
    const bool pool_first = r.chance(0.5);
    return {{pools[pool], kernel, groups[group],
             pool_first ? pooling_order::pool_then_group : pooling_order::group_then_pool, averages[average]},
            {slow_pools[pool], static_cast<std::size_t>(kernel), slow_groups[group], pool_first,
             slow_averages[average]}};
}

} // namespace

TEST_CASE("window attention: mean scores equal the full softmax for random shapes, options and reductions",
          "[score][oracle]") {
    support::random r(11);
    std::vector<float> sinks;
    for (std::uint64_t seed = 0; seed < 150; ++seed) {
        const layer_data layer = random_layer(random_shape(r), seed);
        const eviction_request request = random_request(r, layer.shape, sinks);
        const mean_pair mean = random_mean(r);
        const auto in = layer.inputs();
        CAPTURE(seed, layer.shape.tokens, layer.shape.head_dim, layer.shape.queries, layer.shape.group);
        const layer_oracle slow(in, request);
        score_memory fast = score_layer(window_attention{mean.fast}, in, request);
        CHECK(difference(fast.importance_rows(), slow.snapkv(mean.slow)) == "");
        oracle::row masses;
        for (std::size_t g = 0; g < slow.heads(); ++g) {
            masses.push_back(oracle::protected_mass(slow.attention, slow.group, g, slow.protect));
        }
        CHECK(difference(fast.protected_mass, masses, 1e-4, 1e-6) == "");
    }
}

TEST_CASE("window attention: worst-case scores equal the full softmax for random shapes and options",
          "[score][oracle]") {
    support::random r(12);
    std::vector<float> sinks;
    for (std::uint64_t seed = 0; seed < 100; ++seed) {
        const layer_data layer = random_layer(random_shape(r), 1000 + seed);
        const eviction_request request = random_request(r, layer.shape, sinks);
        const worst_case_attention worst{.kernel_tokens = r.one_of({1, 3, 5, 9}),
                                         .floor_weight = r.one_of({0.0f, 0.5f, 1.0f})};
        const auto in = layer.inputs();
        CAPTURE(seed, layer.shape.tokens, layer.shape.head_dim, layer.shape.queries, layer.shape.group);
        const layer_oracle slow(in, request);
        oracle::matrix importance;
        oracle::matrix attention;
        for (std::size_t g = 0; g < slow.heads(); ++g) {
            const auto scores = oracle::worst_case(slow.attention, slow.group, g, slow.candidates(g),
                                                   static_cast<std::size_t>(worst.kernel_tokens),
                                                   static_cast<double>(worst.floor_weight));
            importance.push_back(scores.aggregated);
            attention.push_back(scores.attention);
        }
        score_memory fast = score_layer(window_attention{worst}, in, request);
        CHECK(difference(fast.importance_rows(), importance) == "");
        CHECK(difference(fast.attention_rows(), attention) == "");
    }
}

TEST_CASE("window attention: blocks of early queries pool up to their own horizon and a half kernel beyond",
          "[score][oracle]") {
    // More queries than the 128 rows of a block: no query of the first block sees the last tokens. Its last query
    // pays nearly all its attention to its own token, and pooling lends that to tokens which it does not see.
    for (const index_t group : {1, 3}) {
        layer_data layer =
            random_layer({.kv_heads = 1, .group = group, .tokens = 330, .head_dim = 16, .queries = 300}, 7);
        for (std::size_t d = 0; d < 16; ++d) { layer.key(0, 157)[d] = 4 * layer.q[127 * 16 + d]; }
        const eviction_request request{.budget = {}, .protect = {.window_tokens = 10}};
        const layer_oracle slow(layer.inputs(), request);
        const worst_case_attention worst{.kernel_tokens = 7, .floor_weight = 0.0f};
        const auto expected = oracle::worst_case(slow.attention, slow.group, 0, slow.candidates(0), 7, 0.0);
        score_memory fast = score_layer(window_attention{worst}, layer.inputs(), request);
        CHECK(difference(fast.importance, expected.aggregated) == "");
        CHECK(difference(fast.attention, expected.attention) == "");
        score_memory mean = score_layer(window_attention{mean_attention{}}, layer.inputs(), request);
        CHECK(difference(mean.importance_rows(), slow.snapkv()) == "");
    }
}

TEST_CASE("window attention: heads of different lengths are scored each from its own end",
          "[score][oracle]") {
    const layer_data layer =
        random_layer({.kv_heads = 3, .group = 2, .tokens = 300, .head_dim = 16, .queries = 6}, 5);
    const ragged_cache keys(layer.keys(), {300, 7, 130});
    const ragged_cache values(layer.values(), {300, 7, 130});
    const auto in = kvtrim::layer(keys.get(), values.get())
                        .with_queries(layer.queries())
                        .with_output_projection(layer.projection());
    const eviction_request request{.budget = {}, .protect = {.sink_tokens = 2, .window_tokens = 6}};
    const layer_oracle slow(in, request);
    score_memory fast = score_layer(window_attention{mean_attention{}}, in, request);
    CHECK(fast.offsets == std::vector<index_t>{0, 292, 292, 414});
    CHECK(difference(fast.importance_rows(), slow.snapkv()) == "");
}

TEST_CASE("window attention: newest_queries uses the newest of the given queries", "[score][oracle]") {
    for (const index_t newest : {1, 3, 8, 20}) {
        const layer_data layer =
            random_layer({.kv_heads = 2, .group = 4, .tokens = 90, .head_dim = 16, .queries = 8}, 6);
        const eviction_request request{.budget = {}, .protect = {.window_tokens = 2, .rollback_tokens = 3}};
        layer_oracle slow(layer.inputs(), request);
        for (auto& head : slow.queries) {
            head.erase(head.begin(), head.end() - std::min<std::ptrdiff_t>(8, newest));
        }
        slow.attention = oracle::attention(slow.queries, slow.keys, slow.setup);
        for (const auto average : {query_normalisation::mean, query_normalisation::lifetime}) {
            const window_attention scorer{mean_attention{.queries = average}, newest};
            score_memory fast = score_layer(scorer, layer.inputs(), request);
            const auto expected = slow.snapkv({.queries = average == query_normalisation::mean
                                                              ? oracle::query_average::mean
                                                              : oracle::query_average::lifetime});
            CAPTURE(newest);
            CHECK(difference(fast.importance_rows(), expected) == "");
        }
    }
}

TEST_CASE("window attention: without memory for the protected mass it is not written", "[score]") {
    const layer_data layer = small_layer(16);
    score_memory memory(layer.inputs(), {});
    const eviction_request request{};
    const window_attention scorer{mean_attention{}};
    growing_workspace bytes;
    workspace scratch = bytes.of_bytes(scorer.workspace_bytes(layer.inputs(), request));
    serial_executor ex;
    const token_scores out{memory.offsets, memory.importance};
    CHECK(scorer.score(layer.inputs(), request, out, scratch, ex).ok());
    CHECK(memory.importance[0] != score_memory::untouched);
}

TEST_CASE("window attention: a workspace that is too small is refused with nothing written",
          "[score][errors]") {
    const layer_data layer = small_layer(16);
    score_memory memory(layer.inputs(), {});
    const eviction_request request{};
    const window_attention scorer{worst_case_attention{}};
    std::vector<std::byte> bytes(static_cast<std::size_t>(scorer.workspace_bytes(layer.inputs(), request)) /
                                 2);
    workspace scratch(bytes);
    serial_executor ex;
    const status s = scorer.score(layer.inputs(), request, memory.get(), scratch, ex);
    CHECK(s.code() == errc::workspace_too_small);
    CHECK(s.needed() <= scorer.workspace_bytes(layer.inputs(), request));
    CHECK(s.needed() > static_cast<index_t>(bytes.size()));
    CHECK(memory.is_untouched());
}

TEST_CASE("window attention: bad input is named", "[score][errors]") {
    const layer_data layer = small_layer(16);
    const auto in = layer.inputs();
    const eviction_request good{.budget = per_head(10)};
    const window_attention scorer{mean_attention{}};
    CHECK(scorer.validate(in, good).ok());

    SECTION("the aggregator's and the scorer's own fields") {
        CHECK(window_attention{mean_attention{}, -1}.validate(in, good).code() == errc::invalid_parameter);
        for (const index_t kernel : {0, 4, -3}) {
            const window_attention mean{mean_attention{.kernel_tokens = kernel}};
            const window_attention worst{worst_case_attention{.kernel_tokens = kernel}};
            CHECK(mean.validate(in, good).code() == errc::invalid_parameter);
            CHECK(worst.validate(in, good).code() == errc::invalid_parameter);
        }
        for (const float weight : {-0.1f, std::numeric_limits<float>::quiet_NaN()}) {
            const window_attention worst{worst_case_attention{.floor_weight = weight}};
            CHECK(worst.validate(in, good).code() == errc::invalid_parameter);
        }
    }
    SECTION("attention options") {
        for (const float bad : {-1.0f, std::numeric_limits<float>::quiet_NaN()}) {
            eviction_request request = good;
            request.attention.scale = bad;
            CHECK(scorer.validate(in, request).code() == errc::invalid_parameter);
            request = good;
            request.attention.soft_cap = bad;
            CHECK(scorer.validate(in, request).code() == errc::invalid_parameter);
        }
        eviction_request request = good;
        request.attention.sliding_window = -1;
        CHECK(scorer.validate(in, request).code() == errc::invalid_parameter);
    }
    SECTION("more queries than tokens, with the tokens that would do") {
        const view few(layer.k.data(), {2, 3, 8});
        CHECK(scorer.validate(kvtrim::layer(few).with_queries(layer.queries()), good).code() ==
              errc::window_exceeds_tokens);
        CHECK(scorer.validate(kvtrim::layer(few).with_queries(layer.queries()), good).needed() == 4);
        eviction_request request = good;
        request.protect.rollback_tokens = 37;
        const status s = scorer.validate(in, request);
        CHECK(s.code() == errc::window_exceeds_tokens);
        CHECK(s.needed() == 41);
    }
    SECTION("query heads that no KV head divides") {
        const view three(layer.q.data(), {3, 4, 8});
        const view none(layer.q.data(), {0, 4, 8});
        const view no_keys(layer.k.data(), {0, 40, 8});
        CHECK(scorer.validate(kvtrim::layer(layer.keys()).with_queries(three), good).code() ==
              errc::heads_not_divisible);
        CHECK(scorer.validate(kvtrim::layer(layer.keys()).with_queries(none), good).code() ==
              errc::heads_not_divisible);
        CHECK(scorer.validate(kvtrim::layer(no_keys).with_queries(layer.queries()), good).code() ==
              errc::heads_not_divisible);
    }
    SECTION("no queries at all") {
        const view none(layer.q.data(), {4, 0, 8});
        CHECK(scorer.validate(kvtrim::layer(layer.keys()).with_queries(none), good).code() ==
              errc::invalid_parameter);
    }
}

TEST_CASE("window attention: views that disagree are refused, also where it is called without a policy",
          "[score][errors]") {
    const layer_data layer = small_layer(16);
    const window_attention scorer{mean_attention{}};
    const view narrow(layer.q.data(), {4, 4, 7});
    score_memory memory(layer.inputs(), {});
    const auto answer = [&](const auto& in, const eviction_request& request) {
        const status s = scorer.validate(in, request);
        CHECK(score_directly(scorer, in, request, memory.get()).code() == s.code());
        CHECK(scorer.workspace_bytes(in, request) == 0);
        return std::string(s.what());
    };
    CHECK(answer(kvtrim::layer(layer.keys()).with_queries(narrow), {}) ==
          "layer: queries and keys must agree in head_dim");
    const std::vector<float> sinks(3, 0.0f);
    eviction_request request{};
    request.attention.sink_logits = sinks;
    CHECK(answer(layer.inputs(), request) == "attention.sink_logits must have one entry per query head");
    const std::vector<std::int32_t> ends{0, 4, 8, 12, 14}; // the last query head has two queries only
    const ragged<const float> uneven(layer.q.data(), ends, 8);
    CHECK(answer(kvtrim::layer(layer.keys()).with_queries(uneven), {}) ==
          "layer: every query head must have the same number of queries");
    CHECK(memory.is_untouched());
}

TEST_CASE("window attention: a key of NaN is as if it were masked, other scores do not change",
          "[score][odd]") {
    layer_data layer = small_layer(16);
    const eviction_request request{.budget = {}, .protect = {.window_tokens = 4}};
    for (const float soft_cap : {0.0f, 5.0f}) {
        eviction_request capped = request;
        capped.attention.soft_cap = soft_cap;
        layer.key(0, 10)[3] = std::numeric_limits<float>::quiet_NaN();
        score_memory fast =
            score_layer(window_attention{mean_attention{.pool = pooling::none}}, layer.inputs(), capped);
        CHECK(fast.importance[10] == 0.0f);
        CHECK(fast.importance[11] > 0.0f);

        // The oracle has no token 10.
        layer_oracle slow(layer.inputs(), capped);
        slow.keys[0].erase(slow.keys[0].begin() + 10);
        slow.attention = oracle::attention({slow.queries[0], slow.queries[1]}, {slow.keys[0]}, slow.setup);
        oracle::row expected = oracle::snapkv_scores(slow.attention, 2, 0, slow.candidates(0),
                                                     {.pool = oracle::pool_kind::none});
        expected.insert(expected.begin() + 10, 0.0);
        CHECK(difference(fast.importance_rows().row(0), expected) == "");
    }
}

TEST_CASE("window attention: an infinite logit takes all the attention and spoils nothing", "[score][odd]") {
    layer_data layer = small_layer(16);
    for (float& x : layer.q) { x = std::abs(x) + 0.1f; }
    layer.key(0, 10)[3] = std::numeric_limits<float>::infinity();
    layer.key(0, 11)[3] = -std::numeric_limits<float>::infinity();
    const eviction_request request{.budget = {}, .protect = {.window_tokens = 4}};
    score_memory fast =
        score_layer(window_attention{mean_attention{.pool = pooling::none}}, layer.inputs(), request);
    CHECK(fast.importance[10] == 1.0f);
    CHECK(fast.importance[11] == 0.0f);
    CHECK(fast.importance[9] == 0.0f);
    CHECK(fast.importance[40] > 0.0f); // the other head
}

TEST_CASE("window attention: a query row without any visible token scores nothing", "[score][odd]") {
    layer_data layer = small_layer(16);
    std::fill(layer.q.begin(), layer.q.end(), std::numeric_limits<float>::quiet_NaN());
    for (const bool with_sink : {false, true}) {
        const std::vector<float> sinks(4, 1.0f);
        eviction_request request{.budget = {}, .protect = {.window_tokens = 4}};
        if (with_sink) { request.attention.sink_logits = sinks; }
        score_memory mean = score_layer(window_attention{mean_attention{}}, layer.inputs(), request);
        score_memory worst = score_layer(window_attention{worst_case_attention{}}, layer.inputs(), request);
        for (const score_memory* scores : {&mean, &worst}) {
            CHECK(std::all_of(scores->importance.begin(), scores->importance.end(),
                              [](float x) { return x == 0.0f; }));
            CHECK(scores->protected_mass == std::vector<float>{0.0f, 0.0f});
        }
    }
}

TEST_CASE("window attention: a pooling kernel wider than the row pools the row, whatever its width",
          "[score][odd]") {
    const layer_data layer = small_layer(16);
    const auto scored = [&](index_t kernel) {
        return score_layer(window_attention{worst_case_attention{.kernel_tokens = kernel}}, layer.inputs(),
                           {})
            .importance;
    };
    const std::vector<float> row_wide = scored(2 * 40 + 1);
    CHECK(scored(std::numeric_limits<index_t>::max()) == row_wide);
    CHECK(scored((index_t{1} << 40) + 1) == row_wide);
    const oracle::row expected(row_wide.begin(), row_wide.end());
    CHECK(difference(scored(2 * 39 + 1), expected) == "");
}
