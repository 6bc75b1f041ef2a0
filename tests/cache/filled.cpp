// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/cache/filled.hpp>

#include <kvtrim/cache/layer.hpp>
#include <kvtrim/compact/compact_in_place.hpp>

#include "support/checks.hpp"

#include <numeric>

using namespace kvtrim;

static_assert(strided_view<filled<float>, 3> && strided_view<filled<const bf16>, 3>);
static_assert(cache_view<filled<float>> && !row_source<filled<float>>);

TEST_CASE("filled: of each head the first rows count, up to its own length", "[core]") {
    std::vector<float> data(2 * 5 * 2);
    std::iota(data.begin(), data.end(), 0.0f);
    const std::vector<index_t> lengths{3, 1};
    const filled<float> cache(strided(data.data(), {2, 5, 2}), lengths);
    CHECK(cache.extent(0) == 2);
    CHECK(cache.extent(1) == 3); // the longest
    CHECK(cache.extent(2) == 2);
    CHECK(row_count(cache, 0) == 3);
    CHECK(row_count(cache, 1) == 1);
    CHECK(cache(1, 0, 1) == 11);
    std::vector<float> tile(4);
    const float_rows rows = read_rows(cache, 0, 1, 2, tile.data());
    CHECK(rows.data == data.data() + 2); // read where it lies
    CHECK(layer(cache).tokens(1) == 1);
    CHECK(layer(cache).longest_row() == 3);
}

TEST_CASE("filled: a growing cache of any strides is cut in place", "[core]") {
    std::vector<float> data(2 * 4); // token-major, [4 tokens, 2 heads, 1]
    std::iota(data.begin(), data.end(), 0.0f);
    const std::vector<index_t> lengths{4, 2};
    const filled<float> cache(strided<float, 3>(data.data(), {2, 4, 1}, {1, 2, 1}), lengths);
    compaction_report report;
    REQUIRE(compact_in_place(cache, support::plan_of({{1, 3}, {1}}), &report).ok());
    CHECK(data == std::vector<float>{2, 3, 6, 3, 4, 5, 6, 7});
    CHECK(report.bytes_before == 6 * 4);
    CHECK(report.bytes_after == 3 * 4);
    CHECK(compact_in_place(cache, support::plan_of({{0}, {2}})).code() == errc::plan_mismatch);
}

TEST_CASE("filled: no heads and empty heads without memory are views", "[core]") {
    const filled<float> no_heads(strided<float, 3>(nullptr, {0, 0, 4}), {});
    CHECK(no_heads.extent(1) == 0);
    const std::vector<index_t> none{0, 0};
    CHECK(filled<float>(strided<float, 3>(nullptr, {2, 0, 4}), none).rows(1) == 0);
}

TEST_CASE("filled: lengths that the cache does not have give an empty view that says why", "[core][errors]") {
    std::vector<float> data(8);
    const auto answer = [](const strided<float, 3>& cache, const std::vector<index_t>& lengths) {
        const filled<float> view(cache, lengths);
        const status s = view.validate();
        for (std::size_t r = 0; r < 3 && !s.ok(); ++r) { CHECK(view.extent(r) == 0); }
        CHECK(layer(view).validate() == s);
        return std::string(s.what());
    };
    const strided cache(data.data(), {2, 4, 1});
    CHECK(answer(cache, {1}) == "filled: lengths must have one entry per head");
    CHECK(answer(cache, {}) == "filled: lengths must have one entry per head");
    CHECK(answer(cache, {1, 5}) == "filled: a length must be between 0 and the capacity");
    CHECK(answer(cache, {-1, 2}) == "filled: a length must be between 0 and the capacity");
    CHECK(answer(cache, {4, 0}) == "ok");
    CHECK(answer(strided<float, 3>(nullptr, {2, 4, 1}), {4, 0}) == "strided: data must not be null");
}
