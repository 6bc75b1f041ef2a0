// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Any scorer, less the similarity of a token's key to the other keys of the head. For long reasoning texts: they repeat
// themselves, and repeated tokens attend to each other.
//
//   u[t]       = k[t] / || k[t] ||_2
//   newest(i)  = the newest t != i with <u[i], u[t]> > similar_above
//   r[t]       = mean over the head's tokens i of <u[i], u[t]>, leaving out i = t and every i with newest(i) = t
//   importance = lambda * s[t] / mean |s|  -  (1 - lambda) * e^r[t] / mean e^r
//
// So similarity to other tokens lowers a token's score. The newest of several similar tokens is exempt from their share, so
// that one of them is kept. As r is a mean over all tokens, a single copy changes it by 1 / tokens only, and
// the common direction of the keys has more influence.
//
// Source: R-KV, arXiv:2505.24133, Sec. 3; Zefan-Cai/R-KV@cc5a9b9 rkv/utils.py (one newest token, threshold 0.5).
// Departures: no tokens x tokens matrix. The mean cosine is one product with the sum of all u, exactly; newest() is
// searched in tiles from the newest token back, until found, and among the search_tokens newest only (0: all, as the
// reference does). Scores count in units of their head's mean, which is what the reference's softmax over the prefix
// makes of attention, so that any scorer can be the base and lambda keeps its meaning.
// A zero key has cosine 0 with every other. A key without a finite norm has no direction: it takes no part and scores NaN,
// which ranks last. A base score that is not finite stays as it is and out of the mean. Protected tokens count as keys;
// those of a rollback tail, which may be undone, do not.
// Cost: keys read three times and 4 * tokens * head_dim flops, and at most 2 * tokens * search_tokens * head_dim for
// the search. Memory: linear. Workspace: two floats per token and tiles of keys per KV head, or the inner scorer's.

#include <kvtrim/cache/layer.hpp>
#include <kvtrim/cache/read_rows.hpp>
#include <kvtrim/core/eviction_request.hpp>
#include <kvtrim/core/for_each_item.hpp>
#include <kvtrim/kernels/product_kernels.hpp>
#include <kvtrim/kernels/row_kernels.hpp>
#include <kvtrim/kernels/tile_tokens.hpp>
#include <kvtrim/plan/token_scores.hpp>
#include <kvtrim/score/finite_sum.hpp>

#include <cmath>
#include <limits>

namespace KVTRIM_NAMESPACE {

namespace detail {

// Redundancy e^r of the first `rows` keys of one head.
template <class Keys>
class key_redundancy {
  public:
    key_redundancy(const Keys& keys, index_t head, index_t rows, workspace& own)
        : keys_(keys), head_(head), rows_(rows), dim_(extent(keys, 2)),
          tile_tokens_(kernels::tile_tokens(dim_)), units_(own.take<float>(tile_tokens_ * dim_)),
          newer_(own.take<float>(search_rows * dim_)), cosines_(own.take<float>(tile_tokens_ * search_rows)),
          found_(own.take<bool>(tile_tokens_)), sum_(own.take<double>(dim_)), sum_row_(own.take<float>(dim_)),
          spared_(own.take<float>(rows)), result_(own.take<float>(rows)) {}

    // The result holds until the workspace is given back.
    [[nodiscard]] std::span<const float> compute(float similar_above, index_t search_tokens) {
        sum_units();
        spare_newest(similar_above, search_tokens > 0 ? std::max<index_t>(0, rows_ - search_tokens) : 0);
        for_each_tile([&](index_t first, index_t count) {
            const kernels::row_kernels& steps = kernels::active_row_kernels();
            float others[kernels::most_tile_tokens], own[kernels::most_tile_tokens];
            steps.dots(units_.data(), dim_, count, dim_, sum_row_.data(), others);
            steps.dots(units_.data(), dim_, count, dim_, nullptr, own);
            for (index_t i = 0; i < count; ++i) {
                const auto t = static_cast<std::size_t>(first + i);
                result_[t] = std::exp((others[i] - own[i] - spared_[t]) / static_cast<float>(directions_));
            }
        });
        return result_;
    }

