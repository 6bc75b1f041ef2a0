// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Page tables as engines really send them: a wrong length or page must not be read, and must not lose tokens in silence.

#include "compact/random_pages.hpp"

#include <kvtrim/cache/paged_rows.hpp>
#include <kvtrim/policy/baselines.hpp>

using namespace kvtrim;
using support::int32s;

namespace {

struct answers {
    status as_shared_pages, as_pages_of_heads, as_moves;
};

// What planning an eviction over a pool of 8 pages of 16 tokens answers, and planning the moves after one.
answers plan_over(const page_table& table, index_t pool_pages = 8) {
    std::vector<float> pool(8 * 16 * 4, 1);
    const page_layout layout = nhd_pages(16, 1, 4, pool_pages);
    keep_plan plan = support::made_before();
    growing_workspace memory;
    const auto planned = [&](const auto& keys) {
        const status s = key_norm().plan(layer(keys), {.budget = per_head(8)}, plan, memory);
        if (!s.ok()) {
            for (const std::size_t r : {0u, 1u, 2u}) { CHECK(keys.extent(r) == 0); }
            CHECK(plan == support::made_before());
        }
        plan = support::made_before();
        return s;
    };
    answers a;
    a.as_shared_pages = planned(paged_rows<float>(pool.data(), layout, table, 0, 1, 4));
    a.as_pages_of_heads = planned(paged_head_rows<float>(pool.data(), layout, table, 0, 1, 4));
    const auto moves =
        support::plan_moves(support::plan_of({{0, 1}}), table, {.pages = 8, .page_tokens = 16});
    if (!moves.answer.ok()) { CHECK(moves.plan == move_plan{}); }
    a.as_moves = moves.answer;
    return a;
}

void check_all(const answers& a, errc code) {
    CHECK(a.as_shared_pages.code() == code);
    CHECK(a.as_pages_of_heads.code() == code);
    CHECK(a.as_moves.code() == code);
}

} // namespace

// flashinfer#320: an engine that computes tokens % page_tokens sends 0 for a full page; half of the tokens were lost.
TEST_CASE("a last_page_len of 0, of more than a page or below 0 is a wrong table, not other tokens",
          "[regression][paged]") {
    const int32s indptr{0, 2}, pages{3, 5};
    for (const std::int32_t last : {0, 17, 20, -1, std::numeric_limits<std::int32_t>::max(),
                                    std::numeric_limits<std::int32_t>::min()}) {
        CAPTURE(last);
        check_all(plan_over({indptr, pages, std::span(&last, 1)}), errc::invalid_table);
    }
    for (const std::int32_t last : {1, 16}) {
        check_all(plan_over({indptr, pages, std::span(&last, 1)}), errc::ok);
    }
}

TEST_CASE(
    "pages outside the pool, offsets that lead out of the table and tables of other sizes are wrong tables",
    "[regression][paged]") {
    const int32s two{0, 2}, last{16}, good{3, 5};
    for (const int32s& pages :
         {int32s{3, 8}, int32s{-1, 5}, int32s{3, std::numeric_limits<std::int32_t>::max()}}) {
        check_all(plan_over({two, pages, last}), errc::invalid_table);
    }
    for (const int32s& indptr :
         {int32s{0, 3}, int32s{-1, 1}, int32s{2, 0}, int32s{0}, int32s{}, int32s{0, 1, 2}}) {
        CAPTURE(indptr.size());
        check_all(plan_over({indptr, good, last}), errc::invalid_table);
    }
    check_all(plan_over({two, good, {}}), errc::invalid_table);
    // A pool of unknown size: a page number is still one that 32 bits can count slots of.
    const int32s far{3, std::numeric_limits<std::int32_t>::max() / 16 + 1};
    CHECK(plan_over({two, far, last}, page_layout::unknown_pages).as_shared_pages.code() ==
          errc::invalid_table);
}
