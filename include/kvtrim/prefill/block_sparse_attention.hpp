// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Causal attention of a prefill chunk over the blocks of a prune_plan.
//
//   out[h, i] = sum over t of softmax(l[h, i, .])[t] * v[t],   l[h, i, t] = cap(scale * <q[h, i], k[t]>)
//   t runs over the planned blocks of the query's segment and over the segment's own rows up to the query's own
//   z includes exp(sink_logit) where the model has one; a sliding window hides what is behind it
//
//   in      layer(keys, values).with_queries(queries): keys, values [kv_heads, cached tokens, head_dim], any cache
//           view (their head_dims may differ); queries [q_heads, chunk tokens, head_dim], any cache view
//   out     [q_heads, chunk tokens, value head_dim], strided and writable, of any element
//   log_sum_exp   [q_heads * chunk tokens] natural log of z, or empty
//
// With plan_dense() this is dense flash attention. All query heads of a KV head share each tile of keys and values; keys
// and values are read in place where they are contiguous floats, else decoded a tile at a time. Work is handed out per
// (KV head, segment), the last segments first, since they are the longest.
//
// Queries, keys and values that all are bf16 rows in memory by the types of their views (is_made_of, cache/row_source.hpp: strided,
// filled, ragged and paged ones) are multiplied by AMX where the machine has it; all else as floats.
//
// Source: the step is online softmax, arXiv:1805.02867, as in FlashAttention-2, arXiv:2307.08691.
// Numerics: kernels/query_tile.hpp; float accumulation whatever the elements. With AMX the weights are rounded to bf16,
// which moves outputs by up to 2e-3 of the largest value (kernels/query_tile_amx.hpp). Each tile of queries sees its keys
// in one order, so results do not depend on workers; they differ between CPU levels within rounding.
// Memory: per worker 1024 query rows and a tile of keys, 1.2 MiB at head_dim 128; nothing grows with the tokens.
// Cost: 2 * (head_dim + value head_dim) flops per planned query-key pair and query head (prune_plan::planned_pairs).

#include <kvtrim/cache/check_outputs.hpp>
#include <kvtrim/cache/layer.hpp>
#include <kvtrim/cache/read_rows.hpp>
#include <kvtrim/core/eviction_request.hpp>
#include <kvtrim/core/for_each_item.hpp>
#include <kvtrim/kernels/with_query_tile.hpp>
#include <kvtrim/plan/prune_plan.hpp>

namespace KVTRIM_NAMESPACE {

namespace detail {

// Attention of one segment of one KV head; Tile is one of kernels/with_query_tile.hpp.
template <class Tile, class Inputs, class Output>
class segment_attention {
    using element = typename Tile::element;

  public:
    segment_attention(const Inputs& in, const attention_options& attention, const Output& out,
                      std::span<float> log_sum_exp, workspace& scratch)
        : in_(in), attention_(attention), out_(out), log_sum_exp_(log_sum_exp), head_dim_(in.head_dim()),
          value_dim_(extent(in.values, 2)), max_keys_(Tile::max_keys(head_dim_)),
          group_size_(extent(in.queries, 0) / in.kv_heads()), rules_{attention.scale_for(head_dim_),
                                                                     attention.soft_cap,
                                                                     attention.sliding_window} {
        tiles_ = scratch.take<float>(tiles_per_pass() * tile_floats());
        shared_ = scratch.take<float>(Tile::shared_floats(head_dim_, value_dim_));
        key_tile_ = scratch.take<element>(max_keys_ * head_dim_);
        value_tile_ = scratch.take<element>(max_keys_ * value_dim_);
        query_rows_ = scratch.take<element>(Tile::max_queries * head_dim_);
        out_rows_ = scratch.take<float>(Tile::max_queries * value_dim_);
    }

