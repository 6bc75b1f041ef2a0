// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Scores of candidates that a function, or memory that is there, gives.

#include <kvtrim/core/eviction_request.hpp>
#include <kvtrim/plan/token_scores.hpp>

#include <algorithm>

namespace KVTRIM_NAMESPACE::detail {

// Fills importance with fn(kv_head, cache row) for every candidate.
template <class Inputs, class Fn>
void fill_scores(const Inputs& in, const eviction_request& request, const token_scores& out, Fn&& fn) {
    for (index_t g = 0; g < in.kv_heads(); ++g) {
        const token_range range = candidates(request.protect, in.tokens(g));
        const auto row = out.importance_rows().row(g);
        for (index_t t = range.begin; t < range.end; ++t) {
            row[static_cast<std::size_t>(t - range.begin)] = fn(g, t);
        }
    }
}

// The same with scores that lie in memory: row_of(kv_head) is the head's row, of which the candidates are copied.
template <class Inputs, class RowOf>
void copy_scores(const Inputs& in, const eviction_request& request, const token_scores& out, RowOf&& row_of) {
    for (index_t g = 0; g < in.kv_heads(); ++g) {
        const token_range range = candidates(request.protect, in.tokens(g));
        std::copy_n(row_of(g) + range.begin, range.size(), out.importance_rows().row(g).begin());
    }
}

} // namespace KVTRIM_NAMESPACE::detail
