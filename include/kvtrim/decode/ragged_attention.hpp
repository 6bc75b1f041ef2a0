// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Attention of one token, or of a few, over a cache whose heads may have different lengths: a decode step after eviction.
//
//   out[h, i] = sum over t of softmax(l[h, i, .])[t] * v[t],   l[h, i, t] = cap(scale * <q[h, i], k[t]>)
//   z includes exp(sink_logit) where the model has one
//
//   in      layer(keys, values).with_queries(queries): keys, values [kv_heads, tokens, head_dim], any cache view (their
//           head_dims may differ); queries [q_heads, new tokens, head_dim], any cache view
//   out     [q_heads, new tokens, value head_dim], strided and writable, of any element
//   log_sum_exp   [q_heads * new tokens] natural log of z, or empty
//
// The rows of the new tokens are the newest of every head, so the last query sees all rows, the one before it all but the
// last, and so on. A sliding window counts rows of the cache: they are positions only where nothing was evicted within
// the window. A query that sees no row gives 0 and log_sum_exp of the sink logit, or -infinity.
//
// All query heads of a KV head share each row of keys and values, which is read once: in place where float, f16 or bf16
// elements lie in memory row by row (strided, filled and ragged views), else copied or decoded a tile at a time.
// The rows of a head are cut into parts of at most 4096; parts are handed out, and merged in their order.
//
// Source: online softmax, arXiv:1805.02867; the split over tokens as in Flash-Decoding, pytorch.org/blog/flash-decoding.
// Numerics: kernels/query_tile.hpp; float accumulation whatever the elements; parts are merged in float with weights
// from double. Parts depend on a head's length alone, so results do not depend on workers; they differ between CPU
// levels within rounding.
// Memory: value head_dim + 1 floats per part and query row; per worker the queries of a KV head and a tile.
// Cost: keys and values read once; 2 * (head_dim + value head_dim) flops per row and query. Up to four query heads of a
// group cost as much as one.

#include <kvtrim/cache/check_outputs.hpp>
#include <kvtrim/cache/layer.hpp>
#include <kvtrim/cache/read_rows.hpp>
#include <kvtrim/core/eviction_request.hpp>
#include <kvtrim/core/for_each_item.hpp>
#include <kvtrim/decode/decode_parts.hpp>
#include <kvtrim/kernels/decode_tile.hpp>

namespace KVTRIM_NAMESPACE {

namespace detail {

// What a tile of the rows of a view consists of: its own elements where the kernels read them, else floats.
template <class View>
using decode_element = std::conditional_t<kernels::decode_tile::reads<stored_element<View>> &&
                                              is_made_of<View, stored_element<View>>,
                                          stored_element<View>, float>;

// Attention over one part of one KV head.
template <class Inputs>
class part_attention {
    using Tile = kernels::decode_tile;
    using key_element = decode_element<decltype(Inputs::keys)>;
    using value_element = decode_element<decltype(Inputs::values)>;

  public:
    part_attention(const Inputs& in, const attention_options& attention, workspace& scratch)
        : in_(in), head_dim_(in.head_dim()), value_dim_(extent(in.values, 2)),
          group_size_(extent(in.queries, 0) / in.kv_heads()),
          queries_(extent(in.queries, 1)), rules_{attention.scale_for(head_dim_), attention.soft_cap,
                                                  attention.sliding_window} {
        tiles_ = scratch.take<float>(queries_ * tiles_per_query() * tile_floats());
        shared_ = scratch.take<float>(Tile::shared_floats());
        key_tile_ = scratch.take<key_element>(Tile::max_keys * head_dim_);
        value_tile_ = scratch.take<value_element>(Tile::max_keys * value_dim_);
        query_rows_ = scratch.take<float>(Tile::max_queries * head_dim_);
    }

    void run(index_t kv_head, index_t part, const decode_partials& to) {
        const decode_parts parts(in_.tokens(kv_head), queries_, rules_.sliding_window);
        if (part >= parts.count()) { return; }
        begin(kv_head);
        const token_range rows = parts.rows(part);
        for (index_t t = rows.begin; t < rows.end; t += Tile::max_keys) {
            attend(kv_head, {t, std::min(t + Tile::max_keys, rows.end)}, parts);
        }
        for_each_tile([&](const Tile& tile, index_t query, index_t first, index_t count) {
            const index_t row = to.at(kv_head, part, query * group_size_ + first);
            steps_.finish(tile, count, to.out.data() + row * value_dim_, to.log_sum_exp.data() + row);
        });
    }

