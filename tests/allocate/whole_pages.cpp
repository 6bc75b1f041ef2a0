// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/allocate/whole_pages.hpp>

#include <kvtrim/allocate/adaptive.hpp>
#include <kvtrim/allocate/uniform.hpp>
#include <kvtrim/policy/eviction_policy.hpp>
#include <kvtrim/policy/layer_wise.hpp>
#include <kvtrim/rerank/by_importance.hpp>
#include <kvtrim/score/random_score.hpp>

#include "compact/random_pages.hpp"
#include "support/allocate.hpp"

using namespace kvtrim;
using namespace support;

namespace {

// Deals out what it is told.
struct given_budgets {
    std::array<index_t, 4> values{};

    static constexpr bool is_uniform = false;

    [[nodiscard]] status allocate(const score_rows& scores, index_t, std::span<index_t> budgets,
                                  workspace&) const {
        std::copy_n(values.begin(), scores.rows(), budgets.begin());
        return {};
    }
};

static_assert(!whole_pages<given_budgets>::is_uniform && whole_pages<uniform>::is_uniform);

oracle::counts rounded(const std::array<index_t, 4>& budgets, page_rounding rounding,
                       index_t protected_tokens, std::array<std::size_t, 4> lengths = {100, 100, 100, 100}) {
    oracle::matrix rows;
    for (const std::size_t length : lengths) { rows.emplace_back(length, 1.0); }
    const whole_pages<given_budgets> pages{{budgets}, 10, protected_tokens, rounding};
    return allocate(pages, rows, 0);
}

} // namespace

TEST_CASE("whole_pages: budgets are rounded to whole pages, protected tokens included", "[allocate]") {
    using enum page_rounding;
    CHECK(rounded({13, 20, 29, 5}, up, 0) == oracle::counts{20, 20, 30, 10});
    CHECK(rounded({13, 20, 29, 5}, down, 0) == oracle::counts{10, 20, 20, 10});   // no row loses all
    CHECK(rounded({13, 20, 29, 15}, dealt, 0) == oracle::counts{10, 20, 30, 10}); // 77 tokens are 7 pages
    CHECK(rounded({15, 15, 15, 15}, dealt, 0) == oracle::counts{20, 20, 10, 10});
    CHECK(rounded({13, 20, 29, 0}, up, 4) == oracle::counts{16, 26, 36, 6});
    CHECK(rounded({13, 20, 29, 0}, down, 4) == oracle::counts{6, 16, 26, 6});
    CHECK(rounded({13, 20, 29, 0}, dealt, 14) == oracle::counts{6, 16, 26, 6}); // 118 tokens are 11 pages
    CHECK(rounded({0, 0, 0, 0}, up, 0) == oracle::counts{0, 0, 0, 0});
    CHECK(rounded({0, 0, 0, 0}, down, 0) == oracle::counts{0, 0, 0, 0});
}

TEST_CASE("whole_pages: a row has no more tokens than it has, and one that is all protected is left out",
          "[allocate]") {
    using enum page_rounding;
    CHECK(rounded({13, 20, 29, 0}, up, 0, {14, 20, 29, 0}) == oracle::counts{14, 20, 29, 0});
    CHECK(rounded({13, 20, 29, 0}, down, 0, {14, 20, 29, 0}) == oracle::counts{10, 20, 20, 0});
    CHECK(rounded({13, 20, 29, 0}, up, 4, {100, 100, 100, 0}) == oracle::counts{16, 26, 36, 0});
}

