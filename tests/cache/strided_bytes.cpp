// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/cache/strided_bytes.hpp>

#include "support/catch.hpp"
#include "support/random_layer.hpp"

#include <limits>
#include <map>
#include <set>
#include <vector>

using namespace kvtrim;

namespace {

// Memory that is never touched: views have addresses in it.
unsigned char memory[1 << 16];

using row_index = std::array<index_t, 3>;

// The bytes of each row, one entry for each element and byte.
std::map<row_index, std::vector<const unsigned char*>> rows_of(const strided_bytes& v) {
    std::map<row_index, std::vector<const unsigned char*>> rows;
    for (index_t i = 0; i < v.extents[0]; ++i) {
        for (index_t j = 0; j < v.extents[1]; ++j) {
            for (index_t k = 0; k < v.extents[2]; ++k) {
                for (index_t l = 0; l < v.extents[3]; ++l) {
                    const auto* at = static_cast<const unsigned char*>(v.first) + i * v.strides[0] +
                                     j * v.strides[1] + k * v.strides[2] + l * v.strides[3];
                    for (index_t b = 0; b < v.bytes; ++b) { rows[{i, j, k}].push_back(at + b); }
                }
            }
        }
    }
    return rows;
}

struct byte_set {
    std::set<const unsigned char*> bytes;
    bool twice = false;

    explicit byte_set(const strided_bytes& v) {
        for (const auto& [row, all] : rows_of(v)) {
            for (const auto* byte : all) { twice = !bytes.insert(byte).second || twice; }
        }
    }
    [[nodiscard]] bool meets(const byte_set& other) const {
        return std::any_of(bytes.begin(), bytes.end(), [&](auto* b) { return other.bytes.count(b) > 0; });
    }
};

bool each_row_inside(const strided_bytes& outer, const strided_bytes& inner) {
    auto outer_rows = rows_of(outer);
    const auto inner_rows = rows_of(inner);
    if (outer_rows.size() != inner_rows.size() || inner_rows.empty()) { return false; }
    for (const auto& [row, bytes] : inner_rows) {
        const std::set<const unsigned char*> all(outer_rows[row].begin(), outer_rows[row].end());
        for (const auto* byte : bytes) {
            if (all.count(byte) == 0) { return false; }
        }
    }
    return true;
}

strided_bytes random_view(support::random& r, index_t longest_stride) {
    strided_bytes v;
    v.first = memory + sizeof memory / 2 + r.between(-60, 60);
    v.bytes = r.one_of({1, 1, 2, 3, 4});
    for (std::size_t i = 0; i < 4; ++i) {
        v.extents[i] = r.chance(0.03) ? 0 : r.between(1, 4);
        v.strides[i] = r.between(-longest_stride, longest_stride);
    }
    return v;
}

// A layout without overlaps: each stride is at least what the smaller ones span.
strided_bytes nested_view(support::random& r) {
    strided_bytes v = random_view(r, 0);
    index_t span = v.bytes;
    std::array<std::size_t, 4> order{0, 1, 2, 3};
    for (std::size_t i = 4; i > 1; --i) { std::swap(order[i - 1], order[r.bits() % i]); }
    for (const std::size_t i : order) {
        v.strides[i] = span + (r.chance(0.5) ? 0 : r.between(0, 7));
        span = v.strides[i] * std::max<index_t>(0, v.extents[i] - 1) + span;
        if (r.chance(0.2)) { v.strides[i] = -v.strides[i]; }
    }
    return v;
}

} // namespace

