// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/compact/project_to_shared.hpp>

#include "compact/random_cache.hpp"

#include <algorithm>
#include <set>
#include <vector>

namespace {

using namespace kvtrim;
using table = std::vector<std::int32_t>;
using ranges = std::vector<token_range>;

struct projected {
    status answer;
    keep_plan plan = support::made_before();
};

// In exactly the workspace that project_to_shared_bytes() asks for.
template <class Count>
projected project(const keep_plan& plan, index_t tokens, Count count) {
    projected p;
    growing_workspace memory;
    workspace scratch = memory.of_bytes(project_to_shared_bytes(plan, tokens));
    p.answer = project_to_shared(plan, tokens, count, p.plan, scratch);
    return p;
}

table row(const keep_plan& plan, index_t r) {
    return table(plan.row(r).begin(), plan.row(r).end());
}

bool all_rows_are(const keep_plan& plan, index_t rows, const table& expected) {
    bool same = plan.rows() == rows;
    for (index_t r = 0; r < plan.rows(); ++r) { same = same && row(plan, r) == expected; }
    return same;
}

ranges removed(const table& kept, index_t tokens) {
    ranges seen;
    CHECK(removed_ranges(kept, tokens, [&](token_range range) { seen.push_back(range); }).ok());
    return seen;
}

} // namespace

TEST_CASE("project_to_shared: any_head keeps the union of the heads", "[compact]") {
    support::random r(1);
    for (int round = 0; round < 200; ++round) {
        const index_t tokens = r.between(1, 60);
        const index_t heads = r.between(1, 6);
        const keep_plan plan =
            support::any_plan(r, std::vector<index_t>(static_cast<std::size_t>(heads), tokens));
        const std::set<std::int32_t> all(plan.kept().begin(), plan.kept().end());
        const projected p = project(plan, tokens, any_head);
        CHECK(p.answer.ok());
        CHECK(all_rows_are(p.plan, heads, table(all.begin(), all.end())));
    }
}

TEST_CASE("project_to_shared: a count keeps the tokens of most heads, ties to the lower position",
          "[compact][oracle]") {
    support::random r(2);
    for (int round = 0; round < 300; ++round) {
        const index_t tokens = r.between(1, 60);
        const index_t heads = r.between(1, 6);
        const keep_plan plan =
            support::any_plan(r, std::vector<index_t>(static_cast<std::size_t>(heads), tokens));
        table order(static_cast<std::size_t>(tokens));
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
            const auto kept = plan.kept();
            return std::count(kept.begin(), kept.end(), a) > std::count(kept.begin(), kept.end(), b);
        });
        const index_t count = r.between(1, tokens);
        order.resize(static_cast<std::size_t>(count));
        std::sort(order.begin(), order.end());
        const projected p = project(plan, tokens, count);
        CAPTURE(round, tokens, heads, count);
        CHECK(p.answer.ok());
        CHECK(all_rows_are(p.plan, heads, order));
    }
}

TEST_CASE("project_to_shared: votes are counted as written", "[compact]") {
    const keep_plan plan = support::plan_of({{1, 3, 5}, {3, 4}, {3, 5}});
    CHECK(all_rows_are(project(plan, 8, 1).plan, 3, {3}));
    CHECK(all_rows_are(project(plan, 8, 2).plan, 3, {3, 5}));
    CHECK(all_rows_are(project(plan, 8, 3).plan, 3, {1, 3, 5}));       // 1 and 4 tie
    CHECK(all_rows_are(project(plan, 8, 5).plan, 3, {0, 1, 3, 4, 5})); // nobody wants 0, 2, 6, 7
    CHECK(all_rows_are(project(plan, 8, any_head).plan, 3, {1, 3, 4, 5}));
}

TEST_CASE("project_to_shared: no token kept by any head is an empty union", "[compact]") {
    const projected p = project(support::plan_of({{}, {}}), 5, any_head);
    CHECK(p.answer.ok());
    CHECK(p.plan == support::plan_of({{}, {}}));
    const projected none = project(keep_plan{}, 5, any_head);
    CHECK(none.answer.ok());
    CHECK(none.plan.rows() == 0);
}