  private:
    [[nodiscard]] index_t tiles_per_query() const {
        return (group_size_ + Tile::max_queries - 1) / Tile::max_queries;
    }
    [[nodiscard]] index_t tile_floats() const {
        return (Tile::own_floats(head_dim_, value_dim_) + 15) / 16 * 16; // rounded up to whole cache lines
    }

    // Calls fn(tile, query, first, count) for the query heads [first, first + count) of the group.
    template <class Fn>
    void for_each_tile(Fn&& fn) {
        float* own = tiles_.data();
        for (index_t i = 0; i < queries_; ++i) {
            for (index_t j = 0; j < group_size_; j += Tile::max_queries, own += tile_floats()) {
                const Tile tile(own, shared_.data(), head_dim_, value_dim_);
                fn(tile, i, j, std::min(Tile::max_queries, group_size_ - j));
            }
        }
    }

    void begin(index_t kv_head) {
        for_each_tile([&](const Tile& tile, index_t query, index_t first, index_t count) {
            for (index_t j = 0; j < count; ++j) {
                load_rows(in_.queries, kv_head * group_size_ + first + j, query, 1,
                          query_rows_.data() + j * head_dim_);
            }
            steps_.begin(tile, query_rows_.data(), head_dim_, count, rules_);
        });
    }

    void attend(index_t kv_head, token_range rows, const decode_parts& parts) {
        const auto keys =
            read_rows<key_element>(in_.keys, kv_head, rows.begin, rows.size(), key_tile_.data());
        const auto values =
            read_rows<value_element>(in_.values, kv_head, rows.begin, rows.size(), value_tile_.data());
        const bool are_in_place = keys.data != key_tile_.data() && values.data != value_tile_.data();
        const index_t behind = std::min(Tile::max_keys, in_.tokens(kv_head) - rows.end);
        for_each_tile([&](const Tile& tile, index_t query, index_t, index_t) {
            const token_range seen = parts.seen_by(query);
            const index_t first = std::max(rows.begin, seen.begin) - rows.begin;
            const index_t end = std::min(rows.end, seen.end) - rows.begin;
            if (first >= end) { return; }
            const bool fetches = are_in_place && end == rows.size();
            steps_.attend(tile, keys.from(first), values.from(first), end - first, rules_,
                          fetches ? behind : 0);
        });
    }