TEST_CASE("overlap, overlaps_itself: as the sets of all bytes say, for any strides and any two layouts",
          "[core][properties][oracle]") {
    support::random r(1);
    int apart_within_range = 0, met = 0, doubled = 0;
    for (int round = 0; round < 12000; ++round) {
        const bool nested = r.chance(0.6);
        const index_t longest = r.one_of({3, 20, 90});
        const strided_bytes a = nested ? nested_view(r) : random_view(r, longest);
        strided_bytes b = nested ? nested_view(r) : random_view(r, longest);
        if (r.chance(0.4)) { b.strides = a.strides; } // as keys and values of one engine
        const byte_set of_a(a), of_b(b);
        CAPTURE(round, a.extents, a.strides, a.bytes, b.extents, b.strides, b.bytes);
        REQUIRE(a.validate().ok());
        REQUIRE(overlap(a, b) == of_a.meets(of_b));
        REQUIRE(overlap(b, a) == of_a.meets(of_b));
        REQUIRE(overlaps_itself(a) == of_a.twice);
        met += of_a.meets(of_b) ? 1 : 0;
        doubled += of_a.twice ? 1 : 0;
        if (of_a.meets(of_b) || of_a.bytes.empty() || of_b.bytes.empty()) { continue; }
        const bool ranges_meet =
            *of_a.bytes.begin() <= *of_b.bytes.rbegin() && *of_b.bytes.begin() <= *of_a.bytes.rbegin();
        apart_within_range += ranges_meet ? 1 : 0;
    }
    CHECK(met > 2000);
    CHECK(doubled > 1000);
    CHECK(apart_within_range > 500);
}

TEST_CASE("rows_contain: it never says so of a row that is not inside, and says so of each part of a row",
          "[core][properties][oracle]") {
    support::random r(2);
    int contained = 0, refused = 0;
    for (int round = 0; round < 12000; ++round) {
        const strided_bytes outer = nested_view(r);
        strided_bytes inner = outer;
        inner.extents[3] = r.between(0, 4);
        inner.bytes = r.between(1, 4);
        inner.first = static_cast<const unsigned char*>(outer.first) + r.between(-6, 6);
        if (r.chance(0.3)) { inner.strides[3] = r.one_of({1, -1, 2}) * outer.strides[3]; }
        if (r.chance(0.3)) { inner.strides[r.bits() % 3] += r.between(0, 1); }
        if (r.chance(0.1)) { inner.extents[r.bits() % 3] = r.between(1, 4); }
        if (outer.empty()) { continue; }
        const bool expected = each_row_inside(outer, inner);
        const bool answer = rows_contain(outer, inner);
        CAPTURE(round, outer.extents, outer.strides, outer.bytes, inner.extents, inner.strides, inner.bytes);
        if (answer) { REQUIRE(expected); }
        const bool same_steps = inner.strides[3] == outer.strides[3] || inner.extents[3] == 1;
        bool same_rows = true;
        for (std::size_t i = 0; i < 3; ++i) {
            same_rows = same_rows && inner.extents[i] == outer.extents[i] &&
                        (outer.extents[i] == 1 || inner.strides[i] == outer.strides[i]);
        }
        if (expected && same_steps && same_rows) { REQUIRE(answer); }
        (answer ? contained : refused) += 1;
    }
    CHECK(contained > 300);
    CHECK(refused > 500);
}

TEST_CASE("overlap: the layouts of engines are decided in a handful of steps, at any length", "[core]") {
    constexpr index_t tokens = 100000, heads = 8, dim = 128, size = 2;
    const auto* const buffer = reinterpret_cast<const unsigned char*>(std::uintptr_t{1} << 40);
    const auto at = [&](index_t byte, const std::array<index_t, 4>& extents,
                        const std::array<index_t, 4>& strides) {
        return strided_bytes{.first = buffer + byte, .extents = extents, .strides = strides, .bytes = size};
    };
    const index_t row = dim * size;
    // [token][K | V][head][d]
    const std::array<index_t, 4> cache{1, heads, tokens, dim};
    const auto k = at(0, cache, {0, row, 2 * heads * row, size});
    const auto v = at(heads * row, cache, {0, row, 2 * heads * row, size});
    CHECK_FALSE(overlap(k, v));
    CHECK_FALSE(overlaps_itself(k));
    CHECK(overlap(k, at(heads * row - size, cache, {0, row, 2 * heads * row, size})));
    // K [token][head][d], V [head][d][token] in one buffer, rows apart: K of even tokens, V of odd halves
    CHECK_FALSE(overlap(at(0, cache, {0, 2 * tokens * row, 2 * row, size}),
                        at(row, cache, {0, 2 * tokens * row, 2 * row, size})));
    // Values inside the keys
    CHECK(rows_contain(at(0, {1, 1, tokens, 576}, {0, 0, 1152, size}),
                       at(0, {1, 1, tokens, 512}, {0, 0, 1152, size})));
    // Pages of keys and values by turns
    const std::array<index_t, 4> pool{100000, 16, heads, dim};
    const std::array<index_t, 4> nhd{2 * 16 * heads * row, heads * row, row, size};
    const std::array<index_t, 4> hnd{2 * 16 * heads * row, row, 16 * row, size};
    for (const auto& strides : {nhd, hnd}) {
        CHECK_FALSE(overlap(at(0, pool, strides), at(16 * heads * row, pool, strides)));
        CHECK(overlap(at(0, pool, strides), at(16 * heads * row - 1, pool, strides)));
    }
}

