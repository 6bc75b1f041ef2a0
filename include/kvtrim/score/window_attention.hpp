// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Scores each candidate token by the attention that the observed queries pay to it, in two sweeps over the keys.
//
//   importance[g] = aggregator( A[h, i, candidates] for all query heads h of group g, all queries i )
//
// Sweep one takes each query row's softmax statistics, sweep two computes the attention again, tile by tile, and
// folds it (attention/attention_rows.hpp); no [heads, queries, tokens] array exists. Within a bound on memory sweep one
// leaves its logits to sweep two; the scores are the same floats without. With all prompt queries
// this is the full-prefill sum of H2O, with the last query alone it is TOVA.
//
// Source: SnapKV, arXiv:2404.14469, Sec. 4.
// Departures: the softmax is not cast back to the cache's type (fp16 drops weights below 3e-8); keys are not
// repeated for the query heads of a group.
// Cost: 2 * q_heads * queries * tokens * head_dim flops where the logits are kept, twice that elsewhere; two exponentials
// per weight; keys read once or twice for every 128 query rows. Workspace: O(lanes * tokens) per KV head, and
// kept_logit_bytes.

#include <kvtrim/aggregate/attention_tile.hpp>
#include <kvtrim/attention/attention_rows.hpp>
#include <kvtrim/attention/kept_logits.hpp>
#include <kvtrim/plan/token_scores.hpp>

namespace KVTRIM_NAMESPACE {

/// Scores by the attention of the observed queries, folded by an aggregator (aggregate/attention_tile.hpp). Needs queries.
template <class Aggregator>
struct window_attention {
    static_assert(
        attention_aggregator<Aggregator>,
        "kvtrim: window_attention needs an aggregator with writes_attention, validate, halo, lanes, add and "
        "finish, such as mean_attention; see aggregate/attention_tile.hpp");

    /// How query heads and queries are folded into one score.
    [[no_unique_address]] Aggregator aggregator = {};
    index_t newest_queries = 0; ///< use only this many newest of the given queries; 0: all (TOVA: 1)
    /// Most memory for logits, of all workers (attention/kept_logits.hpp); 0: compute them twice.
    index_t kept_logit_bytes = kept_logits::default_bytes;

    /// whether score() also writes attention
    static constexpr bool writes_attention = Aggregator::writes_attention;

    /// Returns errc::window_exceeds_tokens, heads_not_divisible or invalid_parameter.
    template <class Inputs>
    [[nodiscard]] status validate(const Inputs& in, const eviction_request& request) const {
        static_assert(Inputs::has_queries, "kvtrim: window_attention needs the observation queries: pass "
                                           "layer(keys, values).with_queries(queries); see cache/layer.hpp");
        if (newest_queries < 0) {
            return {errc::invalid_parameter, "window_attention: newest_queries must not be negative"};
        }
        if (kept_logit_bytes < 0) {
            return {errc::invalid_parameter, "window_attention: kept_logit_bytes must not be negative"};
        }
        if (const status s = aggregator.validate(); !s.ok()) { return s; }
        return validate_attention(in, request);
    }

    /// Bytes of workspace for score() at the full width of this executor; those for one worker are enough. 0 for inputs that it
    /// refuses.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] index_t workspace_bytes(const Inputs& in, const eviction_request& request,
                                          const Executor& ex = {}) const {
        if (!validate(in, request).ok()) { return 0; }
        return logits(in).workspace_bytes(ex,
                                          [&](workspace& counting) { take_scratch(in, request, counting); });
    }

    /// Writes importance (and attention if writes_attention, and protected_mass where asked for).
    /// Returns what validate_scoring() says or errc::workspace_too_small, with nothing written.
    template <class Inputs, executor Executor>
    [[nodiscard]] status score(const Inputs& in, const eviction_request& request, const token_scores& out,
                               workspace& scratch, Executor& ex) const {
        if (const status s = validate_scoring(*this, in, request, out); !s.ok()) { return s; }
        return logits(in).for_each_head(
            scratch, ex, [&](workspace& counting) { take_scratch(in, request, counting); },
            [&](index_t g, std::span<float> kept, workspace& own) {
                score_head(in, request, g, out, kept, own);
            });
    }

