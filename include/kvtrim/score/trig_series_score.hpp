// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Scores each candidate by the logit that a head's mean query is expected to give it at distances from near to far, from
// statistics of queries before RoPE (score/query_pair_means.hpp). No query of the sequence itself is needed.
//
//   series[h, t] = mean over offsets o = 1, 2, 4, ..., 2^(octaves - 1) of <R(next + o) mean[h], k[t]>
//   spread[h, t] = sum over rotated pairs i of (length[h, i] - |mean[h, i]|) * |k[t, i]|
//   importance[g, t] = largest over query heads h of group g of  (series + spread - m[h]) / s[h]
//
// R(p): RoPE at position p; k[t] is rotated already. |.|: length of a pair of channels, which no rotation changes. m and s:
// mean and standard deviation over the head's candidates, so that heads of different scale can be compared.
// series is the trigonometric series sum_i |mean_i| |k_i| cos((next + o - position of t) f_i + angle), written as one product:
// the rotation of the mean query is averaged once per head, so keys need neither be turned back nor their positions
// known.
//
// Source: TriAttention, arXiv:2604.04921; the authors' code with normalised scores, mean over offsets and maximum over a
// group's heads, as its documentation and TensorRT-LLM's describe it. There the prompt is pinned and only generated tokens
// compete: keeping_prefix(request, prompt_tokens).
// Departures: channels that RoPE leaves alone add their product with the mean query; attention_options are not read, because
// a series is no attention.
// Cost: 2 * q_heads * tokens * head_dim flops and kv_heads * tokens * pairs square roots; keys read once. Workspace: for
// each query head of a group a score per token. Numerics: products in float, rotations and moments in double. A key that is not
// finite scores NaN, which ranks last, and takes no part in m and s.

#include <kvtrim/cache/layer.hpp>
#include <kvtrim/cache/read_rows.hpp>
#include <kvtrim/core/eviction_request.hpp>
#include <kvtrim/core/for_each_item.hpp>
#include <kvtrim/kernels/row_kernels.hpp>
#include <kvtrim/plan/token_scores.hpp>
#include <kvtrim/score/finite_sum.hpp>
#include <kvtrim/score/query_pair_means.hpp>

#include <cmath>
#include <limits>

namespace KVTRIM_NAMESPACE {

/// Scores by the expected logits of the mean query, at many distances.
struct trig_series_score {
    const query_pair_means* queries = nullptr; ///< of the layer; must outlive the scorer
    kvtrim::rope rope = {};                    ///< of the model; must outlive the scorer
    index_t next_position =
        -1; ///< of the next query; -1: the rows of the longest head, for a cache that was never cut
    index_t octaves = 17; ///< offsets 1, 2, 4, ... : 17 end at 65536; 1 to 62

    static constexpr bool writes_attention = false; ///< whether score() also writes attention

    /// Returns heads_not_divisible, invalid_parameter, or what the means say of themselves.
    template <class Inputs>
    [[nodiscard]] status validate(const Inputs& in, const eviction_request&) const {
        if (queries == nullptr) {
            return {errc::invalid_parameter, "trig_series: pass the means of the queries"};
        }
        if (const status s = queries->validate(); !s.ok()) { return s; }
        if (const status s = valid_rope(rope); !s.ok()) { return s; }
        if (queries->head_dim != in.head_dim() || queries->pairs != rope.pairs() ||
            queries->pairing != rope.pairing) {
            return {errc::invalid_parameter,
                    "trig_series: means, rope and keys must agree in channels and pairs", in.head_dim()};
        }
        if (in.kv_heads() > 0 && (queries->q_heads == 0 || queries->q_heads % in.kv_heads() != 0)) {
            return {errc::heads_not_divisible, "q_heads must be a positive multiple of kv_heads"};
        }
        if (octaves < 1 || octaves > 62 || next_position < -1) {
            return {errc::invalid_parameter,
                    "trig_series: octaves lie in 1 ... 62, the next position is not negative"};
        }
        return {};
    }

    /// Bytes of workspace for score() at the full width of this executor; 0 for inputs that it refuses.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] index_t workspace_bytes(const Inputs& in, const eviction_request& request,
                                          const Executor& ex = {}) const {
        if (!validate(in, request).ok()) { return 0; }
        return for_each_item_bytes(ex, in.kv_heads(), head_bytes(in, request));
    }

    /// Writes the importance of every candidate.
    /// Returns what validate_scoring() says or workspace_too_small, with nothing written.
    template <class Inputs, executor Executor>
    [[nodiscard]] status score(const Inputs& in, const eviction_request& request, const token_scores& out,
                               workspace& scratch, Executor& ex) const {
        if (const status s = validate_scoring(*this, in, request, out); !s.ok()) { return s; }
        return for_each_item(in.kv_heads(), head_bytes(in, request), scratch, ex,
                             [&](index_t g, workspace& own) {
                                 const head_scratch memory(*this, in, request, own);
                                 score_head(in, g, candidates(request.protect, in.tokens(g)), memory,
                                            out.importance_rows().row(g));
                             });
    }

