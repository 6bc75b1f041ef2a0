// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Softmax attention of the query rows of one KV head, a row group at a time, produced tile by tile and never stored whole.
//
//   A[r, t] = exp(l[r, t] - m[r]) / z[r],   l[r, t] = cap(scale * <q[r], k[t]>) for visible t
//   row r is query (r % queries) of query head kv_head * group_size + r / queries
//   visible: t <= p and p - t < sliding_window, where p is the cache row of the query's own token:
//   the queries belong to the newest rows before the rollback tail
//   z[r] includes exp(sink_logit - m) where the model has one
//
// A query may also be none of the rows: one that comes behind all of them sees them all (observed_by).
//
// begin_row_group() sweeps the keys once for m and z; attention() computes any range of columns again, or takes the logits
// from memory that keep_logits_in() lent: the same floats, half of the products.
// Shapes: queries [q_heads, queries, head_dim]; keys [kv_heads, tokens, head_dim]; any cache_view.
// Where the CPU multiplies tiles of bf16, keys and queries that are both bf16 in memory are multiplied without widening; all
// else is multiplied as floats.
// Numerics: see kernels/window_kernels.hpp; a fully masked row has attention 0 everywhere.
// Cost: 2 * rows * tokens * head_dim flops and rows * tokens exponentials per sweep.

#include <kvtrim/attention/observed_by.hpp>
#include <kvtrim/cache/read_rows.hpp>
#include <kvtrim/core/math.hpp>
#include <kvtrim/core/workspace.hpp>
#include <kvtrim/kernels/window_kernels.hpp>

#include <limits>
#include <span>

namespace KVTRIM_NAMESPACE {

/// Attention rows of one KV head, a row group at a time: neighbouring rows that are worked on together. Views the inputs and the
/// workspace.
template <class Inputs>
class attention_rows {
  public:
    /// Takes its scratch; it is usable if the workspace fits(). `newest` > 0 uses only so many newest queries; `halo` widens
    /// the tiles that attention() can produce. Requires what validate_attention() asks.
    attention_rows(const Inputs& in, const eviction_request& request, index_t kv_head, index_t newest,
                   index_t halo, workspace& scratch, const kernels::window_kernels& steps = steps_in_force())
        : attention_rows(in, request.attention, kv_head, newest, halo,
                         {in.tokens(kv_head) - request.protect.rollback_tokens -
                              (newest > 0 ? std::min(newest, extent(in.queries, 1)) : extent(in.queries, 1)),
                          candidates(request.protect, in.tokens(kv_head))},
                         scratch, steps) {}

    /// The same for the rows and candidates that `seen` names, without a request.
    attention_rows(const Inputs& in, const attention_options& options, index_t kv_head, index_t newest,
                   index_t halo, const observed_by& seen, workspace& scratch,
                   const kernels::window_kernels& steps = steps_in_force())
        : in_(in), options_(options), kv_head_(kv_head), tokens_(in.tokens(kv_head)),
          group_size_(extent(in.queries, 0) / in.kv_heads()),
          queries_(newest > 0 ? std::min(newest, extent(in.queries, 1)) : extent(in.queries, 1)),
          skipped_(extent(in.queries, 1) - queries_), query_begin_(seen.query_begin),
          range_(seen.candidates), hidden_{seen.hidden[0], seen.hidden[1]},
          tile_tokens_(kernels::tile_tokens(in.head_dim())), steps_(steps) {
        const index_t widest = tile_tokens_ + 2 * halo;
        packed_ = scratch.take<float>(kernels::tile_query_rows * in.head_dim());
        if constexpr (may_stay_bf16) {
            packed_bf16_ = scratch.take<bf16>(kernels::packed_bf16(kernels::tile_query_rows, in.head_dim()));
            k_bf16_ = scratch.take<bf16>(widest * in.head_dim());
            stays_bf16_ = steps_.bf16_logits != nullptr && keeps<bf16>(in.keys) && keeps<bf16>(in.queries);
        }
        k_ = scratch.take<float>(widest * in.head_dim());
        tile_ = scratch.take<float>(widest * kernels::tile_query_rows);
        for (auto* floats : {&maximum_, &weight_, &rescale_}) {
            *floats = scratch.take<float>(kernels::tile_query_rows);
        }
        for (auto* doubles : {&outside_, &mass_}) {
            *doubles = scratch.take<double>(kernels::tile_query_rows);
        }
    }

