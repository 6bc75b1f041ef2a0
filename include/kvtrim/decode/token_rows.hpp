// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// One number per cached token and KV head, which is kept as long as the token: the base of every per-token state.
//
//   row(head)  [tokens(head)]   in the order of the cache's rows
//
//   append       every head grows by the same new tokens
//   compact      the cache was cut by a plan: the same rows stay here
//   drop_newest  the newest tokens of every head are undone; they must not have been evicted
//
// A value: copies are forks, save() and restore() work (core/save.hpp); equal states save equal bytes. Memory:
// [kv_heads, capacity] of T, where capacity grows when a head outgrows it, and is the longest head after a restore;
// nothing else allocates.
// Numbers are not trusted (core/status.hpp): an object of wrong sizes is empty, and every call returns what validate() says. A
// refused call changes nothing.

#include <kvtrim/compact/check_plan.hpp>
#include <kvtrim/core/saturated.hpp>
#include <kvtrim/core/save.hpp>

#include <algorithm>
#include <limits>

namespace KVTRIM_NAMESPACE {

/// One number per cached token and KV head. A plain value.
template <class T>
class token_rows {
  public:
    /// Of one head: what a plan can address.
    static constexpr index_t most_tokens = std::numeric_limits<keep_plan::table_index>::max();

    /// reserved_tokens: per head, so that nothing allocates up to there. The object is empty, and validate() says why, for what
    /// valid_size() refuses.
    explicit token_rows(index_t kv_heads, index_t reserved_tokens = 0)
        : validity_(valid_size(kv_heads, reserved_tokens)) {
        if (!validity_.ok()) { return; }
        capacity_ = reserved_tokens;
        lengths_.resize(static_cast<std::size_t>(kv_heads));
        values_.resize(static_cast<std::size_t>(kv_heads * reserved_tokens));
    }

    token_rows(const token_rows&) = default;       ///< a fork
    token_rows(token_rows&&) = default;            ///< takes the tables
    token_rows& operator=(token_rows&&) = default; ///< takes the tables
    /// A fork, in the memory that this has where it is enough; where an allocation throws this is as it was.
    token_rows& operator=(const token_rows& other) {
        lengths_.reserve(other.lengths_.size());
        values_ = other.values_; // the last line that may throw
        lengths_ = other.lengths_;
        validity_ = other.validity_;
        capacity_ = other.capacity_;
        droppable_ = other.droppable_;
        return *this;
    }

    /// Returns invalid_parameter for negative numbers or more than memory can hold, index_overflow for more than 2^31 - 1
    /// heads or tokens of a head.
    [[nodiscard]] static constexpr status valid_size(index_t kv_heads, index_t tokens) {
        if (kv_heads < 0 || tokens < 0) {
            return {errc::invalid_parameter, "token rows: heads and tokens must not be negative numbers"};
        }
        constexpr index_t most_elements =
            std::numeric_limits<index_t>::max() / static_cast<index_t>(sizeof(T));
        if (saturated_product(kv_heads, tokens) > most_elements) {
            return {errc::invalid_parameter, "token rows: more tokens than memory can hold"};
        }
        if (kv_heads > most_tokens || tokens > most_tokens) {
            return {errc::index_overflow, "token rows: at most 2^31 - 1 heads, and tokens of a head",
                    std::max(kv_heads, tokens)};
        }
        return {};
    }
    /// Why this object is not valid, or ok.
    [[nodiscard]] status validate() const { return validity_; }

