// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Budgets from a table that was taken once per model: which (layer, KV head) rows need many tokens, whatever the prompt.
//
//   curve[r][i]  = mean over the prompts of the log of row r's score at the quantile i / 64, highest first
//   u[r](x)      = share of row r whose curve is above x
//   budgets[r]   = u[r](x) * length of row r, x such that they sum to the total
//
//     kvtrim::row_profile profile;                                    // once: scores of a replay of any text, all layers
//     s = kvtrim::layer_replay().plan(std::span<const kvtrim::replay_scores>(layers), request, plans, memory, {},
//             [&](const kvtrim::plan_progress& at) {
//                 if (at.stage == kvtrim::plan_stage::scored) { added = profile.add(at.scores.importance_rows()); }
//             });
//     auto policy = kvtrim::layer_wise{kvtrim::eviction_policy{scorer, profile.budgets(), kvtrim::by_importance{}}};
//     kvtrim::above_threshold fifth{profile.budgets().threshold_of(0.2)};   // of such scores; how many stay is the prompt's own
//
// The scores of a prompt then decide inside each row only. Which heads look things up is a property of the model, so that a single
// pass gets the budgets that a replay would have given. A table has a row for each of the rows that compete: all layers', or
// one layer's.
//
// Source: the idea of budgets from a table: LU-KV (2602.08585; its own tables: allocate/layer_shares.hpp) and DuoAttention
// (2410.10819); these tables and rule are kvtrim's own.
// Cost: adding sorts each row; a plan takes 64 halvings of x. Workspace: 16 bytes per row. Memory: 65 floats per row.

#include <kvtrim/allocate/round_to_total.hpp>
#include <kvtrim/core/eviction_request.hpp>
#include <kvtrim/core/save.hpp>
#include <kvtrim/plan/token_scores.hpp>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

namespace KVTRIM_NAMESPACE {

/// The allocator: refers to a row_profile, which must outlive it.
struct profiled_budgets {
    static constexpr index_t points = 65; ///< of a curve

    /// [rows, points] natural logs of scores, descending in a row: point i is the score that the share i / (points - 1) of the
    /// row's candidates exceeds.
    std::span<const float> curves;

    static constexpr bool is_uniform = false; ///< rows get different budgets

    /// Returns invalid_parameter for a table without rows, or with a part of one.
    [[nodiscard]] status validate() const {
        if (!curves.empty() && std::ssize(curves) % points == 0) { return {}; }
        return {errc::invalid_parameter, "profiled_budgets: the table has no rows: add() scores to it first"};
    }

    /// Bytes of workspace for allocate().
    [[nodiscard]] static index_t workspace_bytes(index_t rows, index_t /*candidates*/) {
        workspace counting = workspace::counting();
        static_cast<void>(counting.take<double>(rows));
        static_cast<void>(counting.take<index_t>(rows));
        static_cast<void>(counting.take<index_t>(rows)); // of round_to_total
        return counting.needed_bytes();
    }

    /// Fills budgets [rows]; their sum is total. Returns what validate() or validate_total() says, invalid_parameter for another
    /// number of rows than the table's (needed: those), or workspace_too_small, with nothing written.
    [[nodiscard]] status allocate(const score_rows& scores, index_t total, std::span<index_t> budgets,
                                  workspace& scratch) const {
        if (const status s = validate(); !s.ok()) { return s; }
        if (const status s = validate_total(scores, total, budgets); !s.ok()) { return s; }
        const index_t rows = std::ssize(curves) / points;
        if (scores.rows() != rows) {
            return {errc::invalid_parameter,
                    "profiled_budgets: the table must have a row for each that competes", rows};
        }
        const index_t bytes = workspace_bytes(rows, 0);
        if (!scratch.holds(bytes)) { return scratch.too_small(bytes); }
        const workspace::frame frame(scratch);
        const auto ideal = scratch.take<double>(rows);
        const auto caps = scratch.take<index_t>(rows);
        const auto [low, high] =
            level_of(static_cast<double>(total), [&](index_t r) { return scores.length(r); });
        // `high` keeps no more than the total; where curves are flat the rest goes evenly to what `low` would keep beside it.
        double kept = 0, more = 0;
        for (index_t r = 0; r < rows; ++r) {
            const auto length = static_cast<double>(scores.length(r));
            kept += share_above(r, high) * length;
            more += (share_above(r, low) - share_above(r, high)) * length;
        }
        const double part = more > 0 ? std::clamp((static_cast<double>(total) - kept) / more, 0.0, 1.0) : 0.0;
        for (index_t r = 0; r < rows; ++r) {
            const auto i = static_cast<std::size_t>(r);
            const double least = share_above(r, high);
            caps[i] = scores.length(r);
            ideal[i] = (least + part * (share_above(r, low) - least)) * static_cast<double>(caps[i]);
        }
        return round_to_total(ideal, caps, total, budgets, scratch);
    }

    /// The score above which a share (0 to 1) of all candidates lies where every row has as many: a threshold made once per model
    /// (allocate/above_threshold.hpp). From a share of 1 on it is -infinity; one that is not above 0 keeps none of the scores of
    /// the table; a table that is not valid gives 0.
    [[nodiscard]] float threshold_of(double share) const {
        if (!validate().ok()) { return 0; }
        if (share >= 1) { return -std::numeric_limits<float>::infinity(); }
        const double rows = static_cast<double>(std::ssize(curves) / points);
        return static_cast<float>(std::exp(level_of(share * rows, [](index_t) { return 1; }).high));
    }

