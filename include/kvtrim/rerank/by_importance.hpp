// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The plain reranker: the best tokens of each row by importance, as many as its budget.
//
// How rerankers work: the survivors of a row are always its `budget` most important candidates; a reranker
// rewrites the importance (or the budgets) beforehand, and may do so at two moments:
//
//   before_allocation(scores, total, workspace)      e.g. tokens that outrank all others in every row
//   before_selection(scores, budgets, workspace)     e.g. takes half of each budget by attention
//   allocate_by_attention                            whether allocators see attention instead of importance
//
// A token that must stay gets importance +infinity, which no finite score and no norm can outrank. by_importance
// needs neither.

#include <kvtrim/core/region.hpp>

namespace KVTRIM_NAMESPACE {

/// Leaves importance and budgets as they are.
struct by_importance {
    /// whether the allocator sees attention instead of importance
    static constexpr bool allocate_by_attention = false;
    static constexpr bool needs_uniform_budgets = false; ///< whether the allocator must be uniform
};

} // namespace KVTRIM_NAMESPACE