    [[nodiscard]] index_t kv_heads() const { return std::ssize(lengths_); } ///< 0 where it is not valid
    /// Tokens of a head, which is not checked.
    [[nodiscard]] index_t tokens(index_t head) const { return lengths_[static_cast<std::size_t>(head)]; }
    /// [kv_heads], as cache/filled.hpp takes them; valid until the state is assigned or restored.
    [[nodiscard]] std::span<const index_t> lengths() const { return lengths_; }
    /// Tokens of all heads.
    [[nodiscard]] index_t total_tokens() const {
        index_t total = 0;
        for (const index_t length : lengths_) { total += length; }
        return total;
    }
    /// Tokens of the longest head.
    [[nodiscard]] index_t longest_row() const {
        return lengths_.empty() ? 0 : *std::max_element(lengths_.begin(), lengths_.end());
    }
    /// [tokens(head)] numbers of a head, in the order of its rows; the head is not checked.
    [[nodiscard]] std::span<const T> row(index_t head) const {
        return std::span(values_).subspan(begin(head), static_cast<std::size_t>(tokens(head)));
    }
    /// The same, to be written.
    [[nodiscard]] std::span<T> row(index_t head) {
        return std::span(values_).subspan(begin(head), static_cast<std::size_t>(tokens(head)));
    }
    /// [kv_heads, longest row]; what lies behind a shorter row is not its own. Valid until the state changes.
    [[nodiscard]] auto view() const& requires element<T> {
        return strided<const T, 2>(values_.data(), {kv_heads(), longest_row()}, {capacity_, 1});
    }
    void view() const&& = delete; ///< of a temporary
    /// Newest tokens that no head has lost: so many can be dropped.
    [[nodiscard]] index_t droppable_tokens() const { return droppable_; }

    /// Returns what append() answers to this count.
    [[nodiscard]] status can_append(index_t count) const {
        if (!validity_.ok()) { return validity_; }
        if (count < 0) {
            return {errc::invalid_parameter, "append: the number of tokens must not be negative"};
        }
        const index_t grown = saturated_sum(std::max(longest_row(), droppable_), count);
        if (grown > most_tokens) {
            return {errc::index_overflow, "append: a head holds at most 2^31 - 1 tokens", grown};
        }
        return valid_size(kv_heads(), grown);
    }
    /// Returns what drop_newest() answers to this count.
    [[nodiscard]] status can_drop(index_t count) const {
        if (!validity_.ok()) { return validity_; }
        if (count < 0 || count > droppable_) {
            return {errc::invalid_parameter,
                    "rollback: tokens that were evicted or never cached cannot be undone; protect them with "
                    "request.protect.rollback_tokens"};
        }
        return {};
    }

    /// Allocates memory for `count` more tokens of every head, so that the next append() of so many does not allocate: to be
    /// called for all states of a cache before one of them changes. Returns can_append(count).
    [[nodiscard]] status reserve(index_t count) {
        if (const status s = can_append(count); !s.ok()) { return s; }
        if (longest_row() + count > capacity_) { grow(longest_row() + count); }
        return {};
    }

    /// Appends `count` new tokens to every head; fn(i) is the number of the i-th of them. Returns invalid_parameter for a
    /// negative count, index_overflow beyond 2^31 - 1 tokens of a head (needed: tokens).
    template <class Fn>
    [[nodiscard]] status append(index_t count, Fn&& fn) {
        if (const status s = reserve(count); !s.ok()) { return s; }
        for (index_t head = 0; head < kv_heads(); ++head) {
            const index_t first = tokens(head);
            lengths_[static_cast<std::size_t>(head)] += count;
            index_t i = 0;
            for (T& entry : row(head).subspan(static_cast<std::size_t>(first))) { entry = fn(i++); }
        }
        droppable_ += count;
        return {};
    }

    /// Drops the newest `count` tokens of every head. Returns invalid_parameter unless 0 <= count <= droppable_tokens().
    [[nodiscard]] status drop_newest(index_t count) {
        if (const status s = can_drop(count); !s.ok()) { return s; }
        for (index_t& length : lengths_) { length -= count; }
        droppable_ -= count;
        return {};
    }

    /// Keeps the rows that the plan keeps. Returns plan_mismatch, with nothing changed.
    [[nodiscard]] status compact(const keep_plan& plan) {
        if (!validity_.ok()) { return validity_; }
        if (const status s = check_plan(*this, plan); !s.ok()) { return s; }
        for (index_t head = 0; head < kv_heads(); ++head) {
            const auto kept = plan.row(head);
            const auto values = row(head);
            for (std::size_t i = 0; i < kept.size(); ++i) {
                values[i] = values[static_cast<std::size_t>(kept[i])];
            }
            droppable_ = std::min(droppable_, newest_kept(kept, tokens(head)));
            lengths_[static_cast<std::size_t>(head)] = std::ssize(kept);
        }
        return {};
    }

