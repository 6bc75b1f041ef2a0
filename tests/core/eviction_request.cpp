// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/core/eviction_request.hpp>

#include "support/catch.hpp"

#include <array>
#include <cmath>
#include <limits>
#include <set>
#include <utility>
#include <vector>

namespace {

using namespace kvtrim;

constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();
constexpr double infinity = std::numeric_limits<double>::infinity();

static_assert(per_head(10).total(3) == 30 && over_all_heads(10).total(3) == 10);
static_assert(protection{.sink_tokens = 4, .pinned_tokens = 9}.prefix() == 9);
static_assert(protection{.window_tokens = 32, .rollback_tokens = 3}.suffix() == 35);
static_assert(candidates(protection{}, 7) == token_range{0, 7});

} // namespace

TEST_CASE("kept_tokens: a whole product is not lost to rounding", "[core]") {
    CHECK(kept_tokens(100, 0.1) == 10);
    CHECK(kept_tokens(1000, 0.1) == 100);
    CHECK(kept_tokens(1000, 1 - 0.9) == 100); // 0.1 less a rounding error
    CHECK(kept_tokens(10, 0.3) == 3);
    CHECK(kept_tokens(0, 0.5) == 0);
    CHECK(kept_tokens(5, 0.0) == 0);
    CHECK(kept_tokens(5, 1.0) == 5);
    CHECK(kept_tokens(1, 0.999) == 0);
}

TEST_CASE("kept_tokens: it equals integer arithmetic for all lengths to 8192 and all tenths", "[core]") {
    const std::array<double, 11> tenths{0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0};
    std::vector<std::pair<index_t, index_t>> wrong;
    for (index_t tokens = 0; tokens <= 8192; ++tokens) {
        for (index_t k = 0; k <= 10; ++k) {
            const index_t exact = tokens * k / 10;
            const bool right = kept_tokens(tokens, tenths[static_cast<std::size_t>(k)]) == exact &&
                               kept_tokens(tokens, 1 - tenths[static_cast<std::size_t>(10 - k)]) == exact;
            if (!right) { wrong.emplace_back(tokens, k); }
        }
    }
    CHECK(wrong.empty());
}

TEST_CASE("kept_tokens: it equals integer arithmetic for thousandths of long contexts", "[core]") {
    std::vector<std::pair<index_t, index_t>> wrong;
    for (const index_t tokens : {131072, 999983, 1048576, 10000000}) {
        for (index_t k = 0; k <= 1000; ++k) {
            if (kept_tokens(tokens, static_cast<double>(k) / 1000) != tokens * k / 1000) {
                wrong.emplace_back(tokens, k);
            }
        }
    }
    CHECK(wrong.empty());
}

TEST_CASE("kept_tokens: a product that is clearly below a whole number is rounded down", "[core]") {
    CHECK(kept_tokens(1000, 0.0999) == 99);
    CHECK(kept_tokens(1000, 0.09999999) == 99); // 1e-5 below
    CHECK(kept_tokens(3, 2.0 / 3) == 2);
    CHECK(kept_tokens(3, 0.66666) == 1);
}

TEST_CASE("kept_tokens: only a product within 1e-9 of a whole number is rounded up, at any length",
          "[core]") {
    CHECK(kept_tokens(1000000001, 0.5) == 500000000);    // half a token short
    CHECK(kept_tokens(1000000, 0.5000009995) == 500000); // 500000.9995
}

TEST_CASE("kept_tokens_kvpress: it gives the counts of kvpress, one short included", "[core][golden]") {
    // Of the golden case `kept_count`: tokens, then the counts for each compression ratio.
    const std::array<double, 10> ratios{0.1, 0.2, 0.25, 0.3, 0.5, 0.7, 0.75, 0.8, 0.9, 0.95};
    const std::array<std::array<index_t, 11>, 8> table{{
        {10, 9, 8, 7, 7, 5, 3, 2, 1, 0, 0},
        {20, 18, 16, 15, 14, 10, 6, 5, 3, 1, 1},
        {90, 81, 72, 67, 62, 45, 27, 22, 17, 8, 4},
        {100, 90, 80, 75, 70, 50, 30, 25, 19, 9, 5},
        {170, 153, 136, 127, 118, 85, 51, 42, 33, 16, 8},
        {1000, 900, 800, 750, 700, 500, 300, 250, 199, 99, 50},
        {2050, 1845, 1640, 1537, 1435, 1025, 615, 512, 409, 204, 102},
        {4096, 3686, 3276, 3072, 2867, 2048, 1228, 1024, 819, 409, 204},
    }};
    for (const auto& row : table) {
        for (std::size_t i = 0; i < ratios.size(); ++i) {
            CAPTURE(row[0], ratios[i]);
            CHECK(kept_tokens_kvpress(row[0], ratios[i]) == row[i + 1]);
        }
    }
}

