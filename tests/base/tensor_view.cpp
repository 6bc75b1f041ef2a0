// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/base/tensor_view.hpp>

#include "base/own_views.hpp"
#include "support/checks.hpp"

#include <array>
#include <numeric>
#include <type_traits>
#include <vector>

namespace {

using namespace kvtrim;

static_assert(strided_view<strided<float, 3>, 3> && strided_view<strided<const bf16, 2>, 2>);
static_assert(!tensor_view<strided<float, 2>, 3> && !tensor_view<strided<float, 3>, 2>);
static_assert(tensor_view<own::indexable, 3> && !strided_view<own::indexable, 3>);
static_assert(strided_view<own::mdspan_like<const float>, 3>);
static_assert(!tensor_view<std::vector<float>, 3> && !tensor_view<float, 3>);
static_assert(std::is_trivially_copyable_v<strided<const f16, 3>>);

std::vector<int> counting_up(int count) {
    std::vector<int> values(static_cast<std::size_t>(count));
    std::iota(values.begin(), values.end(), 0);
    return values;
}

} // namespace

TEST_CASE("strided: without strides it is row-major", "[base]") {
    std::vector<float> data(2 * 3 * 4);
    const strided<float, 3> v(data.data(), {2, 3, 4});
    CHECK(v.extent(0) == 2);
    CHECK(v.extent(1) == 3);
    CHECK(v.extent(2) == 4);
    CHECK(v.stride(0) == 12);
    CHECK(v.stride(1) == 4);
    CHECK(v.stride(2) == 1);
    CHECK(v.data_handle() == data.data());
    CHECK(&v(1, 2, 3) == data.data() + 23);
}

TEST_CASE("strided: an element lies at the sum of index times stride, in any memory order", "[base]") {
    std::vector<float> data(120);
    float* const middle = data.data() + 60;
    const std::array<std::array<index_t, 3>, 4> all_strides{
        {{1, 2, 6}, {4, 1, 12}, {-1, 20, -5}, {-30, -10, -1}}};
    for (const auto& strides : all_strides) {
        const strided<float, 3> v(middle, {2, 3, 2}, strides);
        for (index_t i = 0; i < 2; ++i) {
            for (index_t j = 0; j < 3; ++j) {
                for (index_t k = 0; k < 2; ++k) {
                    CHECK(&v(i, j, k) == middle + i * strides[0] + j * strides[1] + k * strides[2]);
                    CHECK(&at(v, i, j, k) == &v(i, j, k));
                }
            }
        }
    }
}

TEST_CASE("strided: writing through the view changes the caller's memory", "[base]") {
    std::vector<f16> data(6);
    const strided<f16, 2> v(data.data(), {2, 3});
    v(1, 1) = element_traits<f16>::from_float(1.5f);
    CHECK(to_float(data[4]) == 1.5f);
}

TEST_CASE("strided: element type and rank are deduced from a pointer and braces", "[base]") {
    std::vector<float> data(24);
    const float* const read_only = data.data();
    const int tokens = 3;
    const strided a(data.data(), {2, tokens, 4});
    const strided b(read_only, {4, 6}, {6, 1});
    static_assert(std::is_same_v<decltype(a), const strided<float, 3>>);
    static_assert(std::is_same_v<decltype(b), const strided<const float, 2>>);
    CHECK(a.extent(1) == 3);
    CHECK(b.stride(0) == 6);
}

TEST_CASE("strided: it is usable in constant expressions", "[base]") {
    static constexpr std::array<float, 4> data{1, 2, 3, 4};
    constexpr strided<const float, 2> transposed(data.data(), {2, 2}, {1, 2});
    static_assert(transposed(0, 1) == 3 && transposed(1, 0) == 2);
    CHECK(transposed(1, 1) == 4);
}

TEST_CASE("strided: an empty view needs no data", "[base]") {
    const strided<float, 3> v(nullptr, {2, 0, 4});
    CHECK(v.extent(1) == 0);
}

TEST_CASE("strided: null data and negative extents break its contract", "[base][contract]") {
    std::vector<float> data(8);
    CHECK(support::violation_of([&] {
              strided<float, 3>(nullptr, {1, 2, 4});
          }) == "strided: data must not be null");
    CHECK(support::violation_of([&] {
              strided<float, 3>(data.data(), {1, -2, 4});
          }) == "strided: extents must not be negative");
    CHECK(support::violation_of([&] { strided<float, 3>(data.data(), {1, 2, 4}); }).empty());
}

TEST_CASE("at: a view's own element comes back, by value or by reference", "[base]") {
    const own::indexable lazy{{2, 3, 4}};
    CHECK(at(lazy, 1, 2, 3) == lazy(1, 2, 3));
    std::vector<int> values = counting_up(6);
    const auto plain = [&](std::size_t i, std::size_t j) -> int& { return values[i * 3 + j]; };
    at(plain, std::size_t{1}, std::size_t{2}) = 9;
    CHECK(values[5] == 9);
}
