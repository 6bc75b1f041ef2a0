// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/core/span_of.hpp>

#include "support/catch.hpp"

#include <type_traits>

namespace {

using namespace kvtrim;

} // namespace

TEST_CASE("span_of: all elements of a vector, writable where the vector is", "[core]") {
    std::vector<int> list{1, 2, 3};
    const std::vector<int>& fixed = list;
    static_assert(std::is_same_v<decltype(span_of(list)), std::span<int>>);
    static_assert(std::is_same_v<decltype(span_of(fixed)), std::span<const int>>);
    span_of(list)[2] = 5;
    CHECK(list.back() == 5);
    CHECK(span_of(fixed).data() == list.data());
    CHECK(span_of(fixed).size() == 3);
    CHECK(span_of(std::vector<int>{}).empty());
}