TEST_CASE("valid_ratio: ratios above 0 and at most 1 are valid, others and NaN are not", "[core]") {
    for (const double ratio : {1.0, 0.5, 1e-300, std::numeric_limits<double>::denorm_min()}) {
        CHECK(valid_ratio(ratio).ok());
    }
    for (const double ratio : {0.0, -0.0, -0.1, 1.0000000001, 2.0, not_a_number, infinity, -infinity}) {
        CHECK(valid_ratio(ratio).code() == errc::ratio_out_of_range);
    }
}

TEST_CASE("valid_attention: a sink logit may be -infinity, which is none, but not NaN or +infinity",
          "[core]") {
    using limits = std::numeric_limits<float>;
    std::vector<float> sinks{0, -limits::infinity(), limits::max(), -1};
    CHECK(valid_attention({.sink_logits = sinks}, 4).ok());
    for (const float odd : {limits::quiet_NaN(), limits::infinity()}) {
        for (float& logit : sinks) {
            const float before = std::exchange(logit, odd);
            CHECK(valid_attention({.sink_logits = sinks}, 4).code() == errc::invalid_parameter);
            logit = before;
        }
    }
}

TEST_CASE("candidates: they are the tokens that no protected range covers, for every overlap", "[core]") {
    std::vector<std::array<index_t, 5>> wrong;
    const std::array<index_t, 6> sizes{0, 1, 2, 5, 7, 20};
    for (index_t tokens = 0; tokens <= 8; ++tokens) {
        for (const index_t sinks : sizes) {
            for (const index_t pinned : sizes) {
                for (const index_t window : sizes) {
                    for (const index_t rollback : sizes) {
                        std::set<index_t> free;
                        for (index_t t = 0; t < tokens; ++t) {
                            if (t >= sinks && t >= pinned && t < tokens - window - rollback) {
                                free.insert(t);
                            }
                        }
                        const token_range range = candidates({sinks, pinned, window, rollback}, tokens);
                        const bool right = range.size() == static_cast<index_t>(free.size()) &&
                                           range.begin >= 0 && range.end <= tokens &&
                                           (free.empty() || (range.begin == *free.begin() &&
                                                             range.end == *free.rbegin() + 1));
                        if (!right) { wrong.push_back({tokens, sinks, pinned, window, rollback}); }
                    }
                }
            }
        }
    }
    CHECK(wrong.empty());
}

TEST_CASE("keeping_live_window: the rows that the next query may see are protected, whatever else is",
          "[core]") {
    const auto protected_by = [](index_t sliding_window, const protection& protect) {
        eviction_request request{.budget = per_head(5), .protect = protect};
        request.attention.sliding_window = sliding_window;
        const eviction_request live = keeping_live_window(request);
        CHECK(live.budget.tokens == 5);
        CHECK(live.attention.sliding_window == sliding_window);
        CHECK(live.protect.rollback_tokens == protect.rollback_tokens);
        return candidates(live.protect, 100);
    };
    CHECK(protected_by(0, {.window_tokens = 3}) == token_range{0, 97});
    CHECK(protected_by(1, {}) == token_range{0, 100}); // it sees itself alone
    CHECK(protected_by(10, {.sink_tokens = 2}) == token_range{2, 91});
    CHECK(protected_by(10, {.window_tokens = 32}) == token_range{0, 68});
    CHECK(protected_by(10, {.rollback_tokens = 4}) == token_range{0, 87});
    CHECK(protected_by(1000, {}).size() == 0);
}

TEST_CASE("keeping_prefix: the prefix is pinned beside what else is protected, and a negative one is refused",
          "[core]") {
    const eviction_request request{.budget = per_head(70),
                                   .protect = {.sink_tokens = 4, .pinned_tokens = 10, .window_tokens = 8}};
    const eviction_request cut = keeping_prefix(request, 64);
    CHECK(cut.budget.tokens == 70);
    CHECK(candidates(cut.protect, 100) == token_range{64, 92});
    CHECK(candidates(keeping_prefix(request, 3).protect, 100) == token_range{10, 92});
    CHECK_FALSE(valid_protection(keeping_prefix(request, -1).protect).ok());
}

