// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/decode/running_scores.hpp>

#include <kvtrim/cache/filled.hpp>
#include <kvtrim/compact/compact_in_place.hpp>
#include <kvtrim/decode/cache_positions.hpp>
#include <kvtrim/policy/baselines.hpp>

#include "support/special_floats.hpp"
#include "support/states.hpp"

using namespace kvtrim;
using namespace support;

namespace {

using matrix_view = strided<const float, 2>;

layer_data queries_of_every_token(index_t tokens, std::uint64_t seed) {
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
    REQUIRE(scores.append(count).ok());
    growing_workspace memory;
    const auto in = prefix_inputs(layer, end).with_queries(query_slice(layer, end - count, count));
    const status s = scores.update(in, attention, memory);
    if (!s.ok()) { throw std::runtime_error(s.what()); }
}

} // namespace

TEST_CASE("running scores: in whatever chunks the queries come, the sums are those of the whole prompt",
          "[decode][oracle]") {
    support::random r(81);
    for (std::uint64_t seed = 0; seed < 40; ++seed) {
        const index_t tokens = r.between(1, 60);
        const layer_data layer = queries_of_every_token(tokens, seed);
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
        const eviction_request all{.budget = per_head(tokens)};
        const auto sum = score_layer(scores.scorer(), layer.inputs(), all);
        CHECK(sum.importance == sums_of(scores));
        const auto mean = score_layer(scores.scorer(score_lifetime::normalised), layer.inputs(), all);
        for (std::size_t i = 0; i < mean.importance.size(); ++i) {
            const auto lifetime = static_cast<float>(tokens - static_cast<index_t>(i) % tokens);
            CHECK(mean.importance[i] == sum.importance[i] / lifetime);
        }
    }
}

TEST_CASE("running scores: attention that the engine has counts as the computed one, per KV or query head",
          "[decode]") {
    const layer_data layer = queries_of_every_token(12, 3);
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
        REQUIRE(given.append(1).ok());
        REQUIRE(given.add(matrix_view(rows.data(), {6, 12})).ok());
    }
    const auto a = sums_of(computed), b = sums_of(given);
    REQUIRE(a.size() == b.size());
    for (std::size_t i = 0; i < a.size(); ++i) { CHECK(a[i] == Approx(b[i]).epsilon(1e-4)); }
    CHECK(observers_of(computed) == observers_of(given));

    running_scores prompt(2); // the sum over a prompt's queries, in one piece
    std::vector<float> sums;
    for (index_t g = 0; g < 2; ++g) { sums.insert(sums.end(), given.sums(g).begin(), given.sums(g).end()); }
    REQUIRE(prompt.append(12).ok());
    REQUIRE(prompt.add(matrix_view(sums.data(), {2, 12}), 12).ok());
    CHECK(sums_of(prompt) == sums);
    CHECK(observers_of(prompt) == observers_of(given));
}

TEST_CASE("running scores: queries that were not added count for nobody", "[decode]") {
    const std::vector<float> ones(2 * 10, 1.0f);
    running_scores scores(2);
    REQUIRE(scores.append(6).ok());
    REQUIRE(scores.add(matrix_view(ones.data(), {2, 10}), 2).ok()); // the prompt's window only
    REQUIRE(scores.append(1).ok());
    REQUIRE(scores.add(matrix_view(ones.data(), {2, 10})).ok());
    CHECK(observers_of(scores) == std::vector<index_t>{3, 3, 3, 3, 3, 2, 1, 3, 3, 3, 3, 3, 2, 1});
    REQUIRE(scores.append(2).ok()); // their queries come later, or never
    CHECK(scores.observers(1, 8) == 0);
    CHECK(scores.sums(1)[8] == 0);
}