    /// Share (0 to 1) of a row's candidates that its curve puts above x, the log of a score; linear between the points. The row
    /// is not checked.
    [[nodiscard]] double share_above(index_t row, double x) const {
        const auto curve =
            curves.subspan(static_cast<std::size_t>(row * points), static_cast<std::size_t>(points));
        const auto after = std::partition_point(curve.begin(), curve.end(),
                                                [&](float y) { return static_cast<double>(y) > x; });
        if (after == curve.begin()) { return 0; }
        if (after == curve.end()) { return 1; }
        const auto above = static_cast<double>(after[-1]), below = static_cast<double>(*after);
        return (static_cast<double>(after - curve.begin()) - 1 + (above - x) / (above - below)) /
               static_cast<double>(points - 1);
    }

  private:
    struct level {
        double low, high;
    };

    // Logs of scores, as close as they get: `high` keeps at most `total` candidates of rows of these lengths, `low` more.
    template <class Length>
    [[nodiscard]] level level_of(double total, Length&& length) const {
        const auto [lowest, highest] = std::minmax_element(curves.begin(), curves.end());
        level at{static_cast<double>(*lowest) - 1, static_cast<double>(*highest) + 1};
        for (int halving = 0; halving < 64; ++halving) {
            const double x = (at.low + at.high) / 2;
            double kept = 0;
            for (index_t r = 0; r < std::ssize(curves) / points; ++r) {
                kept += share_above(r, x) * static_cast<double>(length(r));
            }
            (kept <= total ? at.high : at.low) = x;
        }
        return at;
    }
};

/// The mean score curve of each row over the prompts seen, from which profiled_budgets deals out. A value: copies are
/// independent; save() and restore() take it (core/save.hpp).
class row_profile {
  public:
    /// Of no prompts.
    row_profile() = default;

    /// Rows that compete, (layer, KV head); 0 before the first add().
    [[nodiscard]] index_t rows() const { return std::ssize(curves_) / profiled_budgets::points; }
    /// How often add() took scores.
    [[nodiscard]] index_t prompts() const { return prompts_; }

    /// Takes the scores of one more prompt, of all rows that compete. A score that is not above 0, or not finite, counts as the
    /// smallest number. Returns what validate() says of the scores, or invalid_parameter for another number of rows than before or a
    /// row without scores, with nothing changed.
    [[nodiscard]] status add(const score_rows& scores) {
        if (const status s = validate(scores); !s.ok()) { return s; }
        if (scores.rows() == 0 || (prompts_ > 0 && scores.rows() != rows())) {
            return {errc::invalid_parameter, "row_profile: every prompt has the same rows", rows()};
        }
        for (index_t r = 0; r < scores.rows(); ++r) {
            if (scores.length(r) == 0) {
                return {errc::invalid_parameter, "row_profile: every row needs scores"};
            }
        }
        constexpr index_t points = profiled_budgets::points;
        index_t longest = 0;
        for (index_t r = 0; r < scores.rows(); ++r) { longest = std::max(longest, scores.length(r)); }
        std::vector<float> sorted;
        sorted.reserve(static_cast<std::size_t>(longest));
        curves_.resize(static_cast<std::size_t>(scores.rows() * points)); // the last line that may throw
        for (index_t r = 0; r < scores.rows(); ++r) {
            const auto row = scores.row(r);
            sorted.assign(row.begin(), row.end());
            for (float& x : sorted) {
                constexpr float smallest = std::numeric_limits<float>::min();
                x = x > smallest && x <= std::numeric_limits<float>::max() ? x : smallest;
            }
            std::sort(sorted.begin(), sorted.end(), std::greater<>());
            for (index_t i = 0; i < points; ++i) {
                const auto at = static_cast<std::size_t>(i * (std::ssize(sorted) - 1) / (points - 1));
                float* const mean = curves_.data() + r * points + i;
                *mean += (std::log(sorted[at]) - *mean) / static_cast<float>(prompts_ + 1);
                // Rounding may put the mean of lower scores a unit in the last place above that of higher ones.
                if (i > 0) { *mean = std::min(*mean, mean[-1]); }
            }
        }
        ++prompts_;
        return {};
    }

    /// The allocator over these curves [rows, points]; refers to this object until it changes.
    [[nodiscard]] profiled_budgets budgets() const& { return {curves_}; }
    profiled_budgets budgets() const&& = delete; ///< of a temporary

    /// Writes the state, for save() (core/save.hpp).
    void write(memory_writer& out) const {
        out.put(tag);
        out.put(prompts_);
        out.put(rows());
        out.put(std::span<const float>(curves_));
    }
    /// Reads it back, for restore(). False for bytes that are no such state; this object is then not to be used.
    [[nodiscard]] bool read(memory_reader& in) {
        std::uint32_t kind = 0;
        index_t rows = 0;
        if (!in.get(kind) || kind != tag || !in.get(prompts_) || !in.get(rows)) { return false; }
        if (prompts_ < 0 || prompts_ > index_t{1} << 53 || (prompts_ == 0) != (rows == 0)) { return false; }
        if (!in.holds<float>(rows, profiled_budgets::points)) { return false; }
        curves_.resize(static_cast<std::size_t>(rows * profiled_budgets::points));
        if (!in.get(std::span(curves_))) { return false; }
        for (std::size_t i = 0; i < curves_.size(); ++i) {
            const bool begins = i % static_cast<std::size_t>(profiled_budgets::points) == 0;
            if (!std::isfinite(curves_[i]) || (!begins && curves_[i] > curves_[i - 1])) { return false; }
        }
        return true;
    }

  private:
    static constexpr std::uint32_t tag = 0x31664B54;

    std::vector<float> curves_; // [rows, points]
    index_t prompts_ = 0;
};

} // namespace KVTRIM_NAMESPACE