    void run(const prune_plan& plan, index_t kv_head, index_t segment) {
        const segment_grid& grid = plan.grid();
        const index_t pass = tiles_per_pass() / group_size_ * Tile::max_queries;
        kv_head_ = kv_head;
        chunk_begin_ = grid.first_token;
        for (index_t begin = grid.begin(segment); begin < grid.end(segment); begin += pass) {
            pass_ = {begin, std::min(begin + pass, grid.end(segment))};
            begin_pass();
            for (const index_t block : plan.row(kv_head, segment)) {
                attend({block * grid.block_tokens, (block + 1) * grid.block_tokens});
            }
            flush(); // the causal limit cuts the rows from here on
            attend({grid.begin(segment), pass_.end});
            flush();
            finish_pass();
        }
    }

  private:
    static constexpr index_t pass_rows = 1024; // query rows that share one sweep over the keys

    [[nodiscard]] index_t tiles_per_pass() const {
        return group_size_ * std::max<index_t>(1, pass_rows / group_size_ / Tile::max_queries);
    }
    [[nodiscard]] index_t tile_floats() const {
        return (Tile::own_floats(head_dim_, value_dim_) + 15) / 16 * 16; // rounded up to whole cache lines
    }

    // Calls fn(tile, query_head, queries) for each tile of queries of the pass.
    template <class Fn>
    void for_each_tile(Fn&& fn) {
        float* own = tiles_.data();
        for (index_t h = kv_head_ * group_size_; h < (kv_head_ + 1) * group_size_; ++h) {
            for (index_t p = pass_.begin; p < pass_.end; p += Tile::max_queries, own += tile_floats()) {
                Tile tile(own, shared_.data(), head_dim_, value_dim_);
                fn(tile, h, kernels::query_range{std::min(Tile::max_queries, pass_.end - p), p});
            }
        }
    }

    void begin_pass() {
        for_each_tile([&](Tile& tile, index_t query_head, kernels::query_range queries) {
            load_rows(in_.queries, query_head, queries.first_position - chunk_begin_, queries.count,
                      query_rows_.data());
            tile.begin(query_rows_.data(), head_dim_, queries.count, attention_.sink_logit_of(query_head),
                       rules_);
        });
    }

    // Rows of the cache, in pieces that fill key tiles. A whole tile is read in place where that is possible; smaller
    // pieces are collected. With a sliding window every mask depends on positions, so pieces are not joined.
    void attend(token_range rows) {
        while (rows.size() > 0) {
            const index_t count = std::min(rows.size(), max_keys_ - collected_);
            if (count == max_keys_) {
                attend_tile(read_rows<element>(in_.keys, kv_head_, rows.begin, count, key_tile_.data()),
                            read_rows<element>(in_.values, kv_head_, rows.begin, count, value_tile_.data()),
                            count, rows.begin);
            } else {
                if (collected_ == 0) { collected_begin_ = rows.begin; }
                load_rows(in_.keys, kv_head_, rows.begin, count, key_tile_.data() + collected_ * head_dim_);
                load_rows(in_.values, kv_head_, rows.begin, count,
                          value_tile_.data() + collected_ * value_dim_);
                collected_ += count;
                if (collected_ == max_keys_ || rules_.sliding_window > 0) { flush(); }
            }
            rows.begin += count;
        }
    }

    void flush() {
        if (collected_ == 0) { return; }
        attend_tile({key_tile_.data(), head_dim_}, {value_tile_.data(), value_dim_}, collected_,
                    collected_begin_);
        collected_ = 0;
    }

    void attend_tile(element_rows<element> keys, element_rows<element> values, index_t count,
                     index_t first_position) {
        const auto tile_of = [&](index_t rows) {
            return kernels::basic_key_tile<element>{keys.data,     keys.stride, values.data,
                                                    values.stride, rows,        first_position};
        };
        Tile::pack(tile_of(count), shared_.data(), head_dim_, value_dim_);
        for_each_tile([&](Tile& tile, index_t, kernels::query_range queries) {
            const index_t visible = queries.first_position + queries.count - first_position;
            if (visible > 0) { tile.attend(tile_of(std::min(count, visible)), rules_, queries); }
        });
    }