TEST_CASE("running scores: what is no weight counts as zero", "[decode]") {
    const std::vector<float> row{not_a_number, infinity, -infinity, -1, 0.5f};
    running_scores scores(1);
    REQUIRE(scores.append(5).ok());
    REQUIRE(scores.add(matrix_view(row.data(), {1, 5})).ok());
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
            REQUIRE(scores.append(1).ok());
            for (auto& row : slow) { row.push_back({0, 0}); }
            const std::size_t longest = std::max(slow[0].size(), slow[1].size());
            std::vector<float> attention(2 * longest);
            for (float& x : attention) { x = static_cast<float>(r.uniform()); }
            REQUIRE(scores.add(matrix_view(attention.data(), {2, static_cast<index_t>(longest)})).ok());
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
        const layer_data layer = queries_of_every_token(50, 300 + seed);
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
            REQUIRE(drafting.rollback(drafted - accepted).ok());
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
            REQUIRE(scores.append(1).ok());
            REQUIRE(scores.add(matrix_view(ones.data(), {2, 10})).ok());
        }
    };
    step(drafting, 5);
    step(sure, 5);
    step(drafting, 2);                                                     // two drafts
    REQUIRE(drafting.compact(plan_of({{0, 3, 5, 6}, {1, 4, 5, 6}})).ok()); // which stay
    REQUIRE(drafting.rollback(2).ok());
    REQUIRE(sure.compact(plan_of({{0, 3}, {1, 4}})).ok());
    CHECK(sums_of(drafting) == sums_of(sure));
    CHECK(observers_of(drafting) == observers_of(sure));
    step(drafting, 1);
    REQUIRE(drafting.compact(plan_of({{0, 1}, {0, 2}})).ok()); // head 0 loses the newest token
    const auto before = bytes_of(drafting);
    const status s = drafting.rollback(1);
    CHECK(s.code() == errc::invalid_parameter);
    CHECK(std::string(s.what()).find("cannot be undone") != std::string::npos);
    CHECK(bytes_of(drafting) == before);
}

TEST_CASE(
    "running scores: drafts of which the engine added only the newest query take that query alone along",
    "[decode]") {
    const std::vector<float> ones(2 * 10, 1.0f);
    const matrix_view attention(ones.data(), {2, 10});
    running_scores scores(2, 3);
    const auto step = [&](running_scores& of, index_t tokens) {
        REQUIRE(of.append(tokens).ok());
        REQUIRE(of.add(attention).ok());
    };
    step(scores, 1);
    step(scores, 1);
    const running_scores before = scores;
    step(scores, 3);
    const running_scores drafted = scores;
    for (const index_t rejected : {index_t{1}, index_t{2}, index_t{3}}) {
        scores = drafted;
        REQUIRE(scores.rollback(rejected).ok());
        running_scores sure = before;
        REQUIRE(sure.append(3 - rejected).ok()); // accepted ones, without their queries
        CHECK(sums_of(scores) == sums_of(sure));
        CHECK(observers_of(scores) == observers_of(sure));
        running_scores restored(0);
        REQUIRE(restore(restored, bytes_of(scores)).ok());
        for (running_scores* state : {&scores, &sure, &restored}) {
            REQUIRE(state->append(1).ok());
            REQUIRE(state->add(attention, 4 - rejected).ok()); // the queries of all that are left
            CHECK_FALSE(state->add(attention).ok());
        }
        CHECK(sums_of(scores) == sums_of(sure));
        CHECK(observers_of(scores) == observers_of(sure));
        CHECK(observers_of(restored) == observers_of(sure));
    }
}

TEST_CASE("running scores: a copy is a fork, saved bytes restore it, damaged ones do no harm", "[decode]") {
    const layer_data layer = queries_of_every_token(20, 7);
    running_scores scores(2, 2);
    advance(scores, layer, 12);
    REQUIRE(scores.compact(plan_of({{0, 1, 5, 10, 11}, {2, 3, 4, 10, 11}})).ok());
    running_scores fork = scores, restored(0);
    REQUIRE(restore(restored, bytes_of(scores)).ok());
    const std::vector<float> ones(2 * 10, 1.0f);
    for (auto* state : {&fork, &restored}) {
        REQUIRE(state->append(1).ok());
        REQUIRE(state->add(matrix_view(ones.data(), {2, 10})).ok());
        CHECK(sums_of(*state) != sums_of(scores));
        REQUIRE(state->rollback(1).ok());
        CHECK(sums_of(*state) == sums_of(scores));
        CHECK(observers_of(*state) == observers_of(scores));
    }
    check_damaged_bytes(scores, restored, 200, true, [](running_scores& state) {
        const std::vector<float> one(1);
        const matrix_view row(one.data(), {std::max<index_t>(1, state.kv_heads()), 1000}, {0, 0});
        for (index_t g = 0; g < state.kv_heads(); ++g) {
            for (index_t t = 0; t < state.tokens(g); ++t) { CHECK(state.observers(g, t) >= 0); }
        }
        if (state.append(1).ok() && state.add(row).ok()) { static_cast<void>(state.rollback(1)); }
        static_cast<void>(state.rollback(2));
        static_cast<void>(bytes_of(state));
    });
    // One version of sums less than the number says, or a token seen first by a query that was not yet there.
    const auto bytes = bytes_of(scores);
    for (const std::size_t at : {std::size_t{4}, bytes.size() - 3 * (24 + 2 * 8 + 2 * 5 * 4) - 2}) {
        auto damaged = bytes;
        damaged[at] = std::byte{0x40};
        CHECK(restore(restored, damaged).code() == errc::invalid_parameter);
    }
}

