// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// A flat ragged cache that grows: room behind the rows of each head, so that a new token is written where it
// belongs and nothing else moves.
//
//   memory   | rows of head 0 | room | rows of head 1 | room | ...        one array each for keys, values, positions
//   begins   [kv_heads + 1]   int32   where the rows of each head start; the last one is the capacity   cu_seqlens_k
//   lengths  [kv_heads]       int32   rows of each head                                                 seqused_k
//
// The memory is the caller's; this is the table of it. When append() finds no room it answers how many rows of
// memory are enough; the caller grows its arrays to so many (or finds that they are as large), and spread() says
// which rows to move.
//
//     status s = cache.append(1);
//     if (s.code() == errc::no_room) {
//         keys.resize(s.needed() * head_dim);
//         s = cache.spread(s.needed(), [&](index_t from, index_t to, index_t rows) {
//             flat_rows(keys.data(), cache, head_dim).move(from, to, rows);        // and the values
//         });
//         s = cache.append(1);
//     }
//
// Every head gets as much room, for every token needs a row of each: `growth` of the mean row count, so that each
// row is moved at most 1 / growth times per row appended, on average, and growth is the memory that waits. After
// an eviction the room is what the plan freed: several evictions need no spread().
// Source: FFY0/AdaKV@efe4e2e copies the whole flat cache for each generated token.
// Memory: 12 bytes per KV head. Cost: append O(kv_heads).

#include <kvtrim/compact/check_plan.hpp>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace kvtrim {

class flat_cache {
  public:
    // Without rows or memory. Requires kv_heads >= 0 and growth > 0.
    explicit flat_cache(index_t kv_heads, double growth = 0.25) : growth_(growth) {
        KVTRIM_EXPECTS(kv_heads >= 0 && growth > 0,
                       "flat_cache: kv_heads must not be negative, growth be positive");
        begins_.resize(static_cast<std::size_t>(kv_heads) + 1);
        next_begins_ = begins_;
        lengths_.resize(static_cast<std::size_t>(kv_heads));
    }
    // The cache that gather or compact_to_flat left (compact/flat.hpp): rows without room.
    explicit flat_cache(const keep_plan& plan, double growth = 0.25) : flat_cache(plan.rows(), growth) {
        if (plan.rows() == 0) { return; } // a plan never made has no offsets
        begins_.assign(plan.offsets().begin(), plan.offsets().end());
        for (std::size_t h = 0; h < lengths_.size(); ++h) { lengths_[h] = begins_[h + 1] - begins_[h]; }
    }

    [[nodiscard]] index_t kv_heads() const { return std::ssize(lengths_); }
    [[nodiscard]] std::span<const std::int32_t> begins() const { return begins_; }
    [[nodiscard]] std::span<const std::int32_t> lengths() const { return lengths_; }
    [[nodiscard]] index_t rows(index_t head) const { return lengths_[static_cast<std::size_t>(head)]; }
    [[nodiscard]] index_t capacity() const { return begins_.back(); } // rows of memory
    [[nodiscard]] index_t total_rows() const {
        index_t total = 0;
        for (const index_t length : lengths_) { total += length; }
        return total;
    }
    // Tokens that can be appended as things are.
    [[nodiscard]] index_t room() const {
        index_t least = kv_heads() == 0 ? 0 : capacity();
        for (std::size_t h = 0; h < lengths_.size(); ++h) {
            least = std::min<index_t>(least, begins_[h + 1] - begins_[h] - lengths_[h]);
        }
        return least;
    }
    // The row of memory that holds a token of a head.
    [[nodiscard]] index_t row(index_t head, index_t token) const {
        return begins_[static_cast<std::size_t>(head)] + token;
    }
    [[nodiscard]] index_t longest_row() const {
        return lengths_.empty() ? 0 : *std::max_element(lengths_.begin(), lengths_.end());
    }

    // `count` new tokens in every head: their rows are the last `count` of each. Requires count >= 0.
    // Returns errc::no_room (needed: rows of memory, for spread()) with nothing changed.
    [[nodiscard]] status append(index_t count) {
        KVTRIM_EXPECTS(count >= 0, "flat_cache: the number of tokens must not be negative");
        if (count > room() && kv_heads() > 0) {
            return {errc::no_room, "flat_cache: a head has no room: spread the rows over more memory",
                    rows_for(count)};
        }
        for (std::int32_t& length : lengths_) { length += static_cast<std::int32_t>(count); }
        return {};
    }

    // Rows of memory that hold `count` more tokens and then some: at least what there is.
    [[nodiscard]] index_t rows_for(index_t count) const {
        const double mean =
            static_cast<double>(total_rows()) / static_cast<double>(std::max<index_t>(1, kv_heads()));
        const index_t room = std::max(count, static_cast<index_t>(std::ceil(mean * growth_)));
        return std::max(capacity(), total_rows() + room * kv_heads());
    }

