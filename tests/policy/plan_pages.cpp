// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/policy/plan_pages.hpp>

#include "compact/random_pages.hpp"
#include "support/random_scores.hpp"

#include <cmath>

using namespace kvtrim;
using support::plan_of;

namespace {

struct planned {
    status answer;
    keep_plan plan = support::made_before();
};

planned plan_in_exact_memory(const strided<const float, 2>& scores, index_t kept, const protection& protect) {
    planned p;
    growing_workspace memory;
    workspace scratch = memory.of_bytes(plan_pages_bytes(scores, kept, protect));
    p.answer = plan_pages(scores, kept, protect, p.plan, scratch);
    return p;
}

std::vector<float> pages_of(const std::vector<float>& tokens, index_t page_tokens, page_reduction reduction) {
    std::vector<float> pages((tokens.size() + static_cast<std::size_t>(page_tokens) - 1) /
                             static_cast<std::size_t>(page_tokens));
    REQUIRE(score_pages(tokens, page_tokens, reduction, pages).ok());
    return pages;
}

} // namespace

TEST_CASE("score_pages: sum, mean or maximum of a page's tokens, also of a partial one", "[policy]") {
    const std::vector<float> tokens{1, 2, 3, 6, 0, 0, 9};
    CHECK(pages_of(tokens, 3, page_reduction::sum) == std::vector<float>{6, 6, 9});
    CHECK(pages_of(tokens, 3, page_reduction::mean) == std::vector<float>{2, 2, 9});
    CHECK(pages_of(tokens, 3, page_reduction::maximum) == std::vector<float>{3, 6, 9});
    CHECK(pages_of(tokens, 4, page_reduction::mean) == std::vector<float>{3, 3});
    CHECK(pages_of({}, 4, page_reduction::sum).empty());
    const float nan = std::numeric_limits<float>::quiet_NaN();
    CHECK(pages_of({1, nan, 2}, 3, page_reduction::maximum) == std::vector<float>{2});
    CHECK(std::isnan(pages_of({1, nan, 2}, 3, page_reduction::sum)[0]));
}

TEST_CASE("plan_pages: equally many pages in every layer, start and recent areas among them", "[policy]") {
    const std::vector<float> scores{0, 5, 1, 4, 0, 0, /**/ 0, 1, 2, 9, 0, 0};
    const strided<const float, 2> view(scores.data(), {2, 6});
    const protection protect{.sink_tokens = 1, .window_tokens = 1};
    CHECK(plan_in_exact_memory(view, 4, protect).plan == plan_of({{0, 1, 3, 5}, {0, 2, 3, 5}}));
    CHECK(plan_in_exact_memory(view, 3, protect).plan == plan_of({{0, 1, 5}, {0, 3, 5}}));
    CHECK(plan_in_exact_memory(view, 9, protect).plan == plan_of({{0, 1, 2, 3, 4, 5}, {0, 1, 2, 3, 4, 5}}));
    std::vector<token_range> evicted;
    const keep_plan four = plan_in_exact_memory(view, 4, protect).plan;
    const auto list = [&](token_range r) { evicted.push_back(r); };
    CHECK(evicted_pages(four, 1, 6, list).ok());
    CHECK(evicted == std::vector<token_range>{{1, 2}, {4, 5}});
    CHECK(evicted_pages(four, 2, 6, list).code() == errc::plan_mismatch);
    CHECK(evicted_pages(four, -1, 6, list).code() == errc::plan_mismatch);
    CHECK(evicted_pages(four, 1, 5, list).code() == errc::plan_mismatch);
    CHECK(evicted.size() == 2);

    const auto below = plan_in_exact_memory(view, 1, protect);
    CHECK(below.answer.code() == errc::budget_below_protection);
    CHECK(below.plan == support::made_before());
    CHECK(plan_in_exact_memory(view, 0, protect).answer.code() == errc::budget_zero);
    CHECK(plan_in_exact_memory(view, 3, {.sink_tokens = -1}).answer.code() == errc::invalid_parameter);
}

TEST_CASE("expand_pages: a token that no 32 bits number is an overflow, however few are kept",
          "[policy][errors]") {
    const keep_plan far = plan_of({{2147483000}}); // its tokens would wrap to others
    keep_plan out = support::made_before();
    growing_workspace memory;
    workspace scratch = memory.of_bytes(expand_pages_bytes(far));
    const status s = expand_pages(far, 2, 4294967000, out, scratch);
    CHECK(s.code() == errc::index_overflow);
    CHECK(s.needed() == 4294967000);
    CHECK(out == support::made_before());
}

