// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Ada-KV in the form of its authors' code: the counts of the common cut, blended with an even share.
//
//   counts[r]  = tokens of row r among the `total` best of all rows (rows weighted first if asked)
//   budgets[r] = (1 - floor_ratio) * counts[r] + floor_ratio * total / rows
//   weight[r]  = (sum of row r's total / rows best scores) / (sum of its scores)      weight_by_kept_mass
//
// rounding exact: largest remainder, the budgets sum to total. rounding authors: round half to even of
// counts * (1 - floor) + int(share * floor) per row, capped at the row's length: the sum is off by a few.
//
// Source: Ada-KV, arXiv:2407.11550; FFY0/AdaKV@efe4e2e snapkv_utils.py AdaptiveSnapKVCluster (floor 0.5 in
// config_compress, 0.2 in the experiments and recommended for GQA; normalize off).
// Departures: a row without any score weighs 1 instead of 0/0.
// Cost: four linear reads of the scores; eight and a copy with weight_by_kept_mass.

#include <kvtrim/allocate/round_to_total.hpp>
#include <kvtrim/core/eviction_request.hpp>
#include <kvtrim/plan/find_top_k.hpp>

#include <cmath>
#include <cstdint>

namespace KVTRIM_NAMESPACE {

/// How blended rounds: exact sums to the total, authors is the rounding of the published code.
enum class budget_rounding : std::uint8_t { exact, authors };

/// The authors' rounding of one row: round half to even of the adaptive part plus the truncated even part.
[[nodiscard]] inline index_t blend_as_authors(index_t count, index_t even_share, double floor_ratio) {
    const double adaptive_part = static_cast<double>(count) * (1.0 - floor_ratio);
    const double even_part = std::trunc(static_cast<double>(even_share) * floor_ratio);
    return static_cast<index_t>(std::nearbyint(adaptive_part + even_part));
}

/// Ada-KV with the authors' floor: the counts of the common cut, blended with an even share.
struct blended {
    double floor_ratio = 0.2; ///< share spread evenly, in [0, 1]; AdaKV repository 0.5, for GQA 0.2
    /// Weigh each row by the share of its mass that an even split would keep
    bool weight_by_kept_mass = false;
    budget_rounding rounding = budget_rounding::exact; ///< authors: the sum is off by a few tokens

    static constexpr bool is_uniform = false; ///< whether rows of equal length get equal budgets

    /// Returns ratio_out_of_range unless floor_ratio lies in [0, 1].
    [[nodiscard]] status validate() const {
        if (floor_ratio >= 0.0 && floor_ratio <= 1.0) { return {}; }
        return {errc::ratio_out_of_range, "blended: floor_ratio must lie in [0, 1]"};
    }

    /// Bytes of workspace for allocate() over so many rows and candidates.
    [[nodiscard]] index_t workspace_bytes(index_t rows, index_t candidates) const {
        workspace counting = workspace::counting();
        static_cast<void>(take(rows, candidates, counting));
        static_cast<void>(counting.take<index_t>(rounding == budget_rounding::exact ? rows : 0));
        return counting.needed_bytes();
    }

    /// Fills budgets [rows].
    /// Returns what validate() or validate_total() says or errc::workspace_too_small, with nothing written.
    [[nodiscard]] status allocate(const score_rows& scores, index_t total, std::span<index_t> budgets,
                                  workspace& scratch) const {
        if (const status s = validate(); !s.ok()) { return s; }
        if (const status s = validate_total(scores, total, budgets); !s.ok()) { return s; }
        const index_t bytes = workspace_bytes(scores.rows(), scores.offsets.back());
        if (!scratch.holds(bytes)) { return scratch.too_small(bytes); }
        const workspace::frame frame(scratch);
        const buffers memory = take(scores.rows(), scores.offsets.back(), scratch);
        const index_t even_share = scores.rows() == 0 ? 0 : total / scores.rows();
        const score_rows ranked =
            weight_by_kept_mass ? weighted(scores, even_share, memory.weighted) : scores;
        top_k_cut cut = find_top_k(ranked, total);
        for (index_t r = 0; r < scores.rows(); ++r) {
            const auto row = static_cast<std::size_t>(r);
            const index_t count = count_above(ranked.row(r), cut);
            memory.caps[row] = scores.length(r);
            memory.ideal[row] =
                std::min(static_cast<double>(scores.length(r)),
                         (1.0 - floor_ratio) * static_cast<double>(count) +
                             floor_ratio * static_cast<double>(total) / static_cast<double>(scores.rows()));
            budgets[row] = std::min(scores.length(r), blend_as_authors(count, even_share, floor_ratio));
        }
        if (rounding == budget_rounding::authors) { return {}; }
        return round_to_total(memory.ideal, memory.caps, total, budgets, scratch);
    }

  private:
    struct buffers {
        std::span<double> ideal;
        std::span<index_t> caps;
        std::span<float> weighted;
    };

    [[nodiscard]] buffers take(index_t rows, index_t candidates, workspace& scratch) const {
        buffers b;
        b.ideal = scratch.take<double>(rows);
        b.caps = scratch.take<index_t>(rows);
        b.weighted = scratch.take<float>(weight_by_kept_mass ? candidates : 0);
        return b;
    }

    // A copy of the scores with each row multiplied by the share of its mass that an even split would keep.
    static score_rows weighted(const score_rows& scores, index_t even_share, std::span<float> copy) {
        const score_rows out{scores.offsets, copy};
        for (index_t r = 0; r < scores.rows(); ++r) {
            const auto row = scores.row(r);
            top_k_cut cut = find_top_k(row, std::min(even_share, scores.length(r)));
            double kept = 0;
            double all = 0;
            for_each_above(row, cut,
                           [&](index_t c) { kept += static_cast<double>(row[static_cast<std::size_t>(c)]); });
            for (const float s : row) { all += static_cast<double>(s); }
            const float weight = all > 0 ? static_cast<float>(kept / all) : 1.0f;
            std::transform(row.begin(), row.end(), out.row(r).begin(), [&](float s) { return s * weight; });
        }
        return out;
    }
};

} // namespace KVTRIM_NAMESPACE
