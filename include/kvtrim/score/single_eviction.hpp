// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Scores each candidate token by what the layer's output changes when that token alone is evicted.
//
//   o[i]            = sum over t of A[h, i, t] v[t]                            what query i of head h gets
//   error[i, t]     = A / (1 - A) * || (v[t] - o[i]) W_O[h] ||_2               exactly the change of o[i] W_O[h] without t
//   importance[g, t] = max over the queries i of all heads h of group g, or root of the sum of squares over the queries and of
//                      their mean over the heads
//
// The loss is 0 for a token whose value equals the query's output, however much attention it has. Without W_O the distance is
// || v - o ||_2; W_O is given as it is or, prepared once, as its Gram view. The sum of squares is DropKV's score.
// W_O may be given scaled: divided by the length of the residual stream that a layer adds to, it makes layers comparable.
//
// Source: DropKV, openreview MqfNzH3TVH; kvpress issue 284 and pull request 285 (sum of squares over the newest queries).
// Departures: W_O is counted where it is given; the maximum is kvtrim's own.
// Cost: the logits twice or three times (once where they are kept), and two products more of the same size for o and <v, o>.
// Workspace: O(tokens) per KV head, and kept_logit_bytes. Numerics: float. A query whose output is not finite is left out.

#include <kvtrim/aggregate/attention_tile.hpp>
#include <kvtrim/attention/attention_rows.hpp>
#include <kvtrim/attention/kept_logits.hpp>
#include <kvtrim/kernels/eviction_errors.hpp>
#include <kvtrim/kernels/product_kernels.hpp>
#include <kvtrim/kernels/projection_kernels.hpp>
#include <kvtrim/kernels/raise_to_pooled.hpp>
#include <kvtrim/kernels/row_kernels.hpp>
#include <kvtrim/plan/token_scores.hpp>
#include <kvtrim/score/prepared_projection.hpp>

#include <cmath>

namespace KVTRIM_NAMESPACE {

/// How the loss of a token is measured over the queries of all heads that read its KV head.
enum class token_loss : std::uint8_t {
    attention_maximum, ///< the maximum of their attention to it, 0 to 1
    output_maximum,    ///< the maximum of what their outputs change when it is evicted, in the output's unit
    output_square_sum, ///< root of the sum of squares of what all outputs change
};

namespace detail {

template <class Inputs>
inline constexpr bool has_plain_projection =
    Inputs::has_output_projection&& cache_view<decltype(Inputs::output_projection)>;
template <class Inputs>
inline constexpr bool has_gram =
    std::is_same_v<std::remove_cvref_t<decltype(Inputs::output_projection)>, gram_view>;

// Checks the inputs of a loss that reads values. Returns invalid_parameter.
template <class Inputs>
[[nodiscard]] status validate_loss(const Inputs& in, token_loss loss) {
    if constexpr (Inputs::has_values) {
        static_assert(!Inputs::has_output_projection || has_plain_projection<Inputs> || has_gram<Inputs>,
                      "kvtrim: the loss of an output reads W_O as it is or as gram.view()");
        if constexpr (has_gram<Inputs>) {
            if (loss == token_loss::attention_maximum) { return {}; }
            const gram_view& gram = in.output_projection;
            if (gram.head_dim != extent(in.values, 2) || gram.q_heads != extent(in.queries, 0)) {
                return {errc::invalid_parameter, "gram_view: head_dim of the values, q_heads of the queries"};
            }
        }
        return {};
    } else {
        if (loss == token_loss::attention_maximum) { return {}; }
        return {errc::invalid_parameter, "the loss of an output needs values: layer(keys, values)"};
    }
}

// The losses of one KV head's tokens, one row group after the other.
template <class Inputs>
class token_losses {
  public:
    // Takes its scratch; it is usable if the workspace fits. range: cache rows whose losses are wanted.
    token_losses(const Inputs& in, token_loss loss, index_t kv_head, token_range range, index_t nearest,
                 index_t tile_tokens, workspace& scratch)
        : in_(in), loss_(loss), kv_head_(kv_head), range_(range), nearest_(nearest) {
        ones_ = scratch.take<float>(kernels::tile_query_rows);
        std::fill(ones_.begin(), ones_.end(), 1.0f);
        if constexpr (Inputs::has_values) {
            if (loss == token_loss::attention_maximum) { return; }
            const index_t dim = extent(in.values, 2), rows = kernels::tile_query_rows;
            const index_t heads = has_metric ? extent(in.queries, 0) / in.kv_heads() : 1;
            values_ = scratch.take<float>(tile_tokens * dim);
            products_ = scratch.take<float>(tile_tokens * rows);
            outputs_ = scratch.take<float>(rows * dim);
            turned_ = scratch.take<float>(rows * dim);
            packed_ = scratch.take<float>(kernels::rows_packed(rows) * dim);
            squares_of_outputs_ = scratch.take<float>(rows);
            squares_ = scratch.take<float>(heads * std::max<index_t>(0, range.size()));
            if constexpr (has_metric) {
                panel_ = scratch.take<float>(kernels::panel_floats(dim, dim));
                norms_ = scratch.take<float>(kernels::norm_scratch_floats(tile_tokens));
            }
            if constexpr (has_plain_projection<Inputs>) {
                gram_ = scratch.take<float>(heads * dim * dim);
                w_o_ = scratch.take<float>(dim * extent(in.output_projection, 2));
            }
        }
    }

