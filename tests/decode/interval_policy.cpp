// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/decode/interval_policy.hpp>

#include <kvtrim/policy/baselines.hpp>
#include <kvtrim/policy/criticalkv.hpp>
#include <kvtrim/policy/defensivekv.hpp>

#include "support/living_cache.hpp"
#include "support/policy_oracle.hpp"

using namespace kvtrim;
using namespace support;

namespace {

layer_data text_of(index_t tokens, std::uint64_t seed) {
    return random_layer(
        {.kv_heads = 2, .group = 2, .tokens = tokens, .head_dim = 8, .value_dim = 12, .queries = tokens},
        seed);
}

// Reads the text in chunks of at most `chunk` tokens and cuts whenever the next chunk would not fit; look(cache) sees the
// cache at each cut.
template <class Policy, class Look>
void read(living_cache& cache, const interval_policy<Policy>& decode, index_t tokens, index_t chunk,
          Look&& look) {
    const index_t limit = decode.limit_tokens(2);
    while (cache.positions.next_position() < tokens) {
        const index_t incoming = std::min(chunk, tokens - cache.positions.next_position());
        if (decode.is_due(cache.positions, incoming)) {
            REQUIRE(decode.plan(cache.inputs(), cache.plan, cache.memory).ok());
            look(cache);
            cache.compact();
            CHECK(cache.positions.total_tokens() == decode.request.budget.total(2));
        }
        cache.push(incoming);
        CHECK(cache.positions.total_tokens() <= limit);
        CHECK(cache.holds_its_text());
    }
}

// fn(name, policy) for policies that may be asked again and again.
template <class Fn>
void for_policies(const running_scores& scores, Fn&& fn) {
    fn("snapkv", snapkv());
    fn("ada_snapkv", ada_snapkv());
    fn("criticalkv", criticalkv());
    fn("ada_criticalkv", ada_criticalkv());
    fn("defensivekv", defensivekv());
    fn("tova", tova());
    fn("key_diff", key_diff());
    fn("streaming_llm", streaming_llm());
    fn("running h2o", eviction_policy{scores.scorer(), uniform{}, by_importance{}});
    fn("running h2o, heads compete",
       eviction_policy{scores.scorer(score_lifetime::normalised), adaptive{}, by_importance{}});
}

} // namespace

TEST_CASE("interval policy: a prompt longer than the memory and what follows stay at the limit at every step",
          "[decode]") {
    support::random r(91);
    for (std::uint64_t seed = 0; seed < 6; ++seed) {
        const index_t chunk = r.one_of({1, 3, 8, 16});
        const index_t buffer = chunk + r.between(0, 5);
        const index_t window = r.between(1, 6);
        const index_t tokens = r.between(100, 160);
        const layer_data text = text_of(tokens, seed);
        const eviction_request request{.budget = per_head(r.between(10, 30)),
                                       .protect = {.sink_tokens = 2, .window_tokens = window}};
        living_cache start(text, window);
        for_policies(start.scores, [&](const char* name, const auto& made_for_start) {
            living_cache cache = start;
            CAPTURE(seed, name, chunk, buffer, window, tokens);
            const auto check = [&](const auto& policy) {
                const interval_policy decode{policy, request, buffer};
                REQUIRE(decode.validate(chunk).ok());
                read(cache, decode, tokens - 20, chunk, [](living_cache&) {});
                read(cache, decode, tokens, 1, [](living_cache&) {});
            };
            if constexpr (requires {
                              made_for_start.scorer.lifetime;
                          }) { // its scores are those of this cache
                check(eviction_policy{cache.scores.scorer(made_for_start.scorer.lifetime),
                                      made_for_start.allocator, made_for_start.reranker});
            } else {
                check(made_for_start);
            }
            for (index_t g = 0; g < 2; ++g) {
                const auto row = cache.positions.positions(g);
                CHECK(std::is_sorted(row.begin(), row.end()));
                CHECK((row[0] == 0 && row[1] == 1));
                for (index_t i = 1; i <= window; ++i) {
                    CHECK(row[row.size() - static_cast<std::size_t>(i)] == tokens - i);
                }
            }
        });
    }
}

