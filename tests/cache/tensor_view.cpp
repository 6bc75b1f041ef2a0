// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/cache/tensor_view.hpp>

#include "core/own_views.hpp"
#include "support/checks.hpp"

#include <array>
#include <cstdint>
#include <limits>
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

TEST_CASE("strided: without strides it is row-major", "[core]") {
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

TEST_CASE("strided: an element lies at the sum of index times stride, in any memory order", "[core]") {
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

TEST_CASE("strided: writing through the view changes the caller's memory", "[core]") {
    std::vector<f16> data(6);
    const strided<f16, 2> v(data.data(), {2, 3});
    v(1, 1) = element_traits<f16>::from_float(1.5f);
    CHECK(to_float(data[4]) == 1.5f);
}

TEST_CASE("strided: element type and rank are deduced from a pointer and braces", "[core]") {
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

TEST_CASE("strided: it is usable in constant expressions", "[core]") {
    static constexpr std::array<float, 4> data{1, 2, 3, 4};
    constexpr strided<const float, 2> transposed(data.data(), {2, 2}, {1, 2});
    static_assert(transposed(0, 1) == 3 && transposed(1, 0) == 2);
    CHECK(transposed(1, 1) == 4);
}

TEST_CASE("strided: an empty view needs no data", "[core]") {
    const strided<float, 3> v(nullptr, {2, 0, 4});
    CHECK(v.extent(1) == 0);
}

TEST_CASE(
    "strided: null data, negative extents and more than memory can hold give an empty view that says why",
    "[core][errors]") {
    std::vector<float> data(8);
    const auto answer = [](const strided<float, 3>& view, const std::array<index_t, 3>& extents) {
        const status s = view.validate();
        for (std::size_t r = 0; r < 3; ++r) { CHECK(view.extent(r) == (s.ok() ? extents[r] : 0)); }
        CHECK((s.ok() || s.code() == errc::invalid_parameter));
        return std::string(s.what());
    };
    const auto with = [&](float* memory, index_t a, index_t b, index_t c) {
        return answer(strided<float, 3>(memory, {a, b, c}), {a, b, c});
    };
    constexpr index_t most = std::numeric_limits<index_t>::max();
    constexpr index_t half = index_t{1} << 32;
    CHECK(with(data.data(), 1, 2, 4) == "ok");
    CHECK(with(nullptr, 1, 0, 4) == "ok");
    CHECK(with(nullptr, 1, 2, 4) == "strided: data must not be null");
    CHECK(with(data.data(), 1, -2, 4) == "strided: extents must not be negative");
    CHECK(with(data.data(), 0, 1, std::numeric_limits<index_t>::min()) ==
          "strided: extents must not be negative");
    const std::string too_many = "strided: extents of more elements than memory can hold";
    CHECK(with(data.data(), most, 1, 1) == too_many);
    CHECK(with(data.data(), half, half, 1) == too_many); // their product is 0 in 64 bits
    CHECK(with(data.data(), half, half + 1, half) == too_many);
    CHECK(with(nullptr, most, 0, most) == too_many); // empty, but not to be multiplied
    CHECK(strided<float, 3>(data.data(), {half, half, index_t{1}}, {0, 0, 1}).validate().code() ==
          errc::invalid_parameter);
}

TEST_CASE("strided: extents and strides are integers of any types, one that index_t lacks is refused",
          "[core]") {
    std::vector<float> data(24);
    const std::vector<int> shape(3);
    const strided mixed(data.data(), {shape.size() - 1, 3, index_t{4}});
    const strided all_sizes(data.data(), {std::size_t{2}, std::size_t{12}});
    const strided small(data.data(), {std::int8_t{2}, std::int8_t{3}, std::int8_t{4}});
    const strided<float, 3> named(data.data(), {std::size_t{2}, 3u, std::int16_t{4}},
                                  {std::size_t{12}, 4, 1u});
    const strided reversed(data.data() + 23, {2, 12}, {-12, -1});
    CHECK(mixed.validate().ok());
    CHECK(mixed.extent(0) == 2);
    CHECK(mixed.stride(0) == 12);
    CHECK(all_sizes.extent(1) == 12);
    CHECK(small.stride(0) == 12);
    CHECK(&named(1, 2, 3) == data.data() + 23);
    CHECK(&reversed(1, 11) == data.data());
    const strided<float, 3> wrapped(data.data(), {std::numeric_limits<std::size_t>::max(), 1, 1});
    CHECK(wrapped.validate().code() == errc::invalid_parameter);
    CHECK(wrapped.extent(0) == 0);
    const auto minus_two = static_cast<std::uint64_t>(-2); // a size that fell below 0
    CHECK(strided<float, 3>(data.data(), {minus_two, 1, 1}).validate().code() == errc::invalid_parameter);
}

TEST_CASE("strided: a function that makes views answers with an empty one that says why", "[core][errors]") {
    constexpr auto none = strided<float, 3>::invalid("no such tensor");
    static_assert(none.extent(0) == 0 && none.extent(1) == 0 && none.extent(2) == 0);
    static_assert(none.data_handle() == nullptr && !none.validate().ok());
    CHECK(std::string(none.validate().what()) == "no such tensor");
    CHECK(none.validate().code() == errc::invalid_parameter);
}

TEST_CASE("at: a view's own element comes back, by value or by reference", "[core]") {
    const own::indexable lazy{{2, 3, 4}};
    CHECK(at(lazy, 1, 2, 3) == lazy(1, 2, 3));
    std::vector<int> values = counting_up(6);
    const auto plain = [&](std::size_t i, std::size_t j) -> int& { return values[i * 3 + j]; };
    at(plain, std::size_t{1}, std::size_t{2}) = 9;
    CHECK(values[5] == 9);
}