TEST_CASE("running scores: saved sums that can be undone less far than their queries are refused",
          "[decode]") {
    running_scores scores(1, 1), restored(1);
    REQUIRE(scores.append(4).ok());
    const auto bytes = bytes_of(scores);
    // Of each of three tables, 4 tokens of one head: heads, longest row, how many can be undone, a length, 4 numbers.
    const std::size_t table = 4 * sizeof(index_t) + 4 * sizeof(float);
    for (const std::size_t of : {std::size_t{1}, std::size_t{2}}) {
        auto damaged = bytes;
        damaged[bytes.size() - of * table + 2 * sizeof(index_t)] = std::byte{3}; // of the sums
        CHECK(restore(restored, damaged).code() == errc::invalid_parameter);
    }
    CHECK(restore(restored, bytes).ok());
}

TEST_CASE("running scores: saved numbers of queries that no sequence can have are refused", "[decode]") {
    const std::vector<float> ones(2 * 4, 1.0f);
    running_scores scores(2, 0), restored(1);
    for (int token = 0; token < 4; ++token) {
        REQUIRE(scores.append(1).ok());
        REQUIRE(scores.add(matrix_view(ones.data(), {2, 4})).ok());
    }
    const auto bytes = bytes_of(scores);
    // Before the sums, a table as large: heads, longest row, how many can be undone, two lengths, and for each head 0 1 2 3.
    const std::size_t table = 5 * sizeof(index_t) + 2 * 4 * sizeof(float);
    const std::size_t numbers = bytes.size() - table - 2 * 4 * sizeof(std::int32_t);
    const auto changed = [&](std::size_t number, int to) {
        auto other = bytes;
        REQUIRE(other[numbers + number * sizeof(std::int32_t)] == static_cast<std::byte>(number % 4));
        other[numbers + number * sizeof(std::int32_t)] = static_cast<std::byte>(to);
        return restore(restored, other);
    };
    CHECK(changed(2, 2).ok());
    CHECK(changed(1, 3).code() == errc::invalid_parameter); // older than token 2, and seen later
    CHECK(changed(3, 5).code() == errc::invalid_parameter); // a query to come
    CHECK(changed(6, 1).code() == errc::invalid_parameter); // in one head another than in the other
}