TEST_CASE("strided_bytes: strides that lead out of memory are not valid, and what cannot be decided counts "
          "as overlap",
          "[core][errors]") {
    constexpr index_t most = std::numeric_limits<index_t>::max();
    const auto valid = [](const std::array<index_t, 4>& extents, const std::array<index_t, 4>& strides,
                          index_t bytes) {
        return strided_bytes{.first = memory, .extents = extents, .strides = strides, .bytes = bytes}
            .validate()
            .ok();
    };
    CHECK(valid({1, 2, 3, 4}, {most, 1000, 100, 4}, 4)); // one alone: its stride reaches nothing
    CHECK_FALSE(valid({2, 2, 3, 4}, {most, 1000, 100, 4}, 4));
    CHECK_FALSE(valid({2, 2, 3, 4}, {std::numeric_limits<index_t>::min(), 1000, 100, 4}, 4));
    CHECK_FALSE(valid({most, 1, 1, 1}, {1, 0, 0, 0}, 1));
    CHECK_FALSE(valid({1, 1, 1, 1}, {}, most));
    CHECK(valid({0, 1, 1, most}, {1, 0, 0, most}, most));             // no bytes
    CHECK_FALSE(valid({1, 1, 2, 1}, {0, 0, index_t{1} << 60, 0}, 1)); // longer than sums of two may be
    CHECK(to_bytes(most / 4, 4) == most / 4 * 4);
    CHECK(to_bytes(most / 4 + 1, 4) == most);
    CHECK(to_bytes(-5, 4) == -20);
    CHECK(to_bytes(std::numeric_limits<index_t>::min(), 8) == most);

    // Three pairs of long strides, none of them equal: more tries than most_tries.
    const strided_bytes a{.first = reinterpret_cast<const void*>(std::uintptr_t{1} << 50),
                          .extents = {3000, 3000, 3000, 1},
                          .strides = {3000017 * 6, 3000029 * 6, 3000047 * 6, 0},
                          .bytes = 1};
    strided_bytes b = a;
    b.first = static_cast<const unsigned char*>(a.first) + 3;
    b.strides = {2999999 * 6, 3000101 * 6, 3000131 * 6, 0};
    CHECK_FALSE(overlap(a, b)); // every sum is a multiple of 6
    b.strides[0] += 1;
    CHECK(overlap(a, b));
}

TEST_CASE("overlap: the stride of an extent of one is any number, also one that has no negative", "[core]") {
    constexpr index_t any = std::numeric_limits<index_t>::min();
    const auto of = [](index_t first, index_t stride) {
        return strided_bytes{
            .first = memory + first, .extents = {1, 2, 1, 1}, .strides = {any, stride, any, any}, .bytes = 4};
    };
    CHECK(overlap(of(0, 8), of(4, 4)));
    CHECK_FALSE(overlap(of(0, 8), of(4, 8)));
    CHECK(overlap(of(8, -8), of(11, 64)));
}
