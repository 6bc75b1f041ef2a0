// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Which cache blocks each query segment of a prefill attends: the plain data between pruning and attention.
//
//   cache    |  b0  |  b1  |  b2  | ... |  block b covers rows [b * block_tokens, (b + 1) * block_tokens)
//   queries                 |  segment s: rows [begin(s), end(s)) of the cache  |
//
//   offsets [rows + 1], blocks [offsets[rows]]   row = kv_head * segments + segment, blocks ascending
//
// A row lists blocks that end before its segment begins. The segment's own keys are never listed: they are
// attended causally, always. So a plan is causal by construction, and a row of all its allowed blocks is dense
// attention. Blocks are numbered from the first row of the cache, also in a chunk whose earlier keys are cached.
//
// An engine may write the rows itself: every call that reads a plan calls check_invariants() first.

#include <kvtrim/core/saturated.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace KVTRIM_NAMESPACE {

/// A chunk of new tokens, divided into segments of queries over blocks of keys.
struct segment_grid {
    index_t segment_tokens = 512; ///< queries of a segment; a multiple of block_tokens
    index_t block_tokens = 32;    ///< keys of a block
    index_t first_token = 0;      ///< cache row of the chunk's first query; a multiple of segment_tokens
    index_t end_token = 0;        ///< one past the last; the cache holds this many rows

    /// Returns invalid_parameter for sizes that do not divide or a chunk that ends before it begins.
    [[nodiscard]] status validate() const {
        if (segment_tokens <= 0 || block_tokens <= 0 || segment_tokens % block_tokens != 0) {
            return {errc::invalid_parameter,
                    "prefill: segment_tokens must be a positive multiple of block_tokens"};
        }
        if (first_token < 0 || end_token < first_token || first_token % segment_tokens != 0) {
            return {errc::invalid_parameter, "prefill: a chunk must begin at a multiple of segment_tokens"};
        }
        return {};
    }

    /// Queries of the chunk.
    [[nodiscard]] index_t tokens() const { return end_token - first_token; }
    /// Segments of the chunk, the last of which may be shorter. A grid that is not valid has none.
    [[nodiscard]] index_t segments() const {
        if (!validate().ok()) { return 0; }
        return tokens() / segment_tokens + (tokens() % segment_tokens > 0 ? 1 : 0);
    }
    /// Cache row of a segment's first query.
    [[nodiscard]] index_t begin(index_t segment) const { return first_token + segment * segment_tokens; }
    /// One past the cache row of a segment's last query.
    [[nodiscard]] index_t end(index_t segment) const {
        return begin(segment) + std::min(segment_tokens, end_token - begin(segment));
    }
    /// Queries of a segment.
    [[nodiscard]] index_t segment_size(index_t segment) const { return end(segment) - begin(segment); }
    /// Blocks that lie wholly before the segment of a valid grid.
    [[nodiscard]] index_t allowed_blocks(index_t segment) const { return begin(segment) / block_tokens; }
    /// Allowed blocks of all segments before `segment`: where its row begins in a table of all allowed blocks.
    [[nodiscard]] index_t allowed_before(index_t segment) const {
        const index_t step = segment_tokens / block_tokens;
        return segment * allowed_blocks(0) + step * (segment * (segment - 1) / 2);
    }

    friend bool operator==(const segment_grid&, const segment_grid&) = default;
};

/// Whether tables can hold a row of all allowed blocks for every (KV head, segment). Returns the grid's own answer,
/// invalid_parameter for a negative number of heads, or index_overflow (needed: tokens, heads, rows or blocks) beyond
/// 2^31 - 1.
[[nodiscard]] inline status valid_table_size(const segment_grid& grid, index_t kv_heads) {
    constexpr index_t limit = std::numeric_limits<std::int32_t>::max();
    if (const status s = grid.validate(); !s.ok()) { return s; }
    if (kv_heads < 0) { return {errc::invalid_parameter, "prefill: kv_heads must not be negative"}; }
    index_t most = grid.end_token;
    if (most <= limit) { // then the blocks of one head can be counted in 64 bits
        const index_t of_one_head = std::max(grid.segments(), grid.allowed_before(grid.segments()));
        most = std::max(kv_heads, saturated_product(of_one_head, kv_heads)); // kv_heads: without segments
    }
    if (most <= limit) { return {}; }
    return {errc::index_overflow, "a prune plan addresses at most 2^31 - 1 tokens, heads, rows and blocks",
            most};
}

/// The blocks that every (KV head, segment) attends. A value: copies are independent.
class prune_plan {
  public:
    /// The integers of both tables.
    using table_index = std::int32_t;

    prune_plan() = default;                        ///< never made
    prune_plan(const prune_plan&) = default;       ///< a copy
    prune_plan(prune_plan&&) = default;            ///< takes the memory
    prune_plan& operator=(prune_plan&&) = default; ///< takes the memory
    /// A copy; where an allocation throws this is as it was.
    prune_plan& operator=(const prune_plan& other) { return *this = prune_plan(other); }

    /// The chunk that the plan is for.
    [[nodiscard]] const segment_grid& grid() const { return grid_; }
    /// KV heads.
    [[nodiscard]] index_t kv_heads() const { return kv_heads_; }
    /// (KV head, segment) pairs.
    [[nodiscard]] index_t rows() const { return kv_heads_ * grid_.segments(); }
    /// Row of a (KV head, segment).
    [[nodiscard]] index_t row_index(index_t kv_head, index_t segment) const {
        return kv_head * grid_.segments() + segment;
    }
    /// The blocks before the segment that it attends, ascending.
    [[nodiscard]] std::span<const table_index> row(index_t kv_head, index_t segment) const {
        return span_of<const table_index>(blocks_, row_index(kv_head, segment));
    }
    /// [rows + 1] where each row begins in blocks().
    [[nodiscard]] std::span<const table_index> offsets() const { return offsets_; }
    /// [offsets[rows]] the blocks of all rows, one row after the other.
    [[nodiscard]] std::span<const table_index> blocks() const { return blocks_; }

