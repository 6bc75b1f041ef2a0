// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

#include "support/checks.hpp"
#include "support/random_scores.hpp"

namespace support {

struct selection {
    kvtrim::status answer;
    oracle::counts budgets;
    std::vector<oracle::token_set> kept;
};

// What a reranker makes of scores and budgets: the survivors of a row are its `budget` most important columns.
// `attention` empty: pass one ranks by importance.
template <class Reranker>
selection select(const Reranker& reranker, const oracle::matrix& importance, const oracle::matrix& attention,
                 const oracle::counts& budgets, const std::vector<float>& protected_mass = {}) {
    score_memory memory(importance);
    score_memory apart(attention);
    kvtrim::token_scores scores{memory.offsets, memory.importance};
    if (!attention.empty()) { scores.attention = apart.attention; }
    std::vector<float> mass = protected_mass;
    mass.resize(importance.size(), 0.0f);
    scores.protected_mass = mass;

    kvtrim::growing_workspace growing;
    index_t bytes = 0;
    if constexpr (requires { reranker.workspace_bytes(index_t{1}, index_t{1}); }) {
        bytes = reranker.workspace_bytes(scores.rows(), memory.offsets.back());
    }
    kvtrim::workspace scratch = growing.of_bytes(bytes);
    std::vector<index_t> chosen(budgets.begin(), budgets.end());
    selection result;
    const index_t total = std::accumulate(chosen.begin(), chosen.end(), index_t{0});
    if constexpr (requires { reranker.before_allocation(scores, total, scratch); }) {
        result.answer = reranker.before_allocation(scores, total, scratch);
    }
    if constexpr (requires { reranker.before_selection(scores, chosen, scratch); }) {
        result.answer = reranker.before_selection(scores, chosen, scratch);
    }
    result.budgets = to_counts(chosen);
    for (std::size_t g = 0; g < importance.size(); ++g) {
        const auto row = memory.importance_rows().row(static_cast<index_t>(g));
        result.kept.push_back(oracle::top_k(oracle::row(row.begin(), row.end()), result.budgets[g]));
    }
    return result;
}

// The columns that a reranker has marked as outranking every score.
template <class Reranker>
oracle::counts marked(const Reranker& reranker, const oracle::matrix& importance,
                      const oracle::matrix& attention, index_t total,
                      const std::vector<float>& protected_mass) {
    score_memory memory(importance);
    score_memory apart(attention);
    std::vector<float> mass = protected_mass;
    const kvtrim::token_scores scores{memory.offsets, memory.importance, apart.attention, mass};
    kvtrim::growing_workspace growing;
    kvtrim::workspace scratch = growing.of_bytes(0);
    const kvtrim::status s = reranker.before_allocation(scores, total, scratch);
    if (!s.ok()) { throw std::runtime_error(s.what()); }
    oracle::counts result;
    for (index_t g = 0; g < scores.rows(); ++g) {
        const auto row = memory.importance_rows().row(g);
        result.push_back(static_cast<std::size_t>(
            std::count(row.begin(), row.end(), std::numeric_limits<float>::infinity())));
    }
    return result;
}

// Whether a reranker refuses budgets that the rows cannot fill, or of another number of rows, with nothing written.
template <class Reranker>
void require_selection_refusals(const Reranker& reranker) {
    const auto answer = [&](std::vector<index_t> budgets) {
        score_memory memory(oracle::matrix{{1, 2, 3}, {4, 5, 6}});
        kvtrim::growing_workspace growing;
        kvtrim::workspace scratch = growing.of_bytes(4096);
        const std::vector<index_t> before = budgets;
        const kvtrim::status s = reranker.before_selection(memory.get(), budgets, scratch);
        if (!s.ok()) {
            CHECK(budgets == before);
            CHECK(memory.importance == std::vector<float>{1, 2, 3, 4, 5, 6});
        }
        return std::string(s.what());
    };
    CHECK(answer({3, 3}) == "ok");
    CHECK(answer({0, 0}) == "ok");
    const std::string expected = "select: a budget must be between 0 and the number of candidates of its row";
    CHECK(answer({2, 4}) == expected);
    CHECK(answer({-1, 2}) == expected);
    CHECK(answer({2}) == "select: budgets must have one entry per row");
    CHECK(answer({}) == "select: budgets must have one entry per row");
    CHECK(answer({1, 1, 1}) == "select: budgets must have one entry per row");
}

// Any budgets that the rows can fill.
inline oracle::counts random_budgets(random& r, const oracle::matrix& rows) {
    oracle::counts budgets;
    for (const auto& row : rows) {
        budgets.push_back(static_cast<std::size_t>(r.between(0, static_cast<index_t>(row.size()))));
    }
    return budgets;
}

inline oracle::matrix equal_rows(random& r, score_kind kind) {
    oracle::matrix rows;
    const index_t length = r.between(1, 60);
    const index_t count = r.between(1, 6);
    for (index_t i = 0; i < count; ++i) { rows.push_back(random_row(r, length, kind)); }
    return rows;
}

} // namespace support