TEST_CASE("project_to_shared: bad input is refused with the output unchanged", "[compact]") {
    const keep_plan plan = support::plan_of({{1, 3}, {7}});
    const auto refusal = [&](const projected& p) {
        CHECK(p.plan == support::made_before());
        return p.answer.code();
    };
    CHECK(refusal(project(plan, 8, 0)) == errc::budget_zero);
    CHECK(refusal(project(plan, 8, -1)) == errc::budget_zero);
    CHECK(refusal(project(plan, 8, 9)) == errc::invalid_parameter);
    CHECK(project(plan, 8, 9).answer.needed() == 8);
    CHECK(refusal(project(plan, 7, 2)) == errc::plan_mismatch);
    CHECK(refusal(project(plan, 7, any_head)) == errc::plan_mismatch);
    CHECK(project(plan, 8, 8).answer.ok());

    for (const bool whole : {false, true}) {
        keep_plan out = support::made_before();
        std::vector<std::byte> memory(static_cast<std::size_t>(project_to_shared_bytes(plan, 8)) - 65);
        workspace scratch(memory);
        const status s = whole ? project_to_shared(plan, 8, any_head, out, scratch)
                               : project_to_shared(plan, 8, 2, out, scratch);
        CHECK(s.code() == errc::workspace_too_small);
        CHECK(s.needed() == project_to_shared_bytes(plan, 8));
        CHECK(out == support::made_before());
    }
}

TEST_CASE("project_to_shared: the plan that is read may be the output", "[compact]") {
    keep_plan plan = support::plan_of({{1, 3}, {3, 7}}), same = plan;
    std::vector<std::byte> memory(4096);
    workspace scratch(memory);
    REQUIRE(project_to_shared(plan, 8, 2, plan, scratch).ok());
    CHECK(all_rows_are(plan, 2, {1, 3}));
    REQUIRE(project_to_shared(same, 8, any_head, same, scratch).ok());
    CHECK(all_rows_are(same, 2, {1, 3, 7}));
}

TEST_CASE("project_to_shared: a negative number of tokens is refused with the output unchanged",
          "[compact][errors]") {
    const keep_plan plan = support::plan_of({{1, 3}, {7}});
    CHECK(project_to_shared_bytes(plan, -1) == 0);
    for (const index_t tokens : {index_t{-1}, std::numeric_limits<index_t>::min()}) {
        for (const projected& p : {project(plan, tokens, 1), project(plan, tokens, any_head)}) {
            CHECK(p.answer.code() == errc::invalid_parameter);
            CHECK(p.plan == support::made_before());
        }
    }
}

TEST_CASE("removed_ranges: tokens that do not ascend within the cache are refused, with no call made",
          "[compact][errors]") {
    for (const table& wrong : {table{1, 1}, table{2, 1}, table{-1, 0}, table{0, 4}, table{0}}) {
        int calls = 0;
        const index_t tokens = wrong.size() == 1 ? 0 : 4;
        CHECK(removed_ranges(wrong, tokens, [&](token_range) { ++calls; }).code() == errc::plan_mismatch);
        CHECK(calls == 0);
    }
}

TEST_CASE("removed_ranges: they are the gaps between the kept tokens, as few as possible, ascending",
          "[compact]") {
    CHECK(removed({}, 0).empty());
    CHECK(removed({}, 4) == ranges{{0, 4}});
    CHECK(removed({0, 1, 2, 3}, 4).empty());
    CHECK(removed({0, 3, 4}, 8) == ranges{{1, 3}, {5, 8}});
    CHECK(removed({2}, 3) == ranges{{0, 2}});
    support::random r(3);
    for (int round = 0; round < 200; ++round) {
        const index_t tokens = r.between(0, 50);
        const table kept = row(support::any_plan(r, {tokens}), 0);
        std::set<index_t> gone;
        index_t last_end = -1;
        for (const token_range& range : removed(kept, tokens)) {
            CHECK(range.size() > 0);
            CHECK(range.begin > last_end); // ascending, and two neighbours would be one range
            last_end = range.end;
            for (index_t t = range.begin; t < range.end; ++t) { gone.insert(t); }
        }
        CHECK(gone.size() + kept.size() == static_cast<std::size_t>(tokens));
        for (const auto token : kept) { CHECK(gone.count(token) == 0); }
    }
}
