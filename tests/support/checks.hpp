// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What the tests of scorers and policies have in common: running a stage, comparing with the oracle, and
// expecting a refusal.

#include "support/catch.hpp"
#include "support/random_layer.hpp"

#include <kvtrim/core/executor.hpp>
#include <kvtrim/core/workspace.hpp>
#include <kvtrim/plan/keep_plan.hpp>
#include <kvtrim/plan/token_scores.hpp>
#include <kvtrim/policy/eviction_policy.hpp>

#include <cmath>
#include <sstream>
#include <stdexcept>
#include <string>

namespace support {

// ---- Comparisons: an empty text, or the first difference --------------------------------------------------

// Relative; weights below 1e-32 may be dropped.
inline std::string difference(std::span<const float> got, const oracle::row& expected,
                              double tolerance = 1e-4, double absolute = 1e-32) {
    std::ostringstream text;
    for (std::size_t i = 0; i < std::min(got.size(), expected.size()); ++i) {
        const auto value = static_cast<double>(got[i]);
        if (std::abs(value - expected[i]) <= std::max(absolute, tolerance * std::abs(expected[i]))) {
            continue;
        }
        text << "element " << i << ": got " << value << ", expected " << expected[i];
        return text.str();
    }
    if (got.size() != expected.size()) {
        text << "got " << got.size() << " elements, expected " << expected.size();
    }
    return text.str();
}

inline std::string difference(const kvtrim::score_rows& got, const oracle::matrix& expected,
                              double tolerance = 1e-4, double absolute = 1e-32) {
    if (got.rows() != static_cast<index_t>(expected.size())) { return "another number of rows"; }
    for (index_t g = 0; g < got.rows(); ++g) {
        const std::string text =
            difference(got.row(g), expected[static_cast<std::size_t>(g)], tolerance, absolute);
        if (!text.empty()) { return "head " + std::to_string(g) + ", " + text; }
    }
    return {};
}

inline std::vector<oracle::token_set> kept_sets(const kvtrim::keep_plan& plan) {
    std::vector<oracle::token_set> sets;
    for (index_t g = 0; g < plan.rows(); ++g) { sets.emplace_back(plan.row(g).begin(), plan.row(g).end()); }
    return sets;
}

inline oracle::counts to_counts(std::span<const index_t> values) {
    return oracle::counts(values.begin(), values.end());
}

// ---- Plans ------------------------------------------------------------------------------------------------

// A plan that no policy would make for the test layers: what an error must leave alone.
inline kvtrim::keep_plan made_before() {
    kvtrim::keep_plan plan;
    const std::array<index_t, 3> row_lengths{2, 0, 1};
    if (!plan.reset(row_lengths).ok()) { throw std::logic_error("reset failed"); }
    plan.writable_row(0)[0] = 5;
    plan.writable_row(0)[1] = 7;
    plan.writable_row(2)[0] = 11;
    return plan;
}

// A plan that keeps these rows of each head.
inline kvtrim::keep_plan plan_of(const std::vector<oracle::token_set>& sets) {
    std::vector<index_t> row_lengths;
    for (const auto& set : sets) { row_lengths.push_back(static_cast<index_t>(set.size())); }
    kvtrim::keep_plan plan;
    if (!plan.reset(row_lengths).ok()) { throw std::logic_error("reset failed"); }
    for (std::size_t g = 0; g < sets.size(); ++g) {
        std::transform(sets[g].begin(), sets[g].end(), plan.writable_row(static_cast<index_t>(g)).begin(),
                       [](std::size_t t) { return static_cast<std::int32_t>(t); });
    }
    return plan;
}

template <class Inputs>
bool is_valid(const kvtrim::keep_plan& plan, const Inputs& in) {
    return plan.rows() == in.kv_heads() && plan.check_invariants([&](index_t g) { return in.tokens(g); });
}

// Whether every head keeps all tokens that the request protects.
template <class Inputs>
bool keeps_protected(const kvtrim::keep_plan& plan, const Inputs& in, const kvtrim::protection& p) {
    for (index_t g = 0; g < in.kv_heads(); ++g) {
        const auto row = plan.row(g);
        const kvtrim::token_range range = kvtrim::candidates(p, in.tokens(g));
        for (index_t t = 0; t < in.tokens(g); ++t) {
            const bool is_protected = t < range.begin || t >= range.end;
            if (is_protected && !std::binary_search(row.begin(), row.end(), t)) { return false; }
        }
    }
    return true;
}

// A plan and what was known at each stage on the way to it.
struct trace {
    kvtrim::status answer;
    kvtrim::keep_plan plan = made_before();
    std::vector<index_t> offsets;
    std::vector<float> importance; // as scored
    std::vector<float> attention;  // as scored
    std::vector<float> protected_mass;
    std::vector<index_t> budgets; // candidates per head, as allocated
    std::vector<float> selected;  // importance as the selection saw it
    std::vector<kvtrim::plan_stage> stages;

