// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// A flat ragged cache that grows: there is room behind the rows of each head, so that a new token is written behind them and
// no other row moves.
//
//   memory   | rows of head 0 | room | rows of head 1 | room | ...        one array each for keys, values, positions
//   begins   [kv_heads + 1]   int32   where the rows of each head start; the last one is the capacity   cu_seqlens_k
//   lengths  [kv_heads]       int32   rows of each head                                                 seqused_k
//
// The memory is the caller's; this is the table of it. When append() finds no room it answers how many rows of
// memory are enough; the caller grows its arrays to so many (or finds that they are as large), and spread_rows() moves the
// rows.
//
//     status s = cache.append(1);
//     if (s.code() == errc::no_room) {
//         keys.resize(s.needed() * head_dim);                                      // and the values
//         s = spread_rows(cache, s.needed(), flat_rows(keys.data(), cache, head_dim),
//                         flat_rows(values.data(), cache, head_dim));
//         if (s.ok()) { s = cache.append(1); }
//     }
//
// Arrays of another kind are moved by a callback: cache.spread(rows, [&](index_t from, index_t to, index_t count) { ... }).
// Errors: invalid_parameter, no_room, index_overflow, plan_mismatch, views_overlap, with nothing changed; a cache made of
// wrong numbers has no heads, and every call answers validate().
//
// Every head gets the same room, because every token needs a row of each head: `growth` times the mean row count. So each row is
// moved at most 1 / growth times per row appended, on average, and growth is the reserved share of memory.
// After an eviction the room is what the plan freed: several evictions need no spread().
// Source: FFY0/AdaKV@efe4e2e copies the whole flat cache for each generated token.
// Memory: 12 bytes per KV head. Cost: append O(kv_heads).

#include <kvtrim/cache/ragged.hpp>
#include <kvtrim/compact/check_plan.hpp>
#include <kvtrim/compact/moved_views.hpp>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace KVTRIM_NAMESPACE {

/// The table of a flat ragged cache: where each head's rows start and how many there are. The memory is the caller's.
class flat_cache {
  public:
    static constexpr index_t most_heads = index_t{1} << 20; ///< of a cache
    /// Of memory that a table can address.
    static constexpr index_t most_rows = std::numeric_limits<std::int32_t>::max();

    /// Without rows or memory. It has no heads, and validate() says why, for kv_heads outside 0 ... most_heads, a growth that is
    /// not positive and finite.
    explicit flat_cache(index_t kv_heads, double growth = 0.25) : growth_(growth) {
        const bool possible = kv_heads >= 0 && kv_heads <= most_heads && growth > 0 && std::isfinite(growth);
        if (!possible) {
            validity_ = {errc::invalid_parameter,
                         "flat_cache: kv_heads must lie in 0 ... 2^20, growth be positive and finite"};
        }
        begins_.resize(static_cast<std::size_t>(possible ? kv_heads : 0) + 1);
        next_begins_ = begins_;
        lengths_.resize(begins_.size() - 1);
    }
    /// The cache that gather or compact_to_flat left (compact/compact_to_flat.hpp): rows without room.
    explicit flat_cache(const keep_plan& plan, double growth = 0.25) : flat_cache(plan.rows(), growth) {
        if (kv_heads() == 0) { return; } // a plan never made has no offsets
        begins_.assign(plan.offsets().begin(), plan.offsets().end());
        for (std::size_t h = 0; h < lengths_.size(); ++h) { lengths_[h] = begins_[h + 1] - begins_[h]; }
    }

    flat_cache(const flat_cache&) = default;       ///< a copy
    flat_cache(flat_cache&&) = default;            ///< takes the memory
    flat_cache& operator=(flat_cache&&) = default; ///< takes the memory
    /// A copy; where an allocation throws this is as it was.
    flat_cache& operator=(const flat_cache& other) { return *this = flat_cache(other); }

    /// Why this object is not valid, or ok.
    [[nodiscard]] status validate() const { return validity_; }
    [[nodiscard]] index_t kv_heads() const { return std::ssize(lengths_); } ///< 0 where it is not valid
    /// [kv_heads + 1] first row of each head; cu_seqlens_k.
    [[nodiscard]] std::span<const std::int32_t> begins() const { return begins_; }
    /// [kv_heads] rows of each head; seqused_k.
    [[nodiscard]] std::span<const std::int32_t> lengths() const { return lengths_; }
    /// Rows of a head, which is not checked.
    [[nodiscard]] index_t rows(index_t head) const { return lengths_[static_cast<std::size_t>(head)]; }
    [[nodiscard]] index_t capacity() const { return begins_.back(); } ///< rows of memory
    /// Rows of all heads.
    [[nodiscard]] index_t total_rows() const {
        index_t total = 0;
        for (const index_t length : lengths_) { total += length; }
        return total;
    }
    /// Tokens that append() takes without a spread().
    [[nodiscard]] index_t room() const {
        index_t least = kv_heads() == 0 ? 0 : capacity();
        for (std::size_t h = 0; h < lengths_.size(); ++h) {
            least = std::min<index_t>(least, begins_[h + 1] - begins_[h] - lengths_[h]);
        }
        return least;
    }
    /// The row of memory that holds a token of a head.
    [[nodiscard]] index_t row(index_t head, index_t token) const {
        return begins_[static_cast<std::size_t>(head)] + token;
    }
    /// Rows of the longest head.
    [[nodiscard]] index_t longest_row() const {
        return lengths_.empty() ? 0 : *std::max_element(lengths_.begin(), lengths_.end());
    }

