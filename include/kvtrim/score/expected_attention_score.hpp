// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Scores each candidate by the attention that queries yet to come are expected to pay to it, from the statistics of the
// queries so far.
//
//   R                = mean RoPE rotation over the next future_positions positions
//   logit[h, t]      = scale * <R mean[h], k[t]>  +  scale^2 / 2 * k[t] R covariance[h] R^T k[t]^T
//   importance[g, t] = mean over query heads h of group g of softmax over tokens of logit[h, t]
//
// The logit is the logarithm of E[exp(scale * <q, k>)] for a Gaussian q with the rotated moments. The softmax runs over
// the tokens between the request's sinks and its rollback tail, protected or not; scale, soft cap, sink logits and a
// sliding window (as the next query sees it) are the request's.
//
// Source: Expected Attention, arXiv:2510.00636; kvpress@8bb29b9 expected_attention_press.py, use_vnorm = False; for its
// value norms wrap this in value_norm_weighted (score/value_norm_weighted.hpp), as policy/expected_attention.hpp does.
// Departures: sinks are protected by the request, not by the score maximum + 1. The rotation is averaged in closed form
// and in double (the reference: one rotation at a time, in the model's type). R covariance R^T uses the averaged
// rotation, as the reference does: a heuristic, not the covariance of the rotated queries. The attention factor is in
// R; the keys have theirs already.
// Cost: 2 * q_heads * tokens * head_dim^2 flops (mean only: 2 * q_heads * tokens * head_dim), keys read once per query
// head. Workspace: a logit per token, two tiles and a head_dim x head_dim matrix per KV head.
// Numerics: products in float, rotations and sums over tokens in double. A NaN logit counts as masked.

#include <kvtrim/cache/layer.hpp>
#include <kvtrim/cache/read_rows.hpp>
#include <kvtrim/cache/rope.hpp>
#include <kvtrim/core/eviction_request.hpp>
#include <kvtrim/kernels/projection_kernels.hpp>
#include <kvtrim/kernels/row_kernels.hpp>
#include <kvtrim/plan/token_scores.hpp>
#include <kvtrim/score/query_statistics.hpp>

#include <cmath>

namespace KVTRIM_NAMESPACE {

/// Scores by the attention that the next queries are expected to pay, given statistics of the earlier ones.
struct expected_attention_score {
    const query_statistics* statistics = nullptr; ///< [q_heads, head_dim], up to the end of the prompt
    kvtrim::rope rope = {};         ///< of the model; must outlive the scorer, as must the statistics
    index_t future_positions = 512; ///< positions over which the rotation is averaged, at least 1
    bool use_covariance = true;     ///< false: the mean query alone

    static constexpr bool writes_attention = false; ///< whether score() also writes attention

    /// Returns errc::heads_not_divisible, invalid_parameter, or what the statistics say of themselves.
    template <class Inputs>
    [[nodiscard]] status validate(const Inputs& in, const eviction_request& request) const {
        if (statistics == nullptr) {
            return {errc::invalid_parameter, "expected_attention: pass the statistics of the queries"};
        }
        if (const status s = statistics->validate(); !s.ok()) { return s; }
        if (statistics->head_dim != in.head_dim()) {
            return {errc::invalid_parameter,
                    "expected_attention: query statistics and keys must agree in head_dim", in.head_dim()};
        }
        if (rope.rotary_dim() > in.head_dim()) {
            return {errc::invalid_parameter, "expected_attention: rope rotates at most head_dim channels",
                    in.head_dim()};
        }
        const auto& options = request.attention;
        if (in.kv_heads() > 0 && (statistics->q_heads == 0 || statistics->q_heads % in.kv_heads() != 0)) {
            return {errc::heads_not_divisible, "q_heads must be a positive multiple of kv_heads"};
        }
        if (future_positions <= 0) {
            return {errc::invalid_parameter, "expected_attention: future_positions must be positive"};
        }
        if (const status s = valid_attention(options, statistics->q_heads); !s.ok()) { return s; }
        return valid_rope(rope);
    }

