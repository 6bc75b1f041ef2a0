// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/base/token_scores.hpp>

#include "support/catch.hpp"

#include <array>
#include <vector>

using namespace kvtrim;

TEST_CASE("score_rows: row r is the values from offsets r up to offsets r + 1", "[base]") {
    std::vector<float> values{1, 2, 3, 4, 5};
    const std::array<index_t, 4> offsets{0, 2, 2, 5};
    const score_rows rows{offsets, values};
    CHECK(rows.rows() == 3);
    CHECK(rows.length(0) == 2);
    CHECK(rows.length(1) == 0);
    CHECK(rows.row(1).empty());
    CHECK(rows.row(2).data() == values.data() + 2);
    CHECK(rows.row(2).size() == 3);
    rows.row(0)[1] = 9;
    CHECK(values[1] == 9);
}

TEST_CASE("token_scores: stage one ranks by attention where there is one, else by importance", "[base]") {
    std::vector<float> importance{1, 2};
    std::vector<float> attention{3, 4};
    const std::array<index_t, 2> offsets{0, 2};
    const token_scores one{offsets, importance};
    const token_scores two{offsets, importance, attention};
    CHECK(one.rows() == 1);
    CHECK(one.length(0) == 2);
    CHECK(one.attention_rows().values.data() == importance.data());
    CHECK(two.attention_rows().values.data() == attention.data());
    CHECK(two.importance_rows().values.data() == importance.data());
}

TEST_CASE("score_rows: candidates are those of all rows", "[base]") {
    std::vector<float> values(7);
    const std::array<index_t, 3> offsets{2, 4, 7};
    const score_rows rows{offsets, values};
    CHECK(rows.candidates() == 5);
}