TEST_CASE("interval policy: each cut between chunks is the oracle's of the cache as it then is",
          "[decode][oracle]") {
    support::random r(92);
    int compared = 0;
    for (std::uint64_t seed = 0; seed < 12; ++seed) {
        const index_t window = 4;
        const layer_data text = text_of(90, 400 + seed);
        const interval_policy decode{
            ada_snapkv(),
            {.budget = per_head(24), .protect = {.sink_tokens = 1, .window_tokens = window}},
            12};
        living_cache cache(text, window);
        read(cache, decode, 90, r.between(2, 12), [&](living_cache& at) {
            const layer_oracle slow(at.inputs(), decode.request);
            const std::size_t total = slow.total(48);
            const auto scores = slow.snapkv();
            oracle::near_ties ties;
            const auto sets = best_of_rows(
                scores, oracle::adaptive_budgets(scores, total, share_of(total, 2, 0.2), ties), ties);
            if (ties.rounding_may_decide()) { return; }
            for (std::size_t g = 0; g < 2; ++g) {
                CHECK(kept_sets(at.plan)[g] ==
                      oracle::with_protected(slow.protect, slow.keys[g].size(), sets[g]));
            }
            ++compared;
        });
    }
    CHECK(compared >= 40);
}

TEST_CASE("interval policy: a life with rejected drafts is the life without them, scores included",
          "[decode]") {
    support::random r(93);
    for (std::uint64_t seed = 0; seed < 15; ++seed) {
        const index_t window = 4, drafts = r.between(1, 5);
        const layer_data text = text_of(120, 500 + seed);
        const eviction_request request{.budget = per_head(20), .protect = {.window_tokens = window}};
        living_cache drafting(text, window, drafts), sure(text, window, drafts);
        while (sure.positions.next_position() + drafts <= 120) {
            const index_t drafted = r.between(1, drafts), accepted = r.between(1, drafted);
            const bool by_h2o = r.chance(0.5);
            for (living_cache* cache : {&drafting, &sure}) {
                const auto cut = [&](const auto& policy) {
                    const interval_policy decode{policy, request, 8};
                    if (!decode.is_due(cache->positions, drafts)) { return; }
                    REQUIRE(decode.plan(cache->inputs(), cache->plan, cache->memory).ok());
                    cache->compact();
                };
                if (by_h2o) {
                    cut(eviction_policy{cache->scores.scorer(), adaptive{}, by_importance{}});
                } else {
                    cut(ada_snapkv());
                }
            }
            drafting.push(drafted);
            drafting.rollback(drafted - accepted);
            for (index_t i = 0; i < accepted; ++i) { sure.push(1); }
            CAPTURE(seed, drafts, drafted, accepted);
            CHECK(bytes_of(drafting.positions) == bytes_of(sure.positions));
            CHECK(drafting.holds_its_text());
            bool same = true;
            for (index_t g = 0; g < 2; ++g) {
                same = same && std::equal(drafting.scores.sums(g).begin(), drafting.scores.sums(g).end(),
                                          sure.scores.sums(g).begin(), sure.scores.sums(g).end());
            }
            CHECK(same);
        }
    }
}

TEST_CASE("interval policy: drafts that are pending at a cut stay, and can be rejected after it",
          "[decode]") {
    support::random r(94);
    for (std::uint64_t seed = 0; seed < 15; ++seed) {
        const index_t drafts = r.between(1, 4);
        const layer_data text = text_of(60, 600 + seed);
        living_cache cache(text, 4, drafts);
        const interval_policy decode{
            ada_snapkv(), {.budget = per_head(16), .protect = {.window_tokens = 4}}, 40};
        cache.push(50);
        cache.push(drafts);
        living_cache never = cache; // a fork that is rolled back first
        REQUIRE(decode.with_rollback(drafts).plan(cache.inputs(drafts), cache.plan, cache.memory).ok());
        cache.compact();
        for (index_t g = 0; g < 2; ++g) {
            const auto row = cache.positions.positions(g);
            for (index_t i = 1; i <= drafts + 4; ++i) {
                CHECK(row[row.size() - static_cast<std::size_t>(i)] == 50 + drafts - i);
            }
        }
        cache.rollback(drafts);
        CHECK(cache.holds_its_text());
        // The same scores decide without the drafts, so a cut without them keeps the same tokens: as many as the budget.
        never.rollback(drafts);
        REQUIRE(decode.plan(never.inputs(), never.plan, never.memory).ok());
        never.compact();
        CHECK(bytes_of(cache.positions) == bytes_of(never.positions));
    }
}