TEST_CASE("expand_pages: the tokens of kept pages, and on a page table nothing moves and the other pages "
          "are freed",
          "[policy][compact]") {
    support::random r(1);
    for (int round = 0; round < 200; ++round) {
        const index_t page_tokens = r.between(1, 5);
        const index_t tokens = r.between(0, 40);
        const index_t pages = (tokens + page_tokens - 1) / page_tokens;
        keep_plan plan = support::any_plan(r, {pages, pages});
        growing_workspace memory;
        workspace scratch = memory.of_bytes(expand_pages_bytes(plan));
        keep_plan in_tokens;
        REQUIRE(expand_pages(plan, page_tokens, tokens, in_tokens, scratch).ok());
        for (index_t row = 0; row < 2; ++row) {
            std::vector<std::int32_t> expected;
            for (index_t t = 0; t < tokens; ++t) {
                const auto kept = plan.row(row);
                if (std::binary_search(kept.begin(), kept.end(), t / page_tokens)) {
                    expected.push_back(static_cast<std::int32_t>(t));
                }
            }
            CHECK(std::vector<std::int32_t>(in_tokens.row(row).begin(), in_tokens.row(row).end()) ==
                  expected);
        }
        support::int32s indptr{0, 0, 0}, indices,
            last(2, static_cast<std::int32_t>(tokens - (pages - 1) * page_tokens));
        for (std::int32_t page = 0; page < 2 * pages; ++page) { indices.push_back(page); }
        indptr[1] = static_cast<std::int32_t>(pages);
        indptr[2] = static_cast<std::int32_t>(2 * pages);
        const bool keeps_last = pages == 0 || (plan.row(0).size() > 0 && plan.row(0).back() == pages - 1 &&
                                               plan.row(1).size() > 0 && plan.row(1).back() == pages - 1);
        if (!keeps_last) { continue; } // the partial page is always recent
        const page_pool pool{.pages = std::max<index_t>(1, 2 * pages), .page_tokens = page_tokens};
        const auto moved = support::plan_moves(in_tokens, {indptr, indices, last}, pool);
        REQUIRE(moved.answer.ok());
        CHECK(moved.plan.total_moves() == 0);
        CHECK(std::ssize(moved.plan.freed_pages()) == 2 * pages - plan.total_tokens());
    }
}

TEST_CASE("expand_pages, score_pages: what does not fit is refused", "[policy][errors]") {
    const keep_plan plan = plan_of({{0, 2}});
    keep_plan out = support::made_before();
    growing_workspace memory;
    workspace scratch = memory.of_bytes(1024);
    CHECK(expand_pages(plan, 4, 8, out, scratch).code() == errc::plan_mismatch);
    std::vector<std::byte> few(8);
    workspace small(few);
    CHECK(expand_pages(plan, 4, 12, out, small).code() == errc::workspace_too_small);
    const keep_plan far = plan_of({{2047}});
    CHECK(expand_pages(far, index_t{1} << 32, index_t{1} << 43, out, scratch).code() == errc::index_overflow);
    CHECK(expand_pages(plan, 0, 8, out, scratch).code() == errc::invalid_parameter);
    CHECK(expand_pages(plan, 4, -1, out, scratch).code() == errc::invalid_parameter);
    CHECK(expand_pages(out, 4, 8, out, scratch).code() == errc::invalid_parameter);
    CHECK(out == support::made_before());
    const std::vector<float> tokens(5);
    std::vector<float> pages{-7};
    const status s = score_pages(tokens, 4, page_reduction::sum, pages);
    CHECK(s.code() == errc::invalid_parameter);
    CHECK(s.needed() == 2);
    CHECK(score_pages(tokens, 0, page_reduction::sum, pages).code() == errc::invalid_parameter);
    CHECK(pages == std::vector<float>{-7});
}

TEST_CASE("expand_pages, score_pages: a page longer than any row is one page, without overflow",
          "[policy][odd]") {
    constexpr index_t most = std::numeric_limits<index_t>::max();
    const std::vector<float> tokens{1, 2, 3};
    std::vector<float> pages{-7};
    REQUIRE(score_pages(tokens, most, page_reduction::sum, pages).ok());
    CHECK(pages == std::vector<float>{6});
    growing_workspace memory;
    workspace scratch = memory.of_bytes(1024);
    keep_plan out;
    REQUIRE(expand_pages(plan_of({{0}}), most, 3, out, scratch).ok());
    CHECK(out == plan_of({{0, 1, 2}}));
}

TEST_CASE("plan_pages: scores without memory or of no shape are refused, with the plan unchanged",
          "[policy][errors]") {
    keep_plan out = support::made_before();
    growing_workspace memory;
    workspace scratch = memory.of_bytes(4096);
    std::vector<float> floats(12);
    for (const auto& scores :
         {strided<float, 2>(nullptr, {3, 4}), strided<float, 2>(floats.data(), {3, -4})}) {
        CHECK(plan_pages(scores, 1, {}, out, scratch).code() == errc::invalid_parameter);
        CHECK(plan_pages_bytes(scores, 1, {}) == 0);
    }
    CHECK(out == support::made_before());
}