    /// Sizes the tables for `counts` [kv_heads * segments] blocks per row; the rows are then written through writable_row().
    /// Returns the grid's own answer, invalid_parameter (another number of counts, needed: that of rows; a count that is
    /// negative or above the row's allowed blocks, needed: these) or index_overflow (needed: heads or blocks) beyond
    /// 2^31 - 1 in total, with the plan unchanged.
    [[nodiscard]] status reset(const segment_grid& grid, index_t kv_heads, std::span<const index_t> counts) {
        if (const status s = grid.validate(); !s.ok()) { return s; }
        const index_t rows = saturated_product(kv_heads, grid.segments());
        if (kv_heads < 0 || std::ssize(counts) != rows) {
            return {errc::invalid_parameter, "prune_plan: there must be one count per (KV head, segment)",
                    std::max<index_t>(0, rows)};
        }
        constexpr index_t most = std::numeric_limits<table_index>::max();
        if (kv_heads > most) { // possible without segments
            return {errc::index_overflow, "a prune plan holds at most 2^31 - 1 heads", kv_heads};
        }
        index_t total = 0;
        for (index_t r = 0; r < rows; ++r) {
            const index_t count = counts[static_cast<std::size_t>(r)];
            const index_t allowed = grid.allowed_blocks(r % grid.segments());
            if (count < 0 || count > allowed) {
                return {errc::invalid_parameter, "prune_plan: a row lists blocks before its segment only",
                        allowed};
            }
            total = saturated_sum(total, count);
        }
        if (total > most) {
            return {errc::index_overflow, "a prune plan holds at most 2^31 - 1 blocks", total};
        }
        offsets_.reserve(counts.size() + 1);
        blocks_.resize(static_cast<std::size_t>(total)); // the last line that may throw
        offsets_.resize(counts.size() + 1);
        grid_ = grid;
        kv_heads_ = kv_heads;
        offsets_[0] = 0;
        for (std::size_t r = 0; r < counts.size(); ++r) {
            offsets_[r + 1] = offsets_[r] + static_cast<table_index>(counts[r]);
        }
        return {};
    }
    /// Where the blocks of a row are written, ascending, after reset().
    [[nodiscard]] std::span<table_index> writable_row(index_t kv_head, index_t segment) {
        return span_of<table_index>(blocks_, row_index(kv_head, segment));
    }

    /// Query-key pairs that one query head attends under this plan, summed over the KV heads.
    [[nodiscard]] double planned_pairs() const {
        double pairs = 0;
        const index_t segments = grid_.segments();
        for (index_t r = 0; r < rows(); ++r) {
            pairs += pairs_of(r % segments, std::ssize(row(r / segments, r % segments)));
        }
        return pairs;
    }
    /// Pairs of dense causal attention; dense_pairs() / planned_pairs() bounds the speed-up of attention.
    [[nodiscard]] double dense_pairs() const {
        double pairs = 0;
        for (index_t s = 0; s < grid_.segments(); ++s) { pairs += pairs_of(s, grid_.allowed_blocks(s)); }
        return pairs * static_cast<double>(kv_heads_);
    }

    /// Whether every row ascends strictly and lies before its segment. O(blocks).
    [[nodiscard]] bool check_invariants() const {
        const index_t segments = grid_.segments();
        for (index_t r = 0; r < rows(); ++r) {
            const index_t allowed = grid_.allowed_blocks(r % segments);
            index_t next = 0;
            for (const table_index block : row(r / segments, r % segments)) {
                if (block < next || block >= allowed) { return false; }
                next = index_t{block} + 1;
            }
        }
        return true;
    }

    friend bool operator==(const prune_plan&, const prune_plan&) = default;

  private:
    template <class T, class Table>
    [[nodiscard]] std::span<T> span_of(Table& table, index_t row) const {
        const auto r = static_cast<std::size_t>(row);
        return std::span<T>(table).subspan(static_cast<std::size_t>(offsets_[r]),
                                           static_cast<std::size_t>(offsets_[r + 1] - offsets_[r]));
    }

    [[nodiscard]] double pairs_of(index_t segment, index_t blocks) const {
        const auto queries = static_cast<double>(grid_.segment_size(segment));
        return queries * static_cast<double>(blocks * grid_.block_tokens) + queries * (queries + 1) / 2;
    }

    segment_grid grid_ = {};
    index_t kv_heads_ = 0;
    std::vector<table_index> offsets_;
    std::vector<table_index> blocks_;
};

/// The plan of dense causal attention: every segment attends every block before it.
/// Returns what valid_table_size() says, with the plan unchanged.
[[nodiscard]] inline status plan_dense(const segment_grid& grid, index_t kv_heads, prune_plan& out) {
    if (const status s = valid_table_size(grid, kv_heads); !s.ok()) { return s; }
    const index_t segments = grid.segments();
    std::vector<index_t> counts(static_cast<std::size_t>(kv_heads * segments));
    for (index_t r = 0; r < kv_heads * segments; ++r) {
        counts[static_cast<std::size_t>(r)] = grid.allowed_blocks(r % segments);
    }
    if (const status s = out.reset(grid, kv_heads, counts); !s.ok()) { return s; }
    for (index_t r = 0; r < kv_heads * segments; ++r) {
        prune_plan::table_index next = 0;
        for (auto& block : out.writable_row(r / segments, r % segments)) { block = next++; }
    }
    return {};
}

} // namespace KVTRIM_NAMESPACE