TEST_CASE("interval policy: a cut is due when the next tokens would pass budget and buffer", "[decode]") {
    const interval_policy decode{streaming_llm(), {.budget = per_head(10)}, 4};
    CHECK(decode.limit_tokens(2) == 28);
    cache_positions cached(2);
    REQUIRE(cached.append(13).ok());
    CHECK_FALSE(decode.is_due(cached));
    CHECK(decode.is_due(cached, 2));
    REQUIRE(cached.append(1).ok());
    CHECK(decode.is_due(cached));
    CHECK_FALSE(decode.is_due(cached, 0));
    const interval_policy whole_layer{streaming_llm(), {.budget = over_all_heads(5)}, 4};
    CHECK(whole_layer.limit_tokens(2) == 13);
    // Heads of different length count together.
    REQUIRE(cached.compact(plan_of({{0, 1, 2}, {0, 1, 2, 3, 4, 5, 6, 7}})).ok());
    CHECK_FALSE(whole_layer.is_due(cached, 1));
    CHECK(whole_layer.is_due(cached, 2));
    CHECK_FALSE(decode.is_due(cache_positions(0), 100));
    const interval_policy unlimited{streaming_llm(),
                                    {.budget = per_head(std::numeric_limits<index_t>::max())}};
    CHECK(unlimited.buffer_tokens == 512);
    CHECK_FALSE(unlimited.is_due(cached, 1000000));
}

// mlx-lm#1914: a chunk of 300 tokens into a cache of 160 rows. A cut leaves the budget of 100, so 400 rows would be needed: the
// caller is told before it caches them, and by how much it is too many.
TEST_CASE(
    "interval policy: a chunk that no cut makes room for is refused before it is cached, and fits in parts",
    "[decode][regression]") {
    const layer_data text = text_of(420, 8);
    living_cache cache(text, 4);
    const interval_policy decode{snapkv(), {.budget = per_head(100), .protect = {.window_tokens = 4}}, 60};
    REQUIRE(decode.limit_tokens(2) == 2 * 160);
    cache.push(120);
    CHECK(decode.is_due(cache.positions, 300));
    const status s = decode.admits(cache.positions, 300);
    CHECK(s.code() == errc::no_room);
    CHECK(s.needed() == 2 * 400);
    CHECK(decode.admits(cache.positions, 40).ok()); // at once
    CHECK(decode.admits(cache.positions, 60).ok()); // after a cut
    CHECK(decode.admits(cache.positions, 61).needed() == 2 * 161);
    index_t cuts = 0;
    for (index_t done = 0, n = 0; done < 300; done += n) { // the loop of the header
        n = std::min(300 - done, decode.buffer_tokens);
        REQUIRE(decode.admits(cache.positions, n).ok());
        if (decode.is_due(cache.positions, n)) {
            REQUIRE(decode.plan(cache.inputs(), cache.plan, cache.memory).ok());
            cache.compact();
            ++cuts;
        }
        cache.push(n);
        CHECK(cache.positions.total_tokens() <= decode.limit_tokens(2));
        CHECK(cache.holds_its_text());
    }
    CHECK(cuts == 5);
    CHECK(cache.positions.next_position() == 420);
}