  private:
    static constexpr index_t search_rows = 32;

    void sum_units() {
        std::fill(sum_.begin(), sum_.end(), 0.0);
        for_each_tile([&](index_t, index_t count) {
            float weights[kernels::most_tile_tokens];
            for (index_t i = 0; i < count; ++i) {
                const bool has_direction =
                    dim_ == 0 || !std::isnan(units_[static_cast<std::size_t>(i * dim_)]);
                weights[i] = has_direction ? 1.0f : 0.0f;
                directions_ += has_direction ? 1 : 0;
            }
            kernels::active_row_kernels().add_over_rows(units_.data(), dim_, count, dim_, weights,
                                                        sum_.data());
        });
        for (std::size_t d = 0; d < sum_.size(); ++d) { sum_row_[d] = static_cast<float>(sum_[d]); }
    }

    // spared[t] = sum of the cosines with every i whose newest similar token, at or behind `oldest`, is t.
    void spare_newest(float similar_above, index_t oldest) {
        std::fill(spared_.begin(), spared_.end(), 0.0f);
        for_each_tile([&](index_t first, index_t count) {
            std::fill_n(found_.begin(), count, false);
            index_t missing = count;
            for (index_t end = rows_; end > oldest && missing > 0; end -= search_rows) {
                const index_t begin = std::max(oldest, end - search_rows);
                load_units(begin, end - begin, newer_);
                kernels::logits(units_.data(), dim_, count, newer_.data(), end - begin, dim_,
                                cosines_.data());
                for (index_t i = 0; i < count; ++i) {
                    bool& found = found_[static_cast<std::size_t>(i)];
                    if (found) { continue; }
                    const float* const cosines = cosines_.data() + i * (end - begin);
                    const index_t own = first + i - begin;
                    index_t t = end - begin - 1;
                    while (t >= 0 && (t == own || !(cosines[t] > similar_above))) { --t; }
                    if (t < 0) { continue; }
                    spared_[static_cast<std::size_t>(begin + t)] += cosines[t];
                    found = true;
                    --missing;
                }
            }
        });
    }

    template <class Fn>
    void for_each_tile(Fn&& fn) {
        for (index_t first = 0; first < rows_; first += tile_tokens_) {
            const index_t count = std::min(tile_tokens_, rows_ - first);
            load_units(first, count, units_);
            fn(first, count);
        }
    }

    // Keys of length 1; zero keys stay zero, and those without a direction are NaN.
    void load_units(index_t first, index_t count, std::span<float> units) const {
        load_rows(keys_, head_, first, count, units.data());
        const kernels::row_kernels& steps = kernels::active_row_kernels();
        float factors[kernels::most_tile_tokens];
        steps.dots(units.data(), dim_, count, dim_, nullptr, factors);
        for (float& x : std::span(factors).first(static_cast<std::size_t>(count))) {
            const float norm = std::sqrt(x);
            x = norm == 0             ? 1.0f
                : std::isfinite(norm) ? 1.0f / norm
                                      : std::numeric_limits<float>::quiet_NaN();
        }
        steps.scale_rows(units.data(), count, dim_, factors);
    }

    const Keys& keys_;
    index_t head_, rows_, dim_, tile_tokens_;
    index_t directions_ = 0;
    std::span<float> units_;   // [tile_tokens, head_dim]
    std::span<float> newer_;   // [search_rows, head_dim]
    std::span<float> cosines_; // [tile_tokens, search_rows]
    std::span<bool> found_;    // [tile_tokens]
    std::span<double> sum_;    // [head_dim]
    std::span<float> sum_row_; // [head_dim]
    std::span<float> spared_;  // [rows]
    std::span<float> result_;  // [rows]
};

} // namespace detail

/// The inner scores, less the similarity of each key to the other keys of its head.
template <class Scorer>
struct redundancy_aware {
    [[no_unique_address]] Scorer scorer = {}; ///< the inner scorer
    float importance_share = 0.1f;            ///< lambda; paper 0.1
    float similar_above = 0.5f;               ///< cosine from which two tokens count as similar
    index_t search_tokens = 1024; ///< newest tokens among which the newest similar one is looked for; 0: all

