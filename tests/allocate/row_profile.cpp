// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/allocate/row_profile.hpp>

#include <kvtrim/allocate/above_threshold.hpp>
#include <kvtrim/allocate/adaptive.hpp>
#include <kvtrim/policy/layer_wise.hpp>
#include <kvtrim/rerank/by_importance.hpp>
#include <kvtrim/score/random_score.hpp>

#include "support/allocate.hpp"

#include <cmath>

using namespace kvtrim;
using namespace support;

namespace {

oracle::matrix random_rows(support::random& r, index_t rows, index_t length) {
    oracle::matrix all;
    for (index_t i = 0; i < rows; ++i) {
        oracle::row row;
        const double scale = std::exp(3 * r.normal());
        for (index_t t = 0; t < length; ++t) { row.push_back(scale * std::exp(r.normal())); }
        all.push_back(row);
    }
    return all;
}

} // namespace

TEST_CASE("row_profile: a table of one prompt deals out as that prompt's own scores would", "[allocate]") {
    support::random r(61);
    for (int i = 0; i < 40; ++i) {
        const oracle::matrix rows = random_rows(r, r.between(1, 9), r.one_of({65, 400, 1000}));
        score_memory memory(rows);
        row_profile profile;
        REQUIRE(profile.add(memory.importance_rows()).ok());
        const std::size_t total = total_length(rows) * static_cast<std::size_t>(r.between(1, 9)) / 10;
        const oracle::counts got = allocate(profile.budgets(), rows, total);
        const oracle::counts expected = allocate(adaptive{.safeguard_ratio = 0}, rows, total);
        CHECK(sum_of(got) == total);
        for (std::size_t g = 0; g < rows.size(); ++g) {
            const double difference = static_cast<double>(got[g]) - static_cast<double>(expected[g]);
            CHECK(std::abs(difference) <= 2 + 0.03 * static_cast<double>(rows[g].size()));
        }
    }
}

TEST_CASE("row_profile: the sum is the total whatever the scores at hand, and equal rows are equal",
          "[allocate]") {
    support::random r(62);
    for (int i = 0; i < 60; ++i) {
        const index_t count = r.between(1, 7);
        oracle::matrix known = random_rows(r, count, r.between(1, 80));
        if (r.chance(0.3)) {
            known.assign(static_cast<std::size_t>(count), oracle::row(10, 1.0));
        } // one level
        score_memory memory(known);
        row_profile profile;
        REQUIRE(profile.add(memory.importance_rows()).ok());
        REQUIRE(profile.add(memory.importance_rows()).ok());
        const oracle::matrix rows = random_rows(r, count, r.between(1, 60));
        const auto total = static_cast<std::size_t>(r.between(0, static_cast<index_t>(total_length(rows))));
        const oracle::counts budgets = allocate(profile.budgets(), rows, total);
        CHECK(sum_of(budgets) == total);
        for (std::size_t g = 0; g < rows.size(); ++g) {
            CHECK(budgets[g] <= rows[g].size());
            if (known[0].size() == 10 && known[0][0] == 1.0) { CHECK(budgets[g] + 1 >= budgets[0]); }
        }
    }
}

TEST_CASE("row_profile: above its threshold for a share lies that share of the scores it was made of",
          "[allocate]") {
    support::random r(64);
    for (int i = 0; i < 40; ++i) {
        const oracle::matrix rows = random_rows(r, r.between(1, 9), r.one_of({65, 400, 1000}));
        score_memory memory(rows);
        row_profile profile;
        REQUIRE(profile.add(memory.importance_rows()).ok());
        const double share = 0.05 + 0.9 * r.uniform();
        const auto threshold = static_cast<double>(profile.budgets().threshold_of(share));
        double above = 0;
        for (const oracle::row& row : rows) {
            above += static_cast<double>(
                std::count_if(row.begin(), row.end(), [&](double x) { return x > threshold; }));
        }
        CHECK(above / static_cast<double>(total_length(rows)) == Approx(share).margin(0.03));
        // As an allocator: the same rows, and no more than the bound.
        const std::size_t bound = total_length(rows) / 2;
        const above_threshold by_table{static_cast<float>(threshold)};
        CHECK(static_cast<double>(sum_of(allocate(by_table, rows, total_length(rows)))) == above);
        CHECK(sum_of(allocate(by_table, rows, bound)) == std::min(bound, static_cast<std::size_t>(above)));
    }
}

