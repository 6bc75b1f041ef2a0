// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/plan/token_scores.hpp>

#include <kvtrim/cache/layer.hpp>

#include "support/catch.hpp"

#include <array>
#include <limits>
#include <string>
#include <vector>

using namespace kvtrim;

TEST_CASE("score_rows: row r is the values from offsets r up to offsets r + 1", "[core]") {
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

TEST_CASE("token_scores: pass one ranks by attention where there is one, else by importance", "[core]") {
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

TEST_CASE("token_scores: without a number of heads all rows are one layer's", "[core]") {
    std::vector<float> importance{1, 2, 3};
    const std::array<index_t, 4> offsets{0, 1, 2, 3};
    const score_rows rows = token_scores{offsets, importance}.importance_rows();
    CHECK(rows.rows_of_a_layer() == 3);
    CHECK(rows.layers() == 1);
}

TEST_CASE("score_rows: candidates are those of all rows", "[core]") {
    std::vector<float> values(7);
    const std::array<index_t, 3> offsets{2, 4, 7};
    const score_rows rows{offsets, values};
    CHECK(rows.candidates() == 5);
}

TEST_CASE(
    "validate: rows of scores ascend within their values, and say of all or of none how much is protected",
    "[core][errors]") {
    std::vector<float> values(7);
    const auto answer = [&](const std::vector<index_t>& offsets, const std::vector<index_t>& always = {}) {
        return validate(score_rows{offsets, values, always}).code();
    };
    CHECK(answer({0}) == errc::ok);
    CHECK(answer({0, 0, 7}) == errc::ok);
    CHECK(answer({2, 4, 7}, {0, 100}) == errc::ok);
    CHECK(answer({}) == errc::invalid_table);
    CHECK(answer({-1, 7}) == errc::invalid_table);
    CHECK(answer({0, 8}) == errc::invalid_table);
    CHECK(answer({0, 5, 4}) == errc::invalid_table);
    CHECK(answer({0, 9, 7}) == errc::invalid_table);
    CHECK(answer({0, 4, 7}, {1}) == errc::invalid_table);
    CHECK(answer({0, 4, 7}, {1, -1}) == errc::invalid_table);
    CHECK(answer({0, 4, 7}, {1, std::numeric_limits<index_t>::max()}) == errc::invalid_table);
}

TEST_CASE(
    "validate_total, validate_budgets: numbers that the rows do not hold are refused with what they hold",
    "[core][errors]") {
    std::vector<float> values(7);
    const std::vector<index_t> offsets{0, 4, 7}, broken{0, 9, 7};
    const score_rows rows{offsets, values};
    const auto total = [&](index_t sum, std::vector<index_t> budgets) {
        return validate_total(rows, sum, budgets);
    };
    CHECK(total(0, {0, 0}).ok());
    CHECK(total(7, {-1, 99}).ok()); // what an allocator will overwrite
    CHECK(total(8, {0, 0}).needed() == 7);
    CHECK(total(-1, {0, 0}).code() == errc::invalid_parameter);
    CHECK(total(3, {0}).needed() == 2);
    CHECK(validate_total({broken, values}, 3, {}).code() == errc::invalid_table);

    const auto budgets = [&](std::vector<index_t> given) { return validate_budgets(rows, given); };
    CHECK(budgets({4, 3}).ok());
    CHECK(budgets({0, 0}).ok());
    CHECK(budgets({4, 4}).needed() == 3);
    CHECK(budgets({-1, 3}).code() == errc::invalid_parameter);
    CHECK(budgets({4, 3, 0}).needed() == 2);
    CHECK(validate_budgets({broken, values}, {}).code() == errc::invalid_table);
}

TEST_CASE("token_scores: what is protected goes with the importance and with the attention", "[core]") {
    std::vector<float> importance{1, 2}, attention{3, 4};
    const std::array<index_t, 2> offsets{0, 2};
    const std::array<index_t, 1> always{5};
    const token_scores scores{offsets, importance, attention, {}, always};
    CHECK(scores.importance_rows().protected_tokens.data() == always.data());
    CHECK(scores.attention_rows().protected_tokens.data() == always.data());
}

namespace {

struct scorer {
    bool refuses = false;
    static constexpr bool writes_attention = true;

    template <class Inputs>
    [[nodiscard]] status validate(const Inputs&, const eviction_request&) const {
        return refuses ? status{errc::ratio_out_of_range, "the scorer's own"} : status{};
    }
};

} // namespace

TEST_CASE("validate_scoring: inputs, protection, offsets and room for all that the scorer writes are asked",
          "[core][errors]") {
    std::vector<float> data(2 * 10 * 4), floats(12), others(12), masses(2);
    const auto in = layer(strided<const float, 3>(data.data(), {2, 10, 4}));
    const eviction_request request{.budget = {}, .protect = {.sink_tokens = 1, .window_tokens = 3}};
    const std::vector<index_t> offsets{0, 6, 12};
    const auto answer = [&](const token_scores& out) {
        return validate_scoring(scorer{}, in, request, out).code();
    };
    const std::span<float> all = floats, other = others, mass = masses;
    CHECK(answer({offsets, all, other, mass}) == errc::ok);
    CHECK(answer({offsets, all, other}) == errc::ok);
    CHECK(answer({offsets, all}) == errc::invalid_parameter);
    CHECK(answer({offsets, all, other.first(11)}) == errc::invalid_parameter);
    CHECK(answer({offsets, all, other, mass.first(1)}) == errc::invalid_parameter);
    CHECK(answer({offsets, all.first(11), other}) == errc::invalid_table);
    for (const std::vector<index_t>& wrong :
         {std::vector<index_t>{0, 5, 11}, {0, 6}, {0, 5, 12}, {0, 6, 5}}) {
        CHECK(answer({wrong, all, other}) == errc::invalid_table);
    }
    std::vector<float> more(20);
    const std::vector<index_t> later{2, 8, 14};
    CHECK(answer({later, more, other}) == errc::invalid_table);
    const token_scores good{offsets, all, other};
    CHECK(validate_scoring(scorer{true}, in, request, good).code() == errc::ratio_out_of_range);
    CHECK(validate_scoring(scorer{}, in, {.budget = {}, .protect = {.sink_tokens = -1}}, good).code() ==
          errc::invalid_parameter);
    constexpr auto none = strided<const float, 3>::invalid("no keys");
    CHECK(std::string(validate_scoring(scorer{}, layer(none), request, good).what()) == "no keys");
}

TEST_CASE("score_rows: offsets so far apart that their difference overflows are refused", "[plan][errors]") {
    constexpr index_t least = std::numeric_limits<index_t>::min(), most = std::numeric_limits<index_t>::max();
    std::vector<float> values(40);
    for (const std::vector<index_t>& offsets :
         {std::vector<index_t>{0, 36, least}, {0, least, 40}, {most, least, 40}, {0, most, 40}}) {
        CHECK(validate(score_rows{offsets, values}).code() == errc::invalid_table);
    }
}