  private:
    struct head_scratch {
        row_tile tile;
        std::span<float> mean;    // [group, head_dim] rotated
        std::span<float> spread;  // [group, pairs]
        std::span<float> lengths; // [tile, pairs] of the keys' pairs
        std::span<float> added;   // [tile]
        std::span<float> series;  // [group, candidates]

        template <class Inputs>
        head_scratch(const trig_series_score& s, const Inputs& in, const eviction_request& request,
                     workspace& own)
            : tile(in.head_dim(), own) {
            const index_t group = in.kv_heads() == 0 ? 0 : s.queries->q_heads / in.kv_heads();
            mean = own.take<float>(group * in.head_dim());
            spread = own.take<float>(group * s.rope.pairs());
            lengths = own.take<float>(row_tile::most_rows * s.rope.pairs());
            added = own.take<float>(row_tile::most_rows);
            series = own.take<float>(
                saturated_product(group, candidates(request.protect, in.longest_row()).size()));
        }
    };

    template <class Inputs>
    [[nodiscard]] index_t head_bytes(const Inputs& in, const eviction_request& request) const {
        workspace counting = workspace::counting();
        static_cast<void>(head_scratch(*this, in, request, counting));
        return counting.needed_bytes();
    }

    template <class Inputs>
    void score_head(const Inputs& in, index_t kv_head, token_range range, const head_scratch& memory,
                    std::span<float> scores) const {
        const index_t group = queries->q_heads / in.kv_heads(), dim = in.head_dim(), pairs = rope.pairs();
        const index_t next = next_position >= 0 ? next_position : in.longest_row();
        for (index_t h = 0; h < group; ++h) {
            expect_query(kv_head * group + h, next, memory.mean.data() + h * dim,
                         memory.spread.data() + h * pairs);
        }
        const kernels::row_kernels& steps = kernels::active_row_kernels();
        for_each_tile(
            in.keys, kv_head, range, memory.tile, [&](index_t first, index_t count, const float_rows& keys) {
                for (index_t i = 0; i < count; ++i) {
                    write_lengths(keys.data + i * keys.stride, memory.lengths.data() + i * pairs);
                }
                for (index_t h = 0; h < group; ++h) {
                    float* const to = memory.series.data() + h * range.size() + (first - range.begin);
                    steps.dots(keys.data, keys.stride, count, dim, memory.mean.data() + h * dim, to);
                    steps.dots(memory.lengths.data(), pairs, count, pairs, memory.spread.data() + h * pairs,
                               memory.added.data());
                    steps.add_row(memory.added.data(), count, to);
                }
            });
        std::fill(scores.begin(), scores.end(), std::numeric_limits<float>::quiet_NaN());
        for (index_t h = 0; h < group; ++h) {
            raise_normalised(
                memory.series.subspan(static_cast<std::size_t>(h) * scores.size(), scores.size()), scores);
        }
    }

    void write_lengths(const float* key, float* lengths) const {
        for (index_t i = 0; i < rope.pairs(); ++i) {
            const float x = key[rope.first_channel(i)], y = key[rope.second_channel(i)];
            lengths[i] = std::sqrt(x * x + y * y);
        }
    }

    // The mean query of a head, its rotation averaged over all offsets, and how much longer queries are than their mean.
    void expect_query(index_t q_head, index_t next, float* mean, float* spread) const {
        const auto factor = static_cast<double>(rope.attention_factor);
        for (index_t d = 0; d < queries->head_dim; ++d) {
            mean[d] = static_cast<float>(queries->mean(q_head, d));
        }
        for (index_t i = 0; i < rope.pairs(); ++i) {
            double cosine = 0, sine = 0;
            for (index_t o = 0; o < octaves; ++o) {
                const double angle =
                    rope.frequency(i) * (static_cast<double>(next) + static_cast<double>(index_t{1} << o));
                cosine += std::cos(angle);
                sine += std::sin(angle);
            }
            cosine *= factor / static_cast<double>(octaves);
            sine *= factor / static_cast<double>(octaves);
            const index_t a = rope.first_channel(i), b = rope.second_channel(i);
            const double x = queries->mean(q_head, a), y = queries->mean(q_head, b);
            mean[a] = static_cast<float>(x * cosine - y * sine);
            mean[b] = static_cast<float>(y * cosine + x * sine);
            spread[i] = static_cast<float>(factor * (queries->length(q_head, i) - std::sqrt(x * x + y * y)));
        }
    }

    // scores = max(scores, (series - mean) / deviation), where NaN counts as absent.
    static void raise_normalised(std::span<const float> series, std::span<float> scores) {
        const double mean = sum_of_finite(series).mean();
        const double variance =
            sum_of_finite(series, [&](double x) { return (x - mean) * (x - mean); }).mean();
        const double scale = variance > 0 ? 1 / std::sqrt(variance) : 0;
        for (std::size_t t = 0; t < scores.size(); ++t) {
            if (!std::isfinite(series[t])) { continue; }
            const auto z = static_cast<float>((static_cast<double>(series[t]) - mean) * scale);
            if (!(z <= scores[t])) { scores[t] = z; }
        }
    }
};

} // namespace KVTRIM_NAMESPACE