    void finish_pass() {
        for_each_tile([&](Tile& tile, index_t query_head, kernels::query_range queries) {
            const index_t first = queries.first_position - chunk_begin_;
            float* const lse = log_sum_exp_.empty()
                                   ? nullptr
                                   : log_sum_exp_.data() + query_head * extent(in_.queries, 1) + first;
            tile.finish(queries.count, out_rows_.data(), lse);
            store_rows(out_, query_head, first, queries.count, out_rows_.data());
        });
    }

    const Inputs& in_;
    const attention_options& attention_;
    const Output& out_;
    std::span<float> log_sum_exp_;
    index_t head_dim_;
    index_t value_dim_;
    index_t max_keys_;
    index_t group_size_;
    kernels::logit_rules rules_;
    index_t kv_head_ = 0;
    index_t chunk_begin_ = 0;
    token_range pass_;      // cache rows of the queries
    index_t collected_ = 0; // rows in the key tile
    index_t collected_begin_ = 0;
    std::span<float> tiles_;
    std::span<float> shared_;
    std::span<element> key_tile_;   // [max_keys, head_dim]
    std::span<element> value_tile_; // [max_keys, value_dim]
    std::span<element> query_rows_; // [max_queries, head_dim]
    std::span<float> out_rows_;     // [max_queries, value_dim]
};

// Calls fn<Tile>() with the tile of the active CPU level for these inputs.
template <class Inputs, class Fn>
decltype(auto) with_query_tile(Fn&& fn) {
    if constexpr (is_made_of<decltype(Inputs::keys), bf16> && is_made_of<decltype(Inputs::values), bf16> &&
                  is_made_of<decltype(Inputs::queries), bf16>) {
        return kernels::with_bf16_query_tile(fn);
    } else {
        return kernels::with_float_query_tile(fn);
    }
}

template <class Tile, class Inputs, class Output>
[[nodiscard]] index_t segment_attention_bytes(const Inputs& in, const attention_options& attention,
                                              const Output& out) {
    workspace counting = workspace::counting();
    static_cast<void>(segment_attention<Tile, Inputs, Output>(in, attention, out, {}, counting));
    return counting.needed_bytes();
}

// block_sparse_attention() with that tile, its arguments checked.
template <class Tile, class Inputs, class Output, class Executor>
[[nodiscard]] status attend_with(const Inputs& in, const prune_plan& plan, const attention_options& attention,
                                 const Output& out, std::span<float> log_sum_exp, workspace& scratch,
                                 Executor& ex) {
    const index_t bytes = segment_attention_bytes<Tile>(in, attention, out);
    return for_each_item(plan.rows(), bytes, scratch, ex, [&](index_t item, workspace& own) {
        segment_attention<Tile, Inputs, Output> work(in, attention, out, log_sum_exp, own);
        work.run(plan, item % in.kv_heads(), plan.grid().segments() - 1 - item / in.kv_heads());
    });
}

} // namespace detail

namespace detail {

// What block_sparse_attention() checks in O(heads). The rows of the plan are checked by check_invariants(), in O(blocks).
template <class Inputs, class Output>
[[nodiscard]] status validate_block_sparse(const Inputs& in, const prune_plan& plan,
                                           const attention_options& attention, const Output& out,
                                           std::span<float> log_sum_exp) {
    if (const status s = in.validate(); !s.ok()) { return s; }
    if (const status s = kvtrim::validate(out); !s.ok()) { return s; }
    const index_t q_heads = extent(in.queries, 0);
    const index_t queries = extent(in.queries, 1);
    if (extent(out, 0) != q_heads || extent(out, 1) != queries || extent(out, 2) != extent(in.values, 2)) {
        return {errc::invalid_parameter, "the output must be [q_heads, queries, value head_dim]"};
    }
    if (const index_t rows = saturated_product(q_heads, queries);
        !log_sum_exp.empty() && std::ssize(log_sum_exp) != rows) {
        return {errc::invalid_parameter, "log_sum_exp must be empty or [q_heads * queries]", rows};
    }
    if (const status s = valid_attention(attention, q_heads); !s.ok()) { return s; }
    if (q_heads == 0 || in.kv_heads() == 0 || q_heads % in.kv_heads() != 0) {
        return {errc::heads_not_divisible, "q_heads must be a positive multiple of kv_heads"};
    }
    const segment_grid& grid = plan.grid();
    if (plan.kv_heads() != in.kv_heads() || grid.tokens() != queries || in.shortest_row() < grid.end_token) {
        return {errc::plan_mismatch, "the prune plan was made for other queries or another cache"};
    }
    return check_outputs(std::array{bytes_of(out), bytes_of(log_sum_exp)}, in, attention.sink_logits);
}

} // namespace detail

/// Bytes of workspace for block_sparse_attention with this executor, at the active CPU level; 0 for inputs it refuses.
template <class Inputs, class Output, class Executor = serial_executor>
[[nodiscard]] index_t block_sparse_attention_bytes(const Inputs& in, const prune_plan& plan,
                                                   const attention_options& attention, const Output& out,
                                                   const Executor& ex = {}) {
    const bool is_valid = detail::validate_block_sparse(in, plan, attention, out, {}).ok();
    if (!is_valid || plan.grid().tokens() == 0) { return 0; }
    return detail::with_query_tile<Inputs>([&]<class Tile>() {
        return for_each_item_bytes(ex, plan.rows(),
                                   detail::segment_attention_bytes<Tile>(in, attention, out));
    });
}

/// Writes `out`, and log_sum_exp where it is not empty.
/// Returns what in.validate() or the view `out` say, invalid_parameter (an output or log_sum_exp of another shape, bad
/// attention options), heads_not_divisible, plan_mismatch (also for rows without check_invariants()), views_overlap
/// (check_outputs) or workspace_too_small, with nothing written.
template <class Inputs, class Output, class Executor = serial_executor>
[[nodiscard]] status block_sparse_attention(const Inputs& in, const prune_plan& plan,
                                            const attention_options& attention, const Output& out,
                                            std::span<float> log_sum_exp, workspace& scratch,
                                            Executor&& ex = {}) {
    static_assert(Inputs::has_values && Inputs::has_queries,
                  "kvtrim: block_sparse_attention needs layer(keys, values).with_queries(queries); see "
                  "cache/layer.hpp");
    static_assert(
        strided_view<Output, 3>,
        "kvtrim: block_sparse_attention writes to a strided view [q_heads, tokens, value head_dim]; see "
        "cache/tensor_view.hpp");
    if (const status s = detail::validate_block_sparse(in, plan, attention, out, log_sum_exp); !s.ok()) {
        return s;
    }
    if (!plan.check_invariants()) {
        return {errc::plan_mismatch, "the prune plan lists blocks that its segments do not have before them"};
    }
    if (plan.grid().tokens() == 0) { return {}; }
    return detail::with_query_tile<Inputs>([&]<class Tile>() {
        return detail::attend_with<Tile>(in, plan, attention, out, log_sum_exp, scratch, ex);
    });
}

/// The same with a workspace that grows on first use and then stays.
template <class Inputs, class Output, class Executor = serial_executor>
[[nodiscard]] status block_sparse_attention(const Inputs& in, const prune_plan& plan,
                                            const attention_options& attention, const Output& out,
                                            std::span<float> log_sum_exp, growing_workspace& memory,
                                            Executor&& ex = {}) {
    workspace scratch = memory.of_bytes(block_sparse_attention_bytes(in, plan, attention, out, ex));
    return block_sparse_attention(in, plan, attention, out, log_sum_exp, scratch, ex);
}

} // namespace KVTRIM_NAMESPACE
