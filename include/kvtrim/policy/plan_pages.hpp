// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Eviction in whole pages, for engines that free nothing smaller (OpenVINO GenAI): page scores in, logical page
// indices out, equally many in every row. A row is a layer, or a (layer, KV head), of one sequence.
//
//   tokens   | start  .  .  .  | .  .  .  . | .  .  .  . | recent .  .  . | .  .     page_tokens 4; the last may
//                                                      be partial
//   pages          0                1            2              3            4
//
//   score_pages     page b = sum, mean or maximum of the scores of its tokens; a partial page is reduced over
//                    what it has
//   plan_pages      the kept_pages best of each row, protected ones included; ties to the lower index
//   evicted_pages   the others, as ascending ranges of logical pages
//   expand_pages    the same plan in tokens, for attention masks, positions, or compact/plan_page_moves.hpp: there no
//                    slot moves
//
// Protection counts pages here: sink_tokens is the start area, window_tokens the recent area, which must hold the
// partial page. Cost: linear in scores. Workspace: that of the policy.

#include <kvtrim/allocate/uniform.hpp>
#include <kvtrim/compact/project_to_shared.hpp>
#include <kvtrim/policy/eviction_policy.hpp>
#include <kvtrim/rerank/by_importance.hpp>
#include <kvtrim/score/given_scores.hpp>

#include <cmath>

namespace KVTRIM_NAMESPACE {

/// How the scores of a page's tokens become one.
enum class page_reduction : std::uint8_t { sum, mean, maximum };

namespace detail {

// Pages that hold so many tokens, the last one perhaps in part.
[[nodiscard]] constexpr index_t page_count(index_t tokens, index_t page_tokens) {
    return tokens / page_tokens + (tokens % page_tokens > 0 ? 1 : 0);
}

} // namespace detail

/// Writes pages, the scores of one row's pages, from those of its tokens; maximum ignores NaN. Returns invalid_parameter,
/// for page_tokens that are not positive or another number of pages than the tokens make (needed: pages), views_overlap for
/// pages among the tokens; with nothing written.
[[nodiscard]] inline status score_pages(std::span<const float> tokens, index_t page_tokens,
                                        page_reduction reduction, std::span<float> pages) {
    if (page_tokens <= 0) { return {errc::invalid_parameter, "score_pages: page_tokens must be positive"}; }
    if (const index_t count = detail::page_count(std::ssize(tokens), page_tokens);
        std::ssize(pages) != count) {
        return {errc::invalid_parameter, "score_pages: there must be one score per page", count};
    }
    if (const status s = check_outputs(std::array{bytes_of(pages)}, tokens); !s.ok()) { return s; }
    for (std::size_t b = 0; b < pages.size(); ++b) {
        const std::size_t begin = b * static_cast<std::size_t>(page_tokens);
        const auto page =
            tokens.subspan(begin, std::min(static_cast<std::size_t>(page_tokens), tokens.size() - begin));
        double sum = 0;
        float highest = -std::numeric_limits<float>::infinity();
        for (const float score : page) {
            sum += static_cast<double>(score);
            highest = std::fmax(highest, score);
        }
        const double parts = reduction == page_reduction::mean ? static_cast<double>(page.size()) : 1.0;
        pages[b] = reduction == page_reduction::maximum ? highest : static_cast<float>(sum / parts);
    }
    return {};
}

namespace detail {

// A cache of pages without elements: their number is all that a policy over given scores asks for.
struct page_rows {
    index_t rows_of_scores;
    index_t pages;