    /// Memory for the logits [tokens, current_rows] of as many of the first tokens as fit, which attention() then need not
    /// compute again. Not used for tiles of bf16: their products are faster than writing and reading the logits.
    void keep_logits_in(std::span<float> memory) {
        if (!stays_bf16_) { kept_logits_ = memory; }
    }

    /// Query heads that share the KV head.
    [[nodiscard]] index_t group_size() const { return group_size_; }
    /// Observation queries of each query head.
    [[nodiscard]] index_t queries() const { return queries_; }
    /// Rows in all: group_size * queries.
    [[nodiscard]] index_t rows() const { return group_size_ * queries_; }
    /// Cache row of the first query's own token.
    [[nodiscard]] index_t query_begin() const { return query_begin_; }
    /// Cache rows that compete for the budget.
    [[nodiscard]] token_range candidate_range() const { return range_; }
    /// Tokens of a tile.
    [[nodiscard]] index_t tile_tokens() const { return tile_tokens_; }

    /// Selects rows [first_row, first_row + count), count <= tile_query_rows, and computes their softmax statistics.
    void begin_row_group(index_t first_row, index_t count) {
        first_row_ = first_row;
        count_ = count;
        const bool one_head = first_row / queries_ == (first_row + count - 1) / queries_;
        current_queries_ = {0, queries_};
        if (one_head) { current_queries_ = {first_row % queries_, (first_row + count - 1) % queries_ + 1}; }
        const index_t room = std::ssize(kept_logits_) / count;
        kept_end_ = room >= visible_end() ? visible_end() : room / tile_tokens_ * tile_tokens_;
        load_queries();
        for (index_t r = 0; r < count; ++r) {
            at(maximum_, r) = sink_logit(r);
            at(outside_, r) = sink_logit(r) == kernels::masked_logit ? 0.0 : 1.0;
            at(mass_, r) = 0.0;
        }
        for (index_t t = 0; t < visible_end(); t += tile_tokens_) {
            const index_t tokens = std::min(tile_tokens_, visible_end() - t);
            if (!are_hidden(t, tokens)) { accumulate(t, tokens); }
        }
        finish_statistics();
    }

    /// The former names of begin_row_group() and current_rows().
    [[deprecated("use begin_row_group; gone in 0.3")]] void begin_block(index_t first_row, index_t count) {
        begin_row_group(first_row, count);
    }
    [[deprecated("use current_rows; gone in 0.3")]] [[nodiscard]] index_t block_rows() const { ///< as above
        return current_rows();
    }

    /// Rows of the current row group.
    [[nodiscard]] index_t current_rows() const { return count_; }
    /// First row of the current row group.
    [[nodiscard]] index_t first_row() const { return first_row_; }
    /// One past the last cache row that any query of the current row group sees.
    [[nodiscard]] index_t visible_end() const {
        return std::min(tokens_, query_begin_ + current_queries_.end);
    }
    /// Whether no query sees any of the cache rows [begin, begin + count).
    [[nodiscard]] bool are_hidden(index_t begin, index_t count) const {
        const auto covers = [&](token_range r) { return r.begin <= begin && begin + count <= r.end; };
        return covers(hidden_[0]) || covers(hidden_[1]);
    }
    /// Sum of a row's attention to the candidates.
    [[nodiscard]] double candidate_mass(index_t row) const {
        const double sum = at(outside_, row) + at(mass_, row);
        return sum > 0 ? at(mass_, row) / sum : 0.0;
    }
    /// The sink logit's share of a row's softmax; 0 without one.
    [[nodiscard]] double sink_mass(index_t row) const {
        const double sum = at(outside_, row) + at(mass_, row);
        return sum > 0 ? sink_term(row) / sum : 0.0;
    }
    /// Sum over the current rows of the attention to tokens outside the candidate range.
    [[nodiscard]] double protected_mass() const { return protected_mass_; }

    /// Attention [count, current_rows] to the cache rows [begin, begin + count); valid until the next call.
    /// Requires count <= tile_tokens() + 2 * halo.
    [[nodiscard]] float* attention(index_t begin, index_t count) {
        const float* const logits =
            are_kept(begin, count) ? kept_logits_.data() + begin * count_ : compute_logits(begin, count);
        steps_.attention(logits, count, count_, maximum_.data(), weight_.data(), tile_.data());
        return tile_.data();
    }