TEST_CASE("row_profile: a threshold for no share keeps nothing, one for all of them everything",
          "[allocate][odd]") {
    const oracle::matrix rows{{4, 2, 1}, {8, 3, 1}};
    score_memory memory(rows);
    row_profile profile;
    CHECK(profile.budgets().threshold_of(0.5) == 0);
    REQUIRE(profile.add(memory.importance_rows()).ok());
    for (const double none : {0.0, -1.0, std::numeric_limits<double>::quiet_NaN()}) {
        CHECK(profile.budgets().threshold_of(none) >= 8);
        CHECK(std::isfinite(profile.budgets().threshold_of(none)));
    }
    const oracle::matrix others{{0, -5, 1e-30}, {0, 0, 0}};
    for (const double all : {1.0, 2.0}) {
        CHECK(sum_of(allocate(above_threshold{profile.budgets().threshold_of(all)}, others, 6)) == 6);
    }
}

TEST_CASE("row_profile: odd scores count as the smallest, and rows of other tables are refused",
          "[allocate][errors]") {
    score_memory odd(oracle::matrix{{NAN, INFINITY, -1, 0}, {1, 2, 3, 4}});
    row_profile profile;
    CHECK(profile.budgets().validate().code() == errc::invalid_parameter);
    REQUIRE(profile.add(odd.importance_rows()).ok());
    CHECK(allocate(profile.budgets(), {{1, 1, 1, 1}, {1, 1, 1, 1}}, 4) == oracle::counts{0, 4});
    score_memory three(oracle::matrix{{1}, {2}, {3}});
    CHECK(profile.add(three.importance_rows()).code() == errc::invalid_parameter);
    score_memory hole(oracle::matrix{{1}, {}});
    CHECK(profile.add(hole.importance_rows()).code() == errc::invalid_parameter);
    CHECK(profile.prompts() == 1);
    require_allocation_refusals(profile.budgets());
    std::vector<index_t> budgets(3);
    std::vector<std::byte> bytes(4096);
    workspace scratch(bytes), none({});
    CHECK(profile.budgets().allocate(three.importance_rows(), 2, budgets, scratch).needed() == 2);
    score_memory two(oracle::matrix{{1}, {2}});
    budgets.resize(2);
    CHECK(profile.budgets().allocate(two.importance_rows(), 1, budgets, none).code() ==
          errc::workspace_too_small);
}

