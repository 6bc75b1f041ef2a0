// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/allocate/layer_shares.hpp>

#include "support/allocate.hpp"
#include "support/random_layer.hpp"

#include <kvtrim/policy/baselines.hpp>
#include <kvtrim/policy/layers.hpp>

#include <cmath>
#include <iterator>
#include <limits>
#include <numeric>
#include <sstream>

using namespace kvtrim;
using namespace support;

namespace {

// Scores of 0 for rows of these lengths; kv_heads of them for each layer.
struct even_rows {
    std::vector<index_t> offsets{0};
    std::vector<float> values;
    index_t kv_heads;

    even_rows(const std::vector<index_t>& lengths, index_t heads) : kv_heads(heads) {
        for (const index_t n : lengths) { offsets.push_back(offsets.back() + n); }
        values.resize(static_cast<std::size_t>(offsets.back()));
    }
    template <class Allocator>
    [[nodiscard]] std::vector<index_t> budgets(const Allocator& allocator, index_t total) {
        std::vector<index_t> out(offsets.size() - 1, -1);
        std::vector<std::byte> exact(
            static_cast<std::size_t>(allocator.workspace_bytes(std::ssize(out), offsets.back())));
        workspace scratch(exact);
        const score_rows scores{offsets, values, {}, kv_heads};
        REQUIRE(allocator.allocate(scores, total, out, scratch).ok());
        return out;
    }
};

} // namespace

TEST_CASE("pyramid_shares: budgets fall evenly over the layers and are alike inside one", "[allocate]") {
    even_rows rows(std::vector<index_t>(6, 100), 2);
    // An even share is 20; the first layer has 2 * 20 - 20 / 20, the last one 1.
    CHECK(rows.budgets(pyramid_shares{}, 120) == std::vector<index_t>{39, 39, 20, 20, 1, 1});
    CHECK(rows.budgets(pyramid_shares{.beta = 1}, 120) == std::vector<index_t>(6, 20));
    // A row holds 100: the first layer keeps all, and the fall is as much less steep.
    CHECK(rows.budgets(pyramid_shares{}, 480) == std::vector<index_t>{100, 100, 80, 80, 60, 60});
    CHECK(rows.budgets(pyramid_shares{}, 600) == std::vector<index_t>(6, 100));
    CHECK(rows.budgets(pyramid_shares{}, 0) == std::vector<index_t>(6, 0));
    even_rows one(std::vector<index_t>(2, 50), 0);
    CHECK(one.budgets(pyramid_shares{}, 31) == std::vector<index_t>{16, 15});
}

TEST_CASE("pyramid_shares: the exact schedule of whole layers, where its numbers are whole", "[allocate]") {
    even_rows rows(std::vector<index_t>(5 * 4, 1000), 4);
    const auto budgets = rows.budgets(pyramid_shares{.beta = 4}, 20 * 200);
    std::vector<index_t> layers(5);
    growing_workspace memory;
    workspace scratch = memory.of_bytes(pyramid::workspace_bytes(5));
    REQUIRE(pyramid{.beta = 4}.allocate(1008, 8, 208, layers, scratch).ok());
    for (std::size_t r = 0; r < budgets.size(); ++r) { CHECK(budgets[r] == layers[r / 4] - 8); }
}

TEST_CASE("layer_shares: budgets follow the shares, are met to the token and fit the rows", "[allocate]") {
    even_rows rows({100, 100, 100, 100, 10, 30}, 2);
    const std::vector<double> shares{1, 3, 6};
    CHECK(rows.budgets(layer_shares{shares}, 80) == std::vector<index_t>{5, 5, 15, 15, 10, 30});
    const std::vector<double> none{0, std::numeric_limits<double>::quiet_NaN(), -1};
    CHECK(rows.budgets(layer_shares{none}, 60) == std::vector<index_t>(6, 10));
    support::random r(3);
    for (int n = 0; n < 200; ++n) {
        const std::vector<double> drawn{r.uniform(), r.uniform(), r.one_of({0.0, 1.0, 1e300})};
        const index_t total = r.between(0, 440);
        const auto budgets = rows.budgets(layer_shares{drawn}, total);
        index_t sum = 0;
        for (std::size_t i = 0; i < budgets.size(); ++i) {
            CHECK(budgets[i] >= 0);
            CHECK(budgets[i] <= rows.offsets[i + 1] - rows.offsets[i]);
            sum += budgets[i];
        }
        CHECK(sum == total);
    }
}

TEST_CASE("layer_shares: a table with a share for each KV head gives each row its own, as LU-KV's does",
          "[allocate]") {
    // LU-KV's rule for the slice of a ratio: the whole part of share * tokens, and the largest fractions one more.
    support::random r(8585);
    for (int n = 0; n < 100; ++n) {
        const index_t layers = r.between(1, 4), heads = r.between(1, 4), tokens = r.between(50, 400);
        even_rows rows(std::vector<index_t>(static_cast<std::size_t>(layers * heads), tokens), heads);
        std::vector<double> kept;
        double sum = 0;
        for (index_t row = 0; row < layers * heads; ++row) {
            kept.push_back(r.uniform());
            sum += kept.back() * static_cast<double>(tokens);
        }
        const auto total = static_cast<index_t>(std::floor(sum));
        // The shares are scaled to the total, which here is less than a token below their sum.
        const double scale = static_cast<double>(total) / sum;
        const auto budgets = rows.budgets(layer_shares{kept}, total);
        CAPTURE(n, layers, heads, tokens, total);
        CHECK(std::accumulate(budgets.begin(), budgets.end(), index_t{0}) == total);
        double most_left = 0, least_raised = 1;
        for (std::size_t row = 0; row < budgets.size(); ++row) {
            const double ideal = scale * kept[row] * static_cast<double>(tokens);
            const double fraction = ideal - std::floor(ideal);
            const auto whole = static_cast<index_t>(std::floor(ideal));
            CHECK((budgets[row] == whole || budgets[row] == whole + 1));
            if (budgets[row] == whole) {
                most_left = std::max(most_left, fraction);
            } else {
                least_raised = std::min(least_raised, fraction);
            }
        }
        CHECK(most_left <= least_raised + 1e-9);
    }
}

