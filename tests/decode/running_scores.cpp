// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/decode/running_scores.hpp>

#include <kvtrim/policy/baselines.hpp>

#include "support/states.hpp"

using namespace kvtrim;
using namespace support;

namespace {

using matrix_view = strided<const float, 2>;

layer_data all_queries(index_t tokens, std::uint64_t seed) {
    return random_layer({.kv_heads = 2, .group = 3, .tokens = tokens, .head_dim = 8, .queries = tokens},
                        seed);
}

std::vector<float> sums_of(const running_scores& scores) {
    std::vector<float> all;
    for (index_t g = 0; g < scores.kv_heads(); ++g) {
        all.insert(all.end(), scores.sums(g).begin(), scores.sums(g).end());
    }
    return all;
}

std::vector<index_t> observers_of(const running_scores& scores) {
    std::vector<index_t> all;
    for (index_t g = 0; g < scores.kv_heads(); ++g) {
        for (index_t t = 0; t < scores.tokens(g); ++t) { all.push_back(scores.observers(g, t)); }
    }
    return all;
}

// Appends the tokens up to `end` and adds their queries.
void advance(running_scores& scores, const layer_data& layer, index_t end,
             const attention_options& attention = {}) {
    const index_t count = end - scores.tokens(0);
    scores.append(count);
    growing_workspace memory;
    const auto in = prefix_inputs(layer, end).with_queries(query_slice(layer, end - count, count));
    const status s = scores.update(in, attention, memory);
    if (!s.ok()) { throw std::runtime_error(s.what()); }
}

constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();

} // namespace

TEST_CASE("running scores: in whatever chunks the queries come, the sums are those of the whole prompt",
          "[decode][oracle]") {
    support::random r(81);
    for (std::uint64_t seed = 0; seed < 40; ++seed) {
        const index_t tokens = r.between(1, 60);
        const layer_data layer = all_queries(tokens, seed);
        const attention_options attention{.soft_cap = r.chance(0.3) ? 8.0f : 0.0f,
                                          .sliding_window = r.chance(0.3) ? r.between(1, 70) : 0};
        running_scores scores(2, r.between(0, 3));
        while (scores.tokens(0) < tokens) {
            advance(scores, layer, std::min(tokens, scores.tokens(0) + r.between(1, 12)), attention);
        }
        const eviction_request request{.budget = {}, .attention = attention};
        const layer_oracle slow(layer.inputs(), request);
        const auto expected =
            slow.snapkv({.pool = oracle::pool_kind::none, .queries = oracle::query_average::sum});
        CAPTURE(seed, tokens);
        for (index_t g = 0; g < 2; ++g) {
            CHECK(difference(scores.sums(g), expected[static_cast<std::size_t>(g)]) == "");
            for (index_t t = 0; t < tokens; ++t) { CHECK(scores.observers(g, t) == tokens - t); }
        }
        // As a policy it is H2O, and ObservedAttention where sums are divided by lifetime.
        const auto sum = score_layer(scores.scorer(), layer.inputs(), {.budget = per_head(1)});
        CHECK(sum.importance == sums_of(scores));
        const auto mean =
            score_layer(scores.scorer(score_lifetime::normalised), layer.inputs(), {.budget = per_head(1)});
        for (std::size_t i = 0; i < mean.importance.size(); ++i) {
            const auto lifetime = static_cast<float>(tokens - static_cast<index_t>(i) % tokens);
            CHECK(mean.importance[i] == sum.importance[i] / lifetime);
        }
    }
}

TEST_CASE("running scores: attention that the engine has counts as the computed one, per KV or query head",
          "[decode]") {
    const layer_data layer = all_queries(12, 3);
    const eviction_request request{.budget = {}};
    const layer_oracle slow(layer.inputs(), request);
    running_scores computed(2), given(2);
    for (index_t t = 0; t < 12; ++t) {
        advance(computed, layer, t + 1);
        std::vector<float> rows(6 * 12);
        for (std::size_t h = 0; h < 6; ++h) {
            for (std::size_t c = 0; c < 12; ++c) {
                rows[h * 12 + c] = static_cast<float>(slow.attention[h][static_cast<std::size_t>(t)][c]);
            }
        }
        given.append(1);
        given.add(matrix_view(rows.data(), {6, 12}));
    }
    const auto a = sums_of(computed), b = sums_of(given);
    REQUIRE(a.size() == b.size());
    for (std::size_t i = 0; i < a.size(); ++i) { CHECK(a[i] == Approx(b[i]).epsilon(1e-4)); }
    CHECK(observers_of(computed) == observers_of(given));

    running_scores prompt(2); // the sum over a prompt's queries, in one piece
    std::vector<float> sums;
    for (index_t g = 0; g < 2; ++g) { sums.insert(sums.end(), given.sums(g).begin(), given.sums(g).end()); }
    prompt.append(12);
    prompt.add(matrix_view(sums.data(), {2, 12}), 12);
    CHECK(sums_of(prompt) == sums);
    CHECK(observers_of(prompt) == observers_of(given));
}