TEST_CASE("valid_attention: sink logits of other than the q_heads at hand are refused, none are always valid",
          "[core][errors]") {
    const std::vector<float> sinks(4);
    CHECK(valid_attention({.sink_logits = sinks}, 4).ok());
    for (const index_t q_heads : {0, 3, 8}) {
        const status s = valid_attention({.sink_logits = sinks}, q_heads);
        CHECK(s.code() == errc::invalid_parameter);
        CHECK(s.needed() == q_heads);
        CHECK(valid_attention({}, q_heads).ok());
    }
}

TEST_CASE("valid_protection: no number of tokens may be negative", "[core][errors]") {
    static_assert(valid_protection({}).ok());
    CHECK(valid_protection({4, 3, 2, 1}).ok());
    for (const protection& p : {protection{.sink_tokens = -1},
                                {.pinned_tokens = -1},
                                {.window_tokens = -1},
                                {.rollback_tokens = std::numeric_limits<index_t>::min()}}) {
        CHECK(valid_protection(p).code() == errc::invalid_parameter);
    }
}

TEST_CASE("kept_tokens: a ratio that is none, or less than no tokens, is no budget", "[core][errors]") {
    using limits = std::numeric_limits<double>;
    for (const double ratio : {0.0, -0.5, 1.0000001, 1e300, limits::quiet_NaN(), limits::infinity()}) {
        CHECK_FALSE(valid_ratio(ratio).ok());
        CHECK(kept_tokens(100, ratio) == 0);
    }
    for (const double ratio : {-0.5, 1.5, -1e300, limits::quiet_NaN(), limits::infinity()}) {
        CHECK(kept_tokens_kvpress(100, ratio) == 0);
    }
    CHECK(kept_tokens_kvpress(100, 0.0) == 100);
    CHECK(kept_tokens_kvpress(100, 1.0) == 0);
    for (const index_t tokens : {index_t{-1}, std::numeric_limits<index_t>::min()}) {
        CHECK(kept_tokens(tokens, 0.5) == 0);
        CHECK(kept_tokens_kvpress(tokens, 0.5) == 0);
    }
}

TEST_CASE("protection: negative numbers, which are refused, name no rows either", "[core][errors]") {
    constexpr index_t least = std::numeric_limits<index_t>::min(), most = std::numeric_limits<index_t>::max();
    for (const index_t odd : {index_t{-1}, least}) {
        CHECK(candidates({.sink_tokens = odd}, 20) == token_range{0, 20});
        CHECK(candidates({.pinned_tokens = odd}, 20) == token_range{0, 20});
        CHECK(candidates({.window_tokens = odd}, 20) == token_range{0, 20});
        CHECK(candidates({.window_tokens = 5, .rollback_tokens = odd}, 20) == token_range{0, 15});
    }
    CHECK(candidates({.window_tokens = most, .rollback_tokens = most}, 20) == token_range{0, 0});
}

TEST_CASE("keeping_live_window: a negative number stays as it is, to be refused", "[core][errors]") {
    constexpr index_t least = std::numeric_limits<index_t>::min();
    eviction_request request{.budget = per_head(8)};
    request.attention.sliding_window = least;
    CHECK(keeping_live_window(request).protect.window_tokens == 0);
    request.attention.sliding_window = 16;
    CHECK(keeping_live_window(request).protect.window_tokens == 15);
    request.protect.window_tokens = -5;
    CHECK(keeping_live_window(request).protect.window_tokens == -5);
}

TEST_CASE("attention_options: the scale and sink logits in force", "[core]") {
    for (const index_t dim : {1, 3, 64, 80, 128, 576}) {
        CHECK(attention_options{}.scale_for(dim) == 1.0f / std::sqrt(static_cast<float>(dim)));
        CHECK(attention_options{}.scale_for<double>(dim) == 1.0 / std::sqrt(static_cast<double>(dim)));
        CHECK(attention_options{.scale = 0.3f}.scale_for(dim) == 0.3f);
        CHECK(attention_options{.scale = 0.3f}.scale_for<double>(dim) == static_cast<double>(0.3f));
    }
    CHECK(attention_options{}.scale_for(0) == 1); // times no product, it stays a number
    const std::vector<float> sinks{1, -2};
    CHECK(attention_options{.sink_logits = sinks}.sink_logit_of(1) == -2);
    CHECK(attention_options{}.sink_logit_of(1) == -std::numeric_limits<float>::infinity());
}