    /// Bytes of workspace for score() at the full width of this executor; 0 for inputs that it refuses.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] index_t workspace_bytes(const Inputs& in, const eviction_request& request,
                                          const Executor& ex = {}) const {
        if (!validate(in, request).ok()) { return 0; }
        return for_each_item_bytes(ex, in.kv_heads(), head_bytes(in));
    }

    /// Writes the importance of every candidate.
    /// Returns what validate_scoring() says or errc::workspace_too_small, with nothing written.
    template <class Inputs, executor Executor>
    [[nodiscard]] status score(const Inputs& in, const eviction_request& request, const token_scores& out,
                               workspace& scratch, Executor& ex) const {
        if (const status s = validate_scoring(*this, in, request, out); !s.ok()) { return s; }
        return for_each_item(in.kv_heads(), head_bytes(in), scratch, ex, [&](index_t g, workspace& own) {
            const head_scratch memory(in.head_dim(), in.longest_row(), own);
            score_head(in, request, g, memory, out.importance_rows().row(g));
        });
    }

  private:
    struct head_scratch {
        std::span<float> keys;    // [tile_tokens, head_dim]
        std::span<float> scratch; // of the kernels
        std::span<float> matrix;  // [head_dim, head_dim]
        std::span<float> packed;  // the matrix as the kernels read it
        std::span<float> query;   // [head_dim]
        std::span<float> logits;  // [tokens]

        head_scratch(index_t dim, index_t tokens, workspace& own)
            : keys(own.take<float>(kernels::tile_tokens(dim) * dim)),
              scratch(own.take<float>(kernels::norm_scratch_floats(kernels::tile_tokens(dim)))),
              matrix(own.take<float>(dim * dim)), packed(own.take<float>(kernels::panel_floats(dim, dim))),
              query(own.take<float>(dim)), logits(own.take<float>(tokens)) {}
    };

    template <class Inputs>
    [[nodiscard]] static index_t head_bytes(const Inputs& in) {
        workspace counting = workspace::counting();
        static_cast<void>(head_scratch(in.head_dim(), in.longest_row(), counting));
        return counting.needed_bytes();
    }

    // The rows that the next query sees.
    static token_range visible(const eviction_request& request, index_t tokens) {
        const index_t end = tokens - std::min(request.protect.rollback_tokens, tokens);
        const index_t window = request.attention.sliding_window;
        const index_t oldest = window > 0 ? end + 1 - window : 0;
        return {std::clamp(request.protect.sink_tokens, std::min(std::max<index_t>(oldest, 0), end), end),
                end};
    }

    template <class Inputs>
    void score_head(const Inputs& in, const eviction_request& request, index_t kv_head,
                    const head_scratch& memory, std::span<float> scores) const {
        const index_t tokens = in.tokens(kv_head);
        const token_range seen = visible(request, tokens);
        const token_range range = candidates(request.protect, tokens);
        const index_t group = statistics->q_heads / in.kv_heads();
        std::fill(scores.begin(), scores.end(), 0.0f);
        for (index_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
            expected_logits(in, request.attention, kv_head, h, seen, memory);
            const std::span<const float> logits = memory.logits.first(static_cast<std::size_t>(seen.size()));
            const float own_sink = request.attention.sink_logit_of(h);
            float largest = own_sink;
            for (const float l : logits) { largest = std::max(largest, l); }
            if (largest == kernels::masked_logit) { continue; } // the query sees no token
            double sum = std::exp(static_cast<double>(own_sink) - static_cast<double>(largest));
            for (const float l : logits) { sum += static_cast<double>(std::exp(l - largest)); }
            const auto weight = static_cast<float>(1.0 / (sum * static_cast<double>(group)));
            for (index_t t = std::max(range.begin, seen.begin); t < std::min(range.end, seen.end); ++t) {
                scores[static_cast<std::size_t>(t - range.begin)] +=
                    weight * std::exp(logits[static_cast<std::size_t>(t - seen.begin)] - largest);
            }
        }
    }

