// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// From budgets to the plan that keeps each head's best candidates, and the offsets of the candidates before that: what policies
// over one layer and over many have in common.
//
//   row of head g:   protected prefix | candidates(protect, tokens(g)) | protected suffix

#include <kvtrim/core/any_index.hpp>
#include <kvtrim/plan/cache_lengths.hpp>
#include <kvtrim/plan/find_top_k.hpp>
#include <kvtrim/plan/keep_plan.hpp>

#include <numeric>

namespace KVTRIM_NAMESPACE {

/// Whether a view of these inputs reads its offsets, pages or indices from a plan, which can then not be written.
template <class Inputs>
[[nodiscard]] bool reads_tables_of(const Inputs& in, const keep_plan& plan) {
    const auto is_read_by = [&](const auto& view) {
        bool is_read = false;
        if constexpr (requires { plan.holds(view.offsets()); }) { is_read = plan.holds(view.offsets()); }
        if constexpr (requires { plan.holds(view.written_places()); }) {
            is_read = is_read || plan.holds(view.written_places());
        }
        return is_read;
    };
    if constexpr (requires { in.keys; }) {
        return is_read_by(in.keys) || is_read_by(in.values) || is_read_by(in.queries);
    }
    return false;
}

/// Returns index_overflow (needed: tokens) if a plan cannot hold so many tokens.
[[nodiscard]] inline status fits_plan(index_t tokens) {
    if (tokens <= std::numeric_limits<keep_plan::table_index>::max()) { return {}; }
    return {errc::index_overflow, "a plan holds at most 2^31 - 1 tokens", tokens};
}

/// Fills offsets [kv_heads + 1] of the candidates from offsets[0] on, which the caller sets, and protected_tokens
/// [kv_heads], which may be empty if they are not needed.
template <class Inputs>
void fill_candidate_offsets(const Inputs& in, const protection& protect, std::span<index_t> offsets,
                            std::span<index_t> protected_tokens = {}) {
    for (std::size_t g = 0; g + 1 < offsets.size(); ++g) {
        const index_t tokens = in.tokens(static_cast<index_t>(g));
        const index_t competing = candidates(protect, tokens).size();
        offsets[g + 1] = offsets[g] + competing;
        if (!protected_tokens.empty()) { protected_tokens[g] = tokens - competing; }
    }
}

/// Makes the plan that keeps every row. counts [kv_heads] is scratch.
/// Returns errc::index_overflow, with out unchanged.
template <class Inputs>
[[nodiscard]] status plan_everything(const Inputs& in, std::span<index_t> counts, keep_plan& out) {
    for (std::size_t g = 0; g < counts.size(); ++g) { counts[g] = in.tokens(static_cast<index_t>(g)); }
    if (const status s = out.reset(counts); !s.ok()) { return s; }
    for (index_t g = 0; g < in.kv_heads(); ++g) {
        keep_plan::table_index next = 0;
        for (auto& kept : out.writable_row(g)) { kept = next++; }
    }
    return {};
}

/// Makes the plans that keep every row of every layer. counts [kv_heads] is scratch.
/// Returns errc::index_overflow, with all of out unchanged.
template <class Inputs>
[[nodiscard]] status plan_everything(std::span<const Inputs> layers, std::span<index_t> counts,
                                     std::span<keep_plan> out) {
    for (const Inputs& in : layers) {
        if (const status s = fits_plan(count_lengths(in, {}).tokens); !s.ok()) { return s; }
    }
    for (std::size_t l = 0; l < layers.size(); ++l) {
        if (const status s = plan_everything(layers[l], counts, out[l]); !s.ok()) { return s; }
    }
    return {};
}

namespace detail {

// The tokens before the candidates, the candidates of the cut, the tokens behind them.
inline void write_survivors(std::span<const float> importance, top_k_cut cut, token_range range,
                            index_t tokens, keep_plan::table_index* out) {
    const auto begin = static_cast<keep_plan::table_index>(range.begin);
    const auto end = static_cast<keep_plan::table_index>(range.end);
    std::iota(out, out + begin, 0);
    out = kernels::write_above(importance, cut, begin, out + begin);
    std::iota(out, out + (tokens - end), end);
}

} // namespace detail

/// Makes the plan that keeps the protected prefix, the `budgets` [kv_heads] best candidates and the protected suffix of each
/// row, ascending. counts [kv_heads] is scratch. Returns what validate_budgets() says or errc::index_overflow, with out
/// unchanged.
template <class Inputs>
[[nodiscard]] status plan_best(const Inputs& in, const protection& protect, const score_rows& importance,
                               std::span<const index_t> budgets, std::span<index_t> counts, keep_plan& out) {
    if (const status s = validate_budgets(importance, budgets); !s.ok()) { return s; }
    for (std::size_t g = 0; g < budgets.size(); ++g) {
        const index_t tokens = in.tokens(static_cast<index_t>(g));
        counts[g] = tokens - candidates(protect, tokens).size() + budgets[g];
    }
    if (const status s = out.reset(counts); !s.ok()) { return s; }
    // Heads that share one budget are cut at the same score, except for a head whose safeguard keeps more than that. So the
    // cut of an earlier head is tried first.
    const bool may_share = any_element(budgets, [&](index_t b) { return b != budgets.front(); });
    std::uint32_t shared_bits = 0xffffffffu;
    bool is_shared = false;
    for (index_t g = 0; g < in.kv_heads(); ++g) {
        const token_range range = candidates(protect, in.tokens(g));
        const auto row = importance.row(g);
        const index_t budget = budgets[static_cast<std::size_t>(g)];
        top_k_cut cut = may_share ? find_top_k(row, budget, shared_bits) : find_top_k(row, budget);
        is_shared = is_shared || (g > 0 && cut.bits == shared_bits);
        if (!is_shared) { shared_bits = cut.bits; }
        detail::write_survivors(row, cut, range, in.tokens(g), out.writable_row(g).data());
    }
    return {};
}

} // namespace KVTRIM_NAMESPACE