    /// whether score() also writes attention
    static constexpr bool writes_attention = Scorer::writes_attention;

    /// Returns invalid_parameter for a field out of range, or what the inner scorer says.
    template <class Inputs>
    [[nodiscard]] status validate(const Inputs& in, const eviction_request& request) const {
        if (!(importance_share >= 0 && importance_share <= 1)) {
            return {errc::invalid_parameter, "redundancy_aware: importance_share must be between 0 and 1"};
        }
        if (!(similar_above >= 0 && similar_above <= 1)) {
            return {errc::invalid_parameter, "redundancy_aware: similar_above must be between 0 and 1"};
        }
        if (search_tokens < 0) {
            return {errc::invalid_parameter, "redundancy_aware: search_tokens must not be negative"};
        }
        if constexpr (requires { scorer.validate(in, request); }) { return scorer.validate(in, request); }
        return {};
    }

    /// Bytes of workspace for score(), at the full width of this executor.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] index_t workspace_bytes(const Inputs& in, const eviction_request& request,
                                          const Executor& ex = {}) const {
        const index_t bytes = for_each_item_bytes(ex, in.kv_heads(), head_bytes(in));
        return std::max(bytes, scoring_bytes(scorer, in, request, ex));
    }

    /// Writes the importance of every candidate.
    /// Returns what validate_scoring() says or errc::workspace_too_small, with nothing written.
    template <class Inputs, executor Executor>
    [[nodiscard]] status score(const Inputs& in, const eviction_request& request, const token_scores& out,
                               workspace& scratch, Executor& ex) const {
        if (const status s = validate_scoring(*this, in, request, out, scratch); !s.ok()) { return s; }
        if (const status s = scorer.score(in, request, out, scratch, ex); !s.ok()) { return s; }
        return for_each_item(in.kv_heads(), head_bytes(in), scratch, ex, [&](index_t g, workspace& own) {
            const index_t tokens = in.tokens(g);
            const index_t rows = tokens - std::min(request.protect.rollback_tokens, tokens);
            detail::key_redundancy redundancy(in.keys, g, rows, own);
            mix(redundancy.compute(similar_above, search_tokens), candidates(request.protect, tokens),
                out.importance_rows().row(g));
        });
    }

  private:
    template <class Inputs>
    [[nodiscard]] static index_t head_bytes(const Inputs& in) {
        workspace counting = workspace::counting();
        static_cast<void>(detail::key_redundancy(in.keys, 0, in.longest_row(), counting));
        return counting.needed_bytes();
    }

    // Mean of the magnitudes of the finite values.
    static double mean_of(std::span<const float> values) {
        return sum_of_finite(values, [](double x) { return std::abs(x); }).mean();
    }

    void mix(std::span<const float> redundancy, token_range range, std::span<float> importance) const {
        const double mean_importance = mean_of(importance);
        const double share =
            mean_importance > 0 ? static_cast<double>(importance_share) / mean_importance : 0.0;
        const double charge = (1 - static_cast<double>(importance_share)) / mean_of(redundancy);
        for (std::size_t c = 0; c < importance.size(); ++c) {
            if (!std::isfinite(importance[c])) { continue; }
            const float likeness = redundancy[static_cast<std::size_t>(range.begin) + c];
            importance[c] = static_cast<float>(share * static_cast<double>(importance[c]) -
                                               charge * static_cast<double>(likeness));
        }
    }
};

} // namespace KVTRIM_NAMESPACE