TEST_CASE("running scores: queries that were not added count for nobody", "[decode]") {
    const std::vector<float> ones(2 * 10, 1.0f);
    running_scores scores(2);
    scores.append(6);
    scores.add(matrix_view(ones.data(), {2, 10}), 2); // the prompt's window only
    scores.append(1);
    scores.add(matrix_view(ones.data(), {2, 10}));
    CHECK(observers_of(scores) == std::vector<index_t>{3, 3, 3, 3, 3, 2, 1, 3, 3, 3, 3, 3, 2, 1});
    scores.append(2); // their queries come later, or never
    CHECK(scores.observers(1, 8) == 0);
    CHECK(scores.sums(1)[8] == 0);
}

TEST_CASE("running scores: what is no weight counts as zero", "[decode]") {
    const std::vector<float> row{not_a_number, infinity, -infinity, -1, 0.5f};
    running_scores scores(1);
    scores.append(5);
    scores.add(matrix_view(row.data(), {1, 5}));
    CHECK(sums_of(scores) == std::vector<float>{0, 0, 0, 0, 0.5f});
}

TEST_CASE("running scores: random lives with evictions equal sums kept by position", "[decode][oracle]") {
    support::random r(82);
    for (std::uint64_t seed = 0; seed < 30; ++seed) {
        struct token {
            double sum;
            index_t observers;
        };
        running_scores scores(2, r.between(0, 2));
        std::vector<std::vector<token>> slow(2);
        for (int step = 0; step < 25; ++step) {
            scores.append(1);
            for (auto& row : slow) { row.push_back({0, 0}); }
            const std::size_t longest = std::max(slow[0].size(), slow[1].size());
            std::vector<float> attention(2 * longest);
            for (float& x : attention) { x = static_cast<float>(r.uniform()); }
            scores.add(matrix_view(attention.data(), {2, static_cast<index_t>(longest)}));
            for (std::size_t g = 0; g < 2; ++g) {
                for (std::size_t t = 0; t < slow[g].size(); ++t) {
                    slow[g][t].sum += static_cast<double>(attention[g * longest + t]);
                    ++slow[g][t].observers;
                }
            }
            if (r.chance(0.2)) {
                std::vector<oracle::token_set> sets(2);
                for (std::size_t g = 0; g < 2; ++g) {
                    std::vector<token> left;
                    for (std::size_t t = 0; t < slow[g].size(); ++t) {
                        if (r.chance(0.6)) { sets[g].push_back(t), left.push_back(slow[g][t]); }
                    }
                    slow[g] = left;
                }
                REQUIRE(scores.compact(plan_of(sets)).ok());
            }
            for (index_t g = 0; g < 2; ++g) {
                const auto& row = slow[static_cast<std::size_t>(g)];
                REQUIRE(scores.tokens(g) == static_cast<index_t>(row.size()));
                for (std::size_t t = 0; t < row.size(); ++t) {
                    CHECK(static_cast<double>(scores.sums(g)[t]) == Approx(row[t].sum).epsilon(1e-5));
                    CHECK(scores.observers(g, static_cast<index_t>(t)) == row[t].observers);
                }
            }
        }
    }
}

TEST_CASE("running scores: rejected drafts leave the sums of before, bit for bit, through evictions",
          "[decode]") {
    support::random r(83);
    for (std::uint64_t seed = 0; seed < 25; ++seed) {
        const layer_data layer = all_queries(50, 300 + seed);
        const index_t most = r.between(1, 4);
        running_scores drafting(2, most), sure(2, most);
        advance(drafting, layer, 10);
        advance(sure, layer, 10);
        while (sure.tokens(0) + most <= 50) {
            const index_t before = sure.tokens(0);
            const index_t drafted = r.between(1, most);
            const index_t accepted = r.between(1, drafted);
            if (r.chance(0.5)) { // all drafts at once, or one after the other
                advance(drafting, layer, before + drafted);
            } else {
                for (index_t i = 1; i <= drafted; ++i) { advance(drafting, layer, before + i); }
            }
            drafting.rollback(drafted - accepted);
            for (index_t i = 1; i <= accepted; ++i) { advance(sure, layer, before + i); }
            CAPTURE(seed, before, drafted, accepted);
            CHECK(sums_of(drafting) == sums_of(sure));
            CHECK(observers_of(drafting) == observers_of(sure));
        }
    }
}

TEST_CASE("running scores: an eviction while drafts are pending can be followed by their rollback",
          "[decode]") {
    const std::vector<float> ones(2 * 10, 1.0f);
    running_scores drafting(2, 2), sure(2, 2);
    const auto step = [&](running_scores& scores, index_t count) {
        for (index_t i = 0; i < count; ++i) {
            scores.append(1);
            scores.add(matrix_view(ones.data(), {2, 10}));
        }
    };
    step(drafting, 5);
    step(sure, 5);
    step(drafting, 2);                                                     // two drafts
    REQUIRE(drafting.compact(plan_of({{0, 3, 5, 6}, {1, 4, 5, 6}})).ok()); // which stay
    drafting.rollback(2);
    REQUIRE(sure.compact(plan_of({{0, 3}, {1, 4}})).ok());
    CHECK(sums_of(drafting) == sums_of(sure));
    CHECK(observers_of(drafting) == observers_of(sure));
    step(drafting, 1);
    REQUIRE(drafting.compact(plan_of({{0, 1}, {0, 2}})).ok()); // head 0 loses the newest token
    CHECK(violation_of([&] { drafting.rollback(1); }).find("cannot be undone") != std::string::npos);
}

