// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/cache/read_rows.hpp>

#include "core/own_views.hpp"
#include "support/catch.hpp"
#include "support/random_layer.hpp"

#include <cmath>
#include <limits>
#include <vector>

namespace {

using namespace kvtrim;

support::layer_data numbers(std::uint64_t seed) {
    support::random r(seed);
    return support::random_layer(
        {.kv_heads = r.between(1, 3), .tokens = r.between(1, 40), .head_dim = r.between(1, 20), .queries = 1},
        seed);
}

std::vector<float> loaded(const auto& v, index_t head, index_t first, index_t count) {
    std::vector<float> tile(static_cast<std::size_t>(count * extent(v, 2)));
    load_rows(v, head, first, count, tile.data());
    return tile;
}

std::vector<float> read(const auto& v, index_t head, index_t first, index_t count) {
    const index_t length = extent(v, 2);
    std::vector<float> tile(static_cast<std::size_t>(count * length), -77.0f);
    const float_rows rows = read_rows(v, head, first, count, tile.data());
    std::vector<float> copy;
    for (index_t t = 0; t < count; ++t) {
        copy.insert(copy.end(), rows.data + t * rows.stride, rows.data + t * rows.stride + length);
    }
    return copy;
}

// Whether random runs of rows, empty ones too, are the floats that element(head, token, channel) says.
template <class View, class Element>
bool rows_are(const View& v, Element&& element, std::uint64_t seed) {
    support::random r(seed);
    for (int i = 0; i < 12; ++i) {
        const index_t head = r.between(0, extent(v, 0) - 1);
        const index_t first = r.between(0, row_count(v, head));
        const index_t count = r.between(0, row_count(v, head) - first);
        std::vector<float> expected;
        for (index_t t = first; t < first + count; ++t) {
            for (index_t d = 0; d < extent(v, 2); ++d) { expected.push_back(element(head, t, d)); }
        }
        if (loaded(v, head, first, count) != expected || read(v, head, first, count) != expected) {
            return false;
        }
    }
    return true;
}

template <class T>
bool all_layouts_agree(const support::view& v, std::uint64_t seed) {
    using support::layout;
    const auto rounded = [&](index_t h, index_t t, index_t d) {
        return to_float(element_traits<T>::from_float(v(h, t, d)));
    };
    bool agree = true;
    for (const layout order :
         {layout::head_major, layout::token_major, layout::transposed, layout::reversed, layout::gapped}) {
        const auto stored = support::store<T>(v, order);
        agree = agree && rows_are(stored.get(), rounded, seed);
    }
    return agree;
}

} // namespace

TEST_CASE("load_rows, read_rows: every memory order of every element gives the same floats", "[core]") {
    for (std::uint64_t seed = 0; seed < 40; ++seed) {
        const support::layer_data layer = numbers(seed);
        CAPTURE(seed);
        CHECK(all_layouts_agree<float>(layer.keys(), seed));
        CHECK(all_layouts_agree<double>(layer.keys(), seed));
        CHECK(all_layouts_agree<f16>(layer.keys(), seed));
        CHECK(all_layouts_agree<bf16>(layer.keys(), seed));
    }
}

TEST_CASE("load_rows, read_rows: no dimension needs to be contiguous, and any may run backwards", "[core]") {
    support::random r(9);
    const std::vector<float> memory = [&] {
        std::vector<float> values(4000);
        for (float& x : values) { x = static_cast<float>(r.normal()); }
        return values;
    }();
    const std::vector<std::array<index_t, 3>> all_strides{{2, 6, 90},    {2, -90, 6}, {90, 2, 30},
                                                          {-90, 30, -2}, {1, 3, 45},  {300, 1, -20},
                                                          {0, 20, 3},    {45, 0, 1}};
    for (const auto& strides : all_strides) {
        CAPTURE(strides);
        const strided<const float, 3> v(memory.data() + 2000, {3, 15, 5}, strides);
        CHECK(rows_are(v, v, 9));
    }
}