    // losses [range] = maximum (or sum of squares) over all query rows, and over what was in it before.
    void add(attention_rows<Inputs>& rows, std::span<float> losses) {
        if constexpr (Inputs::has_values) {
            if (is_of_output()) { prepare(rows.tile_tokens(), rows.group_size()); }
        }
        for (index_t r = 0; r < rows.rows(); r += kernels::tile_query_rows) {
            rows.begin_row_group(r, std::min(kernels::tile_query_rows, rows.rows() - r));
            add_row_group(rows, losses);
        }
    }

  private:
    static constexpr bool has_metric = Inputs::has_output_projection;

    [[nodiscard]] bool is_of_output() const { return loss_ != token_loss::attention_maximum; }

    void add_row_group(attention_rows<Inputs>& rows, std::span<float> losses) {
        const kernels::window_kernels& steps = kernels::active_window_kernels();
        const index_t count = rows.current_rows();
        if constexpr (Inputs::has_values) {
            if (is_of_output()) { take_outputs(rows); }
        }
        const index_t end = std::min(range_.end, rows.visible_end() - nearest_);
        for (index_t t = range_.begin; t < end; t += rows.tile_tokens()) {
            const index_t tokens = std::min(rows.tile_tokens(), end - t);
            if (rows.are_hidden(t, tokens)) { continue; }
            float* const tile = rows.attention(t, tokens);
            if constexpr (Inputs::has_values) {
                if (is_of_output()) { to_errors(rows, t, tokens, tile, steps); }
            }
            leave_out_nearest(rows, t, tokens, tile);
            float* const to = losses.data() + (t - range_.begin);
            if (loss_ == token_loss::output_square_sum) {
                steps.add_row_sums(tile, tokens, count, 0, count, to);
            } else {
                kernels::raise_to_pooled(tile, tokens, 0, 0, 0, count, ones_.data(), to);
            }
        }
    }

    // Rows less than nearest_ before a query do not count for it.
    void leave_out_nearest(const attention_rows<Inputs>& rows, index_t first, index_t tokens,
                           float* tile) const {
        if (nearest_ == 0) { return; }
        const index_t count = rows.current_rows();
        for (index_t r = 0; r < count; ++r) {
            const index_t own_row = rows.query_begin() + (rows.first_row() + r) % rows.queries();
            for (index_t t = std::max<index_t>(0, own_row - nearest_ + 1 - first); t < tokens; ++t) {
                tile[t * count + r] = 0;
            }
        }
    }

    // ---- Of outputs ----

    [[nodiscard]] const float* gram(index_t head) const {
        const index_t dim = extent(in_.values, 2);
        if constexpr (has_gram<Inputs>) {
            return in_.output_projection.head(kv_head_ * group_ + head);
        } else {
            return gram_.data() + head * dim * dim;
        }
    }