    /// Makes room for `count` new tokens in every head: their rows are the last `count` of each. Returns no_room (needed:
    /// rows of memory, for spread()), index_overflow (needed: rows) where no table can hold them, or invalid_parameter.
    [[nodiscard]] status append(index_t count) {
        if (!validity_.ok()) { return validity_; }
        if (count < 0) {
            return {errc::invalid_parameter, "flat_cache: the number of tokens must not be negative"};
        }
        if (count > room() && kv_heads() > 0) {
            const index_t rows = rows_for(count);
            if (rows > most_rows) { return too_many(rows); }
            return {errc::no_room, "flat_cache: a head has no room: spread the rows over more memory", rows};
        }
        for (std::int32_t& length : lengths_) { length += static_cast<std::int32_t>(count); }
        return {};
    }

    /// Rows of memory that hold `count` more tokens of each head, and as many more as growth says while a table can address
    /// them: at least what there is. Above most_rows there is no such memory. A negative count counts as 0.
    [[nodiscard]] index_t rows_for(index_t count) const {
        constexpr index_t most = std::numeric_limits<index_t>::max();
        const index_t heads = std::max<index_t>(1, kv_heads());
        const index_t total = total_rows();
        if (count > (most - total) / heads) { return most; }
        const index_t least = total + std::max<index_t>(0, count) * kv_heads();
        const double mean = static_cast<double>(total) / static_cast<double>(heads);
        const double growth = std::min(std::ceil(mean * growth_), static_cast<double>(most_rows));
        const index_t grown = std::min(most_rows, total + static_cast<index_t>(growth) * kv_heads());
        return std::max({capacity(), least, grown});
    }

    /// Divides memory of `rows` rows anew, the free ones equally between the heads. Calls move(from, to, count) for
    /// each head whose rows change their place in it: ranges of one head may overlap (memmove), no call destroys
    /// rows of another. Returns errc::no_room (needed: rows) or index_overflow, with no call made. For keys and values that
    /// are flat_rows, spread_rows() below also sees to memory that both share.
    template <class Move>
    [[nodiscard]] status spread(index_t rows, Move&& move) {
        if (const status s = valid_capacity(rows); !s.ok()) { return s; }
        divide(rows);
        // Heads that move down first, then from the other end those that move up.
        for (index_t h = 0; h < kv_heads(); ++h) {
            if (next_begin(h) < row(h, 0)) { call_for_rows(h, move); }
        }
        for (index_t h = kv_heads(); h-- > 0;) {
            if (next_begin(h) > row(h, 0)) { call_for_rows(h, move); }
        }
        begins_.swap(next_begins_);
        return {};
    }
    /// The same from one memory to another: calls copy(from, to, count) for every head that has rows. Returns what spread() does.
    template <class Copy>
    [[nodiscard]] status spread_into(index_t rows, Copy&& copy) {
        if (const status s = valid_capacity(rows); !s.ok()) { return s; }
        divide(rows);
        for (index_t h = 0; h < kv_heads(); ++h) { call_for_rows(h, copy); }
        begins_.swap(next_begins_);
        return {};
    }

    /// Takes over a cut by this plan (compact_in_place of flat_rows): each head begins where it did, and its evicted rows become
    /// room. Returns what validate() says or plan_mismatch, with nothing changed.
    [[nodiscard]] status compact(const keep_plan& plan) {
        if (const status s = check_plan(*this, plan); !s.ok()) { return s; }
        for (index_t h = 0; h < kv_heads(); ++h) {
            lengths_[static_cast<std::size_t>(h)] = static_cast<std::int32_t>(plan.kept_tokens(h));
        }
        return {};
    }

    /// As a cache of rows without elements, for check_plan.
    [[nodiscard]] index_t extent(std::size_t r) const {
        return r == 0 ? kv_heads() : r == 1 ? longest_row() : 1;
    }

  private:
    [[nodiscard]] status valid_capacity(index_t rows) const {
        if (!validity_.ok()) { return validity_; }
        if (rows < total_rows()) {
            return {errc::no_room, "flat_cache: the rows need more memory", total_rows()};
        }
        return rows > most_rows ? too_many(rows) : status{};
    }
    [[nodiscard]] static status too_many(index_t rows) {
        return {errc::index_overflow, "flat_cache: a table addresses at most 2^31 - 1 rows", rows};
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
        // Without heads the last is the first, where a table starts: such a cache takes no memory.
        if (kv_heads() > 0) { next_begins_.back() = static_cast<std::int32_t>(rows); }
    }
    template <class Fn>
    void call_for_rows(index_t head, Fn&& fn) const {
        if (rows(head) > 0) { fn(row(head, 0), next_begin(head), rows(head)); }
    }