TEST_CASE("row_profile: saved bytes are the table, and hostile ones are refused", "[allocate][state]") {
    support::random r(63);
    score_memory memory(random_rows(r, 4, 100));
    row_profile profile;
    REQUIRE(profile.add(memory.importance_rows()).ok());
    std::vector<std::byte> bytes(static_cast<std::size_t>(saved_bytes(profile)));
    REQUIRE(save(profile, bytes).ok());
    row_profile other;
    REQUIRE(restore(other, bytes).ok());
    const oracle::matrix rows = random_rows(r, 4, 50);
    CHECK(allocate(other.budgets(), rows, 70) == allocate(profile.budgets(), rows, 70));
    for (std::size_t cut = 0; cut < bytes.size(); cut += 1 + cut / 4) {
        CHECK(!restore(other, std::span(bytes).first(cut)).ok());
    }
    const std::size_t first = bytes.size() - 4 * profiled_budgets::points * sizeof(float); // of the curves
    for (const float odd :
         {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
        std::vector<std::byte> spoilt = bytes;
        std::memcpy(spoilt.data() + first, &odd, sizeof odd);
        CHECK(restore(other, spoilt).code() == errc::invalid_parameter);
    }
    for (int i = 0; i < 400; ++i) { // what is restored can be used
        std::vector<std::byte> spoilt = bytes;
        spoilt[r.bits() % bytes.size()] = static_cast<std::byte>(r.bits());
        if (restore(other, spoilt).ok() && other.rows() == 4) {
            CHECK(sum_of(allocate(other.budgets(), rows, 70)) == 70);
        }
    }
}

TEST_CASE("row_profile: a mean that rounding would let rise along its curve is saved and restored",
          "[allocate][regression]") {
    const std::vector<index_t> offsets{0, 2};
    std::vector<float> near{0x1.8608d2p-1f, 0x1.8608dp-1f}, equal{0x1.a8p-6f, 0x1.a8p-6f};
    row_profile profile;
    REQUIRE(profile.add({offsets, near}).ok());
    REQUIRE(profile.add({offsets, equal}).ok());
    std::vector<std::byte> bytes(static_cast<std::size_t>(saved_bytes(profile)));
    REQUIRE(save(profile, bytes).ok());
    row_profile other;
    CHECK(restore(other, bytes).ok());
}

TEST_CASE("row_profile: rows of all layers get their tokens from the table, whatever the prompt's scores",
          "[allocate][policy]") {
    const oracle::matrix known{oracle::row(50, 8.0), oracle::row(50, 1.0), oracle::row(50, 2.0),
                               oracle::row(50, 1.5)};
    score_memory memory(known);
    row_profile profile;
    REQUIRE(profile.add(memory.importance_rows()).ok());
    const layer_data layer = random_layer({.kv_heads = 2, .group = 1, .tokens = 44}, 1);
    const std::vector<decltype(kvtrim::layer(layer.keys()))> layers{kvtrim::layer(layer.keys()),
                                                                    kvtrim::layer(layer.keys())};
    const layer_wise policy{eviction_policy{random_score{3}, profile.budgets(), by_importance{}}};
    std::vector<keep_plan> plans(2);
    growing_workspace memory_of_plan;
    REQUIRE(policy
                .plan(std::span(layers), {.budget = per_head(20), .protect = {.sink_tokens = 4}},
                      std::span(plans), memory_of_plan)
                .ok());
    CHECK(plans[0].kept_tokens(0) == 44);
    CHECK(plans[0].kept_tokens(1) == 4);
    CHECK(plans[1].kept_tokens(0) == 28);
    CHECK(plans[1].kept_tokens(1) == 4);
}

TEST_CASE("row_profile: the share above a score is linear between the points, and equal points are not above "
          "their own",
          "[allocate]") {
    constexpr index_t points = profiled_budgets::points;
    std::vector<float> falling, steps;
    for (index_t i = 0; i < points; ++i) {
        falling.push_back(static_cast<float>(points - 1 - i));
        steps.push_back(i < points / 2 ? 1.0f : 0.0f);
    }
    const auto of_points = [](double count) { return count / static_cast<double>(points - 1); };
    const profiled_budgets line{falling}, plateaus{steps};
    CHECK(line.share_above(0, static_cast<double>(points)) == 0);
    CHECK(line.share_above(0, static_cast<double>(points - 1)) == 0);
    CHECK(line.share_above(0, 2.0) == Approx(of_points(static_cast<double>(points - 3))));
    CHECK(line.share_above(0, 1.5) == Approx(of_points(static_cast<double>(points) - 2.5)));
    CHECK(line.share_above(0, -1.0) == 1);
    CHECK(plateaus.share_above(0, 1.0) == 0);
    CHECK(plateaus.share_above(0, 0.5) == Approx(of_points(static_cast<double>(points / 2) - 0.5)));
    CHECK(plateaus.share_above(0, 0.0) == Approx(of_points(static_cast<double>(points / 2))));
}

TEST_CASE("row_profile: the largest finite score ranks first, what is not finite or positive last",
          "[allocate][odd]") {
    constexpr float largest = std::numeric_limits<float>::max(), smallest = std::numeric_limits<float>::min();
    const std::vector<index_t> offsets{0, 5};
    std::vector<float> scores{std::numeric_limits<float>::infinity(), largest, -1.0f,
                              std::numeric_limits<float>::quiet_NaN(), smallest};
    row_profile profile;
    REQUIRE(profile.add({offsets, scores}).ok());
    const auto curve = profile.budgets().curves;
    CHECK(curve.front() == std::log(largest));
    CHECK(curve[static_cast<std::size_t>(profiled_budgets::points / 2)] == std::log(smallest));
    CHECK(curve.back() == std::log(smallest));
}

TEST_CASE("row_profile: a state of more prompts than a float64 counts is refused", "[allocate][errors]") {
    const std::vector<index_t> offsets{0, 2};
    std::vector<float> scores{2.0f, 1.0f};
    const auto saved = [](const row_profile& profile) {
        std::vector<std::byte> bytes(static_cast<std::size_t>(saved_bytes(profile)));
        REQUIRE(save(profile, bytes).ok());
        return bytes;
    };
    row_profile profile;
    REQUIRE(profile.add({offsets, scores}).ok());
    std::vector<std::byte> bytes = saved(profile);
    REQUIRE(profile.add({offsets, scores}).ok());
    const auto prompts = std::ranges::mismatch(bytes, saved(profile)).in1; // the one number that differs
    const auto answer = [&](std::int64_t count) {
        std::memcpy(&*prompts, &count, sizeof count);
        row_profile other;
        return restore(other, bytes).code();
    };
    CHECK(answer(std::int64_t{1} << 53) == errc::ok);
    CHECK(answer((std::int64_t{1} << 53) + 1) == errc::invalid_parameter);
    CHECK(answer(-1) == errc::invalid_parameter);
}