  private:
    static constexpr bool may_stay_bf16 = std::is_same_v<stored_element<decltype(Inputs::keys)>, bf16> &&
                                          std::is_same_v<stored_element<decltype(Inputs::queries)>, bf16>;

    [[nodiscard]] static const kernels::window_kernels& steps_in_force() {
        return kernels::active_window_kernels<std::conditional_t<may_stay_bf16, bf16, float>>();
    }

    template <class T>
    static T& at(std::span<T> values, index_t i) {
        return values[static_cast<std::size_t>(i)];
    }

    [[nodiscard]] index_t query_head(index_t row) const {
        return kv_head_ * group_size_ + (first_row_ + row) / queries_;
    }
    [[nodiscard]] float sink_logit(index_t row) const { return options_.sink_logit_of(query_head(row)); }

    // The sink logit's part of the row's sum.
    [[nodiscard]] double sink_term(index_t row) const {
        if (sink_logit(row) == kernels::masked_logit) { return 0; }
        return detail::math::exp(static_cast<double>(sink_logit(row)) -
                                 static_cast<double>(at(maximum_, row)));
    }

    [[nodiscard]] float scale() const { return options_.scale_for(in_.head_dim()); }

    // Packs the queries, read through the keys' tile. Floats are scaled here, so that products are logits; bf16 is not.
    void load_queries() {
        const index_t dim = in_.head_dim();
        for (index_t r = 0; r < count_;) {
            const index_t query = (first_row_ + r) % queries_;
            const index_t run = std::min(std::min(queries_ - query, count_ - r), tile_tokens_);
            if constexpr (may_stay_bf16) {
                if (stays_bf16_) {
                    const auto rows =
                        read_rows<bf16>(in_.queries, query_head(r), skipped_ + query, run, k_bf16_.data());
                    steps_.pack_bf16_queries(rows.data, rows.stride, r, run, dim, packed_bf16_.data());
                    r += run;
                    continue;
                }
            }
            const float_rows queries =
                read_rows(in_.queries, query_head(r), skipped_ + query, run, k_.data());
            if (queries.stride == dim) {
                steps_.pack_queries(queries.data, r, run, dim, scale(), packed_.data());
            } else {
                for (index_t i = 0; i < run; ++i) {
                    steps_.pack_queries(queries.data + i * queries.stride, r + i, 1, dim, scale(),
                                        packed_.data());
                }
            }
            r += run;
        }
    }

    [[nodiscard]] bool are_kept(index_t begin, index_t count) const { return begin + count <= kept_end_; }

    // Logits [count, current_rows], where they are kept or in the tile.
    float* compute_logits(index_t begin, index_t count) {
        float* const out = are_kept(begin, count) ? kept_logits_.data() + begin * count_ : tile_.data();
        multiply(begin, count, out);
        mask_invisible(begin, count, out);
        return out;
    }

    // The keys to prefetch: the next `count`, or as many as there are; none unless they lie in memory without gaps.
    [[nodiscard]] kernels::soon_read rows_behind(index_t begin, index_t count) const {
        using element = stored_element<decltype(Inputs::keys)>;
        count = std::min(count, tokens_ - begin);
        if constexpr (!std::is_void_v<element>) {
            if (count <= 0) { return {}; }
            const auto keys = rows_in_place(in_.keys, kv_head_, begin, count);
            if (keys.data != nullptr && keys.stride == in_.head_dim()) {
                return {keys.data, count * keys.stride * static_cast<index_t>(sizeof(element))};
            }
        }
        return {};
    }

    void multiply(index_t begin, index_t count, float* out) {
        const kernels::soon_read next = rows_behind(begin + count, count);
        if constexpr (may_stay_bf16) {
            if (stays_bf16_) {
                const auto keys = read_rows<bf16>(in_.keys, kv_head_, begin, count, k_bf16_.data());
                steps_.bf16_logits(keys.data, keys.stride, count, packed_bf16_.data(), count_, in_.head_dim(),
                                   scale(), options_.soft_cap, out, next);
                return;
            }
        }
        const float_rows keys = read_rows(in_.keys, kv_head_, begin, count, k_.data());
        steps_.logits(keys.data, keys.stride, count, packed_.data(), count_, in_.head_dim(),
                      options_.soft_cap, out, next);
    }