TEST_CASE("whole_pages: what each rounding promises, for any lengths and protection",
          "[allocate][properties]") {
    support::random r(1);
    for (int i = 0; i < 500; ++i) {
        const oracle::matrix rows = random_scores(r, score_kind::distinct);
        const auto total = static_cast<std::size_t>(r.between(0, static_cast<index_t>(total_length(rows))));
        const index_t page_tokens = r.one_of({1, 2, 3, 16});
        const index_t protected_tokens = r.one_of({0, 1, 5, 33});
        const oracle::counts plain = allocate(uniform{}, rows, total);
        std::size_t kept = 0, dealt_pages = 0, forced = 0;
        for (const page_rounding rounding : {page_rounding::up, page_rounding::down, page_rounding::dealt}) {
            const whole_pages<uniform> pages{{}, page_tokens, protected_tokens, rounding};
            const oracle::counts got = allocate(pages, rows, total);
            const auto size = static_cast<std::size_t>(page_tokens);
            const auto fixed = static_cast<std::size_t>(protected_tokens);
            CAPTURE(i, rounding, page_tokens, protected_tokens, plain, got);
            for (std::size_t g = 0; g < rows.size(); ++g) {
                if (rows[g].empty()) { continue; }
                const std::size_t before = fixed + plain[g], after = fixed + got[g];
                CHECK(got[g] <= rows[g].size());
                CHECK((after % size == 0 || got[g] == rows[g].size())); // whole pages, or the whole row
                CHECK((before == 0) == (after == 0));
                const std::size_t least =
                    std::max<std::size_t>(before > 0 ? 1 : 0, (fixed + size - 1) / size);
                if (rounding == page_rounding::up) {
                    CHECK(after >= before);
                    CHECK((after + size - 1) / size == (before + size - 1) / size);
                } else {
                    CHECK((after < before + size && before < after + size));
                }
                if (rounding == page_rounding::down && before / size >= least) { CHECK(after <= before); }
                if (rounding == page_rounding::dealt) {
                    kept += before;
                    dealt_pages += (after + size - 1) / size;
                    forced += std::max(before / size, least);
                }
            }
            if (rounding == page_rounding::dealt) { CHECK(dealt_pages == std::max(forced, kept / size)); }
        }
    }
}

TEST_CASE("whole_pages: bad fields, bad rows and a small workspace are answered as by any allocator",
          "[allocate][errors]") {
    CHECK(whole_pages<uniform>{}.validate().ok());
    CHECK(whole_pages<uniform>{{}, 0}.validate().code() == errc::invalid_parameter);
    CHECK(whole_pages<uniform>{{}, 16, -1}.validate().code() == errc::invalid_parameter);
    require_allocation_refusals(whole_pages<uniform>{});
    score_memory memory(oracle::matrix{{1, 2, 3}, {4, 5}});
    std::vector<index_t> budgets{7, 7};
    std::vector<std::byte> few(100);
    workspace scratch(few);
    const whole_pages<uniform> pages;
    const status s = pages.allocate(memory.importance_rows(), 2, budgets, scratch);
    CHECK(s.code() == errc::workspace_too_small);
    CHECK(s.needed() == pages.workspace_bytes(2, 5));
    CHECK(budgets == std::vector<index_t>{7, 7});
}

TEST_CASE("whole_pages: what is protected comes from the request, row by row, not from the user again",
          "[allocate][policy][regression]") {
    constexpr index_t page_tokens = 256;
    const layer_data layer = random_layer({.kv_heads = 2, .tokens = 1000}, 1);
    const eviction_request request{.budget = per_head(300),
                                   .protect = {.sink_tokens = 4, .window_tokens = 123}};
    const auto kept = [&](index_t told) {
        const eviction_policy policy{random_score{.seed = 3}, whole_pages{uniform{}, page_tokens, told},
                                     by_importance{}};
        const trace t = run(policy, layer.inputs(), request);
        REQUIRE(t.answer.ok());
        return std::vector<index_t>{t.plan.kept_tokens(0), t.plan.kept_tokens(1)};
    };
    const std::vector<index_t> two_pages_in_all{256, 256}; // 600 tokens are 2 pages
    for (const index_t told : {0, 127, 5}) { CHECK(kept(told) == two_pages_in_all); }

    // A row that is shorter than its protected ranges is all protected; the other has its own number.
    const ragged_cache keys(layer.keys(), {1000, 100});
    const eviction_policy policy{random_score{}, whole_pages{uniform{}, 64}, by_importance{}};
    const trace t = run(policy, kvtrim::layer(keys.get()), request);
    REQUIRE(t.answer.ok());
    CHECK(t.plan.kept_tokens(1) == 100);
    CHECK(t.plan.kept_tokens(0) % 64 == 0);
}