  private:
    template <class Inputs>
    static constexpr bool weighs_rows = requires(const Aggregator& a,
                                                 const attention_row_group<attention_rows<Inputs>>& group,
                                                 std::span<float> weights) {
        a.weigh_rows(group, weights);
    };
    template <class Inputs>
    static constexpr index_t weight_floats = weighs_rows<Inputs> ? kernels::tile_query_rows : 0;

    template <class Inputs>
    [[nodiscard]] kept_logits logits(const Inputs& in) const {
        return {in, newest_queries, kept_logit_bytes};
    }

    // A pooling kernel wider than the row reads no more columns than there are, and its sums are the same.
    template <class Inputs>
    [[nodiscard]] index_t halo(const Inputs& in) const {
        return std::clamp<index_t>(aggregator.halo(), 0, in.longest_row());
    }

    // What a worker takes beside the logits.
    template <class Inputs>
    void take_scratch(const Inputs& in, const eviction_request& request, workspace& counting) const {
        const attention_rows rows(in, request, 0, newest_queries, halo(in), counting);
        static_cast<void>(counting.take<float>(aggregator.lanes(rows.group_size()) * in.longest_row()));
        static_cast<void>(counting.take<float>(weight_floats<Inputs>));
    }

    template <class Inputs>
    void score_head(const Inputs& in, const eviction_request& request, index_t kv_head,
                    const token_scores& out, std::span<float> kept, workspace& scratch) const {
        attention_rows rows(in, request, kv_head, newest_queries, halo(in), scratch);
        rows.keep_logits_in(kept);
        const token_range range = rows.candidate_range();
        const auto accumulators = scratch.take<float>(aggregator.lanes(rows.group_size()) * range.size());
        const auto weights = scratch.take<float>(weight_floats<Inputs>);
        std::fill(accumulators.begin(), accumulators.end(), 0.0f);
        const attention_head head{rows.group_size(), rows.queries(),     range.size(),
                                  range.begin,       rows.query_begin(), request.attention.sliding_window};
        double protected_mass = 0;
        for (index_t r = 0; r < rows.rows(); r += kernels::tile_query_rows) {
            rows.begin_row_group(r, std::min(kernels::tile_query_rows, rows.rows() - r));
            protected_mass += rows.protected_mass();
            if constexpr (weighs_rows<Inputs>) {
                aggregator.weigh_rows(attention_row_group<attention_rows<Inputs>>{rows, head}, weights);
            }
            fold_row_group(rows, head, range, halo(in), weights.data(), accumulators);
        }
        const auto g = static_cast<std::size_t>(kv_head);
        std::span<float> attention = {};
        if constexpr (writes_attention) { attention = out.attention_rows().row(kv_head); }
        if (!out.protected_mass.empty()) {
            out.protected_mass[g] = static_cast<float>(protected_mass / static_cast<double>(rows.rows()));
        }
        aggregator.finish(head, accumulators, out.importance_rows().row(kv_head), attention);
    }

    template <class Inputs>
    void fold_row_group(attention_rows<Inputs>& rows, const attention_head& head, token_range range,
                        index_t halo, const float* weights, std::span<float> accumulators) const {
        const index_t end = std::min(range.end, rows.visible_end() + halo);
        for (index_t t = range.begin; t < end; t += rows.tile_tokens()) {
            const index_t tokens = std::min(rows.tile_tokens(), end - t);
            const index_t before = std::min(halo, t - range.begin);
            const index_t after = std::min(halo, range.end - (t + tokens));
            const float* attention = rows.attention(t - before, before + tokens + after);
            aggregator.add({attention, weights, rows.current_rows(), rows.first_row(), t - range.begin,
                            tokens, before, after, head},
                           accumulators);
        }
    }
};

template <class Aggregator>
window_attention(Aggregator) -> window_attention<Aggregator>;
template <class Aggregator>
window_attention(Aggregator, index_t) -> window_attention<Aggregator>;
template <class Aggregator>
window_attention(Aggregator, index_t, index_t) -> window_attention<Aggregator>;

} // namespace KVTRIM_NAMESPACE