    void mask_invisible(index_t begin, index_t count, float* logits) const {
        for (const token_range hidden : hidden_) {
            const index_t first = std::clamp(hidden.begin - begin, index_t{0}, count);
            const index_t last = std::clamp(hidden.end - begin, first, count);
            std::fill(logits + first * count_, logits + last * count_, kernels::masked_logit);
        }
        const index_t window = options_.sliding_window;
        for (index_t t = 0; t < count; ++t) {
            // Queries [first, last) see this token.
            const index_t first = begin + t - query_begin_;
            const index_t last = window > 0 ? first + std::min(window, queries_ - first) : queries_;
            if (first <= current_queries_.begin && current_queries_.end <= last) { continue; }
            float* row = logits + t * count_;
            index_t query = first_row_ % queries_;
            for (index_t left = count_; left > 0; query = 0) { // the queries of one head after the other
                const index_t run = std::min(queries_ - query, left);
                const index_t seen = std::clamp(first - query, index_t{0}, run);
                std::fill(row, row + seen, kernels::masked_logit);
                std::fill(row + std::clamp(last - query, seen, run), row + run, kernels::masked_logit);
                row += run;
                left -= run;
            }
        }
    }

    // Sums of one tile: the candidates and the other columns.
    void accumulate(index_t begin, index_t count) {
        const float* const logits = compute_logits(begin, count);
        steps_.raise_maximum(logits, count, count_, maximum_.data(), rescale_.data());
        for (index_t r = 0; r < count_; ++r) {
            const auto factor = static_cast<double>(at(rescale_, r));
            at(outside_, r) *= factor;
            at(mass_, r) *= factor;
        }
        const auto add = [&](index_t from, index_t to, std::span<double> sums) {
            if (from >= to) { return; }
            steps_.add_exponentials(logits + (from - begin) * count_, to - from, count_, maximum_.data(),
                                    sums.data());
        };
        const index_t end = begin + count;
        const token_range inside{std::clamp(range_.begin, begin, end), std::clamp(range_.end, begin, end)};
        add(begin, inside.begin, outside_);
        add(inside.begin, inside.end, mass_);
        add(std::max(inside.begin, inside.end), end, outside_);
    }

    void finish_statistics() {
        protected_mass_ = 0;
        for (index_t r = 0; r < count_; ++r) {
            const double sum = at(outside_, r) + at(mass_, r);
            if (at(maximum_, r) == kernels::masked_logit) { at(maximum_, r) = 0.0f; }
            at(weight_, r) = sum > 0 ? static_cast<float>(1.0 / sum) : 0.0f;
            protected_mass_ += sum > 0 ? std::max(0.0, (at(outside_, r) - sink_term(r)) / sum) : 0.0;
        }
    }

    const Inputs& in_;
    attention_options options_;
    index_t kv_head_;
    index_t tokens_;
    index_t group_size_;
    index_t queries_;
    index_t skipped_;
    index_t query_begin_;
    token_range range_;
    token_range hidden_[2];
    index_t tile_tokens_;
    const kernels::window_kernels& steps_;
    bool stays_bf16_ = false; // keys and queries are multiplied as bf16
    index_t first_row_ = 0;
    index_t count_ = 0;
    token_range current_queries_; // of any query head in the current row group
    double protected_mass_ = 0;
    index_t kept_end_ = 0;         // logits of the tokens before it are kept
    std::span<float> kept_logits_; // [tokens, current_rows] of the first tokens
    std::span<float> packed_;      // [tile_query_rows, head_dim] in the order of the kernels
    std::span<bf16> packed_bf16_;  // the same of bf16
    std::span<bf16> k_bf16_;       // [tile tokens + 2 halo, head_dim]
    std::span<float> k_;           // [tile tokens + 2 halo, head_dim]
    std::span<float> tile_;        // [tile tokens + 2 halo, tile_query_rows]
    std::span<float> maximum_;     // [tile_query_rows]
    std::span<float> weight_;      // 1 / sum
    std::span<float> rescale_;
    std::span<double> outside_; // sum of exp(logit - maximum) of the protected tokens and the sink
    std::span<double> mass_;    // the same of the candidates
};

} // namespace KVTRIM_NAMESPACE