    // |v|^2 of every token in the range, in the metric of each head; and that metric.
    void prepare(index_t tile_tokens, index_t group) {
        group_ = group;
        const index_t dim = extent(in_.values, 2);
        if constexpr (has_plain_projection<Inputs>) {
            const index_t hidden = extent(in_.output_projection, 2);
            std::fill(gram_.begin(), gram_.end(), 0.0f);
            for (index_t h = 0; h < group; ++h) {
                const float_rows w =
                    read_rows(in_.output_projection, kv_head_ * group + h, 0, dim, w_o_.data());
                kernels::add_gram(w.data, w.stride, dim, hidden, gram_.data() + h * dim * dim);
            }
        }
        std::fill(squares_.begin(), squares_.end(), 0.0f);
        for (index_t h = 0; h < (has_metric ? group : 1); ++h) {
            const kernels::projection_kernels& steps = kernels::active_projection_kernels();
            if constexpr (has_metric) { steps.pack(gram(h), dim, 0, dim, dim, dim, panel_.data()); }
            for (index_t t = range_.begin; t < range_.end; t += tile_tokens) {
                const index_t tokens = std::min(tile_tokens, range_.end - t);
                const float_rows v = read_rows(in_.values, kv_head_, t, tokens, values_.data());
                float* const to = squares_.data() + h * range_.size() + (t - range_.begin);
                if constexpr (has_metric) {
                    steps.add_forms(v.data, v.stride, tokens, panel_.data(), dim, norms_.data(), to);
                } else {
                    kernels::active_row_kernels().dots(v.data, v.stride, tokens, dim, nullptr, to);
                }
            }
        }
    }

    // o of the current rows, |o|^2, and o as the other factor of <v, o>.
    void take_outputs(attention_rows<Inputs>& rows) {
        const index_t dim = extent(in_.values, 2), count = rows.current_rows();
        std::fill_n(outputs_.begin(), count * dim, 0.0f);
        for (index_t t = 0; t < rows.visible_end(); t += rows.tile_tokens()) {
            const index_t tokens = std::min(rows.tile_tokens(), rows.visible_end() - t);
            if (rows.are_hidden(t, tokens)) { continue; }
            const float_rows v = read_rows(in_.values, kv_head_, t, tokens, values_.data());
            kernels::add_weighted_values(rows.attention(t, tokens), tokens, count, v.data, v.stride, dim,
                                         outputs_.data());
        }
        const float* turned = outputs_.data();
        if constexpr (has_metric) {
            for_each_query_head(
                rows.first_row(), count, rows.queries(), [&](index_t head, index_t begin, index_t end) {
                    kernels::active_product_kernels().multiply({outputs_.data() + begin * dim, dim, 1},
                                                               end - begin, {gram(head), dim, 1}, dim, dim,
                                                               turned_.data() + begin * dim, dim);
                });
            turned = turned_.data();
        }
        for (index_t r = 0; r < count; ++r) {
            squares_of_outputs_[static_cast<std::size_t>(r)] =
                kernels::dot(outputs_.data() + r * dim, turned + r * dim, dim);
        }
        kernels::active_window_kernels().pack_queries(turned, 0, count, dim, 1.0f, packed_.data());
    }

    // The tile's attention becomes squares of errors.
    void to_errors(const attention_rows<Inputs>& rows, index_t first, index_t tokens, float* tile,
                   const kernels::window_kernels& steps) {
        const index_t dim = extent(in_.values, 2), count = rows.current_rows();
        const float_rows v = read_rows(in_.values, kv_head_, first, tokens, values_.data());
        steps.logits(v.data, v.stride, tokens, packed_.data(), count, dim, 0.0f, products_.data(), {});
        for_each_query_head(
            rows.first_row(), count, rows.queries(), [&](index_t head, index_t begin, index_t end) {
                const float* const squares =
                    squares_.data() + (has_metric ? head * range_.size() : 0) + (first - range_.begin);
                kernels::eviction_errors(tile, products_.data(), tokens, count, begin, end, squares,
                                         squares_of_outputs_.data());
            });
    }