    std::vector<std::int32_t> begins_;
    std::vector<std::int32_t> next_begins_; // of spread()
    std::vector<std::int32_t> lengths_;
    double growth_;
    status validity_;
};

/// One of the arrays of a flat_cache, as a cache to be scored (row_source), written (row_store) and cut (compact_in_place). The table
/// must outlive it; make a new view when it was spread over other memory.
template <element T>
class flat_rows : public consecutive_rows<flat_rows<T>, T> {
  public:
    /// Memory for cache.capacity() rows. The view is empty, and validate() says why, for a cache that is not valid, a negative
    /// head_dim, more elements than memory can hold, rows without data.
    flat_rows(T* data, const flat_cache& cache, index_t head_dim)
        : data_(data), cache_(&cache), head_dim_(head_dim), validity_(check()) {
        if (!validity_.ok()) { head_dim_ = 0; }
    }

    flat_rows(T* data, const flat_cache&& cache, index_t head_dim) = delete; ///< of a temporary

    /// Why this object is not valid, or ok.
    [[nodiscard]] status validate() const { return validity_; }
    /// [kv_heads, longest row, head_dim].
    [[nodiscard]] index_t extent(std::size_t r) const {
        if (!validity_.ok()) { return 0; }
        return r == 0 ? cache_->kv_heads() : r == 1 ? cache_->longest_row() : head_dim_;
    }
    [[nodiscard]] index_t rows(index_t head) const { return cache_->rows(head); } ///< of a head; not checked
    /// A token's row of a head; not checked.
    [[nodiscard]] T* row(index_t head, index_t token) const {
        return data_ + cache_->row(head, token) * head_dim_;
    }
    [[nodiscard]] const flat_cache& table() const { return *cache_; } ///< the cache it is an array of
    /// What the rows occupy, with the room between them.
    [[nodiscard]] auto memory() const { return std::array{memory(cache_->capacity())}; }
    /// The same for memory of `rows` rows.
    [[nodiscard]] strided_bytes memory(index_t rows) const {
        return {.first = data_,
                .extents = {1, 1, rows, 1},
                .strides = {0, 0, this->row_bytes(), 0},
                .bytes = this->row_bytes(),
                .table = cache_};
    }

    /// Moves a row of a head to another place in it; for compact_in_place.
    void move_row(index_t head, index_t from, index_t to) const {
        move(cache_->row(head, from), cache_->row(head, to), 1);
    }
    /// Moves `count` rows of memory, whatever head they belong to; the ranges may overlap.
    void move(index_t from, index_t to, index_t count) const {
        if (head_dim_ == 0) { return; } // such rows may have no memory
        std::memmove(data_ + to * head_dim_, data_ + from * head_dim_,
                     static_cast<std::size_t>(count * head_dim_) * sizeof(T));
    }

  private:
    [[nodiscard]] status check() const {
        if (const status s = cache_->validate(); !s.ok()) { return s; }
        constexpr index_t most = std::numeric_limits<index_t>::max() / 16 / static_cast<index_t>(sizeof(T));
        if (head_dim_ < 0 || head_dim_ > most / flat_cache::most_rows) {
            return {errc::invalid_parameter, "flat_rows: head_dim must not be negative, nor beyond memory"};
        }
        if (data_ == nullptr && cache_->capacity() > 0 && head_dim_ > 0) {
            return {errc::invalid_parameter, "flat_rows: data must not be null"};
        }
        return {};
    }

    T* data_;
    const flat_cache* cache_;
    index_t head_dim_;
    status validity_;
};

/// spread() of a cache whose arrays, keys and values, are memory for `rows` rows now: both move, or neither. The same array
/// twice moves once. Returns what spread() and the arrays say, invalid_parameter for arrays of another cache or without
/// memory, views_overlap.
template <class K, class V>
[[nodiscard]] status spread_rows(flat_cache& cache, index_t rows, const flat_rows<K>& keys,
                                 const flat_rows<V>& values) {
    for (const status s : {keys.validate(), values.validate()}) {
        if (!s.ok()) { return s; }
    }
    const bool missing = (keys.row(0, 0) == nullptr && keys.row_bytes() > 0) ||
                         (values.row(0, 0) == nullptr && values.row_bytes() > 0);
    if (&keys.table() != &cache || &values.table() != &cache || (missing && rows > 0)) {
        return {errc::invalid_parameter, "spread_rows: keys and values must be arrays of this cache"};
    }
    if (rows < 0 || rows > flat_cache::most_rows) {
        return cache.spread(rows, [](index_t, index_t, index_t) {});
    }
    const std::array key_bytes{keys.memory(rows)};
    const std::array value_bytes{values.memory(rows)};
    moved_views moved;
    if (const status s = check_movable(key_bytes, value_bytes, moved); !s.ok()) { return s; }
    return cache.spread(rows, [&](index_t from, index_t to, index_t count) {
        if (moved.first) { keys.move(from, to, count); }
        if (moved.second) { values.move(from, to, count); }
    });
}

} // namespace KVTRIM_NAMESPACE
