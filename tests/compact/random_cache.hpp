// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Caches of random bits in any memory order, random plans for them, and what must survive: the bytes of each row,
// remembered before the compaction.

#include "support/checks.hpp"

#include <kvtrim/cache/ragged.hpp>
#include <kvtrim/cache/tensor_view.hpp>
#include <kvtrim/plan/keep_plan.hpp>

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <vector>

namespace support {

// Any bits, NaN patterns included: compaction copies, it does not compute.
template <class T>
std::vector<T> random_elements(random& r, index_t count) {
    std::vector<T> elements(static_cast<std::size_t>(count));
    for (T& x : elements) {
        const std::uint64_t bits = r.bits();
        std::memcpy(&x, &bits, sizeof(T));
    }
    return elements;
}

template <class T>
std::vector<unsigned char> bytes_of(const std::vector<T>& elements) {
    std::vector<unsigned char> bytes(elements.size() * sizeof(T));
    if (!bytes.empty()) { std::memcpy(bytes.data(), elements.data(), bytes.size()); }
    return bytes;
}

// A cache that owns its elements; strides in any order and of any sign, with gaps or without.
template <class T>
struct random_cache {
    std::vector<T> elements;
    std::array<index_t, 3> extents{};
    std::array<index_t, 3> strides{};
    index_t origin = 0;

    // order: the dimensions from the slowest to the fastest; {0, 1, 2} is head-major.
    random_cache(random& r, const std::array<index_t, 3>& shape, const std::array<std::size_t, 3>& order,
                 bool gaps, bool backwards)
        : extents(shape) {
        index_t next = gaps && r.chance(0.3) ? 2 : 1;
        for (std::size_t i = 3; i-- > 0;) {
            const std::size_t d = order[i];
            strides[d] = next;
            next = next * extents[d] + (gaps ? r.between(0, 5) : 0);
            if (backwards && r.chance(0.5)) {
                origin += strides[d] * std::max<index_t>(0, extents[d] - 1);
                strides[d] = -strides[d];
            }
        }
        elements = random_elements<T>(r, next + 8);
    }

    [[nodiscard]] kvtrim::strided<T, 3> view() { return {elements.data() + origin, extents, strides}; }
};

template <class T>
random_cache<T> any_cache(random& r, const std::array<index_t, 3>& shape) {
    std::array<std::size_t, 3> order{0, 1, 2};
    for (std::size_t i = 3; i > 1; --i) { std::swap(order[i - 1], order[r.bits() % i]); }
    return random_cache<T>(r, shape, order, r.chance(0.5), r.chance(0.5));
}

inline std::array<index_t, 3> any_cache_shape(random& r) {
    return {r.between(1, 5), r.chance(0.1) ? 0 : r.between(1, 40), r.one_of({1, 2, 3, 8, 17, 32})};
}

// Survivors in runs, alone, none or all, for rows of these lengths.
inline kvtrim::keep_plan any_plan(random& r, const std::vector<index_t>& lengths) {
    std::vector<oracle::token_set> sets;
    for (const index_t length : lengths) {
        const double share = r.one_of({0.0, 0.05, 0.5, 0.9, 1.0});
        const bool runs = r.chance(0.5);
        oracle::token_set kept;
        bool keep = r.chance(share);
        for (index_t t = 0; t < length; ++t) {
            if (!runs || r.chance(0.2)) { keep = r.chance(share); }
            if (keep) { kept.push_back(static_cast<std::size_t>(t)); }
        }
        sets.push_back(kept);
    }
    return plan_of(sets);
}

template <class View>
std::vector<index_t> lengths_of(const View& v) {
    std::vector<index_t> lengths;
    for (index_t g = 0; g < kvtrim::extent(v, 0); ++g) { lengths.push_back(kvtrim::row_count(v, g)); }
    return lengths;
}

// The rows that a plan keeps, head by head, as elements one after the other.
template <class T>
std::vector<T> survivors(const kvtrim::strided<T, 3>& v, const kvtrim::keep_plan& plan) {
    std::vector<T> rows;
    for (index_t g = 0; g < v.extent(0); ++g) {
        for (const auto token : plan.row(g)) {
            for (index_t d = 0; d < v.extent(2); ++d) { rows.push_back(v(g, token, d)); }
        }
    }
    return rows;
}

template <class T>
std::vector<T> survivors(const kvtrim::ragged<T>& v, const kvtrim::keep_plan& plan) {
    std::vector<T> rows;
    for (index_t g = 0; g < v.extent(0); ++g) {
        for (const auto token : plan.row(g)) {
            rows.insert(rows.end(), v.row(g, token), v.row(g, token) + v.extent(2));
        }
    }
    return rows;
}

// Plans that do not belong to a cache with these row lengths; each must be refused.
inline std::vector<kvtrim::keep_plan> wrong_plans(const std::vector<index_t>& lengths) {
    std::vector<oracle::token_set> all;
    for (const index_t length : lengths) {
        oracle::token_set row(static_cast<std::size_t>(length));
        std::iota(row.begin(), row.end(), std::size_t{0});
        if (!row.empty()) { row.erase(row.begin()); } // every row would move
        all.push_back(row);
    }
    const auto length_of_last = static_cast<std::size_t>(lengths.back());
    std::vector<kvtrim::keep_plan> plans;
    auto sets = all;
    sets.emplace_back();
    plans.push_back(plan_of(sets)); // a head too many
    sets = all;
    sets.pop_back();
    plans.push_back(plan_of(sets)); // a head too few
    sets = all;
    sets.back().push_back(length_of_last);
    plans.push_back(plan_of(sets)); // a row behind the last one
    if (length_of_last > 1) {
        sets = all;
        sets.back() = {length_of_last - 1, 0};
        plans.push_back(plan_of(sets)); // descending
        sets.back() = {1, 1};
        plans.push_back(plan_of(sets)); // twice
        sets.back() = {0};
        plans.push_back(plan_of(sets));
        plans.back().writable_row(plans.back().rows() - 1)[0] = -1; // before the first row
    }
    return plans;
}

} // namespace support