    [[nodiscard]] kvtrim::score_rows importance_rows() { return {offsets, importance}; }
    [[nodiscard]] kvtrim::score_rows attention_rows() { return {offsets, attention}; }
};

template <class Policy, class Inputs, class Executor = kvtrim::serial_executor>
trace run(const Policy& policy, const Inputs& in, const kvtrim::eviction_request& request, Executor ex = {}) {
    trace t;
    kvtrim::growing_workspace memory;
    t.answer = policy.plan(in, request, t.plan, memory, ex, [&](const kvtrim::plan_progress& at) {
        t.stages.push_back(at.stage);
        if (at.stage == kvtrim::plan_stage::scored) {
            t.offsets.assign(at.scores.offsets.begin(), at.scores.offsets.end());
            t.importance.assign(at.scores.importance.begin(), at.scores.importance.end());
            t.attention.assign(at.scores.attention.begin(), at.scores.attention.end());
            t.protected_mass.assign(at.scores.protected_mass.begin(), at.scores.protected_mass.end());
        }
        if (at.stage == kvtrim::plan_stage::allocated) {
            t.budgets.assign(at.budgets.begin(), at.budgets.end());
        }
        if (at.stage == kvtrim::plan_stage::selected) {
            t.selected.assign(at.scores.importance.begin(), at.scores.importance.end());
        }
    });
    return t;
}

// Whether plan() answers exactly this, and workspace_bytes() nothing, with the plan as it was.
template <class Policy, class Inputs>
void require_refusal(const Policy& policy, const Inputs& in, const kvtrim::eviction_request& request,
                     kvtrim::errc code, index_t needed = 0) {
    const trace t = run(policy, in, request);
    CHECK(t.answer.code() == code);
    CHECK(t.answer.needed() == needed);
    CHECK(std::string(t.answer.what()) != "ok");
    CHECK(t.plan == made_before());
    CHECK(t.stages.empty());
    CHECK(policy.workspace_bytes(in, request) == 0);
    CHECK(policy.validate(in, request).code() == code);
}

// ---- Scorers and rerankers alone --------------------------------------------------------------------------

// Memory for the scores of a layer, filled with a mark that no scorer writes.
struct score_memory {
    static constexpr float untouched = -12345.0f;

    std::vector<index_t> offsets{0};
    std::vector<float> importance, attention, protected_mass;

    template <class Inputs>
    score_memory(const Inputs& in, const kvtrim::protection& p) {
        for (index_t g = 0; g < in.kv_heads(); ++g) {
            offsets.push_back(offsets.back() + kvtrim::candidates(p, in.tokens(g)).size());
        }
        fill();
    }
    explicit score_memory(const oracle::matrix& rows) {
        for (const auto& row : rows) { offsets.push_back(offsets.back() + static_cast<index_t>(row.size())); }
        fill();
        for (std::size_t g = 0, i = 0; g < rows.size(); ++g) {
            for (const double x : rows[g]) { attention[i] = importance[i] = static_cast<float>(x), ++i; }
        }
    }

    [[nodiscard]] kvtrim::token_scores get() { return {offsets, importance, attention, protected_mass}; }
    [[nodiscard]] kvtrim::score_rows importance_rows() { return {offsets, importance}; }
    [[nodiscard]] kvtrim::score_rows attention_rows() { return {offsets, attention}; }
    [[nodiscard]] bool is_untouched() const {
        const auto marked = [](const std::vector<float>& v) {
            return std::all_of(v.begin(), v.end(), [](float x) { return x == untouched; });
        };
        return marked(importance) && marked(attention) && marked(protected_mass);
    }

  private:
    void fill() {
        importance.assign(static_cast<std::size_t>(offsets.back()), untouched);
        attention = importance;
        protected_mass.assign(offsets.size() - 1, untouched);
    }
};

// Scores a layer with exactly the workspace that the scorer asks for.
template <class Scorer, class Inputs>
score_memory score_layer(const Scorer& scorer, const Inputs& in, const kvtrim::eviction_request& request) {
    score_memory memory(in, request.protect);
    kvtrim::growing_workspace bytes;
    index_t needed = 0;
    if constexpr (requires { scorer.workspace_bytes(in, request); }) {
        needed = scorer.workspace_bytes(in, request);
    }
    kvtrim::workspace scratch = bytes.of_bytes(needed);
    kvtrim::serial_executor ex;
    const kvtrim::status s = scorer.score(in, request, memory.get(), scratch, ex);
    if (!s.ok()) { throw std::runtime_error(s.what()); }
    return memory;
}

// A scorer without its other inputs, called directly: the status, and whether anything was written.
template <class Scorer, class Inputs>
kvtrim::status score_directly(const Scorer& scorer, const Inputs& in, const kvtrim::eviction_request& request,
                              const kvtrim::token_scores& out) {
    std::vector<std::byte> bytes(1 << 22);
    kvtrim::workspace scratch(bytes);
    kvtrim::serial_executor ex;
    return scorer.score(in, request, out, scratch, ex);
}

} // namespace support