TEST_CASE("running scores: a copy is a fork, saved bytes restore it, damaged ones do no harm", "[decode]") {
    const layer_data layer = all_queries(20, 7);
    running_scores scores(2, 2);
    advance(scores, layer, 12);
    REQUIRE(scores.compact(plan_of({{0, 1, 5, 10, 11}, {2, 3, 4, 10, 11}})).ok());
    running_scores fork = scores, restored(0);
    REQUIRE(restore(restored, bytes_of(scores)).ok());
    const std::vector<float> ones(2 * 10, 1.0f);
    for (auto* state : {&fork, &restored}) {
        state->append(1);
        state->add(matrix_view(ones.data(), {2, 10}));
        CHECK(sums_of(*state) != sums_of(scores));
        state->rollback(1);
        CHECK(sums_of(*state) == sums_of(scores));
        CHECK(observers_of(*state) == observers_of(scores));
    }
    check_damaged_bytes(scores, restored, 120);
}

TEST_CASE("running scores: update refuses what it cannot serve and changes nothing", "[decode]") {
    const layer_data layer = all_queries(8, 1);
    running_scores scores(2, 1);
    scores.append(8);
    const auto before = bytes_of(scores);
    const auto in = prefix_inputs(layer, 8).with_queries(query_slice(layer, 5, 3));
    growing_workspace memory;
    CHECK(scores.update(in, {.scale = -1}, memory).code() == errc::invalid_parameter);
    CHECK(scores.workspace_bytes(in, {.scale = -1}) == 0);
    const auto none = prefix_inputs(layer, 8).with_queries(query_slice(layer, 5, 0));
    CHECK(scores.update(none, {}, memory).code() == errc::invalid_parameter);
    const view five_heads(layer.q.data(), {5, 3, 8}, {64, 8, 1});
    CHECK(scores.update(prefix_inputs(layer, 8).with_queries(five_heads), {}, memory).code() ==
          errc::heads_not_divisible);
    const layer_data longer = all_queries(9, 1);
    const auto too_many = prefix_inputs(layer, 8).with_queries(longer.queries());
    CHECK(scores.update(too_many, {}, memory).code() == errc::window_exceeds_tokens);
    std::vector<std::byte> bytes(static_cast<std::size_t>(scores.workspace_bytes(in, {})) - 256);
    workspace scratch(bytes);
    const status s = scores.update(in, {}, scratch);
    CHECK(s.code() == errc::workspace_too_small);
    CHECK(s.needed() == scores.workspace_bytes(in, {}));
    CHECK(scores.compact(plan_of({{0}, {8}})).code() == errc::plan_mismatch);
    CHECK(bytes_of(scores) == before);
    bytes.resize(static_cast<std::size_t>(s.needed()));
    scratch = workspace(bytes);
    CHECK(scores.update(in, {}, scratch).ok());
}

TEST_CASE("running scores: other shapes, old queries and batches that cannot be undone break the contract",
          "[decode][contract]") {
    const std::vector<float> ones(4 * 10, 1.0f);
    running_scores scores(2, 1);
    scores.append(4);
    const auto add = [&](index_t rows, index_t columns, index_t queries) {
        return violation_of([&] { scores.add(matrix_view(ones.data(), {rows, columns}), queries); });
    };
    CHECK(add(3, 10, 1).find("a row per KV head or per query head") != std::string::npos);
    CHECK(add(2, 3, 1).find("must cover the cached tokens") != std::string::npos);
    CHECK(add(2, 10, 0).find("append() first") != std::string::npos);
    CHECK(add(2, 10, 5).find("append() first") != std::string::npos);
    CHECK(add(4, 10, 4) == "");
    CHECK(violation_of([&] { scores.rollback(1); }).find("can be undone") != std::string::npos);
    const layer_data layer = all_queries(8, 1);
    growing_workspace memory;
    CHECK(violation_of([&] {
              static_cast<void>(
                  scores.update(prefix_inputs(layer, 8).with_queries(query_slice(layer, 0, 1)), {}, memory));
          }) == "running_scores: the state must have as many tokens as the cache");
    CHECK(violation_of([] { running_scores(1, -1); }) ==
          "running_scores: rollback_tokens must not be negative");
}

TEST_CASE("running scores: updates do not depend on threads", "[decode]") {
    const layer_data layer = all_queries(40, 9);
    const auto in = prefix_inputs(layer, 40).with_queries(layer.queries());
    growing_workspace memory;
    running_scores one(2), many(2);
    one.append(40);
    many.append(40);
    REQUIRE(one.update(in, {}, memory).ok());
    REQUIRE(many.update(in, {}, memory, thread_executor{3}).ok());
    CHECK(sums_of(one) == sums_of(many));
}