    [[nodiscard]] index_t extent(std::size_t r) const { return r == 0 ? rows_of_scores : r == 1 ? pages : 1; }
    void load_rows(index_t, index_t, index_t, float*) const {}
};

template <tensor_view<2> Scores>
[[nodiscard]] auto page_policy(const Scores& scores) {
    return eviction_policy{given_scores{scores}, uniform{}, by_importance{}};
}

template <tensor_view<2> Scores>
[[nodiscard]] auto page_inputs(const Scores& scores) {
    return layer(page_rows{extent(scores, 0), extent(scores, 1)});
}

} // namespace detail

/// Bytes of workspace for plan_pages(); 0 for inputs it refuses.
template <tensor_view<2> Scores>
[[nodiscard]] index_t plan_pages_bytes(const Scores& scores, index_t kept_pages, const protection& protect) {
    return detail::page_policy(scores).workspace_bytes(detail::page_inputs(scores),
                                                       {.budget = per_head(kept_pages), .protect = protect});
}

/// scores [rows, pages], higher stays. Fills `out` with kept_pages pages for each row (all, if there are fewer).
/// Returns what a policy does: budget_zero, budget_below_protection (needed: pages of all rows), invalid_parameter,
/// workspace_too_small; with out unchanged.
template <tensor_view<2> Scores>
[[nodiscard]] status plan_pages(const Scores& scores, index_t kept_pages, const protection& protect,
                                keep_plan& out, workspace& scratch) {
    return detail::page_policy(scores).plan(
        detail::page_inputs(scores), {.budget = per_head(kept_pages), .protect = protect}, out, scratch);
}

/// Calls fn(token_range) for each range of logical pages that a row of the plan does not keep, ascending. Returns
/// plan_mismatch, with no call made, for a row or pages that there are not.
template <class Fn>
[[nodiscard]] status evicted_pages(const keep_plan& plan, index_t row, index_t pages, Fn&& fn) {
    if (row < 0 || row >= plan.rows()) {
        return {errc::plan_mismatch, "the plan has no such row", plan.rows()};
    }
    return removed_ranges(plan.row(row), pages, fn);
}

/// Writes to `out` the tokens of the kept pages, of rows with `tokens` tokens. Returns invalid_parameter (page_tokens not
/// positive, tokens negative, `out` the plan itself), plan_mismatch (pages that such rows do not have), index_overflow or
/// workspace_too_small, with out unchanged.
[[nodiscard]] inline status expand_pages(const keep_plan& plan, index_t page_tokens, index_t tokens,
                                         keep_plan& out, workspace& scratch) {
    if (&plan == &out) { return {errc::invalid_parameter, "expand_pages: the output must be another plan"}; }
    if (page_tokens <= 0 || tokens < 0) {
        return {errc::invalid_parameter, "expand_pages: page_tokens must be positive, tokens not negative"};
    }
    const index_t pages = detail::page_count(tokens, page_tokens);
    if (!plan.check_invariants([&](index_t) { return pages; })) {
        return {errc::plan_mismatch, "the plan keeps pages that the cache does not have"};
    }
    if (tokens > std::numeric_limits<keep_plan::table_index>::max()) {
        return {errc::index_overflow, "a plan addresses at most 2^31 - 1 tokens per head", tokens};
    }
    const workspace::frame frame(scratch);
    const auto counts = scratch.take<index_t>(plan.rows());
    if (!scratch.fits()) { return scratch.too_small(); }
    for (index_t r = 0; r < plan.rows(); ++r) {
        const auto row = plan.row(r);
        const bool has_last = !row.empty() && row.back() == pages - 1;
        const index_t last = has_last ? tokens - (pages - 1) * page_tokens : 0;
        counts[static_cast<std::size_t>(r)] = (std::ssize(row) - (has_last ? 1 : 0)) * page_tokens + last;
    }
    if (const status s = out.reset(counts); !s.ok()) { return s; }
    for (index_t r = 0; r < plan.rows(); ++r) {
        auto next = out.writable_row(r).begin();
        for (const auto page : plan.row(r)) {
            const index_t begin = page * page_tokens;
            const index_t end = begin + std::min(page_tokens, tokens - begin);
            for (index_t t = begin; t < end; ++t) { *next++ = static_cast<keep_plan::table_index>(t); }
        }
    }
    return {};
}
/// Bytes of workspace for expand_pages().
[[nodiscard]] inline index_t expand_pages_bytes(const keep_plan& plan) {
    workspace counting = workspace::counting();
    static_cast<void>(counting.take<index_t>(plan.rows()));
    return counting.needed_bytes();
}

} // namespace KVTRIM_NAMESPACE