    // Divides memory of `rows` rows anew, the free ones equally between the heads. Calls move(from, to, count) for
    // each head whose rows change their place in it: ranges of one head may overlap (memmove), no call destroys
    // rows of another. Returns errc::no_room (needed: rows) or index_overflow, with no call made.
    template <class Move>
    [[nodiscard]] status spread(index_t rows, Move&& move) {
        if (const status s = valid_capacity(rows); !s.ok()) { return s; }
        divide(rows);
        for (index_t h = 0; h < kv_heads(); ++h) { // what goes down, then from the other end what goes up
            if (next_begin(h) < row(h, 0)) { call_for_rows(h, move); }
        }
        for (index_t h = kv_heads(); h-- > 0;) {
            if (next_begin(h) > row(h, 0)) { call_for_rows(h, move); }
        }
        begins_.swap(next_begins_);
        return {};
    }
    // The same from one memory to another: every head that has rows is copied.
    template <class Copy>
    [[nodiscard]] status spread_into(index_t rows, Copy&& copy) {
        if (const status s = valid_capacity(rows); !s.ok()) { return s; }
        divide(rows);
        for (index_t h = 0; h < kv_heads(); ++h) { call_for_rows(h, copy); }
        begins_.swap(next_begins_);
        return {};
    }

    // The rows were cut by a plan (compact_in_place of flat_rows): each head keeps its place, and what it lost as
    // room. Returns errc::plan_mismatch, with nothing changed.
    [[nodiscard]] status compact(const keep_plan& plan) {
        if (const status s = check_plan(*this, plan); !s.ok()) { return s; }
        for (index_t h = 0; h < kv_heads(); ++h) {
            lengths_[static_cast<std::size_t>(h)] = static_cast<std::int32_t>(plan.kept_tokens(h));
        }
        return {};
    }

    // As a cache of rows without elements, for check_plan.
    [[nodiscard]] index_t extent(std::size_t r) const {
        return r == 0 ? kv_heads() : r == 1 ? longest_row() : 1;
    }

  private:
    [[nodiscard]] status valid_capacity(index_t rows) const {
        if (rows < total_rows()) {
            return {errc::no_room, "flat_cache: the rows need more memory", total_rows()};
        }
        if (rows > std::numeric_limits<std::int32_t>::max()) {
            return {errc::index_overflow, "flat_cache: a table addresses at most 2^31 - 1 rows", rows};
        }
        return {};
    }
    [[nodiscard]] index_t next_begin(index_t head) const {
        return next_begins_[static_cast<std::size_t>(head)];
    }

    // Fills next_begins_; what free rows remain go to the last head.
    void divide(index_t rows) {
        const index_t free_rows = rows - total_rows();
        const index_t room = kv_heads() == 0 ? 0 : free_rows / kv_heads();
        next_begins_[0] = 0;
        for (std::size_t h = 0; h < lengths_.size(); ++h) {
            next_begins_[h + 1] = next_begins_[h] + lengths_[h] + static_cast<std::int32_t>(room);
        }
        next_begins_.back() = static_cast<std::int32_t>(rows);
    }
    template <class Fn>
    void call_for_rows(index_t head, Fn&& fn) const {
        if (rows(head) > 0) { fn(row(head, 0), next_begin(head), rows(head)); }
    }

    std::vector<std::int32_t> begins_;
    std::vector<std::int32_t> next_begins_; // of spread()
    std::vector<std::int32_t> lengths_;
    double growth_;
};

// One of the arrays of a flat_cache, as a cache to be scored (row_source) and cut (compact_in_place). The table
// must outlive it.
template <element T>
class flat_rows {
  public:
    using element_type = T;

    // Requires memory for cache.capacity() rows.
    flat_rows(T* data, const flat_cache& cache, index_t head_dim)
        : data_(data), cache_(&cache), head_dim_(head_dim) {
        KVTRIM_EXPECTS(head_dim >= 0, "flat_rows: head_dim must not be negative");
        KVTRIM_EXPECTS(data != nullptr || cache.capacity() == 0 || head_dim == 0,
                       "flat_rows: data must not be null");
    }

    [[nodiscard]] index_t extent(std::size_t r) const {
        return r == 0 ? cache_->kv_heads() : r == 1 ? cache_->longest_row() : head_dim_;
    }
    [[nodiscard]] index_t rows(index_t head) const { return cache_->rows(head); }
    [[nodiscard]] index_t row_bytes() const { return head_dim_ * static_cast<index_t>(sizeof(T)); }
    [[nodiscard]] T* row(index_t head, index_t token) const {
        return data_ + cache_->row(head, token) * head_dim_;
    }

    void load_rows(index_t head, index_t first, index_t count, float* tile) const {
        const T* rows = row(head, first);
        for (index_t i = 0; i < count * head_dim_; ++i) { tile[i] = to_float(rows[i]); }
    }
    void move_row(index_t head, index_t from, index_t to) const {
        move(cache_->row(head, from), cache_->row(head, to), 1);
    }
    // Rows of memory; the ranges may overlap.
    void move(index_t from, index_t to, index_t count) const {
        std::memmove(data_ + to * head_dim_, data_ + from * head_dim_,
                     static_cast<std::size_t>(count * head_dim_) * sizeof(T));
    }

  private:
    T* data_;
    const flat_cache* cache_;
    index_t head_dim_;
};

} // namespace kvtrim
