// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// CAKE's aggregations: attention that shifts between the window's queries counts more than attention that stays.
//
//   mean[h, c], var[h, c]    over the window queries i of A[h, i, c]; var is unbiased (divided by queries - 1)
//   mean_variance_attention  importance[c] = mean over the group's heads of pool(mean[h] + gamma * var[h])[c]
//   dispersion_attention     importance[c] = - sum over heads and queries of A log(A + 1e-10)    the token's entropy
//                            attention[c]  = sum over heads of var[h, c]
//
// The sums of the latter over a layer make its preference (score/layer_preference.hpp).
//
// Source: CAKE, arXiv:2503.12491, Sec. 4; FFY0/DefensiveKV@9251b95 cake_scorer_press.py (gamma 200, kernel 5).
// Departures: the kernel is a parameter (fixed at 5 there). One query has variance 0.
// Cost: two (dispersion: three and a logarithm) operations per attention weight; lanes: 2 per query head (and one).
// Numerics: sums and squares in float; a variance that rounds below 0 is 0.

#include <kvtrim/aggregate/attention_tile.hpp>
#include <kvtrim/aggregate/pooling.hpp>

#include <cmath>

namespace KVTRIM_NAMESPACE {

namespace detail {

// Sums and sums of squares over the queries of each query head: lanes 2 h and 2 h + 1.
inline void add_moments(const attention_tile& tile, std::span<float> accumulators) {
    tile.for_each_query_head([&](index_t query_head, index_t begin, index_t end) {
        float* const sum = accumulators.data() + 2 * query_head * tile.head.candidates + tile.first;
        float* const square = sum + tile.head.candidates;
        for (index_t t = 0; t < tile.tokens; ++t) {
            const float* column = tile.column(t);
            for (index_t r = begin; r < end; ++r) {
                sum[t] += column[r];
                square[t] += column[r] * column[r];
            }
        }
    });
}

[[nodiscard]] inline float unbiased_variance(float sum, float square, index_t queries) {
    if (queries < 2) { return 0; }
    const auto n = static_cast<double>(queries);
    const double centred =
        static_cast<double>(square) - static_cast<double>(sum) * static_cast<double>(sum) / n;
    return static_cast<float>(std::max(0.0, centred / (n - 1)));
}

} // namespace detail

/// Mean plus weighted variance of the attention over the window's queries (CAKE).
struct mean_variance_attention {
    float gamma = 200.0f;      ///< weight of the variance; reference 200
    index_t kernel_tokens = 5; ///< odd; reference 5

    /// Whether finish() also writes `attention`.
    static constexpr bool writes_attention = false;

    /// Returns invalid_parameter for a gamma or a kernel out of range.
    [[nodiscard]] status validate() const {
        if (!(gamma >= 0.0f) || !std::isfinite(gamma)) {
            return {errc::invalid_parameter,
                    "mean_variance_attention: gamma must be finite and not negative"};
        }
        return valid_kernel(kernel_tokens);
    }
    /// Columns on either side of a tile that add() needs: none.
    [[nodiscard]] index_t halo() const { return 0; }
    /// Floats accumulated per candidate: a sum and a sum of squares for each query head.
    [[nodiscard]] index_t lanes(index_t group_size) const { return 2 * group_size; }

    /// Adds a tile to accumulators [lanes, candidates].
    void add(const attention_tile& tile, std::span<float> accumulators) const {
        detail::add_moments(tile, accumulators);
    }

    /// Writes the scores [candidates] from accumulators [lanes, candidates], which it may overwrite.
    void finish(const attention_head& head, std::span<float> accumulators, std::span<float> importance,
                std::span<float>) const {
        const auto columns = static_cast<std::size_t>(head.candidates);
        const auto queries = static_cast<float>(head.queries);
        const auto into = accumulators.first(columns); // head 0's sums become the group's mean
        for (index_t h = 0; h < head.group_size; ++h) {
            const auto sum = accumulators.subspan(2 * static_cast<std::size_t>(h) * columns, columns);
            const auto square =
                accumulators.subspan((2 * static_cast<std::size_t>(h) + 1) * columns, columns);
            for (std::size_t c = 0; c < columns; ++c) {
                const float score =
                    sum[c] / queries + gamma * detail::unbiased_variance(sum[c], square[c], head.queries);
                into[c] = (h == 0 ? 0.0f : into[c]) + score / static_cast<float>(head.group_size);
            }
        }
        static_cast<void>(
            pool(pooling::average, kernel_tokens, into, importance)); // validate() has checked the kernel
    }
};

/// Entropy of the attention, and its variance for pass one (CAKE's layer preference).
struct dispersion_attention {
    /// Whether finish() also writes `attention`.
    static constexpr bool writes_attention = true;

    /// Ok: there is no parameter.
    [[nodiscard]] static status validate() { return {}; }
    /// Columns on either side of a tile that add() needs: none.
    [[nodiscard]] static index_t halo() { return 0; }
    /// Floats accumulated per candidate: a sum and a sum of squares for each query head, and the entropy.
    [[nodiscard]] static index_t lanes(index_t group_size) { return 2 * group_size + 1; }

    /// Adds a tile to accumulators [lanes, candidates].
    void add(const attention_tile& tile, std::span<float> accumulators) const {
        detail::add_moments(tile, accumulators);
        float* const entropy =
            accumulators.data() + 2 * tile.head.group_size * tile.head.candidates + tile.first;
        for (index_t t = 0; t < tile.tokens; ++t) {
            const float* column = tile.column(t);
            for (index_t r = 0; r < tile.query_rows; ++r) {
                entropy[t] -= column[r] * std::log(column[r] + 1e-10f);
            }
        }
    }

    /// Writes the scores [candidates] from accumulators [lanes, candidates], which it may overwrite.
    void finish(const attention_head& head, std::span<float> accumulators, std::span<float> importance,
                std::span<float> attention) const {
        const auto columns = static_cast<std::size_t>(head.candidates);
        const auto lane = [&](index_t l) {
            return accumulators.subspan(static_cast<std::size_t>(l) * columns, columns);
        };
        const auto entropy = lane(2 * head.group_size);
        for (std::size_t c = 0; c < columns; ++c) {
            importance[c] = entropy[c];
            attention[c] = 0;
            for (index_t h = 0; h < head.group_size; ++h) {
                attention[c] += detail::unbiased_variance(lane(2 * h)[c], lane(2 * h + 1)[c], head.queries);
            }
        }
    }
};

} // namespace KVTRIM_NAMESPACE