    const Inputs& in_;
    token_loss loss_;
    index_t kv_head_;
    token_range range_;
    index_t nearest_;
    index_t group_ = 1;
    std::span<float> ones_;              // [query rows]
    std::span<float> values_, products_; // [tile, value_dim], [tile, query rows]
    std::span<float> outputs_, turned_,
        packed_;                          // [query rows, value_dim]: o, o G, and that as products want it
    std::span<float> squares_of_outputs_; // [query rows]
    std::span<float> squares_;            // [heads with a metric of their own, range]
    std::span<float> panel_, norms_, gram_, w_o_; // of the metric
};

// Takes the scratch of add_losses() for so many rows in the range.
template <class Inputs>
void take_loss_scratch(const Inputs& in, token_loss loss, index_t rows, workspace& counting) {
    const attention_rows attention(in, {}, 0, 0, 0, observed_by{0, {0, 0}}, counting);
    static_cast<void>(token_losses<Inputs>(in, loss, 0, {0, rows}, 0, attention.tile_tokens(), counting));
}

// losses [range] of one KV head's tokens fold in those of the queries that see rows as `seen` says; squares of them where the
// loss is an output's.
template <class Inputs>
void add_losses(const Inputs& in, const attention_options& options, token_loss loss, index_t kv_head,
                const observed_by& seen, index_t newest, std::span<float> kept, std::span<float> losses,
                workspace& scratch) {
    attention_rows rows(in, options, kv_head, newest, 0, seen, scratch);
    rows.keep_logits_in(kept);
    token_losses<Inputs>(in, loss, kv_head, seen.candidates, seen.nearest, rows.tile_tokens(), scratch)
        .add(rows, losses);
}

} // namespace detail

/// The scorer over the observation window: the newest queries of the prompt.
struct single_eviction {
    token_loss loss = token_loss::output_square_sum; ///< what a score is
    index_t newest_queries = 0; ///< use only this many newest of the given queries; 0: all
    index_t kept_logit_bytes = kept_logits::default_bytes; ///< as in score/window_attention.hpp
    static constexpr bool writes_attention = false;        ///< whether score() also writes attention

    /// Returns window_exceeds_tokens, heads_not_divisible or invalid_parameter.
    template <class Inputs>
    [[nodiscard]] status validate(const Inputs& in, const eviction_request& request) const {
        static_assert(Inputs::has_queries && Inputs::has_values,
                      "kvtrim: single_eviction needs values and the observation queries: pass "
                      "layer(keys, values).with_queries(queries); see cache/layer.hpp");
        if (newest_queries < 0 || kept_logit_bytes < 0) {
            return {errc::invalid_parameter, "single_eviction: numbers must not be negative"};
        }
        if (const status s = validate_attention(in, request); !s.ok()) { return s; }
        return detail::validate_loss(in, loss);
    }

    /// Bytes of workspace for score(), at the full width of this executor; 0 for inputs that validate() refuses.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] index_t workspace_bytes(const Inputs& in, const eviction_request& request,
                                          const Executor& ex = {}) const {
        if (!validate(in, request).ok()) { return 0; }
        return logits(in).workspace_bytes(ex, [&](workspace& counting) {
            detail::take_loss_scratch(in, loss, in.longest_row(), counting);
        });
    }

    /// Writes the importance of every candidate. Returns what validate_scoring() says or workspace_too_small, with none written.
    template <class Inputs, executor Executor>
    [[nodiscard]] status score(const Inputs& in, const eviction_request& request, const token_scores& out,
                               workspace& scratch, Executor& ex) const {
        if (const status s = validate_scoring(*this, in, request, out); !s.ok()) { return s; }
        const index_t queries =
            newest_queries > 0 ? std::min(newest_queries, extent(in.queries, 1)) : extent(in.queries, 1);
        return logits(in).for_each_head(
            scratch, ex,
            [&](workspace& counting) { detail::take_loss_scratch(in, loss, in.longest_row(), counting); },
            [&](index_t g, std::span<float> kept, workspace& own) {
                const observed_by seen{in.tokens(g) - request.protect.rollback_tokens - queries,
                                       candidates(request.protect, in.tokens(g))};
                const auto losses = out.importance_rows().row(g);
                std::fill(losses.begin(), losses.end(), 0.0f);
                detail::add_losses(in, request.attention, loss, g, seen, newest_queries, kept, losses, own);
                if (loss == token_loss::attention_maximum) { return; }
                const index_t heads =
                    loss == token_loss::output_square_sum ? extent(in.queries, 0) / in.kv_heads() : 1;
                for (float& x : losses) { x = std::sqrt(x / static_cast<float>(heads)); }
            });
    }

  private:
    template <class Inputs>
    [[nodiscard]] kept_logits logits(const Inputs& in) const {
        return {in, newest_queries, kept_logit_bytes};
    }
};

} // namespace KVTRIM_NAMESPACE