    /// As a cache of rows without elements, for check_plan.
    [[nodiscard]] index_t extent(std::size_t r) const {
        return r == 0 ? kv_heads() : r == 1 ? longest_row() : 1;
    }
    [[nodiscard]] index_t rows(index_t head) const { return tokens(head); } ///< tokens(head), for check_plan

    /// Writes the state, for save() (core/save.hpp).
    void write(memory_writer& out) const {
        out.put(kv_heads());
        out.put(longest_row());
        out.put(droppable_);
        out.put(std::span<const index_t>(lengths_));
        for (index_t head = 0; head < kv_heads(); ++head) {
            out.put(row(head));
            for (index_t unused = tokens(head); unused < longest_row(); ++unused) { out.put(T{}); }
        }
    }
    /// Reads it back, for restore(). False for bytes that are no such state; this object is then not to be used.
    [[nodiscard]] bool read(memory_reader& in) {
        index_t heads = 0;
        if (!in.get(heads) || !in.get(capacity_) || !in.get(droppable_) || !in.holds<index_t>(heads, 1)) {
            return false;
        }
        validity_ = valid_size(heads, capacity_);
        if (!validity_.ok() || droppable_ < 0 || droppable_ > most_tokens) { return false; }
        lengths_.resize(static_cast<std::size_t>(heads));
        if (!in.get(std::span(lengths_))) { return false; }
        for (const index_t length : lengths_) {
            if (length < droppable_ || length > capacity_) { return false; }
        }
        if (capacity_ != longest_row() || !in.holds<T>(heads, capacity_)) { return false; }
        values_.resize(static_cast<std::size_t>(heads * capacity_));
        return in.get(std::span(values_));
    }

  private:
    [[nodiscard]] std::size_t begin(index_t head) const { return static_cast<std::size_t>(head * capacity_); }

    // How many of the newest of `tokens` rows are kept without a gap.
    static index_t newest_kept(std::span<const keep_plan::table_index> kept, index_t tokens) {
        index_t count = 0;
        while (count < std::ssize(kept) && kept[kept.size() - 1 - static_cast<std::size_t>(count)] ==
                                               static_cast<keep_plan::table_index>(tokens - 1 - count)) {
            ++count;
        }
        return count;
    }

    void grow(index_t needed) {
        const index_t capacity = std::max(needed, std::min(2 * capacity_, most_tokens));
        std::vector<T> grown(static_cast<std::size_t>(kv_heads() * capacity));
        for (index_t head = 0; head < kv_heads(); ++head) {
            const auto old = row(head);
            std::copy(old.begin(), old.end(), grown.begin() + head * capacity);
        }
        values_ = std::move(grown);
        capacity_ = capacity;
    }

    status validity_;
    index_t capacity_ = 0;
    index_t droppable_ = 0;
    std::vector<index_t> lengths_; // [kv_heads]
    std::vector<T> values_;        // [kv_heads, capacity]
};

namespace detail {

inline constexpr index_t weights_run = 256; // most weights that add_weights() asks for at once

// after [count] = before + weights / divisor, where these are positive and finite; write(first, n, weights) adds n of them
// to zeros. In runs of one size, whose sums compilers turn into vectors at -O2, too.
template <class Write>
void add_weights(const float* before, index_t count, float divisor, const Write& write, float* after) {
    constexpr index_t run = weights_run;
    float weights[run], sums[run] = {}; // apart from other memory, so that no compiler has to ask
    for (index_t first = 0; first < count; first += run) {
        const index_t n = std::min(run, count - first);
        std::fill_n(weights, run, 0.0f);
        write(first, n, weights);
        std::copy_n(before + first, n, sums);
        for (index_t i = 0; i < run; ++i) {
            const float weight = weights[i] / divisor;
            sums[i] += weight > 0 && weight <= std::numeric_limits<float>::max() ? weight : 0.0f;
        }
        std::copy_n(sums, n, after + first);
    }
}

} // namespace detail

} // namespace KVTRIM_NAMESPACE