TEST_CASE(
    "interval policy: what is admitted fits, what is not would not, drafts and protected tokens included",
    "[decode]") {
    support::random r(95);
    std::array<int, 4> seen{};
    for (std::uint64_t seed = 0; seed < 60; ++seed) {
        const index_t window = r.between(1, 4), most_drafts = r.between(0, 4);
        const layer_data text = text_of(150, 700 + seed);
        living_cache cache(text, window, most_drafts);
        const index_t budget = r.between(8, 30);
        const interval_policy decode{
            ada_snapkv(),
            {.budget = r.chance(0.5) ? per_head(budget) : over_all_heads(2 * budget - r.between(0, 1)),
             .protect = {.sink_tokens = r.between(0, 6), .window_tokens = window}},
            most_drafts + r.between(1, 10)};
        const index_t limit = decode.limit_tokens(2);
        index_t drafts = 0; // pending
        while (cache.positions.next_position() < 150) {
            const index_t left = 150 - cache.positions.next_position();
            const index_t wanted = std::min(left, r.chance(0.7) ? r.between(1, 6) : r.between(1, 60));
            const auto now = decode.with_rollback(drafts);
            CHECK(now.limit_tokens(2) == limit);
            const status s = now.admits(cache.positions, wanted);
            CAPTURE(seed, budget, window, drafts, wanted, cache.positions.total_tokens(), limit);
            const bool due = now.is_due(cache.positions, wanted);
            const auto cut = [&] {
                const status planned = now.plan(cache.inputs(drafts), cache.plan, cache.memory);
                if (planned.ok()) { cache.compact(); }
                return planned;
            };
            if (s.ok()) {
                ++seen[due ? 1 : 0];
                if (due) { REQUIRE(cut().ok()); }
                CHECK(cache.positions.total_tokens() + 2 * wanted <= limit);
                cache.push(wanted);
                drafts = wanted <= most_drafts && r.chance(0.5) ? wanted : 0;
                if (drafts > 0 && r.chance(0.5)) {
                    cache.rollback(drafts);
                    drafts = 0;
                }
            } else if (s.code() == errc::no_room) {
                ++seen[2];
                REQUIRE(due);
                living_cache without = cache;
                if (cache.positions.total_tokens() > budget) {
                    REQUIRE(cut().ok());
                } // else a cut changes nothing
                CHECK(cache.positions.total_tokens() + 2 * wanted == s.needed());
                CHECK(s.needed() > limit);
                cache = without;
                drafts = 0; // accepted; a shorter chunk comes next
                if (decode.is_due(cache.positions, 1)) {
                    REQUIRE(decode.plan(cache.inputs(), cache.plan, cache.memory).ok());
                    cache.compact();
                }
            } else {
                ++seen[3];
                CHECK(s.code() == errc::budget_below_protection);
                CHECK(cut() == s);
                break;
            }
            CHECK(cache.positions.total_tokens() <= limit);
            CHECK(cache.holds_its_text());
        }
    }
    for (const int times : seen) { CHECK(times > 0); }
}

TEST_CASE("interval policy: pending drafts stay beside the budget, within the same limit",
          "[decode][regression]") {
    const layer_data text = text_of(60, 9);
    for (const token_budget budget : {per_head(12), over_all_heads(24), over_all_layers(24)}) {
        living_cache cache(text, 8, 6);
        // A window and drafts that the budget alone would not hold.
        const interval_policy decode{snapkv(), {.budget = budget, .protect = {.window_tokens = 8}}, 6};
        cache.push(13);
        cache.push(5); // drafts
        const auto pending = decode.with_rollback(5);
        REQUIRE(pending.is_due(cache.positions, 1));
        REQUIRE(pending.admits(cache.positions, 1).ok());
        CHECK(pending.admits(cache.positions, 2).needed() == 2 * (12 + 5 + 2));
        REQUIRE(pending.plan(cache.inputs(5), cache.plan, cache.memory).ok());
        cache.compact();
        CHECK(cache.positions.total_tokens() == 2 * (12 + 5));
        cache.push(1);
        CHECK(cache.positions.total_tokens() == decode.limit_tokens(2));
        cache.rollback(1);
        cache.rollback(5);
        CHECK(cache.positions.total_tokens() == decode.request.budget.total(2));
    }
    // The buffer must hold the drafts.
    const interval_policy decode{snapkv(), {.budget = per_head(12)}, 6};
    CHECK(decode.with_rollback(5).validate().ok());
    CHECK(decode.with_rollback(6).validate().code() == errc::invalid_parameter);
    CHECK(decode.with_rollback(6).validate().needed() == 7);
    living_cache cache(text, 8);
    cache.push(30);
    cache.plan = made_before();
    for (const index_t drafts : {index_t{7}, index_t{-1}, std::numeric_limits<index_t>::max()}) {
        const auto wrong = decode.with_rollback(drafts);
        CHECK(wrong.plan(cache.inputs(), cache.plan, cache.memory).code() == errc::invalid_parameter);
        CHECK(wrong.admits(cache.positions, 0).code() == errc::invalid_parameter);
        CHECK(wrong.admits(cache.positions, 0).needed() == std::max<index_t>(0, drafts)); // never below 0
        CHECK(wrong.workspace_bytes(cache.inputs()) == 0);
        CHECK(cache.plan == made_before());
    }
}