    const Inputs& in_;
    index_t head_dim_;
    index_t value_dim_;
    index_t group_size_;
    index_t queries_;
    kernels::logit_rules rules_;
    const kernels::decode_kernels<key_element, value_element>& steps_ =
        kernels::active_decode_kernels<key_element, value_element>();
    std::span<float> tiles_;
    std::span<float> shared_;
    std::span<key_element> key_tile_;     // [most keys, head_dim]
    std::span<value_element> value_tile_; // [most keys, value_dim]
    std::span<float> query_rows_;         // [max_queries, head_dim]
};

template <class Inputs>
[[nodiscard]] index_t part_attention_bytes(const Inputs& in, const attention_options& attention) {
    workspace counting = workspace::counting();
    static_cast<void>(part_attention<Inputs>(in, attention, counting));
    return counting.needed_bytes();
}

template <class Inputs>
[[nodiscard]] decode_partials take_partials(const Inputs& in, const attention_options& attention,
                                            workspace& scratch) {
    const index_t queries = extent(in.queries, 1);
    const decode_parts longest(in.longest_row(), queries, attention.sliding_window);
    return {in.kv_heads(), longest.count(), queries * (extent(in.queries, 0) / in.kv_heads()),
            extent(in.values, 2), scratch};
}

template <class Inputs>
[[nodiscard]] status validate_decode(const Inputs& in, const attention_options& attention) {
    const index_t q_heads = extent(in.queries, 0);
    for (const status s : {in.validate(), valid_attention(attention, q_heads)}) {
        if (!s.ok()) { return s; }
    }
    if (q_heads == 0 || in.kv_heads() == 0 || q_heads % in.kv_heads() != 0) {
        return {errc::heads_not_divisible, "q_heads must be a positive multiple of kv_heads"};
    }
    return {};
}

template <class Inputs, class Output>
[[nodiscard]] status validate_output(const Inputs& in, const attention_options& attention, const Output& out,
                                     std::span<float> log_sum_exp) {
    if (const status s = kvtrim::validate(out); !s.ok()) { return s; }
    const index_t rows = extent(in.queries, 0) * extent(in.queries, 1);
    if (extent(out, 0) != extent(in.queries, 0) || extent(out, 1) != extent(in.queries, 1) ||
        extent(out, 2) != extent(in.values, 2)) {
        return {errc::invalid_parameter,
                "ragged_attention: the output must be [q_heads, queries, value head_dim]"};
    }
    if (!log_sum_exp.empty() && static_cast<index_t>(log_sum_exp.size()) != rows) {
        return {errc::invalid_parameter, "ragged_attention: log_sum_exp must be empty or [q_heads * queries]",
                rows};
    }
    return check_outputs(std::array{bytes_of(out), bytes_of(log_sum_exp)}, in, attention.sink_logits);
}

} // namespace detail

/// Bytes of workspace for ragged_attention at the full width of this executor and the active CPU level; those for one worker
/// are enough. 0 for inputs that it refuses.
template <class Inputs, class Executor = serial_executor>
[[nodiscard]] index_t ragged_attention_bytes(const Inputs& in, const attention_options& attention,
                                             const Executor& ex = {}) {
    if (!detail::validate_decode(in, attention).ok() || extent(in.queries, 1) == 0) { return 0; }
    workspace counting = workspace::counting();
    const auto found = detail::take_partials(in, attention, counting);
    static_cast<void>(counting.take<float>(found.value_dim));
    const index_t part_bytes = detail::part_attention_bytes(in, attention);
    static_cast<void>(
        counting.take<std::byte>(for_each_item_bytes(ex, in.kv_heads() * found.parts, part_bytes)));
    return counting.needed_bytes();
}

/// Writes `out`, and log_sum_exp where it is not empty. Returns what inputs.validate() and valid_attention() say,
/// heads_not_divisible, invalid_parameter for an output or a log_sum_exp of other extents, views_overlap (check_outputs), or
/// workspace_too_small, with nothing written.
template <class Inputs, class Output, class Executor = serial_executor>
[[nodiscard]] status ragged_attention(const Inputs& in, const attention_options& attention, const Output& out,
                                      std::span<float> log_sum_exp, workspace& scratch, Executor&& ex = {}) {
    static_assert(
        Inputs::has_values && Inputs::has_queries,
        "kvtrim: ragged_attention needs layer(keys, values).with_queries(queries); see cache/layer.hpp");
    static_assert(
        strided_view<Output, 3>,
        "kvtrim: ragged_attention writes to a strided view [q_heads, new tokens, value head_dim]; see "
        "cache/tensor_view.hpp");
    const index_t q_heads = extent(in.queries, 0);
    const index_t queries = extent(in.queries, 1);
    if (const status s = detail::validate_decode(in, attention); !s.ok()) { return s; }
    if (const status s = detail::validate_output(in, attention, out, log_sum_exp); !s.ok()) { return s; }
    if (queries == 0) { return {}; }
    const index_t bytes = ragged_attention_bytes(in, attention);
    if (!scratch.holds(bytes)) { return scratch.too_small(bytes); }
    const workspace::frame frame(scratch);
    const auto found = detail::take_partials(in, attention, scratch);
    const auto row = scratch.take<float>(found.value_dim);

    const index_t part_bytes = detail::part_attention_bytes(in, attention);
    const status s = for_each_item(in.kv_heads() * found.parts, part_bytes, scratch, ex,
                                   [&](index_t item, workspace& own) {
                                       detail::part_attention<Inputs>(in, attention, own)
                                           .run(item / found.parts, item % found.parts, found);
                                   });
    if (!s.ok()) { return s; }

    const index_t group_size = q_heads / in.kv_heads();
    for (index_t h = 0; h < q_heads; ++h) {
        const index_t g = h / group_size;
        const detail::decode_parts parts(in.tokens(g), queries, attention.sliding_window);
        for (index_t i = 0; i < queries; ++i) {
            const float log_sum = detail::merge_parts(
                found, g, parts.count(), i * group_size + h % group_size, attention.sink_logit_of(h), row);
            store_rows(out, h, i, 1, row.data());
            if (!log_sum_exp.empty()) { log_sum_exp[static_cast<std::size_t>(h * queries + i)] = log_sum; }
        }
    }
    return {};
}

/// The same with a workspace that grows on first use and then stays.
template <class Inputs, class Output, class Executor = serial_executor>
[[nodiscard]] status ragged_attention(const Inputs& in, const attention_options& attention, const Output& out,
                                      std::span<float> log_sum_exp, growing_workspace& memory,
                                      Executor&& ex = {}) {
    workspace scratch = memory.of_bytes(ragged_attention_bytes(in, attention, ex));
    return ragged_attention(in, attention, out, log_sum_exp, scratch, ex);
}

} // namespace KVTRIM_NAMESPACE
