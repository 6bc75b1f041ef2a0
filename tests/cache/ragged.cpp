// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/cache/ragged.hpp>

#include "support/checks.hpp"

#include <cstdint>
#include <numeric>
#include <vector>

namespace {

using namespace kvtrim;
using offsets = std::vector<std::int32_t>;

static_assert(row_source<ragged<const float>> && cache_view<ragged<bf16>>);
static_assert(!strided_view<ragged<float>, 3>);

} // namespace

TEST_CASE("ragged: head h holds the rows from offsets h up to offsets h + 1 of the data", "[core]") {
    std::vector<float> data(16);
    std::iota(data.begin(), data.end(), 0.0f);
    const offsets ends{0, 3, 3, 7, 8};
    const ragged<float> cache(data.data(), ends, 2);
    CHECK(cache.extent(0) == 4);
    CHECK(cache.extent(1) == 4); // the longest
    CHECK(cache.extent(2) == 2);
    CHECK(cache.rows(0) == 3);
    CHECK(cache.rows(1) == 0);
    CHECK(row_count(cache, 2) == 4);
    CHECK(cache.row(2, 1) == data.data() + 8);
    CHECK(cache.data_handle() == data.data());
    CHECK(cache.offsets().data() == ends.data());
    std::vector<float> tile(4);
    load_rows(cache, 2, 2, 2, tile.data());
    CHECK(tile == std::vector<float>{10, 11, 12, 13});
    const float_rows rows = read_rows(cache, 0, 1, 2, tile.data());
    CHECK(rows.stride == 2);
    CHECK(std::vector<float>(rows.data, rows.data + 4) == std::vector<float>{2, 3, 4, 5});
}

TEST_CASE("ragged: 16-bit elements are decoded", "[core]") {
    const std::vector<bf16> data{{0x3f80}, {0x4000}, {0xc040}};
    const offsets ends{0, 1, 3};
    std::vector<float> tile(2);
    load_rows(ragged<const bf16>(data.data(), ends, 1), 1, 0, 2, tile.data());
    CHECK(tile == std::vector<float>{2, -3});
}

TEST_CASE("ragged: no heads, empty heads and null data without rows are views", "[core]") {
    const ragged<float> no_heads(nullptr, offsets{0}, 4);
    CHECK(no_heads.extent(0) == 0);
    CHECK(no_heads.extent(1) == 0);
    const offsets none{0, 0, 0};
    const ragged<float> no_rows(nullptr, none, 4);
    CHECK(no_rows.extent(0) == 2);
    CHECK(no_rows.rows(1) == 0);
    load_rows(no_rows, 0, 0, 0, static_cast<float*>(nullptr));
}

TEST_CASE("ragged: wrong offsets, a wrong head_dim and null data give an empty view that says why",
          "[core][errors]") {
    std::vector<float> data(8);
    const auto answer = [&](float* memory, const offsets& ends, index_t head_dim, errc code) {
        const ragged<float> cache(memory, ends, head_dim);
        const status s = cache.validate();
        CHECK(s.code() == code);
        for (std::size_t r = 0; r < 3 && !s.ok(); ++r) { CHECK(cache.extent(r) == 0); }
        CHECK(kvtrim::validate(cache) == s);
        return std::string(s.what());
    };
    CHECK(answer(data.data(), {}, 2, errc::invalid_table) == "ragged: offsets must start with 0");
    CHECK(answer(data.data(), {1, 2}, 2, errc::invalid_table) == "ragged: offsets must start with 0");
    CHECK(answer(data.data(), {0, 3, 2, 4}, 2, errc::invalid_table) == "ragged: offsets must not decrease");
    CHECK(answer(data.data(), {0, -1}, 2, errc::invalid_table) == "ragged: offsets must not decrease");
    CHECK(answer(data.data(), {0, 2}, -1, errc::invalid_parameter) ==
          "ragged: head_dim must not be negative");
    CHECK(answer(data.data(), {0, 2}, index_t{1} << 60, errc::invalid_parameter) ==
          "ragged: more elements than memory can hold");
    CHECK(answer(nullptr, {0, 2}, 2, errc::invalid_parameter) == "ragged: data must not be null");
    CHECK(answer(data.data(), {0, 2, 4}, 2, errc::ok) == "ok");
}