TEST_CASE("whole_pages: over layers too, what is protected comes from the request",
          "[allocate][policy][regression]") {
    const layer_data layer = random_layer({.kv_heads = 2, .tokens = 1000}, 1);
    const std::vector layers(3, kvtrim::layer(layer.keys()));
    const layer_wise over_layers{
        eviction_policy{random_score{.seed = 3}, whole_pages<adaptive>{{}, 64}, by_importance{}}};
    const eviction_request request{.budget = per_head(300),
                                   .protect = {.sink_tokens = 4, .window_tokens = 123}};
    std::vector<keep_plan> plans(3);
    growing_workspace memory;
    REQUIRE(over_layers.plan(std::span(layers), request, plans, memory).ok());
    index_t pages = 0;
    for (const keep_plan& plan : plans) {
        for (index_t g = 0; g < 2; ++g) {
            CHECK(plan.kept_tokens(g) % 64 == 0);
            pages += plan.kept_tokens(g) / 64;
        }
    }
    CHECK(pages == 6 * 300 / 64);
}

TEST_CASE("whole_pages: rows of an engine's own scores may say how much each of them protects",
          "[allocate]") {
    score_memory memory(oracle::matrix{oracle::row(100, 1.0), oracle::row(100, 1.0), oracle::row(0, 1.0)});
    const std::vector<index_t> always{3, 14, 7};
    std::vector<index_t> budgets(3, -7);
    growing_workspace growing;
    const whole_pages<uniform> pages{{}, 10, 1000, page_rounding::down};
    workspace scratch = growing.of_bytes(pages.workspace_bytes(3, 200));
    REQUIRE(pages.allocate({memory.offsets, memory.importance, always}, 50, budgets, scratch).ok());
    CHECK(budgets == std::vector<index_t>{17, 16, 0}); // 3 + 25 and 14 + 25 tokens, down to 20 and 30
}

TEST_CASE("whole_pages: the other allocator's nonsense is refused, not rounded", "[allocate][errors]") {
    score_memory memory(oracle::matrix{{1, 2, 3}, {4, 5, 6}});
    growing_workspace growing;
    workspace scratch = growing.of_bytes(4096);
    std::vector<index_t> budgets(2);
    constexpr index_t most = std::numeric_limits<index_t>::max();
    for (const index_t odd : {index_t{-1}, index_t{4}, most}) {
        const whole_pages<given_budgets> pages{{{odd, 1}}, 10};
        CHECK(pages.allocate(memory.importance_rows(), 2, budgets, scratch).code() ==
              errc::invalid_parameter);
    }
    CHECK(whole_pages<uniform>{{}, most}.validate().code() == errc::invalid_parameter);
    CHECK(whole_pages<uniform>{{}, 16, most}.validate().code() == errc::invalid_parameter);
    const whole_pages<uniform> none{{}, 0};
    CHECK(none.allocate(memory.importance_rows(), 2, budgets, scratch).code() == errc::invalid_parameter);
}

TEST_CASE("whole_pages: in a policy, heads compete for pages, and the pages of the budget are all that a "
          "page table keeps",
          "[allocate][policy][compact]") {
    constexpr index_t page_tokens = 8, heads = 4, tokens = 96;
    const layer_data layer = random_layer({.kv_heads = heads, .tokens = tokens}, 1);
    const protection protect{.sink_tokens = 2, .window_tokens = 5};
    const whole_pages<adaptive> by_pages{{}, page_tokens};
    const eviction_policy policy{random_score{.seed = 3}, by_pages, by_importance{}};
    keep_plan plan;
    growing_workspace memory;
    REQUIRE(policy.plan(layer.inputs(), {.budget = per_head(27), .protect = protect}, plan, memory).ok());
    index_t pages = 0;
    for (index_t g = 0; g < heads; ++g) {
        CHECK(plan.kept_tokens(g) % page_tokens == 0);
        pages += plan.kept_tokens(g) / page_tokens;
    }
    CHECK(pages == heads * 27 / page_tokens);
    int32s indptr, indices(heads * tokens / page_tokens), last(heads, page_tokens);
    for (std::int32_t g = 0; g <= heads; ++g) { indptr.push_back(g * tokens / page_tokens); }
    std::iota(indices.begin(), indices.end(), 0);
    const page_pool pool{.pages = std::ssize(indices), .page_tokens = page_tokens};
    const auto moved = plan_moves(plan, {indptr, indices, last}, pool);
    REQUIRE(moved.answer.ok());
    CHECK(std::ssize(moved.plan.table().indices) == pages);
    for (const auto length : moved.plan.table().last_page_len) { CHECK(length == page_tokens); }
}