TEST_CASE("running scores: update refuses what it cannot serve and changes nothing", "[decode]") {
    const layer_data layer = queries_of_every_token(8, 1);
    running_scores scores(2, 1);
    REQUIRE(scores.append(8).ok());
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
    const layer_data longer = queries_of_every_token(9, 1);
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

TEST_CASE("running scores: other shapes, old queries and batches that cannot be undone are refused, nothing "
          "changes",
          "[decode]") {
    const std::vector<float> ones(4 * 10, 1.0f);
    running_scores scores(2, 1);
    REQUIRE(scores.append(4).ok());
    const auto before = bytes_of(scores);
    const auto add = [&](index_t rows, index_t columns, index_t queries) {
        return scores.add(matrix_view(ones.data(), {rows, columns}), queries);
    };
    CHECK(add(3, 10, 1).code() == errc::heads_not_divisible);
    CHECK(add(0, 10, 1).code() == errc::heads_not_divisible);
    CHECK(add(2, 3, 1).code() == errc::invalid_parameter);
    CHECK(add(2, 3, 1).needed() == 4);
    CHECK(add(-2, 10, 1).code() == errc::invalid_parameter);
    CHECK(scores.add(matrix_view(nullptr, {2, 10})).code() == errc::invalid_parameter);
    constexpr index_t most = std::numeric_limits<index_t>::max();
    for (const index_t queries : {index_t{0}, index_t{5}, index_t{-1}, most, -most - 1}) {
        CHECK(add(2, 10, queries).code() == errc::invalid_parameter);
    }
    for (const index_t count : {index_t{5}, index_t{-1}, most, -most - 1}) {
        CHECK(scores.rollback(count).code() == errc::invalid_parameter);
    }
    CHECK(scores.append(-1).code() == errc::invalid_parameter);
    CHECK(scores.append(most).code() == errc::index_overflow);
    const layer_data layer = queries_of_every_token(8, 1);
    growing_workspace memory;
    const auto longer = prefix_inputs(layer, 8).with_queries(query_slice(layer, 0, 1));
    CHECK(scores.update(longer, {}, memory).code() == errc::invalid_parameter);
    CHECK(scores.workspace_bytes(longer, {}) == 0);
    const eviction_policy by_sums{scores.scorer(), uniform{}, by_importance{}};
    require_refusal(by_sums, longer, {.budget = per_head(2), .protect = {.window_tokens = 1}},
                    errc::invalid_parameter);
    CHECK(bytes_of(scores) == before);
    REQUIRE(add(4, 10, 4).ok());
    const auto added = bytes_of(scores);
    const status s = scores.rollback(1);
    CHECK(std::string(s.what()).find("can be undone") != std::string::npos);
    const auto old = prefix_inputs(layer, 4).with_queries(query_slice(layer, 3, 1));
    CHECK(scores.update(old, {}, memory).code() == errc::invalid_parameter); // its query was added
    CHECK(bytes_of(scores) == added);
    running_scores keeps_no_versions(2);
    REQUIRE(keeps_no_versions.append(4).ok());
    REQUIRE(keeps_no_versions.add(matrix_view(ones.data(), {2, 4})).ok());
    CHECK(keeps_no_versions.rollback(1).code() == errc::invalid_parameter);
}

TEST_CASE("running scores: made with sizes that cannot be they are empty, and say why to every call",
          "[decode]") {
    constexpr index_t most = std::numeric_limits<index_t>::max();
    const std::vector<float> ones(10, 1.0f);
    const layer_data layer = queries_of_every_token(8, 1);
    for (running_scores scores : {running_scores(-1), running_scores(1, -1), running_scores(1, most),
                                  running_scores(1, 0, -1), running_scores(most, 0, most)}) {
        const status s = scores.validate();
        CHECK_FALSE(s.ok());
        CHECK(scores.kv_heads() == 0);
        CHECK(scores.append(1) == s);
        CHECK(scores.add(matrix_view(ones.data(), {1, 10})) == s);
        CHECK(scores.rollback(0) == s);
        CHECK(scores.compact(keep_plan{}) == s);
        const auto in = prefix_inputs(layer, 8).with_queries(query_slice(layer, 7, 1));
        growing_workspace memory;
        CHECK(scores.update(in, {}, memory) == s);
        CHECK(eviction_policy{scores.scorer(), uniform{}, by_importance{}}.validate(
                  in, {.budget = per_head(2)}) == s);
    }
}

TEST_CASE("running scores: the scorer answers for a cache without heads, whatever the budget",
          "[decode][errors]") {
    const running_scores scores(0);
    const float none = 0;
    const auto in = kvtrim::layer(strided(&none, {0, 20, 8}));
    for (const index_t tokens : {index_t{-5}, index_t{0}, std::numeric_limits<index_t>::min()}) {
        CHECK(scores.scorer().validate(in, {.budget = over_all_heads(tokens)}).ok()); // nothing can leave
    }
}

// VeloxQuant#141: with sums and no protected window a new token, whose sum is 0 or that of its own query, is always the
// smallest, so that it leaves at once and the prompt stays for ever.
TEST_CASE("running scores: sums without a protected window are refused, and with the window that is named "
          "the newest "
          "tokens of 64 decode steps stay",
          "[decode][regression]") {
    constexpr index_t prompt = 40, steps = 64, budget = 24;
    const layer_data layer = queries_of_every_token(prompt + steps, 11);
    cache_positions positions(2);
    running_scores scores(2);
    std::vector<float> k(layer.k.size());
    growing_workspace memory;
    keep_plan plan;
    eviction_request request{.budget = per_head(budget)};
    for (index_t at = 0, n = prompt; at < prompt + steps; at += n, n = 1) {
        for (index_t g = 0; g < 2; ++g) {
            std::copy_n(layer.k.begin() + (g * (prompt + steps) + at) * 8, n * 8,
                        k.begin() + (g * (prompt + steps) + positions.tokens(g)) * 8);
        }
        REQUIRE((positions.append(n).ok() && scores.append(n).ok()));
        const filled<float> keys(strided(k.data(), {2, prompt + steps, 8}), positions.lengths());
        const auto in = kvtrim::layer(keys).with_queries(query_slice(layer, at, n));
        REQUIRE(scores.update(in, {}, memory).ok());
        const eviction_policy by_sums{scores.scorer(), uniform{}, by_importance{}};
        if (at == 0) {
            const status s = by_sums.validate(in, request);
            CHECK(s.code() == errc::invalid_parameter);
            CHECK(std::string(s.what()).find("request.protect.window_tokens") != std::string::npos);
            CHECK(s.needed() == budget / 2); // H2O's
            request.protect.window_tokens = s.needed();
        }
        REQUIRE(by_sums.plan(in, request, plan, memory).ok());
        REQUIRE(
            (compact_in_place(keys, plan).ok() && positions.compact(plan).ok() && scores.compact(plan).ok()));
        for (index_t g = 0; g < 2; ++g) {
            const auto row = positions.positions(g);
            REQUIRE(std::ssize(row) == budget);
            for (index_t i = 1; i <= budget / 2; ++i) {
                CHECK(row[static_cast<std::size_t>(budget - i)] == at + n - i);
            }
        }
    }
}

TEST_CASE(
    "running scores: tokens whose queries were not added must be protected, whatever the sums are divided by",
    "[decode]") {
    const layer_data layer = queries_of_every_token(20, 12);
    running_scores scores(2);
    advance(scores, layer, 16);
    REQUIRE(scores.append(4).ok()); // their queries come later
    const auto in = prefix_inputs(layer, 20);
    const auto answer = [&](score_lifetime lifetime, index_t budget, const protection& protect) {
        return eviction_policy{scores.scorer(lifetime), uniform{}, by_importance{}}.validate(
            in, {.budget = per_head(budget), .protect = protect});
    };
    for (const auto lifetime : {score_lifetime::ignored, score_lifetime::normalised}) {
        CHECK(answer(lifetime, 6, {.window_tokens = 3}).code() == errc::invalid_parameter);
        CHECK(answer(lifetime, 6, {.window_tokens = 3}).needed() == 4);
        CHECK(answer(lifetime, 6, {.window_tokens = 4}).ok());
        CHECK(answer(lifetime, 6, {.window_tokens = 1, .rollback_tokens = 3}).ok()); // drafts are protected
        CHECK(answer(lifetime, 20, {}).ok());                                        // nothing leaves
    }
    // Divided by their queries, sums need no window once every query was added; those that are not divided do.
    growing_workspace memory;
    REQUIRE(scores.update(in.with_queries(query_slice(layer, 16, 4)), {}, memory).ok());
    CHECK(answer(score_lifetime::normalised, 6, {}).ok());
    CHECK(answer(score_lifetime::ignored, 6, {}).needed() == 3);
    CHECK(answer(score_lifetime::ignored, 6, {.rollback_tokens = 2}).code() == errc::invalid_parameter);
    CHECK(answer(score_lifetime::ignored, 1, {}).needed() == 1);
    CHECK(answer(score_lifetime::ignored, 6, {.window_tokens = 1}).ok());
}

TEST_CASE("running scores: updates do not depend on threads", "[decode]") {
    const layer_data layer = queries_of_every_token(40, 9);
    const auto in = prefix_inputs(layer, 40).with_queries(layer.queries());
    growing_workspace memory;
    running_scores one(2), many(2);
    REQUIRE(one.append(40).ok());
    REQUIRE(many.append(40).ok());
    REQUIRE(one.update(in, {}, memory).ok());
    REQUIRE(many.update(in, {}, memory, thread_executor{3}).ok());
    CHECK(sums_of(one) == sums_of(many));
}