TEST_CASE("interval policy: any number of tokens, budget and buffer has an answer", "[decode]") {
    constexpr index_t most = std::numeric_limits<index_t>::max();
    cache_positions cached(3);
    REQUIRE(cached.append(10).ok());
    for (const index_t budget : {-most - 1, index_t{-1}, index_t{0}, index_t{7}, most}) {
        for (const index_t buffer : {-most - 1, index_t{-1}, index_t{0}, index_t{7}, most}) {
            for (const index_t tokens : {-most - 1, index_t{-1}, index_t{0}, index_t{7}, most}) {
                CAPTURE(budget, buffer, tokens);
                const interval_policy decode{streaming_llm(), {.budget = per_head(budget)}, buffer};
                const bool valid = budget > 0 && buffer > 0 && tokens > 0 && buffer >= tokens;
                CHECK(decode.validate(tokens).ok() == valid);
                const index_t limit = decode.limit_tokens(3);
                CHECK(limit >= 0);
                CHECK(decode.with_rollback(tokens).limit_tokens(3) == limit);
                const status s = decode.admits(cached, tokens);
                if (tokens >= 0 && budget <= 0) { CHECK(s.code() == errc::budget_zero); }
                if (tokens < 0 || (budget > 0 && buffer < 0)) { CHECK(s.code() == errc::invalid_parameter); }
                if (s.ok()) {
                    const index_t kept = std::min<index_t>(30, saturated_product(3, budget));
                    CHECK(saturated_sum(kept, saturated_product(3, tokens)) <= limit);
                }
                if (s.code() == errc::no_room) { CHECK(s.needed() > limit); }
            }
        }
    }
    CHECK(interval_policy{streaming_llm(), {.budget = per_head(7)}, 4}.admits(cached, -1).code() ==
          errc::invalid_parameter);
    CHECK(
        interval_policy{streaming_llm(), {.budget = per_head(7)}, 4}.admits(cache_positions(-1), 1).code() ==
        errc::invalid_parameter);
    CHECK(interval_policy{streaming_llm(), {.budget = per_head(7), .protect = {.sink_tokens = -1}}, 4}
              .admits(cached, 1)
              .code() == errc::invalid_parameter);
}

TEST_CASE("interval policy: no budget, no buffer and more tokens at a time than it holds are refused",
          "[decode]") {
    const auto answer = [](index_t budget, index_t buffer, index_t incoming) {
        return interval_policy{streaming_llm(), {.budget = per_head(budget)}, buffer}.validate(incoming);
    };
    CHECK(answer(10, 1, 1).ok());
    CHECK(answer(0, 4, 1).code() == errc::budget_zero);
    CHECK(answer(10, 0, 1).code() == errc::invalid_parameter);
    CHECK(answer(10, -3, -5).code() == errc::invalid_parameter);
    CHECK(answer(10, -3, -5).needed() >= 0);
    const interval_policy undone{streaming_llm(), {.budget = per_head(10)}, 4};
    CHECK(undone.with_rollback(-5).validate().code() == errc::invalid_parameter);
    CHECK(undone.with_rollback(-5).validate().needed() >= 0);
    CHECK(answer(10, 4, 5).code() == errc::invalid_parameter);
    CHECK(answer(10, 4, 5).needed() == 5);
    // What the policy refuses it refuses here too, with nothing written.
    const layer_data text = text_of(30, 1);
    living_cache cache(text, 4);
    cache.push(30);
    cache.plan = made_before();
    const interval_policy tight{snapkv(), {.budget = per_head(3), .protect = {.window_tokens = 4}}, 4};
    CHECK(tight.plan(cache.inputs(), cache.plan, cache.memory).code() == errc::budget_below_protection);
    CHECK(cache.plan == made_before());
    CHECK(tight.workspace_bytes(cache.inputs()) == 0);
}
