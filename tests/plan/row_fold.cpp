// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/plan/row_fold.hpp>

#include "support/catch.hpp"

#include <algorithm>
#include <array>
#include <numeric>
#include <vector>

using namespace kvtrim;

TEST_CASE(
    "row_fold: of a row that is longer the first columns are read, and nothing behind the fold is written",
    "[rerank]") {
    for (const head_reduction how :
         {head_reduction::sum, head_reduction::maximum, head_reduction::votes, head_reduction::squares}) {
        growing_workspace memory;
        workspace scratch = memory.of_bytes(4096);
        const row_fold fold(how, 16, scratch);
        const auto behind = scratch.take<float>(16);
        REQUIRE(scratch.fits());
        std::fill(behind.begin(), behind.end(), 7.0f);
        fold.begin();
        std::vector<float> row(32);
        std::iota(row.begin(), row.end(), 1.0f);
        fold.add(row, 3);
        const auto folded = fold.finish(3);
        REQUIRE(folded.size() == 16);
        CHECK(*std::max_element(folded.begin(), folded.end()) == folded[15]);
        CHECK(std::ranges::all_of(behind, [](float x) { return x == 7.0f; }));
    }
}