    template <class Inputs>
    void expected_logits(const Inputs& in, const attention_options& options, index_t kv_head, index_t q_head,
                         token_range seen, const head_scratch& memory) const {
        const index_t dim = in.head_dim();
        expect_query(q_head, options.scale_for<double>(dim), memory);
        const kernels::projection_kernels& steps = kernels::active_projection_kernels();
        const kernels::row_kernels& rows = kernels::active_row_kernels();
        if (use_covariance) { steps.pack(memory.matrix.data(), dim, 0, dim, dim, dim, memory.packed.data()); }
        const index_t step = kernels::tile_tokens(dim);
        for (index_t t = seen.begin; t < seen.end; t += step) {
            const index_t count = std::min(step, seen.end - t);
            const float_rows k = read_rows(in.keys, kv_head, t, count, memory.keys.data());
            float* logits = memory.logits.data() + (t - seen.begin);
            rows.dots(k.data, k.stride, count, dim, memory.query.data(), logits);
            if (use_covariance) {
                steps.add_forms(k.data, k.stride, count, memory.packed.data(), dim, memory.scratch.data(),
                                logits);
            }
            rows.condition_logits(logits, count, options.soft_cap);
        }
    }

    // query = scale * R mean, matrix = scale^2 / 2 * R covariance R^T.
    void expect_query(index_t q_head, double scale, const head_scratch& memory) const {
        const auto mean = statistics->mean(q_head);
        const auto moment = statistics->co_moment(q_head);
        const index_t count = statistics->counts[static_cast<std::size_t>(q_head)];
        const double spread = count == 0 ? 0.0 : 0.5 * scale * scale / static_cast<double>(count);
        for (std::size_t d = 0; d < mean.size(); ++d) {
            memory.query[d] = static_cast<float>(scale * mean[d]);
        }
        for (std::size_t i = 0; use_covariance && i < moment.size(); ++i) {
            memory.matrix[i] = static_cast<float>(spread * static_cast<double>(moment[i]));
        }
        const index_t dim = statistics->head_dim;
        for (index_t i = 0; i < rope.pairs(); ++i) {
            const turn mean_turn = mean_rotation(rope.frequency(i));
            const index_t a = rope.first_channel(i);
            const index_t b = rope.second_channel(i);
            mean_turn.apply(memory.query[static_cast<std::size_t>(a)],
                            memory.query[static_cast<std::size_t>(b)]);
            for (index_t d = 0; use_covariance && d < dim; ++d) { // R from the left, and from the right
                mean_turn.apply(memory.matrix[static_cast<std::size_t>(a * dim + d)],
                                memory.matrix[static_cast<std::size_t>(b * dim + d)]);
            }
            for (index_t d = 0; use_covariance && d < dim; ++d) {
                mean_turn.apply(memory.matrix[static_cast<std::size_t>(d * dim + a)],
                                memory.matrix[static_cast<std::size_t>(d * dim + b)]);
            }
        }
    }

    struct turn {
        double cosine, sine;

        void apply(float& x, float& y) const {
            const auto u = static_cast<double>(x);
            const auto v = static_cast<double>(y);
            x = static_cast<float>(u * cosine - v * sine);
            y = static_cast<float>(v * cosine + u * sine);
        }
    };

    // The mean of e^(i p f) over F positions p from n on is e^(i f (n + (F - 1) / 2)) * sin(F f / 2) / (F sin(f / 2)).
    [[nodiscard]] turn mean_rotation(double frequency) const {
        const auto future = static_cast<double>(future_positions);
        const double half = std::sin(0.5 * frequency);
        const double length = half == 0 ? 1.0 : std::sin(0.5 * future * frequency) / (future * half);
        const double angle = frequency * (static_cast<double>(statistics->positions) + 0.5 * (future - 1));
        const double factor = static_cast<double>(rope.attention_factor) * length;
        return {factor * std::cos(angle), factor * std::sin(angle)};
    }
};

} // namespace KVTRIM_NAMESPACE