TEST_CASE("load_rows, read_rows: indexable, decoding and mdspan-like sources give the same floats",
          "[core]") {
    for (std::uint64_t seed = 100; seed < 130; ++seed) {
        const support::layer_data layer = numbers(seed);
        const support::view v = layer.keys();
        const own::mdspan_like<const float> span(
            v.data_handle(),
            {static_cast<std::int32_t>(v.extent(0)), static_cast<std::int32_t>(v.extent(1)),
             static_cast<std::int32_t>(v.extent(2))},
            {static_cast<std::int32_t>(v.stride(0)), static_cast<std::int32_t>(v.stride(1)), 1});
        CAPTURE(seed);
        CHECK(rows_are(support::generic_view{v}, v, seed));
        CHECK(rows_are(support::decoding_source(v), v, seed));
        CHECK(rows_are(span, v, seed));
        const own::quantised codes(v);
        CHECK(rows_are(
            codes, [&](index_t h, index_t t, index_t d) { return codes.decoded(h, t, d); }, seed));
        const own::indexable lazy{{3, 9, 5}};
        CHECK(rows_are(lazy, lazy, seed));
    }
}

TEST_CASE("load_rows: a user's own element type is decoded in any memory order", "[core]") {
    std::vector<own::fp8> codes;
    for (int i = 0; i < 240; ++i) { codes.push_back({static_cast<std::uint8_t>(i)}); }
    const auto decoded = [](const auto& v) {
        return [&v](index_t h, index_t t, index_t d) { return to_float(v(h, t, d)); };
    };
    const strided<const own::fp8, 3> rows(codes.data(), {2, 15, 8});
    const strided<const own::fp8, 3> channels(codes.data(), {2, 15, 8}, {120, 1, 15});
    CHECK(rows_are(rows, decoded(rows), 1));
    CHECK(rows_are(channels, decoded(channels), 2));
    CHECK(loaded(rows, 0, 7, 1) == std::vector<float>{1, 1.125f, 1.25f, 1.375f, 1.5f, 1.625f, 1.75f, 1.875f});
}

TEST_CASE("load_rows: NaN, infinities and the sign of zero come through", "[core]") {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const float infinity = std::numeric_limits<float>::infinity();
    const std::vector<float> data{nan, infinity, -infinity, -0.0f};
    const strided<const float, 3> v(data.data(), {1, 1, 4});
    const auto same = [&](const std::vector<float>& row) {
        return std::isnan(row[0]) && row[1] == infinity && row[2] == -infinity && std::signbit(row[3]);
    };
    CHECK(same(loaded(v, 0, 0, 1)));
    CHECK(same(loaded(support::store<f16>(v, support::layout::transposed).get(), 0, 0, 1)));
    CHECK(same(loaded(support::store<bf16>(v, support::layout::gapped).get(), 0, 0, 1)));
    CHECK(same(loaded(support::generic_view{v}, 0, 0, 1)));
}

TEST_CASE("read_rows: contiguous floats are not copied, all else goes through the tile", "[core]") {
    const support::layer_data layer = support::random_layer({.tokens = 9, .head_dim = 6}, 7);
    const support::view v = layer.keys();
    std::vector<float> tile(static_cast<std::size_t>(v.extent(1) * v.extent(2)));
    const auto data_of = [&](const auto& source) {
        return read_rows(source, 0, 0, v.extent(1), tile.data()).data;
    };
    const auto gapped = support::store(v, support::layout::gapped);
    CHECK(data_of(v) == v.data_handle());
    CHECK(data_of(gapped.get()) == gapped.elements.data());
    CHECK(read_rows(gapped.get(), 0, 0, 1, tile.data()).stride == v.extent(2) + 3);
    CHECK(data_of(support::store(v, support::layout::transposed).get()) == tile.data());
    CHECK(data_of(support::store<double>(v, support::layout::head_major).get()) == tile.data());
    CHECK(data_of(support::generic_view{v}) == tile.data());
    CHECK(data_of(support::decoding_source(v)) == tile.data());
}

TEST_CASE("load_rows, read_rows: rows without elements need no memory", "[core][odd]") {
    for (const index_t step : {1, 3}) {
        const strided<const float, 3> none(nullptr, {2, 3, 0}, {30, 10, step});
        float* const nowhere = nullptr;
        load_rows(none, 1, 1, 2, nowhere);
        CHECK(read_rows(none, 1, 1, 2, nowhere).data == nullptr);
    }
}

TEST_CASE("load_rows: a view whose elements are not its memory is read through its elements", "[core]") {
    std::vector<float> data{1, 2, 3, 4};
    const own::scaled_mdspan<const float> v{{data.data(), {1, 2, 2}, {4, 2, 1}}, 10.0f};
    CHECK(loaded(v, 0, 0, 2) == std::vector<float>{10, 20, 30, 40});
}