TEST_CASE("with_layer_shares: a table read from a text file decides what each KV head of each layer keeps",
          "[policy]") {
    std::istringstream file("0.1 0.3\n0.9 0.7\n"); // a line for each layer
    const std::vector<double> shares{std::istream_iterator<double>(file), {}};
    REQUIRE(shares.size() == 4);
    const layer_data first = random_layer({.kv_heads = 2, .group = 1, .tokens = 100, .head_dim = 8}, 1);
    const layer_data second = random_layer({.kv_heads = 2, .group = 1, .tokens = 100, .head_dim = 8}, 2);
    const std::vector in{kvtrim::layer(first.keys()), kvtrim::layer(second.keys())};
    std::vector<keep_plan> plans(2);
    growing_workspace memory;
    const auto policy = with_layer_shares(key_diff(), shares);
    REQUIRE(
        policy.plan(std::span<const decltype(in)::value_type>(in), {.budget = per_head(50)}, plans, memory)
            .ok());
    const auto kept = [&](std::size_t l, index_t g) { return plans[l].kept_tokens(g); };
    CHECK(kept(0, 0) == 10);
    CHECK(kept(0, 1) == 30);
    CHECK(kept(1, 0) == 90);
    CHECK(kept(1, 1) == 70);
}

TEST_CASE("layer shares: wrong numbers are refused with the budgets as they were", "[allocate][errors]") {
    even_rows rows(std::vector<index_t>(4, 10), 2);
    const auto answer = [&](const auto& allocator, index_t kv_heads, index_t total, index_t bytes) {
        std::vector<index_t> budgets(4, 7);
        std::vector<std::byte> exact(static_cast<std::size_t>(bytes));
        workspace scratch(exact);
        const score_rows scores{rows.offsets, rows.values, {}, kv_heads};
        const status s = allocator.allocate(scores, total, budgets, scratch);
        CHECK(budgets == std::vector<index_t>(4, 7));
        return s;
    };
    const index_t enough = pyramid_shares::workspace_bytes(4, 40);
    const std::vector<double> two{1, 2};
    CHECK(answer(pyramid_shares{.beta = 0.5}, 2, 8, enough).code() == errc::invalid_parameter);
    CHECK(answer(pyramid_shares{}, 2, 41, enough).code() == errc::invalid_parameter);
    CHECK(answer(pyramid_shares{}, 3, 8, enough).code() == errc::invalid_table);
    CHECK(answer(pyramid_shares{}, -1, 8, enough).code() == errc::invalid_table);
    CHECK(answer(pyramid_shares{}, 2, 8, enough / 2).code() == errc::workspace_too_small);
    const std::vector<double> three{1, 2, 3};
    CHECK(answer(layer_shares{three}, 2, 8, enough).code() == errc::invalid_parameter);
    const status s = answer(layer_shares{two}, 1, 8, enough);
    CHECK(s.code() == errc::invalid_parameter);
    CHECK(s.needed() == 4);
    CHECK(answer(layer_shares{two}, 2, 8, 0).code() == errc::workspace_too_small);
}

TEST_CASE("policies with shares of layers: each layer keeps its share and its window", "[policy]") {
    std::vector<layer_data> data;
    for (std::uint64_t l = 0; l < 3; ++l) {
        data.push_back(
            random_layer({.kv_heads = 2, .group = 2, .tokens = 108, .head_dim = 16, .queries = 8}, l + 1));
    }
    std::vector<inputs> layers;
    for (const layer_data& d : data) { layers.push_back(d.inputs()); }
    const eviction_request request{.budget = per_head(28), .protect = {.window_tokens = 8}};
    const std::vector<double> shares{1, 4, 1};
    growing_workspace memory;
    const auto kept = [&](const auto& policy) {
        std::vector<keep_plan> plans(3);
        REQUIRE(policy.plan(std::span<const inputs>(layers), request, plans, memory).ok());
        std::vector<index_t> tokens;
        for (const keep_plan& plan : plans) {
            CHECK(plan.kept_tokens(0) == plan.kept_tokens(1));
            CHECK(plan.row(0).back() == 107);
            tokens.push_back(plan.kept_tokens(0));
        }
        return tokens;
    };
    CHECK(kept(pyramidkv()) == std::vector<index_t>{47, 28, 9});
    CHECK(kept(cake(shares)) == std::vector<index_t>{18, 48, 18});
    CHECK(kept(with_layer_shares(defensivekv(), shares)) == std::vector<index_t>{18, 48, 18});

    // The tokens of a layer are those that SnapKV keeps under the layer's budget.
    std::vector<keep_plan> plans(3);
    REQUIRE(pyramidkv().plan(std::span<const inputs>(layers), request, plans, memory).ok());
    keep_plan alone;
    REQUIRE(snapkv().plan(layers[1], request, alone, memory).ok());
    CHECK(plans[1] == alone);
}
